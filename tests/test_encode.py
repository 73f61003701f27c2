"""Whatever path encodes, the ids are transformers' own."""

import functools
import random
import sys
import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.cli import InputError
from data_prep.tokens import fast_paths, sentencepieces
from data_prep.tokens.encode import ADVERSARIAL_STRINGS, Encoder
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.wordpiece import finish_tokenizer
from tests.corpora import texts, tiny_vocab, write

VERY_HARD = (
    *ADVERSARIAL_STRINGS,
    *(
        "İ",
        "ı",
        "ẞß",
        "Σς",
        "ǅ",
        "ﬃ",
        "Å\u030a",
        "\u0345",
        "ᾳ",
        "a\u0338b",
        "=\u0338",
        "中\u20dd",
        "、\u0301",
        "“\u0308”",
    ),
    *("⓪①", "\u1680\u180e\u202f\u205f", "\u200e\u200f\u061c", "\ufe0f", "\U000e0041", "\ud7fb", "가각힣", "ｶﾞ", "が"),
    *(
        "$＄￥＋",
        "\u2010\u2011\u00ad",
        "\u30fb・･",
        "「」『』〔〕【】",
        "a。b，c",
        "\u3000",
        "\u2029",
        "\x1c\x1d",
        "\t \r\n",
    ),
    *(
        "a" * 5000,
        "。" * 300,
        "中" * 300,
        "a " * 300,
        "\u0301" * 50,
        "[MASK",
        "[mask][Mask]",
        "##ly",
        "[UNK]",
        "x[SEP]y",
    ),
)


@pytest.fixture(scope="module", params=[False, True], ids=["uncased", "cased"])
def folder(request, tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "v", cased=request.param)


