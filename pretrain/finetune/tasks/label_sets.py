"""--task multilabel: any number of labels a text, each answered by itself, above a threshold that is chosen.

    cells                        labels
    a|b  a;b  ["a", "b"]         a, b
    (empty)  []                  none
    columns a, b, c of 0 and 1   the names of the columns with a 1: --label a b c, or found

A model gives each label a probability, the sigmoid of its logit. Labels that are rare seldom come above a half, so the
threshold is the one that had the best micro-F1 on examples that were held back. It stands in config.json.
"""

import math

import numpy as np
from sklearn import metrics
from transformers import PreTrainedTokenizerBase

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain.finetune.files.labelled import Example
from pretrain.finetune.scores.shares import tell_shares
from pretrain.finetune.tasks.task import Feature, Scores
from pretrain.finetune.tasks.texts import encode_texts

THRESHOLDS = np.arange(0.02, 0.99, 0.02)


def one_hot(examples: list[Example], names: list[str]) -> np.ndarray:
    """Return [N, labels], 1 where an example has a label."""
    number = {name: index for index, name in enumerate(names)}
    hot = np.zeros((len(examples), len(names)))
    for row, example in enumerate(examples):
        hot[row, [number[name] for name in example.label if name in number]] = 1
    return hot


def encode_label_sets(
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    names: list[str],
    seq_len: int,
    *,
    stride: int | None = None,
) -> list[Feature]:
    """Return texts or pairs, with a 1 for each label of `names` that they have, else 0; `stride` as encode_texts()."""
    hot = one_hot(examples, names).tolist()
    rows = [example._replace(label=row) for example, row in zip(examples, hot, strict=True)]
    return encode_texts(tokenizer, rows, [], seq_len, stride=stride)


def best_threshold(logits: np.ndarray, examples: list[Example], names: list[str]) -> float:
    """Return the probability from which on a label is given: that of the best micro-F1; of equal ones the middle.

    logits: [N, labels]
    """
    truth, probability = one_hot(examples, names), sigmoid(logits)
    scores = [metrics.f1_score(truth, probability >= at, average="micro", zero_division=0) for at in THRESHOLDS]
    best = np.flatnonzero(np.isclose(scores, max(scores)))
    return round(float(THRESHOLDS[best[len(best) // 2]]), 2)


def score_label_sets(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Return micro-F1, macro-F1 over the labels that occur or are answered, and the share of texts answered exactly.

    logits: [N, labels], above 0 for a label that is given
    """
    truth, guess = one_hot(examples, names), logits >= 0
    occurs = (truth + guess).any(0)
    each = metrics.f1_score(truth, guess, average=None, zero_division=0)[occurs]
    return {
        "micro_f1": float(metrics.f1_score(truth, guess, average="micro", zero_division=0)),
        "macro_f1": float(each.mean()) if len(each) else 0.0,
        "exact": float((truth == guess).all(1).mean()),
    }


def log_odds(probability: float) -> float:
    """Return the logit of a probability."""
    return math.log(probability / (1 - probability))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))


def tell_label_sets(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Say how many labels texts have, and how frequent each is on either side."""
    mean = sum(len(example.label) for example in training) / len(training)
    none = sum(not example.label for example in training) / len(training)
    say(f"{mean:.2f} labels a text; {none:.1%} of the texts to learn from have none")
    return tell_shares(training, evaluation)
