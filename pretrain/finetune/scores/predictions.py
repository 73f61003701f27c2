"""predictions.jsonl: what was answered for each example of the file to measure on, one object a line.

    {"line": 2, "text": "a charming journey", "label": "pos", "answer": "pos", "answers": ["pos", "neg"]}

`answer` is that of the model that is kept, `answers` those of all seeds in their order. compare.py reads it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import write_whole
from data_prep.json_types import JsonObject
from pretrain.finetune.examples import PREDICTIONS as PREDICTIONS
from pretrain.finetune.files.choices import Options
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.tasks import question_answering as qa
from pretrain.finetune.tasks.choices import chosen
from pretrain.finetune.tasks.tags import guessed_tags
from pretrain.finetune.tasks.task import Feature

Answers = list[Any]  # [N]: a name, a list of names or tags, a number, a text


def answers_of(task: str, logits: Any, features: list[Feature], examples: list[Example], names: list[str]) -> Answers:
    """Return the answer to each example. logits: what the task has for it"""
    return _ANSWERS[task](logits, features, examples, names)


def write_predictions(path: Path, examples: list[Example], answers: Sequence[Answers]) -> None:
    """Write the file. answers: of each seed, that of the model that is kept first."""

    def line_of(example: Example, given: tuple[Any, ...]) -> bytes:
        pair = {} if example.pair is None else {"pair": example.pair}
        fields = {"line": example.line, "text": example.text, **pair, **_label_of(example)}
        return json.dumps({**fields, "answer": given[0], "answers": given}, ensure_ascii=False).encode() + b"\n"

    each = zip(*answers, strict=True)
    write_whole(path, [line_of(example, given) for example, given in zip(examples, each, strict=True)])


def _label_of(example: Example) -> JsonObject:
    """Return what is right: a label, all answers to a question, or the place of an option beside all of them."""
    if isinstance(example.label, Options):
        return {"options": example.label.texts, "label": example.label.answer}
    return {"label": getattr(example.label, "texts", example.label)}


def _classes(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Answers:
    return [names[index] for index in logits.argmax(-1)]


def _label_sets(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Answers:
    return [[name for name, logit in zip(names, row, strict=True) if logit >= 0] for row in logits]


def _numbers(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Answers:
    return [float(number) for number in logits[:, 0]]


def _contexts(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Answers:
    has_none = any(not example.label.texts for example in examples)
    texts = []
    for example, reading in zip(examples, qa.read_features(logits, features), strict=True):
        is_answered = reading.spans and not (has_none and reading.null_difference > 0)
        texts.append((example.pair or "")[reading.spans[0].start : reading.spans[0].end] if is_answered else "")
    return texts


def _places(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Answers:
    return list(chosen(logits, features))


def _texts(texts: list[str], features: list[Feature], examples: list[Example], names: list[str]) -> Answers:
    return texts  # as written, in the place of logits


_ANSWERS: dict[str, Callable[[Any, list[Feature], list[Example], list[str]], Answers]] = {
    "classify": _classes,
    "pair": _classes,
    "multilabel": _label_sets,
    "regress": _numbers,
    "tag": guessed_tags,
    "qa": _contexts,
    "choice": _places,
    "seq2seq": _texts,
}
