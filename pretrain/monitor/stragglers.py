"""Which rank the others wait for, and for how long. Plain numbers: meter.py brings those of all ranks together.

    pace = pace_of(elapsed, in_collectives)     of an interval: the slowest rank, how slow it is, time in collectives
    watch.look(pace) -> Straggler or None       one that is clearly slower, interval after interval; each said once

Ranks compute the same amount (pretrain/data.py cuts a step by length), and meet at each reduction of gradients: an
interval takes all of them as long. What differs is how much of it a rank spends in collectives: the slowest the least.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

CLEARLY = 1.25  # times the work of the others
IN_A_ROW = 3  # intervals; one may be an accident


class Pace(NamedTuple):
    """How an interval went, over all ranks."""

    slowest_rank: int
    slowdown: float  # its own time as a multiple of the median of the others' own times; about 1 where all is well
    collectives: float  # share of the interval in collectives, transfer and waiting, mean over ranks


class Straggler(NamedTuple):
    """A rank that holds up the others."""

    rank: int
    slowdown: float
    is_over: bool  # it no longer does


def pace_of(elapsed: Sequence[float], in_collectives: Sequence[float]) -> Pace:
    """Return the pace of an interval, from the seconds that it took on each of several ranks, and those of it that each
    was in collectives."""
    # Ranks of 10 s each, in collectives for 6, 1 and 5 s: own 4, 9 and 5 s; rank 1 is slowest, 9 / 4.5 = 2 times.
    own = [max(whole - waited, 1e-6) for whole, waited in zip(elapsed, in_collectives, strict=True)]
    slowest = max(range(len(own)), key=own.__getitem__)
    others = statistics.median(own[:slowest] + own[slowest + 1 :])
    return Pace(slowest, own[slowest] / others, min(sum(in_collectives) / max(sum(elapsed), 1e-6), 1.0))


class StragglerWatch:
    """Tells of a rank when it is clearly the slowest for IN_A_ROW intervals, and when it is no longer."""

    def __init__(self) -> None:
        self._rank, self._count = -1, 0
        self._told: int | None = None

    def look(self, pace: Pace) -> Straggler | None:
        """Return what there is to say after an interval."""
        slow = pace.slowest_rank if pace.slowdown >= CLEARLY else -1
        self._count = self._count + 1 if slow == self._rank else 1
        self._rank = slow
        if self._count != IN_A_ROW or slow == (-1 if self._told is None else self._told):
            return None
        if slow == -1:
            told, self._told = self._told, None
            assert told is not None
            return Straggler(told, pace.slowdown, is_over=True)
        self._told = slow
        return Straggler(slow, pace.slowdown, is_over=False)
