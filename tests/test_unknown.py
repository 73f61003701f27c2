"""The share of characters that a vocabulary does not know is counted exactly, however the ids are made."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.store import Store
from data_prep.tokens.encode import ADVERSARIAL_STRINGS, Encoder
from data_prep.tokens.unknown import UnknownCharacters, advice, characters_of
from tests.corpora import as_jsonl, texts, tiny_vocab, write
from tests.forked import fork_script

TEXTS = (
    *ADVERSARIAL_STRINGS,
    "I saw ሰላም and ሰላም, not ሰላምx!",
    "word " + "y" * 101 + " word",
    "ድ",
)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "vocab")


def plainly(tokenizer, unknown_id, text):
    encoding = tokenizer.encode(text, add_special_tokens=False)
    pairs = zip(encoding.ids, encoding.offsets, strict=True)
    return sum(stop - start for number, (start, stop) in pairs if number == unknown_id)


@pytest.mark.parametrize("encode_with", ["auto", "tokenizers", "pieces"])
def test_unknown_characters_are_those_behind_unknown_tokens(vocab, encode_with):
    encoder = Encoder.load(vocab, encode_with)
    unknown = UnknownCharacters(encoder.tokenizer, encoder.special_ids["unk"])
    expected = [plainly(encoder.tokenizer, encoder.special_ids["unk"], text) for text in TEXTS]
    assert sum(expected) == 318
    assert unknown.count(TEXTS, encoder.encode(list(TEXTS))) == sum(expected)
    for text, count in zip(TEXTS, expected, strict=True):
        assert unknown.count([text], encoder.encode([text])) == count, text
    assert unknown.count([], encoder.encode([])) == 0


def test_a_tokenizer_of_another_kind_is_taken_whole():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a b": 1, "c": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(",", "removed")
    unknown = UnknownCharacters(tokenizer, 0)
    encoder = Encoder(tokenizer, {"unk": 0})
    assert unknown.count(["a b,c,d d"], encoder.encode(["a b,c,d d"])) == 3


def test_characters_are_counted_without_spaces_and_many_unknown_ones_give_advice():
    assert characters_of(["ab c", "", " ", "ሰላም"]) == 6
    assert advice(1, 100) == advice(0, 0) == ""
    assert "2.0 % of the characters" in advice(2, 100)


@pytest.mark.slow
def test_a_store_says_it_in_its_counts_and_show_repeats_it(tmp_path, vocab):
    documents = [[*sentences, "ሰላም ነህ wie ሰላም።"] for sentences in texts(40)]
    write(tmp_path / "a.jsonl", as_jsonl(documents))
    manifests = []
    for workers in (1, 3):
        out = tmp_path / f"store{workers}"
        options = ("--corpus", tmp_path / "a.jsonl", "--vocab", vocab, "--out", out, "--workers", workers)
        done = fork_script("shard", *options, "--shard_mb", ".002")
        assert done.returncode == 0, done.stderr
        assert "% of the characters are unknown to this vocabulary" in done.stderr
        manifests.append((out / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]
    counts = Store.open(tmp_path / "store1").manifest.counts
    assert counts.characters == characters_of(" ".join(document) for document in documents)
    assert counts.characters is not None
    assert (counts.unknown, counts.unknown_characters) == (40 * 4, 40 * 9)  # the full stop is a token of its own
    found = json.loads(fork_script("show", tmp_path / "store1", "--json").stdout)
    assert found["unknown_char_rate"] == 40 * 9 / counts.characters > found["unknown_rate"]
