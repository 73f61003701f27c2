"""What distinguishes one fine-tuning task from another: one row of TASKS each, and the functions it names.

    examples (examples.py) -> encode -> features -> model -> logits -> score -> numbers

N examples, L tokens, labels: how many names there are.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn import metrics
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EncoderDecoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data_prep.cli import say
from data_prep.json_types import JsonObject
from pretrain.finetune import question_answering as qa
from pretrain.finetune import seq2seq
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.examples import LabelScale, listed
from pretrain.finetune.label_sets import one_hot, score_label_sets, tell_label_sets
from pretrain.finetune.labelled import Example, labels_of
from pretrain.finetune.lost import tell_lost
from pretrain.finetune.shares import tell_shares
from pretrain.finetune.spans import PLAIN, kinds_of, scheme_of, spans

IGNORED = -100  # label of a position that counts for nothing; torch's cross entropy skips it

Feature = dict[str, Any]  # input_ids, token_type_ids, attention_mask: [L]; labels: a number or [L]
Scores = dict[str, float]


@dataclass(frozen=True)
class Task:
    """All that distinguishes one task from another."""

    tell: Callable[[list[Example], list[Example]], JsonObject]  # training, evaluation -> more for results.json
    model: Any  # transformers' AutoModelFor... class
    encode: Callable[[PreTrainedTokenizerBase, list[Example], list[str], int], list[Feature]]
    collator: Callable[[PreTrainedTokenizerBase], Any]
    metric: str  # the score that results.json averages
    score: Callable[[np.ndarray, list[Feature], list[Example], list[str]], Scores]  # the first are the logits
    by_threshold: bool = False  # each label is given or not by itself
    outputs: tuple[str, ...] = ()  # names of the head's outputs where they are no labels
    # What a folder must know to answer goes into the config.json of the model that is kept.
    keep: Callable[[PreTrainedModel, Scores, list[Example], FinetuneConfig], None] | None = None
    # A model that is more than an encoder under a head: how it is built, what it answers in the place of logits, and
    # what else lies in its folder.
    build: Callable[[FinetuneConfig], PreTrainedModel] | None = None
    answer: Callable[[PreTrainedModel, list[Example]], Any] | None = None
    save: Callable[[Path], None] | None = None


@torch.no_grad()
def undo_scale(model: PreTrainedModel, scale: LabelScale) -> None:
    """Turn a model that learnt numbers on a scale into one that answers in the unit of the file, in place."""
    linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 1][-1]
    # In float64, so that each weight is rounded once.
    bias = linear.bias.double() * scale.std + scale.mean
    linear.weight.copy_(linear.weight.double() * scale.std)
    linear.bias.copy_(bias)
    model.config.zerobert_scale = scale._asdict()  # for whoever asks; answers are in the unit of the file


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


def tell_tags(training: list[Example], evaluation: list[Example]) -> JsonObject:
    """Say which scheme the tags follow, and which kinds of spans one side lacks."""
    scheme = scheme_of([example.label for example in training])
    known, asked = (kinds_of([example.label for example in side], scheme) for side in (training, evaluation))
    what = "no scheme of spans, so that each tag counts for itself" if scheme.name == PLAIN else scheme.name
    say(f"tags: {what}; {len(known)} kinds ({listed(known)})")
    if not asked:
        say("nothing but O in the file to measure on: f1 is 0 whatever the answers; look at accuracy")
    elif absent := sorted(set(known) - set(asked)):
        say(f"not in the file to measure on: {listed(absent)}")
    if unseen := sorted(set(asked) - set(known)):
        say(f"not among the examples to learn from: {listed(unseen)}; no answer can name them")
    return {"scheme": scheme.name, "not_in_eval": sorted(set(known) - set(asked))}


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int
) -> list[Feature]:
    """Return texts or pairs, with the label as its place in `names`, or as a number where there are none."""
    first = [example.text for example in examples]
    second = [example.pair for example in examples] if examples[0].pair is not None else None
    batch = tokenizer(first, second, truncation=True, max_length=seq_len)
    tell_lost(batch, seq_len, tokenizer)
    number = {name: index for index, name in enumerate(names)}
    return [
        {**{key: batch[key][row] for key in batch}, "labels": number[example.label] if names else example.label}
        for row, example in enumerate(examples)
    ]


def encode_label_sets(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int
) -> list[Feature]:
    """Return texts or pairs, with a 1 for each label of `names` that they have, else 0."""
    hot = one_hot(examples, names).tolist()
    return encode_texts(tokenizer, [e._replace(label=row) for e, row in zip(examples, hot, strict=True)], [], seq_len)


def score_sets(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Return the scores of score_label_sets()."""
    return score_label_sets(logits, examples, names)


