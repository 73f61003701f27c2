"""A labelled file -> its rows, whatever wrote it. Quotes, encodings and line ends are settled here, file by file.

    train.csv     a header line, then commas (or semicolons, or tabs) between cells, quoted as RFC 4180 says
    train.tsv     a header line, then tabs between cells; with those quotes (pandas, spreadsheets), or without (GLUE)
    train.jsonl   one JSON object a line
    train.parquet, train.conll                parquet.py, conll.py

Text is UTF-8 or UTF-16, with or without a byte order mark. Lines end in LF, CR LF or CR. Names of columns are compared
without white space around them and in lower case. Every complaint names the file and the line, counted from 1.
"""

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from data_prep.cli import InputError, say
from pretrain.finetune.files.conll import conll_rows
from pretrain.finetune.files.features import with_names
from pretrain.finetune.files.kinds import SUFFIXES, kind_of
from pretrain.finetune.files.parquet import parquet_features, parquet_rows
from pretrain.finetune.files.rows import Row, Rows, column_names, shorten, written_names

Cells = list[str]

# One quoted cell as csv writers make it: doubled quotes inside, nothing between the closing quote and the cell's end.
_QUOTED_CELL = re.compile(r'(?<![^\t\r\n])"[^"]*+(?:""[^"]*+)*+"(?![^\t\r\n])')

_EXCEL = re.compile(r"\Asep=.(?=[\r\n])")  # a first line that tells Excel what separates columns


def read_rows(path: Path) -> Rows:
    """Return (line, column -> value) of every row that is not blank; at least one.

    Raises
    ------
    InputError: no such file, of another kind, in another encoding, without rows, or a row of the wrong shape.
    """
    kind = kind_of(path)
    if SUFFIXES.get(path.suffix.lower()) != kind:
        say(f"{path} is read as {'CoNLL' if kind == 'conll' else kind.upper()}, which its content is")
    if kind == "parquet":
        rows = list(parquet_rows(path))
        return with_names(path, rows, parquet_features(path)) if rows else _none(path, "")
    text = _decoded(path)
    if kind == "jsonl":
        rows = list(_objects(path, text))
    elif kind == "conll":
        rows = list(conll_rows(path, enumerate(text.split("\n" if "\n" in text else "\r"), 1)))
    else:
        cells = _comma_rows(path, text) if kind == "csv" else _tab_rows(path, text)
        rows = list(_under_header(path, cells))
    return with_names(path, rows) if rows else _none(path, " below its header line" if kind in ("csv", "tsv") else "")


def _none(path: Path, where: str) -> NoReturn:
    raise InputError(f"{path} holds no examples{where}")


