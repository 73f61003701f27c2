"""Raw files to documents, streaming: memory does not grow with the corpus.

    sources = find_sources(["wiki/", "news-*.jsonl.zst", "book.txt"], txt="auto")
    for document in read_documents(sources[0], column="text", counts=Counter()): ...

    .txt      lines: one sentence a line, a blank line between documents
              prose: a blank line between paragraphs, two or more between documents; the file's end ends a document
              auto:  decided for each file from its beginning, and said
              wikitext, wikiextractor: seen by their first line, one document an article (articles.py)
    .jsonl    one object a line, the text in the field `--column`
    .json     an array of objects, or what else holds some (json_values.py)
    .csv      and .tsv: a header line, one document a row, the text in the column `--column` (delimited.py)
    .parquet  one document a row, the text in the column `--column`
    datasets  of Hugging Face, one document a row likewise (datasets_reader.py)
    .xml      dumps of MediaWiki, one document an article (wikipedia.py)
    .tar      archives of .txt, .jsonl, .json, .csv and .tsv, which are read as they stream by (archives.py)

each plain, or with .gz, .bz2 or .zst appended (not parquet, which is compressed inside). Folders are searched
recursively, in sorted order, without following links (folders.py). The encoding of text is found for each file and said
where it is not UTF-8 (decoding.py); so is the column, where there is no "text" (columns.py). A plain .txt or .jsonl of
UTF-8 can be read in byte ranges, a parquet file in row ranges: every document belongs to exactly one range, wherever
the ranges are cut; all else is read from its beginning to its end. A line ends in LF, CR or both.
What is odd is counted, not refused: `counts` gets `invalid_utf8`, `nul_characters`, `long_lines`, `bad_lines`,
`damaged_parts` and `cut_documents`, and from `sound_documents` what `check_damage` refuses when it is too much.
"""

import glob
import io
import json
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_prep.cli import InputError, printable, say
from data_prep.text import archives, articles, datasets_reader, delimited, json_values, unpack, wikipedia
from data_prep.text.columns import BadRecordError, NoColumnError, find_column, missing, text_of
from data_prep.text.decoding import damaged_characters, find_encoding, in_utf8, named_encoding, whole_characters
from data_prep.text.folders import how_to_read, left_out, text_files
from data_prep.text.sentences import looks_like_lines
from data_prep.text.unpack import (
    DamagedError,
    Source,
    decode,
    guarded,
    lines_in,
    lines_of,
    note_damage,
    open_text,
    open_unpacked,
    size_and_time,
    unpacked,
)

MAX_DOCUMENT = 4 << 20  # characters; a longer document is cut into several
SNIFF = 1 << 18  # bytes looked at to tell lines from prose
PROBE = 1 << 20  # bytes of a file's beginning that are looked at to find its encoding
PROBES, PROBED = 8, 1 << 15  # and so many further places in a plain file, of so many bytes
MAX_DAMAGED = 0.01  # share of a source's characters that may be U+FFFD or controls
LEAST_DAMAGED = 8  # so many are never too many
SHOWN = 8  # names in a message
KINDS = ".txt, .jsonl, .json, .csv, .tsv, .parquet, .tar or Wikipedia's .xml, plain or .gz, .bz2, .zst"

_NAME = re.compile(r"\.(txt|jsonl|ndjson|json|csv|tsv|parquet|xml|tar)(?:\.(gz|bz2|zst))?$")
_OF_ARTICLES = re.compile(r"(?:^|/)(?:wiki_\d+|wiki\.(?:train|valid|test)\.(?:tokens|raw))(?:\.(gz|bz2|zst))?$")
_IN_TEXT = ("txt", "jsonl", "json", "csv", "tsv", "xml")  # kinds of which the encoding is looked for
_IN_TAR = _IN_TEXT[:-1]
_TEXTS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
_MAGIC: dict[str, tuple[bytes, ...]] = {
    "gz": (b"\x1f\x8b",),
    "bz2": (b"BZh",),
    "zst": (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),  # a frame; one to be skipped
}


