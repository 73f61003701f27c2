"""Dumps of MediaWiki (Wikipedia's pages-articles.xml) as documents: one an article, without markup.

    for page, text in articles(source, stream, counts): ...

Redirects, talk, templates and the other name spaces are left out. Markup goes through mwparserfromhell (extra [wiki]);
what it leaves standing is taken out beforehand or afterwards: tables, references, pictures and categories under the
names that the dump itself gives these, headings without text, brackets that a template left empty. Expat reads the XML:
it holds one article in memory, and refuses entities that multiply.
"""
# ruff: noqa: RUF001

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple
from xml.parsers import expat

from data_prep.cli import InputError
from data_prep.text.decoding import named_encoding
from data_prep.text.source import Source, reading

READ_CHUNK_BYTES = 1 << 16
MAX_ARTICLE_CHARS = 4 << 20  # of an article's source; MediaWiki itself takes 2 MB
_FILE, _MEDIA, _CATEGORY = "6", "-2", "14"  # keys of name spaces
_DROPPED = re.compile(r"<!--.*?-->|<ref\b[^>]*/>|<ref\b.*?</ref>|__[A-Z]+__", re.S | re.I)
_BREAK = re.compile(r"<(?:br|hr)\b[^>]*>", re.I)
_EMPTY_BRACKETS = re.compile(r"\s?[(（][\s,;:،、；，]*[)）]")
_AFTER_BRACKET = re.compile(r"([(（])[\s,;:،、；，]+")


_DECLARED = re.compile(rb"<\?xml[^>]*?\sencoding\s*=\s*[\"']([A-Za-z0-9._:-]+)")
_OF_EXPAT = ("utf-8", "utf-16", "iso8859-1", "ascii")


class Page(NamedTuple):
    """What a dump says of a page."""

    id: str
    title: str
    text: str


def extractor() -> str:
    """Return name and version of what takes the markup out, for the manifest.

    Raises
    ------
    InputError: it is not installed.
    """
    import importlib.metadata  # inside: 15 ms of every start

    try:
        return f"mwparserfromhell {importlib.metadata.version('mwparserfromhell')}"
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            "dumps of MediaWiki need the package mwparserfromhell: pip install 'zerobert[wiki]'"
        ) from error


def is_dump(beginning: bytes) -> bool:
    """Whether an XML file is a dump of MediaWiki, by its beginning."""
    return b"<mediawiki" in beginning[:4096].replace(b"\0", b"")  # UTF-16 is XML too


def declared_encoding(beginning: bytes) -> str | None:
    """Return the encoding that an XML file says it has: "" where expat reads it by itself, None where it says nothing.

    Raises
    ------
    InputError: an encoding that Python does not know.
    """
    if beginning.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return ""
    declared = _DECLARED.match(beginning)
    if declared is None:
        return "" if b"\0" in beginning[:4] else None  # UTF-16 without a mark
    name = named_encoding(declared[1].decode("ascii"))
    return "" if name in _OF_EXPAT else name


