"""Files of options, one of which is right -> examples.

    SWAG              sent1, sent2, ending0 to ending3, label; or startphrase in the place of the first two
    RACE              article (or context, passage), question, options (a list), answer
    COPA              premise, question (cause, effect), choice1, choice2, label
    CommonsenseQA     question, choices ({label, text}), answerKey; or question: {stem, choices}
    tables            question, A, B, C, D, answer; question, option1, option2, ..., label

A right option is named by its letter, its number from 0 on, its column, by the label that it has in choices, or, in all
rows of a file, by its text. Rows may have any number of options; of columns the last ones are empty then.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import takewhile, zip_longest
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

from data_prep.cli import InputError, say
from pretrain.finetune.files.columns import known, tell_columns
from pretrain.finetune.files.labelled import MISSING, Example
from pretrain.finetune.files.rows import Row, Rows, filled_text, found, shorten
from pretrain.finetune.files.tables import read_rows

# What stands before the options: a text and what is asked of it, or how it goes on; or one text alone.
CONTEXT_COLUMNS = ("article", "context", "passage", "premise", "story", "document")
STEM_COLUMNS = (
    *(("text_a", "text_b"), ("text", "question"), ("text",)),  # what --text and --pair name
    ("sent1", "sent2"),
    *((name, "question") for name in CONTEXT_COLUMNS),
    ("kontext", "frage"),
    *((name,) for name in (*CONTEXT_COLUMNS, "startphrase", "ctx", "question", "question_stem", "stem", "goal")),
    *((name,) for name in ("sentence", "frage")),
)
OPTION_LISTS = ("options", "choices", "endings", "choice", "candidates", "answers", "optionen", "antworten")
ANSWER_COLUMNS = ("label", "answer", "answerkey", "answer_key", "correct", "correct_answer", "gold", "antwort")
FEW_ROWS = 8  # of two options none is the first in one file of 256 this long
COPA = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}  # as its authors ask

OF_A_ROW = "abcdefgh"  # letters that mean an option beside a and b; n, x, y and the like may be anything

_OPTION = re.compile(r"(?P<family>ending|choice|option|answer|sol)[ _-]?(?P<sign>\d{1,2}|[a-z])|[a-z]")


class Options(NamedTuple):
    """The options of one row: the label of its Example."""

    texts: tuple[str, ...]
    answer: int | None  # the place of the right one, from 0 on; None where nobody says


def asked_of(example: Example) -> tuple[str | None, ...]:
    """Return what an example asks: its text, that of a pair, and the options, since one question may stand above all.
    Two examples that ask the same are not different ones to learn from and to measure on."""
    text = example.text if isinstance(example.text, str) else " ".join(example.text)
    options = example.label.texts if isinstance(example.label, Options) else ()
    return text, example.pair, *options


def read_choices(path: Path, rows: Rows | None = None, *, answered: bool = True) -> list[Example]:
    """Return texts (`text`), what is asked of them (`pair`, or None) and Options (`label`).

    answered: each row says which option is right; else nobody looks

    Raises
    ------
    InputError: as `tables.read_rows`; columns that cannot be told, fewer than two options, an answer that is none of
        them, a text that is empty or none.
    """
    rows = [(line, _unfolded(row)) for line, row in (read_rows(path) if rows is None else rows)]
    stem = _stem_columns(path, rows[0][1], can_be_named=answered)
    if answered:
        tell_columns(path, rows[0][1], ANSWER_COLUMNS)
    are_texts = answered and _are_texts(path, rows)
    examples, by_place = [], []
    for line, row in rows:
        where = f"{path}, line {line}"
        text, *asked = (filled_text(where, name, row.get(name)) for name in stem)
        question = in_full(asked[0]) if asked else None
        given, names = _given_options(where, row)
        texts = tuple(filled_text(where, f"option {number}", option) for number, option in enumerate(given))
        if len(texts) < 2:
            what = f"one option alone, {shorten(texts[0])}" if texts else "no options"
            raise InputError(f"{where}: {what}; give two or more, or remove the row")
        names = _by_text(texts) if are_texts else names or _names(len(texts))
        sign = _answer_sign(where, row) if answered else None
        options = Options(texts, None if sign is None else _place(where, row, sign, names))
        if sign is not None and "0" in names and not are_texts:
            by_place.append(sign)
        examples.append(Example(line, text, question, options))
    if by_place:
        _check_counting(path, by_place)
    if missing := sum(not MISSING.isdisjoint(example.label.texts) for example in examples):
        share = f"{missing} of {len(examples)} rows ({missing / len(examples):.1%})"
        say(
            f"{path}: {share} have an option such as NaN, which mostly means that there is none; it is read like others"
        )
    counts = sorted({len(example.label.texts) for example in examples})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    named = " and ".join(rows[0][1].written.get(name, name) for name in stem)
    say(f"{path}: {named} {'are' if len(stem) > 1 else 'is'} read, with {many} options a row")
    return examples


def _are_texts(path: Path, rows: Rows) -> bool:
    """Return whether each row names its right option by the text.

    Raises
    ------
    InputError: each does, but each could as well name one by its number or letter, and it would be another.
    """
    other = ""  # a row in which the text is no name, or that of another option
    is_sure = False
    for line, row in rows:
        where = f"{path}, line {line}"
        given, names = _given_options(where, row)
        answer = row[_answer_column(where, row)]
        by_text = _by_text([option for option in given if isinstance(option, str)])
        if not isinstance(answer, str) or _sign(answer) not in by_text or (names and "0" not in names):
            return False
        by_name, place = (names or _names(len(given))).get(_sign(answer)), by_text[_sign(answer)]
        is_sure = is_sure or by_name is None
        if by_name not in (None, place):
            other = other or f"{where}: {answer!r} is the text of option {place} and a name of option {by_name}"
    if other and not is_sure:
        raise InputError(f"{other}; name right options by their letters (a, b, ...), as none has these for its text")
    return is_sure


def _by_text(texts: Sequence[str]) -> dict[str, int]:
    return {_sign(text): place for place, text in reversed([*enumerate(texts)])}


def in_full(question: str) -> str:
    """Return what is asked of a text, which COPA says in one word."""
    return COPA.get(question.strip().lower(), question)


def _check_counting(path: Path, signs: list[str]) -> None:
    """Refuse numbers that seem to count from 1, as WinoGrande's do, where each would be read as the option behind it.

    Raises
    ------
    InputError: 8 rows or more, and no answer is 0; of fewer it is said.
    """
    if "0" in signs or not all(map(str.isdecimal, signs)):
        return
    found = f"{path}: no row has option 0 as its answer, and numbers of options count from 0 on"
    if len(signs) >= FEW_ROWS:
        raise InputError(f"{found}; where these count from 1, subtract one, or name options by letters (a, b, ...)")
    say(f"{found}: they are taken so")


def _unfolded(row: Row) -> Row:
    """Return {"question": {"stem": ..., "choices": ...}} as columns question and choices."""
    inner = row.get("question")
    if not isinstance(inner, dict):
        return row
    values = {**row, "question": inner.get("stem"), "choices": inner.get("choices")}
    return Row(values, values.values(), row.written | {"question": "question.stem", "choices": "question.choices"})


def _stem_columns(path: Path, row: Row, *, can_be_named: bool) -> tuple[str, ...]:
    """Return the columns of what is asked. can_be_named: the command line can name others"""
    for columns in STEM_COLUMNS:
        if set(columns) <= set(row):
            return columns
    by_option = "say so: --text COLUMN, and --pair COLUMN for a question about it"
    remedy = by_option if can_be_named else "call it text, and question what is asked about it"
    raise InputError(
        f"{path}: no column of what is asked (known: question; article, question; sent1, sent2; premise; ...); "
        f"{remedy}; found {found(row)}"
    )


@cache
def _option_columns(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the columns that hold an option each, such as ending0, ending1, ...: two or more without a gap; and those
    that seem to be others of them, behind one."""
    families: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        if match := _OPTION.fullmatch(name):
            families[match["family"] or ""][match["sign"] or name] = name
    for family, columns in families.items():
        for signs in (ascii_lowercase, range(100), range(1, 100)):
            present = list(takewhile(columns.__contains__, map(str, signs)))
            if len(present) > 1:
                more = [name for sign, name in columns.items() if sign not in present and (family or sign in OF_A_ROW)]
                return [columns[sign] for sign in present], more
    return [], []


