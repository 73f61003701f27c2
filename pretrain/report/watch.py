"""A run as it goes, in a terminal: `python -m pretrain.report --watch RUN`.

    watch(run)          reads the run's files every few seconds until it has ended; a pipe gets a line per update
    picture(history, width, height) -> parts for rich        line_of(history) -> str

It reads what the report reads, writes nothing, and may be started before the run, or on another machine.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.progress import clock_time
from data_prep.safe_output import can_redraw, failure_of
from pretrain.formatting import counted, duration
from pretrain.monitor.console import name_values
from pretrain.monitor.stragglers import CLEARLY
from pretrain.report.history import History
from pretrain.run_facts import RUNNING

OF_A_RUN = ("config.json", "metrics.jsonl", "lock.json", "checkpoints", "log.txt")
RECENT = 20  # intervals from which the speed is taken
MARKS = {"training": "\N{MIDDLE DOT}", "held out": "o"}
BESIDE = 13  # lines of the screen beside the curve


def watch(run: Path, every: float) -> None:
    """Show a run every so many seconds until it ends, or until Ctrl-C.

    Raises
    ------
    InputError: a file, or a folder of something else.
    """
    check_watchable(run)
    try:
        if can_redraw(sys.stdout):
            _redraw(run, every)
        else:
            _write_lines(run, every)
    except KeyboardInterrupt:
        return


def check_watchable(run: Path) -> None:
    """Refuse what is no run folder and will not become one.

    Raises
    ------
    InputError: a file, or a folder of something else.
    """
    if run.is_file():
        raise InputError(f"--watch {run} is a file; give the --out of a pretraining run")
    if run.is_dir() and any(run.iterdir()) and not any((run / name).exists() for name in OF_A_RUN):
        raise InputError(f"--watch {run} is no run folder (no config.json); give the --out of a pretraining run")


def read_if_begun(run: Path) -> History | None:
    """Return what a run has written; None before its first step."""
    try:
        return History.read(run)
    except InputError:
        return None


def _redraw(run: Path, every: float) -> None:
    console = Console(highlight=False, emoji=False, markup=False)
    with Live(Text(f"{run}: waiting for its first step"), console=console, auto_refresh=False) as live:
        while True:
            if (history := read_if_begun(run)) is not None:
                live.update(Group(*picture(history, console.width, console.height)), refresh=True)
                if history.status != RUNNING:
                    return
            time.sleep(every)


def _write_lines(run: Path, every: float) -> None:
    """Print a line whenever there is something new."""
    before = ""
    while failure_of(sys.stdout) is None:  # else nobody reads any more
        history = read_if_begun(run)
        line = f"{run}: waiting for its first step" if history is None else line_of(history)
        if line != before:
            print(line, flush=True)
            before = line
        if history is not None and history.status != RUNNING:
            return
        time.sleep(every)


def line_of(history: History) -> str:
    """Return how a run stands in one line."""
    last, held_out = history.train[-1], _last_evaluation(history)
    parts = [f"{history.status}  step {_step(history)}", f"loss {last['mlm_loss']:.4f}"]
    if held_out is not None:
        parts.append(f"held out {held_out['mlm_loss']:.4f} (step {held_out['step']:,})")
    parts.append(f"{last.get('tokens_per_s', 0):,.0f} tokens/s")
    if (left := seconds_left(history)) is not None:
        parts.append(f"ETA {clock_time(left)}")
    return "  ".join([*parts, *warnings_of(history)])


def picture(history: History, width: int, height: int) -> list[Text]:
    """Return how a run stands, for a screen of so many columns and lines."""
    last, median = history.train[-1], history.summary()["tokens_per_s"] or 0.0
    held_out, left = _last_evaluation(history), seconds_left(history)
    mfu = "unknown" if last.get("mfu") is None else f"{last['mfu']:.2f}"
    rows = {
        "Status": history.status + ("" if left is None else f", {duration(left)} left"),
        "Step": f"{_step(history)}, {counted(last['tokens'])} tokens in {duration(history.clock)}",
        "Loss": f"{last['mlm_loss']:.4f}, accuracy {last.get('mlm_acc', 0):.3f}, learning rate {last.get('lr', 0):.2e}",
        "Held out": "no evaluation yet" if held_out is None else _evaluation_in_words(held_out),
        "Speed": f"{last.get('tokens_per_s', 0):,.0f} tokens/s now, {median:,.0f} median; MFU {mfu}",
        "Memory": f"{last['memory_gb']:.2f} GB per rank" if "memory_gb" in last else "",
        "Ranks": f"in collectives {last['collectives']:.0%}; slowest: rank {last['slowest_rank']}, "
        f"{last['slowdown']:.2f} times the others" if "slowdown" in last else "",
        "Health": "; ".join(warnings_of(history)) or "all is well",
        "Event": f"{history.events[-1].name}, step {history.events[-1].step:,}" if history.events else "",
    }  # fmt: skip
    series = [(MARKS["training"], *history.series("train", "mlm_loss"))]
    series.append((MARKS["held out"], *history.series("evals", "mlm_loss")))
    curve = plot(series, width, max(min(height - BESIDE, 16), 4))
    legend = ", ".join(f"{mark} {name}" for name, mark in MARKS.items())
    return [
        name_values(str(history.folder), rows.items()),
        Text(f"\nmasked-word loss ({legend})", "bold"),
        Text("\n".join(curve), no_wrap=True),
    ]


def plot(series: Sequence[tuple[str, np.ndarray, np.ndarray]], width: int, height: int) -> list[str]:
    """Return curves as lines of text: (mark, places, values) each, later ones above earlier ones."""
    values, places = (np.concatenate([one[part] for one in series]) for part in (2, 1))
    if not len(values):
        return []
    low, high = float(values.min()), float(values.max())
    first, last = int(places.min()), int(places.max())
    room = max(width - 9, 10)  # columns right of the scale
    grid = [[" "] * room for _ in range(height)]
    for mark, steps, heights in series:
        columns = ((steps - first) * (room - 1) // max(last - first, 1)).astype(int)
        for column in np.unique(columns):  # a column shows the mean of what falls into it
            share = (float(heights[columns == column].mean()) - low) / max(high - low, 1e-9)
            grid[round((1 - share) * (height - 1))][column] = mark
    scale = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    lines = [f"{scale.get(row, ''):>7} |" + "".join(cells).rstrip() for row, cells in enumerate(grid)]
    return [*lines, f"{'':>8}{first:,}".ljust(8 + room - len(f"{last:,}")) + f"{last:,}"]


def seconds_left(history: History) -> float | None:
    """Return how long the run will still take, by its last intervals; None where nobody knows, or it has ended."""
    if history.status != RUNNING:
        return None
    by_clock = max(3600 * history.hours - history.clock, 0.0) if history.hours else None
    steps = history.config["train"].get("steps")
    recent = history.train[-RECENT - 1 :]
    done = recent[-1]["step"] - recent[0]["step"]
    if not steps or done <= 0:
        return by_clock
    by_steps = (steps - recent[-1]["step"]) * (recent[-1]["clock"] - recent[0]["clock"]) / done
    return max(by_steps if by_clock is None else min(by_clock, by_steps), 0.0)


def warnings_of(history: History) -> list[str]:
    """Return what somebody should look at."""
    last, found = history.train[-1], []
    if skipped := sum(event.count for event in history.events if event.name == "skip"):
        found.append(f"{skipped:,} steps skipped")
    if rollbacks := sum(event.name == "rollback" for event in history.events):
        found.append(f"{rollbacks} rollbacks")
    if last.get("slowdown", 1.0) >= CLEARLY:
        found.append(f"rank {last['slowest_rank']} is slow ({last['slowdown']:.2f} times)")
    if not np.isfinite(last["mlm_loss"]):
        found.append("the loss is no number")
    losses = [line["mlm_loss"] for line in history.train[-200:]]
    if len(losses) == 200 and np.mean(losses[100:]) > 1.05 * np.mean(losses[:100]):
        found.append("the loss rises")
    return found


def _step(history: History) -> str:
    return f"{history.train[-1]['step']:,}" + (f"/{history.steps:,}" if history.steps else "")


def _last_evaluation(history: History) -> JsonObject | None:
    return next((line for line in reversed(history.evals) if line.get("mlm_loss") is not None), None)


def _evaluation_in_words(line: JsonObject) -> str:
    scores = {"accuracy": line.get("mlm_acc"), "minimal pairs": line.get("pairs_acc")}
    told = [f"{name} {score:.3f}" for name, score in scores.items() if score]
    return ", ".join([f"loss {line['mlm_loss']:.4f}", *told]) + f", at step {line['step']:,}"
