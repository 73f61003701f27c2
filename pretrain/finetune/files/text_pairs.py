"""Rows of a file -> examples of a text and the one that is to be written for it.

Columns are found by name, as in TARGET_COLUMNS, or there are two alone: the first is read, the second is to be written.
"""

from pathlib import Path

from data_prep.cli import InputError, say
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.files.rows import Row, Rows, filled_text, found
from pretrain.finetune.files.tables import read_rows

TARGET_COLUMNS = (
    ("text", "label"),  # what --text and --label name
    ("source", "target"),
    ("src", "tgt"),
    ("text", "summary"),
    ("text", "target"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("input", "output"),
    ("input", "target"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("quelle", "ziel"),
    ("text", "zusammenfassung"),
)


def read_targets(path: Path, rows: Rows | None = None) -> list[Example]:
    """Return texts (`text`) with the texts that are to be written (`label`).

    Raises
    ------
    InputError: as `tables.read_rows`; columns that cannot be told, a cell that is empty or no text.
    """
    rows = [(line, _unfolded(row)) for line, row in (read_rows(path) if rows is None else rows)]
    first, second = _columns(path, rows[0][1])
    written = rows[0][1].written
    say(f"{path}: {written.get(first, first)} is read, {written.get(second, second)} is to be written")
    examples = []
    for line, row in rows:
        text, target = (filled_text(f"{path}, line {line}", name, row.get(name)) for name in (first, second))
        examples.append(Example(line, text, None, target))
    return examples


def no_targets(examples: list[Example], path: Path) -> list[str]:
    """Return nothing: texts that are written have no names."""
    return []


def _unfolded(row: Row) -> Row:
    """Return {"translation": {"en": ..., "de": ...}} as columns en and de."""
    inner = row.get("translation")
    return Row(inner, inner.values()) if isinstance(inner, dict) else row


def _columns(path: Path, row: Row) -> tuple[str, str]:
    for columns in TARGET_COLUMNS:
        if set(columns) <= set(row):
            return columns
    named = [name for name in row if name not in ("", "id", "index", "idx")]
    if len(named) != 2:
        raise InputError(
            f"{path}: which column is to be written for which cannot be told (known: source, target; text, summary; "
            f"..., or two alone); say so: --text COLUMN --label COLUMN; found {found(row)}"
        )
    return named[0], named[1]