# Ends of lines and paragraphs beside \n and \r: of IBM's, which tokenizers drop so that words join, and of Unicode.
_LINE_ENDS = (("\x85", "\n"), ("\u2028", "\n"), ("\u2029", "\n\n"))


class Document(NamedTuple):
    """A text of one source. Never blank; line ends are \\n; a blank line is a paragraph break."""

    id: str  # "name of the source:place", the place being a byte or a row
    text: str
    lines: bool = False  # every line is a sentence already
    damaged: int = 0  # characters that are U+FFFD or controls


def find_sources(
    arguments: Iterable[str],
    txt: str = "auto",
    datasets: Iterable[str] = (),
    strict: bool = False,
    column: str | None = None,
    encoding: str | None = None,
    max_damaged: float | None = None,
    out: Path | None = None,
) -> list[Source]:
    """The files that paths, folders and globs name, in an order that depends on names only, then Hugging Face datasets.

    `encoding` is that of all files, where they have no byte order mark; `max_damaged` as check_damage takes it; `out`,
    where the command writes, is no source.

    Raises
    ------
    InputError: nothing there, a kind of file we cannot read, nothing but empty files; a .jsonl whose first line has no
    field `column`; an unknown encoding.
    """
    named = named_encoding(encoding) if encoding is not None else None
    found: dict[Path, tuple[str, str]] = {}  # name, and the folder it is of; a file named twice counts once
    for argument in arguments:
        for path, name, folder in _expand(argument, out):
            if path.resolve() not in found or not folder:
                found[path.resolve()] = (name, folder)
    known_by: dict[tuple[str, str], list[str]] = {}  # names of sources by encoding, and what it is known by
    strangers: dict[str, dict[str, InputError]] = {}  # by folder and name: tables and JSON without text
    sources = []
    for path, (name, folder) in found.items():
        try:
            source, why = _source(path, printable(name), txt, named, max_damaged, column)
        except (NoColumnError, DamagedError) as error:  # in a folder one is a list of the others, another a setting
            if not folder or (strict and isinstance(error, DamagedError)):
                raise
            strangers.setdefault(folder, {})[name] = error
            continue
        sources.append(source)
        if why:
            known_by.setdefault((source.encoding, why), []).append(source.name)
    for folder, errors in strangers.items():
        say(f"{printable(folder)}: left out: without text: {left_out(errors)} ({next(iter(errors.values()))})")
    if strangers and not sources and not datasets:
        raise next(error for errors in strangers.values() for error in errors.values())
    _say_encodings(known_by)
    if strict and (empty := [source.name for source in sources if not source.bytes]):
        raise InputError(f"empty files, which --strict refuses: {', '.join(empty[:5])}")
    for name in datasets:
        path, bytes_on_disk = datasets_reader.find(name)
        _, modified = size_and_time(datasets_reader.folder_of(path))
        name = printable(name.rstrip("/").rsplit("/", 1)[-1])
        sources.append(Source(path, name, "dataset", "", bytes_on_disk, "", modified=modified))
    if not any(source.bytes for source in sources):
        raise InputError(f"the corpus is empty: {', '.join(source.name for source in sources[:5])} hold no bytes")
    if empty := [source.name for source in sources if not source.bytes]:
        say(f"left out: empty files: {', '.join(empty[:SHOWN])}{_more(empty)}")
    if txt == "auto":
        _say_layouts(sources)
    _say_columns(sources)
    for source in sources if column is not None else ():
        if source.kind == "jsonl" and source.bytes:
            _check_first_line(source, source.column or str(column))
    return sources


