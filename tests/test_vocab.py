"""A vocabulary folder is the same tokenizer to tokenizers, AutoTokenizer and BertTokenizer, and the same every time."""

import json
from functools import partial

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep.cli import InputError, parse
from data_prep.files import sha256_of
from data_prep.store import Store
from data_prep.tokens import contract
from data_prep.tokens.encode import ADVERSARIAL_STRINGS, Encoder
from data_prep.tokens.sentencepieces import MAX_SENTENCE_BYTES, SPECIAL, trainable
from data_prep.tokens.wordpiece import read_vocab, write_tokenizer
from data_prep.vocab import VocabConfig, main
from tests.corpora import as_jsonl, as_lines, files_of, run_script, texts, write
from tests.forked import fork_script

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
        for text in ADVERSARIAL_STRINGS:
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


def test_entries_that_no_word_can_be_are_said_or_refused(tmp_path, capsys):
    special, words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["a", "##b", "c", "d"]
    path = tmp_path / "vocab.txt"

    def entries_of(*lines: str) -> list[str]:
        return read_vocab(write(path, "".join(f"{line}\n" for line in lines)))

    assert entries_of(*(f"{entry}  " for entry in special + words)) == special + words
    assert "white space around 9 entries, such as '[PAD]  ', is left out" in capsys.readouterr().err
    entries_of(*special, *words, "new york")
    assert "1 of 5 entries hold white space, such as 'new york', and no word does" in capsys.readouterr().err
    entries_of(*special, "a", "b")
    assert "no entry begins with ##" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"4 of 4 entries hold white space, such as 'a\\t7', and no"):
        entries_of(*special, *(f"{word}\t7" for word in words))
    with pytest.raises(InputError, match="holds no entries but special tokens"):
        entries_of(*special)


ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "é", "##中"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + "\n".join(ENTRIES).encode(),
        "\r\n".join([*ENTRIES, ""]).encode("utf-8-sig"),
        "\r".join(ENTRIES).encode(),
        ("\n".join(ENTRIES) + "\n\n\n").encode(),
        "\n".join(ENTRIES).encode("utf-16"),
        "\ufeff".encode("utf-16-be") + "\r\n".join(ENTRIES).encode("utf-16-be"),
        "\n".join(ENTRIES).encode("utf-32"),
    ],
)
def test_a_vocabulary_is_read_whatever_wrote_it(tmp_path, raw):
    path = tmp_path / "vocab.txt"
    path.write_bytes(raw)
    assert read_vocab(path) == ENTRIES


