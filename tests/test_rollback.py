"""Loss spikes for real: a batch whose loss is thirty times itself, and what the run does then."""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import ROOT, InputError
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain.checkpoints.format import checkpoint_dir, list_checkpoints
from pretrain.checkpoints.saver import Saver
from pretrain.data import SampleStream
from pretrain.divergence import MIN_LOSSES, SKIP_STEPS_AFTER_SPIKE, is_spike
from pretrain.model import PretrainingModule
from pretrain.settings.config import TrainConfig
from pretrain.settings.ds_config import Flags
from pretrain.settings.phases import Span, phase_at, phases_of
from pretrain.state import DataPosition, RunState
from pretrain.train import train
from tests.checkpoints import rewrite_state
from tests.ranks import run_ranks
from tests.runs import contents, events, tiny_run
from tests.stores import random_documents, store_of

STEPS, BATCH, SPIKE = 20, 8, 14


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40), held_out={3, 17}).folder


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    common = dict(steps=STEPS, global_batch=BATCH, save_every=4, rollback=3.0, average="ema=.9")  # which goes back, too
    return tiny_run(store, out, **common | changes)


def train_with_spikes(settings: TrainConfig, spiking: Collection[int]) -> RunState:
    """The loss of these forward passes of rank 0 is thirty times as large; a step has one on each rank."""
    forward, calls = PretrainingModule.forward, iter(range(1, 10_000))

    def spiked(self: PretrainingModule, *arguments: Any, **named: Any) -> Any:
        losses: Any = forward(self, *arguments, **named)
        if self.training and next(calls) in spiking and os.environ["RANK"] == "0":
            return losses._replace(mlm=losses.mlm * 30)
        return losses

    PretrainingModule.forward = spiked  # type: ignore[method-assign]
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
    for folder in list_checkpoints(out):
        if folder > checkpoint_dir(out, step):
            shutil.rmtree(folder)
    return out


def place_at(folder: Path, position: DataPosition, passed_over: list[list[int]]) -> None:
    """Let a checkpoint go on elsewhere in the data."""
    state = json.loads((folder / "state.json").read_text())
    rewrite_state(folder, state | {"position": position.to_json(), "passed_over": passed_over})


