"""Training that goes wrong: steps that are skipped, losses that spike, and the way back to a checkpoint.

    divergence.on_skipped_step(scale)           too many in a row: DivergedError says what to try
    divergence.on_loss(state, loss, samples)    a spike: the earlier state that the run goes on from, with other data

The remedy for spikes is PaLM's (Chowdhery et al. 2022, section 5.1): go back by about 100 steps and pass over the 200
to 500 batches around the spike. Its authors found that the same batches do no harm in another state of the weights: a
spike comes of both. A checkpoint of an earlier phase leads back into that phase. Every number here is the same on all
ranks and stands in state.json, so that a run that was stopped in between does the same again.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pretrain.checkpoints.load import load_checkpoint
from pretrain.checkpoints.saver import Saver
from pretrain.checkpoints.together import led
from pretrain.checkpoints.verify import latest_valid_checkpoint
from pretrain.data import sample_stream
from pretrain.monitor.meter import Meter
from pretrain.settings.phases import phase_at
from pretrain.setup import Setup
from pretrain.state import RunState
from pretrain.zero.engine import LossScale

MIN_LOSSES = 8  # as long as there are fewer, nothing is a spike
SKIP_STEPS_AFTER_SPIKE = 100  # steps after the spike whose data is passed over too
MAX_ROLLBACKS = 3  # in a row, to the same checkpoint
TRY = "Try a lower --lr, a longer --warmup, --clip 1,"


class DivergedError(Exception):
    """Training makes no progress any more; the message says what to try."""


class Divergence:
    """Notices that a run diverges, takes it back, and gives up in the end. One per rank; every rank calls it alike."""

    def __init__(self, setup: Setup, saver: Saver, meter: Meter):
        self._setup, self._saver, self._meter = setup, saver, meter
        self._skips = 0  # in a row
        self._rollbacks = (-1, 0)  # the step that the run went back to last, how often in a row

    def on_step(self) -> None:
        """Note a step that was not skipped."""
        self._skips = 0

    def on_skipped_step(self, scale: LossScale | None) -> None:
        """Count a step whose gradient was infinite or not a number.

        Raises
        ------
        DivergedError: too many in a row, or the loss scale cannot fall any further.
        """
        self._skips += 1
        at_floor = scale is not None and scale.at_floor
        if self._skips >= self._setup.config.max_skips or (at_floor and self._skips > 1):
            why = f"the loss scale is at its floor, {scale.value}" if scale and at_floor else "gradients are not finite"
            raise DivergedError(
                f"{self._skips} steps in a row were skipped: {why}. {TRY} "
                "--precision bf16 in place of fp16, or an earlier checkpoint (--resume PATH)"
            )

    def on_loss(self, state: RunState, loss: float, samples: int) -> RunState | None:
        """Look at the loss of the step that led to `state`, of so many samples: if it is a spike, go back.

        Returns the earlier state to go on from; None where there is nothing to do, or no checkpoint yet. Collective.

        Raises
        ------
        DivergedError: this would be one rollback too many to the same step.
        """
        if not is_spike(loss, state.recent_losses, self._setup.config.rollback):
            return None
        details = {"loss": loss, "median": statistics.median(state.recent_losses), "spike": state.step}
        rolled_back = self._roll_back(state, samples)
        if rolled_back is None:
            self._meter.event(state.step, "spike", **details)
            return None
        earlier, checkpoint = rolled_back
        first, end = earlier.skipped_spans[-1]
        self._meter.rewind(earlier.step)
        self._meter.event(
            earlier.step, "rollback", checkpoint=checkpoint.name, **details, samples_passed_over=end - first
        )
        self._count_rollback(earlier.step)
        return earlier

    def _roll_back(self, state: RunState, samples: int) -> "_RolledBack | None":
        """Load the newest whole checkpoint of the run; None where there is none yet. Collective.

        It goes on in the phase that it belongs to. Of the samples of that phase as many are passed over as were
        consumed since the checkpoint, and SKIP_STEPS_AFTER_SPIKE steps of so many samples more: where the spike lies in
        a later phase with other samples, these begin when they are come to.
        """
        saver, setup = self._saver, self._setup
        saver.wait()
        newest = led(f"rollback in {saver.run}", partial(latest_valid_checkpoint, saver.run))
        if newest is None:
            return None
        earlier = load_checkpoint(newest, saver.engine, saver.identity, saver.averaging)
        phase = phase_at(setup.phases, earlier.step)
        earlier = setup.entering(earlier, phase)
        span = (earlier.samples_consumed, state.samples_consumed + SKIP_STEPS_AFTER_SPIKE * samples)
        stream = sample_stream(setup, earlier.position)
        stream.skip(span[1] - span[0])
        earlier = earlier._replace(
            # The batch grows with what a phase has learnt from, not with what it has passed over.
            position=stream.position._replace(samples_in_phase=earlier.position.samples_in_phase),
            skipped_spans=(*earlier.skipped_spans, span),
            seconds=state.seconds,
        )
        return _RolledBack(earlier, newest)

    def _count_rollback(self, step: int) -> None:
        last, count = self._rollbacks
        self._rollbacks = (step, count + 1 if step == last else 1)
        if self._rollbacks[1] > MAX_ROLLBACKS:
            raise DivergedError(
                f"the loss spiked again after {MAX_ROLLBACKS} rollbacks to step {step}, each with other data. {TRY} "
                "a larger --rollback, or an earlier checkpoint (--resume PATH)"
            )


class _RolledBack(NamedTuple):
    state: RunState
    checkpoint: Path


def is_spike(loss: float, recent_losses: Sequence[float], factor: float) -> bool:
    """Return whether `loss` is more than `factor` times the median of the losses before."""
    return len(recent_losses) >= MIN_LOSSES and loss > factor * statistics.median(recent_losses)
