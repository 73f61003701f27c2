"""Examples that fit the options of a fine-tuning, and each other.

    read_examples(config) -> Examples       reads the files, and refuses what is wrong with them

No library of models is imported here, which would take seconds before a word comes.

Numbers as labels are learnt on a scale of their own (mean 0, deviation 1): a new head answers around 0, and reaches
1,900 or 1e-6 neither soon nor exactly. After training the scale goes into the head's weights, so that the model answers
in the unit of the file, whatever program opens it.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.cli import InputError
from data_prep.files import check_out
from data_prep.untrusted import weight_files
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.files.choices import read_choices
from pretrain.finetune.files.columns import Choice, choose, gather_flags
from pretrain.finetune.files.kinds import kind_of
from pretrain.finetune.files.labelled import (
    Example,
    labels_of,
    read_label_sets,
    read_numbers,
    read_pairs,
    read_tags,
    read_texts,
)
from pretrain.finetune.files.rows import Rows
from pretrain.finetune.files.squad import is_learnable, no_labels, read_questions
from pretrain.finetune.files.tables import read_rows
from pretrain.finetune.files.text_pairs import no_targets, read_targets
from pretrain.finetune.learning.held_back import hold_back
from pretrain.hf_files import need_tokenizer, positions_in, read_config
from pretrain.inference.answer_spans import LEAST_WINDOW, most_stride

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"


class LabelScale(NamedTuple):
    """Which numbers of the file are learnt as 0 and 1."""

    mean: float  # learnt as 0
    std: float  # so far from it: 1


class Examples(NamedTuple):
    """Examples that fit the options and each other."""

    training: list[Example]
    evaluation: list[Example]
    names: list[str]  # of the labels, from the training file; none: the label is a number
    scale: LabelScale | None  # of the numbers
    held: Sequence[Example] = ()  # of the training file, but not learnt from: to choose by


def read_examples(config: FinetuneConfig) -> Examples:
    """Return the examples of --train and --eval. What is wrong is said in the order of the command line.

    Raises
    ------
    InputError: a file, a folder or an option that does not fit.
    """
    longest = positions_in(read_config(config.hf))
    need_tokenizer(config.hf)
    if not config.from_scratch:
        weight_files(config.hf)
    if config.decoder is not None:
        check_decoder(config.decoder)
    for path in (config.train, config.eval):
        kind_of(path)
    read = [path for path in (config.hf, config.decoder, config.train, config.eval) if path is not None]
    check_out(config.out, read, RESULTS)
    if longest is not None:
        check_seq_len(config, longest)
    check_stride(config)
    task = TASK_FILES[config.task]
    everything, evaluation = (task.read(path, rows_of(config, path)) for path in (config.train, config.eval))
    check_pairs(config, everything, evaluation)
    names = task.label_names(everything, config.train)
    if names:
        check_labels(config.eval, evaluation, names, config.train)
    training = subset([example for example in everything if task.is_learnable(example)], config.limit)
    held: list[Example] = []
    if config.patience is not None or config.task == "multilabel":
        training, held = hold_back(training, config.train, by_label=bool(names))
    task.label_names(training, config.train)  # refuses a subset with one label alone
    scale = label_scale(training, config.train) if task.is_number else None
    return Examples(training, evaluation, names, scale, held)


def check_decoder(folder: Path) -> None:
    """Refuse what is no whole Hugging Face folder."""
    read_config(folder)
    need_tokenizer(folder)
    weight_files(folder)


def rows_of(config: FinetuneConfig, path: Path) -> Rows | None:
    """Return the rows of a file, with the columns that options name; none where the task reads files of its own."""
    if config.task == "qa":
        return None
    choice = Choice(config.text, config.pair, config.label, config.label_names)
    rows = choose(path, read_rows(path), choice, by_word=config.task == "tag")
    return gather_flags(path, rows, config.label) if config.task == "multilabel" else rows


def check_seq_len(config: FinetuneConfig, longest: int) -> None:
    """Refuse inputs beyond the model's positions: the embedding has no row for them."""
    if not 4 <= config.seq_len <= longest:
        raise InputError(
            f"--seq_len {config.seq_len} must lie between 4 and the {longest} positions of {config.hf}: "
            f"try --seq_len {min(128, longest)}"
        )


