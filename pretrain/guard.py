"""What can go wrong while training: stop requests, a launcher that died, hangs, and numbers that are no numbers.

    guard = Guard(watch, stop_at, max_skips)
    guard.beat()                 after every micro-batch: not hanging
    guard.skipped(scale)         a step did not happen: after too many in a row DivergedError says what to try
    guard.at_boundary()          collective: all ranks stop together, or none; and save and evaluate by one clock

A signal only sets a flag: a rank that saved inside a handler would wait for ranks that are still computing. Flags are
compared at the step boundary, all ranks save together and end with STOPPED. Hangs, and signals before the first step,
are the matter of watch.py.
"""

import signal
import time
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch.distributed as dist

from pretrain.distributed import all_reduce_max_each, gloo_group
from pretrain.watch import STOPPED as STOPPED
from pretrain.watch import Watch, ancestors
from pretrain.zero.engine import LossScale

REASONS = ("", "SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "the launcher is gone", "time is up")
_LAUNCHER, _TIME = 5, 6


class DivergedError(Exception):
    """Training makes no progress any more; the message says what to try."""


class Boundary(NamedTuple):
    """What all ranks do after a step, beside what is due by steps."""

    stop: str  # the reason; empty: go on
    save: bool
    evaluate: bool


class Guard:
    """One a rank."""

    def __init__(
        self, watch: Watch, stop_at: float | None, max_skips: int, save_minutes: float = 0, eval_minutes: float = 0
    ):
        """`stop_at` as time.time() has it; `max_skips` steps in a row; minutes between saves, 0: never."""
        self.watch, self.stop_at, self.max_skips = watch, stop_at, max_skips
        self._minutes = (save_minutes, eval_minutes)
        self.saved_at = self.evaluated_at = time.monotonic()
        self.skips = 0
        self._rollbacks = (-1, 0)  # the step that runs went back to last, how often in a row
        self._group = gloo_group()
        watch.hold()

    def beat(self) -> None:
        """This rank is alive; the watch begins anew."""
        self.watch.beat()

    def working(self, doing: str = "") -> AbstractContextManager[None]:
        """A block of work of this rank alone, however long: no hang while it keeps the processor or the disk busy."""
        return self.watch.working(doing)

    def doing(self, what: str) -> AbstractContextManager[None]:
        """A block of all ranks together; who asks to stop is told that it comes to its end first."""
        return self.watch.naming(what)

    def saved(self) -> None:
        """A checkpoint was begun: the next one is due by the clock after --save_minutes."""
        self.saved_at = time.monotonic()

    def evaluated(self) -> None:
        """An evaluation is over."""
        self.evaluated_at = time.monotonic()

    def stepped(self) -> None:
        """A step happened."""
        self.skips = 0

    def skipped(self, scale: LossScale | None) -> None:
        """A step did not happen, because a gradient was infinite or not a number.

        Raises
        ------
        DivergedError: too many in a row, or the loss scale cannot fall any further.
        """
        self.skips += 1
        at_floor = scale is not None and scale.at_floor
        if self.skips >= self.max_skips or (at_floor and self.skips > 1):
            why = f"the loss scale is at its floor, {scale.value}" if scale and at_floor else "gradients are not finite"
            raise DivergedError(
                f"{self.skips} steps in a row were skipped: {why}. Try a lower --lr, a longer --warmup, --clip 1, "
                "--precision bf16 in place of fp16, or an earlier checkpoint (--resume PATH)"
            )

    def rolled_back(self, step: int, tries: int) -> None:
        """Training goes on from `step`, because of a loss spike.

        Raises
        ------
        DivergedError: for more than `tries` times in a row from the same step.
        """
        last, count = self._rollbacks
        self._rollbacks = (step, count + 1 if step == last else 1)
        self.beat()
        if self._rollbacks[1] > tries:
            raise DivergedError(
                f"the loss spiked again after {tries} rollbacks to step {step}, each with other data. Try a lower "
                "--lr, a longer --warmup, --clip 1, a larger --rollback, or an earlier checkpoint (--resume PATH)"
            )

    def at_boundary(self) -> Boundary:
        """What all ranks do now: stop, if any of them was asked to; save and evaluate, by the first one's clock.
        Collective, and one message."""
        requested = REASONS.index(signal.Signals(self.watch.requested).name) if self.watch.requested else 0
        if not requested and ancestors() != self.watch.launcher:
            requested = _LAUNCHER
        if not requested and self.stop_at is not None and time.time() >= self.stop_at:
            requested = _TIME
        since = (time.monotonic() - began for began in (self.saved_at, self.evaluated_at))
        is_first = dist.get_rank() == 0
        due = [is_first and 0 < 60 * every <= passed for every, passed in zip(self._minutes, since, strict=True)]
        stop, save, evaluate = all_reduce_max_each((requested, *due), self._group)
        return Boundary(REASONS[stop], bool(save), bool(evaluate))
