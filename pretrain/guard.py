"""What can go wrong while training: stop requests, a launcher that died, hangs, and numbers that are no numbers.

    guard = Guard(hang_timeout, stop_at, max_skips)
    guard.beat()                 after every micro-batch: not hanging
    guard.skipped(scaler)        a step did not happen: after too many in a row DivergedError says what to try
    guard.stop_reason()          at the step boundary, collective: all ranks stop together, or none

A signal only sets a flag: a rank that saved inside a handler would wait for ranks that are still computing. Flags are
compared at the step boundary, all ranks save together and end with STOPPED. A hang ends through faulthandler's own
timer, which needs no Python to run: it prints the stack of every thread and ends the process.
"""

import ctypes
import faulthandler
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pretrain.together import host_group, largest

STOPPED = 75  # exit code (EX_TEMPFAIL): stopped as asked and saved; the same command continues
REASONS = ("", "SIGTERM", "SIGINT", "SIGUSR1", "the launcher is gone", "time is up")
_SIGNALS = {signal.SIGTERM: 1, signal.SIGINT: 2, signal.SIGUSR1: 3}
_LAUNCHER, _TIME = 4, 5
_PR_SET_PDEATHSIG = 1


class DivergedError(Exception):
    """Training makes no progress any more; the message says what to try."""


class Guard:
    """One a rank."""

    def __init__(self, hang_timeout: float, stop_at: float | None, max_skips: int):
        """`hang_timeout` in seconds; `stop_at` as time.time() has it; `max_skips` steps in a row."""
        self.hang_timeout, self.stop_at, self.max_skips = hang_timeout, stop_at, max_skips
        self.skips = 0
        self._rollbacks = (-1, 0)  # the step that runs went back to last, how often in a row
        self._group = host_group()
        self._requested = 0
        self._launcher = _ancestors()
        self._previous = {number: signal.signal(number, self._request) for number in _SIGNALS}
        if "LOCAL_RANK" in os.environ:
            # The kernel tells this rank when the process that started it dies, by whatever means.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        self.beat()

    def close(self) -> None:
        """Give signals back and end the watch."""
        faulthandler.cancel_dump_traceback_later()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: Any) -> None:
        self._requested = _SIGNALS[signal.Signals(number)]

    def beat(self) -> None:
        """This rank is alive; the watch begins anew."""
        if self.hang_timeout:
            faulthandler.dump_traceback_later(self.hang_timeout, exit=True, file=sys.__stderr__ or 2)

    def stepped(self) -> None:
        """A step happened."""
        self.skips = 0

    def skipped(self, scaler: Any) -> None:
        """A step did not happen, because a gradient was infinite or not a number.

        Raises
        ------
        DivergedError: too many in a row, or the loss scale cannot fall any further.
        """
        self.skips += 1
        at_floor = getattr(scaler, "dynamic", False) and scaler.cur_scale <= scaler.min_scale
        if self.skips >= self.max_skips or (at_floor and self.skips > 1):
            why = f"the loss scale is at its floor, {scaler.cur_scale}" if at_floor else "gradients are not finite"
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

    def stop_reason(self) -> str:
        """Why all ranks should stop now; empty: go on. Collective."""
        if not self._requested and _ancestors() != self._launcher:
            self._requested = _LAUNCHER
        if not self._requested and self.stop_at is not None and time.time() >= self.stop_at:
            self._requested = _TIME
        return REASONS[largest(self._requested, self._group)]


def _ancestors() -> tuple[int, int]:
    """The process that started this rank, and the one that started it: a launcher killed in between shows here."""
    parent = os.getppid()
    return parent, _parent_of(parent)


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
