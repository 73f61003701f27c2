"""What the command line names as corpus, as sources in an order that depends on names only.

    sources = find_sources(["wiki/", "news-*.jsonl.zst", "book.txt"], txt="auto", column="text")
    check_unchanged(sources[0])                 # after reading: it is still the file that was found

Folders are searched recursively, in sorted order, without following links (folders.py). What each file is, kinds.py
tells; its encoding is found (decoding.py) and said where it is not UTF-8, and so are the layout of .txt, and the column
of the text where there is no "text". Nothing that can be told at the beginning waits for hours: names that lie, a first
line without the field, damage.
"""

import glob
import io
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from data_prep.cli import InputError, printable, say
from data_prep.text.columns import NoColumnError
from data_prep.text.damage import check_damage
from data_prep.text.decoding import damaged_characters, find_encoding, in_utf8, named_encoding, whole_characters
from data_prep.text.folders import how_to_read, left_out, text_files
from data_prep.text.kinds import KINDS, check_magic, classify, is_text_file, kind_of, read_head
from data_prep.text.readers import hf_datasets, jsonl, wikipedia
from data_prep.text.source import DamagedError, Source, open_decompressed

HEAD_BYTES = 1 << 20  # of a file's beginning, looked at to find its encoding
PROBES, PROBE_BYTES = 8, 1 << 15  # so many further places in a plain file, of so many bytes
NAMES_SHOWN = 8  # in a message


def find_sources(
    arguments: Iterable[str],
    txt: str = "auto",
    datasets: Iterable[str] = (),
    *,
    strict: bool = False,
    column: str | None = None,
    encoding: str | None = None,
    max_damaged: float | None = None,
    out: Path | None = None,
) -> list[Source]:
    """Return the files that paths, folders and globs name, then Hugging Face datasets.

    `encoding` is that of all files, where they have no byte order mark; `max_damaged` as check_damage takes it; `out`,
    where the command writes, is no source.

    Raises
    ------
    InputError: nothing there, a kind of file we cannot read, nothing but empty files; a .jsonl whose first line has no
    field `column`; an unknown encoding.
    """
    finder = _Finder(txt, named_encoding(encoding) if encoding is not None else None, max_damaged, column)
    sources = _files(arguments, finder, strict=strict, out=out, are_alone=not datasets)
    if strict and (empty := [source.name for source in sources if not source.bytes]):
        raise InputError(f"empty files, which --strict refuses: {', '.join(empty[:5])}")
    sources += map(_dataset, datasets)
    if not any(source.bytes for source in sources):
        raise InputError(f"the corpus is empty: {', '.join(source.name for source in sources[:5])} hold no bytes")
    if empty := [source.name for source in sources if not source.bytes]:
        say(f"left out: empty files: {_shown(empty)}")
    if txt == "auto":
        _say_layouts(sources)
    _say_columns(sources)
    for source in sources if column is not None else ():
        if source.kind == "jsonl" and source.bytes:
            jsonl.check_first_line(source, source.column or str(column))
    return sources


def files_of(arguments: Iterable[str]) -> list[Path]:
    """Return the files that paths, folders and globs name; nothing is read of them.

    Raises
    ------
    InputError: nothing there.
    """
    return list(dict.fromkeys(path.resolve() for argument in arguments for path, *_ in _expand(argument, None)))


def _files(
    arguments: Iterable[str], finder: "_Finder", *, strict: bool, out: Path | None, are_alone: bool
) -> list[Source]:
    """Return files as sources, and say in which encodings they are read, and which tables are left out as no text."""
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
            source, why = finder.source(path, printable(name))
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
    if strangers and not sources and are_alone:
        raise next(error for errors in strangers.values() for error in errors.values())
    say_encodings(known_by)
    return sources


def _expand(argument: str, out: Path | None) -> list[tuple[Path, str, str]]:
    """Return files, the names they get, and the folder in which they were found, if they were not named themselves."""
    path = Path(argument)
    if path.is_dir():
        found = text_files(path, is_text_file, out)
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


class _Finder:
    """Makes sources of files, by what the command line says of all of them."""

    def __init__(self, txt: str, encoding: str | None, max_damaged: float | None, column: str | None):
        self.txt, self.encoding, self.max_damaged, self.column = txt, encoding, max_damaged, column

    def source(self, path: Path, name: str) -> tuple[Source, str]:
        """Return a file as a source, and what its encoding is known by."""
        source = self._by_name(path, name)
        if not source.bytes:
            return source, ""
        if source.compression:
            check_magic(source)
        if source.kind == "tar":
            return replace(source, layout="" if self.txt == "auto" else self.txt), ""
        if source.kind == "parquet":
            return source, ""
        pieces = _probe(source)
        if source.kind == "xml":
            return self._dump(source, pieces[0]), ""
        found = find_encoding(pieces, self.encoding, is_whole(pieces))
        source = replace(source, encoding=found.encoding)
        if not source.compression:  # what is damaged here and there is so everywhere: better said now than in hours
            counts = _damage_of(pieces, found.encoding or "utf-8")
            check_damage(source, counts, self.max_damaged, encoding_is_named=self.encoding is not None)
        beginning = in_utf8(io.BytesIO(pieces[0]), found.encoding).read()
        source = classify(source, beginning, is_whole=is_whole(pieces), txt=self.txt, column=self.column)
        return source, found.why

    def _by_name(self, path: Path, name: str) -> Source:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is a pipe or a device, which can be read once only; write it to a file first")
        kind = kind_of(path.name)
        if not kind:
            raise InputError(f"{path} is of a kind we cannot read{how_to_read(path)}; give {KINDS}")
        if kind.kind == "parquet" and kind.compression:
            raise InputError(f"{path} is packed twice: parquet is compressed inside; unpack it with gunzip or unzstd")
        return Source(
            path=path,
            name=name,
            kind=kind.kind,
            compression=kind.compression,
            bytes=status.st_size,
            encoding=self.encoding or "",
            modified=status.st_mtime_ns,
        )

    def _dump(self, source: Source, beginning: bytes) -> Source:
        """Return a dump of MediaWiki with what takes its markup out, and its encoding, where expat does not read it."""
        if not wikipedia.is_dump(beginning):
            raise InputError(f"{source.path} is no dump of MediaWiki, the only XML that is read here")
        declared = wikipedia.declared_encoding(beginning)
        encoding = (self.encoding or "") if declared is None else declared
        return replace(source, layout=wikipedia.extractor(), encoding=encoding)


