"""Hours of training as the measure of a run: `--hours H` ends it, and its schedule, by the clock."""

import time

from pretrain.distributed import all_reduce_max, gloo_group


class Clock:
    """Time spent in the training loop over all starts of a run, evaluation and saving included.

    All ranks go by the latest of their clocks, so that they agree. Without `hours` it stands at 0.
    """

    def __init__(self, hours: float, seconds: float):
        self.limit = 3600 * hours
        self.seconds = seconds  # as all ranks have agreed
        self._began = time.monotonic() - seconds

    def read(self) -> float | None:
        """Return the share of the hours that is spent, up to 1; None without a limit. Collective."""
        if not self.limit:
            return None
        self.seconds = all_reduce_max(int(1000 * (time.monotonic() - self._began)), gloo_group()) / 1000
        return min(1.0, self.seconds / self.limit)

    @property
    def is_over(self) -> bool:
        """Return whether the hours are spent, as they were last read."""
        return 0 < self.limit <= self.seconds
