"""What a run's numbers are drawn by, beside metrics.jsonl: TensorBoard (board.py), and a tracker (tracker.py) if asked.

Both are a Sink: run_log.py hands the same to each. A sink that fails says so once, and is left alone from then on.
"""

from typing import NamedTuple, Protocol

from data_prep.json_types import JsonObject

Values = dict[str, int | float | str | bool]


class Histogram(NamedTuple):
    """How values are spread: `counts` of them up to each of `limits`, and their sums."""

    limits: list[float]
    counts: list[int]
    sum: float
    sum_of_squares: float


class Sink(Protocol):
    """Something that draws."""

    def begin(self, step: int) -> None:
        """Go on from `step`: what has been drawn after it, by a stretch that was lost, does not count."""

    def settings(self, step: int, facts: dict[str, str], values: Values) -> None:
        """Show what was asked for: facts in words, and values by which runs are compared."""

    def draw(self, step: int, values: dict[str, float], together: dict[str, dict[str, float]] | None = None) -> None:
        """Draw a point of each curve; `together` are curves of one picture."""

    def text(self, step: int, name: str, markdown: str) -> None:
        """Show a text."""

    def histograms(self, step: int, found: dict[str, Histogram]) -> None:
        """Show how values are spread."""

    def close(self) -> None:
        """End its threads and processes."""


def scalars(group: str, line: JsonObject) -> dict[str, float]:
    """Return the curves of a line of metrics."""
    no_curves = ("kind", "step", "by_source", "held_out", "pairs_by_group")
    drawn = {f"{group}/{name}": value for name, value in line.items() if name not in no_curves and value is not None}
    by_source = {name: scores["mlm_loss"] for name, scores in line.get("by_source", {}).items()}
    return drawn | {f"{group}_by_source/{name}": loss for name, loss in by_source.items()}


def table(rows: dict[str, str]) -> str:
    """Return names and values as a table in Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
