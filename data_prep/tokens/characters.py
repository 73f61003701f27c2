"""The characters of a corpus, of which a vocabulary makes its alphabet, as a normalizer leaves them."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from data_prep.text.languages import loses_mark
from data_prep.tokens.words import Counted


class Characters(NamedTuple):
    """The characters of a corpus as a normalizer leaves them."""

    seen: Counter[str]
    marks: float  # share of characters that are marks, or lose one, or are taken apart
    example: str  # the most frequent of these

    def at_least(self, times: int) -> list[str]:
        """Return those that occur so often, the most frequent first."""
        frequent = sorted((-count, character) for character, count in self.seen.items() if count >= times)
        return [character for _, character in frequent]


def alphabet_of(counted: Counted, normalize: Callable[[str], str]) -> Characters:
    """Return the characters that were counted, each normalized by itself."""
    seen: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    for code, count in zip(counted.codes.tolist(), counted.occurrences.tolist(), strict=True):
        for character in normalize(chr(code)).replace(" ", ""):
            seen[character] += count
        if loses_mark(chr(code)):
            marked[chr(code)] = count
    example = max(marked, key=lambda character: (marked[character], character), default="")
    return Characters(seen, marked.total() / max(counted.characters, 1), example)
