"""A code of a language decides case, kind of vocabulary and sentences, in one table that all commands read."""

import json
import re

import pytest

from data_prep.cli import InputError, parse
from data_prep.shard import ShardConfig
from data_prep.text.languages import RULES, defaults, what_uncased_loses, with_punkt
from data_prep.text.sentences import splitter
from data_prep.vocab import VocabConfig, main, settled
from tests.corpora import write


@pytest.mark.parametrize(
    ("given", "code"),
    [
        *(("de", "de"), ("de-AT", "de"), ("zh-Hans", "zh"), ("ger", "de"), ("deu", "de"), ("pt_BR.UTF-8", "pt")),
        *(("German", "de"), (" EN ", "en"), ("cmn-Hant-TW", "zh"), ("iw", "he"), ("gsw", "gsw"), ("und", "und")),
    ],
)
def test_codes_of_all_kinds_name_a_language(given, code):
    assert defaults(given).code == code


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("germn", r"meant may be de \(German\)"),
        ("jp", r"ja \(Japanese\)"),
        ("dk", r"da \(Danish\)"),
        ("xq", "known are ab, ace, af, .* zu; others take mul"),
        ("", "known are"),
    ],
)
def test_an_unknown_code_is_refused_with_what_is_near(given, said):
    with pytest.raises(InputError, match=f"--lang {given!r} is no language that is known here: .*{said}"):
        defaults(given)


def test_the_table_is_whole():
    for code in {*RULES, *with_punkt(), "mul"}:
        language = defaults(code)
        assert (language.code, language.abbreviations) == (code, code in RULES)
    cased = {code: defaults(code).cased for code in "en id sw de fr pl tr vi ru el hi ar ja ko zh th mul".split()}
    assert [code for code, kept in cased.items() if not kept] == ["en", "id", "sw"]
    assert [code for code in cased if defaults(code).vocab_kind == "unigram"] == ["ja", "th"]


@pytest.mark.parametrize(
    ("text", "example", "share"),
    [
        ("Für das Haus ist es schön. Schon, aber schön alt!", "schön -> schon", 3 / 37),  # schon is a word, fur is none
        ("करें और कर", "करें -> कर", 2 / 8),
        ("всё и все", "всё -> все", 1 / 7),
        ("한국 한국 사람", "한국 -> ᄒ ᅡ ᆫ ᄀ ᅮ ᆨ", 1),
        ("over the 12 bridges", "", 0),
        ("", "", 0),
    ],
)
def test_what_is_lost_is_shown_by_a_word_of_the_text(text, example, share):
    lost = what_uncased_loses(text.split("\n"))
    assert lost.example == example
    assert lost.share == pytest.approx(share, abs=0.001)


def vocab(tmp_path, options):
    path = write(tmp_path / "a.txt", "Es ist schön und für die Höhe schon hoch genug.\n" * 40)
    main(parse(VocabConfig, None, [*f"--corpus {path} --out {tmp_path}/v --size 256".split(), *options.split()]))
    return json.loads((tmp_path / "v/tokenizer_config.json").read_text())["do_lower_case"]


@pytest.mark.parametrize(
    ("options", "lower", "said"),
    [
        ("--lang de-CH", False, r"German: cased wordpiece: nouns .*\(schön -> schon\) \(--uncased to say otherwise\)"),
        ("--lang en", True, r"English: uncased wordpiece: .*\(--cased to say otherwise\)[\s\S]*schön -> schon"),
        ("--lang de --uncased", True, "German: uncased wordpiece\n"),
        ("--cased", False, "cased WordPiece"),
        ("", True, r"takes accents .* 6\.4 % of the characters \(schön -> schon, .*--lang CODE"),
    ],
)
def test_a_language_decides_what_the_options_leave_open(tmp_path, capsys, options, lower, said):
    assert vocab(tmp_path, options) == lower
    output = capsys.readouterr().err
    assert re.search(said, output), output
    if "--uncased" in options:  # asked for: nothing to warn of
        assert "warning" not in output.replace("all entries are single", "")


def test_without_spaces_a_vocabulary_is_unigram_unless_somebody_says_otherwise(tmp_path):
    def config(*more):
        return settled(parse(VocabConfig, None, ["--corpus", "a.txt", "--out", str(tmp_path / "v"), *more]))

    assert (config("--lang", "th").model, config("--lang", "th", "--model", "bpe").model) == ("unigram", "bpe")
    assert (config().model, config().cased, config("--lang", "th").cased) == ("wordpiece", False, True)


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (VocabConfig, "--corpus a --out v --cased --uncased", "exclude each other"),
        (VocabConfig, "--from_vocab a --out v --lang de", "--lang is for a vocabulary that is trained"),
        (VocabConfig, "--corpus a --out v --lang klingon", "--lang 'klingon' is no language"),
        (ShardConfig, "--corpus a --out s --vocab v --lang klingon", "--lang 'klingon' is no language"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_read(config, options, said):
    with pytest.raises(InputError, match=said):
        parse(config, None, options.split())


def test_a_code_with_a_region_has_the_rules_of_its_language():
    text = "Er kam bzw. Anna ging. Am 3. Mai kam er."
    assert splitter("de-AT")([text]) == splitter("ger")([text]) == [["Er kam bzw. Anna ging.", "Am 3. Mai kam er."]]


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("fr", "M. Dupont et Mme. Durand vinrent à St. Malo.|Il pleuvait, etc.|Le soir vint, cf. no. 5."),
        (
            "es",
            "El Sr. López y la Dra. Ruiz viven en la pág. 7.|Es así, p.ej. Madrid.|Comió pan, etc.|La casa es roja.",
        ),
        ("it", "Il sig. Rossi e la dott.ssa Bianchi partirono.|Fu così, ecc.|Il giorno dopo, cfr. Dante."),
        ("pt", "O Sr. Silva vive na Av. Paulista.|Foi assim, etc.|A casa é azul."),
        ("nl", "Dhr. Jansen woont bijv. Amsterdam uit.|Het is zo, enz.|De zon schijnt."),
        ("pl", "Dr. Nowak mieszka przy ul. Długiej.|Tak jest np. Kraków.|Było to w 1920 r.|Nie wrócił."),
        ("sv", "Dr. Berg bor t.ex. Stockholm nära.|Så är det, osv.|Det regnar."),
    ],
)
def test_abbreviations_end_no_sentence(lang, text):
    sentences = text.split("|")
    assert splitter(lang)([" ".join(sentences)]) == [sentences]
