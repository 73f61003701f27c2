"""The plan of a dry run: its formulas against what DeepSpeed does, its numbers against the run that follows."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_prep.cli import InputError
from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from pretrain import loop, train
from pretrain.data import collate
from pretrain.model import Batch, PretrainingModule, build_model
from pretrain.monitor import plan
from pretrain.monitor.plan import wire_bytes
from pretrain.monitor.probe import kept_bytes, probe
from pretrain.settings.config import TrainConfig
from pretrain.settings.shape import Shape
from pretrain.setup import prepare
from pretrain.sizes import parameters, state_bytes
from tests.ranks import run_ranks
from tests.runs import tiny_run
from tests.stores import random_documents, store_of

COLLECTIVES = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}  # rings: passes over the data
SMALL = 20_000  # bytes of a message that is no weight and no gradient


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(60), held_out={3, 17, 30}, shards=4).folder


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    return tiny_run(store, out, **dict(steps=3, warmup=1, global_batch=16, micro_batch=4, keep=3) | changes)


def planned(config: TrainConfig, capsys) -> dict[str, Any]:
    train.train(config)
    return json.loads(capsys.readouterr().out)


def test_state_is_what_the_papers_table_says():
    p = 1e9
    assert [state_bytes(stage, 10**9, 8, "bf16") for stage in (1, 2, 3)] == [
        4 * p + 12 * p / 8, 2 * p + 14 * p / 8, 16 * p / 8,
    ]  # fmt: skip
    assert state_bytes(0, 10**9, 8, "fp32") == 16 * p
    assert state_bytes(3, 10**9, 8, "fp32") == 20 * p / 8
    for stage in (0, 1, 2, 3):  # an average lies beside the optimizer's state
        plain, averaged = (state_bytes(stage, 10**9, 8, "bf16", has) for has in (False, True))
        assert averaged - plain == (4 * p if stage == 0 else 4 * p / 8)


def bytes_of_the_last_step(config: TrainConfig) -> tuple[float, int]:
    """Bytes that this rank sent in rings, and elements of the fp32 buffers that it holds."""
    sent: Counter[str] = Counter()
    for name in COLLECTIVES:
        setattr(dist, name, _counting(getattr(dist, name), name, sent))
    train_step, held = loop.train_step, []

    def counted(run: Any, *arguments: Any) -> Any:
        sent.clear()
        found = train_step(run, *arguments)
        held.append((dict(sent), sum(buffer.numel() for buffer in run.engine.partition.fp32_buffers)))
        return found

    loop.train_step = counted  # type: ignore[assignment]
    train.train(config)
    counts, elements = held[-1]
    share = (dist.get_world_size() - 1) / dist.get_world_size()
    return sum(COLLECTIVES[name] * size * share for name, size in counts.items()), elements


def _counting(function: Callable[..., Any], name: str, sent: Counter[str]) -> Callable[..., Any]:
    def counting(*arguments: Any, **named: Any) -> Any:
        tensors = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
        size = max((tensor.nbytes for tensor in tensors), default=0)
        sent[name] += size if size > SMALL else 0
        return function(*arguments, **named)

    return counting


@pytest.mark.parametrize(
    ("zero", "accumulation"),
    [(0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)],
)
@pytest.mark.slow
def test_bytes_on_the_wire_are_those_that_deepspeed_sends(store, tmp_path, zero, accumulation):
    # Of a model as small as this one DeepSpeed would keep most of stage 3's parameters gathered.
    zero_settings = {"stage": zero} | ({"stage3_param_persistence_threshold": 0} if zero == 3 else {})
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero_settings}))
    settings = config(store, tmp_path / "run", ds_config=tmp_path / "ds.json", global_batch=8 * accumulation)
    found = run_ranks(2, bytes_of_the_last_step, settings)
    parameters = build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True).num_parameters()
    expected = wire_bytes(zero, parameters, 2, "fp32", accumulation)
    assert found[0][0] == pytest.approx(expected, rel=0.02)
    assert sum(elements for _, elements in found) == pytest.approx(parameters * (1 if zero else 2), rel=1e-3)


def test_the_plan_has_the_numbers_of_the_run(store, tmp_path, capsys):
    plain = config(store, tmp_path / "run", dry_run=True)
    found = planned(plain, capsys)
    assert not (tmp_path / "run").exists()
    assert {"settings", "parameters", "resume"} <= found.keys()
    (phase,) = found["phases"]
    model = build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True)
    assert found["parameters"] == model.num_parameters()
    assert found["checkpoint"]["bytes"] == 12 * found["parameters"]
    assert (phase["accumulation"], phase["samples"]) == (4, 48)
    assert 0 < phase["step_tokens"] <= 16 * 32
    from data_prep.store import Store

    epoch = Mixture([Store.open(store)], [1.0], seq_len=32, objective="nsp", seed=0).epoch(0)
    assert phase["epochs"] == pytest.approx(48 / epoch.size)
    assert found["seconds"] == pytest.approx(3 * phase["step_seconds"])
    assert phase["step_seconds"] > 4 * 4 / 16 * phase["probe"]["seconds"] / 2


def test_the_plan_for_people_is_on_stderr(store, tmp_path, capsys):
    train.train(config(store, tmp_path / "run", dry_run=True, zero=2))
    told = capsys.readouterr().err
    for part in ("What will run", "bert-tiny", "2 (this run)", "prediction", "Checkpoint", "tokens/s per rank", "Time"):
        assert part in told


def test_a_plan_is_of_the_shape_that_was_asked_for_and_of_its_average(store, tmp_path, capsys):
    shape: dict[str, Any] = dict(layers=1, hidden=96, heads=3)
    train.train(config(store, tmp_path / "run", dry_run=True, average="ema=.9", mlm_bias="unigram", **shape))
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["parameters"] == parameters(Shape(1, 96, 3), 64)
    assert found["model"] == "bert-tiny 1x96, 3 heads"
    assert found["state_bytes"]["1"] == 24 * found["parameters"]
    assert found["checkpoint"]["bytes"] == 16 * found["parameters"]
    assert "bert-tiny 1x96, 3 heads" in told.err


def test_of_several_ranks_only_the_first_prints(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    train.train(config(store, tmp_path / "run", dry_run=True))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    found = planned(config(store, tmp_path / "run", dry_run=True), capsys)
    assert found["ranks"] == 4
    assert found["state_bytes"]["3"] == 20 * found["parameters"] / 4
    assert found["phases"][0]["wire_bytes"] == round(3 * 4 * found["parameters"] * 3 / 4)


def test_each_phase_is_planned(store, tmp_path, capsys):
    spans = ("seq_len=16,steps=4,global_batch=32", "seq_len=64,steps=2,global_batch=8,lr=5e-4")
    found = planned(config(store, tmp_path / "run", dry_run=True, phase=spans), capsys)
    assert [phase["seq_len"] for phase in found["phases"]] == [16, 64]
    assert [phase["samples"] for phase in found["phases"]] == [128, 16]
    assert found["seconds"] == pytest.approx(sum(phase["seconds"] for phase in found["phases"]))
    assert found["activation_bytes"] == max(phase["activation_bytes"] for phase in found["phases"])


def test_a_growing_batch_takes_fewer_samples(store, tmp_path, capsys):
    grown = config(store, tmp_path / "run", dry_run=True, steps=20, global_batch=32, batch_warmup=10)
    (phase,) = planned(grown, capsys)["phases"]
    assert 10 * 32 < phase["samples"] < 20 * 32


def test_hours_decide_the_steps(store, tmp_path, capsys):
    found = planned(config(store, tmp_path / "run", dry_run=True, steps=10**7, warmup=0.1, hours=2.0), capsys)
    assert found["phases"][0]["steps"] < 10**7
    assert found["seconds"] == pytest.approx(7200, rel=0.01)


def test_large_stores_are_planned_from_their_first_shards(store, tmp_path, capsys, monkeypatch):
    whole = planned(config(store, tmp_path / "run", dry_run=True), capsys)["phases"][0]
    monkeypatch.setattr(plan, "SAMPLED_TOKENS", 500)
    part = planned(config(store, tmp_path / "run", dry_run=True), capsys)["phases"][0]
    assert part["epochs"] != whole["epochs"]
    assert part["epochs"] == pytest.approx(whole["epochs"], rel=0.3)
    assert part["step_tokens"] == pytest.approx(whole["step_tokens"], rel=0.1)


def test_a_resumed_run_has_less_to_do_and_another_model_is_refused(store, tmp_path, capsys):
    run_ranks(1, train.train, config(store, tmp_path / "run", steps=2))
    found = planned(config(store, tmp_path / "run", steps=8, dry_run=True), capsys)
    assert found["steps_done"] == 2
    assert found["resume"].endswith("step-0000002")
    assert found["seconds"] == pytest.approx(found["phases"][0]["seconds"] * 6 / 8)
    with pytest.raises(InputError, match="holds another model"):
        train.train(config(store, tmp_path / "run", model="bert-mini", dry_run=True))


def test_the_room_that_checkpoints_need(store, tmp_path, capsys, monkeypatch):
    size = 12 * build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True).num_parameters()

    def with_free(free: int, **changes: Any) -> int:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
        return planned(config(store, tmp_path / "run", dry_run=True, **changes), capsys)["checkpoint"]["at_once"]

    many: dict[str, Any] = dict(steps=100, save_every=10)
    assert with_free(4 * size, **many, keep=3) == 4, "three, and the one being written"
    assert with_free(5 * size, **many, keep=3, eval_samples=8) == 5, "and the best"
    assert with_free(11 * size, **many, keep=0) == 11
    assert with_free(1 * size, save_every=0) == 1
    for free, changes in ((4 * size - 1, {"keep": 3}), (10 * size, {"keep": 0}), (4 * size, {"eval_samples": 8})):
        with pytest.raises(InputError, match="more checkpoints"):
            with_free(free, **many | changes)


@pytest.fixture(scope="module")
def batch(store) -> Batch:
    from data_prep.store import Store

    mixture = Mixture([Store.open(store)], [1.0], seq_len=32, objective="nsp", seed=0)
    return collate(mixture.stores, mixture.epoch(0).samples_at(np.arange(8)), Masking())


def test_kept_bytes_are_those_of_activations(batch):
    model = build_model(preset="bert-tiny", vocab_size=64, dropout=0.1, seed=0, needs_nsp=True)
    kept = kept_bytes(PretrainingModule(model).train(), batch)
    tokens, hidden = len(batch.input_ids), model.config.hidden_size
    # One whole layer keeps q, k, v, mixed, two inputs of LayerNorm and their outputs, and two wide ones: 16 of hidden.
    assert 16 * tokens * hidden * 4 < kept < 60 * tokens * hidden * 4


def test_a_probe_says_what_checkpointing_saves(store):
    from data_prep.store import Store

    mixture = Mixture([Store.open(store)], [1.0], seq_len=32, objective="nsp", seed=0)
    plain, saved = (
        probe(
            build_model(preset="bert-mini", vocab_size=64, dropout=0.1, seed=0, needs_nsp=True),
            mixture,
            Masking(),
            micro_batch=8,
            checkpoint_activations=checkpointed,
        )
        for checkpointed in (False, True)
    )
    assert plain.tokens == saved.tokens
    assert saved.kept_bytes < 0.6 * plain.kept_bytes
    assert plain.seconds > 0


def test_a_plan_for_a_gpu_that_is_elsewhere_takes_nothing_from_the_machine_that_plans(
    store, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "8")
    settings: dict[str, Any] = dict(dry_run=True, steps=4000, objective="mlm", micro_batch=2)
    here, there = (planned(config(store, tmp_path / "run", **settings, gpu=gpu), capsys) for gpu in ("", "a100"))
    assert (here["probe_device"], there["probe_device"]) == ("this CPU, fp32", "a100")
    assert here["state_bytes"]["1"] > there["state_bytes"]["1"]  # bf16
    tokens = there["phases"][0]["step_tokens"] / there["phases"][0]["step_seconds"]
    assert tokens == pytest.approx(8 * 0.93 * 2 * 28 / 0.007, rel=0.2)  # a micro-batch as small as this takes 7 ms
    assert any("passes over the text, and after 40" in warning for warning in there["warnings"])
    assert any("pretrain.advice" in warning for warning in there["warnings"])
    assert any("8 ranks of this CPU" in warning for warning in here["warnings"])
    assert not any("this CPU" in warning for warning in there["warnings"])
    with pytest.raises(InputError, match=r"--gpu a100 goes with --dry_run"):
        config(store, tmp_path / "run", gpu="a100")
    with pytest.raises(InputError, match=r"--gpu b52 is not known; known are .*h100"):
        prepare(config(store, tmp_path / "run", dry_run=True, gpu="b52"), 1)
