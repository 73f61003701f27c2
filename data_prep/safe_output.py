"""Where words go: consoles and files that may die, fill up or vanish without taking the work along.

    survive_console()              from here on no write to stdout or stderr raises
    failure_of(sys.stderr)         the first error that this hid
    can_redraw(sys.stderr)         whether a bar can be drawn there; elsewhere lines are written
    journal = Journal(path)        lines at the end of a file
    journal.write(line)            what cannot be written now is kept, and written with a later line

A reader that has gone (`| head`, a connection that broke) wants no more words, and the work was not about them.
"""

import io
import os
import select
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

KEPT_LINES = 10_000  # that wait for a disk


class _Lasting(io.FileIO):
    """A descriptor whose writes do not raise: the first failure is remembered, what it concerned is lost."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            while (
                written := super().write(data)
            ) is None:  # somebody has made the console non-blocking, and it is full
                select.select([], [self], [])
        except OSError as error:
            self.failure = self.failure or error
            return size
        return written


def survive_console() -> None:
    """Make stdout and stderr of this process last; call it where a program begins. A letter that their encoding does
    not have is spelled (\\xe9), and ends nothing either.

    A stream that was closed (`2>&-`) gets /dev/null: else the next file that is opened would be its descriptor, and
    receive what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # else somebody else catches it, a test say
            setattr(sys, name, _lasting(descriptor, stream))


def _lasting(descriptor: int, stream: TextIO | None) -> TextIO:
    raw = _Lasting(descriptor, "w", closefd=False)
    encoding = "utf-8" if stream is None else stream.encoding
    by_line = descriptor == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=by_line)


def can_redraw(stream: TextIO | None) -> bool:
    """Return whether lines can be drawn over: on a terminal, unless it says that it can not (TERM=dumb)."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def failure_of(stream: TextIO | None) -> OSError | None:
    """Return the first error that a lasting stream has hidden."""
    return getattr(getattr(getattr(stream, "buffer", None), "raw", None), "failure", None)


class Journal:
    """Lines at the end of a file, which is opened for each: it may be removed, rotated or replaced meanwhile.

    A line is in the file whole or not at all, and begins where a line begins, whatever a crash has left before it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lost = 0  # lines that were too many to keep
        self.failure: OSError | None = None  # why lines are waiting now
        self._waiting: deque[bytes] = deque(maxlen=KEPT_LINES)

    @property
    def waiting(self) -> int:
        """Lines that are not in the file yet."""
        return len(self._waiting)

    def write(self, line: str) -> None:
        """Append a line and all that wait; never raises."""
        self.lost += len(self._waiting) == KEPT_LINES
        self._waiting.append(line.encode(errors="replace") + b"\n")
        try:
            _append(self.path, b"".join(self._waiting))
        except OSError as error:
            self.failure = error
        else:
            self.failure = None
            self._waiting.clear()


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            with suppress(OSError):  # not a part of it either; /dev/full cannot be cut
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
