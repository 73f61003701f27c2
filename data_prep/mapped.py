"""Files that are mapped into memory, and that somebody else cuts short meanwhile.

    array = map_file(path)   the bytes of a file [N] uint8, of which nothing is read until it is used
    advise_random(array)     they will be read here and there: each time one page, and not megabytes ahead

    files = Files()
    files.watch(path)        from now on, reading where it has ended says so and ends the process
    files.check()            FileChangedError where one has become shorter; cheap enough to be called all the time

A program that reads a mapped file beyond its end gets SIGBUS, of which Python would die without a word. To read by
system calls in place of maps costs a quarter of the loader's speed. So the signal is caught by the C library's means,
in the thread that met it: it names the file that is shorter than it was, once for all ranks of a node, and ends the
process with code 1, upon which a launcher ends the other ranks. A SIGBUS of another cause goes the way it would have
gone. In the last page of a file there is no signal but zeros, hence check().

A map needs no open file: that of Python keeps one, and a store of 15,600 shards would have as many.
"""

import ctypes
import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from data_prep.calls import call
from data_prep.cli import say_once

CHECK_EVERY_SECONDS = 1.0  # the sizes of the files
CHECKED_AT_ONCE = 256  # files, the next ones the next time: of 15,600 all would take a twentieth of the time
_MAP_FAILED = ctypes.c_void_p(-1).value
_all: "WeakSet[Files]" = WeakSet()
_keep: list[object] = []  # the handler that was installed, which must stay


class FileChangedError(OSError):
    """A file of ours is no longer, or never was, what it should be; found by whichever rank reads it."""


class _Map:
    """Memory in which a file lies, for as long as an array refers to it."""

    def __init__(self, descriptor: int, size: int):
        self._library = _library()
        address = self._library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _MAP_FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._place = (address, size)
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (address, True)}

    def __del__(self) -> None:
        if hasattr(self, "_place"):
            self._library.munmap(*self._place)


def map_file(path: Path) -> np.ndarray:
    """Return the bytes [N] uint8 of a file, which is read where they are used; no open file is kept.

    Raises
    ------
    OSError: it cannot be read.
    ValueError: it is empty.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            raise ValueError("it is empty")
        return np.asarray(_Map(descriptor, size))
    finally:
        os.close(descriptor)


def advise_random(array: np.ndarray) -> None:
    """Tell the kernel that a mapped array is read here and there: it reads ahead no more."""
    # Whole pages: of bytes 5000 to 13000 the pages from 4096 on.
    begin = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    _library().madvise(begin, array.ctypes.data + array.nbytes - begin, mmap.MADV_RANDOM)


def _library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    size, address, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    library.mmap.argtypes, library.mmap.restype = (address, size, number, number, number, ctypes.c_long), address
    library.munmap.argtypes = (address, size)
    library.madvise.argtypes = (address, size, number)
    return library


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

    def __init__(self) -> None:
        self._were: list[tuple[Path, os.stat_result]] = []
        self._next = 0  # file to look at
        self._looked = 0.0  # when, as time.monotonic() counts
        _all.add(self)
        if not _keep:
            _install()

    def watch(self, path: Path) -> os.stat_result:
        """Look after a file from now on; returns how it is."""
        status = path.stat()
        self._were.append((path.absolute(), status))
        return status

    def check(self) -> None:
        """Look at the sizes of the next files, at most once in CHECK_EVERY_SECONDS.

        Raises
        ------
        FileChangedError: naming the file that is shorter.
        """
        now = time.monotonic()
        if now - self._looked < CHECK_EVERY_SECONDS:
            return
        self._looked = now
        stop = self._next + CHECKED_AT_ONCE
        if (path := self.cut(slice(self._next, stop))) is not None:
            raise FileChangedError(_message(path))
        self._next = stop if stop < len(self._were) else 0

    def cut(self, chosen: slice = slice(None)) -> Path | None:
        """Return the first file that is shorter than it was. One that was removed or replaced stays as it is mapped."""
        for path, was in self._were[chosen]:
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
