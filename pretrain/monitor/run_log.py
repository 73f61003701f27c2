"""Where a run speaks: the console (above a bar, if there is one), log.txt, metrics.jsonl and TensorBoard.

    log = RunLog(run, first_step, bar)      of rank 0, or of nobody: is_writer
    log.say(line), log.print_tables(...)    for people: console and log.txt
    log.write_line({"kind": ...}, step)     for programs: metrics.jsonl, and curves where a group is named (sinks.py)

What cannot be written is said once, wherever words still go, and the run goes on.
"""

import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from data_prep.json_types import JsonObject
from data_prep.safe_output import Journal, failure_of
from pretrain.monitor.board import Board
from pretrain.monitor.console import for_stderr, rendered
from pretrain.monitor.sinks import Histogram, Sink, Values, scalars
from pretrain.monitor.tracker import Tracker
from pretrain.run_facts import FAILED
from pretrain.settings.config import TrackerName


class RunLog:
    """Writes on the rank that `is_writer`; on others nothing happens."""

    def __init__(
        self, run: Path, first_step: int, bar: "tqdm[Any]", *, is_writer: bool, track: TrackerName | None = None
    ):
        self.bar, self.is_writer = bar, is_writer
        self._metrics, self._text = Journal(run / "metrics.jsonl"), Journal(run / "log.txt")
        self._failing: set[str] = set()  # what has been complained about
        self._sinks: list[Sink] = []
        if is_writer:
            self._sinks.append(Board(run / "tensorboard", first_step, self.say))
        if is_writer and track:
            self._sinks.append(Tracker(track, run, self.say))

    def say(self, message: str) -> None:
        """Write a line for people."""
        if self.is_writer:
            self._tell(message, message)

    def print_tables(self, *parts: Table | Text) -> None:
        """Write tables for people, as wide as the console."""
        if self.is_writer:
            self._tell(for_stderr(*parts), rendered(*parts))

    def event(self, step: int, event: str, **details: Any) -> None:
        """Write that something happened, for programs and for people."""
        self.write_line({"kind": "event", "step": step, "event": event, **details}, step)
        self.say(
            f"{event}, step {step}"
            + "".join(f", {name} {value}" for name, value in details.items() if value is not None)
        )

    def fail(self, step: int, why: str) -> None:
        """Write that the run goes no further than `step`; the console hears of it where the error is met."""
        self.write_line({"kind": "event", "step": step, "event": FAILED, "reason": why}, step)
        if self.is_writer:
            self._text.write(f"{FAILED}, after step {step}: {why}")

    def write_line(self, line: JsonObject, step: int, group: str | None = None) -> None:
        """Write a line of metrics; `group` is what TensorBoard calls its curves, if they are drawn."""
        if not self.is_writer:
            return
        self._metrics.write(json.dumps(line))
        self._complain(self._metrics.path, self._metrics.failure, self._metrics.lost)
        if group is not None:
            for sink in self._sinks:
                sink.draw(step, scalars(group, line))

    def draw_together(self, step: int, pictures: dict[str, dict[str, float]]) -> None:
        """Draw several curves into one picture of TensorBoard: picture -> curve -> value."""
        for sink in self._sinks:
            sink.draw(step, {}, pictures)

    def show_settings(self, step: int, facts: dict[str, str], values: Values) -> None:
        """Show what was asked for, wherever numbers are drawn."""
        for sink in self._sinks:
            sink.settings(step, facts, values)

    def show_text(self, step: int, name: str, markdown: str) -> None:
        """Show a text wherever texts are shown."""
        for sink in self._sinks:
            sink.text(step, name, markdown)

    def show_histograms(self, step: int, found: dict[str, Histogram]) -> None:
        """Show how values are spread."""
        for sink in self._sinks:
            sink.histograms(step, found)

    def rewind(self, step: int) -> None:
        """Take back what TensorBoard has drawn after `step`."""
        for sink in self._sinks:
            sink.begin(step)

    def close(self) -> None:
        """End the bar and the curves, and say what of the metrics is missing in the end."""
        self.bar.close()
        for sink in self._sinks:
            sink.close()
        if missing := self._metrics.waiting + self._metrics.lost:
            why = self._metrics.failure or "too many waited"
            self.say(f"warning: {self._metrics.path} lacks {missing:,} lines ({why})")

    def _tell(self, on_console: str, in_log: str) -> None:
        self.bar.write(on_console, file=sys.stderr)
        self._text.write(in_log)
        self._complain("the console", failure_of(sys.stderr), 0)
        self._complain(self._text.path, self._text.failure, self._text.lost)

    def _complain(self, outlet: object, failure: OSError | None, lost: int) -> None:
        """Say once that an outlet fails, and once that it does no longer: to those that are left."""
        name = str(outlet)
        if failure is not None and name not in self._failing:
            self._failing.add(name)
            reason = failure.strerror or failure
            self.say(f"warning: {name} cannot be written ({reason}); the run goes on, and saves as it would")
        elif failure is None and name in self._failing:
            self._failing.remove(name)
            self.say(f"{name} is written again; " + (f"{lost:,} lines are lost" if lost else "nothing is lost"))
