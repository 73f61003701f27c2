"""Encyclopedias in text files, by article: WikiText, and what WikiExtractor makes of a dump.

    wikitext          lines of " = Title = ", " = = Section = = " and a paragraph each; its " @-@ " is a hyphen again
    wikiextractor     <doc id="12" url="..." title="Title">, a line a paragraph, </doc>; in files called wiki_00

A document is an article, its title and headings being paragraphs, headings without text left out. As everywhere, a
document belongs to the range of bytes in which it begins.
"""

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_prep.text.source import decode

LAYOUTS = ("wikitext", "wikiextractor")
_TITLE = re.compile(rb" ?= (?!=)[^\n]*[^=\s] = ?\r?\n?")
_HEADING = re.compile(r"(=(?: =)*) (?!=)(.*\S) \1")
_DOC = re.compile(rb'<doc id="[^"]*"(?:[^\n]*?\btitle="([^\n]*)")?[^>\n]*>\r?\n?')
_END = re.compile(rb"</doc>\s*")
_SIGNS = re.compile(r" @([-,.])@ ")  # how WikiText spells signs inside words and numbers: 1 @,@ 000
_OF_TEXT = 99


class _Kind(NamedTuple):
    begins: re.Pattern[bytes]  # a line that begins an article
    is_text: bool  # whether it belongs to the text


_KINDS = {"wikitext": _Kind(_TITLE, True), "wikiextractor": _Kind(_DOC, False)}


def layout_of(beginning: bytes) -> str:
    """Return which of the two a text is, by its first line that is not blank; "" if it is neither."""
    first = beginning.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n \t").split(b"\n", 1)[0]
    return next((layout for layout, kind in _KINDS.items() if kind.begins.fullmatch(first)), "")


def read(
    layout: str,
    lines: Iterable[tuple[int, bytes]],
    counts: Counter[str],
    *,
    start: int,
    stop: int,
    longest: int,
) -> Iterator[tuple[int, str]]:
    """Yield (place, text) of the articles that begin in bytes [start, stop); above `longest` bytes they come in
    parts."""
    begins, is_text = _KINDS[layout]
    paragraphs: list[str] = []
    title = ""
    first, size = (0 if start == 0 else -1), 0  # -1: in an article of the range before
    for place, line in lines:
        begin = begins.fullmatch(line)
        if begin or (size > longest and first >= 0):
            if paragraphs:
                yield first, _text(layout, paragraphs, title, goes_on=not begin)
                if not begin:
                    counts["cut_documents"] += 1
            paragraphs, size, title = [], 0, ""
            if begin and place >= stop:
                return
            first = place
            if begin and not is_text:
                title = html.unescape(decode(begin[1] or b"", counts)).strip()
                continue
        if first < 0:
            if place >= stop:
                return
            continue
        if (text := decode(line, counts).strip()) and not _END.fullmatch(line):
            paragraphs.append(text)
            size += len(line)
    if paragraphs:
        yield first, _text(layout, paragraphs, title)


def _text(layout: str, paragraphs: list[str], title: str, goes_on: bool = False) -> str:
    """Return the article, or nothing where it is a title only; `goes_on` where it is a part that another one
    follows."""
    if layout == "wikiextractor":
        text = html.unescape("\n\n".join(paragraphs))
        return "" if text == title else text
    kept: list[str] = []
    following = _OF_TEXT if goes_on else 0  # level of what stands below, text being the deepest; nothing at the end
    for paragraph in reversed(paragraphs):
        heading = _HEADING.fullmatch(paragraph)
        level = heading[1].count("=") if heading else _OF_TEXT
        if not heading or following > level:
            kept.append(heading[2] if heading else paragraph)
            following = level
    return _SIGNS.sub(r"\1", "\n\n".join(reversed(kept)))