def _given_options(where: str, row: Row) -> tuple[list[Any], dict[str, int]]:
    """Return the options of a row, whichever of the usual forms they have, and by which names an answer calls each;
    no names where they have none of their own."""
    columns, more = _option_columns(tuple(row))
    if more:
        before, behind = (", ".join(row.written.get(name, name) for name in some) for some in (columns, more))
        raise InputError(f"{where}: options {before}, and then {behind}: give their columns names without a gap")
    if columns:
        texts = [row[name] for name in columns]
        while texts and texts[-1] in (None, ""):
            texts.pop()
        return texts, _names(len(texts)) | {name: place for place, name in enumerate(columns[: len(texts)])}
    name = next((name for name in OPTION_LISTS if name in row), None)
    if name is None:
        raise InputError(
            f"{where}: no options: give a list ({known(OPTION_LISTS)}), or columns such as ending0, ending1; "
            f"found {found(row)}"
        )
    value = _parsed(row[name])
    if isinstance(value, dict) and all(isinstance(value.get(key), list) for key in ("label", "text")):
        value = [{"label": label, "text": text} for label, text in zip_longest(value["label"], value["text"])]
    if not isinstance(value, list):
        raise InputError(
            f'{where}: {name} {shorten(row[name])} are no options that are read; give ["...", "..."], or columns such '
            "as ending0, ending1"
        )
    if value and all(isinstance(option, dict) for option in value):
        labels = {_sign(option["label"]): place for place, option in enumerate(value) if "label" in option}
        if len(labels) not in (0, len(value)):
            raise InputError(f"{where}: {name}: each option needs a label of its own; found {', '.join(labels)}")
        return [option.get("text") for option in value], labels
    return value, {}


