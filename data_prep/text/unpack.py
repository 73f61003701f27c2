"""A file of the corpus as lines of bytes, unpacked on the way: memory does not grow with the file, nor with a line.

    for place, line in lines_of(source, start, counts): ...    # the lines that begin at byte `start` or later

Plain files of UTF-8 can be entered anywhere; .gz, .bz2 and .zst are read from their beginning, and so is what has to be
decoded (decoding.py): it comes as UTF-8. A line of more than MAX_LINE bytes comes in pieces. Of a packed file that is
damaged or cut short every line that is whole is read, then it is said and counted (`damaged_parts`), however its packer
would have it. Whoever has read a file asks `check_unchanged` whether it was still the one that was planned.
"""

import bz2
import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

from data_prep.cli import InputError, say
from data_prep.text.datasets_reader import folder_of
from data_prep.text.decoding import in_utf8

MAX_LINE = 16 << 20  # bytes; a longer line of .txt is cut, of .jsonl left out
PIECE = {"gz": 1 << 14, "bz2": 1 << 14, "zst": 1 << 11}  # packed bytes taken at once: .zst unpacks to 32,768 times that
WINDOW = 1 << 31  # bytes that a frame of .zst may look back, of memory as far as it does: zstd --long=31
STEP = 1 << 16  # unpacked bytes made at once, from .gz and .bz2


class Source(NamedTuple):
    """A file of the corpus."""

    path: Path
    name: str  # as written into the manifest: relative to the folder named on the command line, with its last part
    kind: str  # txt, jsonl, json, csv, tsv, parquet, dataset, xml, tar
    packing: str  # "", gz, bz2, zst
    bytes: int  # on disk
    layout: (
        str  # of txt lines, prose or whose articles; of xml what takes the markup out; of csv, tsv what parts cells;
    )
    # of json where records lie; of tar what --txt says; else ""
    encoding: str = ""  # that it is decoded from; of tar and parquet what --encoding says; "": UTF-8 as it lies
    modified: int = 0  # ns; 0 where nobody knows
    column: str = ""  # where the text is, if not in --column

    @property
    def is_stream(self) -> bool:
        """Whether it can only be read from its beginning to its end."""
        return (
            bool(self.packing)
            or self.kind in ("xml", "tar", "csv", "tsv", "json")
            or (self.kind in ("txt", "jsonl") and self.encoding != "")
        )


class DamagedError(InputError):
    """A file ends too early, or holds what its format does not allow."""


