"""Files that are mapped into memory, and that somebody else cuts short meanwhile.

    files = Files(paths)     from now on, reading where one of them has ended says so and ends the process
    files.check()            FileChangedError where one has become shorter; cheap enough to be called all the time

A program that reads a mapped file beyond its end gets SIGBUS, of which Python would die without a word. To read by
system calls in place of maps costs a quarter of the loader's speed. So the signal is caught by the C library's means,
in the thread that met it: it names the file that is shorter than it was, once for all ranks of a node, and ends the
process with code 1, upon which a launcher ends the other ranks. A SIGBUS of another cause goes the way it would have
gone. In the last page of a file there is no signal but zeros, hence check().
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from weakref import WeakSet

from data_prep.calls import call
from data_prep.cli import say_once

CHECK_EVERY_SECONDS = 1.0  # the sizes of the files
_all: "WeakSet[Files]" = WeakSet()
_keep: list[object] = []  # the handler that was installed, which must stay


class FileChangedError(OSError):
    """A file of ours is no longer, or never was, what it should be; found by whichever rank reads it."""


class _SigAction(ctypes.Structure):
    """struct sigaction of Linux's C libraries."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * (128 // ctypes.sizeof(ctypes.c_ulong))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Files:
    """Mapped files of which it is known how long they were."""

    def __init__(self, paths: Iterable[Path]):
        self._were = {path.absolute(): path.stat() for path in paths}
        self._looked = 0.0  # when, as time.monotonic() counts
        _all.add(self)
        if not _keep:
            _install()

    def check(self) -> None:
        """Look at the sizes, at most once in CHECK_EVERY_SECONDS.

        Raises
        ------
        FileChangedError: naming the file that is shorter.
        """
        now = time.monotonic()
        if now - self._looked < CHECK_EVERY_SECONDS:
            return
        self._looked = now
        if (path := self.cut()) is not None:
            raise FileChangedError(_message(path))

    def cut(self) -> Path | None:
        """Return the first file that is shorter than it was. One that was removed or replaced stays as it is mapped."""
        for path, was in self._were.items():
            try:
                status = path.stat()
            except OSError:
                continue
            if status.st_ino == was.st_ino and status.st_size < was.st_size:
                return path
        return None


def _message(path: Path) -> str:
    return f"{path} was cut short while it was read; make the store again with {call('shard')}"


def _install() -> None:
    library = ctypes.CDLL(None)
    before = _SigAction()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_bus_error(number: int) -> None:
        path = next(filter(None, (files.cut() for files in list(_all))), None)
        if path is None:
            library.sigaction(number, ctypes.byref(before), None)  # it comes again at once, and goes its old way
            return
        say_once(f"error: {_message(path)}", about=_message(path))
        os._exit(1)

    action = _SigAction(ctypes.cast(on_bus_error, ctypes.c_void_p))
    if library.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before)) == 0:
        _keep.append(on_bus_error)
