"""What distinguishes one fine-tuning task from another: the fields of Task; table.py has one for each.

    examples (examples.py) -> encode -> features -> model -> logits -> score -> numbers

N examples, L tokens, labels: how many names there are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.json_types import JsonObject
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files.labelled import Example

Feature = dict[str, Any]  # input_ids, token_type_ids, attention_mask: [L]; labels: a number or [L]
Scores = dict[str, float]


@dataclass(frozen=True)
class Task:
    """All that distinguishes one task from another."""

    tell: Callable[[list[Example], list[Example]], JsonObject]  # training, evaluation -> more for results.json
    model: Any  # transformers' AutoModelFor... class
    encode: Callable[..., list[Feature]]  # of a tokenizer, examples, names of the labels, --seq_len
    collator: Callable[[PreTrainedTokenizerBase], Any]
    metric: str  # the score that results.json averages
    score: Callable[[np.ndarray, list[Feature], list[Example], list[str]], Scores]  # the first are the logits
    by_threshold: bool = False  # each label is given or not by itself
    outputs: tuple[str, ...] = ()  # names of the head's outputs where they are no labels
    # What a folder must know to answer goes into the config.json of the model that is kept.
    keep: Callable[[PreTrainedModel, Scores, list[Example], FinetuneConfig], None] | None = None
    # What is trained in the model's place: it trains the model within, and gives logits for each example.
    learner: Callable[[PreTrainedModel], Any] | None = None
    # A model that is more than an encoder under a head: how it is built, what it answers in the place of logits, and
    # what else lies in its folder.
    build: Callable[[FinetuneConfig], PreTrainedModel] | None = None
    answer: Callable[[PreTrainedModel, list[Example]], Any] | None = None
    save: Callable[[Path], None] | None = None
