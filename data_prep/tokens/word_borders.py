"""Which tokens go on with the word before them, where the vocabulary cannot tell: Chinese writes words without spaces.

    borders = WordBorders(tokenizer, continuation_token_ids(...))
    borders.continuations(sentences, encoded)      # [T] bool; shard.py keeps a bit a token

A segmenter says where words begin: rjieba, the maintained edition of jieba in Rust, chosen with `--words jieba` (extra
[zh]). It decides about tokens that begin with a Chinese character, and about what follows one; about all others the
vocabulary decides. Masking by words and by runs of words then takes Chinese words as it takes English ones (Cui et al.
2019).
"""

import re
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from data_prep.cli import InputError
from data_prep.tokens.fast_paths import Ids

WordsFrom = Literal["vocab", "jieba"]
MISSING = "--words jieba needs the package rjieba: pip install 'zerobert[zh]'"
_HAN = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def words_version(words: WordsFrom) -> dict[str, str]:
    """Return what finds words and its version, as the manifest says it; nothing where it is the vocabulary."""
    if words == "vocab":
        return {}
    import importlib.metadata  # inside: 15 ms of every start

    try:
        return {"words": words, "rjieba": importlib.metadata.version("rjieba")}
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(MISSING) from error


class WordBorders:
    """Finds the words of Chinese sentences and lays them over their tokens.

    Raises
    ------
    InputError: the segmenter is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, continues: np.ndarray):
        self.tokenizer = tokenizer
        self.continues = continues  # [V] bool, what the vocabulary says
        self._segment = _segmenter()

    def continuations(self, sentences: list[str], encoded: Ids) -> np.ndarray:
        """Return [T] bool: tokens that go on with the word before them. `encoded` are the ids of the sentences."""
        found = self.continues[encoded.ids]
        chinese = [index for index, sentence in enumerate(sentences) if _HAN.search(sentence)]
        if not chinese:
            return found
        texts = [sentences[index] for index in chinese]
        inside, decides = self._characters(texts)
        # Once more, by the reference: only it says where in a sentence a token lies.
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64)
        assert (lengths == encoded.lengths[chinese]).all(), "encoded otherwise than by the reference"
        begins = np.fromiter((first for encoding in encodings for first, _ in encoding.offsets), np.int64)
        characters = begins + np.repeat(_before(np.fromiter(map(len, texts), np.int64)), lengths)
        tokens = np.arange(len(begins)) + np.repeat(_before(encoded.lengths)[chinese] - _before(lengths), lengths)
        found[tokens] = np.where(decides[characters], inside[characters], found[tokens])
        return found

    def _characters(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return of each character of texts, end to end, whether it lies inside a word, not at its beginning; and
        whether that decides about a token that begins with it."""
        together = "".join(texts)
        lengths = np.fromiter((len(word) for text in texts for word in self._segment(text)), np.int64)
        inside = np.ones(len(together), bool)
        inside[_before(lengths)] = False
        han = np.zeros(len(together), bool)
        han[np.fromiter((match.start() for match in _HAN.finditer(together)), np.int64)] = True
        after_han = np.concatenate([[False], han[:-1]])
        return inside, han | (after_han & ~inside)


def _before(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _segmenter() -> Any:
    try:
        import rjieba
    except ImportError as error:
        raise InputError(MISSING) from error
    return rjieba.cut