def check_stride(config: FinetuneConfig) -> None:
    """Refuse windows of a text that hold next to nothing beside a question, or that do not go on."""
    if not config.reads_windows:
        return
    if config.seq_len < LEAST_WINDOW:
        what = "no question and its context" if config.task == "qa" else "too little of a long text"
        raise InputError(f"--seq_len {config.seq_len} holds {what}: try --seq_len 128 or 384")
    if config.stride is not None and config.stride > most_stride(config.seq_len):
        beside = " beside a question" if config.task == "qa" else ""
        raise InputError(
            f"--stride {config.stride} is more than two windows of --seq_len {config.seq_len} can share{beside}: "
            f"at most {most_stride(config.seq_len)}"
        )


def check_pairs(config: FinetuneConfig, training: list[Example], evaluation: list[Example]) -> None:
    """Refuse single texts to learn from and pairs to measure on, or the reverse."""
    if (training[0].pair is None) != (evaluation[0].pair is None):
        one, two = (config.train, config.eval) if training[0].pair is None else (config.eval, config.train)
        raise InputError(f"{two} holds pairs of texts and {one} single texts: both must hold the same")


def check_labels(path: Path, examples: list[Example], names: list[str], train: Path) -> None:
    """Refuse labels that the training file does not have: no model could ever give them."""
    unknown = {label: example.line for example in reversed(examples) for label in labels_of(example)}
    for name in names:
        unknown.pop(name, None)
    if unknown:
        first = min(unknown.values())
        what = listed([repr(label) for label in sorted(unknown)])
        raise InputError(
            f"{path}, line {first}: label{'s' if len(unknown) > 1 else ''} {what} "
            f"{'do' if len(unknown) > 1 else 'does'} not occur in {train}; known are {listed(names)}"
        )


def subset(examples: list[Example], limit: int | None) -> list[Example]:
    """Return `limit` examples in their order, drawn over all of them: files are often sorted by label."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[index] for index in sorted(random.Random(0).sample(range(len(examples)), limit))]


def label_scale(examples: list[Example], path: Path) -> LabelScale:
    """Return the mean and standard deviation of the labels.

    Raises
    ------
    InputError: the labels are all the same, or differ by less than the model's numbers can tell apart.
    """
    labels = np.array([example.label for example in examples], dtype=np.float64)
    if len(set(labels)) == 1:
        raise InputError(f"{path}: every label is {labels[0]:g}; at least two different ones are needed")
    scale = LabelScale(float(labels.mean()), float(labels.std()))
    spacing = float(np.spacing(np.float32(np.abs(labels).max())))  # from one float32 to the next, where labels lie
    if scale.std < 100 * spacing or scale.std < 1e-30:
        raise InputError(
            f"{path}: labels of {scale.mean:.9g} ± {scale.std:.3g} differ by less than float32 tells apart; "
            "subtract a constant from all of them, or use another unit"
        )
    return scale


def on_scale(examples: list[Example], scale: LabelScale) -> list[Example]:
    """Return the examples with their numbers on the scale."""
    return [example._replace(label=(example.label - scale.mean) / scale.std) for example in examples]


def class_names(examples: list[Example], path: Path) -> list[str]:
    """Return the label names of the training file, tags included, 2 before 10 where all are integers.

    Raises
    ------
    InputError: there is only one.
    """
    names = {label for example in examples for label in labels_of(example)}
    if not names:
        raise InputError(f"{path}: no example has a label; at least two different ones are needed")
    if len(names) == 1:
        raise InputError(f"{path}: every label is {names.pop()!r}; at least two different ones are needed")
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def no_names(examples: list[Example], path: Path) -> list[str]:
    """Return nothing: a number, or the place of an option, has no names."""
    return []


def always(example: Example) -> bool:
    """Return that an example teaches something."""
    return True


def listed(names: list[str], limit: int = 8) -> str:
    """Return the names for a message, the first of them where there are many."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


class TaskFiles(NamedTuple):
    """What the labelled files of a task hold."""

    read: Callable[..., list[Example]]  # of its path, and of its rows where these were read before
    label_names: Callable[[list[Example], Path], list[str]]
    is_number: bool = False  # the label
    is_learnable: Callable[[Example], bool] = always  # others are measured on alone


TASK_FILES = {
    "classify": TaskFiles(read_texts, class_names),
    "pair": TaskFiles(read_pairs, class_names),
    "multilabel": TaskFiles(read_label_sets, class_names),
    "regress": TaskFiles(read_numbers, no_names, is_number=True),
    "tag": TaskFiles(read_tags, class_names),
    "qa": TaskFiles(read_questions, no_labels, is_learnable=is_learnable),
    "choice": TaskFiles(read_choices, no_names),
    "seq2seq": TaskFiles(read_targets, no_targets),
}
