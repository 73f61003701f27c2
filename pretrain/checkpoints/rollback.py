"""Loss spikes: back to the last checkpoint, and on with other data.

    is_spike(loss, state.recent_losses, factor)     whether the loss of a step is beyond all measure
    roll_back(saver, entered, stream_at, state, batch)   weights, moments, counters of the last checkpoint, later data

The remedy of PaLM (Chowdhery et al. 2022, section 5.1): go back by about 100 steps and pass over the 200 to 500 batches
around the spike. Its authors found that the same batches do no harm in another state of the weights: a spike comes of
both. A checkpoint of an earlier phase leads back into that phase. Every number here is the same on all ranks and stands
in state.json, so that a run that was stopped in between does the same again.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from pretrain.checkpoints.load import load_checkpoint
from pretrain.checkpoints.saver import Saver
from pretrain.checkpoints.verify import latest_valid
from pretrain.data import SampleStream
from pretrain.distributed import all_ranks_or_none, broadcast_object
from pretrain.state import RunState

RECENT = 32  # steps whose median a loss is compared with
LEAST = 8  # as long as there are fewer, nothing is a spike
BEYOND = 100  # steps after the spike whose data is passed over too
TRIES = 3  # in a row, from the same checkpoint


class RolledBack(NamedTuple):
    """What a rollback led to."""

    state: RunState
    folder: Path


def is_spike(loss: float, recent: Sequence[float], factor: float) -> bool:
    """Whether `loss` is more than `factor` times the median of the losses before."""
    return len(recent) >= LEAST and loss > factor * statistics.median(recent)


def roll_back(
    saver: Saver,
    entered: Callable[[RunState], RunState],
    stream_at: Callable[[RunState], SampleStream],
    state: RunState,
    batch: int,
) -> RolledBack | None:
    """Load the newest whole checkpoint of the run; None where there is none yet. Collective.

    It goes on in the phase that it belongs to, where `entered` puts it. Of the samples of that phase, which
    `stream_at` has, as many are passed over as were drawn since the checkpoint, and BEYOND steps of `batch` more: where
    the spike lies in a later phase with other samples, these begin when they are come to.
    """
    saver.wait()
    newest = None
    with all_ranks_or_none(f"rollback in {saver.run}"):
        if dist.get_rank() == 0:
            newest = latest_valid(saver.run)
    newest = broadcast_object(newest)
    if newest is None:
        return None
    earlier = entered(load_checkpoint(newest, saver.engine, saver.identity))
    span = (earlier.samples_consumed, state.samples_consumed + BEYOND * batch)
    stream = stream_at(earlier)
    stream.skip(span[1] - span[0])
    return RolledBack(
        earlier._replace(
            # The batch grows with what a phase has learnt from, not with what it has passed over.
            position=stream.position._replace(samples_in_phase=earlier.position.samples_in_phase),
            skipped_spans=(*earlier.skipped_spans, span),
            seconds=state.seconds,
        ),
        newest,
    )