def test_blank_lines_of_a_vocabulary_keep_the_ids_below_them(tmp_path, capsys):
    path = write(tmp_path / "vocab.txt", "\n".join([*ENTRIES, "", "b", "", "c", "b"]))
    assert read_vocab(path) == [*ENTRIES, "[blank8]", "[repeated9]", "[blank10]", "c", "b"]
    assert "2 blank lines, such as line 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("\n".join(ENTRIES).encode("latin-1", "ignore"), "is not UTF-8"),
        ("\n".join(ENTRIES).encode("utf-16-le"), "is not UTF-8|holds NUL characters"),
        ("\n".join(ENTRIES[:6]).encode("utf-16-be"), "holds NUL characters"),
        (b"\xff\xfe[", "is not UTF-8"),
        (b"", r"lacks \[PAD\]"),
        (json.dumps(dict.fromkeys(ENTRIES, 0)).encode(), r"lacks \[PAD\]"),
    ],
)
def test_what_is_no_vocabulary_is_named(tmp_path, raw, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message) as caught:
        read_vocab(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_long_sentences_and_lines_without_stops_reach_the_trainer(tmp_path, capsys, model):
    """The trainer leaves out what is longer than 4,192 bytes, and all that holds its own sign, without a word."""
    thai = ["กาขาคน", "งานจะที่", "ไปมารัก", "บ้านดีวัน"]
    line = "".join(thai[number * number % 7 % 4] for number in range(400))
    assert len(line.encode()) > 4192
    path = write(tmp_path / "a.txt", f"{line}\n" * 20 + "\nqat qat ▅ qat\n" * 20)
    for layout in ("lines", "prose"):
        folder = train(path, tmp_path / layout, "--size", "256", "--model", model, "--txt", layout)
        pieces = set(Encoder.load(folder).tokenizer.get_vocab())
        assert any(len(piece) > 3 and piece[-1] in "กาขาคนงานจะที่ไปมารักบ้านดีวัน" for piece in pieces)
        assert any("qat" in piece for piece in pieces)
        assert "warning" not in capsys.readouterr().err


def test_a_sentence_is_cut_for_the_trainer_and_nothing_is_lost():
    for text in ("word " * 3000, "ก" * 5000, "🙂" * 3000 + " x" * 10, "", "short"):
        parts = list(trainable(text))
        assert "".join(parts) == text
        assert all(len(part.encode()) <= MAX_SENTENCE_BYTES for part in parts)
    assert [part[-1] for part in trainable("word " * 3000)][:2] == ["d", "d"]


@pytest.mark.parametrize(("model", "text"), [("wordpiece", "ab ba cab"), ("unigram", "Over the bridge.\n" * 50)])
def test_a_vocabulary_of_letters_is_said(tmp_path, capsys, model, text):
    train(write(tmp_path / "a.txt", text), tmp_path / "v", "--size", "256", "--model", model)
    said = capsys.readouterr().err
    assert "all entries are single characters" in said
    assert "fewer than 256" in said
    with pytest.raises(InputError, match=r"no character occurs 999 times in a.txt; lower --min_frequency"):
        train(tmp_path / "a.txt", tmp_path / "w", "--size", "256", "--min_frequency", "999")
    path = write(tmp_path / "zh.txt", "河边的人走了。他们走了。\n" * 3)
    train(path, tmp_path / "zh", "--size", "256")
    assert "single characters" not in capsys.readouterr().err


def test_it_is_said_where_a_vocabulary_does_not_know_its_own_corpus(tmp_path, capsys):
    thai = "".join(["กา", "ขา", "คน", "งาน", "จะ"][number**3 % 5] for number in range(3000))
    lines = [thai[number * 11 : number * 11 + 160] for number in range(200)]
    path = write(tmp_path / "a.txt", "\n".join(lines))
    train(path, tmp_path / "v", "--size", "256", "--cased")
    said = capsys.readouterr().err
    assert "warning: 99.8 % of the characters are unknown" in said
    assert "--model unigram" in said
    train(path, tmp_path / "w", "--size", "256", "--cased", "--model", "unigram")
    assert "unknown" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out o", "give either --corpus PATH... to train a vocabulary or --from_vocab"),
        ("--out o --corpus a.txt --from_vocab v.txt", "give either --corpus"),
        ("--out o --corpus a.txt --size 10", r"--size 10 must lie in \[256"),
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


@pytest.mark.slow
def test_as_a_command_it_ends_with_the_codes_of_the_interface(corpus, tmp_path):
    elsewhere = run_script("vocab", "--corpus", corpus, "--out", "v", "--size", "256", cwd=tmp_path)
    assert (elsewhere.returncode, elsewhere.stdout) == (0, ""), elsewhere.stderr
    assert (tmp_path / "v/tokenizer.json").exists()
    wrong = fork_script("vocab", "--corpus", tmp_path / "gone", "--out", tmp_path / "w")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert fork_script("vocab", "--sise", "256").returncode == 2


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_becomes_one_tokenizer_for_all(corpus, tmp_path, kind, cased):
    from transformers import AutoTokenizer

    folder = train(corpus, tmp_path / "vocab", "--size", "256", "--model", kind, *(["--cased"] if cased else []))
    encoder, theirs = Encoder.load(folder), AutoTokenizer.from_pretrained(folder)
    assert encoder.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert (theirs.model_max_length, len(theirs), theirs.mask_token_id) == (512, encoder.size, 4)
    ours = encoder.encode(list(ADVERSARIAL_STRINGS))
    for text, ids in zip(ADVERSARIAL_STRINGS, np.split(ours.ids, np.cumsum(ours.lengths)[:-1]), strict=True):
        found = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert (ids.tolist(), not {0, 2, 3, 4} & set(found)) == (found, True), text
    pair = theirs("Nobody walked.", "The river.")
    first = theirs("Nobody walked.")["input_ids"]
    assert pair["token_type_ids"] == [0] * len(first) + [1] * (len(pair["input_ids"]) - len(first))
    assert theirs.decode(first, skip_special_tokens=True) == ("Nobody walked." if cased else "nobody walked.")


@pytest.mark.slow
def test_sentencepiece_gives_the_same_bytes_every_time(corpus, tmp_path):
    for name in ("a", "b"):
        done = run_script("vocab", "--corpus", corpus, "--out", tmp_path / name, "--size", "256", "--model", "unigram")
        assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_store_made_with_sentencepiece_knows_its_words(corpus, tmp_path):
    folder = train(corpus, tmp_path / "vocab", "--size", "256", "--model", "unigram")
    done = fork_script("shard", "--corpus", corpus, "--vocab", folder, "--out", tmp_path / "store")
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


def extended(hf, corpus, out, *more):
    main(make(["--extend", str(hf), "--corpus", str(corpus), "--out", str(out), *more]))
    return out


@pytest.mark.parametrize("has", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("cased", [False, True])
def test_words_are_added_behind_the_entries_of_a_model(tmp_path, capsys, cased, has):
    """By the tokens that they save: a word of 3 pieces 4 times before one of 2 pieces 7 times."""
    letters = "abcdefghijklmnopqrstuvwxyzäßü"
    entries = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), "##mill", "wind", "mill", "##er", *"KÄ1中-"]
    hf = tmp_path / "hf"
    hf.mkdir()
    write_tokenizer(hf, entries, cased)
    if has == "vocab.txt":
        (hf / "tokenizer.json").unlink()
    text = " ".join(["windmiller"] * 4 + ["windmill"] * 7 + ["Käse"] * 9 + ["käse"] * 2 + ["wind"] * 99)
    write(tmp_path / "a.txt", f"{text} {'中' * 9} {'国' * 3} 11 11 11 b-b b-b b-b zz q")
    out = extended(hf, tmp_path / "a.txt", tmp_path / "out", "--add", "5")
    added = (out / "vocab.txt").read_text().splitlines()[len(entries) :]
    # Uncased: käse without its accent, 11 x 3; cased Käse 9 x 3, käse 2 x 3. 国 is unknown: 3 tokens become known.
    assert added == (
        ["kase", "windmiller", "windmill", "国"] if not cased else ["Käse", "windmiller", "windmill", "käse", "国"]
    )
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert [tokenizer.id_to_token(row) for row in range(len(entries) + len(added))] == entries + added
    record = json.loads((out / "extension.json").read_text())
    assert (record["entries"], record["added"], record["unknown"]) == (len(entries), len(added), 1)
    assert record["base"]["sha256"]["vocab.txt"] == sha256_of(hf / "vocab.txt")
    assert record["tokens"]["before"] > record["tokens"]["after"]
    said = capsys.readouterr().err
    assert f"{len(entries)} of {hf} with their ids and {len(added)} words added" in said
    assert ("fewer than 5" in said) == (not cased)
    # What transformers makes of it is the same tokenizer, and a store can be made with it.
    contract.check(out)
    assert contract.is_extension(contract.tokenizer_of(hf), Encoder.load(out))
    assert not contract.is_extension(Encoder.load(out), contract.tokenizer_of(hf))

    assert ("1 words more that are known" in said, "warning" in said) == (True, False)
    write(tmp_path / "thai.txt", "ภาษาไทยไม่มีช่องว่าง ระหว่างคำ " * 4)
    extended(hf, tmp_path / "thai.txt", tmp_path / "thai")
    assert "warning: 2 of 2 words added are all that stands between two spaces" in capsys.readouterr().err


