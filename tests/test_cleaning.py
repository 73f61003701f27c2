"""Cleaning does what it is asked, counts it, and test sets stay out."""

import json
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError

import pytest

from data_prep.cli import InputError
from data_prep.shard import ShardConfig, make_store
from data_prep.store import Store
from data_prep.text import cleaning
from data_prep.text.cleaning import (
    Cleaner,
    Cleaning,
    CleaningConfig,
    excluded_grams,
    grams_of,
    hash_of,
    identity_of,
    settings_of,
)
from data_prep.text.corpus import Document
from tests.corpora import as_jsonl, texts, tiny_vocab, write
from tests.forked import fork_script

LONG = "the quick brown fox walked slowly under the old stone bridge of Paris"


def cleaned(text, **wanted):
    counts: Counter[str] = Counter()
    document = Cleaner(Cleaning(**wanted))(Document("a:1", text), counts)
    return document.text if document else None, dict(counts)


def test_mojibake_is_mended_and_signs_are_left_alone():
    pytest.importorskip("ftfy")
    assert cleaned("The Mona Lisa doesn\u00e2\u20ac\u2122t smile.", ftfy=True) == (
        "The Mona Lisa doesn\u2019t smile.",
        {"mended_texts": 1},
    )
    for good in ("\u201cQuotes\u201d \u2014 dashes\u2026 \ufb01 \u2167 \u4e2d\u6587\uff0c", "a\n\nb"):
        assert cleaned(good, ftfy=True) == (good, {})


def test_control_characters_go_and_line_ends_stay():
    assert cleaned("a\x00b\x07c\nd\te\x9f", control=True) == ("abc\nd\te", {"control_characters": 3})
    assert cleaned("\x00\x01", control=True) == (None, {"control_characters": 2, "short_documents": 1})


def test_short_documents_are_left_out():
    assert cleaned("short", min_chars=6) == (None, {"short_documents": 1})
    assert cleaned("longer", min_chars=6) == ("longer", {})


def test_listed_documents_and_lines_are_left_out():
    listed = frozenset({identity_of(Document("a:1", "whatever"))})
    assert cleaned("text", drop_documents=listed) == (None, {"dropped_documents": 1})
    lines = frozenset({hash_of("Menu | Login")})
    assert cleaned("News.\n Menu | Login \n\nMore.", drop_lines=lines) == ("News.\n\nMore.", {"dropped_lines": 1})


def test_eight_words_in_common_are_contamination():
    found = frozenset(grams_of(LONG))
    assert len(found) == len(LONG.split()) - 7
    assert cleaned(f"So: {LONG.upper()}!", exclude=found) == (None, {"excluded_documents": 1})
    seven = " ".join(LONG.split()[:7])
    assert cleaned(f"{seven} or so", exclude=found)[1] == {}
    assert list(grams_of("too few words")) == []


def test_runs_of_words_equal_a_naive_search():
    words = "a b c d e f g h a b c d e f g h i".split()
    naive = {tuple(words[at : at + cleaning.GRAM_WORDS]) for at in range(len(words) - cleaning.GRAM_WORDS + 1)}
    assert len(set(grams_of(" ".join(words)))) == len(naive)


def test_test_sets_are_read_in_every_format(tmp_path):
    write(tmp_path / "a.tsv", f"text\tlabel\n{LONG}\t1\n")
    write(tmp_path / "b.jsonl.gz", json.dumps({"label": 1, "tokens": LONG.split()}) + "\n")
    write(tmp_path / "c.txt", LONG)
    write(tmp_path / "d.csv", f"{LONG}\n")  # without a header
    write(tmp_path / "e.jsonl", json.dumps({"paragraphs": [{"text": LONG}]}) + "\n")
    write(tmp_path / "f.jsonl", json.dumps(LONG) + "\n")
    for path in tmp_path.iterdir():
        assert excluded_grams([path]) == frozenset(grams_of(LONG)), path
    with pytest.raises(InputError, match=r"gone\.tsv does not exist"):
        excluded_grams([tmp_path / "gone.tsv"])


