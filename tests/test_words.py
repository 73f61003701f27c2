"""Words that are counted by what stands between spaces are those that `tokenizers` cuts from the whole text."""

import random
import sys
from collections import Counter

import pytest

from data_prep.tokens import words as words_module
from data_prep.tokens.encode import ADVERSARIAL_STRINGS
from data_prep.tokens.wordpiece import bert_tokenizer
from data_prep.tokens.words import Cutter, WordCounter, chunks_of, joined

ODD = "  \t\n\r\x0b\x0c\x00\x01\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad\u0301\u0308\u200b\u200d\u2028\u2029\u3000\ufeff\ufffd"
SOME = "abcXYZ019.,;'\"-_$+~[]{}éÅßİıſﬁΣςдЙकि์ำกขไ한각ㅎ中国𠀀、。；·–—‘’“”…¿¡₤€😀👩‍🚀🏽𝒜Ⅷ½٣"


def whole(tokenizer, text):
    normal = tokenizer.normalizer.normalize_str(text)
    return Counter(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))


@pytest.mark.parametrize("cased", [False, True])
def test_words_are_those_of_tokenizers(cased, monkeypatch):
    """On every character between letters, and on random texts of odd ones."""
    monkeypatch.setattr(words_module, "_REMEMBERED", 500)
    draw = random.Random(cased)
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{char}b{char} " for char in every[first : first + 997]) for first in range(0, 0x20000, 997)]
    for _ in range(2000):
        letters = draw.choice((SOME + ODD, SOME + ODD, ODD + "aÉ-", "".join(draw.choices(every, k=20)) + ODD))
        texts.append("".join(draw.choices(letters, k=draw.randint(1, 40))))
    tokenizer = bert_tokenizer({}, cased)
    cutter = Cutter(tokenizer)
    for text in [*texts, *ADVERSARIAL_STRINGS]:
        found = Counter(word for chunk in chunks_of(text) for word in cutter.words(chunk))
        assert found == whole(tokenizer, text), ascii(text)


def test_a_sum_of_parts_is_the_whole(monkeypatch):
    monkeypatch.setattr(words_module, "_TEXT", 15)
    tokenizer = bert_tokenizer({}, cased=False)
    texts = ["To be, or not to be.", "Über den Fluß", "中国 to\x0bbe"]
    parts = []
    for text in texts:
        counter = WordCounter(Cutter(tokenizer))
        counter.add(text, len(text.encode()))
        counter.pass_over(7)
        parts.append(counter.result())
    total = joined(parts)
    assert total.words == whole(tokenizer, " ".join(texts))
    assert dict(zip(map(chr, total.codes), total.occurrences.tolist(), strict=True)) == Counter(
        "".join("".join(texts).replace("\x0b", "").split())
    )
    assert total.characters == sum(map(len, texts))
    assert total.read_bytes - total.text_bytes == 21
