"""--task qa: learn where in a context the answer to a question stands, and measure as SQuAD's scripts do.

examples (squad.py) -> windows (inference/answer_spans.py) -> model -> logits -> spans -> squad_scores.py
"""

from collections import defaultdict
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.scores.squad_scores import Guess, score_answers
from pretrain.inference.answer_spans import Reading, Window, context_offsets, encode_windows, read_spans

Feature = dict[str, Any]  # input_ids, ...: [L]; start_positions, end_positions: tokens; example, offsets, cls


def tell_questions(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Say how many questions have no answer."""
    none = {
        side: sum(not example.label.texts for example in examples)
        for side, examples in (("train", training), ("eval", evaluation))
    }
    if any(none.values()):
        say(f"questions without an answer: {none['train']} to learn from, {none['eval']} to measure on")
    return {"without_answer": none}


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int, *, stride: int
) -> list[Feature]:
    """Return the windows of all examples, each with the tokens at which its answer begins and ends: [CLS] where the
    window does not hold all of it. `example` says of which example a window is.
    """
    questions, contexts = [str(example.text) for example in examples], [example.pair or "" for example in examples]
    batch = encode_windows(tokenizer, questions, contexts, seq_len=seq_len, stride=stride)
    inputs = [name for name in tokenizer.model_input_names if name in batch]
    features = []
    for row, index in enumerate(batch["overflow_to_sample_mapping"]):
        offsets, cls = context_offsets(batch, row), batch["input_ids"][row].index(tokenizer.cls_token_id)
        start, end = tokens_of(offsets, examples[index].label.span, cls)
        features.append(
            {name: batch[name][row] for name in inputs}
            | {"start_positions": start, "end_positions": end, "example": index, "offsets": offsets, "cls": cls}
        )
    if len(features) > len(examples):
        say(f"{len(examples)} contexts are read in {len(features)} windows of --seq_len {seq_len} (--stride {stride})")
    return features


def tokens_of(offsets: np.ndarray, span: tuple[int, int] | None, cls: int) -> tuple[int, int]:
    """Return the first and last token of a span of characters, twice `cls` where it is not wholly within.

    offsets: [L, 2] of the context's tokens, -1 elsewhere. A span that begins or ends within a token has all of it.
    """
    tokens = np.flatnonzero(offsets[:, 0] >= 0)
    if span is None or not len(tokens) or span[0] < offsets[tokens[0], 0] or span[1] > offsets[tokens[-1], 1]:
        return cls, cls
    covered = tokens[(offsets[tokens, 1] > span[0]) & (offsets[tokens, 0] < span[1])]
    return (int(covered[0]), int(covered[-1])) if len(covered) else (cls, cls)


def score_questions(
    logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]
) -> dict[str, float]:
    """Return SQuAD's scores. logits: [2, windows, L]: of starts and of ends."""
    readings = read_features(logits, features)
    guesses = []
    for example, reading in zip(examples, readings, strict=True):
        text = (example.pair or "")[reading.spans[0].start : reading.spans[0].end] if reading.spans else ""
        guesses.append(Guess(text, reading.null_difference))
    return score_answers([example.label.texts for example in examples], guesses)


def read_features(logits: np.ndarray, features: list[Feature]) -> list[Reading]:
    """Return what the model says of each example, from all of its windows."""
    windows: dict[int, list[Window]] = defaultdict(list)
    for starts, ends, feature in zip(*logits, features, strict=True):
        windows[feature["example"]].append(Window(starts, ends, feature["offsets"], feature["cls"]))
    return [read_spans(windows[index]) for index in sorted(windows)]


def keep_threshold(
    model: PreTrainedModel, scores: dict[str, float], training: list[Example], config: FinetuneConfig
) -> None:
    """Put into the model's config.json what answering needs: windows, and when to give no answer."""
    knows_none = any(not example.label.texts for example in training)
    model.config.zerobert_null_threshold = scores.get("threshold", 0.0 if knows_none else None)
    model.config.zerobert_seq_len, model.config.zerobert_stride = config.seq_len, config.stride