def _parsed(value: Any) -> Any:
    """Return what a cell of a table holds as JSON, or the cell."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _names(count: int) -> dict[str, int]:
    """Return what so many options are called by their places: 0, 1, ... and a, b, ..."""
    return {str(place): place for place in range(count)} | dict(zip(ascii_lowercase, range(count), strict=False))


def _sign(value: Any) -> str:
    """Return a cell as names are compared: "A" is "a", and a number that pandas made 1.0 of is "1"."""
    return str(value).strip().lower().removesuffix(".0")


def _answer_column(where: str, row: Row) -> str:
    column = next((name for name in ANSWER_COLUMNS if name in row), None)
    if column is None:
        raise InputError(
            f"{where}: no column {known(ANSWER_COLUMNS)} that says which option is right; found {found(row)}; "
            "any other: --label COLUMN"
        )
    return column


def _answer_sign(where: str, row: Row) -> str:
    """Return what a row calls the option that is right."""
    return _sign(row[_answer_column(where, row)])


def _place(where: str, row: Row, sign: str, names: dict[str, int]) -> int:
    """Return the place of the option that is right."""
    if sign not in names:
        column = _answer_column(where, row)
        called = ", ".join(names) + (" (numbers count from 0 on)" if "0" in names and sign.isdecimal() else "")
        raise InputError(
            f"{where}: {row.written.get(column, column)} {shorten(row[column])} names no option; these are called "
            f"{called}; correct it, or remove the row"
        )
    return names[sign]
