"""The sentence rules as one would write them without a thought of speed: one text, one stop after the other.

Only the lists of data_prep/text/sentences.py are shared (stops, quotes, abbreviations), not one line of its logic.
"""

import re

from data_prep.text import sentences as lists

LATIN = ".!?"
STOPS, CLOSING, OPENING = lists.STOPS, lists.CLOSING, lists.OPEN
BEFORE_A_WORD = "\"'“‘«»„‚›‹([—–-"  # what may stand before the word that a dot follows


def split(text: str, rules: lists.Rules) -> list[str]:
    """The sentences of one text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    paragraphs = re.split(r"\n\s*\n", text)
    in_capitals = written_with_capitals(text)
    return [sentence for paragraph in paragraphs for sentence in of_paragraph(paragraph, in_capitals, rules)]


def written_with_capitals(text: str) -> bool:
    """Whether at least a quarter of the letters where a sentence may begin are no small ones."""
    beginnings = [paragraph.lstrip() for paragraph in re.split(r"\n\s*\n", text)]
    after_dots = [text[m.end() :] for m in re.finditer(rf"\.[{re.escape(CLOSING)}]?[ \n]", text)]
    firsts = [rest[1:2] if rest[:1] in OPENING else rest[:1] for rest in beginnings + after_dots]
    letters = [letter for letter in firsts if letter.isalpha()]
    return sum(not is_small(letter) for letter in letters) >= 0.25 * len(letters)


def is_small(letter: str) -> bool:
    """Whether a capital would stand in its place; Georgian has none."""
    return letter.islower() and not "ა" <= letter <= "ჿ"


def of_paragraph(text: str, in_capitals: bool, rules: lists.Rules) -> list[str]:
    """The sentences of one paragraph."""
    text = text.replace("\n", " ")
    found, begin, at = [], 0, 0
    while at < len(text):
        if text[at] not in STOPS:
            at += 1
            continue
        end = at
        while end < len(text) and text[end] in STOPS:
            end += 1
        while end < len(text) and text[end] in CLOSING:
            end += 1
        if ends_sentence(text, begin, at, end, in_capitals, rules):
            found.append(text[begin:end].strip())
            begin = end
        at = end
    return joined([*found, text[begin:].strip()])


def joined(parts: list[str]) -> list[str]:
    """A part without a word belongs to the one before."""
    sentences: list[str] = []
    for part in filter(None, parts):
        if sentences and not re.search(r"\w", part):
            sentences[-1] += " " + part
        else:
            sentences.append(part)
    return sentences


def ends_sentence(text: str, begin: int, at: int, end: int, in_capitals: bool, rules: lists.Rules) -> bool:
    """Whether the stop text[at:end], closing quotes included, ends the sentence that began at `begin`."""
    if text[at] in lists.WIDE_STOPS:
        return True
    following = next_word(text, end)
    if not following:  # the paragraph ends, or nothing parts the stop from what follows, as in Chinese
        number = text[at - 1].isdigit() and text[end : end + 1].isdigit()
        return text[at] in ".!?．" and at > begin and text[at - 1] >= "\u2e80" and not number
    if following[0] in BEFORE_A_WORD + ".!?…,;:)]}”’»*/":
        return False
    if is_small(following[0]) and (in_capitals or (text[at] in "!?" and text[end - 1] in CLOSING)):
        return False
    if text[at:end] != ".":
        return True
    word = re.split(" ", text[begin:at])[-1].lstrip(BEFORE_A_WORD)
    return dot_ends(text[begin:at], word, following, rules)


def next_word(text: str, end: int) -> str:
    """The word after white space and opening quotes; nothing where no white space follows."""
    rest = text[end:]
    if not rest[:1].isspace():
        return ""
    rest = rest.lstrip()
    bare = rest.lstrip(OPENING) or rest
    word = re.match(r"\w+|\S", bare)
    return word[0] if word else ""


def dot_ends(sentence: str, word: str, following: str, rules: lists.Rules) -> bool:
    """Whether a dot after this word is the end, and not part of an abbreviation, an initial or a number."""
    if word.isdigit():
        numbers_what_follows = sentence.strip() == word
        return not numbers_what_follows and not (rules.ordinals and len(word) <= 2)
    if len(word) == 1 and word.isalpha() and word not in ("I", "i") and (not word.islower() or following[0].islower()):
        return False
    if word.lower() in rules.never:
        return False
    if word.lower() in rules.numbered:
        return not following[0].isdigit()
    if word.lower() in rules.seldom or "." in word:
        return following.lower() in rules.starters
    return True
