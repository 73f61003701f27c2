"""How much of a text the vocabulary does not know, in characters: a single unknown token may stand for a whole line.

    unknown = UnknownCharacters(tokenizer, unknown_id)
    unknown.count(sentences, encoded)           # characters behind the unknown tokens

WordPiece makes one token of a word it cannot spell, or of more than 100 characters; where a script puts no spaces, that
is a phrase. Thai under a vocabulary of words: 13 % of the tokens are unknown, and 83 % of the characters.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from data_prep.calls import call
from data_prep.tokens.fast_paths import Ids, is_bert, is_sentencepiece

WARN_SHARE = 0.01  # of the characters
_REMEMBERED_CHUNKS = 1 << 16
PART_CHARS = 10_000  # encoded at once


def characters_of(texts: Iterable[str]) -> int:
    """Return characters of texts, spaces and line breaks left out: no token stands for them."""
    return sum(len(text) - _blanks(text.encode("utf-8", "surrogatepass")) for text in texts)


def _blanks(raw: bytes) -> int:
    codes = np.frombuffer(raw, np.uint8)  # str.count takes five times as long, which was 5 % of all of shard.py
    return int(np.count_nonzero(codes == ord(" ")) + np.count_nonzero(codes == ord("\n")))


def advice(unknown: int, characters: int, remedy: str = "") -> str:
    """Return a warning with its remedy where so many of these characters are too many; else nothing."""
    if unknown <= WARN_SHARE * characters:
        return ""
    make_one = call("vocab", "--corpus", "TEXTS")
    remedy = remedy or f"make one from this text ({make_one}), with --model unigram where no spaces part words"
    return (
        f"warning: {100 * unknown / characters:.1f} % of the characters are unknown to this vocabulary and teach "
        f"nothing; {remedy}"
    )


class UnknownCharacters:
    """Counts the characters behind unknown tokens; only sentences that hold one are looked at again."""

    def __init__(self, tokenizer: Tokenizer, unknown_id: int):
        self.tokenizer, self.unknown_id = tokenizer, unknown_id
        self._known: dict[str, int] = {}  # characters that are unknown in a chunk

    @cached_property
    def spaces_part(self) -> bool:
        """Whether what stands between spaces can be encoded by itself; most text has nothing unknown and asks not."""
        state = json.loads(self.tokenizer.to_str())
        return is_bert(state) or is_sentencepiece(state)

    def count(self, sentences: Sequence[str], encoded: Ids) -> int:
        """Return characters of `sentences`, whose ids are `encoded`, for which an unknown token stands."""
        places = np.flatnonzero(encoded.ids == self.unknown_id)
        if not len(places):
            return 0
        rows = np.searchsorted(np.cumsum(encoded.lengths), places, "right")
        found = [sentences[row] for row in sorted(set(rows.tolist()))]
        if not self.spaces_part:
            return sum(map(self._in_chunk, found))
        if len(self._known) > _REMEMBERED_CHUNKS:  # crude, but what is frequent is soon back
            self._known.clear()
        total = 0
        for chunk in (chunk for sentence in found for chunk in sentence.split(" ")):
            known = self._known.get(chunk)
            if known is None:
                known = self._known[chunk] = self._in_chunk(chunk)
            total += known
        return total

    def _in_chunk(self, text: str) -> int:
        # A tokenizer takes a hundred bytes for each character: a line of millions without a space is cut.
        return sum(self._in_part(text[first : first + PART_CHARS]) for first in range(0, len(text), PART_CHARS))

    def _in_part(self, text: str) -> int:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return sum(
            stop - start
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
            if token_id == self.unknown_id
        )
