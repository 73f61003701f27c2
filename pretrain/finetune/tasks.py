"""What distinguishes one fine-tuning task from another: one row of TASKS each, and the functions it names.

    labelled file -> read -> examples -> encode -> features -> model -> logits -> score -> numbers

N examples, L tokens, labels: how many names there are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from data_prep.cli import InputError, say
from pretrain.finetune.labelled import Example, read_numbers, read_pairs, read_tags, read_texts

IGNORED = -100  # label of a position that counts for nothing; torch's cross entropy skips it

Feature = dict[str, Any]  # input_ids, token_type_ids, attention_mask: [L]; labels: a number or [L]
Scores = dict[str, float]


@dataclass(frozen=True)
class Task:
    """All that distinguishes one task from another."""

    read: Callable[[Path], list[Example]]
    label_names: Callable[[list[Example], Path], list[str]]  # from the training examples; none: the label is a number
    model: Any  # transformers' AutoModelFor... class
    encode: Callable[[PreTrainedTokenizerBase, list[Example], list[str], int], list[Feature]]
    collator: Callable[[PreTrainedTokenizerBase], Any]
    metric: str  # the score that results.json averages
    score: Callable[[np.ndarray, list[Feature], list[Example], list[str]], Scores]  # the first are the logits


def _sorted_names(names: set[str], path: Path) -> list[str]:
    """2 before 10 where all are integers."""
    if len(names) == 1:
        raise InputError(f"{path}: every label is {names.pop()!r}; at least two different ones are needed")
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names)


def class_names(examples: list[Example], path: Path) -> list[str]:
    """The labels of the training file; one alone is an InputError."""
    return _sorted_names({example.label for example in examples}, path)


def tag_names(examples: list[Example], path: Path) -> list[str]:
    """The tags of the training file; one alone is an InputError."""
    return _sorted_names({tag for example in examples for tag in example.label}, path)


def no_names(examples: list[Example], path: Path) -> list[str]:
    """A number as label has no names."""
    return []


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int
) -> list[Feature]:
    """Texts or pairs, with the label as its place in `names`, or as a number where there are none."""
    first = [example.text for example in examples]
    second = [example.pair for example in examples] if examples[0].pair is not None else None
    batch = tokenizer(first, second, truncation=True, max_length=seq_len)
    _tell_cuts(batch, seq_len)
    number = {name: index for index, name in enumerate(names)}
    return [
        {**{key: batch[key][row] for key in batch}, "labels": number[example.label] if names else example.label}
        for row, example in enumerate(examples)
    ]


def encode_words(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int
) -> list[Feature]:
    """Words, with the tag of each on its first token; `words` [words kept] says which word each tag belongs to.

    A word may have no token: cut off, or made of characters that the tokenizer drops.
    """
    batch = tokenizer([e.text for e in examples], is_split_into_words=True, truncation=True, max_length=seq_len)
    _tell_cuts(batch, seq_len)
    number = {name: index for index, name in enumerate(names)}
    features = []
    for row, example in enumerate(examples):
        owners = batch.word_ids(row)
        starts = [at for at, word in enumerate(owners) if word is not None and word != owners[at - 1]]
        labels = [IGNORED] * len(owners)
        for at in starts:
            labels[at] = number[example.label[owners[at]]]
        feature = {key: batch[key][row] for key in batch}
        features.append({**feature, "labels": labels, "words": [owners[at] for at in starts]})
    return features


def _tell_cuts(batch: Any, seq_len: int) -> None:
    cut = sum(bool(encoding.overflowing) for encoding in batch.encodings)
    if cut:
        say(f"{cut} of {len(batch.encodings)} texts are longer than --seq_len {seq_len} tokens and were cut")


def score_classes(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Accuracy and F1, the mean over the labels; of two labels also the F1 of the second. logits: [N, labels]."""
    truth = [feature["labels"] for feature in features]
    guess = logits.argmax(-1)
    numbers = list(range(len(names)))
    scores = {
        "accuracy": metrics.accuracy_score(truth, guess),
        "f1": metrics.f1_score(truth, guess, labels=numbers, average="macro", zero_division=0),
    }
    if len(names) == 2:
        scores[f"f1_{names[1]}"] = metrics.f1_score(truth, guess, pos_label=1, zero_division=0)
    return {name: float(value) for name, value in scores.items()}


def score_numbers(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Pearson and Spearman correlation (0 where one side is constant) and root mean square error. logits: [N, 1]."""
    truth, guess = np.array([feature["labels"] for feature in features]), logits[:, 0]
    defined = np.ptp(truth) > 0 and np.ptp(guess) > 0
    return {
        "pearson": float(stats.pearsonr(truth, guess).statistic) if defined else 0.0,
        "spearman": float(stats.spearmanr(truth, guess).statistic) if defined else 0.0,
        "rmse": float(metrics.root_mean_squared_error(truth, guess)),
    }


def score_tags(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Accuracy over words; precision, recall and F1 over spans that are right in place and kind. logits: [N, L, tags].

    Every word of the file counts: one that has no token is guessed to be outside of any span.
    """
    right, words = 0, 0
    found, wanted, hits = 0, 0, 0
    for row, (feature, example) in enumerate(zip(features, examples, strict=True)):
        places = [at for at, label in enumerate(feature["labels"]) if label != IGNORED]
        guess = ["O"] * len(example.label)
        for at, word in zip(places, feature["words"], strict=True):
            guess[word] = names[int(logits[row, at].argmax())]
        right += sum(a == b for a, b in zip(guess, example.label, strict=True))
        words += len(guess)
        guessed_spans, true_spans = spans(guess), spans(example.label)
        found, wanted, hits = (
            found + len(guessed_spans),
            wanted + len(true_spans),
            hits + len(guessed_spans & true_spans),
        )
    return {
        "f1": 2 * hits / max(1, found + wanted),
        "precision": hits / max(1, found),
        "recall": hits / max(1, wanted),
        "accuracy": right / words,
    }


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """(first word, word after the last, kind) of each span in BIO tags; an I- that continues nothing begins a span.

    A tag that is neither B-, I- nor O, as of parts of speech, is a span of its own, so that F1 is then the accuracy.
    """
    result, start, kind = set(), 0, ""
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if prefix == "I" and name and name == kind:
            continue
        if kind:
            result.add((start, at, kind))
        start, kind = at, "" if tag == "O" else name if prefix in ("B", "I") and name else tag
    return result


CLASSIFY = Task(
    read_texts,
    class_names,
    AutoModelForSequenceClassification,
    encode_texts,
    DataCollatorWithPadding,
    "accuracy",
    score_classes,
)
TASKS = {
    "classify": CLASSIFY,
    "pair": replace(CLASSIFY, read=read_pairs),
    "regress": replace(CLASSIFY, read=read_numbers, label_names=no_names, metric="pearson", score=score_numbers),
    "tag": Task(
        read_tags,
        tag_names,
        AutoModelForTokenClassification,
        encode_words,
        DataCollatorForTokenClassification,
        "f1",
        score_tags,
    ),
}
