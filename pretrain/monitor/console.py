"""Tables and lists for people, as text: parts of what a run says.

name_values("Title", rows)              names and values, one a line
grid("Title", header, rows)             columns of numbers
for_stderr(part, ...), rendered(part, ...) -> str
"""

import io
import shutil
import sys
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_prep.safe_output import can_redraw

WIDTH = 118  # columns where there is no terminal to ask


def name_values(title: str, rows: Iterable[tuple[str, str]]) -> Text:
    """Return names and values, one a line however long: commands are there to be copied. What has no value is left
    out."""
    told = [(name, value) for name, value in rows if value]
    width = max(len(name) for name, _ in told)
    lines = [Text.assemble((name.ljust(width), "cyan"), "  ", value) for name, value in told]
    return Text("\n").join([*([Text(title, "bold")] if title else []), *lines])


def grid(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return columns of numbers under their names."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def rendered(*parts: Table | Text | str, width: int = WIDTH, is_colourful: bool = False) -> str:
    """Return parts as text; in colour with the codes of a terminal."""
    console = Console(
        file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False,
        force_terminal=is_colourful, no_color=not is_colourful,
    )  # fmt: skip
    with console.capture() as captured:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, Text))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def for_stderr(*parts: Table | Text | str) -> str:
    """Return parts as text for stderr: as wide as the terminal, and in colour if it is one."""
    if not can_redraw(sys.stderr):
        return rendered(*parts)
    return rendered(*parts, width=shutil.get_terminal_size().columns, is_colourful=True)
