"""Files of questions, contexts and answers -> examples.

    squad.json     SQuAD 1.1 and 2.0: {"data": [{"paragraphs": [{"context": ..., "qas": [...]}]}]}
    flat.jsonl     one question a line: id, question, context, answers; so in .parquet, or as a list in a .json

Answers are {"text": [...], "answer_start": [...]}, a list of {"text", "answer_start"}, or texts alone, beside which
`answer_start` may stand; in a cell of a table they may be written as JSON. A question whose context holds no answer has
none of them, or `is_impossible`. `answer_start` counts characters (not bytes) from 0; where it does not fit, the place
nearest to it is taken. The first answer that stands in the context is learnt; what stands nowhere is not.
"""

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError, say
from pretrain.finetune.files.columns import flag_of
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.files.rows import Rows, filled_text, shorten
from pretrain.finetune.files.tables import read_rows

STARTS = ("answer_start", "start")  # what the place of an answer is called beside its text
FORM = 'give {"text": ["..."], "answer_start": [0]}, with empty lists where the context has no answer'


class Answers(NamedTuple):
    """What annotators answered to one question: the label of its Example."""

    id: str
    texts: list[str]  # none: the context has no answer
    span: tuple[int, int] | None  # first character, and that after the last, of the first text in the context


class _Asked(NamedTuple):
    line: int  # of its file, or the number of the question in a .json
    where: str  # the same in words
    fields: dict[str, Any]


def read_questions(path: Path, rows: Rows | None = None) -> list[Example]:
    """Return questions (`text`) with their contexts (`pair`) and Answers (`label`).

    Raises
    ------
    InputError: as `tables.read_rows`; a field that is missing, empty or of another type.
    """
    document = _document(path) if rows is None and path.suffix.lower() == ".json" else None
    if document is None:
        asked = [_Asked(n, f"{path}, line {n}", row) for n, row in (read_rows(path) if rows is None else rows)]
    else:
        asked = list(_in_document(path, document))
    if not asked:
        raise InputError(f"{path} holds no questions")
    examples, misplaced = [], []
    for line, where, fields in asked:
        question, context = (_text(where, fields, name) for name in ("question", "context"))
        given = [] if _is_impossible(where, fields) else _answers(where, fields)
        texts = [text for text, _ in given]
        places = ((answer, place) for answer in given if (place := _nearest(context, *answer)) is not None)
        (text, start), span = next(places, (given[0] if given else ("", None), None))
        if given and (span is None or start not in (None, span[0])):
            misplaced.append((where, text, span))
        identity = fields.get("id")
        examples.append(
            Example(line, question, context, Answers(str(line if identity is None else identity), texts, span))
        )
    _tell_misplaced(path, misplaced, len(examples))
    return examples


def is_learnable(example: Example) -> bool:
    """Return whether a question teaches anything: its answer stands in the context, or it has none."""
    return example.label.span is not None or not example.label.texts


def no_labels(examples: list[Example], path: Path) -> list[str]:
    """Return nothing: places in a text have no names.

    Raises
    ------
    InputError: there is nothing to learn from.
    """
    if not any(map(is_learnable, examples)):
        raise InputError(f"{path}: no answer stands in its context: are these the contexts that were answered from?")
    return []


