"""Tables as text, .csv and .tsv, row by row: a header line, then cells that commas, semicolons, tabs or bars part.

    layout = layout_of(beginning, "csv")             # "semicolons"
    names = header_of(beginning, layout)             # ["id", "text"]
    for place, text in texts(source, lines, layout, "text", counts): ...

Cells of .csv may be quoted as RFC 4180 says, line breaks and all; whether those of a .tsv are, its beginning tells:
where every quote in it opens or closes a cell or is doubled inside one. Rows that are not as wide as the header, and
cells whose quotes make no sense, are left out and counted (`bad_lines`). A quote that nothing closes costs its line,
not what follows: a row longer than X up, and reading goes on with its second line.
"""

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal, NamedTuple

from data_prep.cli import say
from data_prep.text.source import MAX_LINE_BYTES, Source, decode

MAX_ROW_CHARS = MAX_LINE_BYTES

_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", "\x1f": "one column"}
_DELIMITERS = {name: sign for sign, name in _NAMES.items()} | {"": ","}  # of an empty file
_UNQUOTED = ", no quotes"
_EXCEL = re.compile(r"sep=(.)\r?\n?")  # a first line that tells Excel what parts cells
# One quoted cell as writers make it: doubled quotes inside, nothing between the closing quote and the end of the cell.
_QUOTED_CELL = re.compile(r'(?<![^\t\r\n])"[^"]*+(?:""[^"]*+)*+"(?![^\t\r\n])')


_NULL = r"\N"  # no text, as MySQL and PostgreSQL write it
_ESCAPED = re.compile(r"[.!?:;,\"')](?:\\r)?\\n")  # a line break after a stop, as they do; \nabla is LaTeX


class Row(NamedTuple):
    """The cells of a row, and where its first line begins: byte and number."""

    place: int
    line: int
    cells: list[str]  # of a row that cannot be read its first line
    is_whole: bool = True


def layout_of(beginning: str, kind: str) -> str:
    """Return what parts the cells of a table, by its beginning, and whether quotes are nothing but text."""
    if excel := _EXCEL.match(beginning):
        return _NAMES.get(excel[1], "commas")
    header = re.split(r"[\r\n]", beginning.lstrip(), maxsplit=1)[0]
    delimiter = "\t" if kind == "tsv" else max(",;\t|", key=header.count)
    if delimiter not in header:
        delimiter = "\x1f"
    is_text = kind == "tsv" and not _is_quoted(beginning)
    return _NAMES[delimiter] + (_UNQUOTED if is_text else "")


def _is_quoted(beginning: str) -> bool:
    whole = beginning[: beginning.rfind("\n") + 1] or beginning
    if '"' not in whole:
        return False
    rest = _QUOTED_CELL.sub("", whole)
    return '"' not in rest or ('"' not in rest[: rest.rfind("\n", 0, -1)] and rest.count('"') == 1)  # the last is cut


def header_of(beginning: str, layout: str) -> list[str]:
    """Return the names of the columns; none where there is no line."""
    lines = ((0, line.encode("utf-8", "replace")) for line in io.StringIO(beginning, newline=""))
    return next((row.cells for row in rows(lines, layout, Counter())), [])


class _TooLongError(Exception):
    """A row does not end."""


class _Lines:
    """Lines for csv.reader, kept until the row that they make is whole."""

    def __init__(self, lines: Iterable[tuple[int, bytes]], counts: Counter[str]):
        self.lines, self.counts = iter(lines), counts
        self.waiting: deque[tuple[int, str]] = deque()
        self.row: list[tuple[int, str]] = []  # of the row under way
        self.size = 0  # characters of it
        self.number = 0  # of the first line of the row

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.waiting:
            place, line = self.waiting.popleft()
        else:
            place, raw = next(self.lines)
            line = decode(raw, self.counts)
        self.row.append((place, line))
        self.size += len(line)
        if self.size > MAX_ROW_CHARS:
            raise _TooLongError
        return line

    def begin_row(self) -> None:
        """Forget the row before, which was whole."""
        self.number += len(self.row)
        self.row, self.size = [], 0

    def give_back(self) -> None:
        """Have all lines of the row but the first read again."""
        self.waiting.extendleft(reversed(self.row[1:]))
        del self.row[1:]


def rows(lines: Iterable[tuple[int, bytes]], layout: str, counts: Counter[str]) -> Iterator[Row]:
    """Yield all rows that are not blank, the header first."""
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_ROW_CHARS))
    delimiter = _DELIMITERS[layout.removesuffix(_UNQUOTED)]
    quoting: Literal[0, 3] = csv.QUOTE_NONE if layout.endswith(_UNQUOTED) else csv.QUOTE_MINIMAL
    fed = _Lines(lines, counts)
    new_reader = partial(csv.reader, fed, delimiter=delimiter, quoting=quoting, strict=True)
    reader = new_reader()
    is_first = True
    while True:
        fed.begin_row()
        is_whole = True
        try:
            cells = next(reader, None)
        except (csv.Error, _TooLongError):
            fed.give_back()
            cells, is_whole = [fed.row[0][1]], False
            reader = new_reader()
        if cells is None:
            return
        if not any(map(str.strip, cells)) or (is_first and _EXCEL.fullmatch(fed.row[0][1])):
            continue
        if is_first and all(cell.startswith(" ") for cell in cells[1:]):
            # A blank that follows each delimiter belongs to no cell, nor does it hide the quote that opens one.
            cells = [cell.strip() for cell in cells]
            new_reader = partial(new_reader, skipinitialspace=True)
            reader = new_reader()
        is_first = False
        yield Row(fed.row[0][0], fed.number + 1, cells, is_whole)


def texts(
    source: Source, lines: Iterable[tuple[int, bytes]], layout: str, column: str, counts: Counter[str]
) -> Iterator[tuple[int, str]]:
    """Yield (place, text) of the rows below the header, in which the column is."""
    header: list[str] = []
    at = -1
    said = False
    found = has_letters = has_escapes = False
    for place, line, cells, is_whole in rows(lines, layout, counts):
        if at < 0:
            if column not in cells:  # the file has changed since it was looked at, which is noticed in the end
                return
            header, at = cells, cells.index(column)
            continue
        if len(cells) > len(header) and not any(cells[len(header) :]):  # a delimiter at the end of each row
            cells = cells[: len(header)]
        if is_whole and len(cells) == len(header) and cells != header:
            text = cells[at]
            if layout.endswith(_UNQUOTED) and "\\" in text:
                text = "" if text == _NULL else text
                has_escapes = has_escapes or _ESCAPED.search(text) is not None
            found = found or bool(text)
            has_letters = has_letters or any(map(str.isalpha, text))
            yield place, text
            continue
        counts["bad_lines"] += 1
        if not said:
            said = True
            what = _what(cells, header, is_whole)
            say(f"warning: {source.path}, line {line} {what}; such rows are left out (--strict refuses)")
    if found and not has_letters:
        say(f"warning: {source.path}: column {column!r} holds no letter; is the text in another one of {header}?")
    if has_escapes:
        what = "line breaks seem to be written as \\n, as databases do, and are read as these two signs"
        say(f"warning: {source.path}: {what}; write the table as .csv with quotes")


def _what(cells: list[str], header: list[str], is_whole: bool) -> str:
    if not is_whole:
        return "has quotes that make no sense: one that opens a cell must be closed at its end, one inside doubled"
    if cells == header:
        return "repeats the header"
    return (
        f"has {len(cells)} cells where the header has {len(header)}; a text that holds what parts cells must be quoted"
    )
