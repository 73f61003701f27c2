"""Loss spikes for real: a batch whose loss is thirty times itself, and what the run does then."""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import InputError
from data_prep.samples.pairs import Mixture
from data_prep.store import Store
from pretrain.checkpoints.checkpoint import RunState, folder_of, present
from pretrain.checkpoints.rollback import BEYOND, LEAST, is_spike
from pretrain.config import TrainConfig
from pretrain.data import Position, SampleStream
from pretrain.model import Pretrainer
from pretrain.train import train
from tests.checkpoints import rewrite_state
from tests.ranks import run_ranks
from tests.runs import tiny_run
from tests.stores import random_documents, store_of
from tests.test_checkpoint import contents
from tests.test_faults import events

STEPS, BATCH, SPIKE = 20, 8, 14


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40), held_out={3, 17}).folder


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    return tiny_run(store, out, **dict(steps=STEPS, global_batch=BATCH, save_every=4, rollback=3.0) | changes)


def train_with_spikes(settings: TrainConfig, spiking: Collection[int]) -> RunState:
    """The loss of these forward passes of rank 0 is thirty times as large; a step has one on each rank."""
    forward, calls = Pretrainer.forward, iter(range(1, 10_000))

    def spiked(self: Pretrainer, batch: Any) -> Any:
        losses = forward(self, batch)
        if self.training and next(calls) in spiking and os.environ["RANK"] == "0":
            return losses._replace(mlm=losses.mlm * 30)
        return losses

    Pretrainer.forward = spiked  # type: ignore[method-assign,assignment]
    return train(settings)


@pytest.fixture(scope="module")
def spiked(store, tmp_path_factory) -> Path:
    """A run that spikes in step 14, goes back to the checkpoint of step 12, and comes to its end."""
    out = tmp_path_factory.mktemp("spiked") / "run"
    run_ranks(2, train_with_spikes, config(store, out), {SPIKE})
    return out


def cut_after(run: Path, step: int, out: Path) -> Path:
    """The run as a crash after the checkpoint of `step` would leave it."""
    shutil.copytree(run, out)
    for folder in present(out):
        if folder > folder_of(out, step):
            shutil.rmtree(folder)
    return out


def place_at(folder: Path, position: Position, passed_over: list[list[int]]) -> None:
    """Let a checkpoint go on elsewhere in the data."""
    state = json.loads((folder / "state.json").read_text())
    rewrite_state(folder, state | {"position": position._asdict(), "passed_over": passed_over})


def test_a_spike_goes_back_and_on_with_later_data(store, spiked, tmp_path):
    """As a run that is resumed at the checkpoint before the spike with the data of BEYOND steps after it."""
    stream = SampleStream(Mixture([Store.open(store)], [1.0], 32, "nsp", 0), Position())
    stream.take((SPIKE + BEYOND) * BATCH)
    reference = cut_after(spiked, 12, tmp_path / "reference")
    place_at(
        folder_of(reference, 12), stream.position._replace(taken=12 * BATCH), [[12 * BATCH, (SPIKE + BEYOND) * BATCH]]
    )
    run_ranks(2, train, config(store, reference, rollback=0.0))
    ours, theirs = (contents(folder_of(run, STEPS)) for run in (spiked, reference))
    states = [json.loads(found.pop("state.json")) for found in (ours, theirs)]
    assert ours == theirs
    assert states[0]["position"] == states[1]["position"]
    assert (states[0]["samples"], states[0]["passed_over"]) == (STEPS * BATCH, [[12 * BATCH, (SPIKE + BEYOND) * BATCH]])
    (event,) = events(spiked, "rollback")
    assert (event["step"], event["spike"], event["checkpoint"]) == (12, SPIKE, "step-0000012")
    assert event["samples_passed_over"] == (SPIKE - 12 + BEYOND) * BATCH
    assert event["loss"] > 3 * event["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("step", [12, 16])
def test_a_run_that_crashed_after_a_rollback_does_the_same_again(store, spiked, tmp_path, step):
    """Resumed before the first save after the rollback, it meets the spike again; afterwards it knows what to pass."""
    cut = cut_after(spiked, step, tmp_path / "run")
    run_ranks(2, train_with_spikes, config(store, cut), {SPIKE - 12} if step == 12 else ())
    assert contents(folder_of(cut, STEPS)) == contents(folder_of(spiked, STEPS))


@pytest.mark.slow
def test_spikes_without_end_end_the_run(store, tmp_path):
    with pytest.raises(RuntimeError, match=r"spiked again after 3 rollbacks to step 12.*Try a lower --lr"):
        run_ranks(1, train_with_spikes, config(store, tmp_path / "run"), range(SPIKE, 1000))
    assert [event["samples_passed_over"] for event in events(tmp_path / "run", "rollback")] == [
        (2 + BEYOND) * BATCH + tries * (1 + BEYOND) * BATCH for tries in range(4)
    ]


@pytest.mark.slow
def test_stage_3_goes_back_too(store, tmp_path):
    """At stage 3 gathered weights would survive a checkpoint that is loaded into an engine in use."""
    state = run_ranks(2, train_with_spikes, config(store, tmp_path / "run", zero=3), {SPIKE})[0]
    assert state.step == STEPS
    cut = cut_after(tmp_path / "run", 12, tmp_path / "cut")
    run_ranks(2, train_with_spikes, config(store, cut, zero=3), {SPIKE - 12})
    assert contents(folder_of(cut, STEPS)) == contents(folder_of(tmp_path / "run", STEPS))


def test_a_spike_before_the_first_checkpoint_is_only_told(store, tmp_path):
    state = run_ranks(1, train_with_spikes, config(store, tmp_path / "run", save_every=0), {SPIKE})[0]
    assert (state.step, state.passed_over, len(state.recent)) == (STEPS, (), STEPS)
    assert [event["step"] for event in events(tmp_path / "run", "spike")] == [SPIKE]
    assert not events(tmp_path / "run", "rollback")


def test_a_spike_is_measured_by_the_median():
    recent = [9.0, 1.0] * (LEAST // 2) + [1.0]
    assert is_spike(2.01, recent, 2.0)
    assert not is_spike(1.99, recent, 2.0)
    assert not is_spike(1e9, recent[: LEAST - 1], 2.0)


def test_a_factor_that_every_step_exceeds_is_refused(store, tmp_path):
    with pytest.raises(InputError, match=r"--rollback 0\.9 must be a factor above 1"):
        config(store, tmp_path, rollback=0.9)
