"""A labelled file of any column names -> what fine-tuning reads, with a part held back to measure on.

    found = look_at(Path("reviews.csv"))        the kind of task, which columns are meant, and why
    write_split(found, None, Path("out/task"))  out/task/train.jsonl and eval.jsonl, as pretrain.finetune reads them

The columns are those that pretrain.finetune knows by name; else the label is the column with few different values, and
the text the one with the longest cells. Several columns of 0 and 1, or of true and false, where nothing else could be
the label, are labels of which a text has any number. A fifth of each label is held back, chosen by a hash of the text:
the same file gives the same parts in whatever order its rows stand, and rows of one text stay together.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError
from data_prep.files import write_whole
from pretrain.finetune.examples import TASK_FILES, check_labels
from pretrain.finetune.files.columns import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    TAG_COLUMNS,
    TEXT_COLUMNS,
    WORD_COLUMNS,
    flag_of,
    gather_flags,
)
from pretrain.finetune.files.labelled import SEPARATORS
from pretrain.finetune.files.rows import Row
from pretrain.finetune.files.tables import read_rows
from pretrain.finetune.learning.held_back import hold_back

HELD_BACK, MOST_HELD_BACK = 0.2, 2000  # share of the rows, and rows
LEAST = 10  # rows of which a part can be held back
FEW = 50  # different values of a column that holds labels by name
SHOWN = 5  # labels that are named
GRADES = 12  # whole numbers up to so many different ones are names of classes
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.IGNORECASE)


class Found(NamedTuple):
    """A labelled file that is understood."""

    path: Path
    kind: str  # what --task of pretrain.finetune says
    columns: dict[str, str]  # column there -> column of the file, as it is written there
    rows: list[Row]  # under the names of pretrain.finetune
    labels: Counter[str]  # rows a label; empty for numbers and tags
    lines: list[int]  # of the file, for each row
    flags: tuple[str, ...] = ()  # columns of the file that are a label each, 0 or 1

    @property
    def words(self) -> str:
        """Return what was understood, in a line."""
        what = {
            "classify": "one of {n} labels a text", "pair": "one of {n} labels a pair of texts",
            "multilabel": "any of {n} labels a text", "regress": "a number a text", "tag": "one tag a word",
        }[self.kind].format(n=len(self.labels))  # fmt: skip
        if self.flags:
            what += f", a column of 0 and 1 for each: {', '.join(self.flags)}"
        elif self.kind in ("classify", "pair") and len(self.labels) <= SHOWN:
            what += f": {', '.join(sorted(self.labels))}"
        renamed = ", ".join(f"{theirs} as {ours}" for ours, theirs in self.columns.items() if ours != theirs)
        return f"{self.path}: {len(self.rows):,} rows, {what}" + (f" (column {renamed})" if renamed else "")


def look_at(path: Path, like: Found | None = None) -> Found:
    """Read a labelled file and find out what it asks for. `like`: the file that it belongs to, whose columns it has.

    Raises
    ------
    InputError: it cannot be read, or no text or no label is found in it.
    """
    read = read_rows(path)
    flags = like.flags if like else _flag_columns([fields for _, fields in read])
    if flags:
        read = gather_flags(path, read, flags)
    lines, rows = [line for line, _ in read], [fields for _, fields in read]
    written = rows[0].written | ({"label": "label"} if flags else {})
    columns = like.columns if like else None
    if columns is None:
        columns = {ours: written[theirs] for ours, theirs in _columns(path, rows).items()}
    theirs = [name.lower() for name in columns.values()]
    if missing := [name for name in columns.values() if any(name.lower() not in row for row in rows)]:
        raise InputError(f"{path}: no column {missing[0]} in all rows; found {_found(rows)}")
    taken = [Row(columns, (_plain(row[name]) for name in theirs)) for row in rows]
    if "tags" in columns:
        return Found(path, "tag", columns, taken, Counter(), lines)
    values = [row["label"] for row in taken]
    if (sets := _label_sets(values)) is not None:
        taken = [Row(row, (row | {"label": names}).values()) for row, names in zip(taken, sets, strict=True)]
        counts = Counter(name for names in sets for name in names)
        return Found(path, "multilabel", columns, taken, counts, lines, flags)
    if _are_measured(values):
        return Found(path, "regress", columns, taken, Counter(), lines)
    return Found(path, "pair" if "text_b" in columns else "classify", columns, taken, Counter(map(str, values)), lines)


def check(found: Found, eval_file: Found | None) -> None:
    """Refuse what fine-tuning would, which comes hours later.

    Raises
    ------
    InputError: as there: an empty cell, one label alone, a label that only the file to measure on has.
    """
    file = TASK_FILES[found.kind]
    examples = file.read(found.path, list(zip(found.lines, found.rows, strict=True)))
    names = file.label_names(examples, found.path)
    if found.kind == "multilabel":  # of what is left to learn from, too, a part is held back
        hold_back(examples[: len(examples) if eval_file else math.ceil(len(examples) * (1 - HELD_BACK))], found.path)
    if eval_file is None:
        return
    asked = file.read(eval_file.path, list(zip(eval_file.lines, eval_file.rows, strict=True)))
    if names:
        check_labels(eval_file.path, asked, names, found.path)


def _found(rows: list[Row]) -> str:
    return ", ".join(rows[0].written.values())


def _columns(path: Path, rows: list[Row]) -> dict[str, str]:
    names = [name for name in rows[0] if all(name in row for row in rows)]
    lists = [name for name in names if isinstance(rows[0][name], list)]
    words, tags = (next((name for name in known if name in lists), None) for known in (WORD_COLUMNS, TAG_COLUMNS))
    if words and tags:
        return {"tokens": words, "tags": tags}
    label = _label_column(path, rows, names)
    others = [name for name in names if name != label]
    for first, second in PAIR_COLUMNS:
        if first in others and second in others:
            return {"text_a": first, "text_b": second, "label": label}
    text = next((name for name in TEXT_COLUMNS if name in others), None)
    if text is None:
        text = max(others, key=lambda name: sum(len(str(row[name])) for row in rows), default=None)
    if text is None or not any(re.search(r"[^\W\d]", str(row[text])) for row in rows):
        raise InputError(f"{path}: no column of text beside {rows[0].written[label]}; found {_found(rows)}")
    return {"text": text, "label": label}


def _flag_columns(rows: list[Row]) -> tuple[str, ...]:
    """Return the columns of 0 and 1, or of true and false, where there are several and nothing else could be the label:
    "comment,toxic,obscene" has two."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    if any(name in LABEL_COLUMNS + TAG_COLUMNS for name in names):
        return ()
    fitting = _fitting(rows, names)
    are_flags = all(flag_of(row[name]) is not None for name in fitting for row in rows)
    return tuple(rows[0].written[name] for name in fitting) if are_flags and len(fitting) > 1 else ()


