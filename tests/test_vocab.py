"""A vocabulary folder is the same tokenizer to tokenizers, AutoTokenizer and BertTokenizer, and the same every time."""

import json
from functools import partial

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep.cli import InputError, parse
from data_prep.store import Store
from data_prep.tokens.encode import HARD, Encoder
from data_prep.vocab import SPECIAL, VocabConfig, main, read_vocab
from tests.corpora import as_jsonl, as_lines, files_of, run_script, texts, write

make = partial(parse, VocabConfig, None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "a.jsonl.gz", as_jsonl(texts(300)))
    write(folder / "b.txt", as_lines(texts(100, seed=1)))
    return folder


def train(corpus, out, *more):
    main(make(["--corpus", str(corpus), "--out", str(out), *more]))
    return out


@pytest.mark.parametrize("cased", [False, True])
def test_transformers_gives_the_ids_of_tokenizer_json(corpus, tmp_path, cased):
    from transformers import AutoTokenizer, BertTokenizer

    folder = train(corpus, tmp_path / "vocab", "--size", "300", *(["--cased"] if cased else []))
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for load in (AutoTokenizer.from_pretrained, BertTokenizer.from_pretrained):
        theirs = load(folder)
        assert (theirs.model_max_length, len(theirs)) == (512, ours.get_vocab_size())
        assert theirs.special_tokens_map["mask_token"] == "[MASK]"
        for text in HARD:
            found = theirs(text, "the pair")
            expected = ours.encode(text, "the pair")
            assert (found["input_ids"], found["token_type_ids"]) == (expected.ids, expected.type_ids), text


def test_ids_are_lines_and_special_tokens_come_first(corpus, tmp_path):
    folder = train(corpus, tmp_path / "vocab", "--size", "256")
    entries = (folder / "vocab.txt").read_text().splitlines()
    assert entries[:5] == list(SPECIAL)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert [ids[entry] for entry in entries] == list(range(len(ids)))


def test_the_same_corpus_gives_the_same_bytes(corpus, tmp_path):
    for name in ("a", "b"):  # in processes of their own: hash maps are seeded by process
        assert run_script("vocab", "--corpus", corpus, "--out", tmp_path / name, "--size", "320").returncode == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_sentencepiece_keeps_rare_letters(tmp_path, model):
    """Five in ten thousand characters may be left out by the trainer; q and x are rarer in German."""
    text = "Der Fluss ging still am alten Haus vorbei und niemand sah ihn.\n" * 600
    path = write(tmp_path / "a.txt", text + "Qual und Axt.\nQuer Hexe.\n")
    folder = train(path, tmp_path / "v", "--size", "256", "--model", model, "--txt", "lines")
    encoder = Encoder.load(folder)
    assert encoder.special_ids["unk"] not in encoder.encode(["Qual und Hexe quer", "x q"]).ids.tolist()
    assert {"q", "x"} <= {piece.removeprefix("▁") for piece in encoder.tokenizer.get_vocab()}


@pytest.mark.parametrize(
    ("text", "mark"),
    [("वह चला गया और नदी के पास बैठा रहा।", True), ("Über die Brücke.", True), ("Over the bridge.", False)],
)
def test_it_is_said_where_uncased_wordpiece_loses_marks(tmp_path, capsys, text, mark):
    path = write(tmp_path / "a.txt", f"{text}\n" * 50)
    for options, said in (((), mark), (("--cased",), False), (("--model", "unigram"), False)):
        train(path, tmp_path / "v", "--size", "256", "--txt", "lines", *options)
        assert ("takes accents and vowel signs off" in capsys.readouterr().err) == said


def test_room_that_words_leave_goes_to_rare_chinese_characters(tmp_path):
    common, rare = ([chr(0x4E00 + number) for number in numbers] for numbers in (range(100), range(100, 300)))
    text = "".join(common * 9 + rare * 2 + [chr(0x4E00 + 300)])
    entries = read_vocab(train(write(tmp_path / "a.txt", text), tmp_path / "v", "--size", "384") / "vocab.txt")
    assert set(common + rare) <= set(entries)
    assert chr(0x4E00 + 300) not in entries  # occurs once
    small = read_vocab(train(tmp_path / "a.txt", tmp_path / "w", "--size", "256") / "vocab.txt")
    assert len(small) == 256
    assert set(common) <= set(small)


