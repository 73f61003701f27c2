"""A source of text, a file of the corpus or a dataset: what is known of it, and how its bytes become text and lines.

    with open_text(source) as stream: ...                      # UTF-8, decompressed and decoded on the way
    for place, line in lines_of(source, start, counts): ...    # the lines that begin at byte `start` or later
    with reading(source): ...                                  # DamagedError where its format is broken

Memory grows neither with a file nor with a line: a line of more than MAX_LINE_BYTES comes in parts. Plain files of
UTF-8 can be entered anywhere; what is compressed, or has to be decoded (decoding.py), is read from its beginning. Of a
file that is damaged or cut short every line that is whole is read, then it is said and counted (`damaged_parts`),
however its compression would have it.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.cli import InputError, say
from data_prep.text import compression
from data_prep.text.decoding import in_utf8

MAX_LINE_BYTES = 16 << 20  # a longer line of .txt is cut, of .jsonl left out
TO_THE_END = 1 << 62  # more bytes and rows than any source has
BOM = b"\xef\xbb\xbf"  # byte order mark, of UTF-8


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of the corpus, or a dataset; `discovery.find_sources` makes them."""

    path: Path
    name: str  # as written into the manifest: relative to the folder named on the command line, with its last part
    kind: str  # txt, jsonl, json, csv, tsv, parquet, dataset, xml, tar
    compression: str = ""  # gz, bz2, zst; "": none
    bytes: int  # on disk
    # Of txt lines, prose or whose articles; of xml what takes the markup out; of csv and tsv what parts cells; of json
    # where records lie; of tar what --txt says.
    layout: str = ""
    encoding: str = ""  # that it is decoded from; of tar and parquet what --encoding says; "": UTF-8 as it lies
    modified: int = 0  # ns; 0 where nobody knows
    column: str = ""  # where the text is, if not in --column

    @property
    def is_stream(self) -> bool:
        """Whether it can only be read from its beginning to its end."""
        return (
            bool(self.compression)
            or self.kind in ("xml", "tar", "csv", "tsv", "json")
            or (self.kind in ("txt", "jsonl") and self.encoding != "")
        )


class DamagedError(InputError):
    """A file ends too early, or holds what its format does not allow."""


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn what libraries raise at broken formats into DamagedError, naming the file; the disk's errors stay.

    Raises
    ------
    DamagedError: the file is damaged or cut short.
    """
    try:
        yield
    except (EOFError, tarfile.TarError, *compression.ERRORS) as error:
        raise DamagedError(f"{source.path} is damaged or cut short ({error}); fetch or pack it again") from error
    except Exception as error:
        if source.kind == "parquet":  # pyarrow raises what it likes, OSError and ValueError among it
            raise DamagedError(f"{source.path} is not a whole parquet file ({error}); fetch it again") from error
        raise


def record_damage(error: DamagedError, counts: Counter[str]) -> None:
    """Say and count that what follows in a source is lost; what came before it stays."""
    counts["damaged_parts"] += 1
    say(f"warning: {error}; what stands before the damage is read (--strict refuses)")


def open_raw(source: Source) -> BinaryIO:
    """Open a file's bytes as they lie on disk.

    Raises
    ------
    InputError: it cannot be read.
    """
    try:
        return open(source.path, "rb", buffering=1 << 20)
    except OSError as error:
        raise InputError(f"{source.path} cannot be read: {error.strerror}") from error


def open_decompressed(source: Source) -> BinaryIO:
    """Open a file's bytes, decompressed on the way.

    Raises
    ------
    InputError: it cannot be read.
    """
    file = open_raw(source)
    return compression.decompressed(file, source.compression, source.path) if source.compression else file


def open_text(source: Source) -> BinaryIO:
    """Open a file's text in UTF-8, decompressed and decoded on the way.

    Raises
    ------
    InputError: it cannot be read.
    """
    return in_utf8(open_decompressed(source), source.encoding)


def lines_of(source: Source, start: int, counts: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """Yield (place, line) of the lines that begin at or after byte `start` of the text, in parts of MAX_LINE_BYTES."""
    with open_text(source) as stream:
        place = max(0, start - 1)
        if start > 0:
            stream.seek(place)
            with reading(source):
                while skipped := stream.readline(MAX_LINE_BYTES):  # the rest of the line before
                    place += len(skipped)
                    if skipped.endswith(b"\n"):
                        break
        yield from lines_in(source, stream, counts, place)


def lines_in(source: Source, stream: BinaryIO, counts: Counter[str], place: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are left in a stream of which `place` bytes are read."""
    try:
        with reading(source):
            while line := stream.readline(MAX_LINE_BYTES):
                if is_part_of_line(line):
                    counts["long_lines"] += 1
                yield place, line.removeprefix(BOM) if place == 0 else line
                place += len(line)
    except DamagedError as error:
        record_damage(error, counts)


def is_part_of_line(line: bytes) -> bool:
    """Whether a line goes on in the next one that is read, being too long."""
    return len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")


def decode(line: bytes, counts: Counter[str], encoding: str = "utf-8") -> str:
    """Return a line as text; wrong bytes become U+FFFD and are counted."""
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        counts["invalid_utf8"] += 1
        return line.decode(encoding, "replace")
