"""Phases: what the command line says of them, and a run that goes through two of them, stopped anywhere."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import ROOT, InputError
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.data import sample_stream
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import Flags
from pretrain.settings.phases import Span, parse_span, phases_of
from pretrain.setup import prepare
from pretrain.state import DataPosition, RunState
from pretrain.train import train
from tests.ranks import run_ranks
from tests.runs import contents, distance, lines_of, tiny_run, weights
from tests.stores import random_documents, store_of

WHOLE = Span(128, 1000, 0.1, "linear", 0)
TWO = (
    "seq_len=24,steps=4,global_batch=8,lr=2e-3,mask_rate=.4,mask_rate_end=.2",
    "seq_len=48,steps=3,global_batch=16,micro_batch=4,warmup=1,weight_decay=.5",
)


def test_a_phase_takes_from_the_command_line_what_it_does_not_say():
    span = parse_span("steps=50, lr=6e-3, schedule=poly", WHOLE)
    assert span == Span(128, 50, 0.1, "poly", 0, flags=Flags(lr=6e-3))
    assert span.warmup_steps == 5
    two = WHOLE._replace(weights=(1.0, 2.5), mask_rate=0.3)
    span = parse_span("steps=50,mask_rate_end=.15,weights=0:1.5,temperature=.5,weight_decay=.1", two)
    assert (span.mask_rate, span.mask_rate_end, span.weights, span.temperature) == (0.3, 0.15, (0.0, 1.5), 0.5)
    assert span.flags == Flags(weight_decay=0.1)
    assert parse_span("steps=50", two).weights == (1.0, 2.5)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("seq_len=128", "steps=N"),
        ("steps=10,lr=fast", "'fast'"),
        ("steps=1.5", "whole number"),
        ("steps=10,sequence=128", "'sequence=128'"),
        ("steps=10,steps=20", "each once"),
        ("steps=10,seq_len", "'seq_len'"),
        ("steps=10,schedule=steep", "wsd"),
        ("steps=10,warmup=10", "warmup 10"),
        ("steps=10,seq_len=4", "seq_len 4"),
        ("steps=10,batch_warmup=11", "batch_warmup 11"),
        ("steps=10,mask_rate=0", "mask_rate 0"),
        ("steps=10,mask_rate_end=1", "mask_rate_end 1"),
        ("steps=10,weight_decay=-1", "weight_decay -1"),
        ("steps=10,temperature=nan", "temperature nan"),
        ("steps=10,weights=1:2", "each of the 1 stores"),
        ("steps=10,weights=0", "not all 0"),
        ("steps=10,weights=all", "'all'"),
        ("", "steps="),
    ],
)
def test_wrong_phases_are_refused_by_name(text, word):
    with pytest.raises(InputError, match="--phase") as refused:
        parse_span(text, WHOLE)
    assert word in str(refused.value)


def test_a_phase_goes_before_the_json(tmp_path):
    path = tmp_path / "fixed.json"
    fixed = {
        "train_batch_size": 64,
        "gradient_accumulation_steps": 4,
        "optimizer": {"type": "Lamb", "params": {"lr": 1}},
    }
    path.write_text(json.dumps(fixed))
    spans = [WHOLE._replace(flags=Flags(global_batch=96, micro_batch=8, lr=0.5)), WHOLE]
    own, other = phases_of(spans, path, Flags(), 2, "fp32")
    assert (own.global_batch, own.micro_batch, own.accumulation) == (96, 8, 6)
    assert (other.global_batch, other.micro_batch, other.accumulation) == (64, 8, 4)
    assert [phase.lr for phase in (own, other)] == [0.5, 1]
    assert (other.index, other.first, other.end) == (1, 1000, 2000)


def test_by_the_clock_the_schedule_follows_the_time():
    phase, *_ = phases_of([WHOLE], ROOT / "ds_configs/auto.json", Flags(lr=1.0), 1, "fp32")
    assert [phase.lr_at(7, share) for share in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1.0, 0.5, 0.0], abs=1e-4)


def test_the_mask_rate_falls_in_a_straight_line_over_the_samples():
    span = WHOLE._replace(steps=10, mask_rate=0.3, mask_rate_end=0.1)
    phase, *_ = phases_of([span], ROOT / "ds_configs/auto.json", Flags(global_batch=8), 1, "fp32")
    assert [phase.mask_rate_after(samples) for samples in (0, 20, 80, 100)] == pytest.approx([0.3, 0.25, 0.1, 0.1])
    # 8 steps of a batch that grows, 1 to 8 samples, and 2 whole ones: 52 samples.
    phase, *_ = phases_of(
        [span._replace(batch_warmup=8)], ROOT / "ds_configs/auto.json", Flags(global_batch=8, micro_batch=1), 1, "fp32"
    )
    assert phase.samples_in(10) == 52
    assert phase.mask_rate_after(26) == pytest.approx(0.2)
    assert phases_of([WHOLE], ROOT / "ds_configs/auto.json", Flags(), 1, "fp32")[0].mask_rate_after(77) == 0.15


def test_a_growing_batch_must_divide():
    spans = [WHOLE._replace(batch_warmup=10)]
    with pytest.raises(InputError, match="multiple of 8 x 2 ranks x micro-batch 4"):
        phases_of(spans, ROOT / "ds_configs/auto.json", Flags(global_batch=72, micro_batch=4), 2, "fp32")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40), held_out={3, 17}).folder


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = dict(
        phase=TWO, warmup=2, eval_every=0, eval_samples=8, save_every=1, seq_len=128, lr=None
    )
    return tiny_run(store, out, **settings | changes)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run_ranks(2, train, config(store, out))
    return out


def test_each_phase_has_its_own_samples_batch_and_rate(whole):
    lines = lines_of(whole, "train")
    assert [line["samples"] for line in lines] == [8, 16, 24, 32, 48, 64, 80]
    first, second = lines[:4], lines[4:]
    assert [line["lr"] for line in first] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3, 1e-3])
    assert [line["lr"] for line in second] == pytest.approx([1e-4 / 2, 1e-4, 1e-4 / 2])
    per_sample = [(b["tokens"] - a["tokens"]) / (b["samples"] - a["samples"]) for a, b in pairwise(lines)]
    assert max(per_sample[:3]) <= 24 < min(per_sample[3:]) <= 48
    assert [line["step"] for line in lines_of(whole, "eval")] == [4, 7], "each phase ends with an evaluation"
    phase = [line for line in lines_of(whole, "event") if line["event"] == "phase"]
    assert phase == [
        {"kind": "event", "step": 4, "event": "phase", "number": 2, "of": 2, "seq_len": 48, "steps": 3,
         "warmup": 1.0, "schedule": "linear", "batch_warmup": 0, "mask_rate": 0.15, "mask_rate_end": None,
         "weights": [1.0], "temperature": 1.0, "global_batch": 16, "micro_batch": 4, "lr": 1e-4, "weight_decay": 0.5},
    ]  # fmt: skip
    # The count of a sample is rounded: of 22 to 24 tokens 9 or 10 at .4, 5 at .2.
    assert [line["mask_rate"] for line in lines] == pytest.approx([0.4, 0.35, 0.3, 0.25, 0.15, 0.15, 0.15], abs=0.02)
    record = json.loads((whole / "config.json").read_text())
    assert record["train"]["steps"] == 7
    assert [(each["seq_len"], each["steps"], each["lr"]) for each in record["phases"]] == [(24, 4, 2e-3), (48, 3, 1e-4)]


@pytest.mark.parametrize("step", [2, 4, 5])
@pytest.mark.slow
def test_resume_inside_any_phase_is_bit_for_bit(store, whole, tmp_path, step):
    out = tmp_path / "again"
    run_ranks(2, train, config(store, out, resume=str(checkpoint_dir(whole, step))))
    assert contents(checkpoint_dir(out, 7)) == contents(checkpoint_dir(whole, 7))


GROWING: dict[str, Any] = {
    "phase": (
        "seq_len=24,steps=4,global_batch=32,micro_batch=2,batch_warmup=3",
        "seq_len=24,steps=3,global_batch=16,micro_batch=2",
    ),
    "dropout": 0.0,
    "save_every": 0,
}


@pytest.fixture(scope="module")
def growing(store, tmp_path_factory) -> Path:
    """A run of one rank whose batch grows."""
    out = tmp_path_factory.mktemp("growing") / "run"
    run_ranks(1, train, config(store, out, zero=1, **GROWING))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_ranks_and_stages_change_nothing(store, growing, tmp_path, zero):
    run_ranks(2, train, config(store, tmp_path / "two", zero=zero, **GROWING))
    one, two = (lines_of(out, "train") for out in (growing, tmp_path / "two"))
    sizes = [b["samples"] - a["samples"] for a, b in zip([{"samples": 0}, *one], one, strict=False)]
    assert sizes == [12, 24, 32, 32, 16, 16, 16]
    assert [line["samples"] for line in one] == [line["samples"] for line in two]
    start = weights(checkpoint_dir(growing, 4))
    found, expected = (weights(checkpoint_dir(out, 7)) for out in (tmp_path / "two", growing))
    assert distance(found, expected, start) < 1e-5


@pytest.mark.slow
def test_a_phase_of_the_same_length_goes_on_in_the_data(store, tmp_path):
    settings = {"eval_samples": 0, "dropout": 0.0, "warmup": 0.0, "schedule": "constant", "global_batch": 8}
    whole = config(store, tmp_path / "whole", phase=(), steps=4, seq_len=24, **settings)
    split = config(store, tmp_path / "split", phase=("steps=2", "steps=2"), seq_len=24, **settings)
    for settings_of in (whole, split):
        run_ranks(1, train, settings_of)
    a, b = (contents(checkpoint_dir(run.out, 4)) for run in (whole, split))
    assert {name: data for name, data in a.items() if name != "state.json"} == {
        name: data for name, data in b.items() if name != "state.json"
    }


@pytest.mark.slow
def test_the_weight_decay_of_a_phase_is_that_of_a_run_that_goes_on_with_it(store, tmp_path):
    steps = "seq_len=24,steps=2,global_batch=8,warmup=0"
    phases = (steps, f"{steps},weight_decay=.5")
    run_ranks(1, train, config(store, tmp_path / "phases", phase=phases, eval_samples=0))
    begun = checkpoint_dir(tmp_path / "phases", 2)
    run_ranks(1, train, config(store, tmp_path / "flag", phase=(steps,) * 2, resume=str(begun), weight_decay=0.5))
    run_ranks(1, train, config(store, tmp_path / "same", phase=(steps,) * 2, resume=str(begun)))
    found, expected, same = (weights(checkpoint_dir(tmp_path / name, 4)) for name in ("phases", "flag", "same"))
    assert all(found[name].equal(expected[name]) for name in expected)
    assert not found["bert.embeddings.word_embeddings.weight"].equal(same["bert.embeddings.word_embeddings.weight"])


def test_other_weights_of_the_stores_go_on_with_a_pass_that_has_not_begun(tmp_path):
    stores = [
        store_of(tmp_path / name, random_documents(40, seed=seed), held_out={3}) for seed, name in enumerate("ab")
    ]
    run = tiny_run(
        stores[0].folder, tmp_path / "run", phase=("steps=9", "steps=9", "steps=9,weights=0:2"), objective="mlm",
        data=tuple(str(store.folder) for store in stores),
    )  # fmt: skip
    setup = prepare(run, 1)
    assert [setup.passes(phase) for phase in setup.phases] == [[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]]
    state = RunState(18, position=DataPosition(epoch=2, sample=5, phase=0, samples_in_phase=300, seq_len=32))
    same, other = (setup.entering(state, phase) for phase in setup.phases[1:])
    assert same.position == DataPosition(2, 5, 1, 0, 32)
    # Passes 0 to 2 of store b have begun: of two an epoch, epoch 2 is the first that begins behind them, with pass 4.
    assert other.position == DataPosition(2, 0, 2, 0, 32)
    assert setup.entering(other._replace(step=20), setup.phases[2]).position == other.position
    samples = sample_stream(setup, other.position).take(64)
    assert samples.store.tolist() == [1] * 64
    assert set(sample_stream(setup, same.position).take(64).store.tolist()) == {0, 1}
