"""TensorBoard's curves of a run, for as long as they can be written: metrics.jsonl holds the same numbers.

Beside curves: texts (settings, gaps filled), histograms of weights, and what the HPARAMS tab compares runs by.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pretrain.monitor.sinks import Histogram, Values, table

COMPARED = ("eval/mlm_loss", "eval/mlm_acc", "train/loss")  # curves whose last values stand beside the settings


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

    def settings(self, step: int, facts: dict[str, str], values: Values) -> None:
        """Show the settings as a text, and in the HPARAMS tab."""
        self.text(step, "settings", table(facts))

        def write(writer: SummaryWriter) -> None:
            for summary in hparams(values, dict.fromkeys(COMPARED, 0.0)):
                writer._get_file_writer().add_summary(summary)

        self._write(write)

    def draw(self, step: int, values: dict[str, float], together: dict[str, dict[str, float]] | None = None) -> None:
        """Draw a point of each curve; `together` are curves of one picture."""

        def write(writer: SummaryWriter) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            for name, curves in (together or {}).items():
                writer.add_scalars(name, curves, step)

        self._write(write)

    def text(self, step: int, name: str, markdown: str) -> None:
        """Show a text."""
        self._write(lambda writer: writer.add_text(name, markdown, step))

    def histograms(self, step: int, found: dict[str, Histogram]) -> None:
        """Show how values are spread."""

        def write(writer: SummaryWriter) -> None:
            for name, (limits, counts, total, squares) in found.items():
                filled = [limit for limit, count in zip(limits, counts, strict=True) if count]
                if filled:
                    writer.add_histogram_raw(
                        name, filled[0], filled[-1], sum(counts), total, squares, limits, counts, step
                    )

        self._write(write)

    def close(self) -> None:
        """End its thread."""
        writer, self.writer = self.writer, None
        with suppress(OSError):  # what was written is flushed, and said where that failed
            if writer is not None:
                writer.close()

    def _write(self, write: Callable[[SummaryWriter], None]) -> None:
        """Write, and flush; where that fails, the curves end."""
        if self.writer is None:
            return
        try:
            write(self.writer)
            self.writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.close()
        self.complain(f"warning: {self.folder} cannot be written ({error}); its curves end, metrics.jsonl goes on")
