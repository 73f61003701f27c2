"""Labelled files -> examples, the only form in which fine-tuning sees them.

    train.tsv     a header line, columns separated by tabs, no quoting      sentence <tab> label
    train.jsonl   one JSON object a line                                    {"text": ..., "label": ...}

Every complaint names the file, the line and the value.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError

# Where several names mean the same, the first that a file has is taken.
TEXT_COLUMNS = ("text", "sentence", "tokens")
PAIR_COLUMNS = (
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
LABEL_COLUMNS = ("label", "intent")

Fields = dict[str, Any]


class Example(NamedTuple):
    """One labelled line. `label` is a name, a number or, for tagging, one tag a word."""

    line: int  # in its file, from 1
    text: str | list[str]  # a list holds words
    pair: str | None  # the second text of a pair
    label: Any


def read_texts(path: Path) -> list[Example]:
    """Single texts with a label name: columns text or sentence (or a list of tokens), and label or intent.

    Raises
    ------
    InputError: no such file, a missing column, a line of the wrong shape, or a file of pairs, whose second text
        would be dropped unnoticed.
    """
    return list(_texts(path, _name))


def read_pairs(path: Path) -> list[Example]:
    """Two texts with a label name: columns text_a and text_b (or the names in PAIR_COLUMNS), and label.

    Raises
    ------
    InputError: as `read_texts`.
    """
    return list(_pairs(path, _name))


def read_numbers(path: Path) -> list[Example]:
    """Single texts or pairs, whichever the columns say, with a number as label.

    Raises
    ------
    InputError: as `read_texts`, or a label that is not a finite number.
    """
    read = _pairs if _pair_columns(_first(path)) else _texts
    return list(read(path, _number))


def read_tags(path: Path) -> list[Example]:
    """Words with one tag each: JSONL with the fields tokens and tags.

    Raises
    ------
    InputError: as `read_texts`, or tokens and tags of different number.
    """
    examples = []
    for line, fields in _rows(path):
        words, tags = _field(path, line, fields, ("tokens",)), _field(path, line, fields, ("tags",))
        for name, value in (("tokens", words), ("tags", tags)):
            if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
                raise InputError(f"{path}, line {line}: {name} must be a list of strings, not {_short(value)}")
        if len(words) != len(tags):
            raise InputError(f"{path}, line {line}: {len(words)} tokens but {len(tags)} tags; each token needs one")
        examples.append(Example(line, words, None, tags))
    return examples


def _texts(path: Path, label_of: Any) -> Iterator[Example]:
    for line, fields in _rows(path):
        if columns := _pair_columns(fields):
            raise InputError(f"{path} holds pairs (columns {', '.join(columns)}): use --task pair")
        text = _field(path, line, fields, TEXT_COLUMNS)
        words = text if isinstance(text, list) else [text]
        yield Example(line, " ".join(_text(path, line, word) for word in words), None, label_of(path, line, fields))


def _pairs(path: Path, label_of: Any) -> Iterator[Example]:
    for line, fields in _rows(path):
        columns = _pair_columns(fields)
        if columns is None:
            wanted = " or ".join(f"{a}, {b}" for a, b in PAIR_COLUMNS)
            raise InputError(f"{path}, line {line}: no pair of texts (columns {wanted}); found {', '.join(fields)}")
        first, second = (_text(path, line, fields[column]) for column in columns)
        yield Example(line, first, second, label_of(path, line, fields))


def _pair_columns(fields: Fields) -> tuple[str, str] | None:
    return next((columns for columns in PAIR_COLUMNS if set(columns) <= set(fields)), None)


def _rows(path: Path) -> Iterator[tuple[int, Fields]]:
    """(line number, column -> value) of every line that is not blank; at least one."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix not in (".tsv", ".jsonl"):
        raise InputError(f"{path}: the name must end in .tsv (with a header line) or .jsonl")
    empty = True
    for row in _tsv_rows(path) if path.suffix == ".tsv" else _jsonl_rows(path):
        yield row
        empty = False
    if empty:
        raise InputError(f"{path} holds no examples" + (" below its header line" if path.suffix == ".tsv" else ""))


def _first(path: Path) -> Fields:
    return next(_rows(path))[1]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines end at a line feed only: texts may hold other marks that Python also takes for line ends."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from error
            if text.strip():
                yield number, text


def _tsv_rows(path: Path) -> Iterator[tuple[int, Fields]]:
    lines = _lines(path)
    header = next(lines, (0, ""))[1].split("\t")
    for number, line in lines:
        values = line.split("\t")
        if len(values) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(values)} columns where the header has {len(header)} "
                f"({', '.join(header)}); texts must not hold tabs: {_short(line)}"
            )
        yield number, dict(zip(header, values, strict=True))


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Fields]]:
    for number, line in _lines(path):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg}): {_short(line)}") from error
        if not isinstance(fields, dict):
            raise InputError(f"{path}, line {number}: not a JSON object: {_short(line)}")
        yield number, fields


def _field(path: Path, line: int, fields: Fields, names: tuple[str, ...]) -> Any:
    for name in names:
        if name in fields:
            return fields[name]
    raise InputError(f"{path}, line {line}: no column {' or '.join(names)}; found {', '.join(fields) or 'none'}")


def _text(path: Path, line: int, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{path}, line {line}: a text must be a string, not {_short(value)}")
    return value


def _name(path: Path, line: int, fields: Fields) -> str:
    label = _field(path, line, fields, LABEL_COLUMNS)
    if not isinstance(label, str | int) or isinstance(label, bool) or label == "":
        raise InputError(f"{path}, line {line}: a label must be a name or an integer, not {_short(label)}")
    return str(label)


def _number(path: Path, line: int, fields: Fields) -> float:
    label = _field(path, line, fields, LABEL_COLUMNS)
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{path}, line {line}: a label of --task regress must be a number, not {_short(label)}")
    return number


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
