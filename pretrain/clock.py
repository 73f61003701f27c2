"""Hours of training as the measure of a run: `--hours H` ends it, and its schedule, by the clock."""

import time

from pretrain.distributed import begin_broadcast


class Clock:
    """Time spent in the training loop over all starts of a run, evaluation and saving included.

    All ranks go by the clock of the first, which tells them (timetable.py). Without `hours` it stands still.
    """

    def __init__(self, hours: float, seconds: float):
        self.limit = 3600 * hours
        self.seconds = seconds  # as rank 0 has told all ranks
        self._began = time.monotonic() - seconds

    def own_seconds(self) -> float:
        """Return what the clock of this rank shows."""
        return time.monotonic() - self._began if self.limit else self.seconds

    def read(self) -> None:
        """Let rank 0 tell now, and wait for it. Collective."""
        self.seconds = begin_broadcast([int(1000 * self.own_seconds())])()[0] / 1000

    @property
    def share(self) -> float | None:
        """Return the share of the hours that was spent when rank 0 told it, up to 1; None without a limit."""
        return min(1.0, self.seconds / self.limit) if self.limit else None

    @property
    def is_over(self) -> bool:
        """Return whether the hours are spent."""
        return 0 < self.limit <= self.seconds
