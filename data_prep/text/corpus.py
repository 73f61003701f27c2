"""Raw files to documents, streaming: memory does not grow with the corpus.

    sources = find_sources(["wiki/", "news-*.jsonl.zst", "book.txt"], txt="auto")
    for document in read_documents(sources[0], column="text", counts=Counter()): ...

    .txt      lines: one sentence a line, a blank line between documents
              prose: a blank line between paragraphs, two or more between documents; the file's end ends a document
              auto:  decided for each file from its beginning, and said
    .jsonl    one object a line, the text in the field `--column`
    .parquet  one document a row, the text in the column `--column`
    datasets  of Hugging Face, one document a row likewise (datasets_reader.py)

each plain, or with .gz or .zst appended (not parquet, which is compressed inside). Folders are searched recursively, in
sorted order, without following links. A plain file can be read in byte ranges, a parquet file in row ranges: every
document belongs to exactly one range, wherever the ranges are cut. Oddities that cost no text worth keeping are
counted, not refused: `counts` gets `invalid_utf8`, `nul_characters`, `long_lines` and `cut_documents`.
"""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError, say
from data_prep.text import datasets_reader, unpack
from data_prep.text.sentences import looks_like_lines
from data_prep.text.unpack import Source, decode, guarded, lines_of, open_unpacked

MAX_DOCUMENT = 4 << 20  # characters; a longer document is cut into several
SNIFF = 1 << 18  # bytes looked at to tell lines from prose

_NAME = re.compile(r"\.(txt|jsonl|parquet)(?:\.(gz|zst))?$")


class Document(NamedTuple):
    """A text of one source. Never blank; line ends are \\n; a blank line is a paragraph break."""

    id: str  # "name of the source:place", the place being a byte or a row
    text: str
    lines: bool = False  # every line is a sentence already


def find_sources(
    arguments: Iterable[str], txt: str = "auto", datasets: Iterable[str] = (), strict: bool = False
) -> list[Source]:
    """The files that paths, folders and globs name, in an order that depends on names only, then Hugging Face datasets.

    Raises
    ------
    InputError: nothing there, a kind of file we cannot read, nothing but empty files.
    """
    found: dict[Path, str] = {}  # a file named twice counts once
    for argument in arguments:
        for path, name in _expand(argument):
            found.setdefault(path.resolve(), name)
    sources = [_source(path, name, txt) for path, name in found.items()]
    if strict and (empty := [source.name for source in sources if not source.bytes]):
        raise InputError(f"empty files, which --strict refuses: {', '.join(empty[:5])}")
    for name in datasets:
        path, bytes_on_disk = datasets_reader.find(name)
        sources.append(Source(path, name.rstrip("/").rsplit("/", 1)[-1], "dataset", "", bytes_on_disk, ""))
    if not any(source.bytes for source in sources):
        raise InputError(f"the corpus is empty: {', '.join(source.name for source in sources[:5])} hold no bytes")
    if txt == "auto":
        _say_layouts(sources)
    return sources


def _expand(argument: str) -> list[tuple[Path, str]]:
    path = Path(argument)
    if path.is_dir():
        files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names if name[0] != "."]
        known = sorted(file for file in files if _NAME.search(file.name.lower()) and file.is_file())
        if not known:
            raise InputError(f"{argument} holds no .txt, .jsonl or .parquet files (plain, .gz or .zst)")
        if len(known) < len(files):
            say(f"{argument}: {len(files) - len(known)} files of other kinds left out")
        return [(file, f"{path.resolve().name}/{file.relative_to(path).as_posix()}") for file in known]
    if path.exists():
        return [(path, path.name)]
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        raise InputError(f"{argument} does not exist (nor does any file match it); give files, folders or globs")
    return [found for match in matches for found in _expand(match)]


def _source(path: Path, name: str, txt: str) -> Source:
    match = _NAME.search(path.name.lower())
    if not match:
        raise InputError(f"{path} is of a kind we cannot read; give .txt, .jsonl or .parquet, plain, .gz or .zst")
    kind, packing = match[1], match[2] or ""
    if kind == "parquet" and packing:
        raise InputError(f"{path} is packed twice: parquet is compressed inside; unpack it with gunzip or unzstd")
    source = Source(path, name, kind, packing, path.stat().st_size, "")
    if kind != "txt" or not source.bytes:
        return source
    return source._replace(layout=_sniff_layout(source) if txt == "auto" else txt)


def _sniff_layout(source: Source) -> str:
    with open_unpacked(source) as stream:
        beginning = guarded(source, lambda: stream.read(SNIFF)).decode("utf-8", "replace").replace("\r\n", "\n")
    lines = beginning.split("\n")
    return "lines" if looks_like_lines(lines[:-1] if len(lines) > 1 else lines) else "prose"


def _say_layouts(sources: list[Source]) -> None:
    layouts = Counter(source.layout for source in sources if source.layout)
    meaning = {"lines": "one sentence a line", "prose": "prose in paragraphs"}
    for layout, count in sorted(layouts.items()):
        names = [source.name for source in sources if source.layout == layout]
        shown = ", ".join(names[:4]) + (f" and {count - 4} more" if count > 4 else "")
        say(f"read as {meaning[layout]}: {shown} (--txt {'prose' if layout == 'lines' else 'lines'} to say otherwise)")