def lines_of(source: Source, start: int, counts: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """Lines that begin at or after byte `start` of the unpacked text, with their places, in pieces of MAX_LINE."""
    with open_text(source) as stream:
        place = max(0, start - 1)
        if start > 0:
            stream.seek(place)
            while skipped := guarded(source, partial(stream.readline, MAX_LINE)):  # the rest of a line before
                place += len(skipped)
                if skipped.endswith(b"\n"):
                    break
        yield from lines_in(source, stream, counts, place)


def lines_in(source: Source, stream: BinaryIO, counts: Counter[str], place: int = 0) -> Iterator[tuple[int, bytes]]:
    """The lines that are left in a stream of which `place` bytes are read."""
    while line := _unless_damaged(source, partial(stream.readline, MAX_LINE), counts):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            counts["long_lines"] += 1
        yield place, line.removeprefix(b"\xef\xbb\xbf") if place == 0 else line
        place += len(line)


def _unless_damaged(source: Source, read_line: Callable[[], bytes], counts: Counter[str]) -> bytes:
    try:
        return guarded(source, read_line)
    except DamagedError as error:
        note_damage(error, counts)
        return b""


def note_damage(error: DamagedError, counts: Counter[str]) -> None:
    """Say and count that what follows in a source is lost; what came before it stays."""
    counts["damaged_parts"] += 1
    say(f"warning: {error}; what stands before the damage is read (--strict refuses)")


def guarded(source: Source, read: Callable[[], Any]) -> Any:
    """What `read` returns.

    Raises
    ------
    DamagedError: the file is damaged or cut short.
    """
    try:
        return read()
    except (EOFError, tarfile.TarError, *_ERRORS) as error:
        raise DamagedError(f"{source.path} is damaged or cut short ({error}); fetch or pack it again") from error
    except Exception as error:
        if source.kind == "parquet":  # pyarrow raises what it likes, OSError and ValueError among it
            raise DamagedError(f"{source.path} is not a whole parquet file ({error}); fetch it again") from error
        raise


def decode(line: bytes, counts: Counter[str], encoding: str = "utf-8") -> str:
    """A line as text; wrong bytes become U+FFFD and are counted."""
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        counts["invalid_utf8"] += 1
        return line.decode(encoding, "replace")


class _Bz2Error(Exception):
    """What bz2 says by OSError, which disks say too."""


_ERRORS = (zlib.error, zstandard.ZstdError, _Bz2Error)


class _Gz:
    """One member of a .gz file."""

    def __init__(self) -> None:
        self._unpacker = zlib.decompressobj(31)  # with gzip's header and checksum

    def unpack(self, packed: bytes) -> tuple[bytes, bytes]:
        """At most STEP bytes, and what of `packed` is still to be given."""
        unpacked = self._unpacker.decompress(packed, STEP)
        return unpacked, self._unpacker.unused_data if self.ended else self._unpacker.unconsumed_tail

    @property
    def ended(self) -> bool:
        """Whether the member is whole."""
        return self._unpacker.eof


class _Bz2:
    """One stream of a .bz2 file."""

    def __init__(self) -> None:
        self._unpacker = bz2.BZ2Decompressor()
        self._asked_again = False  # for more of what the unpacker has taken already

    def unpack(self, packed: bytes) -> tuple[bytes, bytes]:
        """As of _Gz."""
        try:
            unpacked = self._unpacker.decompress(b"" if self._asked_again else packed, STEP)
        except OSError as error:
            raise _Bz2Error(error) from error
        if self.ended:
            return unpacked, self._unpacker.unused_data
        self._asked_again = not self._unpacker.needs_input
        return unpacked, packed if self._asked_again else b""

    @property
    def ended(self) -> bool:
        """Whether the stream is whole."""
        return self._unpacker.eof


class _Zst:
    """One frame of a .zst file. zstandard's own reader takes a file cut short for one that ended."""

    def __init__(self) -> None:
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()

    def unpack(self, packed: bytes) -> tuple[bytes, bytes]:
        """As of _Gz, but all at once."""
        unpacked = self._unpacker.decompress(packed)
        return unpacked, self._unpacker.unused_data if self.ended else b""

    @property
    def ended(self) -> bool:
        """Whether the frame is whole."""
        return self._unpacker.eof


_FRAMES: dict[str, Callable[[], _Gz | _Bz2 | _Zst]] = {"gz": _Gz, "bz2": _Bz2, "zst": _Zst}


class _Unpacked(io.RawIOBase):
    """A packed file, frame by frame.

    A frame that is damaged raises only once all that can be had of it is read: the piece of the file in which it broke
    is unpacked again byte by byte, since an unpacker that fails drops what it had made of the piece before.
    """

    def __init__(self, file: BinaryIO, packing: str, path: Path | None):
        self.file, self.packing = file, packing
        self.path = path  # where the file can be opened a second time, if it can
        self.frame: _Gz | _Bz2 | _Zst | None = None
        self.taken = 0  # bytes of the file
        self.frame_start = 0  # where the frame begins in the file
        self.packed = self.unpacked = b""
        self.piece_start = self.given = 0  # the last piece of the frame: where it begins, bytes it has given so far
        self.error: Exception | None = None

    def readable(self) -> bool:
        """True, always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end of the last frame.

        Raises
        ------
        EOFError: the file ends within a frame. One of _ERRORS: it is damaged.
        """
        while not self.unpacked:
            if self.error is not None:
                raise self.error
            if not self.packed and not self._read_piece():
                return 0
            try:
                self._unpack()
            except _ERRORS as error:
                self.unpacked, self.error = self._salvage(), error
        size = min(len(buffer), len(self.unpacked))
        buffer[:size] = self.unpacked[:size]
        self.unpacked = self.unpacked[size:]
        return size

    def _read_piece(self) -> bool:
        self.piece_start, self.given = self.taken, 0
        self.packed = self.file.read(PIECE[self.packing])
        self.taken += len(self.packed)
        if not self.packed and self.frame is not None:
            raise EOFError("the file ends before the end-of-stream marker was reached")
        return bool(self.packed)

    def _unpack(self) -> None:
        if self.frame is None:
            if self.packing == "gz":  # gzip pads with zeros
                self.packed = self.packed.lstrip(b"\0")
            self.frame_start = self.piece_start = self.taken - len(self.packed)
            self.given = 0
            if not self.packed:
                return
            self.frame = _FRAMES[self.packing]()
        self.unpacked, self.packed = self.frame.unpack(self.packed)
        self.given += len(self.unpacked)
        if self.frame.ended:
            self.frame = None

    def _salvage(self) -> bytes:
        """What the piece at which the frame broke gives before it breaks, less what it has given."""
        if self.path is None:
            return b""
        frame, found = _FRAMES[self.packing](), bytearray()
        with open(self.path, "rb") as file:
            file.seek(self.frame_start)
            while at := self.piece_start - file.tell():
                _drain(frame, file.read(min(PIECE[self.packing], at)), bytearray())
            try:
                while byte := file.read(1):
                    _drain(frame, byte, found)
            except _ERRORS:
                pass
        return bytes(found[self.given :])

    def close(self) -> None:
        """Close the file below too."""
        self.file.close()
        super().close()


def _drain(frame: _Gz | _Bz2 | _Zst, packed: bytes, into: bytearray) -> None:
    while packed:
        unpacked, packed = frame.unpack(packed)
        into += unpacked


def open_unpacked(source: Source) -> BinaryIO:
    """A file's bytes, unpacked on the way.

    Raises
    ------
    InputError: it cannot be read.
    """
    try:
        file = open(source.path, "rb", buffering=1 << 20)  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{source.path} cannot be read: {error.strerror}") from error
    return unpacked(file, source.packing, source.path) if source.packing else file


def open_text(source: Source) -> BinaryIO:
    """A file's text in UTF-8, unpacked and decoded on the way.

    Raises
    ------
    InputError: it cannot be read.
    """
    return in_utf8(open_unpacked(source), source.encoding)


def check_unchanged(source: Source) -> None:
    """Refuse what was made of a file that is no longer the one whose reading was planned.

    Raises
    ------
    InputError: the file has another size or another time.
    """
    if not source.modified:
        return
    size, modified = size_and_time(folder_of(source.path) if source.kind == "dataset" else source.path)
    if (size, modified) != (source.bytes, source.modified):
        how = f"of {source.bytes:,} bytes, now {size:,}" if size != source.bytes else "written to since"
        raise InputError(
            f"{source.path} changed while it was read ({how}); nothing is finished. Read a copy that nothing writes "
            "to, into a new --out"
        )


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes of a file, or of all files of a folder, and when the last of them was modified (ns); zeros for what is not
    there."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        found = [file.stat() for file in files]
    except FileNotFoundError:
        return 0, 0
    return sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)


def unpacked(file: BinaryIO, packing: str, path: Path | None = None) -> BinaryIO:
    """The bytes of an open packed file; `path` is where to find it again."""
    return io.BufferedReader(_Unpacked(file, packing, path), 1 << 20)
