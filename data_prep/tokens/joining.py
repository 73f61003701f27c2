"""WordPiece's training: from how often each word occurs to the entries of a vocabulary.

    entries = join_pieces({"low": 5, "lower": 2}, SPECIAL, ["e", "l", "o", "r", "w"], ["##e", ...], size=64, least=2)

A word begins as its characters; the pair of pieces that stands side by side most often becomes a piece, again and
again, until there are enough. That is what the trainer of `tokenizers` does, entry for entry (tests/test_joining.py).
But it takes texts, not counts, so that each word is fed as often as it occurs; it holds counts in 32 bits, which "th"
in 150 GB of text exceeds; and what weighs the same it takes in the order of a hash map, another in every process.

Here a word is a string of pieces, a character for each: the one whose code is the piece's id. So joining is a
replacement, a pair is a string of two, and pairs of equal counts are in the order of their ids.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from data_prep.progress import Progress

PREFIX = "##"  # of a piece that goes on with a word
MAX_SIZE = 1_000_000  # an id must be the code of a character
SHOWN_EVERY = 256  # pieces

Candidate = tuple[int, str, int, list[int]]  # -count, pair, age, words in which it appeared: in the order of the heap


def join_pieces(
    words: Mapping[str, int],
    special: Sequence[str],
    alphabet: Sequence[str],
    inside: Sequence[str],
    *,
    size: int,
    least: int,
) -> list[str]:
    """Return the entries in the order of their ids: special tokens, the alphabet, what of it stands `inside` words, as
    ##a, then what was joined, while a pair occurs `least` times and there are fewer than `size`.

    Other characters are passed over: their neighbours stand side by side.
    """
    entries = list(dict.fromkeys([*special, *alphabet, *inside]))
    ids = {entry: token_id for token_id, entry in enumerate(entries)}
    pieces = Pieces(
        words,
        {ord(character): chr(ids[character]) for character in alphabet},
        {ord(entry[len(PREFIX) :]): chr(ids[entry]) for entry in inside},
    )
    with Progress(what="joining pieces", unit="piece", total=size) as progress:
        for pair in pieces.most_frequent(least):
            if len(entries) >= size:
                break
            left, right = (entries[ord(piece)] for piece in pair)
            entry = left + right.removeprefix(PREFIX)
            if entry not in ids:  # "the" is made of th + e, and in other words of t + he
                ids[entry] = len(entries)
                entries.append(entry)
                if len(entries) % SHOWN_EVERY == 0:
                    progress.update(len(entries) - progress.done)
            pieces.join(pair, chr(ids[entry]))
    return entries


class Pieces:
    """Words as strings of pieces, with the counts of pairs, which are kept true while pairs are joined."""

    def __init__(self, words: Mapping[str, int], first: dict[int, str], later: dict[int, str]):
        """`first`, `later`: the piece of a character, by its code, where a word begins and further on."""
        first, later = defaultdict(str, first), defaultdict(str, later)
        self.words: list[str] = []
        self.counts: list[int] = []
        self.pair_counts: dict[str, int] = defaultdict(int)
        self._heap: list[Candidate] = []
        self._rows: list[int] = []  # of the candidate that was yielded last
        self._age = 0
        appeared: dict[str, list[int]] = defaultdict(list)
        for text, count in sorted(words.items()):  # not in the order in which workers found them
            word = text[:1].translate(first) + text[1:].translate(later)
            for index in range(len(word) - 1):
                pair = word[index : index + 2]
                self.pair_counts[pair] += count
                appeared[pair].append(len(self.words))
            if len(word) > 1:
                self.words.append(word)
                self.counts.append(count)
        self._propose(appeared)

    def _propose(self, appeared: dict[str, list[int]]) -> None:
        """Put pairs on the heap, with the words in which they have just appeared. A pair may be there several times,
        with other words and the count of another day: those are candidates of their own, as in `tokenizers`."""
        for pair, rows in appeared.items():
            if (count := self.pair_counts[pair]) > 0:
                self._age += 1
                heapq.heappush(self._heap, (-count, pair, self._age, rows))

    def most_frequent(self, least: int) -> Iterator[str]:
        """Yield the pair to join next, while one occurs `least` times; join it before you ask for another."""
        while self._heap:
            minus_count, pair, age, rows = self._heap[0]
            count = self.pair_counts[pair]
            if count != -minus_count:  # no longer what it was: back to its place
                heapq.heapreplace(self._heap, (-count, pair, age, rows))
                continue
            if count < max(least, 1):
                return
            heapq.heappop(self._heap)
            self._rows = rows
            yield pair

    def join(self, pair: str, joined: str) -> None:
        """Make one piece of a pair, in the words of the candidate that was yielded last."""
        words, counts, pair_counts = self.words, self.counts, self.pair_counts
        left, right = pair[0], pair[1]
        appeared: dict[str, list[int]] = defaultdict(list)
        for row in self._rows:
            word, count = words[row], counts[row]
            place = word.find(pair)
            if place < 0:  # it was here when the candidate was made
                continue
            # "xabyab", ab -> J: first xJyab, where xa and by give way to xJ and Jy, then xJyJ.
            while place >= 0:
                before, after = word[:place], word[place + 2 :]
                if before:
                    pair_counts[before[-1] + left] -= count
                    new = before[-1] + joined
                    pair_counts[new] += count
                    appeared[new].append(row)
                if after:
                    pair_counts[right + after[0]] -= count
                    new = joined + after[0]
                    pair_counts[new] += count
                    appeared[new].append(row)
                word = before + joined + after
                place = word.find(pair, place + 1)
            words[row] = word
        self._propose(appeared)
