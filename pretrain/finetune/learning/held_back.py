"""A part of the training file that is not learnt from: on it the best epoch and the thresholds are chosen, and never on
the file to measure on, whose score would no longer be that of other texts.

    learnt, held = hold_back(examples, Path("train.tsv"))
"""

import random
from collections import Counter
from pathlib import Path

from data_prep.cli import InputError
from pretrain.finetune.files.choices import asked_of
from pretrain.finetune.files.labelled import Example

SHARE = 0.1
LEAST = 20  # examples of which two can be held back


def hold_back(examples: list[Example], path: Path, *, by_label: bool = True) -> tuple[list[Example], list[Example]]:
    """Return (examples to learn from, a tenth of them to choose by), each in their order; the same in every run.

    Examples of one text stay together, and each label keeps an example to learn from.
    by_label: labels have names; texts that are to be written have none

    Raises
    ------
    InputError: too few examples.
    """
    groups: dict[tuple[str | None, ...], list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(asked_of(example), []).append(index)
    left = Counter(name for example in examples for name in _names(example) if by_label)
    held: set[int] = set()
    order = list(groups.values())
    random.Random(0).shuffle(order)
    for group in order:
        names = Counter(name for index in group for name in _names(examples[index]) if by_label)
        fits = len(held) + len(group) <= SHARE * len(examples)
        if fits and all(left[name] > count for name, count in names.items()):
            left -= names
            held.update(group)
    if len(examples) < LEAST or len(held) < 2:
        raise InputError(
            f"{path}: {len(examples)} examples are too few to hold a tenth back, by which to choose; give more, "
            "or leave out --patience"
        )
    return (
        [example for index, example in enumerate(examples) if index not in held],
        [examples[index] for index in sorted(held)],
    )


def _names(example: Example) -> set[str]:
    names = [example.label] if isinstance(example.label, str) else example.label
    return set(names) if isinstance(names, list) else set()  # a number or an answer has none