def _dataset(name: str) -> Source:
    path, bytes_on_disk = hf_datasets.find(name)
    _, modified = size_and_time(hf_datasets.folder_of(path))
    shown = printable(name.rstrip("/").rsplit("/", 1)[-1])
    return Source(path=path, name=shown, kind="dataset", bytes=bytes_on_disk, modified=modified)


def _probe(source: Source) -> list[bytes]:
    """Return the beginning of a file, and pieces of what follows where it is plain."""
    with open_decompressed(source) as stream:
        pieces = [read_head(source, stream, HEAD_BYTES)]
        if not source.compression and source.bytes > len(pieces[0]):
            for probe in range(1, PROBES + 1):
                at = HEAD_BYTES + (source.bytes - HEAD_BYTES) * probe // PROBES - PROBE_BYTES
                stream.seek(max(0, at) & ~3)  # whole characters of UTF-16 and UTF-32
                pieces.append(stream.read(PROBE_BYTES))
    return pieces


def is_whole(pieces: list[bytes]) -> bool:
    """Whether the pieces of a file, of which the first has up to HEAD_BYTES, are all of it."""
    return len(pieces) == 1 and len(pieces[0]) < HEAD_BYTES


def _damage_of(pieces: list[bytes], encoding: str) -> Counter[str]:
    text = "\n".join(piece.decode(encoding, "replace") for piece in whole_characters(pieces, encoding))
    return Counter(characters=len(text), damaged_characters=damaged_characters(text, text.encode("utf-8", "replace")))


def check_unchanged(source: Source) -> None:
    """Refuse what was made of a file that is no longer the one whose reading was planned.

    Raises
    ------
    InputError: the file has another size or another time.
    """
    if not source.modified:
        return
    size, modified = size_and_time(hf_datasets.folder_of(source.path) if source.kind == "dataset" else source.path)
    if (size, modified) != (source.bytes, source.modified):
        how = f"of {source.bytes:,} bytes, now {size:,}" if size != source.bytes else "written to since"
        raise InputError(
            f"{source.path} changed while it was read ({how}); nothing is finished. Read a copy that nothing writes "
            "to, into a new --out"
        )


def size_and_time(path: Path) -> tuple[int, int]:
    """Return bytes of a file, or of all files of a folder, and when the last of them was modified (ns); zeros for what
    is not there."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        found = [file.stat() for file in files]
    except FileNotFoundError:
        return 0, 0
    return sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)


def say_encodings(known_by: dict[tuple[str, str], list[str]]) -> None:
    """Say which sources, by name, are read in which encoding, and what it is known by."""
    for (encoding, why), names in sorted(known_by.items()):
        hint = " (--encoding NAME to say otherwise)" if why == "a guess" else ""
        say(f"read as {encoding}: {why}: {_shown(names)}{hint}")


def say_columns(by_column: dict[str, list[str]]) -> None:
    """Say of which sources, by name, the text is taken from another column than the usual one."""
    for column, names in sorted(by_column.items()):
        say(f"the text is taken from {column!r}: {_shown(names)} (--column NAME to say otherwise)")


def _say_columns(sources: Iterable[Source]) -> None:
    by_column: dict[str, list[str]] = {}
    for source in sources:
        if source.column:
            by_column.setdefault(source.column, []).append(source.name)
    say_columns(by_column)


def _say_layouts(sources: Iterable[Source]) -> None:
    other = {"lines": "prose", "prose": "lines", "wikitext": "prose", "wikiextractor": "prose"}
    meaning = {
        "lines": "one sentence a line, a blank line between documents",
        "prose": "prose in paragraphs, two blank lines between documents",
        "wikitext": "WikiText, a document an article",
        "wikiextractor": "what WikiExtractor writes, a document an article",
    }
    by_layout: dict[str, list[str]] = {}
    for source in sources:
        if source.kind == "txt" and source.layout:
            by_layout.setdefault(source.layout, []).append(source.name)
    for layout, names in sorted(by_layout.items()):
        say(f"read as {meaning[layout]}: {_shown(names, 4)} (--txt {other[layout]} to say otherwise)")


def _shown(names: list[str], most: int = NAMES_SHOWN) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
