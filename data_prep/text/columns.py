"""Where in a record the text is: in the column `--column`, or, where there is no "text", in one of a usual name.

    found = find_column(["id", "Content"], "text")      -> "Content"
    text = text_of({"id": 7, "Content": "..."}, "Content")

A record is a value of .json, a row of .csv or .tsv; of .jsonl a line, which has the very field. One without text is
bad: left out and counted.
"""

from collections.abc import Sequence
from typing import Any

from data_prep.errors import InputError

DEFAULT = "text"
USUAL = (  # instead of it, the likeliest first; no "title" or "description", which tables about texts have, too
    *("text", "content", "contents", "body", "document", "article", "full_text", "raw_text", "clean_text"),
    *("article_text", "review_text", "comment_text", "text_content", "review", "passage", "paragraph", "sentence"),
    *("abstract", "story", "transcript", "post", "tweet", "utterance"),
)
NAMES_SHOWN = 12  # names of columns in a message


class BadRecordError(Exception):
    """What is wrong with a record."""


class NoColumnError(InputError):
    """A file has no column of that name, nor one of a usual name."""


def find_column(names: Sequence[str], column: str) -> str | None:
    """Return the name among these that is meant by `--column`; None where there is none."""
    if column in names:
        return column
    by_name = {name.strip().lower(): name for name in reversed(names)}
    wanted = USUAL if column == DEFAULT else (column.lower(),)
    return next((by_name[name] for name in wanted if name in by_name), None)


def missing(column: str, names: Sequence[str]) -> str:
    """Return what to say of a record that has no such column."""
    shown = [str(name)[:40] for name in names[:NAMES_SHOWN]] + ["..."] * (len(names) > NAMES_SHOWN)
    return f"has no field {column!r}, only {shown}; see --column"


def text_of(record: Any, column: str) -> str:
    """Return the text of a record of JSON: of an object the field, of a string itself.

    Raises
    ------
    BadRecordError: there is none.
    """
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise BadRecordError(f"is not a JSON object: {str(record)[:80]!r}")
    if column not in record:
        raise BadRecordError(missing(column, sorted(record)))
    text = record[column]
    if text is not None and not isinstance(text, str):
        raise BadRecordError(f"has no text in field {column!r} but {str(text)[:80]!r}")
    return text or ""