def _expand(argument: str, out: Path | None) -> list[tuple[Path, str, str]]:
    """Files, the names they get, and the folder in which they were found, if they were not named themselves."""
    path = Path(argument)
    if path.is_dir():
        found = text_files(path, _is_known, out)
        if not found:
            raise InputError(f"{argument} holds no {KINDS}")
        place = path.resolve().name
        return [(file, f"{place}/{file.relative_to(path).as_posix()}", argument) for file in found]
    if path.exists():
        return [(path, path.name, "")]
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        raise InputError(f"{argument} does not exist (nor does any file match it); give files, folders or globs")
    return [found for match in matches for found in _expand(match, out)]


class Kind(NamedTuple):
    """What a file is by its name."""

    kind: str
    packing: str


def _kind(name: str) -> Kind | None:
    if match := _NAME.search(re.sub(r"\.tgz$", ".tar.gz", name.lower())):
        return Kind(match[1].replace("ndjson", "jsonl"), match[2] or "")
    match = _OF_ARTICLES.search(name)
    return Kind("txt", match[1] or "") if match else None


def _is_known(path: Path) -> bool:
    found = _kind(path.name)
    if not found or not path.is_file():
        return False
    # Much is XML that is no corpus, and anything may be called wiki_00.
    if found.kind != "xml" and not _OF_ARTICLES.search(path.name):
        return True
    source = Source(path, "", found.kind, found.packing, 1, "")
    with open_unpacked(source) as stream:
        head = _head(source, stream, SNIFF)
    return wikipedia.is_dump(head) if found.kind == "xml" else _holds_articles(head)


def _holds_articles(head: bytes) -> bool:
    """Whether a file is what its name, that of a part of an encyclopedia, promises."""
    return bool(articles.layout_of(head)) or head[:1] == b"{"


