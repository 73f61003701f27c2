"""One writer per run folder: a lock with a heartbeat.

    with RunLock(RUN): ...        RUN/lock.json says who writes here now

The holder of the lock rewrites it every HEARTBEAT seconds. A lock is stale, and taken over, when its process is gone
from this host, or, on another host, when its heartbeat is not of the last STALE seconds and, since clocks differ, does
not change while it is watched.
"""

import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from data_prep.cli import InputError, say
from data_prep.fields import read_fields
from data_prep.files import write_json

HEARTBEAT, STALE = 15.0, 120.0  # seconds
WATCHED = 45.0  # seconds for which a heartbeat that may be stale is looked at


class LockHolder(NamedTuple):
    """The process that writes into a run folder."""

    host: str
    pid: int
    process_start: str | None  # by the kernel's clock: process numbers are reused, this tells them apart
    started: str  # for people


class _Lock(NamedTuple):
    """What lock.json says."""

    holder: LockHolder
    heartbeat: float  # seconds since 1970, by the clock of the holder's host

    def write(self, path: Path) -> None:
        write_json(path, self.holder._asdict() | {"heartbeat": self.heartbeat})


class RunLock:
    """Hold a run folder: `with RunLock(run): ...`

    Raises
    ------
    InputError: another process holds it.
    """

    def __init__(self, run: Path):
        self.path = run / "lock.json"
        self.was_stale = False  # whether the last holder was killed: it has left its lock
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="run lock")

    def __enter__(self) -> "RunLock":
        self._made_folder = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                # The file appears with its content: link() fails where the name exists.
                mine = self.path.with_name(f"lock.json.{socket.gethostname()}.{os.getpid()}")
                _Lock(_this_process(), time.time()).write(mine)
                try:
                    os.link(mine, self.path)
                finally:
                    mine.unlink()
                break
            except FileExistsError:
                self._remove_stale()
        self._heart.start()
        return self

    def _remove_stale(self) -> None:
        lock = _read(self.path)
        if lock is not None and _is_alive(self.path, lock):
            holder = lock.holder
            raise InputError(
                f"{self.path.parent} is being written by process {holder.pid} on {holder.host} since "
                f"{holder.started}; wait for it, stop it, or choose another --out"
            )
        if self.path.is_dir() and not self.path.is_symlink():
            raise InputError(f"{self.path} is a folder, and none of ours; move it away")
        # Renamed, then looked at again: between reading and removing, another process may have taken the lock over.
        aside = self.path.with_name(f"lock.json.stale.{socket.gethostname()}.{os.getpid()}")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return
        if _read(aside) != lock:
            os.link(aside, self.path)
        else:
            self.was_stale = True
        aside.unlink()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._heart.join()
        self.path.unlink(missing_ok=True)
        if self._made_folder and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()  # what is refused leaves nothing behind

    def _beat(self) -> None:
        holder = _this_process()
        while not self._done.wait(HEARTBEAT):
            try:
                _Lock(holder, time.time()).write(self.path)
            except OSError:
                continue  # a full disk must not end a run that can still train; the next beat tries again


def lock_holder(run: Path) -> LockHolder | None:
    """Return who holds a run folder, whatever the heartbeat; None where nobody does."""
    lock = _read(run / "lock.json")
    return lock.holder if lock else None


def _this_process() -> LockHolder:
    pid = os.getpid()
    return LockHolder(socket.gethostname(), pid, _process_start(pid), time.strftime("%Y-%m-%d %H:%M:%S"))


def _read(path: Path) -> _Lock | None:
    """Return what a lock says; None where the file does not say it, which is nobody's then."""
    try:
        fields = read_fields(path, "")
        holder = LockHolder(
            host=fields.text("host"),
            pid=fields.whole("pid", least=1),
            process_start=fields.get("process_start"),
            started=fields.text("started"),
        )
        return _Lock(holder, fields.number("heartbeat"))
    except InputError:
        return None


def _is_alive(path: Path, lock: _Lock) -> bool:
    """Return whether the holder of a lock lives: by its process on this host, by its heartbeat on another one."""
    holder = lock.holder
    if holder.host == socket.gethostname():
        return _process_start(holder.pid) == holder.process_start is not None
    if abs(time.time() - lock.heartbeat) < STALE:
        return True
    # Long ago, or in the future: or a clock is wrong. What beats changes.
    say(f"{path} is of {holder.host}, and its time is not ours: waiting {WATCHED:g} s to see whether it still beats")
    until = time.monotonic() + WATCHED
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCHED / 4))
        if _read(path) != lock:
            return True
    return False


def _process_start(pid: int) -> str | None:
    """Return when a process of this host started, in clock ticks; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
