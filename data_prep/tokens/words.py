"""Which tokens go on with the word before them, where the vocabulary cannot tell: Chinese writes words without spaces.

    borders = WordBorders(tokenizer, continuing_entries(...))
    borders.continuing(sentences, encoded)      # [T] bool; shard.py keeps a bit a token

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
_HAN = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def words_version(words: WordsFrom) -> dict[str, str]:
    """What finds words and its version, as the manifest says it; nothing where it is the vocabulary."""
    if words == "vocab":
        return {}
    import importlib.metadata

    return {"words": words, "rjieba": importlib.metadata.version("rjieba")}


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

    def continuing(self, sentences: list[str], encoded: Ids) -> np.ndarray:
        """[T] bool: tokens that go on with the word before them. `encoded` are the ids of the sentences."""
        found = self.continues[encoded.ids]
        chinese = [number for number, sentence in enumerate(sentences) if _HAN.search(sentence)]
        stops = np.cumsum(encoded.lengths)
        # Once more, by the reference: only it says where in the sentence a token lies.
        encodings = self.tokenizer.encode_batch([sentences[number] for number in chinese], add_special_tokens=False)
        for number, encoding in zip(chinese, encodings, strict=True):
            assert len(encoding.ids) == encoded.lengths[number], sentences[number]
            if encoding.ids:
                first = np.array(encoding.offsets)[:, 0]
                inside, decides = self._characters(sentences[number])
                tokens = slice(int(stops[number]) - len(first), int(stops[number]))
                found[tokens] = np.where(decides[first], inside[first], found[tokens])
        return found

    def _characters(self, sentence: str) -> tuple[np.ndarray, np.ndarray]:
        """Of each character of a sentence: whether it lies inside a word, not at its beginning; and whether that
        decides about a token that begins with it."""
        lengths = np.fromiter(map(len, self._segment(sentence)), np.int64)
        inside = np.ones(len(sentence), bool)
        inside[np.cumsum(lengths) - lengths] = False
        han = np.fromiter((_HAN.match(character) is not None for character in sentence), bool, len(sentence))
        after_han = np.concatenate([[False], han[:-1]])
        return inside, han | (after_han & ~inside)


def _segmenter() -> Any:
    try:
        import rjieba
    except ImportError as error:
        raise InputError("--words jieba needs the package rjieba: pip install 'zerobert[zh]'") from error
    return rjieba.cut
