"""What a source of held-out samples is called.

    names, owners = sources_of(stores, samples)

With several stores in --data, each store is a source. With one, its files are, as data_prep/shard.py recorded them,
under the part of their path that tells them apart: numbers at the end of a name are dropped (books-00.jsonl.gz and
books-01.jsonl.gz are `books`), and what follows a number where another file begins alike (`Lydia 084 (copy)` is one of
`Lydia`); where that leaves more than MAX_SOURCES, the folders they lie in. Where even those are more, the store is one
source. A pair counts for the source of its first segment.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import PurePath

import numpy as np

from data_prep.samples.mixture import Samples
from data_prep.store import Store

MAX_SOURCES = 12  # names that a person reads; more would be a thicket
_NUMBER = re.compile(r"([-_. ]?\d+([-_]of[-_]\d+)?)+$")  # of one file among many: -00, _12, -00003-of-00041
_INNER_NUMBER = re.compile(r"[-_ (]\d+")  # what begins with it may tell one file among many, too: "084 (copy)"


def sources_of(stores: Sequence[Store], chosen: Samples) -> tuple[list[str], np.ndarray]:
    """Return the names of the sources [S] of these samples, and the source [N] int64 of each."""
    if len(stores) > 1:
        labels = store_names([store.folder for store in stores])
        owners = chosen.store
    else:
        paths = [source.path for source in stores[0].manifest.sources]
        owners = stores[0].sources_at(chosen.spans["a_start"]) if paths else np.zeros(chosen.size, np.int64)
        used = np.unique(owners)
        groups = file_groups([paths[index] for index in used], paths) if paths else [""]
        labels = [""] * (int(used.max()) + 1)
        for index, group in zip(used, groups, strict=True):
            labels[index] = group or stores[0].folder.resolve().name
    names, indices = np.unique([labels[owner] for owner in owners], return_inverse=True)
    return names.tolist(), indices.astype(np.int64)


def store_names(folders: Sequence[PurePath]) -> list[str]:
    """Return short names for stores, the last parts of their paths that differ: en, zh of en/store, zh/store."""
    parts = _without_common_end([folder.parts for folder in folders])
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def file_groups(paths: Sequence[str], among: Sequence[str] = ()) -> list[str]:
    """Return for each path the name of its group; at most MAX_SOURCES differ, and all are empty where they cannot be
    told. What files have in common is seen `among` more of them."""
    shared = Counter(begin for path in {*paths, *among} for begin in {*_beginnings(PurePath(path).name)})
    keys = [(*path.parts[:-1], _group_name(path.name, shared)) for path in map(PurePath, paths)]
    keys = [tuple(filter(None, key)) for key in keys]  # of 00.txt only the folder remains
    keys = _without_common_end([key[_shared(keys) :] for key in keys])
    for depth in range(max(map(len, keys)), 0, -1):
        names = ["/".join(key[:depth]) for key in keys]
        if len(set(names)) <= MAX_SOURCES:
            return names
    return [""] * len(paths)


def _beginnings(name: str) -> list[str]:
    """Return a file's name without the number at its end; else what stands before each number in it, the longest first:
    `books` of books-00.txt, `Lydia Kapitel` of "Lydia Kapitel 084 (copy).txt"."""
    stem = name.partition(".")[0]
    if (found := _NUMBER.sub("", stem)) != stem:
        return [found.strip()]
    return [stem[: number.start()].strip() for number in reversed([*_INNER_NUMBER.finditer(stem)])]


def _group_name(name: str, shared: Counter[str]) -> str:
    """Return the beginning of a name that other files share, or all of it."""
    beginnings, stem = _beginnings(name), name.partition(".")[0]
    if _NUMBER.search(stem):
        return beginnings[0]
    return next((begin for begin in beginnings if begin and shared[begin] > 1), stem)


def _without_common_end(keys: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return keys without the parts at their end that all share; of equal keys the last part stays."""
    shared = _shared([key[::-1] for key in keys])
    return [key[: max(len(key) - shared, min(1, len(key)))] for key in keys]


def _shared(keys: list[tuple[str, ...]]) -> int:
    """Return how many parts at their beginning all keys have in common."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*keys, strict=False)))
