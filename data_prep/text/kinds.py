"""What a file of the corpus is: by its name, its first bytes, and for text by what its beginning shows.

    kind_of("news.jsonl.gz")                           Kind("jsonl", "gz"); None of what is not read
    classify(source, beginning, ...)                   the source with its layout, and the column where its text is

    .txt      lines, prose (readers/txt.py); wikitext, wikiextractor, by their first line (readers/articles.py)
    .jsonl    one object a line (readers/jsonl.py)
    .json     an array of objects, or what else holds some (readers/json_values.py)
    .csv      and .tsv: a header line, a row a document (readers/delimited.py)
    .parquet  a row a document (readers/parquet.py)
    .xml      dumps of MediaWiki (readers/wikipedia.py)
    .tar      archives of all but .parquet and .xml (readers/archives.py)

each plain or with .gz, .bz2 or .zst appended (not parquet, which is compressed inside).
"""

import io
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_prep.cli import InputError
from data_prep.text.columns import NoColumnError, find_column, missing
from data_prep.text.readers import articles, delimited, json_values, jsonl, wikipedia
from data_prep.text.sentences import looks_like_lines
from data_prep.text.source import BOM, DamagedError, Source, open_decompressed, open_raw, reading

KINDS = ".txt, .jsonl, .json, .csv, .tsv, .parquet, .tar or Wikipedia's .xml, plain or .gz, .bz2, .zst"
MEMBER_KINDS = ("txt", "jsonl", "json", "csv", "tsv")  # that are read in a .tar
LAYOUT_BYTES = 1 << 18  # looked at to tell lines from prose, and what a file of a doubtful name is

_NAME = re.compile(r"\.(txt|jsonl|ndjson|json|csv|tsv|parquet|xml|tar)(?:\.(gz|bz2|zst))?$")
_PART_OF_ENCYCLOPEDIA = re.compile(
    r"(?:^|/)(?:wiki_\d+|wiki\.(?:train|valid|test)\.(?:tokens|raw))(?:\.(gz|bz2|zst))?$"
)
_MAGIC: dict[str, tuple[bytes, ...]] = {
    "gz": (b"\x1f\x8b",),
    "bz2": (b"BZh",),
    "zst": (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),  # a frame; one to be skipped
}


class Kind(NamedTuple):
    """What a file is by its name."""

    kind: str
    compression: str


def kind_of(name: str) -> Kind | None:
    """Return what a file is by its name; None where it is nothing that is read."""
    if match := _NAME.search(re.sub(r"\.tgz$", ".tar.gz", name.lower())):
        return Kind(match[1].replace("ndjson", "jsonl"), match[2] or "")
    match = _PART_OF_ENCYCLOPEDIA.search(name)
    return Kind("txt", match[1] or "") if match else None


def is_named_part_of_encyclopedia(name: str) -> bool:
    """Whether a file is called as WikiExtractor or WikiText call their parts, without an ending: wiki_00."""
    return _PART_OF_ENCYCLOPEDIA.search(name) is not None


def holds_articles(head: bytes) -> bool:
    """Whether a file is what such a name promises."""
    return bool(articles.layout_of(head)) or head[:1] == b"{"


def is_text_file(path: Path) -> bool:
    """Whether a file of a folder is one to be read: by its name and, where anything may have such a name, by its
    beginning."""
    kind = kind_of(path.name)
    if not kind or not path.is_file():
        return False
    # Most XML is no dump of MediaWiki, and anything may be called wiki_00.
    if kind.kind != "xml" and not is_named_part_of_encyclopedia(path.name):
        return True
    source = Source(path=path, name="", kind=kind.kind, compression=kind.compression, bytes=1)
    with open_decompressed(source) as stream:
        head = read_head(source, stream, LAYOUT_BYTES)
    return wikipedia.is_dump(head) if kind.kind == "xml" else holds_articles(head)


def check_magic(source: Source) -> None:
    """Refuse a file that does not begin as its compression would have it.

    Raises
    ------
    InputError: naming it.
    """
    with open_raw(source) as stream:
        if not stream.read(4).startswith(_MAGIC[source.compression]):
            raise InputError(f"{source.path} is not a .{source.compression} file; give it the name of what it is")


def read_head(source: Source, stream: BinaryIO, size: int) -> bytes:
    """Return the first bytes of a stream, fewer where it ends or is damaged."""
    head = bytearray()
    with suppress(DamagedError), reading(source):
        while len(head) < size and (chunk := stream.read1(size - len(head))):  # type: ignore[attr-defined]
            head += chunk
    return bytes(head)


def classify(source: Source, beginning: bytes, *, is_whole: bool, txt: str, column: str | None) -> Source:
    """Return a source of text with what its beginning, in UTF-8, tells: what it is, how it is laid out, where its text
    is. `is_whole`: the beginning is all of it.

    Raises
    ------
    NoColumnError: a table, or JSON, that has no such column. InputError: JSON that is none.
    """
    beginning = beginning.removeprefix(BOM)
    if source.kind == "txt":
        if is_named_part_of_encyclopedia(source.path.name) and beginning[:1] == b"{":  # WikiExtractor's --json
            return replace(source, kind="jsonl")
        return replace(source, layout=txt_layout_of(beginning) if txt == "auto" else txt)
    if source.kind == "json":
        if column is None:
            return replace(source, layout="values")
        if (fields := jsonl.fields_of_first(beginning)) is not None:
            return _with_column(replace(source, kind="jsonl"), fields, column)
        shape = json_values.look(source, io.BytesIO(beginning), is_whole, column)
        source = replace(source, layout=shape.layout)
        return _with_column(source, list(shape.first), column) if isinstance(shape.first, dict) else source
    if source.kind in ("csv", "tsv"):
        text = beginning.decode("utf-8", "replace")
        source = replace(source, layout=delimited.layout_of(text, source.kind))
        return _with_column(source, delimited.header_of(text, source.layout), column)
    return source


def _with_column(source: Source, names: list[str], column: str | None) -> Source:
    """Return a source whose records have fields of these names, if one of them is meant by `--column`."""
    if column is None:
        return source
    if (found := find_column(names, column)) is None:
        raise NoColumnError(f"{source.path} {missing(column, names)}")
    if (times := names.count(found)) > 1:
        raise NoColumnError(f"{source.path} has {times} columns {found!r}; write all but one under other names")
    return source if found == column else replace(source, column=found)


def txt_layout_of(beginning: bytes) -> str:
    """Return whether a text is made of lines, of prose or of articles, by its beginning."""
    if layout := articles.layout_of(beginning):
        return layout
    lines = beginning[:LAYOUT_BYTES].decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return "lines" if looks_like_lines(lines[:-1] if len(lines) > 1 else lines) else "prose"
