"""Sentences end where a reader would say so, in several scripts, and no text is lost."""

import random
import re

import pytest

from data_prep.cli import InputError
from data_prep.text.sentences import COMMON, RULES, lines_of, looks_like_lines, splitter
from tests.reference import sentences as reference

CASES = {
    "en": [
        "Mr. Pym left.|Nobody saw him!",
        "Dr. J. R. Smith of the U.S. Army came at 5 p.m.|The door was open.",
        '"What?" he said.|"No!"|She left.',
        "It cost 3.14 dollars...|Nobody paid.",
        "See No. 5 and pp. 3-4.|It is on Jan. 5, 1999.",
        "Was it you?!|Yes.",
        "He lives in the U.S.|The house is old.",
        "Smith & Co. Ltd. sold it.|They left etc.|But why?",
        "(It rained.)|[It did.]|“So it goes.”|Then it stopped.",
        "12. Of the first matter",
        "I said so, e.g. Yesterday and i.e. Tomorrow.",
        "It was I.|You know.",
        "an example.org address stays",
        "Wait -- what?|Well! -- I never.",
        "He paused . . . .|Then he left.",
        "Never! . . .|She wept.",
        "One! ! !",
    ],
    "zh": ["他说：“好。”|然后走了！|真的？！|（是的。）|完", "「行く。」|彼は言った。", "他走了.|我没有3.5元!|好"],
    "ar": ["هل أنت هنا؟|نعم أنا هنا."],
    "hi": ["यह एक वाक्य है।|यह दूसरा है॥|अंत"],
    "ur": ["یہ جملہ ہے۔|یہ دوسرا ہے۔"],
    "de": [
        "Am 3. Mai kam Dr. Meier z.B. nach Berlin.|Er blieb.",
        "Das war 1848.|Danach nicht.",
        "»Er ist mein alles.«|Natürlich war er da.|„Ja.“|Sie ging.|Er sagte: ›Nie!‹|»Komm!«|»Nein.«",
        "»Todt!« stöhnte er.|Da ging er, z. B. Sonntags, d. h. heim.",
    ],
    "ru": ["Он родился в 1799 г. в Москве.|Потом уехал."],
    "mul": ["One here.|Two there."],
    "am": ["ሰላም ነህ።|እንዴት ነህ፧|ደህና ነኝ።"],
    "my": ["မင်္ဂလာပါ၊ ခင်ဗျာ။|နေကောင်းလား။"],
    "km": ["សួស្តី។|អ្នកសុខសប្បាយទេ។|ចប់៕"],
    "hy": ["Ես տուն գնացի։|Որտե՞ղ ես դու։|Այստեղ։"],
    "bo": ["བཀྲ་ཤིས་བདེ་ལེགས། །|ཁྱེད་རང་སྐུ་གཟུགས་བདེ་པོ་ཡིན་པས།|མཇུག༎"],
    "mn": ["ᠰᠠᠶᠢᠨ ᠪᠠᠶᠢᠨ᠎ᠠ ᠤᠤ᠃|ᠰᠠᠶᠢᠨ᠃|ᠮᠠᠨᠵᠤ᠉"],
    "sat": ["ᱡᱚᱦᱟᱨ᱾|ᱪᱮᱫ ᱞᱮᱠᱟ᱾"],
    "ka": ["გამარჯობა.|როგორ ხარ?|კარგად ვარ!|ბატონი გ. კაპანაძე მოვიდა."],
    "th": ["วันนี้ อากาศดี ผมไปตลาด"],
    "ja": ["本論文では提案する．|値は３．５である．|以上．"],
}

LOWER = {  # as somebody lower-cased them, or typed them
    "en": [
        "mr. pym left.|nobody saw him!|was it you?|the end",
        "dr. j. smith of the u.s. army came at 5 p.m.|the door was open.|it was i.|you know.",
        '"what?" he said.|he left it there.|see no. 5, e.g. this one.|it was 3.5 dollars.',
        "«one.»|two went.|three came.",
    ],
    "ru": ["он родился в 1799 г. в москве.|потом уехал.|все спали."],
    "el": ["καλημέρα σας.|τι κάνετε.|καλά είμαι!"],
    "de": ["das war dr. meier.|er blieb z.b. nie.|»nein.«|sie ging."],
    "mul": ["one here.|two there."],
}


@pytest.mark.parametrize(("lang", "case"), [(lang, case) for lang, cases in CASES.items() for case in cases])
def test_sentences_end_where_a_reader_says(lang, case):
    sentences = case.split("|")
    joint = "" if lang in ("zh", "hi", "ja", "km") else " "
    assert splitter(lang)([joint.join(sentences)]) == [sentences]


@pytest.mark.parametrize(("lang", "case"), [(lang, case) for lang, cases in LOWER.items() for case in cases])
def test_a_text_without_capitals_has_sentences_too(lang, case):
    sentences = case.split("|")
    assert splitter(lang)([" ".join(sentences)]) == [sentences]


def test_each_document_says_whether_it_is_written_with_capitals():
    cased, small = "He saw Dr. X. et al. went. Nobody came.", "he saw. they went. nobody came."
    georgian = "He wrote so. გამარჯობა. როგორ ხარ? The end. An apple etc. and more."
    expected = [
        ["He saw Dr. X. et al. went.", "Nobody came."],
        ["he saw.", "they went.", "nobody came."],
        ["He wrote so.", "გამარჯობა.", "როგორ ხარ?", "The end.", "An apple etc. and more."],
    ]
    assert splitter("en")([cased, small, georgian]) == expected
    assert splitter("en")([small, cased, small]) == [expected[1], expected[0], expected[1]]