@pytest.mark.slow
def test_all_of_it_is_counted_in_the_manifest_and_does_not_depend_on_workers(tmp_path):
    documents = [[f"Number {n}.", *sentences] for n, sentences in enumerate(texts(200, seed=1))]
    documents[7] = [LONG + "."]
    documents[9] = ["a\x07 short one."]
    write(tmp_path / "c/a.jsonl", as_jsonl(documents))
    write(tmp_path / "test.txt", LONG)
    vocab = tiny_vocab(tmp_path / "v")
    for workers in ("1", "2"):
        done = fork_script(
            *("shard", "--corpus", tmp_path / "c", "--vocab", vocab, "--out", tmp_path / workers, "--workers", workers),
            *("--shard_mb", "0.01", "--control", "--min_chars", "30", "--exclude", tmp_path / "test.txt"),
        )
        assert done.returncode == 0, done.stderr
    one, two = (Store.open(tmp_path / workers) for workers in ("1", "2"))
    assert one.identity == two.identity
    counts = one.manifest.counts
    assert (counts.excluded_documents, counts.control_characters) == (1, 1)
    assert counts.short_documents >= 1
    assert counts.documents == 200 - 1 - counts.short_documents
    assert one.manifest.irregularities["c/a.jsonl"]["excluded_documents"] == 1
    assert len(one.manifest.settings["exclude"]) == 1


@pytest.mark.slow
def test_documents_of_other_languages_are_left_out():
    texts = {
        "en": "The river ran slowly under the old stone bridge, and nobody walked there. " * 9,
        "de": "Der Fluss floss langsam unter der alten Brücke, und niemand ging dort entlang. " * 9,
        "zh": "河水在古老的石桥下缓缓流淌，没有人在那里行走。" * 9,
        "hi": "नदी पुराने पुल के नीचे धीरे धीरे बह रही थी और वहाँ कोई नहीं चल रहा था। " * 9,
    }
    counts: Counter[str] = Counter()
    clean = Cleaner(Cleaning(languages=frozenset(["de", "zh"])))
    kept = [language for language, text in texts.items() if clean(Document(language, text), counts)]
    assert (kept, counts) == (["de", "zh"], {"other_languages": 2})
    titled = Document("x", "Licence and title. " + texts["de"] * 9)
    assert clean(titled, counts) == titled
    assert settings_of(CleaningConfig(only_lang=("zh", "de")))["only_lang"] == ["de", "zh"]
    with pytest.raises(InputError, match="--only_lang xx: py3langid knows ace af am"):
        Cleaner(Cleaning(languages=frozenset(["xx"])))


def test_the_option_reaches_the_store_and_its_package_is_named(tmp_path, monkeypatch):
    documents = {
        "en": "The river ran slowly under the old bridge. " * 9,
        "de": "Der Fluss floss unter der Brücke. " * 9,
    }
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in documents.values()))
    config = ShardConfig(
        vocab=tiny_vocab(tmp_path / "v"), out=tmp_path / "s", corpus=(str(tmp_path / "a.jsonl"),),
        cleaning=CleaningConfig(only_lang=("en",)), workers=1, holdout=0,
    )  # fmt: skip
    make_store(config)
    manifest = Store.open(tmp_path / "s").manifest
    assert (manifest.counts.documents, manifest.counts.other_languages) == (1, 1)
    assert set(manifest.settings) >= {"only_lang", "py3langid"}

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    for wanted in ((True, ()), (False, ("en",))):
        with pytest.raises(InputError, match=r"is needed: pip install 'zerobert\[text\]'"):
            settings_of(CleaningConfig(ftfy=wanted[0], only_lang=wanted[1]))
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(InputError, match=r"pip install 'zerobert\[text\]'"):
        Cleaner(Cleaning(languages=frozenset(["en"])))