def articles(source: Source, stream: BinaryIO, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield (id of the page, plain text) of the articles of a dump.

    Raises
    ------
    DamagedError: the file is damaged or cut short.
    """
    reader = _Reader(counts, "utf-8" if source.encoding else None)
    while True:
        with reading(source):
            chunk = stream.read1(READ_CHUNK_BYTES)  # type: ignore[attr-defined]
        broken = None
        try:
            reader.parser.Parse(chunk, not chunk)
        except expat.ExpatError as error:
            broken = error
        plain = None
        for page in reader.take():
            plain = plain or plain_text(reader.spaces)
            try:
                yield page.id, f"{page.title}\n\n{plain(page.text)}"
            except _MarkupError:
                counts["bad_lines"] += 1
        if broken is not None:
            with reading(source):
                raise EOFError(f"XML: {broken}") from broken
        if not chunk:
            return


class _MarkupError(Exception):
    """mwparserfromhell gives up."""


class _Reader:
    """Collects pages from expat's events."""

    def __init__(self, counts: Counter[str], encoding: str | None):
        self.counts = counts
        self.spaces: dict[str, str] = {}  # names of name spaces by their key
        self.parser = expat.ParserCreate(encoding)
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self._path: list[str] = []
        self._page: dict[str, str] = {}
        self._parts: list[str] = []
        self._size = 0
        self._done: list[Page] = []

    def take(self) -> list[Page]:
        """Return the articles that ended since the last call."""
        done, self._done = self._done, []
        return done

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        self._parts, self._size = [], 0
        if name == "page":
            self._page = {}
        elif name == "namespace":
            self._page["key"] = attributes.get("key", "")
        elif name == "redirect":
            self._page["redirect"] = "yes"

    def _text(self, text: str) -> None:
        self._size += len(text)
        if self._size <= MAX_ARTICLE_CHARS:
            self._parts.append(text)

    def _end(self, name: str) -> None:
        self._path.pop()
        if name == "namespace":
            self.spaces[self._page["key"]] = "".join(self._parts)
        elif name == "page":
            self._finish()
        elif name == "text" and self._size > MAX_ARTICLE_CHARS:
            self._page["too long"] = "yes"
        elif self._path[-1:] in (["page"], ["revision"]):  # the id of the page comes before that of its revision
            self._page.setdefault(name, "".join(self._parts))
        self._parts, self._size = [], 0

    def _finish(self) -> None:
        page = self._page
        if page.get("ns", "0") != "0" or "redirect" in page or page.get("model", "wikitext") != "wikitext":
            return
        if "too long" in page:
            self.counts["long_lines"] += 1
        elif text := page.get("text", "").strip():
            self._done.append(Page(page.get("id", ""), page.get("title", ""), text))


def plain_text(spaces: dict[str, str]) -> Callable[[str], str]:
    """Return the function from markup to text; `spaces` are the dump's names of its name spaces by their key."""
    import mwparserfromhell  # inside: an extra

    hidden = {"file", "image", "media", "category"} | {
        spaces.get(key, "").lower() for key in (_FILE, _MEDIA, _CATEGORY)
    }
    hidden.discard("")

    def strip(markup: str) -> str:
        try:
            code = mwparserfromhell.parse(_BREAK.sub("\n", _DROPPED.sub("", markup)))
            for node in code.filter(matches=lambda node: _is_hidden(node, hidden)):
                try:
                    code.remove(node)
                except ValueError:  # it went with another one, in which it stood
                    continue
            return _tidy(code)
        except (mwparserfromhell.parser.ParserError, RecursionError) as error:
            raise _MarkupError from error

    return strip


def _is_hidden(node: Any, hidden: set[str]) -> bool:
    from mwparserfromhell import nodes

    if isinstance(node, nodes.Tag):
        return str(node.tag).lower() in ("table", "ref", "gallery", "math", "timeline", "imagemap", "score")
    if isinstance(node, nodes.Wikilink):
        title = str(node.title).strip()
        return title.split(":")[0].strip().lower() in hidden if ":" in title else False
    return False


def _tidy(code: Any) -> str:
    """Return text as paragraphs; headings that nothing follows are left out."""
    from mwparserfromhell import nodes

    headings = {" ".join(str(node.title.strip_code()).split()) for node in code.filter(forcetype=nodes.Heading)}
    text = _AFTER_BRACKET.sub(r"\1", _EMPTY_BRACKETS.sub("", code.strip_code()))
    lines = [" ".join(line.split()) for line in text.split("\n")]
    kept: list[str] = []
    for line in reversed([line for line in lines if line and not line.startswith(("|", "!", "{|"))]):  # rests of tables
        if line in headings and (not kept or kept[-1] in headings):
            continue
        kept.append(line)
    return "\n\n".join(reversed(kept))
