"""Who may write into the folder of a store in the making, and who finishes it. Locks are files in STORE/parts.

with writer_lock(folder, rank): ...                 another job, or a second process of this rank, is refused
with finishing_lock(folder) as is_there: ...        one rank at a time; False where the work is finished
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.cli import InputError
from data_prep.sharding.ranks import RankInfo


@contextmanager
def writer_lock(folder: Path, rank: RankInfo) -> Iterator[None]:
    """Hold a folder for the ranks of one job: a process of another job, or a second one of the same rank, is refused.

    A lock is held by a file for each rank, and by the process alone: not by its children, which may outlive it.

    Raises
    ------
    InputError: somebody else is writing there.
    """
    mine = folder / f"writer-{rank.rank}-of-{rank.world_size}"
    descriptor = os.open(mine, os.O_RDWR | os.O_CREAT)
    try:
        others = [path for path in folder.glob("writer-*") if not path.name.endswith(f"-of-{rank.world_size}")]
        if not _lock(descriptor) or any(map(_is_locked, others)):
            raise InputError(f"{folder.parent} is being written by another process; wait for it or give another --out")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def finishing_lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder that goes with the work; False where it is gone already."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield (folder / "plan.json").exists()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: nobody can tell
        return True
    return True


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)
