"""Compressed files as streams of bytes: .gz, .bz2 and .zst, frame by frame, with all that a damaged file still gives.

    stream = decompressed(file, "zst", path)

Memory does not grow with the file, however far a piece of it unfolds. What is damaged or cut short raises one of
ERRORS, or EOFError, but only after every byte before the damage has been read.
"""

import bz2
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

# Compressed bytes taken at once: 2 KiB of .zst may become 64 MiB.
READ_CHUNK_BYTES = {"gz": 1 << 14, "bz2": 1 << 14, "zst": 1 << 11}
MAX_ZSTD_WINDOW_BYTES = 1 << 31  # that a frame may look back, of memory as far as it does: zstd --long=31
DECOMPRESS_CHUNK_BYTES = 1 << 16  # made at once, from .gz and .bz2
BUFFER_BYTES = 1 << 20


class _Bz2Error(Exception):
    """What bz2 says by OSError, which disks say too."""


ERRORS = (zlib.error, zstandard.ZstdError, _Bz2Error)


def decompressed(file: BinaryIO, compression: str, path: Path | None = None) -> BinaryIO:
    """Return the bytes of an open compressed file; `path` is where to find it again."""
    return io.BufferedReader(_Decompressed(file, compression, path), BUFFER_BYTES)


class _GzipMember:
    """One member of a .gz file."""

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(31)  # with gzip's header and checksum

    def decompress(self, compressed: bytes) -> tuple[bytes, bytes]:
        """Return at most DECOMPRESS_CHUNK_BYTES, and what of `compressed` is still to be given."""
        made = self._decompressor.decompress(compressed, DECOMPRESS_CHUNK_BYTES)
        return made, self._decompressor.unused_data if self.ended else self._decompressor.unconsumed_tail

    @property
    def ended(self) -> bool:
        """Whether the member is whole."""
        return self._decompressor.eof


class _Bz2Stream:
    """One stream of a .bz2 file."""

    def __init__(self) -> None:
        self._decompressor = bz2.BZ2Decompressor()
        self._holds_more = False  # of what it has taken already

    def decompress(self, compressed: bytes) -> tuple[bytes, bytes]:
        """As of _GzipMember."""
        try:
            made = self._decompressor.decompress(b"" if self._holds_more else compressed, DECOMPRESS_CHUNK_BYTES)
        except OSError as error:
            raise _Bz2Error(error) from error
        if self.ended:
            return made, self._decompressor.unused_data
        self._holds_more = not self._decompressor.needs_input
        return made, compressed if self._holds_more else b""

    @property
    def ended(self) -> bool:
        """Whether the stream is whole."""
        return self._decompressor.eof


class _ZstdFrame:
    """One frame of a .zst file. zstandard's own reader takes a file cut short for one that ended."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES).decompressobj()

    def decompress(self, compressed: bytes) -> tuple[bytes, bytes]:
        """As of _GzipMember, but all at once."""
        made = self._decompressor.decompress(compressed)
        return made, self._decompressor.unused_data if self.ended else b""

    @property
    def ended(self) -> bool:
        """Whether the frame is whole."""
        return self._decompressor.eof


_Frame = _GzipMember | _Bz2Stream | _ZstdFrame
_FRAMES: dict[str, Callable[[], _Frame]] = {"gz": _GzipMember, "bz2": _Bz2Stream, "zst": _ZstdFrame}


class _Decompressed(io.RawIOBase):
    """A compressed file, frame by frame.

    A frame that is damaged raises only once all that can be had of it is read: the chunk of the file in which it broke
    is decompressed again byte by byte, since a decompressor that fails drops what it had made of the chunk before.
    """

    def __init__(self, file: BinaryIO, compression: str, path: Path | None):
        self.file, self.compression = file, compression
        self.path = path  # where the file can be opened a second time, if it can
        self.frame: _Frame | None = None
        self.taken = 0  # bytes of the file
        self.frame_start = 0  # where the frame begins in the file
        self.compressed = b""  # still to be decompressed
        self.waiting = memoryview(b"")  # decompressed and not read yet: a view, since a chunk may make hundreds of MB
        self.chunk_start = self.given = 0  # the last chunk of the frame: where it begins, bytes it has given so far
        self.error: Exception | None = None

    def readable(self) -> bool:
        """True, always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end of the last frame.

        Raises
        ------
        EOFError: the file ends within a frame. One of ERRORS: it is damaged.
        """
        while not self.waiting:
            if self.error is not None:
                raise self.error
            if not self.compressed and not self._read_chunk():
                return 0
            try:
                self._decompress()
            except ERRORS as error:
                self.waiting, self.error = memoryview(self._salvage()), error
        size = min(len(buffer), len(self.waiting))
        buffer[:size] = self.waiting[:size]
        self.waiting = self.waiting[size:]
        return size

    def _read_chunk(self) -> bool:
        self.chunk_start, self.given = self.taken, 0
        self.compressed = self.file.read(READ_CHUNK_BYTES[self.compression])
        self.taken += len(self.compressed)
        if not self.compressed and self.frame is not None:
            raise EOFError("the file ends before the end-of-stream marker was reached")
        return bool(self.compressed)

    def _decompress(self) -> None:
        if self.frame is None:
            if self.compression == "gz":  # gzip pads with zeros
                self.compressed = self.compressed.lstrip(b"\0")
            self.frame_start = self.chunk_start = self.taken - len(self.compressed)
            self.given = 0
            if not self.compressed:
                return
            self.frame = _FRAMES[self.compression]()
        made, self.compressed = self.frame.decompress(self.compressed)
        self.waiting = memoryview(made)
        self.given += len(self.waiting)
        if self.frame.ended:
            self.frame = None

    def _salvage(self) -> bytes:
        """Return what the chunk at which the frame broke gives before it breaks, less what it has given."""
        if self.path is None:
            return b""
        frame, saved = _FRAMES[self.compression](), bytearray()
        with open(self.path, "rb") as file:
            file.seek(self.frame_start)
            while left := self.chunk_start - file.tell():
                _decompress_all(frame, file.read(min(READ_CHUNK_BYTES[self.compression], left)), bytearray())
            try:
                while byte := file.read(1):
                    _decompress_all(frame, byte, saved)
            except ERRORS:
                pass
        return bytes(saved[self.given :])

    def close(self) -> None:
        """Close the file below too."""
        self.file.close()
        super().close()


def _decompress_all(frame: _Frame, compressed: bytes, into: bytearray) -> None:
    while compressed:
        made, compressed = frame.decompress(compressed)
        into += made
