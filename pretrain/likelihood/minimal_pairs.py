"""Minimal pairs: two sentences that differ in one thing, a good one and a bad one. How often is the good one likelier?

    pairs = read_pairs(Path("blimp.jsonl"))     [MinimalPair("The cats annoy Tim.", "The cats annoys Tim.", ...), ...]
    scores = judge(groups, good, bad)           scores.accuracy, scores.groups["agreement"].accuracy

Files are .jsonl, .csv or .tsv (finetune/files/tables.py), one pair a row, as BLiMP (Warstadt et al. 2020) and its kin
in other languages write them. No torch here.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.cli import InputError
from pretrain.finetune.files.rows import Row, filled_text, shorten
from pretrain.finetune.files.tables import read_rows

# Where several names mean the same, the first that a row has is taken.
GOOD = ("sentence_good", "good_sentence", "good")
BAD = ("sentence_bad", "bad_sentence", "bad")
GROUPS = ("group", "uid")
SUFFIXES = (".jsonl", ".csv", ".tsv")  # of the files of a folder


class MinimalPair(NamedTuple):
    """Two sentences, and what they test."""

    good: str
    bad: str
    group: str
    where: str  # it stands: "blimp.jsonl, line 7"


class GroupScore(NamedTuple):
    """How often a model prefers the good sentence of so many pairs."""

    pairs: int
    correct: int
    ties: int  # both equally likely, which is not correct

    @property
    def accuracy(self) -> float:
        """Share of the pairs."""
        return self.correct / self.pairs


class PairScores(NamedTuple):
    """How a model does on minimal pairs."""

    groups: dict[str, GroupScore]  # in the order of their names

    @property
    def accuracy(self) -> float:
        """Mean of the groups' accuracies, however many pairs each has."""
        return sum(score.accuracy for score in self.groups.values()) / len(self.groups)

    @property
    def pairs(self) -> int:
        """Pairs of all groups."""
        return sum(score.pairs for score in self.groups.values())

    @property
    def ties(self) -> int:
        """Ties of all groups."""
        return sum(score.ties for score in self.groups.values())


def read_pairs(path: Path, group: str | None = None) -> list[MinimalPair]:
    """Return the pairs of a file, or of all .jsonl, .csv and .tsv of a folder.

    group: the field that names what a pair tests; None: `group` or `UID`, else the name of the file, where there are
        several

    Raises
    ------
    InputError: nothing there, as tables.read_rows(), a missing field, an empty sentence; naming file and line.
    """
    files = _files_of(path)
    pairs = []
    for file in files:
        rows = read_rows(file)
        fields = (_field(file, *rows[0], GOOD), _field(file, *rows[0], BAD), _group_field(file, *rows[0], group))
        by_file = file.stem if len(files) > 1 else "all"
        pairs += [_pair_of(file, line, row, fields, by_file) for line, row in rows]
    return pairs


def choose_evenly(pairs: Sequence[MinimalPair], most: int) -> list[MinimalPair]:
    """Return at most so many pairs, as many of each group as of any other, but at least one; always the same.

    Of 100 pairs of a group, of which it may have 3, these are number 0, 33 and 66: a file may have an order.
    """
    members: dict[str, list[MinimalPair]] = {}
    for pair in pairs:
        members.setdefault(pair.group, []).append(pair)
    quota = max(1, most // max(len(members), 1))
    chosen = []
    for group in members.values():
        count = min(quota, len(group))
        chosen += [group[index * len(group) // count] for index in range(count)]
    return chosen


def identity_of(pairs: Iterable[MinimalPair]) -> str:
    """Return a hash of what is compared: scores compare where it is the same."""
    return hashlib.sha256(repr([pair[:3] for pair in pairs]).encode()).hexdigest()[:16]


def judge(groups: Sequence[str], good: np.ndarray, bad: np.ndarray) -> PairScores:
    """Return how often the good sentence of N pairs is the likelier one.

    groups: N names
    good, bad: [N] log-likelihoods, in nats
    """
    names, owners = np.unique(np.array(groups, dtype=object), return_inverse=True)

    def counted(which: np.ndarray) -> list[int]:
        return np.bincount(owners, which, len(names)).astype(int).tolist()

    numbers = zip(counted(np.ones(len(owners))), counted(good > bad), counted(good == bad), strict=True)
    return PairScores({str(name): GroupScore(*number) for name, number in zip(names, numbers, strict=True)})


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no file of minimal pairs ({', '.join(SUFFIXES)})")
    return files


def _field(path: Path, line: int, row: Row, names: tuple[str, ...]) -> str:
    for name in names:
        if name in row:
            return name
    found = ", ".join(row.written.values()) or "none"
    raise InputError(f"{path}, line {line}: no field {names[0]}; found {shorten(found, 120)}")


def _group_field(path: Path, line: int, row: Row, wanted: str | None) -> str | None:
    if wanted is not None:
        return _field(path, line, row, (wanted.strip().lower(),))
    return next((name for name in GROUPS if name in row), None)


def _pair_of(path: Path, line: int, row: Row, fields: tuple[str, str, str | None], by_file: str) -> MinimalPair:
    good_field, bad_field, group_field = fields
    where = f"{path}, line {line}"
    good, bad = (_sentence(where, row, name) for name in (good_field, bad_field))
    if group_field is None:
        return MinimalPair(good, bad, by_file, where)
    group = row.get(group_field)
    if not isinstance(group, str | int) or not str(group).strip():
        raise InputError(f"{where}: {group_field} must name the group of the pair, not {shorten(group)}")
    return MinimalPair(good, bad, str(group).strip(), where)


def _sentence(where: str, row: Row, name: str) -> str:
    if name not in row:
        raise InputError(f"{where}: no field {name}; found {shorten(', '.join(row.written.values()), 120)}")
    return filled_text(where, name, row[name])
