"""Faster ways to the ids of a tokenizer than `tokenizers` itself. encode.py checks them against it.

    Nanotoken           the package nanotoken (extra [fast]): WordPiece alone, compiled. Young, hence optional.
    WordPieceCache      no package: BERT's normalizer and pre-tokenizer never join what an ASCII space, a punctuation
                        mark or a Chinese character parts, so a text's ids are the ids of these pieces end to end, and
                        most pieces of a text occurred before. A dictionary remembers them.
    SentencePieceCache  the same for our SentencePiece vocabularies, whose pieces end where an ASCII space is.

All take the state of a tokenizer (its JSON) and give `Ids`. A literal "[MASK]" in a text is text to all.
"""
# ruff: noqa: RUF001

import json
import re
from array import array
from functools import cached_property
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from data_prep.json_types import JsonObject

CACHE_ENTRIES = 1 << 18  # about 50 MB
NANOTOKEN_WORDS = 1 << 17  # that it remembers, about 20 MB; more of them make it no faster
CACHED_CHARS = 32  # of a piece; longer ones seldom come again

# Always words of their own in BERT's pre-tokenizer, whatever stands beside them. Not all such characters: those listed
# are the ones that occur often, the others stay inside their piece for `tokenizers` to part.
_ALONE = r"""!-/:-@\[-`{-~‐-‧‰-⁁、-〃〈-】〔-〟！-＃％-＊，-／：；？＠［-］＿｛｝｟-･一-鿿"""
_MARKS = frozenset("""!"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~""")  # those of ASCII
WORD_OR_MARK = re.compile(f"[{_ALONE}]|[^{_ALONE}]+")


class Ids(NamedTuple):
    """The ids of many sentences, end to end. S sentences, T tokens."""

    ids: np.ndarray  # [T], the encoder's dtype
    lengths: np.ndarray  # [S] int64, tokens of each sentence


def is_bert(state: JsonObject) -> bool:
    """Whether a tokenizer is BERT's WordPiece, so that the paths here apply to it."""
    normalizer, pre_tokenizer = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and normalizer["handle_chinese_chars"]
        and pre_tokenizer.get("type") == "BertPreTokenizer"
        and state["model"]["type"] == "WordPiece"
        and all(token["special"] for token in state["added_tokens"])  # another would be found inside words
    )


def is_sentencepiece(state: JsonObject) -> bool:
    """Whether a tokenizer is one of sentencepieces.py, so that an ASCII space always parts its pieces."""
    normalizer, pre_tokenizer = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    steps = [step["type"] for step in normalizer.get("normalizers", ())]
    cuts = pre_tokenizer.get("pretokenizers", ())
    return (
        steps == ["Precompiled", "Replace", "Strip"]
        and [cut["type"] for cut in cuts] == ["Metaspace", "Split"]
        and cuts[0]["prepend_scheme"] == "always"
        and cuts[0]["split"]
        and all(token["special"] for token in state["added_tokens"])
    )


class SentencePieceCache(dict[str, bytes]):
    """Ids by what stands between ASCII spaces; what is missing is encoded by `tokenizers`."""

    name = "the cache of chunks"

    def __init__(self, dtype: np.dtype, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer, self.dtype = tokenizer, dtype

    def encode(self, sentences: list[str]) -> Ids:
        """Return the ids of sentences."""
        return _joined(self, sentences, self.dtype)

    def __missing__(self, chunk: str) -> bytes:
        ids = array(self.dtype.char, self.tokenizer.encode(chunk, add_special_tokens=False).ids).tobytes()
        if len(chunk) <= CACHED_CHARS:
            if len(self) >= CACHE_ENTRIES:
                self.clear()
            self[chunk] = ids
        return ids


def _joined(ids_of: dict[str, bytes], sentences: list[str], dtype: np.dtype) -> Ids:
    get = ids_of.__getitem__
    found = [b"".join(map(get, sentence.split(" "))) for sentence in sentences]
    lengths = np.fromiter(map(len, found), np.int64, len(found)) // dtype.itemsize
    return Ids(np.frombuffer(b"".join(found), dtype), lengths)


class Nanotoken:
    """Encodes with the package nanotoken, on this thread: the parallel work is done by processes.

    Raises
    ------
    ImportError: it is not installed. ValueError: it does not take this tokenizer.
    """

    name = "nanotoken"

    def __init__(self, state: JsonObject, dtype: np.dtype):
        from nanotoken.nanotoken_rs import WordPieceTokenizer, set_cache_entries

        set_cache_entries(NANOTOKEN_WORDS)  # else a million: memory would grow with the corpus

        # Without the list of special tokens, a literal one in a text is a text like any other.
        plain = state | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self.wordpiece = WordPieceTokenizer.from_json(json.dumps(plain))
        self.dtype = dtype

    def encode(self, sentences: list[str]) -> Ids:
        """Return the ids of sentences."""
        ids, offsets = self.wordpiece.encode_batch(sentences, add_special_tokens=False, parallel=False)
        return Ids(ids.astype(self.dtype), np.diff(offsets))


class WordPieceCache(dict[str, bytes]):
    """Ids by piece of text. What is missing is cut into smaller pieces; of these, plain ASCII words are looked up by
    WordPiece's own rule, the longest entry first, and all others encoded by `tokenizers`."""

    name = "the cache of pieces"

    def __init__(self, state: JsonObject, dtype: np.dtype, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer, self.dtype = tokenizer, dtype
        self.lowercase = state["normalizer"]["lowercase"]
        self.prefix = state["model"]["continuing_subword_prefix"]
        self.longest_word = state["model"]["max_input_chars_per_word"]
        self.unknown_entry = state["model"]["unk_token"]
        self.vocab = state["model"]["vocab"]

    @cached_property
    def entries(self) -> dict[str, bytes]:
        """Ids by entry of the vocabulary."""
        return {entry: self._pack([token_id]) for entry, token_id in self.vocab.items()}

    @cached_property
    def longest_entry(self) -> int:
        """Characters of the longest entry."""
        return max(map(len, self.vocab))

    def encode(self, sentences: list[str]) -> Ids:
        """Return the ids of sentences."""
        return _joined(self, sentences, self.dtype)

    def __missing__(self, chunk: str) -> bytes:
        if chunk.isalnum() and chunk.isascii():
            ids = self._word(chunk.lower() if self.lowercase else chunk)
        elif 1 < len(chunk) <= CACHED_CHARS and chunk[-1] in _MARKS:  # most often: a known word and a comma
            ids = self[chunk[:-1]] + self[chunk[-1]]
        elif len(pieces := WORD_OR_MARK.findall(chunk)) > 1:
            ids = b"".join([self[piece] for piece in pieces])
        else:
            ids = self._pack(self.tokenizer.encode(chunk, add_special_tokens=False).ids)
        if len(chunk) <= CACHED_CHARS:
            if len(self) >= CACHE_ENTRIES:
                self.clear()  # crude, but what is frequent is back within a megabyte of text
            self[chunk] = ids
        return ids

    def _word(self, word: str) -> bytes:
        """Return the ids of a plain word, by the longest entry first: playing -> play ##ing."""
        entries, unknown = self.entries, self.entries[self.unknown_entry]
        if len(word) > self.longest_word:
            return unknown
        ids, start, prefix = b"", 0, ""
        while start < len(word):
            end = min(len(word), start + self.longest_entry)
            while (found := entries.get(prefix + word[start:end])) is None:
                end -= 1
                if end == start:
                    return unknown
            ids += found
            start, prefix = end, self.prefix
        return ids

    def _pack(self, ids: list[int]) -> bytes:
        return array(self.dtype.char, ids).tobytes()