def _fitting(rows: list[Row], names: list[str]) -> list[str]:
    """Return the columns of few different values, which may be labels."""
    few = {name: len({str(row[name]) for row in rows}) for name in names}
    return [name for name in names if 2 <= few[name] <= min(FEW, len(rows) // 2)]


def _plain(value: Any) -> Any:
    """Return a cell as a label is written: true of JSON and Parquet is a name, and 1.0, as pandas has it, the number
    1."""
    if isinstance(value, bool):
        return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _label_column(path: Path, rows: list[Row], names: list[str]) -> str:
    for name in LABEL_COLUMNS:
        if name in names:
            return name
    fitting = _fitting(rows, names)
    if len(fitting) != 1:
        several = f"{', '.join(rows[0].written[name] for name in fitting)} could all be" if fitting else "none is"
        raise InputError(f"{path}: which column is the label? {several} it (columns {_found(rows)}); call it label")
    return fitting[0]


def _are_measured(values: list[Any]) -> bool:
    """Return whether labels are numbers to be foretold, and not names of classes."""
    if not all(isinstance(value, int | float | str) and _NUMBER.fullmatch(str(value)) for value in values):
        return False
    numbers = {float(value) for value in values}
    return len(numbers) > GRADES or not all(map(float.is_integer, numbers))


def _label_sets(values: list[Any]) -> list[list[str]] | None:
    """Return the labels of each row where rows have any number of them: lists, or cells such as a|b and a;b.

    A sign separates labels where that makes fewer of them: a, b and a|b are two, "Paris; Texas" and "Rome; Italy" four.
    """
    if all(isinstance(value, list) and all(isinstance(name, str) for name in value) for value in values):
        return values
    if not all(isinstance(value, str) for value in values):
        return None
    for sign in SEPARATORS[:2]:
        sets = [[name.strip() for name in value.split(sign) if name.strip()] for value in values]
        if any(len(names) > 1 for names in sets) and len({n for names in sets for n in names}) < len(set(values)):
            return sets
    return None


def write_split(found: Found, eval_file: Found | None, folder: Path) -> str:
    """Write train.jsonl and eval.jsonl into `folder`; what was done, in words.

    eval_file: the file to measure on, where there is one

    Raises
    ------
    InputError: too few rows to hold any back.
    """
    if eval_file is not None:
        learnt, asked = found.rows, eval_file.rows
        told = f"{len(learnt):,} rows to learn from, {len(asked):,} of {eval_file.path} to measure on"
    else:
        learnt, asked = split(found)
        each = "a fifth of each label" if _by_label(found) and len(asked) < MOST_HELD_BACK else "a part of each kind"
        told = (
            f"{len(asked):,} of {len(found.rows):,} rows of {found.path} are held back to measure on ({each}, chosen "
            "by a hash of the text)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", learnt), ("eval", asked)):
        lines = [json.dumps(row, ensure_ascii=False, default=str).encode(errors="replace") + b"\n" for row in rows]
        write_whole(folder / f"{name}.jsonl", lines)
    return told


def split(found: Found) -> tuple[list[Row], list[Row]]:
    """Return (rows to learn from, rows to measure on), each in the order of the file.

    Raises
    ------
    InputError: too few rows.
    """
    if len(found.rows) < LEAST:
        raise InputError(
            f"{found.path} has {len(found.rows)} rows, too few to hold a part back; give a file to measure on: "
            "--eval FILE"
        )
    by_text: dict[str, str] = {}  # the digest of a text -> its label; of one that stands there twice, the first
    for row in found.rows:
        by_text.setdefault(_digest(row), str(row.get("label", "")) if _by_label(found) else "")
    by_label: dict[str, list[str]] = {}
    for digest, label in by_text.items():
        by_label.setdefault(label, []).append(digest)
    share = min(HELD_BACK, MOST_HELD_BACK / len(by_text))
    held = {digest for texts in by_label.values() for digest in sorted(texts)[: math.floor(len(texts) * share)]}
    if not held:
        raise InputError(f"{found.path} has too few rows a label to hold any back; give --eval FILE")
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in found.rows:
        sides[_digest(row) in held].append(row)
    return sides


def _by_label(found: Found) -> bool:
    """Return whether each row has one label, of which some can be held back."""
    return found.kind in ("classify", "pair")


def _digest(row: Row) -> str:
    texts = [row[name] for name in ("text", "text_a", "text_b", "tokens") if name in row]
    return hashlib.sha256(json.dumps(texts, default=str).encode()).hexdigest()


def fingerprint(paths: Iterable[Path]) -> str:
    """Return a hash of the bytes of labelled files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes() if path.is_file() else b"")
        digest.update(b"\0")
    return digest.hexdigest()