def read_documents(
    source: Source, column: str, counts: Counter[str], start: int = 0, stop: int | None = None
) -> Iterator[Document]:
    """The documents that belong to bytes (of the unpacked text) or rows [start, stop) of a source.

    Raises
    ------
    InputError: unreadable, damaged, not JSON, without the field or column.
    """
    end = stop if stop is not None else 1 << 62
    if source.kind == "dataset":
        documents: Iterator[Document] = (
            Document(*found) for found in datasets_reader.read(source.path, source.name, column, start, end)
        )
    elif source.kind == "parquet":
        documents = _read_parquet(source, column, start, end)
    elif source.kind == "jsonl":
        documents = _read_jsonl(source, column, start, end, counts)
    else:
        documents = _read_txt(source, start, end, counts)
    for document in documents:
        yield from _cut(_clean(document, counts), counts)


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
    if "\0" in text:  # the tokenizer drops it
        counts["nul_characters"] += text.count("\0")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no tokenizer takes
        counts["invalid_utf8"] += 1
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return document._replace(text=text)


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
    begin = 0
    while begin < len(text):
        end = begin + MAX_DOCUMENT
        if end < len(text):
            places = (text.rfind(border, begin + MAX_DOCUMENT // 2, end) for border in ("\n\n", "\n", " "))
            end = next((place for place in places if place > 0), end)
        if part := text[begin:end].strip():
            yield document._replace(id=f"{document.id}+{begin}", text=part)
        begin = end


def _read_txt(source: Source, start: int, stop: int, counts: Counter[str]) -> Iterator[Document]:
    lines = source.layout == "lines"
    parts: list[str] = []
    first = size = 0
    for place, blank_lines, block in _blocks(source, start, stop, counts):
        if parts and (lines or blank_lines > 1 or size > MAX_DOCUMENT // 2):
            yield Document(f"{source.name}:{first}", "\n\n".join(parts), lines)
            parts, size = [], 0
        first = first if parts else place
        parts.append(block)
        size += len(block)
    if parts:
        yield Document(f"{source.name}:{first}", "\n\n".join(parts), lines)


def _blocks(source: Source, start: int, stop: int, counts: Counter[str]) -> Iterator[tuple[int, int, str]]:
    """Runs of lines between blank lines: (place, blank lines before it, text).

    A block belongs to the range in which the last blank line before it begins; the first block to the first range.
    Whoever reads a range therefore needs to look neither back nor at another range to know what is his.
    """
    blank_lines, last_blank = 0, (-1 if start == 0 else None)
    block: list[str] = []
    first = size = 0
    for place, line in lines_of(source, start, counts):
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


def _read_jsonl(source: Source, column: str, start: int, stop: int, counts: Counter[str]) -> Iterator[Document]:
    too_long = False
    for place, line in lines_of(source, start, counts):
        continues, too_long = too_long, len(line) == unpack.MAX_LINE and not line.endswith(b"\n")
        if place >= stop and not continues:
            return
        if continues or too_long or not line.strip():
            continue
        yield Document(f"{source.name}:{place}", _field(source, place, decode(line, counts), column))


def _field(source: Source, place: int, line: str, column: str) -> str:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{_line_name(source, place)} is not JSON ({error}): {line[:80]!r}") from error
    if not isinstance(content, dict):
        raise InputError(f"{_line_name(source, place)} is not a JSON object: {line[:80]!r}")
    if column not in content:
        raise InputError(f"{_line_name(source, place)} has no field {column!r}, only {sorted(content)}; see --column")
    text = content[column]
    if text is not None and not isinstance(text, str):
        raise InputError(f"{_line_name(source, place)}: field {column!r} is not text but {str(text)[:80]!r}")
    return text or ""


def _line_name(source: Source, place: int) -> str:
    """ "file, line 17", counted only now that somebody wants to know."""
    number = 1 + sum(line.endswith(b"\n") for at, line in lines_of(source, 0, Counter()) if at < place)
    return f"{source.path}, line {number}"


def _read_parquet(source: Source, column: str, start: int, stop: int) -> Iterator[Document]:
    file = _open_parquet(source, column)
    row = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row >= stop or row + rows <= start:
            row += rows
            continue
        batches = file.iter_batches(batch_size=64, row_groups=[group], columns=[column], use_threads=False)
        while batch := guarded(source, partial(next, batches, None)):
            if row + len(batch) > start:
                for at, text in enumerate(batch.column(0).to_pylist(), row):
                    if start <= at < stop:
                        yield Document(f"{source.name}:{at}", text or "")
            row += len(batch)


def _open_parquet(source: Source, column: str) -> Any:
    import pyarrow.parquet  # inside: 60 MB of memory that only parquet needs

    file = guarded(source, lambda: pyarrow.parquet.ParquetFile(source.path, buffer_size=1 << 20))
    if column not in file.schema_arrow.names:
        raise InputError(f"{source.path} has no column {column!r}, only {file.schema_arrow.names}; see --column")
    kind = file.schema_arrow.field(column).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise InputError(f"{source.path}: column {column!r} is of type {kind}, not text; see --column")
    return file