@pytest.mark.slow
def test_a_spike_goes_back_and_on_with_later_data(store, spiked, tmp_path):
    """As a run that is resumed at the checkpoint before the spike, with later data."""
    stream = SampleStream(Mixture([Store.open(store)], [1.0], seq_len=32, objective="nsp", seed=0), DataPosition())
    stream.take((SPIKE + SKIP_STEPS_AFTER_SPIKE) * BATCH)
    reference = cut_after(spiked, 12, tmp_path / "reference")
    place_at(
        checkpoint_dir(reference, 12),
        stream.position._replace(samples_in_phase=12 * BATCH),
        [[12 * BATCH, (SPIKE + SKIP_STEPS_AFTER_SPIKE) * BATCH]],
    )
    run_ranks(2, train, config(store, reference, rollback=0.0))
    ours, theirs = (contents(checkpoint_dir(run, STEPS)) for run in (spiked, reference))
    states = [json.loads(found.pop("state.json")) for found in (ours, theirs)]
    assert ours == theirs
    assert states[0]["position"] == states[1]["position"]
    assert (states[0]["samples"], states[0]["passed_over"]) == (
        STEPS * BATCH,
        [[12 * BATCH, (SPIKE + SKIP_STEPS_AFTER_SPIKE) * BATCH]],
    )
    (event,) = events(spiked, "rollback")
    assert (event["step"], event["spike"], event["checkpoint"]) == (12, SPIKE, "step-0000012")
    assert event["samples_passed_over"] == (SPIKE - 12 + SKIP_STEPS_AFTER_SPIKE) * BATCH
    assert event["loss"] > 3 * event["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("step", [12, 16])
def test_a_run_that_crashed_after_a_rollback_does_the_same_again(store, spiked, tmp_path, step):
    """Resumed before the first save after the rollback, it meets the spike again; afterwards it knows what to pass."""
    cut = cut_after(spiked, step, tmp_path / "run")
    run_ranks(2, train_with_spikes, config(store, cut), {SPIKE - 12} if step == 12 else ())
    assert contents(checkpoint_dir(cut, STEPS)) == contents(checkpoint_dir(spiked, STEPS))


@pytest.mark.slow
def test_spikes_without_end_end_the_run(store, tmp_path):
    with pytest.raises(RuntimeError, match=r"spiked again after 3 rollbacks to step 12.*Try a lower --lr"):
        run_ranks(1, train_with_spikes, config(store, tmp_path / "run"), range(SPIKE, 1000))
    assert [event["samples_passed_over"] for event in events(tmp_path / "run", "rollback")] == [
        (2 + SKIP_STEPS_AFTER_SPIKE) * BATCH + tries * (1 + SKIP_STEPS_AFTER_SPIKE) * BATCH for tries in range(4)
    ]


@pytest.mark.slow
def test_stage_3_goes_back_too(store, tmp_path):
    """At stage 3 gathered weights would survive a checkpoint that is loaded into an engine in use."""
    run, spike, steps = tmp_path / "run", 10, 11
    state = run_ranks(2, train_with_spikes, config(store, run, zero=3, steps=steps), {spike})[0]
    assert state.step == steps
    assert [event["step"] for event in events(run, "rollback")] == [8]
    cut = cut_after(run, 8, tmp_path / "cut")
    run_ranks(2, train_with_spikes, config(store, cut, zero=3, steps=steps), {spike - 8})
    assert contents(checkpoint_dir(cut, steps)) == contents(checkpoint_dir(run, steps))


@pytest.mark.slow
def test_a_spike_before_the_first_checkpoint_is_only_told(store, tmp_path):
    state = run_ranks(1, train_with_spikes, config(store, tmp_path / "run", save_every=0), {SPIKE})[0]
    assert (state.step, state.skipped_spans, len(state.recent_losses)) == (STEPS, (), STEPS)
    assert [event["step"] for event in events(tmp_path / "run", "spike")] == [SPIKE]
    assert not events(tmp_path / "run", "rollback")


def spike_in_phase_two(settings: TrainConfig) -> RunState:
    """The checkpoint at the end of the first phase is gone when the second one spikes."""
    save = Saver.save

    def save_but_eight(self: Saver, state: RunState, *arguments: Any, **options: Any) -> Path:
        return checkpoint_dir(self.run, 8) if state.step == 8 else save(self, state, *arguments, **options)

    Saver.save = save_but_eight  # type: ignore[method-assign]
    return train_with_spikes(settings, {10})


@pytest.mark.parametrize("seq_len", [24, 32])
@pytest.mark.slow
def test_a_rollback_to_an_earlier_phase_trains_the_rest_of_that_phase(store, tmp_path, seq_len):
    """Spike in the second step of phase 2, the last checkpoint after step 4 of phase 1."""
    phases = ("seq_len=32,steps=8,lr=1e-3", f"seq_len={seq_len},steps=4,lr=1e-4,global_batch=16")
    settings = config(store, tmp_path / "run", phase=phases, warmup=2.0, rollback=3.0, save_every=4, eval_samples=8)
    state = run_ranks(1, spike_in_phase_two, settings)[0]
    first = [1e-3 * share for share in (1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    second = [1e-4 * share for share in (1 / 3, 2 / 3, 1, 1 / 2)]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [*range(1, 10), *range(5, 13)]
    assert [line["lr"] for line in steps] == pytest.approx([*first, second[0], *first[4:], *second])
    (event,) = events(tmp_path / "run", "rollback")
    assert (event["step"], event["spike"]) == (4, 10)
    assert [event["step"] for event in events(tmp_path / "run", "phase")] == [8, 8]
    # 4 steps of phase 1 and 2 of phase 2 since the checkpoint, and as many beyond as the spike's step is large.
    drawn = 4 * 8 + 2 * 16 + SKIP_STEPS_AFTER_SPIKE * 16
    assert event["samples_passed_over"] == drawn
    assert (state.samples, state.skipped_spans) == (8 * 8 + 4 * 16, ((4 * 8, 4 * 8 + drawn),))
    assert (state.position.phase, state.position.samples_in_phase, state.position.seq_len) == (1, 4 * 16, seq_len)
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [8, 8, 12]


def test_a_rate_outside_of_a_phase_is_no_rate():
    phases = phases_of(
        [Span(128, 8, 0.1, "linear", 0), Span(128, 4, 0.1, "linear", 0)],
        ROOT / "ds_configs/auto.json",
        Flags(),
        1,
        "fp32",
    )
    assert [phase_at(phases, step).index for step in (0, 7, 8, 11, 12)] == [0, 0, 1, 1, 1]
    for phase, step in ((phases[1], 7), (phases[1], 12), (phases[0], 8)):
        with pytest.raises(AssertionError, match=f"step {step} is not"):
            phase.lr_at(step)


def test_a_spike_is_measured_by_the_median():
    recent = [9.0, 1.0] * (MIN_LOSSES // 2) + [1.0]
    assert is_spike(2.01, recent, 2.0)
    assert not is_spike(1.99, recent, 2.0)
    assert not is_spike(1e9, recent[: MIN_LOSSES - 1], 2.0)


def test_a_factor_that_every_step_exceeds_is_refused(store, tmp_path):
    with pytest.raises(InputError, match=r"--rollback 0\.9 must be a factor above 1"):
        config(store, tmp_path, rollback=0.9)