@pytest.fixture(scope="module")
def theirs(folder):
    """What transformers makes of so many texts, asked once for both paths: texts, and ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    @functools.cache
    def asked(count):
        texts = [*VERY_HARD, *random_texts(count)]
        return texts, tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    return asked


def one_by_one(encoded):
    return [ids.tolist() for ids in np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])]


def batched(items, size):
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def ids_of(encoder, texts):
    return one_by_one(encoder.encode(texts))


def reference(encoder, texts):
    return one_by_one(encoder.encode_by_reference(texts))


def random_texts(count, seed=0):
    """Unicode at random, salted with what borders words."""
    draw = random.Random(seed)
    salt = [*" .,!?-[]()“”—…。，中文éaBz09\u0301\u00a0\u3000", "[MASK]", " the "]
    planes = [range(0x20, 0x250), range(0x250, 0x3000), range(0x3000, 0xD800), range(0xE000, 0x32000)]
    return [
        "".join(
            draw.choice(salt) if draw.random() < 0.5 else chr(draw.choice(draw.choice(planes)))
            for _ in range(draw.randint(1, 25))
        )
        for _ in range(count)
    ]


@pytest.fixture(params=["nanotoken", "pieces"])
def path(request):
    if request.param == "nanotoken":
        pytest.importorskip("nanotoken")
    return request.param


@pytest.mark.parametrize("count", [4000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_ids_are_those_of_transformers(folder, theirs, count, path):
    encoder = Encoder.load(folder, path)
    assert encoder.backend == {"nanotoken": "nanotoken", "pieces": "the cache of pieces"}[path]
    texts, expected = theirs(count)
    for text, ours, wanted in zip(texts, ids_of(encoder, texts), expected, strict=True):
        assert ours == wanted, (text, [unicodedata.name(character, "?") for character in text])


@pytest.mark.parametrize("stop", [0x3100, pytest.param(0x30000, marks=pytest.mark.slow)])
def test_every_code_point_between_letters(folder, stop, path):
    encoder = Encoder.load(folder, path)
    codes = [*range(0x20, min(stop, 0xD800)), *range(0xE000 if stop > 0xE000 else 0xFE00, max(stop, 0x10000))]
    texts = [" ".join(f"a{chr(code)}b" for code in some) for some in batched(codes, 16)]
    assert ids_of(encoder, texts) == reference(encoder, texts)


def test_literal_special_tokens_are_text(folder, path):
    encoder = Encoder.load(folder, path)
    assert encoder.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    for ids in ids_of(encoder, ["[MASK]", "a [SEP] b", "[CLS][PAD]", "the[MASK]"]):
        assert ids
        assert not {0, 2, 3, 4} & set(ids)


def test_the_cache_may_overflow(folder, monkeypatch):
    monkeypatch.setattr(fast_paths, "CACHE_ENTRIES", 10)
    encoder = Encoder.load(folder, "pieces")
    texts = random_texts(200)
    assert ids_of(encoder, texts) == reference(encoder, texts)


def test_a_fast_path_that_errs_is_left_and_said(folder, monkeypatch, capsys):
    assert Encoder.load(folder, "pieces").check(["the river"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(fast_paths, "WORD_OR_MARK", fast_paths.re.compile("."))  # parts words into letters
    encoder = Encoder.load(folder, "pieces")
    assert not encoder.check(["the river"])
    assert "the cache of pieces errs on" in capsys.readouterr().err
    assert encoder.backend == "tokenizers"
    assert ids_of(encoder, ["the river"]) == reference(encoder, ["the river"])


def test_the_next_path_takes_over_where_nanotoken_errs(folder, monkeypatch, capsys):
    pytest.importorskip("nanotoken")
    right = fast_paths.Nanotoken.encode
    wrong = lambda self, sentences: right(self, [s.replace("river", "rive r") for s in sentences])  # noqa: E731
    monkeypatch.setattr(fast_paths.Nanotoken, "encode", wrong)
    encoder = Encoder.load(folder)
    assert encoder.check(["the river"])
    assert "nanotoken errs on 1 strings, such as 'the river'; encoding with the cache" in capsys.readouterr().err


def test_without_nanotoken_the_cache_encodes(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nanotoken.nanotoken_rs", None)  # as if it were not installed
    assert Encoder.load(folder).backend == "the cache of pieces"
    with pytest.raises(InputError, match=r"--encode_with nanotoken: not installed \(pip install 'zerobert\[fast\]'"):
        Encoder.load(folder, "nanotoken")
    assert Encoder.load(folder, "tokenizers").backend == "tokenizers"


def test_another_kind_of_tokenizer_goes_the_slow_way(tmp_path, capsys):
    tokenizer = Tokenizer(
        models.WordLevel({token: n for n, token in enumerate([*SPECIAL, "a", "b"])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder.load(tmp_path)
    assert not encoder.check()
    assert "no faster path" in capsys.readouterr().err
    assert ids_of(encoder, ["a b", "b"]) == [[5, 6], [6]]


def test_ids_take_two_bytes_or_four():
    tokens = {token: n for n, token in enumerate([*SPECIAL, *(f"w{n}" for n in range(70_000))])}
    encoder = Encoder(Tokenizer(models.WordLevel(tokens, unk_token="[UNK]")), {})
    assert encoder.dtype == np.dtype("<u4")
    assert ids_of(encoder, ["w69999"]) == [[70_004]]


def test_a_folder_that_will_not_do_is_named(tmp_path):
    with pytest.raises(InputError, match=r"is not a tokenizer folder .*; make one with .*vocab"):
        Encoder.load(tmp_path)
    write(tmp_path / "old/vocab.txt", "[UNK]")
    with pytest.raises(InputError, match=r"vocab.* --from_vocab .*/old/vocab\.txt --out VOCAB$"):
        Encoder.load(tmp_path / "old")
    write(tmp_path / "old/config.json", "{}")  # a model of before tokenizer.json, as many are published
    with pytest.raises(InputError, match=r"export .*/old OUT makes one beside its weights$"):
        Encoder.load(tmp_path / "old")
    write(tmp_path / "broken/tokenizer.json", "{}")
    with pytest.raises(InputError, match="broken cannot be loaded"):
        Encoder.load(tmp_path / "broken")
    vocab = tiny_vocab(tmp_path / "v")
    config = (vocab / "tokenizer_config.json").read_text()
    write(vocab / "tokenizer_config.json", config.replace('"[MASK]"', '"<mask>"'))
    with pytest.raises(InputError, match="lacks <mask>"):
        Encoder.load(vocab)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_by_chunks_equals_the_reference(tmp_path, kind):
    words = [" ".join(sentence) for sentence in texts(300, seed=2)]
    tokenizer = sentencepieces.train(words, kind, 256, cased=False)
    finish_tokenizer(tokenizer)
    sentencepieces.write(tmp_path, tokenizer)
    encoder = Encoder.load(tmp_path)
    assert encoder.backend == "the cache of chunks"
    hard = [*VERY_HARD, *random_texts(4000), *words]
    assert ids_of(encoder, hard) == reference(encoder, hard)
