"""The words of a text as a tokenizer cuts them, counted: what stands between spaces first, then each of these cut once.

    counter = WordCounter(Cutter(tokenizer))
    counter.add("To be, or not to be.", 20)
    counter.result().words          {"to": 2, "be": 2, ",": 1, "or": 1, "not": 1, ".": 1}

A text of 16 million chunks has half a million that differ. Most of these are plain ASCII, which BERT's rules cut as one
expression does; the others are parted at signs that always stand alone (fast_paths.py), and what is left `tokenizers`
cuts. tests/test_words.py compares this with `tokenizers` over the whole text.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from data_prep.tokens.fast_paths import WORD_OR_MARK, is_bert

# str.split takes these for spaces. BERT's normalizer takes them out before it looks for any: a\x0bb is the word ab.
_NO_SPACES = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
_ASCII_WORD_OR_MARK = re.compile(r"[!-/:-@\[-`{-~]|[0-9A-Za-z]+")
_TEXT = 4 << 20  # characters of text from which chunks are collected before they are cut
_REMEMBERED = 1 << 17  # pieces that `tokenizers` has cut


class Counted(NamedTuple):
    """What was counted. C codes of characters."""

    words: Counter[str]
    codes: np.ndarray  # [C] ascending, of the characters that are no spaces
    occurrences: np.ndarray  # [C] int64
    characters: int  # of the text, spaces among them, but no line ends
    text_bytes: int  # of it, in UTF-8
    read_bytes: int  # and of what was passed over


def joined(parts: Iterable[Counted]) -> Counted:
    """Return the sum of parts of a text."""
    words: Counter[str] = Counter()
    occurrences = np.zeros(sys.maxunicode + 1, np.int64)
    characters = text_bytes = read_bytes = 0
    for part in parts:
        words.update(part.words)
        occurrences[part.codes] += part.occurrences
        characters += part.characters
        text_bytes += part.text_bytes
        read_bytes += part.read_bytes
    codes = np.flatnonzero(occurrences)
    return Counted(words, codes, occurrences[codes], characters, text_bytes, read_bytes)


class Cutter(dict[str, list[str]]):
    """Words by chunk: what a tokenizer's normalizer and pre-tokenizer make of it."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        state = json.loads(tokenizer.to_str())
        self._normalizer, self._pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        self._is_bert = is_bert(state)
        self._lowercase = self._is_bert and state["normalizer"]["lowercase"]

    def words(self, chunk: str) -> list[str]:
        """Return the words of a text without spaces."""
        if not self._is_bert:
            return self._cut(chunk)
        if chunk.isascii() and chunk.isprintable():
            return _ASCII_WORD_OR_MARK.findall(chunk.lower() if self._lowercase else chunk)
        if len(pieces := WORD_OR_MARK.findall(chunk)) > 1:
            return [word for piece in pieces for word in self.words(piece)]
        return self[chunk]

    def __missing__(self, chunk: str) -> list[str]:
        if len(self) >= _REMEMBERED:
            self.clear()
        self[chunk] = words = self._cut(chunk)
        return words

    def _cut(self, text: str) -> list[str]:
        normal = self._normalizer.normalize_str(text) if self._normalizer else text
        return [word for word, _ in self._pre_tokenizer.pre_tokenize_str(normal)] if self._pre_tokenizer else [normal]


class WordCounter:
    """Counts the words and the characters of texts; without a Cutter the characters alone."""

    def __init__(self, cutter: Cutter | None):
        self._cutter = cutter
        self._chunks: Counter[str] = Counter()
        self._uncut = 0  # characters of the texts behind _chunks
        self._characters = self._text_bytes = self._read_bytes = 0
        self._words: Counter[str] = Counter()
        self._occurrences = np.zeros(sys.maxunicode + 1, np.int64)

    def add(self, text: str, text_bytes: int) -> None:
        """Count a text."""
        self._chunks.update(chunks_of(text))
        self._characters += len(text) - text.count("\n")
        self._text_bytes += text_bytes
        self._read_bytes += text_bytes
        self._uncut += len(text)
        if self._uncut >= _TEXT:
            self._cut()

    def pass_over(self, text_bytes: int) -> None:
        """Note a text that is not counted."""
        self._read_bytes += text_bytes

    def _cut(self) -> None:
        """Cut what was collected, each chunk once however often it occurs."""
        chunks, self._chunks, self._uncut = self._chunks, Counter(), 0
        counts = np.fromiter(chunks.values(), np.int64, len(chunks))
        lengths = np.fromiter(map(len, chunks), np.int64, len(chunks))
        codes = np.frombuffer("".join(chunks).encode("utf-32-le"), "<u4")
        found = np.bincount(codes, np.repeat(counts, lengths))  # float64: exact, as no sum is near 2**53
        self._occurrences[: len(found)] += found.astype(np.int64)
        if self._cutter is not None:
            words, cut = self._words, self._cutter.words
            for chunk, count in chunks.items():
                for word in cut(chunk):
                    words[word] += count

    def result(self) -> Counted:
        """Return what was counted so far."""
        self._cut()
        codes = np.flatnonzero(self._occurrences)
        return Counted(
            self._words, codes, self._occurrences[codes], self._characters, self._text_bytes, self._read_bytes
        )


def chunks_of(text: str) -> list[str]:
    """Return what stands between the spaces of a text, as BERT's normalizer sees them."""
    for character in _NO_SPACES:
        if character in text:
            text = text.replace(character, "")
    return text.split()
