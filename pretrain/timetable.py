"""What is due after a step: by steps, by the clock, or because a rank was asked to stop.

    timetable = Timetable(config, stop)                               collective
    timetable.ask(seconds)                                            a step begins: rank 0 begins to tell all ranks
    told = timetable.told()                                           the step is over: what it has told
    due = timetable.due(told, step, is_last=..., is_skipped=...)
    timetable.saved(), timetable.evaluated()                          the clock begins anew
    timetable.stop_reason()                                           collective: why all ranks stop now, if they do

All ranks stop together, or none; what is due by the clock is due by rank 0's. Rank 0 says so once a step, and the
message is on its way while the step is computed: no rank waits for it, and nothing is on its way between two steps. A
signal that comes during step 7 stops all ranks after step 8: a rank other than the first leaves it as a notice.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch.distributed as dist

from pretrain.distributed import Notices, all_reduce_max, begin_broadcast, gloo_group
from pretrain.settings.config import TrainConfig
from pretrain.stop import REASONS, StopRequests

TRUST_RATIO_INTERVALS = 10  # intervals of metrics per line of trust ratios


class Told(NamedTuple):
    """What rank 0 tells all ranks in a step."""

    stop: str  # why all stop after it; empty: they go on
    save: bool  # it is time to, by the clock
    evaluate: bool
    seconds: float  # by rank 0's clock when the step began


class Due(NamedTuple):
    """What all ranks do after a step."""

    log: bool
    trust_ratios: bool
    evaluate: bool
    save: bool
    export: bool  # what is saved, as a Hugging Face folder


class Timetable:
    """When what is due. One per rank; every rank asks alike."""

    def __init__(self, config: TrainConfig, stop: StopRequests):
        self._config, self._stop = config, stop
        self._stop_at = config.stop_at(time.time())
        self._saved_at = self._evaluated_at = time.monotonic()
        self._notices = Notices("stop")
        self._coming: Callable[[], list[int]] | None = None

    def ask(self, seconds: float) -> None:
        """Let rank 0 begin to tell all ranks what is due after the step that begins now. Collective.

        seconds: by this rank's clock.
        """
        own = [0, 0, 0, 0]
        if dist.get_rank() == 0:
            reason = max(self._own_reason(), self._notices.largest(len(REASONS)))
            minutes = ((self._config.save_minutes, self._saved_at), (self._config.eval_minutes, self._evaluated_at))
            by_clock = [0 < 60 * every <= time.monotonic() - began for every, began in minutes]
            own = [reason, *by_clock, int(1000 * seconds)]
        self._coming = begin_broadcast(own)

    def told(self) -> Told:
        """Return what rank 0 has told since `ask()`. Collective."""
        if reason := self._own_reason():
            self._notices.pin(reason)  # rank 0 sees it when the next step begins
        assert self._coming is not None, "nothing was asked"
        reason, save, evaluate, milliseconds = self._coming()
        self._coming = None
        return Told(REASONS[reason], bool(save), bool(evaluate), milliseconds / 1000)

    def due(self, told: Told, step: int, *, is_last: bool, is_skipped: bool) -> Due:
        """Return what is due after a step: everything after the last one of a phase, nothing after one that was
        skipped."""
        config = self._config

        def is_due(every: int, by_clock: bool = False) -> bool:
            return not is_skipped and (is_last or by_clock or (every > 0 and step % every == 0))

        return Due(
            log=is_due(config.log_every),
            trust_ratios=is_due(TRUST_RATIO_INTERVALS * config.log_every),
            evaluate=is_due(config.eval_every, told.evaluate and not told.stop),
            save=is_due(config.save_every, told.save) or is_due(config.export_every),
            export=config.export_every > 0 and is_due(config.export_every),
        )

    def stop_reason(self) -> str:
        """Return why all ranks stop now; empty: they go on."""
        return REASONS[all_reduce_max(self._own_reason(), gloo_group())]

    def saved(self) -> None:
        """Begin to count the minutes until the next save."""
        self._saved_at = time.monotonic()

    def evaluated(self) -> None:
        """Begin to count the minutes until the next evaluation."""
        self._evaluated_at = time.monotonic()

    def _own_reason(self) -> int:
        return REASONS.index(self._stop.reason(self._stop_at))
