"""An array that takes a while to make, made once a node and memory-mapped by every process there.

    samples = cached((store identity, settings...), pass_number, make)

    $ZEROBERT_CACHE, or zerobert-UID in the folder for temporary files
      index-KEY-000003.npy         pass 3 of what KEY, a hash of the settings, stands for; written whole
      index-KEY-000003.npy.lock    held by the process that makes it, while the others wait

The folder is the node's own: a file that another machine removes would take the map away under a run. Small arrays are
not worth a file and are returned as they are; so are all where there is no folder to write to. Two passes before the
newest one are kept for whoever lags behind.
"""

import fcntl
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cli import say
from data_prep.files import cache_folder, write_whole

MIN_CACHED_BYTES = 4 << 20  # a smaller array is made in a few milliseconds
KEPT_PASSES = 2  # before the newest one
WAITING = np.zeros(0)  # in place of an array that another process makes
POLL_SECONDS = 0.05  # between two looks at a lock that another process holds


def cached(
    settings: tuple[Any, ...],
    pass_number: int,
    make: Callable[[], np.ndarray],
    check_wanted: Callable[[], None] = lambda: None,
    *,
    kept: int = KEPT_PASSES,
    waits: bool = True,
) -> np.ndarray:
    """Return what `make` returns, from the cache where it is there; it depends on `settings` and `pass_number` alone.

    `check_wanted` is called while another process makes it, and gives up by raising. Unless this `waits`, WAITING is
    returned then. `kept` passes before the newest one stay.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:20]
    path = folder / f"index-{key}-{pass_number:06d}.npy"
    try:
        if (found := _load(path)) is not None:
            return found
        with _locked(path, check_wanted, waits) as is_mine:
            if not is_mine:
                return WAITING
            if (found := _load(path)) is not None:  # made while we waited
                return found
            made = make()
            if made.nbytes < MIN_CACHED_BYTES:
                return made
            _save(path, made)
            _forget(folder, key, pass_number - kept)
            return made if (found := _load(path)) is None else found
    except OSError as error:  # a full disk must not stop a run that can do without
        say(f"warning: the index is not kept in {folder} ({error})")
        return make()


def _load(path: Path) -> np.ndarray | None:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (FileNotFoundError, ValueError, EOFError):  # not there, or torn by a power cut: it is made again
        return None


def _save(path: Path, array: np.ndarray) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    write_whole(path, [header.getvalue(), np.ascontiguousarray(array).view(np.uint8).data])


@contextmanager
def _locked(path: Path, check_wanted: Callable[[], None], waits: bool) -> Iterator[bool]:
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not (is_mine := _is_mine(descriptor)) and waits:
            check_wanted()
            time.sleep(POLL_SECONDS)
        yield is_mine
    finally:
        os.close(descriptor)


def _is_mine(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _forget(folder: Path, key: str, oldest: int) -> None:
    for path in folder.glob(f"index-{key}-*.npy*"):
        with suppress(ValueError, FileNotFoundError):
            if int(path.name.split("-")[2][:6]) < oldest:
                path.unlink()