def _source(
    path: Path, name: str, txt: str, encoding: str | None, max_damaged: float | None, column: str | None
) -> tuple[Source, str]:
    """A file as a source, and what its encoding is known by."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a pipe or a device, which can be read once only; write it to a file first")
    found_kind = _kind(path.name)
    if not found_kind:
        raise InputError(f"{path} is of a kind we cannot read{how_to_read(path)}; give {KINDS}")
    kind, packing = found_kind
    if kind == "parquet" and packing:
        raise InputError(f"{path} is packed twice: parquet is compressed inside; unpack it with gunzip or unzstd")
    source = Source(path, name, kind, packing, status.st_size, "", encoding or "", status.st_mtime_ns)
    if not source.bytes:
        return source, ""
    if packing:
        _check_magic(source)
    pieces = _probe(source) if kind in _IN_TEXT else []
    if kind == "xml":
        return source._replace(layout=_check_dump(source, pieces[0]), encoding=_of_xml(pieces[0], encoding)), ""
    if kind == "tar":
        return source._replace(layout="" if txt == "auto" else txt), ""
    if kind == "parquet":
        return source, ""
    found = find_encoding(pieces, encoding, _is_whole(pieces))
    source = source._replace(encoding=found.encoding)
    if not packing:  # what is damaged here and there is so everywhere: better said now than in hours
        check_damage(source, _damage_of(pieces, found.encoding or "utf-8"), max_damaged, encoding is not None)
    beginning = in_utf8(io.BytesIO(pieces[0]), found.encoding).read()
    return looked_at(source, beginning, _is_whole(pieces), txt, column), found.why


def looked_at(source: Source, beginning: bytes, whole: bool, txt: str, column: str | None) -> Source:
    """A source of text with what its beginning, in UTF-8, tells: what it is, how it is laid out, where its text is.

    Raises
    ------
    NoColumnError: a table, or JSON, that has no such column. InputError: JSON that is none.
    """
    beginning = beginning.removeprefix(b"\xef\xbb\xbf")
    if source.kind == "txt":
        if _OF_ARTICLES.search(source.path.name) and beginning[:1] == b"{":  # WikiExtractor's --json
            return source._replace(kind="jsonl")
        return source._replace(layout=layout_of(beginning) if txt == "auto" else txt)
    if source.kind == "json":
        if column is None:
            return source._replace(layout="values")
        if (fields := _of_json_lines(beginning)) is not None:
            return _with_column(source._replace(kind="jsonl"), fields, column)
        shape = json_values.look(source, io.BytesIO(beginning), whole, column)
        source = source._replace(layout=shape.layout)
        return _with_column(source, list(shape.first), column) if isinstance(shape.first, dict) else source
    if source.kind in ("csv", "tsv"):
        text = beginning.decode("utf-8", "replace")
        source = source._replace(layout=delimited.layout_of(text, source.kind))
        return _with_column(source, delimited.header_of(text, source.layout), column)
    return source


def _with_column(source: Source, names: list[str], column: str | None) -> Source:
    """A source whose records have fields of these names, if one of them is meant by `--column`."""
    if column is None:
        return source
    if (found := find_column(names, column)) is None:
        raise NoColumnError(f"{source.path} {missing(column, names)}")
    if (times := names.count(found)) > 1:
        raise NoColumnError(f"{source.path} has {times} columns {found!r}; write all but one under other names")
    return source if found == column else source._replace(column=found)


def _of_json_lines(beginning: bytes) -> list[str] | None:
    """The fields of the first line of what is an object a line; None of other JSON."""
    lines = [line for line in beginning.split(b"\n")[:-1] if line.strip()][:2]
    try:
        objects = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return None
    return list(objects[0]) if len(objects) == 2 and all(isinstance(one, dict) for one in objects) else None


def _check_dump(source: Source, beginning: bytes) -> str:
    if not wikipedia.is_dump(beginning):
        raise InputError(f"{source.path} is no dump of MediaWiki, the only XML that is read here")
    return wikipedia.extractor()


def _of_xml(beginning: bytes, named: str | None) -> str:
    """The encoding of an XML file, where expat does not read it by itself."""
    return (named or "") if (declared := wikipedia.declared_encoding(beginning)) is None else declared


def _damage_of(pieces: list[bytes], encoding: str) -> Counter[str]:
    text = "\n".join(piece.decode(encoding, "replace") for piece in whole_characters(pieces, encoding))
    return Counter(characters=len(text), damaged_characters=damaged_characters(text, text.encode("utf-8", "replace")))


def _check_magic(source: Source) -> None:
    with open_unpacked(source._replace(packing="")) as stream:
        if not stream.read(4).startswith(_MAGIC[source.packing]):
            raise InputError(f"{source.path} is not a .{source.packing} file; give it the name of what it is")


def _probe(source: Source) -> list[bytes]:
    """The beginning of a file, and pieces of what follows where it is plain."""
    with open_unpacked(source) as stream:
        pieces = [_head(source, stream, PROBE)]
        if not source.packing and source.bytes > len(pieces[0]):
            for number in range(1, PROBES + 1):
                at = PROBE + (source.bytes - PROBE) * number // PROBES - PROBED
                stream.seek(max(0, at) & ~3)  # whole characters of UTF-16 and UTF-32
                pieces.append(stream.read(PROBED))
    return pieces


def _is_whole(pieces: list[bytes]) -> bool:
    return len(pieces) == 1 and len(pieces[0]) < PROBE


def _head(source: Source, stream: BinaryIO, size: int) -> bytes:
    """The first bytes of a stream, fewer where it ends or is damaged."""
    head = bytearray()
    with suppress(DamagedError):
        while len(head) < size and (piece := guarded(source, partial(stream.read1, size - len(head)))):  # type: ignore[attr-defined]
            head += piece
    return bytes(head)


def layout_of(beginning: bytes) -> str:
    """Whether a text is made of lines, of prose or of articles, by its beginning."""
    if found := articles.layout_of(beginning):
        return found
    lines = beginning[:SNIFF].decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return "lines" if looks_like_lines(lines[:-1] if len(lines) > 1 else lines) else "prose"


def _more(names: list[str]) -> str:
    return f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""


def _say_encodings(known_by: dict[tuple[str, str], list[str]]) -> None:
    for (encoding, why), names in sorted(known_by.items()):
        shown = ", ".join(names[:SHOWN]) + _more(names)
        say(f"read as {encoding}: {why}: {shown}" + (" (--encoding NAME to say otherwise)" if why == "a guess" else ""))


def _say_layouts(sources: list[Source]) -> None:
    sources = [source for source in sources if source.kind == "txt" and source.layout]
    other = {"lines": "prose", "prose": "lines", "wikitext": "prose", "wikiextractor": "prose"}
    layouts = Counter(source.layout for source in sources)
    meaning = {
        "lines": "one sentence a line, a blank line between documents",
        "prose": "prose in paragraphs, two blank lines between documents",
        "wikitext": "WikiText, a document an article",
        "wikiextractor": "what WikiExtractor writes, a document an article",
    }
    for layout, count in sorted(layouts.items()):
        names = [source.name for source in sources if source.layout == layout]
        shown = ", ".join(names[:4]) + (f" and {count - 4} more" if count > 4 else "")
        say(f"read as {meaning[layout]}: {shown} (--txt {other[layout]} to say otherwise)")


def _say_columns(sources: list[Source]) -> None:
    by_column: dict[str, list[str]] = {}
    for source in sources:
        if source.column:
            by_column.setdefault(source.column, []).append(source.name)
    _say_names(by_column)


def _say_names(by_column: dict[str, list[str]]) -> None:
    for column, names in sorted(by_column.items()):
        shown = ", ".join(names[:SHOWN]) + _more(names)
        say(f"the text is taken from {column!r}: {shown} (--column NAME to say otherwise)")


def files_of(arguments: Iterable[str]) -> list[Path]:
    """The files that paths, folders and globs name; nothing is read of them.

    Raises
    ------
    InputError: nothing there.
    """
    return list(dict.fromkeys(path.resolve() for argument in arguments for path, *_ in _expand(argument, None)))


def read_documents(
    source: Source, column: str, counts: Counter[str], start: int = 0, stop: int | None = None
) -> Iterator[Document]:
    """The documents that belong to bytes (of the unpacked text) or rows [start, stop) of a source.

    Raises
    ------
    InputError: unreadable, or without the column.
    """
    end = stop if stop is not None else 1 << 62
    column = source.column or column
    if source.kind == "dataset":
        documents: Iterator[Document] = (
            Document(*found) for found in datasets_reader.read(source.path, source.name, column, start, end)
        )
    elif source.kind == "parquet":
        documents = _read_parquet(source, column, start, end, counts)
    elif source.kind == "xml":
        documents = _read_xml(source, counts)
    elif source.kind == "tar":
        documents = _read_tar(source, column, counts)
    elif source.kind == "json":
        documents = _read_json(source, column, counts)
    else:
        documents = _read_lines(source, lines_of(source, start, counts), column, start, end, counts)
    for document in documents:
        yield from _cut(_clean(document, counts), counts)


def sound_documents(
    source: Source, column: str, counts: Counter[str], start: int = 0, stop: int | None = None
) -> Iterator[Document]:
    """As read_documents; `counts` gets `characters` and those of them that are damaged, for `check_damage`."""
    for document in read_documents(source, column, counts, start, stop):
        counts["characters"] += len(document.text)
        if document.damaged:
            counts["damaged_characters"] += document.damaged
        yield document


def check_damage(source: Source, counts: Counter[str], most: float | None, named: bool = False) -> None:
    """Refuse a source of which too much is damaged: `most`, or what is usual; where its encoding was named, nothing.

    Raises
    ------
    InputError: naming the source, the share and the remedy.
    """
    _check_share(f"{source.path}, read as {source.encoding or 'utf-8'}", counts, most, named)


def check_damage_of_all(
    counted: Iterable[tuple[Source, Counter[str]]], most: float | None, named: bool = False
) -> None:
    """As check_damage, each source by itself and all of them together: many small files, each with little of it.

    Raises
    ------
    InputError: naming the source, the share and the remedy.
    """
    total: Counter[str] = Counter()
    worst, damaged = "", 0
    for source, counts in counted:
        check_damage(source, counts, most, named)
        total.update({name: counts[name] for name in ("characters", "damaged_characters")})
        if counts["damaged_characters"] > damaged:
            worst, damaged = source.name, counts["damaged_characters"]
    _check_share(f"the corpus as a whole, {worst} and others", total, most, named)


def _check_share(what: str, counts: Counter[str], most: float | None, named: bool) -> None:
    least, most = (0, 0.0) if named and most is None else (LEAST_DAMAGED, MAX_DAMAGED if most is None else most)
    damaged, characters = counts["damaged_characters"], counts["characters"]
    if damaged > max(least, most * characters):
        share = 100 * damaged / characters
        raise InputError(
            f"{what}: {share:.2f} % of its characters are damaged (U+FFFD or controls), more than {100 * most:g} %; "
            f"give --encoding NAME if it is another, or --max_damaged SHARE to take it so"
        )


def count_rows(source: Source, column: str) -> tuple[int, int]:
    """Rows of a parquet file or dataset and bytes of its text, from its footer.

    Raises
    ------
    InputError: not a parquet file, no such column, or not a column of text.
    """
    if source.kind == "dataset":
        return datasets_reader.size(source.path, source.name, column)
    file = _open_parquet(source, column)
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    number = file.schema_arrow.get_field_index(column)
    flat = len(file.schema_arrow) == file.metadata.num_columns
    return file.metadata.num_rows, sum(
        group.column(number).total_uncompressed_size if flat else group.total_byte_size for group in groups
    )


def _clean(document: Document, counts: Counter[str]) -> Document:
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
    """Cut a document above MAX_DOCUMENT where a paragraph, a line or a word ends, in this order of preference."""
    text = document.text
    if len(text) <= MAX_DOCUMENT:
        if text and not text.isspace():
            yield document
        else:
            counts["empty_documents"] += 1
        return
    counts["cut_documents"] += 1
    begin, identity = 0, document.id
    while begin < len(text):
        end = begin + MAX_DOCUMENT
        if end < len(text):
            places = (text.rfind(border, begin + MAX_DOCUMENT // 2, end) for border in ("\n\n", "\n", " "))
            end = next((place for place in places if place > 0), end)
        if part := text[begin:end].strip():
            yield document._replace(id=f"{identity}+{begin}", text=part)
            document = document._replace(damaged=0)  # counted once
        begin = end


Lines = Iterator[tuple[int, bytes]]  # places and lines, as lines_of gives them


def _read_lines(
    source: Source, lines: Lines, column: str, start: int, stop: int, counts: Counter[str]
) -> Iterator[Document]:
    """The documents of a text that is read by lines."""
    if source.kind == "jsonl":
        yield from _read_jsonl(source, lines, column, start, stop, counts)
    elif source.kind in ("csv", "tsv"):
        for place, text in delimited.texts(source, lines, source.layout, column, counts):
            yield Document(f"{source.name}:{place}", text)
    elif source.layout in articles.LAYOUTS:
        for place, text in articles.read(source.layout, lines, start, stop, MAX_DOCUMENT // 2, counts):
            yield Document(f"{source.name}:{place}", text)
    else:
        yield from _read_txt(source, lines, start, stop, counts)


def _read_txt(source: Source, lines: Lines, start: int, stop: int, counts: Counter[str]) -> Iterator[Document]:
    in_lines = source.layout == "lines"
    parts: list[str] = []
    first = size = 0
    for place, blank_lines, block in _blocks(lines, start, stop, counts):
        if parts and (in_lines or blank_lines > 1 or size > MAX_DOCUMENT // 2):
            yield Document(f"{source.name}:{first}", "\n\n".join(parts), in_lines)
            parts, size = [], 0
        first = first if parts else place
        parts.append(block)
        size += len(block)
    if parts:
        yield Document(f"{source.name}:{first}", "\n\n".join(parts), in_lines)


def _blocks(lines: Lines, start: int, stop: int, counts: Counter[str]) -> Iterator[tuple[int, int, str]]:
    """Runs of lines between blank lines: (place, blank lines before it, text).

    A block belongs to the range in which the last blank line before it begins; the first block to the first range.
    Whoever reads a range therefore needs to look neither back nor at another range to know what is his.
    """
    blank_lines, last_blank = 0, (-1 if start == 0 else None)
    block: list[str] = []
    first = size = 0
    for place, line in lines:
        if not line.strip():
            if block:
                yield first, blank_lines, "\n".join(block)
                block, blank_lines, size = [], 0, 0
            blank_lines, last_blank = blank_lines + 1, place
            if place >= stop:
                return
            continue
        if last_blank is None:  # still in a block of the range before
            if place >= stop:
                return
            continue
        if size > MAX_DOCUMENT // 2:  # a file without blank lines
            yield first, blank_lines, "\n".join(block)
            counts["cut_documents"] += 1
            block, blank_lines, size = [], 0, 0
        first = first if block else place
        block.append(decode(line, counts).rstrip("\r\n"))
        size += len(line)
    if block:
        yield first, blank_lines, "\n".join(block)


def _read_jsonl(
    source: Source, lines: Lines, column: str, start: int, stop: int, counts: Counter[str]
) -> Iterator[Document]:
    too_long = said = False
    first, number = -1, 0
    for place, line in lines:
        first = place if first < 0 else first
        number += not too_long
        continues, too_long = too_long, len(line) == unpack.MAX_LINE and not line.endswith(b"\n")
        if place >= stop and not continues:
            return
        if continues or too_long or not line.strip():
            continue
        try:
            text = _field(decode(line, counts), column)
        except BadRecordError as error:
            counts["bad_lines"] += 1
            if not said:
                said = True
                say(f"warning: {_line_name(source, first, number)} {error}; such lines are left out (--strict refuses)")
            continue
        yield Document(f"{source.name}:{place}", text)


def _field(line: str, column: str) -> str:
    content = _parsed(line)
    if not isinstance(content, dict):
        raise BadRecordError(f"is not a JSON object: {line[:80]!r}")
    return text_of(content, column)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"is not JSON ({error}): {line[:80]!r}") from error


def _line_name(source: Source, first: int, number: int) -> str:
    """The line `number` of those from byte `first` on, as "file, line 17"; counted only now that it is wanted."""
    if first > 0:
        with open(source.path, "rb") as file:
            while first > 0 and (block := file.read(min(first, SNIFF))):
                number += block.count(b"\n")
                first -= len(block)
    return f"{source.path}, line {number}"


def _check_first_line(source: Source, column: str) -> None:
    """Refuse a .jsonl whose first line has no such field: of a wrong --column, before hours are spent on it.

    Raises
    ------
    InputError: naming the line.
    """
    for number, (_, line) in enumerate(lines_of(source, 0, Counter()), 1):
        if line.strip():
            if len(line) < unpack.MAX_LINE:
                try:
                    _field(line.decode("utf-8", "replace"), column)
                except BadRecordError as error:
                    raise InputError(f"{source.path}, line {number} {error}") from error
            return


def _read_json(source: Source, column: str, counts: Counter[str]) -> Iterator[Document]:
    with open_text(source) as stream:
        yield from _json_documents(source, stream, column, counts)


def _json_documents(source: Source, stream: BinaryIO, column: str, counts: Counter[str]) -> Iterator[Document]:
    said = False
    for place, record in json_values.records(source, stream, source.layout, counts, column):
        try:
            yield Document(f"{source.name}:{place}", text_of(record, column))
        except BadRecordError as error:
            counts["bad_lines"] += 1
            if not said:
                said = True
                where = f"{source.path}, at character {place:,}"
                say(f"warning: {where}: a record {error}; such are left out (--strict refuses)")


def _read_xml(source: Source, counts: Counter[str]) -> Iterator[Document]:
    with open_text(source) as stream:
        try:
            yield from (Document(*found) for found in wikipedia.articles(source, stream, counts))
        except DamagedError as error:
            note_damage(error, counts)


def _read_tar(source: Source, column: str, counts: Counter[str]) -> Iterator[Document]:
    others = 0
    read_as: dict[tuple[str, str], list[str]] = {}
    columns: dict[str, list[str]] = {}
    for name, stream in archives.members(source, counts):
        found_kind = _kind(name)
        if not found_kind or found_kind.kind not in _IN_TAR or name.rsplit("/", 1)[-1].startswith("."):
            others += 1
            continue
        inside, (kind, packing) = printable(f"{source.name}/{name}"), found_kind
        member = Source(source.path / name, inside, kind, packing, 1, source.layout)
        raw = unpacked(stream, packing) if packing else stream
        head = _head(member, raw, PROBE)
        found = find_encoding([head], source.encoding or None, _is_whole([head]))
        if found.encoding:
            read_as.setdefault((found.encoding, found.why or "named"), []).append(inside)
            counts[f"members_in_{found.encoding}"] += 1
        beginning = in_utf8(io.BytesIO(head), found.encoding).read()
        if _OF_ARTICLES.search(name) and not _holds_articles(beginning):
            others += 1
            continue
        try:
            member = looked_at(member, beginning, _is_whole([head]), source.layout or "auto", column)
        except (NoColumnError, DamagedError):
            others += 1
            continue
        text = in_utf8(io.BufferedReader(_Rejoined(head, raw), 1 << 18), found.encoding)
        field = member.column or column
        if field != column:
            columns.setdefault(field, []).append(inside)
        if kind == "json" and member.kind == "json":
            yield from _json_documents(member, text, field, counts)
        else:
            lines = lines_in(member._replace(encoding=found.encoding), text, counts)
            yield from _read_lines(member, lines, field, 0, 1 << 62, counts)
    _say_encodings(read_as)
    _say_names(columns)
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


def _read_parquet(source: Source, column: str, start: int, stop: int, counts: Counter[str]) -> Iterator[Document]:
    file = _open_parquet(source, column)
    next_group = 0
    for group in range(file.metadata.num_row_groups):
        row, next_group = next_group, next_group + file.metadata.row_group(group).num_rows
        if row >= stop or next_group <= start:
            continue
        batches = file.iter_batches(batch_size=64, row_groups=[group], columns=[column], use_threads=False)
        try:
            while batch := guarded(source, partial(next, batches, None)):
                if row + len(batch) > start:
                    for at, text in enumerate(_texts_of(batch.column(0), counts, source.encoding or "utf-8"), row):
                        if start <= at < stop:
                            yield Document(f"{source.name}:{at}", text or "")
                row += len(batch)
        except DamagedError as error:  # the next group of rows may be whole
            note_damage(error, counts)


def _texts_of(column: Any, counts: Counter[str], encoding: str) -> list[str | None]:
    try:
        texts: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # nobody checks texts when parquet is written
        plain = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
        texts, encoding = plain.cast("binary_view").to_pylist(), "utf-8"
    return [decode(text, counts, encoding) if isinstance(text, bytes) else text for text in texts]


def _open_parquet(source: Source, column: str) -> Any:
    import pyarrow.parquet  # inside: 60 MB of memory that only parquet needs

    file = guarded(source, lambda: pyarrow.parquet.ParquetFile(source.path, buffer_size=1 << 20))
    if column not in file.schema_arrow.names:
        raise InputError(f"{source.path} has no column {column!r}, only {file.schema_arrow.names}; see --column")
    if (times := file.schema_arrow.names.count(column)) > 1:
        raise InputError(f"{source.path} has {times} columns {column!r}; write all but one under other names")
    kind = file.schema_arrow.field(column).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not any(getattr(pyarrow.types, f"is_{name}")(kind) for name in _TEXTS):
        raise InputError(f"{source.path}: column {column!r} is of type {kind}, not text; see --column")
    return file
