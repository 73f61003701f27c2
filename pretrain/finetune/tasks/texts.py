"""One label, or one number, a text or pair of texts: --task classify, pair and regress.

N examples, L tokens, labels: how many names there are.
"""

from collections import Counter

import numpy as np
import torch
from scipy import stats
from sklearn import metrics
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain.finetune.examples import LabelScale, listed
from pretrain.finetune.files.labelled import Example, labels_of
from pretrain.finetune.scores.shares import tell_shares
from pretrain.finetune.tasks.long_texts import encode_windows
from pretrain.finetune.tasks.lost import tell_lost
from pretrain.finetune.tasks.task import Feature, Scores


def tell_classes(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Say which labels of one side the other lacks."""
    known, asked = ({label for example in side for label in labels_of(example)} for side in (training, evaluation))
    once = sum(count == 1 for count in Counter(example.label for example in training).values())
    if once > len(known) / 2:
        say(f"{once} of {len(known)} labels occur only once; are they numbers, for --task regress, or another column?")
    if absent := sorted(known - asked):
        say(f"not in the file to measure on: {listed(absent)}; f1 is the mean over what occurs there or in answers")
    if unseen := sorted(asked - known):
        say(f"not among the examples to learn from: {listed(unseen)}; no answer can name them")
    return {"not_in_eval": absent, **tell_shares(training, evaluation)}


def tell_numbers(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Say where a correlation will be undefined."""
    if len({example.label for example in evaluation}) == 1:
        say("all labels to measure on are the same: no correlation is defined, and it is given as 0; look at rmse")
    return {}


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    names: list[str],
    seq_len: int,
    *,
    stride: int | None = None,
) -> list[Feature]:
    """Return texts or pairs, with the label as its place in `names`, or as a number where there are none.

    stride: tokens that two windows of a long text share; None: it is cut
    """
    number = {name: index for index, name in enumerate(names)}
    labels = [number[example.label] if names else example.label for example in examples]
    if stride is not None:
        windows = encode_windows(tokenizer, examples, seq_len=seq_len, stride=stride)
        return [feature | {"labels": label} for feature, label in zip(windows, labels, strict=True)]
    first = [example.text for example in examples]
    second = [example.pair for example in examples] if examples[0].pair is not None else None
    batch = tokenizer(first, second, truncation=True, max_length=seq_len)
    tell_lost(batch, seq_len, tokenizer, remedy="--long stride reads them whole")
    return [{**{key: batch[key][row] for key in batch}, "labels": label} for row, label in enumerate(labels)]


def score_classes(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Return the accuracy and F1, the mean over the labels that occur; of two labels also the F1 of the second.

    A label that is neither true nor answered anywhere has no F1, as a mean over all would take for 0.
    logits: [N, labels]
    """
    truth = [feature["labels"] for feature in features]
    guess = logits.argmax(-1)
    scores = {
        "accuracy": metrics.accuracy_score(truth, guess),
        "f1": metrics.f1_score(truth, guess, average="macro"),
    }
    if len(names) == 2:
        scores[f"f1_{names[1]}"] = metrics.f1_score(truth, guess, pos_label=1, zero_division=1)
    return {name: float(value) for name, value in scores.items()}


def score_numbers(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Return Pearson and Spearman correlation (0 where one side is constant) and root mean square error.

    logits: [N, 1]
    """
    truth, guess = np.array([feature["labels"] for feature in features]), logits[:, 0].astype(np.float64)
    defined = np.ptp(truth) > 0 and np.ptp(guess) > 0
    if np.ptp(truth) > 0 and not defined:
        say("the model gives one number for all texts: no correlation is defined, and it is given as 0")
    return {
        "pearson": float(np.nan_to_num(stats.pearsonr(truth, guess).statistic)) if defined else 0.0,
        "spearman": float(np.nan_to_num(stats.spearmanr(truth, guess).statistic)) if defined else 0.0,
        "rmse": float(metrics.root_mean_squared_error(truth, guess)),
    }


@torch.no_grad()
def undo_scale(model: PreTrainedModel, scale: LabelScale) -> None:
    """Turn a model that learnt numbers on a scale into one that answers in the unit of the file, in place."""
    linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 1][-1]
    # In float64, so that each weight is rounded once.
    bias = linear.bias.double() * scale.std + scale.mean
    linear.weight.copy_(linear.weight.double() * scale.std)
    linear.bias.copy_(bias)
    model.config.zerobert_scale = scale._asdict()  # for whoever asks; answers are in the unit of the file
