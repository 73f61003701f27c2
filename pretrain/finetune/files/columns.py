"""Which columns of a labelled file hold the text, the second text of a pair, the label: by names that people give them,
or as the command line says.

    choose(path, rows, Choice(text="Betreff"))     the same rows, with a column "text" in the place of Betreff
"""

from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError, say
from pretrain.finetune.files.features import numbered
from pretrain.finetune.files.rows import Row, Rows, found, shorten

# Where several names mean the same, the first that a file has is taken.
TEXT_COLUMNS = (
    *("text", "sentence", "tokens", "content", "body", "review", "comment", "comment_text", "document", "message"),
    *("tweet", "utterance", "query", "satz", "inhalt", "kommentar", "nachricht", "beitrag", "beschreibung"),
)
PAIR_COLUMNS = (
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("query", "passage"),
    ("satz1", "satz2"),
    ("text_1", "text_2"),
    ("frage", "satz"),
    ("frage", "antwort"),
)
LABEL_COLUMNS = (
    *("label", "intent", "labels", "class", "category", "target", "tag", "topic", "sentiment", "polarity"),
    *("klasse", "kategorie", "thema", "stimmung", "bewertung", "etikett"),
    *("score", "similarity", "rating", "stars", "grade", "note", "value", "wert", "y"),
)
WORD_COLUMNS = ("tokens", "words", "wörter", "woerter")
TAG_COLUMNS = ("tags", "ner_tags", "labels", "ner", "pos_tags", "pos")
SHOWN = 3  # names in a message


class Choice(NamedTuple):
    """What the command line says of the columns."""

    text: str | None = None
    pair: str | None = None
    labels: tuple[str, ...] = ()  # several: one column for each label of a text
    label_names: tuple[str, ...] = ()


def choose(path: Path, rows: Rows, choice: Choice, *, by_word: bool) -> Rows:
    """Return the rows with the chosen columns under the names that are read first, and none beside them.

    by_word: texts are words, labels a tag for each

    Raises
    ------
    InputError: no such column; a number that no label name is given for.
    """
    label = "tags" if by_word else "label"
    label_column = choice.labels[0] if len(choice.labels) == 1 else None
    text = "text_a" if choice.pair else "tokens" if by_word else "text"
    wanted = {
        ours: theirs
        for ours, theirs in ((text, choice.text), ("text_b", choice.pair), (label, label_column))
        if theirs is not None
    }
    hidden: set[str] = set()
    if choice.text:
        hidden |= {*TEXT_COLUMNS, *WORD_COLUMNS, *(name for pair in PAIR_COLUMNS for name in pair)}
    if label_column:
        hidden |= {*LABEL_COLUMNS, *TAG_COLUMNS}
    if wanted:
        rows = [(line, _renamed(path, line, row, wanted, hidden)) for line, row in rows]
    if choice.label_names:
        candidates = TAG_COLUMNS if by_word else LABEL_COLUMNS
        column = next((name for name in candidates if name in rows[0][1]), None)
        rows = rows if column is None else numbered(path, rows, column, choice.label_names)
    return rows


def gather_flags(path: Path, rows: Rows, columns: tuple[str, ...]) -> Rows:
    """Return the rows with the names of the columns that say 1, or true, as the list "label".

    columns: one a label; fewer than two: all that hold nothing else than 0 and 1, unless there is a column of labels,
        as said

    Raises
    ------
    InputError: no such column, or another value in it.
    """
    names = [name.strip().lower() for name in columns]
    if len(columns) < 2:
        first = rows[0][1]
        if columns or any(name in first for name in LABEL_COLUMNS):
            return rows
        names = [name for name in first if name and all(flag_of(row.get(name)) is not None for _, row in rows)]
        if len(names) < 2:
            return rows
        listed = ", ".join(first.written[name] for name in names)
        say(f"{path}: columns of 0 and 1 are read as labels: {shorten(listed, 120)}")
    gathered = []
    for line, row in rows:
        label = []
        for column, name in zip(columns if len(columns) > 1 else names, names, strict=True):
            if name not in row:
                raise InputError(f"{path}, line {line}: no column {column}; found {found(row)}")
            flag = flag_of(row[name])
            if flag is None:
                raise InputError(f"{path}, line {line}: {row.written[name]} must be 0 or 1, not {shorten(row[name])}")
            label += [row.written[name]] * flag
        values = {key: value for key, value in row.items() if key not in names and key not in LABEL_COLUMNS}
        written = {key: row.written[key] for key in values}
        values["label"] = label
        gathered.append((line, Row(values, values.values(), written | {"label": ", ".join(names)})))
    return gathered


def flag_of(value: Any) -> bool | None:
    """Return whether a cell says yes; None where it says something else."""
    word = str(value).strip().lower()
    return True if word in ("1", "1.0", "true") else False if word in ("0", "0.0", "false") else None


def _renamed(path: Path, line: int, row: Row, wanted: dict[str, str], hidden: set[str]) -> Row:
    for theirs in wanted.values():
        if theirs.strip().lower() not in row:
            raise InputError(f"{path}, line {line}: no column {theirs}; found {found(row)}")
    taken = {*wanted, *(theirs.strip().lower() for theirs in wanted.values())}  # else one named a were an option, too
    kept = {name: value for name, value in row.items() if name not in hidden and name not in taken}
    values = {**kept, **{ours: row[theirs.strip().lower()] for ours, theirs in wanted.items()}}
    written = {name: row.written[name] for name in kept}
    return Row(values, values.values(), written | {ours: theirs.strip() for ours, theirs in wanted.items()})


def pair_columns(fields: Row) -> tuple[str, str] | None:
    """Return the columns of a pair of texts, where a row has any."""
    return next((columns for columns in PAIR_COLUMNS if set(columns) <= set(fields)), None)


def tell_columns(path: Path, fields: Row, *candidates: tuple[str, ...]) -> None:
    """Say which column is read where several could be meant, or where its name is not the plain one.

    fields: the first row
    candidates: the names of each thing that is read, the plain one first
    """
    for names in candidates:
        present = [fields.written[name] for name in names if name in fields]
        if len(present) > 1:
            say(f"{path}: column {present[0]} is read, {', '.join(present[1:])} is not")
        elif present and not any(name in fields for name in names[:SHOWN]):
            say(f"{path}: column {present[0]} is read as the {names[0]}")


def known(names: tuple[str, ...]) -> str:
    """Return the first names of a column, for a message."""
    return " or ".join(names[:SHOWN]) + (" or the like" if len(names) > SHOWN else "")
