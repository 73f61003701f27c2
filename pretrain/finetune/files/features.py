"""Numbers in place of names: "ner_tags": [0, 3, 4, 0], as `datasets` stores them, and what each of them is called.

with_names(path, rows, features)                  names from a field "features", from a Parquet file, or from a
                                                  dataset_info.json beside the file
numbered(path, rows, "label", ("bad", "good"))    names from the command line
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.cli import InputError, say
from data_prep.json_types import JsonObject
from data_prep.untrusted import read_object
from pretrain.finetune.files.rows import Row, Rows, shorten

FIELD = "features"
INFO = "dataset_info.json"


def with_names(path: Path, rows: Rows, features: JsonObject | None = None) -> Rows:
    """Return the rows with names in the place of numbers, in each column that has any; said.

    features: column -> its type as `datasets` describes it; None: those of a field "features" or a file beside

    Raises
    ------
    InputError: a number without a name.
    """
    if features is None and isinstance(rows[0][1].get(FIELD), dict):
        features = rows[0][1][FIELD]
    elif features is None and (beside := path.with_name(INFO)).is_file():
        described = read_object(beside).get(FIELD)
        features = described if isinstance(described, dict) else None
    for column, described in (features or {}).items():
        name = str(column).strip().lower()
        names = _class_names(described)
        if names and any(_is_number(value) for _, row in rows for value in _values(row.get(name))):
            rows = numbered(path, rows, name, names)
            say(f"{path}: numbers of column {column} are read by their names: {shorten(', '.join(names))}")
    return rows


def numbered(path: Path, rows: Rows, column: str, names: Sequence[str]) -> Rows:
    """Return the rows with `names` in the place of the numbers of a column: a number, its digits, or a list of these.

    Raises
    ------
    InputError: a value that is no number from 0 to the last of `names`.
    """

    def name_of(line: int, value: Any) -> str:
        digits = str(value).strip() if _is_number(value) or isinstance(value, str) else ""
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 9 or int(digits) >= len(names):
            raise InputError(
                f"{path}, line {line}: {column} {shorten(value)} is no number from 0 to {len(names) - 1}, for which "
                f"there are names ({shorten(', '.join(names))}); remove the row, or give all names: --label_names"
            )
        return names[int(digits)]

    def renamed(line: int, row: Row) -> Row:
        if column not in row:
            return row
        value = row[column]
        named = [name_of(line, item) for item in value] if isinstance(value, list) else name_of(line, value)
        return Row(row, ({**row, column: named}).values(), row.written)

    return [(line, renamed(line, row)) for line, row in rows]


def _class_names(described: Any) -> list[str]:
    """Return the names of {"names": [...]}, bare or within a list's {"feature": {...}}; none where there are none."""
    while isinstance(described, dict) and isinstance(described.get("feature"), dict):
        described = described["feature"]
    if isinstance(described, list) and len(described) == 1:  # a list of them, as older versions say it
        described = described[0]
    names = described.get("names") if isinstance(described, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
