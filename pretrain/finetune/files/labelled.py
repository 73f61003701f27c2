"""Rows of a labelled file -> examples, the only form in which fine-tuning sees them.

    columns text, label                          a text and its label
    columns text_a, text_b, label                a pair of texts and its label
    columns tokens, tags (lists)                 words with one tag each
    columns text, label (a|b, a list)            a text and all its labels

Labels are names without white space around them. Every complaint names the file, the line and the value.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError, say
from pretrain.finetune.files.columns import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    SHOWN,
    TAG_COLUMNS,
    TEXT_COLUMNS,
    WORD_COLUMNS,
    known,
    pair_columns,
    tell_columns,
)
from pretrain.finetune.files.rows import Row, Rows, found, shorten, whole_characters
from pretrain.finetune.files.tables import read_rows

# Where words and tags are lists.
WORD_FILES = '.jsonl or .parquet ({"tokens": ["Anna", "left"], "tags": ["B-PER", "O"]} a line), or .conll'
MISSING = {
    "NA",
    "N/A",
    "#N/A",
    "<NA>",
    "NaN",
    "nan",
    "NULL",
    "null",
    "None",
    "?",
    "-",
}  # how programs write that a cell has no value
SEPARATORS = ("|", ";", ",")  # of several labels in a cell
MAX_NUMBER = 1e30  # its square, and a few of them summed, is still a number in float64

_SPACE = re.compile(r"[\s\u200b\ufeff]+")  # with two signs that nobody sees, left by editors and web pages
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.IGNORECASE)


class Example(NamedTuple):
    """One labelled row. `label` is a name, a number, one tag a word, or any number of names."""

    line: int  # in its file, from 1
    text: str | list[str]  # a list holds words
    pair: str | None  # the second text of a pair
    label: Any


def read_texts(path: Path, rows: Rows | None = None) -> list[Example]:
    """Return single texts with a label name: columns text or sentence (or a list of tokens), and label or intent.

    Raises
    ------
    InputError: as `tables.read_rows`; a missing column, an empty cell, or a file of pairs, whose second text would be
        dropped unnoticed.
    """
    return _tidied(path, [_text_of(path, line, fields, _name) for line, fields in _told_rows(path, rows)])


def read_pairs(path: Path, rows: Rows | None = None) -> list[Example]:
    """Return two texts with a label name: columns text_a and text_b (or the names in PAIR_COLUMNS), and label.

    Raises
    ------
    InputError: as `read_texts`.
    """
    return _tidied(path, [_pair_of(path, line, fields, _name) for line, fields in _told_rows(path, rows)])


def read_numbers(path: Path, rows: Rows | None = None) -> list[Example]:
    """Return single texts or pairs, whichever the columns say, with a number as label.

    Raises
    ------
    InputError: as `read_texts`, or a label that is not a finite number.
    """
    rows = _told_rows(path, rows)
    read = _pair_of if pair_columns(rows[0][1]) else _text_of
    return [read(path, line, fields, _number) for line, fields in rows]


def read_tags(path: Path, rows: Rows | None = None) -> list[Example]:
    """Return words with one tag each: columns tokens and tags, each a list, as of JSONL, Parquet and CoNLL.

    Raises
    ------
    InputError: as `read_texts`, or tokens and tags of different number.
    """
    rows = read_rows(path) if rows is None else rows
    tell_columns(path, rows[0][1], WORD_COLUMNS, TAG_COLUMNS)
    examples = []
    for line, fields in rows:
        words = _words(path, line, fields, WORD_COLUMNS)
        tags = _words(path, line, fields, TAG_COLUMNS)
        if len(words) != len(tags):
            raise InputError(f"{path}, line {line}: {len(words)} tokens but {len(tags)} tags; each token needs one")
        examples.append(Example(line, [_unicode(path, line, word) for word in words], None, tags))
    return _tidied(path, examples)


def read_label_sets(path: Path, rows: Rows | None = None) -> list[Example]:
    """Return single texts or pairs with any number of label names: a list, or a cell such as a|b or ["a", "b"].

    Raises
    ------
    InputError: as `read_texts`, or a label that is neither.
    """
    rows = _told_rows(path, rows)
    read = _pair_of if pair_columns(rows[0][1]) else _text_of
    examples = [read(path, line, fields, _name_or_names) for line, fields in rows]
    cells = [example.label for example in examples if isinstance(example.label, str)]
    # The first that any cell has; a name may hold the others.
    sign = next((sign for sign in SEPARATORS if any(sign in cell for cell in cells)), None)
    if sign:
        say(f"{path}: labels are separated by {sign!r}")
    return _tidied(path, [example._replace(label=_split(example.label, sign)) for example in examples])


def _name_or_names(path: Path, line: int, fields: Row) -> str | list[str]:
    label = _field(path, line, fields, LABEL_COLUMNS)
    if label is None or label == "":
        return []
    if isinstance(label, str) and label.lstrip().startswith("["):
        try:
            label = json.loads(label)
        except (ValueError, RecursionError) as error:
            hint = 'write ["a", "b"], or a|b'
            raise InputError(f"{path}, line {line}: labels {shorten(label)} are no JSON list; {hint}") from error
    if isinstance(label, list) and all(isinstance(name, str | int) and not isinstance(name, bool) for name in label):
        return [str(name) for name in label]
    return _name(path, line, fields)


def _split(label: str | list[str], sign: str | None) -> list[str]:
    if isinstance(label, list):
        return list(dict.fromkeys(label))
    names = [name.strip() for name in (label.split(sign) if sign else [label])]
    return [name for name in dict.fromkeys(names) if name]


def _words(path: Path, line: int, fields: Row, names: tuple[str, ...]) -> list[str]:
    value = _field(path, line, fields, names)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    hint = ""
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        hint = "; say which names the numbers stand for: --label_names O B-PER I-PER ..."
    elif isinstance(value, str):
        hint = f"; --task tag reads {WORD_FILES}"
    raise InputError(f"{path}, line {line}: {names[0]} must be a list of strings, not {shorten(value)}{hint}")


def _told_rows(path: Path, rows: Rows | None) -> Rows:
    """Return the rows of `path`; where several columns could be meant, the one that is read is said."""
    rows = read_rows(path) if rows is None else rows
    damaged = sum(any("\ufffd" in value for value in fields.values() if isinstance(value, str)) for _, fields in rows)
    if damaged:
        share = f"{damaged} of {len(rows)} rows ({damaged / len(rows):.1%})"
        say(f"{path}: {share} hold \ufffd (U+FFFD), a letter that was lost when the file was made; make it again")
    fields = rows[0][1]
    tell_columns(path, fields, *((LABEL_COLUMNS,) if pair_columns(fields) else (TEXT_COLUMNS, LABEL_COLUMNS)))
    return rows


def _text_of(path: Path, line: int, fields: Row, label_of: Callable[[Path, int, Row], Any]) -> Example:
    if columns := pair_columns(fields):
        raise InputError(
            f"{path} holds pairs (columns {', '.join(fields.written[c] for c in columns)}): use --task pair, "
            "or say which of them is the text: --text COLUMN"
        )
    text = _field(path, line, fields, TEXT_COLUMNS)
    words = text if isinstance(text, list) else [text]
    joined = " ".join(_unicode(path, line, word) for word in words)
    return Example(line, _filled(path, line, joined), None, label_of(path, line, fields))


def _pair_of(path: Path, line: int, fields: Row, label_of: Callable[[Path, int, Row], Any]) -> Example:
    columns = pair_columns(fields)
    if columns is None:
        wanted = " or ".join(f"{a}, {b}" for a, b in PAIR_COLUMNS[:SHOWN])
        raise InputError(
            f"{path}, line {line}: no pair of texts (columns {wanted} or the like); found {found(fields)}; "
            "any other: --text COLUMN --pair COLUMN"
        )
    first, second = (_filled(path, line, _unicode(path, line, fields[column])) for column in columns)
    return Example(line, first, second, label_of(path, line, fields))


def _field(path: Path, line: int, fields: Row, names: tuple[str, ...]) -> Any:
    for name in names:
        if name in fields:
            return fields[name]
    where, hint = f"{path}, line {line}", ""
    if path.suffix.lower() in (".csv", ".tsv"):
        where, hint = str(path), "; the first line must name the columns"
    if "tags" in fields and names == LABEL_COLUMNS:
        hint += "; words with a tag each are for --task tag"
    elif "tags" in names and "tags" not in fields and path.suffix.lower() in (".csv", ".tsv"):
        hint += f"; --task tag reads {WORD_FILES}"
    option = {TEXT_COLUMNS: "text", WORD_COLUMNS: "text"}.get(names, "label")
    raise InputError(f"{where}: no column {known(names)}; found {found(fields)}{hint}; any other: --{option} COLUMN")


def _unicode(path: Path, line: int, value: Any) -> str:
    where = f"{path}, line {line}"
    if not isinstance(value, str):
        raise InputError(f"{where}: a text must be a string, not {shorten(value)}")
    return whole_characters(where, value)


def _filled(path: Path, line: int, text: str) -> str:
    if not text.strip():
        raise InputError(f"{path}, line {line}: the text is empty; fill it in or remove the row")
    return text


def _name(path: Path, line: int, fields: Row) -> str:
    label = _field(path, line, fields, LABEL_COLUMNS)
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise InputError(f"{path}, line {line}: a label must be a name or an integer, not {shorten(label)}")
    return str(label)


def _number(path: Path, line: int, fields: Row) -> float:
    label = _field(path, line, fields, LABEL_COLUMNS)
    # float() alone would also read 1_000, True and nan.
    plain = _NUMBER.fullmatch(label) if isinstance(label, str) else isinstance(label, int | float)
    try:
        number = float(label) if plain and not isinstance(label, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        hint = "; write a point before decimals, and nothing else" if re.search(r"\d", str(label)) else ""
        raise InputError(f"{path}, line {line}: a label of --task regress must be a number, not {shorten(label)}{hint}")
    if abs(number) > MAX_NUMBER:
        raise InputError(f"{path}, line {line}: the label {number:g} is beyond {MAX_NUMBER:g}; use a larger unit")
    return number


def _tidied(path: Path, examples: list[Example]) -> list[Example]:
    """Return the examples with the white space around labels left out, and said: 'neg ' and 'neg' are one label."""
    before = [label for example in examples for label in labels_of(example)]
    tidy = {label: _SPACE.sub(" ", label).strip() for label in set(before)}
    for example in examples:
        for label in labels_of(example):
            if not tidy[label]:
                raise InputError(
                    f"{path}, line {example.line}: a label must be a name or an integer, not {shorten(label)}; "
                    "fill it in or remove the row"
                )
            _unicode(path, example.line, label)
    changed = sum(tidy[label] != label for label in before)
    if changed:
        share = f"{changed} of {len(before)} labels ({changed / len(before):.1%})"
        say(f"{path}: {share} held white space around or between words, which is left out")
    _tell_look_alikes(path, set(tidy.values()))
    are_tags = any(isinstance(example.text, list) for example in examples)  # of which - may be one
    missing = Counter(tidy[label] for label in before if tidy[label] in MISSING and not are_tags)
    for name, count in missing.items():
        share = f"{count} of {len(before)} labels ({count / len(before):.1%})"
        say(f"{path}: {share} are {name!r}, which mostly means that there is none; it is learnt as a label like others")
    return [
        example._replace(
            label=tidy[example.label] if isinstance(example.label, str) else [tidy[tag] for tag in example.label]
        )
        for example in examples
    ]


def _tell_look_alikes(path: Path, names: set[str]) -> None:
    """Say which labels differ only in case, in signs that nobody sees, in how Unicode or a spreadsheet (1, 1.0) writes
    them: they are learnt as different ones."""
    alike: dict[str | float, list[str]] = {}
    for name in sorted(names):
        seen = "".join(filter(str.isprintable, unicodedata.normalize("NFKC", name))).casefold()
        alike.setdefault(float(seen) if _NUMBER.fullmatch(seen) else seen, []).append(name)
    for group in alike.values():
        if len(group) > 1:
            say(f"{path}: labels {', '.join(map(repr, group))} are learnt as different ones, though they look alike")


def labels_of(example: Example) -> list[str]:
    """Return the label names of an example: one, or the tag of each word."""
    return [example.label] if isinstance(example.label, str) else list(example.label)
