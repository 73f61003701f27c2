"""Sources to documents, streaming: memory does not grow with the corpus.

    sources = find_sources(["wiki/", "news-*.jsonl.zst", "book.txt"])          # discovery.py
    for document in read_documents(sources[0], column="text", counts=Counter()): ...

The records that a reader finds (readers/, one file a format) become documents: line ends are \\n, half surrogates
U+FFFD, what is longer than MAX_DOCUMENT_CHARS comes in parts, and nothing is blank. A plain .txt or .jsonl of UTF-8 can
be read in byte ranges, a parquet file or a saved dataset in row ranges: every document belongs to exactly one range,
wherever the ranges are cut; all else is read from its beginning to its end. A line ends in LF, CR or both.
What is odd is counted, not refused: `counts` gets `invalid_utf8`, `nul_characters`, `long_lines`, `bad_lines`,
`damaged_parts` and `cut_documents`, and from `read_counted_documents` what damage.py refuses when it is too much.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

from data_prep.cli import printable, say
from data_prep.text.columns import NoColumnError
from data_prep.text.compression import decompressed
from data_prep.text.decoding import damaged_characters, find_encoding, in_utf8
from data_prep.text.discovery import HEAD_BYTES, is_whole, say_columns, say_encodings
from data_prep.text.kinds import (
    MEMBER_KINDS,
    classify,
    holds_articles,
    is_named_part_of_encyclopedia,
    kind_of,
    read_head,
)
from data_prep.text.readers import (
    archives,
    articles,
    delimited,
    hf_datasets,
    json_values,
    jsonl,
    parquet,
    txt,
    wikipedia,
)
from data_prep.text.source import (
    TO_THE_END,
    DamagedError,
    Source,
    lines_in,
    lines_of,
    open_text,
    record_damage,
)

MAX_DOCUMENT_CHARS = 4 << 20  # a longer document is cut into several
# Ends of lines and paragraphs beside \n and \r: of IBM's, which tokenizers drop so that words join, and of Unicode.
_LINE_ENDS = (("\x85", "\n"), ("\u2028", "\n"), ("\u2029", "\n\n"))

Record = tuple[int | str, str]  # where it stands, as its reader counts places (a byte, a character, a row); its text


class Document(NamedTuple):
    """A text of one source. Never blank; line ends are \\n; a blank line is a paragraph break."""

    id: str  # "name of the source:place"
    text: str
    lines: bool = False  # every line is a sentence already
    damaged: int = 0  # characters that are U+FFFD or controls


def read_documents(
    source: Source, column: str, counts: Counter[str], start: int = 0, stop: int | None = None
) -> Iterator[Document]:
    """Yield the documents that belong to bytes (of the decompressed text) or rows [start, stop) of a source.

    Raises
    ------
    InputError: unreadable, or without the column.
    """
    stop = TO_THE_END if stop is None else stop
    if source.kind == "tar":
        documents = _read_tar(source, column, counts)
    else:
        documents = _documents(source, _records(source, source.column or column, counts, start, stop))
    for document in documents:
        yield from _cut(_clean(document, counts), counts)


def read_counted_documents(
    source: Source, column: str, counts: Counter[str], start: int = 0, stop: int | None = None
) -> Iterator[Document]:
    """As read_documents; `counts` gets `characters` and those of them that are damaged, for damage.py."""
    for document in read_documents(source, column, counts, start, stop):
        counts["characters"] += len(document.text)
        if document.damaged:
            counts["damaged_characters"] += document.damaged
        yield document


def count_rows(source: Source, column: str) -> tuple[int, int]:
    """Return rows of a parquet file or dataset, and bytes of its text.

    Raises
    ------
    InputError: not a parquet file, no such column, or not a column of text.
    """
    if source.kind == "dataset":
        return hf_datasets.size(source.path, column)
    return parquet.size(source, column)


def _documents(source: Source, records: Iterator[Record]) -> Iterator[Document]:
    in_lines = source.kind == "txt" and source.layout == "lines"
    return (Document(f"{source.name}:{place}", text, in_lines) for place, text in records)


def _records(source: Source, column: str, counts: Counter[str], start: int, stop: int) -> Iterator[Record]:
    """Yield what the reader of the source's kind finds."""
    if source.kind == "dataset":
        yield from hf_datasets.read(source.path, source.name, column=column, start=start, stop=stop)
    elif source.kind == "parquet":
        yield from parquet.read(source, counts, column=column, start=start, stop=stop)
    elif source.kind == "xml":
        with open_text(source) as stream:
            try:
                yield from wikipedia.articles(source, stream, counts)
            except DamagedError as error:
                record_damage(error, counts)
    elif source.kind == "json":
        with open_text(source) as stream:
            yield from json_values.texts(source, stream, column, counts)
    else:
        lines = lines_of(source, start, counts)
        yield from _records_by_lines(source, lines, counts, column=column, start=start, stop=stop)


