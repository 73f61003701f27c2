"""Phases: what the command line says of them, and a run that goes through two of them, stopped anywhere."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import ROOT, InputError
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import Flags
from pretrain.settings.phases import Span, parse_span, phases_of
from pretrain.train import train
from tests.ranks import run_ranks
from tests.runs import contents, distance, lines_of, tiny_run, weights
from tests.stores import random_documents, store_of

WHOLE = Span(128, 1000, 0.1, "linear", 0)
TWO = ("seq_len=24,steps=4,global_batch=8,lr=2e-3", "seq_len=48,steps=3,global_batch=16,micro_batch=4,warmup=1")


def test_a_phase_takes_from_the_command_line_what_it_does_not_say():
    span = parse_span("steps=50, lr=6e-3, schedule=poly", WHOLE)
    assert span == Span(128, 50, 0.1, "poly", 0, Flags(lr=6e-3))
    assert span.warmup_steps == 5


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
         "warmup": 1.0, "schedule": "linear", "batch_warmup": 0, "global_batch": 16, "micro_batch": 4, "lr": 1e-4},
    ]  # fmt: skip
    record = json.loads((whole / "config.json").read_text())
    assert record["train"]["steps"] == 7
    assert [(each["seq_len"], each["steps"], each["lr"]) for each in record["phases"]] == [(24, 4, 2e-3), (48, 3, 1e-4)]


@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 5))])
def test_resume_inside_any_phase_is_bit_for_bit(store, whole, tmp_path, step):
    out = tmp_path / "again"
    run_ranks(2, train, config(store, out, resume=str(checkpoint_dir(whole, step))))
    assert contents(checkpoint_dir(out, 7)) == contents(checkpoint_dir(whole, 7))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_ranks_and_stages_change_nothing(store, tmp_path, zero):
    changes: dict[str, Any] = {"dropout": 0.0, "save_every": 0}
    grows = "seq_len=24,steps=4,global_batch=32,micro_batch=2,batch_warmup=3"
    phases = (grows, "seq_len=24,steps=3,global_batch=16,micro_batch=2")
    run_ranks(1, train, config(store, tmp_path / "one", zero=1, phase=phases, **changes))
    run_ranks(2, train, config(store, tmp_path / "two", zero=zero, phase=phases, **changes))
    one, two = (lines_of(tmp_path / name, "train") for name in ("one", "two"))
    sizes = [b["samples"] - a["samples"] for a, b in zip([{"samples": 0}, *one], one, strict=False)]
    assert sizes == [12, 24, 32, 32, 16, 16, 16]
    assert [line["samples"] for line in one] == [line["samples"] for line in two]
    start = weights(checkpoint_dir(tmp_path / "one", 4))
    found, expected = (weights(checkpoint_dir(tmp_path / name, 7)) for name in ("two", "one"))
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
