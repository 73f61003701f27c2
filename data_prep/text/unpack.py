"""A file of the corpus as lines of bytes, unpacked on the way: memory does not grow with the file, nor with a line.

    for place, line in lines_of(source, start, counts): ...    # the lines that begin at byte `start` or later

Plain files can be entered anywhere; .gz and .zst are read from their beginning. A line of more than MAX_LINE bytes
comes in pieces. A file that is damaged or cut short is refused, however its packer would have it.
"""

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

from data_prep.cli import InputError

MAX_LINE = 16 << 20  # bytes; a longer line of .txt is cut, of .jsonl left out


class Source(NamedTuple):
    """A file of the corpus."""

    path: Path
    name: str  # as written into the manifest: relative to the folder named on the command line, with its last part
    kind: str  # txt, jsonl, parquet, dataset
    packing: str  # "", gz, zst
    bytes: int  # on disk
    layout: str  # lines or prose for txt, else ""


def lines_of(source: Source, start: int, counts: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """Lines that begin at or after byte `start` of the unpacked text, with their places, in pieces of MAX_LINE."""
    with open_unpacked(source) as stream:
        place, read_line = max(0, start - 1), partial(stream.readline, MAX_LINE)
        if place:
            stream.seek(place)
            while skipped := guarded(source, read_line):  # the rest of a line of the range before
                place += len(skipped)
                if skipped.endswith(b"\n"):
                    break
        while line := guarded(source, read_line):
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                counts["long_lines"] += 1
            yield place, line.removeprefix(b"\xef\xbb\xbf") if place == 0 else line
            place += len(line)


def guarded(source: Source, read: Callable[[], Any]) -> Any:
    """What `read` returns.

    Raises
    ------
    InputError: the file is damaged or cut short.
    """
    try:
        return read()
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{source.path} is damaged or cut short ({error}); fetch or pack it again") from error
    except Exception as error:
        if source.kind == "parquet":  # pyarrow raises what it likes, OSError and ValueError among it
            raise InputError(f"{source.path} is not a whole parquet file ({error}); fetch it again") from error
        raise


def decode(line: bytes, counts: Counter[str]) -> str:
    """A line as text; wrong bytes become U+FFFD and are counted."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        counts["invalid_utf8"] += 1
        return line.decode("utf-8", "replace")


class _Zst(io.RawIOBase):
    """A .zst file unpacked frame by frame. zstandard's own reader takes a file cut short for one that ended."""

    def __init__(self, path: Path):
        self.file = open(path, "rb")  # noqa: SIM115
        self.frame: Any = None
        self.packed = self.unpacked = b""

    def readable(self) -> bool:
        """True, always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end of the last frame, EOFError where the file ends within one."""
        while not self.unpacked:
            # Little at a time: what it unpacks to is in memory at once, and it may be 32,768 times as much.
            self.packed = self.packed or self.file.read(1 << 11)
            if not self.packed:
                if self.frame is not None:
                    raise EOFError("the file ends before the end-of-stream marker was reached")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.unpacked = self.frame.decompress(self.packed)
            self.packed = self.frame.unused_data if self.frame.eof else b""
            self.frame = None if self.frame.eof else self.frame
        size = min(len(buffer), len(self.unpacked))
        buffer[:size] = self.unpacked[:size]
        self.unpacked = self.unpacked[size:]
        return size

    def close(self) -> None:
        """Close the file below too."""
        self.file.close()
        super().close()


def open_unpacked(source: Source) -> BinaryIO:
    """A file's bytes, unpacked on the way.

    Raises
    ------
    InputError: it cannot be read.
    """
    try:
        if source.packing == "gz":
            return gzip.open(source.path, "rb")  # type: ignore[return-value]
        if source.packing == "zst":
            return io.BufferedReader(_Zst(source.path), 1 << 20)
        return open(source.path, "rb", buffering=1 << 20)
    except OSError as error:
        raise InputError(f"{source.path} cannot be read: {error.strerror}") from error