def test_what_cannot_be_extended_is_named(tmp_path):
    write(tmp_path / "a.txt", "Some text of few words.")
    for folder in ("hf", "model", "unigram"):
        (tmp_path / folder).mkdir()
        write_tokenizer(tmp_path / folder, [*SPECIAL, "some", "text", "of", "few", "words", "."], cased=False)
    write(tmp_path / "model/config.json", "{}")
    tokenizer = json.loads((tmp_path / "unigram/tokenizer.json").read_text())
    tokenizer["model"] = {"type": "Unigram", "unk_id": 1, "vocab": [[entry, 0.0] for entry in SPECIAL]}
    write(tmp_path / "unigram/tokenizer.json", json.dumps(tokenizer))
    before = files_of(tmp_path)
    for arguments, message in (
        ("--add 5 --corpus a.txt --out out", "--add 5 goes with --extend"),
        ("--extend hf --out out", "takes words from --corpus"),
        ("--extend hf --corpus a.txt --out out --cased", "--cased is of a new vocabulary"),
        ("--extend hf --corpus a.txt --out out --size 1000", "--size is of a new vocabulary"),
        ("--extend hf --corpus a.txt --out hf", "is the folder of --extend"),
        ("--extend hf --corpus a.txt --out model", "is not a tokenizer folder"),
        ("--extend none --corpus a.txt --out out", r"none has no tokenizer\.json and no vocab\.txt"),
        ("--extend unigram --corpus a.txt --out out", "its vocabulary is Unigram"),
        ("--extend hf --corpus a.txt --out out", "spells no word in pieces that stands 2 times"),
    ):
        paths = ("a.txt", "out", "hf", "model", "none", "unigram")
        words = [str(tmp_path / word) if word in paths else word for word in arguments.split()]
        with pytest.raises(InputError, match=message):
            main(make(words))
    assert files_of(tmp_path) == before