def _document(path: Path) -> Any:
    """Return the content of a JSON document; None of a file that has one object a line."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return None
        what = error.strerror if isinstance(error, OSError) else str(error) or "nested too deeply"
        raise InputError(f"{path} cannot be read as JSON: {what}; take the file from its source again") from error


def _in_document(path: Path, content: Any) -> Iterator[_Asked]:
    is_one = isinstance(content, dict) and "question" in content
    articles = [content] if is_one else content.get("data") if isinstance(content, dict) else content
    if not isinstance(articles, list):
        raise InputError(
            f'{path}: no JSON of SQuAD, which has a list of articles under "data", nor a list of questions'
        )
    number = 0
    for index, article in enumerate(articles):
        for fields in _flat(f"{path}, data[{index}]", article):
            number += 1
            yield _Asked(number, f"{path}, question {fields.get('id', number)}", fields)


def _flat(where: str, article: Any) -> Iterator[dict[str, Any]]:
    """Yield the questions of an article, each with its context; a flat one is yielded as it is."""
    if not isinstance(article, dict):
        raise InputError(f"{where} is not an object: {shorten(article)}")
    if "paragraphs" not in article:
        yield article
        return
    for number, paragraph in enumerate(_objects(where, article, "paragraphs")):
        for question in _objects(f"{where}.paragraphs[{number}]", paragraph, "qas"):
            yield {**question, "context": paragraph.get("context")}


def _objects(where: str, parent: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = parent.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{where}.{name} must be a list of objects, not {shorten(value)}")
    return value


def _text(where: str, fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        found = shorten(", ".join(fields), 120)[1:-1]
        raise InputError(f"{where}: no field {name}; --task qa needs question, context and answers; found {found}")
    return filled_text(where, name, fields[name])


def _answers(where: str, fields: dict[str, Any]) -> list[tuple[str, int | None]]:
    """Return (text, answer_start or None) of every answer, whichever of the usual forms they have."""
    if "answers" not in fields and "answer" not in fields:
        _text(where, fields, "answers")
    value = _unpacked(fields["answers"] if "answers" in fields else fields["answer"])
    if isinstance(value, dict):
        texts, starts = _listed(value.get("text")), _listed(_start_in(value))
    else:
        items = _listed(value)
        texts = [item.get("text") if isinstance(item, dict) else item for item in items]
        starts = [_start_in(item) if isinstance(item, dict) else None for item in items]
        if all(start is None for start in starts):
            starts = list(map(_of_cell, _listed(_unpacked(fields.get("answer_start")))))
    starts = list(map(_whole_number, starts)) if texts and starts else [None] * len(texts)
    whole = all(start is None or (isinstance(start, int) and not isinstance(start, bool)) for start in starts)
    if any(isinstance(text, str) and text.lstrip().startswith(("{'", '{"')) for text in texts):
        whole = False  # a cell that holds what is neither JSON nor Python
    if not whole or len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: answers {shorten(value)} are none that are read; {FORM}")
    return [(text, start) for text, start in zip(texts, starts, strict=True) if text.strip()]


def _is_impossible(where: str, fields: dict[str, Any]) -> bool:
    value = fields.get("is_impossible")
    if value in (None, ""):
        return False
    flag = flag_of(value)
    if flag is None:
        raise InputError(f"{where}: is_impossible must be true or false, not {shorten(value)}")
    return flag


def _unpacked(value: Any) -> Any:
    """Return what a cell of a table holds as JSON, or as Python writes it; of any other text the text."""
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "["):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, dict) or found == [] or all(isinstance(item, str | dict) for item in found):
            return found
    return value


def _start_in(answer: dict[str, Any]) -> Any:
    return next((answer[name] for name in STARTS if name in answer), None)


def _whole_number(value: Any) -> Any:
    """Return 7 for 7.0, and None for the nan that pandas has where there is no number."""
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value


def _of_cell(value: Any) -> Any:
    """Return the number in a cell of a table, None of an empty one."""
    if not isinstance(value, str):
        return value
    return int(value) if value.strip().isdecimal() else value.strip() or None


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _nearest(context: str, text: str, start: int | None) -> tuple[int, int] | None:
    """Return where `text` stands in `context`, nearest to `start` or first: (5, 8) of "308" in "just 308"."""
    wanted = max(start or 0, 0)
    after = context.find(text, wanted)
    before = context.rfind(text, 0, wanted + len(text))
    places = [place for place in (before, after) if place >= 0]
    if not places:
        return None
    place = min(places, key=lambda place: abs(place - wanted))
    return place, place + len(text)


def _tell_misplaced(path: Path, misplaced: list[tuple[str, str, tuple[int, int] | None]], count: int) -> None:
    """Say how many answers are not where `answer_start` says, with an example."""
    if not misplaced:
        return
    where, text, _ = misplaced[0]
    nowhere = sum(span is None for *_, span in misplaced)
    say(
        f"{path}: {len(misplaced)} of {count} answers are not where answer_start says, such as {shorten(text)} "
        f"({where.removeprefix(f'{path}, ')}): {len(misplaced) - nowhere} are taken where they stand, "
        f"{nowhere} stand nowhere in the context and are not learnt from"
    )