def _records_by_lines(
    source: Source,
    lines: Iterator[tuple[int, bytes]],
    counts: Counter[str],
    *,
    column: str,
    start: int = 0,
    stop: int = TO_THE_END,
) -> Iterator[Record]:
    """Yield what is found in a text that is read by lines."""
    if source.kind == "jsonl":
        yield from jsonl.read(source, lines, counts, column=column, start=start, stop=stop)
    elif source.kind in ("csv", "tsv"):
        yield from delimited.texts(source, lines, source.layout, column, counts)
    else:
        read = articles.read if source.layout in articles.LAYOUTS else txt.read
        longest = MAX_DOCUMENT_CHARS // 2
        yield from read(source.layout, lines, counts, start=start, stop=stop, longest=longest)


def _read_tar(source: Source, column: str, counts: Counter[str]) -> Iterator[Document]:
    """Yield the documents of the members of an archive, each read as the file that it is."""
    others = 0
    read_as: dict[tuple[str, str], list[str]] = {}
    columns: dict[str, list[str]] = {}
    for name, stream in archives.members(source, counts):
        kind = kind_of(name)
        if not kind or kind.kind not in MEMBER_KINDS or name.rsplit("/", 1)[-1].startswith("."):
            others += 1
            continue
        member = Source(
            path=source.path / name,
            name=printable(f"{source.name}/{name}"),
            kind=kind.kind,
            compression=kind.compression,
            bytes=1,
            layout=source.layout,
        )
        raw = decompressed(stream, kind.compression) if kind.compression else stream
        # Its encoding and its layout, by its beginning, which is then read once more with what follows.
        head = read_head(member, raw, HEAD_BYTES)
        found = find_encoding([head], source.encoding or None, is_whole([head]))
        if found.encoding:
            read_as.setdefault((found.encoding, found.why or "named"), []).append(member.name)
            counts[f"members_in_{found.encoding}"] += 1
        beginning = in_utf8(io.BytesIO(head), found.encoding).read()
        if is_named_part_of_encyclopedia(name) and not holds_articles(beginning):
            others += 1
            continue
        try:
            layout = source.layout or "auto"
            member = classify(member, beginning, is_whole=is_whole([head]), txt=layout, column=column)
        except (NoColumnError, DamagedError):
            others += 1
            continue
        field = member.column or column
        if field != column:
            columns.setdefault(field, []).append(member.name)
        text = in_utf8(io.BufferedReader(_Rejoined(head, raw), 1 << 18), found.encoding)
        if member.kind == "json":
            records: Iterator[Record] = json_values.texts(member, text, field, counts)
        else:
            lines = lines_in(replace(member, encoding=found.encoding), text, counts)
            records = _records_by_lines(member, lines, counts, column=field)
        yield from _documents(member, records)
    say_encodings(read_as)
    say_columns(columns)
    if others:
        counts["other_members"] += others
        say(f"{source.path}: {others} members that are neither .txt nor .jsonl, .json, .csv, .tsv with a text left out")


class _Rejoined(io.RawIOBase):
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, rest: BinaryIO):
        self.head, self.rest = head, rest

    def readable(self) -> bool:
        """True, always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end."""
        piece = self.head[: len(buffer)] if self.head else self.rest.read1(len(buffer))  # type: ignore[attr-defined]
        self.head = self.head[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)


def _clean(document: Document, counts: Counter[str]) -> Document:
    """Return a document with line ends as they shall be and no half surrogates; NULs and damage are counted."""
    text = document.text
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        for line_end, ours in _LINE_ENDS:
            if line_end in text:
                text = text.replace(line_end, ours)
    if "\0" in text:  # the tokenizer drops it
        counts["nul_characters"] += text.count("\0")
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no tokenizer takes
        counts["invalid_utf8"] += 1
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raw = text.encode()
    return document._replace(text=text, damaged=damaged_characters(text, raw))


def _cut(document: Document, counts: Counter[str]) -> Iterator[Document]:
    """Cut a document above MAX_DOCUMENT_CHARS where a paragraph, a line or a word ends, in this order of preference."""
    text = document.text
    if len(text) <= MAX_DOCUMENT_CHARS:
        if text and not text.isspace():
            yield document
        else:
            counts["empty_documents"] += 1
        return
    counts["cut_documents"] += 1
    begin, identity = 0, document.id
    while begin < len(text):
        end = begin + MAX_DOCUMENT_CHARS
        if end < len(text):
            places = (text.rfind(border, begin + MAX_DOCUMENT_CHARS // 2, end) for border in ("\n\n", "\n", " "))
            end = next((place for place in places if place > 0), end)
        if part := text[begin:end].strip():
            yield document._replace(id=f"{identity}+{begin}", text=part)
            document = document._replace(damaged=0)  # counted once
        begin = end
