"""Pieces joined from counts are those of the trainer of `tokenizers`, which reads each word as often as it occurs."""

import random
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_prep.tokens.joining import join_pieces
from data_prep.tokens.sentencepieces import SPECIAL


def theirs(words, alphabet, inside, size, least):
    tokenizer = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=least,
        special_tokens=[*SPECIAL, *alphabet, *inside],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join([word] * count) for word, count in words.items()], trainer)
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


@pytest.mark.parametrize("letters", ["ab", "abcde", "aeiounrst", "кaü中ก"])
def test_entries_are_those_of_tokenizers(letters):
    """Words of few letters: many ties, pieces that are made in two ways, pairs that overlap as in aaaa. One letter is
    beyond the alphabet."""
    draw = random.Random(letters)
    for trial in range(40):
        syllables = ["".join(draw.choices(letters, k=draw.randint(1, 3))) for _ in range(8)]
        spelled = ["".join(draw.choices(syllables, k=draw.randint(1, 5))) for _ in range(draw.choice((5, 40, 300)))]
        words = Counter({word: draw.choice((1, 1, 2, 3, draw.randint(1, 300))) for word in spelled})
        alphabet = sorted(letters)[: len(letters) - trial % 2]
        inside = [f"##{letter}" for letter in alphabet]
        size, least = draw.choice((20, 60, 400)), draw.choice((1, 2, 5))
        found = join_pieces(words, SPECIAL, alphabet, inside, size=size, least=least)
        assert found == theirs(words, alphabet, inside, size, least), (trial, words)


def test_counts_may_exceed_32_bits():
    words = {"th": 3 << 31, "an": 3}
    alphabet = list("ahnt")
    found = join_pieces(words, SPECIAL, alphabet, [f"##{letter}" for letter in alphabet], size=15, least=2)
    assert found[-2:] == ["th", "an"]
