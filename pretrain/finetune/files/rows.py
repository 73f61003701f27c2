"""A row of a labelled file, and how what stands in it is shown in messages. Made by readers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.cli import InputError


class Row(dict[str, Any]):
    """Column -> value, of one row; in a table every value is a string. Columns are called by their names in lower case,
    and `written` says how the file has them: for whoever reads a message."""

    __slots__ = ("written",)

    def __init__(self, names: Iterable[str], values: Iterable[Any], written: dict[str, str] | None = None):
        super().__init__(zip(names, values, strict=True))
        self.written = written if written is not None else {name: name for name in self}


Rows = list[tuple[int, Row]]  # (line, from 1, column -> value)


def column_names(path: Path, line: int, header: list[str]) -> list[str]:
    """Return the names that columns go by: without white space around them, in lower case.

    Raises
    ------
    InputError: two columns of one name.
    """
    names = [name.strip().lower() for name in header]
    for name in names:
        if name and names.count(name) > 1:  # nameless columns are never read: spreadsheets and indices leave them
            raise InputError(f"{path}, line {line}: {names.count(name)} columns are called {name!r}: keep one")
    return names


def written_names(names: list[str], header: list[str]) -> dict[str, str]:
    """Return the name of each column as the file has it."""
    return {name: cell.strip() for name, cell in zip(names, header, strict=True)}


def found(fields: Row) -> str:
    """Return the columns that there are, for a message."""
    shown = ", ".join(fields.written.values()) or "none"
    return shown if len(shown) <= 120 else f"{shown[:120]}..."


def shorten(value: Any, limit: int = 60) -> str:
    """Return the repr of a value from a file, cut to fit into a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def filled_text(where: str, name: str, value: Any) -> str:
    """Return a text of a file.

    Raises
    ------
    InputError: it is none, or empty, or holds what is no character; naming `where` and the field's name.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} must be a text, not {shorten(value)}")
    if not value.strip():
        raise InputError(f"{where}: {name} is empty; fill it in or remove the row")
    return whole_characters(where, value)


def whole_characters(where: str, text: str) -> str:
    """Return the text, of which each half of a surrogate pair must have its other half."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half a surrogate pair, which is no character, in {shorten(text)}") from error
    return text
