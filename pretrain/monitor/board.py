"""TensorBoard's curves of a run, for as long as they can be written: metrics.jsonl holds the same numbers."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from data_prep.json_types import JsonObject


class Board:
    """A SummaryWriter that a disk can end, but not the run."""

    def __init__(self, folder: Path, first_step: int, complain: Callable[[str], None]):
        """`complain` is told once, when the curves end."""
        self.folder, self.complain = folder, complain
        self.writer: SummaryWriter | None = None
        self.begin(first_step)

    def begin(self, step: int) -> None:
        """Go on from `step`: what has been drawn after it, by a stretch that was lost, is no longer shown."""
        self.close()
        try:
            self.writer = SummaryWriter(self.folder, purge_step=step + 1)
        except OSError as error:
            self._give_up(error)

    def draw(self, step: int, values: dict[str, float], together: dict[str, dict[str, float]] | None = None) -> None:
        """Draw a point of each curve; `together` are curves of one picture."""
        if self.writer is None:
            return
        try:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            for name, curves in (together or {}).items():
                self.writer.add_scalars(name, curves, step)
            self.writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """End its thread."""
        writer, self.writer = self.writer, None
        with suppress(OSError):  # draw() has flushed, and said so where that failed
            if writer is not None:
                writer.close()

    def _give_up(self, error: OSError) -> None:
        self.close()
        self.complain(f"warning: {self.folder} cannot be written ({error}); its curves end, metrics.jsonl goes on")


def scalars(group: str, line: JsonObject) -> dict[str, float]:
    """Return the curves of a line of metrics."""
    no_curves = ("kind", "step", "by_source", "held_out", "pairs_by_group")
    drawn = {f"{group}/{name}": value for name, value in line.items() if name not in no_curves and value is not None}
    by_source = {name: scores["mlm_loss"] for name, scores in line.get("by_source", {}).items()}
    return drawn | {f"{group}_by_source/{name}": loss for name, loss in by_source.items()}