def test_the_size_is_rounded_and_a_small_corpus_is_said(corpus, tmp_path, capsys):
    assert len(read_vocab(train(corpus, tmp_path / "a", "--size", "257") / "vocab.txt")) < 320
    said = capsys.readouterr().err
    assert "size 257 rounded up to 320" in said
    assert "fewer than 320" in said
    many = write(tmp_path / "many.txt", " ".join(f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrst"))
    folder = train(many, tmp_path / "b", "--size", "256", "--min_frequency", "1")
    assert len(read_vocab(folder / "vocab.txt")) == 256


def test_case_and_accents_are_kept_only_when_asked(corpus, tmp_path):
    uncased = read_vocab(train(corpus, tmp_path / "a", "--size", "512") / "vocab.txt")
    cased = read_vocab(train(corpus, tmp_path / "b", "--size", "512", "--cased") / "vocab.txt")
    assert {"uber", "paris", "中"} <= set(uncased)
    assert {"über", "Paris", "中"} <= set(cased)
    assert "##中" not in uncased + cased  # a Chinese character is always a word of its own


def test_a_published_vocabulary_keeps_its_ids(tmp_path, capsys):
    entries = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "twice", "##b", "twice", "c"]
    path = write(tmp_path / "vocab.txt", "\r\n".join(entries) + "\r\n")
    main(make(["--from_vocab", str(path), "--out", str(tmp_path / "out")]))
    assert "entries occur twice, such as 'twice'" in capsys.readouterr().err
    from transformers import BertTokenizer

    for tokenizer in (BertTokenizer.from_pretrained(tmp_path / "out"), BertTokenizer(str(path))):
        assert tokenizer.convert_tokens_to_ids(["[PAD]", "[MASK]", "twice", "##b", "c"]) == [0, 5, 9, 8, 10]
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "BertTokenizer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out o", "give either --corpus PATH... to train a vocabulary or --from_vocab"),
        ("--out o --corpus a.txt --from_vocab v.txt", "give either --corpus"),
        ("--out o --corpus a.txt --size 10", "--size 10 is too small"),
        ("--out o --corpus gone.txt", "gone.txt does not exist"),
        ("--out o --corpus blank.txt", "the corpus holds no text"),
        ("--out o --from_vocab gone.txt", "gone.txt cannot be read"),
        ("--out o --from_vocab words.txt", r"words.txt lacks \[PAD\], \[UNK\]"),
        ("--out full --corpus a.txt", "full exists and is not a tokenizer folder"),
    ],
)
def test_wrong_usage_is_named(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "Some text.")
    write(tmp_path / "blank.txt", "\n\n  \n")
    write(tmp_path / "words.txt", "one\ntwo\n")
    write(tmp_path / "full/letter.doc", "Dear you")
    before = files_of(tmp_path)
    with pytest.raises(InputError, match=message):
        main(make(arguments.split()))
    assert files_of(tmp_path) == before


def test_as_a_command_it_ends_with_the_codes_of_the_interface(corpus, tmp_path):
    elsewhere = run_script("vocab", "--corpus", corpus, "--out", "v", "--size", "256", cwd=tmp_path)
    assert (elsewhere.returncode, elsewhere.stdout) == (0, ""), elsewhere.stderr
    assert (tmp_path / "v/tokenizer.json").exists()
    wrong = run_script("vocab", "--corpus", tmp_path / "gone", "--out", tmp_path / "w")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert run_script("vocab", "--sise", "256").returncode == 2


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_becomes_one_tokenizer_for_all(corpus, tmp_path, kind, cased):
    from transformers import AutoTokenizer

    folder = train(corpus, tmp_path / "vocab", "--size", "256", "--model", kind, *(["--cased"] if cased else []))
    encoder, theirs = Encoder.load(folder), AutoTokenizer.from_pretrained(folder)
    assert encoder.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert (theirs.model_max_length, len(theirs), theirs.mask_token_id) == (512, encoder.size, 4)
    ours = encoder.encode(list(HARD))
    for text, ids in zip(HARD, np.split(ours.ids, np.cumsum(ours.lengths)[:-1]), strict=True):
        found = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert (ids.tolist(), not {0, 2, 3, 4} & set(found)) == (found, True), text
    pair = theirs("Nobody walked.", "The river.")
    first = theirs("Nobody walked.")["input_ids"]
    assert pair["token_type_ids"] == [0] * len(first) + [1] * (len(pair["input_ids"]) - len(first))
    assert theirs.decode(first, skip_special_tokens=True) == ("Nobody walked." if cased else "nobody walked.")


def test_sentencepiece_gives_the_same_bytes_every_time(corpus, tmp_path):
    for name in ("a", "b"):
        done = run_script("vocab", "--corpus", corpus, "--out", tmp_path / name, "--size", "256", "--model", "unigram")
        assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_store_made_with_sentencepiece_knows_its_words(corpus, tmp_path):
    folder = train(corpus, tmp_path / "vocab", "--size", "256", "--model", "unigram")
    done = run_script("shard", "--corpus", corpus, "--vocab", folder, "--out", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    store = Store.open(tmp_path / "store")
    entry = Tokenizer.from_file(str(folder / "tokenizer.json")).id_to_token
    assert not store.continues[:5].any()
    words, inside = (
        {entry(int(number)) or "" for number in np.flatnonzero(store.continues == flag) if number > 4}
        for flag in (False, True)
    )
    assert {".", "中", "▁"} <= words
    assert {"a", "e"} <= inside
    assert not any(piece.startswith("▁") for piece in inside)
