"""The characters of a corpus, of which a vocabulary makes its alphabet: counted by a table, normalized one by one."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from data_prep.text.languages import loses_mark


class Characters(NamedTuple):
    """The characters of a corpus as a normalizer leaves them."""

    seen: Counter[str]
    marks: float  # share of characters that are marks, or lose one, or are taken apart
    example: str  # the most frequent of these

    def at_least(self, times: int) -> list[str]:
        """Return those that occur so often, the most frequent first."""
        frequent = sorted((-count, character) for character, count in self.seen.items() if count >= times)
        return [character for _, character in frequent]


def count_characters(batches: Iterable[list[str]], normalize: Callable[[str], str]) -> Characters:
    """Count characters, each normalized by itself."""
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for batch in batches:
        codes = np.frombuffer("".join(batch).encode("utf-32-le"), "<u4")
        found = np.bincount(codes)
        counts[: len(found)] += found
    seen: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    for code in np.flatnonzero(counts).tolist():
        for character in normalize(chr(code)).replace(" ", ""):
            seen[character] += int(counts[code])
        if loses_mark(chr(code)):
            marked[chr(code)] = int(counts[code])
    example = max(marked, key=lambda character: (marked[character], character), default="")
    return Characters(seen, marked.total() / max(int(counts.sum()), 1), example)