def test_every_kind_of_line_end_is_one():
    for end in ("\n", "\r\n", "\r"):
        text = f"A title{end}{end}A line{end}that goes on.{end}It ends."
        assert splitter("en")([text, "x"]) == [["A title", "A line that goes on.", "It ends."], ["x"]]
        assert splitter("en", "lines")([text]) == [["A title", "A line", "that goes on.", "It ends."]]
        assert lines_of(text) == ["A title", "A line", "that goes on.", "It ends."]


PARTS = (
    "Mr word Word 5 12 e.g U.S a J I i no No p etc The the wo.rd 3.5 é É да Да 中 文 ა ბ ሰ x".split(),
    ". . . ! ? … 。 ！ ။ ། ． ։ ۔ ... ?!".split(),
    list("\"'”“»«)(’"),
    [*"     \n\r\t\u2028\u3000", "\n\n", "  ", "\n \n", "\r\n", ""],
)


def random_text(draw: random.Random) -> str:
    words, stops, quotes, blanks = PARTS
    return "".join(
        draw.choice(kind)
        for _ in range(draw.randint(0, 14))
        for kind, share in ((quotes, 0.1), (words, 1), (stops, 0.6), (quotes, 0.1), (blanks, 1), (blanks, 0.2))
        if draw.random() < share
    )


@pytest.mark.parametrize("lang", ["en", "de", "mul"])
def test_the_fast_rules_are_the_plain_ones(lang):
    draw = random.Random(lang)
    texts = [text if draw.random() < 0.6 else text.lower() for text in (random_text(draw) for _ in range(600))]
    fast = [found for start in range(0, len(texts), 7) for found in splitter(lang)(texts[start : start + 7])]
    for text, found in zip(texts, fast, strict=True):
        assert found == reference.split(text, RULES.get(lang, COMMON)), repr(text)


def test_a_blank_line_ends_a_sentence_and_a_line_break_is_a_space():
    texts = ["A title\n\nA line\nthat goes on.\n \n\nEnd", " \n\n ", "", "\n\nNext one\n"]
    expected = [["A title", "A line that goes on.", "End"], [], [], ["Next one"]]
    assert splitter("en")(texts) == expected
    assert splitter("en")([]) == []


def test_nothing_but_white_space_is_lost():
    draw = random.Random(0)
    alphabet = [
        "Mr.",
        "word",
        "Word",
        "5",
        ".",
        "!",
        "?",
        "。",
        "”",
        '"',
        "(",
        "U.S.",
        "\n",
        "\n\n",
        " ",
        "  ",
        "é",
        "…",
    ]
    texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 30))) for _ in range(2000)]
    for text, sentences in zip(texts, splitter("en")(texts), strict=True):
        assert all(sentence == sentence.strip() and sentence for sentence in sentences)
        assert re.sub(r"\s", "", "".join(sentences)) == re.sub(r"\s", "", text)


def test_lines_are_told_from_prose():
    assert looks_like_lines(["One sentence.", "And two!", "", "A third?", "Four."])
    assert not looks_like_lines(["A paragraph. It has two.", "", "Another. It has two, too."])
    assert not looks_like_lines(["wrapped text that", "goes on here and", "ends there. Now"])
    assert not looks_like_lines(["", " "])


def test_without_stops_lines_are_the_sentences():
    captions = [f"this is line {line} and it has no full stop" for line in range(6)]
    assert looks_like_lines([*captions, "", *captions, "one of a hundred has one."])
    assert looks_like_lines(["วันนี้ อากาศดี", "ผมไปตลาด", "", "เขาไม่มา", "แล้ว"])
    assert looks_like_lines(["ሰላም ነህ።", "እንዴት ነህ፧", "", "ደህና ነኝ።", "እሺ።"])
    assert not looks_like_lines(["a title", "", "another title", "", "and a third"])
    assert not looks_like_lines(
        ["words that are wrapped", "here end seldom. they", "go on in lines that", "no stop ends"]
    )


def test_other_splitters():
    text = "Mr. Pym left\nthe house. Nobody saw him!\n\n  Next one.  "
    assert splitter("en", "lines")([text, "x"]) == [["Mr. Pym left", "the house. Nobody saw him!", "Next one."], ["x"]]
    pytest.importorskip("punkt")
    assert splitter("en", "punkt")([text, "x"]) == [["Mr. Pym left the house.", "Nobody saw him!", "Next one."], ["x"]]
    with pytest.raises(InputError, match="--sentences punkt knows no 'zh', only cs, da, de"):
        splitter("zh", "punkt")


def test_texts_do_not_touch():
    texts = ["She left", "! ! !\n", "\n\n”", "One.", "", "。 。", "He is no", "5. It"]
    assert splitter("en")(texts) == [found for text in texts for found in splitter("en")([text])]


def test_a_text_of_nothing_but_stops_takes_no_longer_than_another():
    text = "A。" + " 。" * 300_000  # joined one by one, each would copy all before
    assert splitter("zh")([text]) == [[text]]


def test_characters_beyond_16_bits_shift_nothing():
    assert splitter("en")(["🙂 Mr. Pym left. \U0001d400 fell. 🙂🙂 did!", "Next 🙂. Two."]) == [
        ["🙂 Mr. Pym left.", "\U0001d400 fell.", "🙂🙂 did!"],
        ["Next 🙂.", "Two."],
    ]
