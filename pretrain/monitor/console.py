"""Tables for people, on the console and in log.txt.

what_runs(...), what_came_out(...)      at the start and at the end of a run
pairs(...), grid(...)                   parts of a page; for_stderr(part, ...), rendered(part, ...) -> str
"""

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_prep.calls import call
from data_prep.outlets import can_redraw
from pretrain.checkpoints.format import best_checkpoint, list_checkpoints
from pretrain.report.history import FINISHED, STOPPED, History
from pretrain.report.words import counted, duration, facts
from pretrain.settings.config import TrainConfig
from pretrain.settings.phases import Phase
from pretrain.state import RunState

WIDTH = 118  # columns where there is no terminal to ask


def what_runs(
    config: TrainConfig,
    phases: list[Phase],
    record: dict[str, Any],
    devices: str,
    resumed_from: Path | None,
    lost: str = "",
) -> Text:
    """A run before it runs; `record` is the content of its config.json, `lost` what a killed process has lost."""
    told = facts(History(config.out, "", record))
    several = bool(config.phase)
    for name in ("Shape", "Hyper-parameters", "Software", "Code", "Phases", *(("Sample", "Batch") if several else ())):
        told.pop(name, None)
    if several:
        told |= {"Learning rate": f"{config.schedule}, by phase"}
        told |= {f"Phase {phase.index + 1}": _phase_in_words(phase) for phase in phases}
    if config.hours:
        told["Steps"] = f"as many as {config.hours:g} hours hold, {config.total_steps:,} at most"
    outlook = record["outlook"]
    told |= {
        "Tokens seen": outlook["seen"],
        "Masking": f"{100 * config.mask_rate:g}% of the tokens, by {config.mask_unit}",
        "Evaluation": f"{config.eval_samples} held-out samples "
        + (_rhythm(config.eval_every, config.eval_minutes) or "at the end")
        if outlook["is_evaluated"]
        else f"none: {outlook['no_evaluation']}"
        if config.eval_samples
        else "none",
        "Checkpoints": _rhythm(config.save_every, config.save_minutes) or "one at the end",
        "Warning": "; ".join(outlook["warnings"]) if outlook["is_evaluated"] else "",
        "Devices": devices,
        "Resume": (f"from {resumed_from}" if resumed_from else "a new run") + (f"; lost {lost}" if lost else ""),
        "Folder": str(config.out),
    }
    return pairs("What will run", told.items())


def _rhythm(steps: int, minutes: float) -> str:
    """How often something happens."""
    return " and ".join([f"every {steps:,} steps"] * (steps > 0) + [f"every {minutes:g} minutes"] * (minutes > 0))


def _phase_in_words(phase: Phase) -> str:
    span, told = phase.span, phase.described()
    return (
        f"{span.steps:,} steps of {told['global_batch']:,} samples of {span.seq_len} tokens, "
        f"lr {told['lr']:g}, warm-up {span.warmup_steps:,} steps"
    )


def what_came_out(config: TrainConfig, state: RunState, first: RunState, seconds: float, is_finished: bool) -> Text:
    """A run after it ran, from the state `first` on, and where to look next."""
    tokens = state.tokens - first.tokens
    best = best_checkpoint(list_checkpoints(config.out))
    source = config.out if best is None or not is_finished else best.folder
    of = "" if config.hours else f" of {config.total_steps:,}"
    rows = {
        "Status": f"{FINISHED if is_finished else STOPPED} at step {state.step:,}{of}, "
        f"{duration(seconds)} after step {first.step:,}",
        "Tokens": f"{counted(state.tokens)} in all, {tokens / max(seconds, 1e-9):,.0f} a second with all pauses",
        "Skipped": f"{state.skipped:,} steps" if state.skipped else "",
        "Best": "",
        "To go on": "" if is_finished else "the same command",
        "Export": call("export", source, config.out.parent / "hf"),
        "Report": call("report", config.out, "--out", config.out / "report"),
    }
    if best is not None:
        rows["Best"] = f"held-out loss {best.loss:.4f}, in {best.folder}"
    return pairs("What came out", rows.items())


def pairs(title: str, rows: Iterable[tuple[str, str]]) -> Text:
    """Names and values, one a line however long: a command is there to be copied. What has no value is left out."""
    told = [(name, value) for name, value in rows if value]
    width = max(len(name) for name, _ in told)
    lines = [Text.assemble((name.ljust(width), "cyan"), "  ", value) for name, value in told]
    return Text("\n").join([*([Text(title, "bold")] if title else []), *lines])


def grid(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Columns of numbers under their names."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def rendered(*parts: Table | Text | str, width: int = WIDTH, is_colourful: bool = False) -> str:
    """As text; in colour with the codes of a terminal."""
    console = Console(
        file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False,
        force_terminal=is_colourful, no_color=not is_colourful,
    )  # fmt: skip
    with console.capture() as captured:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, Text))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def for_stderr(*parts: Table | Text | str) -> str:
    """As text for stderr: as wide as the terminal, and in colour if it is one."""
    if not can_redraw(sys.stderr):
        return rendered(*parts)
    return rendered(*parts, width=shutil.get_terminal_size().columns, is_colourful=True)
