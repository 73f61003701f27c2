"""Tags of words -> spans, by the rules of conlleval, whichever of the usual schemes the tags follow.

    scheme   tags of a span of three words, and of one   a span begins
    BIO      B-x I-x I-x    B-x                          at each B- (also called IOB2)
    IOB1     I-x I-x I-x    I-x                          at an I-, and at a B- right behind a span of its kind
    BIOES    B-x I-x E-x    S-x                          at each B- and S-
    BILOU    B-x I-x L-x    U-x                          at each B- and U-
    BMES     B-x M-x E-x    S-x                          at each B- and S-

A span that a model begins in the wrong way, such as by I- behind O, is a span all the same: conlleval counts it.
"""

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


class Scheme(NamedTuple):
    """How tags mark spans; without any letters, as in parts of speech, each tag is a span of its own."""

    name: str
    letters: dict[str, str]


def scheme_of(sentences: list[list[str]]) -> Scheme:
    """Return the scheme of the tags of a file: the first whose letters are enough for all of them."""
    tags = {tag for sentence in sentences for tag in sentence} - {"O"}
    # B, M, E, S alone, as for the words of Chinese, are marks without a kind; without a B they are parts of speech.
    bare = "B" in tags and all(len(tag) == 1 for tag in tags)
    used = {tag[0] for tag in tags if bare or (tag[1:2] == "-" and len(tag) > 2)}
    for name, letters in LETTERS.items():
        if used and used <= set(letters):
            scheme = Scheme(name, letters)
            return scheme._replace(name="IOB1") if name == "BIO" and _begins_by_inside(sentences) else scheme
    return Scheme(PLAIN, {})


def _begins_by_inside(sentences: list[list[str]]) -> bool:
    """Return whether a span begins with I- and none with a B- that could be one: the older IOB scheme."""
    begins_inside = False
    for tags in sentences:
        for before, tag in zip(["O", *tags], tags, strict=False):
            same_kind = before[2:] == tag[2:] and before != "O"
            begins_inside |= tag[0] == "I" and not same_kind
            if tag[0] == "B" and not same_kind:
                return False
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
    if tag == "O":
        return "O", ""
    letter, dash, kind = tag.partition("-")
    if letter in scheme.letters and bool(dash) == bool(kind):
        return scheme.letters[letter], kind
    return "S", tag