def encode_words(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], names: list[str], seq_len: int
) -> list[Feature]:
    """Return words, with the tag of each on its first token; `words` [words kept] says which word each tag belongs to.

    A word may have no token: cut off, or made of characters that the tokenizer drops.
    """
    batch = tokenizer([e.text for e in examples], is_split_into_words=True, truncation=True, max_length=seq_len)
    tell_lost(batch, seq_len, tokenizer)
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


def score_tags(logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]) -> Scores:
    """Return accuracy over words; precision, recall and F1 over spans that are right in place and kind.

    logits: [N, L, tags]

    names: all tags of the training file, which tell how spans are marked
    Every word of the file counts: one that has no token is guessed to be outside of any span.
    """
    scheme = scheme_of([names])
    right, words = 0, 0
    found, wanted, hits = 0, 0, 0
    for guess, example in zip(guessed_tags(logits, features, examples, names), examples, strict=True):
        right += sum(a == b for a, b in zip(guess, example.label, strict=True))
        words += len(guess)
        guessed_spans, true_spans = spans(guess, scheme), spans(example.label, scheme)
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


def guessed_tags(
    logits: np.ndarray, features: list[Feature], examples: list[Example], names: list[str]
) -> list[list[str]]:
    """Return the likeliest tag of each word; of one that has no token O.

    logits: [N, L, tags]
    """
    guesses = []
    for row, (feature, example) in enumerate(zip(features, examples, strict=True)):
        places = [at for at, label in enumerate(feature["labels"]) if label != IGNORED]
        guess = ["O"] * len(example.label)
        for at, word in zip(places, feature["words"], strict=True):
            guess[word] = names[int(logits[row, at].argmax())]
        guesses.append(guess)
    return guesses


CLASSIFY = Task(
    tell_classes,
    AutoModelForSequenceClassification,
    encode_texts,
    DataCollatorWithPadding,
    "accuracy",
    score_classes,
)


def answering_questions(config: FinetuneConfig) -> Task:
    """Return the task of questions whose answers stand in a context; `config`: a settled one."""
    assert config.stride is not None
    return Task(
        qa.tell_questions,
        AutoModelForQuestionAnswering,
        partial(qa.encode_questions, stride=config.stride),
        DataCollatorWithPadding,
        "f1",
        qa.score_questions,
        outputs=("start", "end"),
        keep=qa.keep_threshold,
    )


def writing_texts(config: FinetuneConfig) -> Task:
    """Return the task of texts that are written for others; `config`: a settled one.

    Raises
    ------
    InputError: the folder of a decoder that does not fit.
    """
    sides = seq2seq.open_sides(config)
    return Task(
        partial(seq2seq.tell_targets, sides=sides),
        EncoderDecoderModel,
        partial(seq2seq.encode_targets, sides=sides),
        DataCollatorForSeq2Seq,
        "bleu",
        partial(seq2seq.score_targets, sides=sides),
        build=partial(seq2seq.build, sides=sides),
        answer=partial(seq2seq.write_targets, sides=sides),
        save=partial(seq2seq.save_target_tokenizer, sides=sides),
    )


# A task, or what makes one of the options.
TASKS: dict[str, Task | Callable[[FinetuneConfig], Task]] = {
    "classify": CLASSIFY,
    "pair": CLASSIFY,
    "multilabel": replace(
        CLASSIFY, tell=tell_label_sets, encode=encode_label_sets, metric="micro_f1", score=score_sets, by_threshold=True
    ),
    "regress": replace(CLASSIFY, tell=tell_numbers, metric="pearson", score=score_numbers),
    "tag": Task(
        tell_tags,
        AutoModelForTokenClassification,
        encode_words,
        DataCollatorForTokenClassification,
        "f1",
        score_tags,
    ),
    "qa": answering_questions,
    "seq2seq": writing_texts,
}


def task_of(config: FinetuneConfig) -> Task:
    """Return the task of a settled config.

    Raises
    ------
    InputError: as writing_texts().
    """
    task = TASKS[config.task]
    return task if isinstance(task, Task) else task(config)
