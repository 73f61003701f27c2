"""Tags of words -> spans, by the rules of conlleval, whichever of the usual schemes the tags follow.

    scheme   tags of a span of three words, and of one   a span begins
    BIO      B-x I-x I-x    B-x                          at each B- (also called IOB2)
    IOB1     I-x I-x I-x    I-x                          at an I-, and at a B- right behind a span of its kind
    BIOES    B-x I-x E-x    S-x                          at each B- and S-
    BILOU    B-x I-x L-x    U-x                          at each B- and U-
    BMES     B-x M-x E-x    S-x                          at each B- and S-

B_x, B:x, x-B and small letters mean the same, where all tags of a file are so and one begins; so does 0, _ or none in
the place of O. A span that a model begins in the wrong way, such as by I- behind O, is a span all the same: conlleval
counts it.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

Span = tuple[int, int, str]  # first word, word after the last, kind

# What each scheme writes in the place of B, I, E and S.
LETTERS = {
    "BIO": {"B": "B", "I": "I"},
    "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
}
PLAIN = "none"
# How a mark and a kind make a tag. B, M, E, S alone, as for the words of Chinese, are marks without a kind.
USUAL = re.compile(r"(?P<letter>.)(?:-(?P<kind>.+))?")
FORMS = (
    re.compile(r"(?P<letter>.)(?P<kind>)"),
    re.compile(r"(?P<letter>.)[-_:](?P<kind>.+)"),
    re.compile(r"(?P<kind>.+)[-_:](?P<letter>.)"),
)
OUTSIDE = frozenset({"O"})
OUTSIDE_BESIDE = frozenset({"o", "0"})  # beside O
OUTSIDE_INSTEAD = frozenset({"o", "0", "_", "-", "none", "null", "other", "outside"})  # in its place, in small letters


class Scheme(NamedTuple):
    """How tags mark spans; without any letters, as in parts of speech, each tag is a span of its own."""

    name: str
    letters: dict[str, str]
    form: re.Pattern[str] = USUAL
    outside: frozenset[str] = OUTSIDE


def scheme_of(sentences: list[list[str]]) -> Scheme:
    """Return the scheme of the tags of a file: the first whose letters are enough for all of them."""
    tags = {tag for sentence in sentences for tag in sentence}
    found = [match for tag in tags - OUTSIDE if (match := USUAL.fullmatch(tag)) and match["kind"]]
    if found and (letters := _letters_of({match["letter"] for match in found})):
        return _scheme(letters, USUAL, _outside(tags, {match[0] for match in found}), sentences)
    for form in FORMS:  # of which parts of speech may be by chance: so must be all tags, and one a beginning
        found = [match for tag in tags - OUTSIDE - OUTSIDE_BESIDE if (match := form.fullmatch(tag))]
        used = {match["letter"].upper() for match in found}
        outside = _outside(tags, {match[0] for match in found})
        if "B" in used and len(found) == len(tags - outside) and (letters := _letters_of(used)):
            return _scheme(letters, form, outside, sentences)
    return Scheme(PLAIN, {}, outside=OUTSIDE | (tags & {"o"}))


def _letters_of(used: set[str]) -> str:
    """Return the name of the first scheme that has all these letters; "" where none has."""
    return next((name for name, letters in LETTERS.items() if used <= set(letters)), "")


def _outside(tags: set[str], marked: set[str]) -> frozenset[str]:
    """Return what stands for words outside of any span: O, and what people write for it."""
    others = tags - marked - OUTSIDE
    if "O" in tags:
        return OUTSIDE | (others & OUTSIDE_BESIDE)
    return OUTSIDE | (others if len(others) == 1 and min(others).lower() in OUTSIDE_INSTEAD else frozenset())


def _scheme(name: str, form: re.Pattern[str], outside: frozenset[str], sentences: Iterable[list[str]]) -> Scheme:
    scheme = Scheme(name, LETTERS[name], form, outside)
    return scheme._replace(name="IOB1") if name == "BIO" and _begins_by_inside(sentences, scheme) else scheme


def _begins_by_inside(sentences: Iterable[list[str]], scheme: Scheme) -> bool:
    """Return whether a span begins with I- and none with a B- that could be one: the older IOB scheme."""
    begins_inside = False
    for tags in sentences:
        before, last = "O", ""
        for mark, kind in (_parsed(tag, scheme) for tag in tags):
            goes_on = before != "O" and kind == last
            begins_inside |= mark == "I" and not goes_on
            if mark == "B" and not goes_on:
                return False
            before, last = mark, kind
    return begins_inside


def kinds_of(sentences: list[list[str]], scheme: Scheme) -> list[str]:
    """Return the kinds of spans there are."""
    return sorted({kind for tags in sentences for _, _, kind in spans(tags, scheme)})


def spans(tags: list[str], scheme: Scheme) -> set[Span]:
    """Return the spans of one sentence.

    A tag outside of the scheme, as a part of speech, is a span of its own, so that F1 is then the accuracy.
    """
    result: set[Span] = set()
    start, mark, kind = 0, "O", ""
    for at, tag in enumerate([*tags, "O"]):
        before, last = mark, kind
        mark, kind = _parsed(tag, scheme)
        # The one case in which a span goes on; in any other, what was open ends here.
        if mark in ("I", "E") and before in ("B", "I") and kind == last:
            continue
        if before != "O":
            result.add((start, at, last))
        start = at
    return result


def _parsed(tag: str, scheme: Scheme) -> tuple[str, str]:
    """Return the tags as (O, B, I, E or S, kind)."""
    if tag in scheme.outside:
        return "O", ""
    match = scheme.form.fullmatch(tag)
    letter = match["letter"] if match else ""
    letter = letter if scheme.form is USUAL else letter.upper()
    if match and letter in scheme.letters:
        return scheme.letters[letter], match["kind"] or ""
    return "S", tag
