"""What is due after a step: by steps, by the clock, or because a rank was asked to stop.

    timetable = Timetable(config, stop)
    due = timetable.after_step(step, is_last=..., is_skipped=...)     collective, and one message
    timetable.saved(), timetable.evaluated()                          the clock begins anew
    timetable.stop_reason()                                           collective: why all ranks stop, if they do

All ranks stop together, or none. What is due by the clock is decided by rank 0's; it travels in the same message.
"""

import time
from typing import NamedTuple

import torch.distributed as dist

from pretrain.distributed import all_reduce_max, all_reduce_max_each, gloo_group
from pretrain.settings.config import TrainConfig
from pretrain.stop import REASONS, StopRequests

TRUST_RATIO_INTERVALS = 10  # intervals of metrics per line of trust ratios


class Due(NamedTuple):
    """What all ranks do after a step."""

    stop: str  # the reason; empty: go on
    log: bool
    trust_ratios: bool
    evaluate: bool
    save: bool


class Timetable:
    """When what is due. One per rank; every rank asks alike."""

    def __init__(self, config: TrainConfig, stop: StopRequests):
        self._config, self._stop = config, stop
        self._stop_at = config.stop_at(time.time())
        self._saved_at = self._evaluated_at = time.monotonic()
        self._group = gloo_group()

    def after_step(self, step: int, *, is_last: bool, is_skipped: bool) -> Due:
        """Return what is due after a step: everything after the last one of a phase, nothing after one that was
        skipped. Collective."""
        config = self._config
        minutes = (config.save_minutes, config.eval_minutes)
        since = (time.monotonic() - began for began in (self._saved_at, self._evaluated_at))
        by_clock = [
            dist.get_rank() == 0 and 0 < 60 * every <= passed for every, passed in zip(minutes, since, strict=True)
        ]
        reason, save_now, evaluate_now = all_reduce_max_each((self._own_reason(), *by_clock), self._group)

        def is_due(every: int, by_clock: bool = False) -> bool:
            return not is_skipped and (is_last or by_clock or (every > 0 and step % every == 0))

        return Due(
            stop=REASONS[reason],
            log=is_due(config.log_every),
            trust_ratios=is_due(TRUST_RATIO_INTERVALS * config.log_every),
            evaluate=is_due(config.eval_every, bool(evaluate_now and not reason)),
            save=is_due(config.save_every, bool(save_now)),
        )

    def stop_reason(self) -> str:
        """Return why all ranks stop now; empty: they go on."""
        return REASONS[all_reduce_max(self._own_reason(), self._group)]

    def saved(self) -> None:
        """Begin to count the minutes until the next save."""
        self._saved_at = time.monotonic()

    def evaluated(self) -> None:
        """Begin to count the minutes until the next evaluation."""
        self._evaluated_at = time.monotonic()

    def _own_reason(self) -> int:
        return REASONS.index(self._stop.reason(self._stop_at))