def read_text_lines(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of every line of a .txt that is not blank; at least one. How many are blank is said.

    Raises
    ------
    InputError: no such file, in another encoding, without text.
    """
    if not path.is_file():
        raise InputError(f"{path}: " + ("not a regular file" if path.exists() else "no such file"))
    text = _decoded(path)
    lines = list(_lines(text))
    if not lines:
        raise InputError(f"{path} holds no text")
    if blank := lines[-1][0] - len(lines):
        say(f"{path}: blank lines, which have no score: {blank:,}")
    return lines


def _decoded(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    # Made for JSON, and right for any file that begins with two ASCII characters, as a header does.
    encoding = json.detect_encoding(raw)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(error.encoding, errors="ignore")
        name = encoding.removesuffix("-sig").upper()
        convert = ("iconv", "-f", "WINDOWS-1252", "-t", "UTF-8", str(path))
        raise InputError(
            f"{path}, line {_line_of(before, len(before))}: not {name} ({error.reason}); "
            f"convert the file, for example: {shlex.join(convert)} > {shlex.quote(f'utf8-{path.name}')}"
        ) from error
    if not encoding.startswith("utf-8"):
        say(f"{path} is read as {encoding.upper()}")
    return text.lstrip("\ufeff")


def _line_of(text: str, place: int) -> int:
    return len(re.findall(r"\r\n?|\n", text[:place])) + 1


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines that are not blank, with their numbers. Only a file without any line feed ends its lines by carriage
    returns.

    A text may hold other marks that Python's splitlines takes for line ends.
    """
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _objects(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in _lines(text):
        try:
            # Pairs, not a dict: of two fields with one name json would silently keep the last.
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            hint = "; write one object a line, without a list around them" if line.strip() == "[" else ""
            raise InputError(f"{path}, line {number}: not JSON ({reason}): {shorten(line)}{hint}") from error
        if not isinstance(pairs, _Pairs):
            raise InputError(f"{path}, line {number}: not a JSON object: {shorten(line)}")
        header = [name for name, _ in pairs]
        names = column_names(path, number, header)
        yield number, Row(names, (_plain(value) for _, value in pairs), written_names(names, header))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, before anything in it is dropped."""


def _plain(value: Any) -> Any:
    """Return a value of a row with dicts for the objects within."""
    if isinstance(value, _Pairs):
        return {name: _plain(inner) for name, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _under_header(path: Path, rows: Iterator[tuple[int, Cells]]) -> Iterator[tuple[int, Row]]:
    top, header = next(rows, (1, []))
    names = column_names(path, top, header)
    written = written_names(names, header)
    for number, cells in rows:
        if len(cells) != len(names):
            raise InputError(
                f"{path}, line {number}: {len(cells)} columns where the header has {len(names)} "
                f"({shorten(', '.join(header))}); a text that holds what separates columns must be quoted: "
                f"{shorten(cells[0])}"
            )
        if cells == header:
            raise InputError(f"{path}, line {number} repeats the header: files were joined; remove this line")
        yield number, Row(names, cells, written)


def _comma_rows(path: Path, text: str) -> Iterator[tuple[int, Cells]]:
    text = _EXCEL.sub("", text)
    header = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    delimiter = max(",;\t", key=header.count)
    if delimiter != ",":
        say(f"{path}: columns are separated by {'semicolons' if delimiter == ';' else 'tabs'}")
    return _quoted_rows(path, text, delimiter, spaced=f"{delimiter} " in header)


def _tab_rows(path: Path, text: str) -> Iterator[tuple[int, Cells]]:
    rows = [(number, line.split("\t")) for number, line in _lines(text)]
    if '"' not in text:
        return iter(rows)
    reason = _quotes_are_text(text, rows)
    if reason is None:
        say(f"{path}: cells are quoted, as pandas and spreadsheets write them; the quotes are no part of the texts")
        return _quoted_rows(path, text, "\t")
    if any(cell.startswith('"') for _, cells in rows for cell in cells):
        say(f"{path}: quotes are part of the texts, for {reason}")
    return iter(rows)


def _quotes_are_text(text: str, rows: list[tuple[int, Cells]]) -> str | None:
    """Return why a tab-separated file is not quoted, or None where it is.

    A quoting writer leaves a signature: no quote but around whole cells and doubled inside them, and quotes around
    every cell that needs them and no other, or around whole columns.
    rows: cells by line, as they are where quotes are text
    """
    # Blank out the cells that are quoted by the rule, line by line; a quote that is left belongs to a text.
    rest = _QUOTED_CELL.sub(lambda cell: "\n" * (_line_of(cell[0], len(cell[0])) - 1), text)
    if '"' in rest:
        return f"the one in line {_line_of(rest, rest.index(chr(34)))} neither opens nor closes a cell"
    # Cells that cut lines or hold tabs: without quotes the rows have no common width.
    if any(len(cells) != len(rows[0][1]) for _, cells in rows):
        return None
    header, body = rows[0][1], [cells for _, cells in rows[1:]]
    cells = [cell for row in body for cell in row]
    if any(map(_in_quotes, header)) or any('""' in cell[1:-1] for cell in cells if _in_quotes(cell)):
        return None
    if any(cell.startswith('"') and not _in_quotes(cell) for cell in cells):
        return "whole rows would lie between two of them"
    # Spreadsheets quote what holds a comma; other writers quote all names, or all but numbers.
    if all(("," in cell) == _in_quotes(cell) for cell in cells):
        return None
    columns = [[_in_quotes(cell) for cell in column] for column in zip(*body, strict=True)]
    if all(all(column) or not any(column) for column in columns):
        return None
    return "no quoted cell needs them, and others of its column have none"


def _in_quotes(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _quoted_rows(path: Path, text: str, delimiter: str, spaced: bool = False) -> Iterator[tuple[int, Cells]]:
    """Yield rows with at least one cell that is not blank. spaced: a blank follows each delimiter and belongs to no
    cell."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {line}: a cell that begins with a double quote must end with one, and a quote inside "
                f"must be doubled ({error})"
            ) from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells
        line = reader.line_num + 1
