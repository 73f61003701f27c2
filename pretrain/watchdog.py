"""A hang is the absence of any progress, on any rank; the watchdog ends it.

    watchdog = Watchdog(timeout)                there must be progress every `timeout` seconds
    with watchdog.joining(): init_distributed() the ranks meet; until here all that a rank did was its own
    watchdog.dump_into(run)                     before a hang ends this process, it leaves stacks there (hang_dump.py)
    watchdog.tighten()                          the first step begins: no more allowance for a start
    watchdog.heartbeat()                        progress
    with watchdog.working(): ...                alone, without waiting for other ranks: the processor time and the disk
                                                that this takes are progress (an index, checksums, a save)
    for item in watchdog.working_on(items):     the same, for the making of each item

A hang ends through faulthandler's own timer, which needs no Python to run: it prints the stack of every thread and ends
the process. A thread sets the timer anew while there is progress. Ranks that wait for one that works know of it by a
counter in the store by which they have met, so a long index build of one rank is no hang of the others; a rank that is
stuck, and all that wait for it, end. The thread writes into the run folder before, if the interpreter lets it.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pretrain.hang_dump import write_dump

Item = TypeVar("Item")
STARTING_SECONDS = 120.0  # that a start may rest in any case: ranks start apart, and libraries load others
_LONGEST_SECONDS = 1e9  # that the timer can count
_BUSY_SHARE = 0.05  # of a core, that is work and not a library's housekeeping
_BUSY_BYTES = 1 << 18  # the same for a disk, between two looks
_KEY = "zerobert/progress"
_DUMP_SHARE, _DUMP_SECONDS = 0.2, 15.0  # of the timeout, and at most, that are left for a dump


class Watchdog:
    """Ends this process after `timeout` seconds without progress; 0: never. One a process."""

    def __init__(self, timeout: float) -> None:
        self._timeout = min(timeout, _LONGEST_SECONDS)
        self._is_starting = True
        self._heartbeats, self._workers = 0, 1  # alone, until the ranks join
        self._store: Any = None  # of torch.distributed, with the counter of all ranks
        self._shared_count = 0
        self._run: Path | None = None  # that a dump goes to
        self._dumped: list[Path] | None = None
        self._wound_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="watchdog")
        self._wind()
        if self._timeout:
            self._thread.start()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._timeout:
            self._thread.join()  # first: a thread that ends with the interpreter may take it down
            faulthandler.cancel_dump_traceback_later()

    def dump_into(self, run: Path) -> None:
        """From here on leave stacks and collectives in RUN/hang, shortly before a hang ends this process."""
        self._run = run

    def tighten(self) -> None:
        """Demand progress every `timeout` seconds, also where that is less than a start may rest."""
        self._is_starting = False
        self._wind()

    def heartbeat(self) -> None:
        """Note that this rank has made progress."""
        self._heartbeats += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count what this rank does alone, with threads of its own if need be, as progress while it keeps them busy."""
        self._heartbeats += 1
        self._workers += 1
        try:
            yield
        finally:
            self._workers -= 1
            self._heartbeats += 1

    def working_on(self, items: Iterator[Item]) -> Iterator[Item]:
        """Return the same items; the making of each is work of this rank alone."""
        while True:
            try:
                with self.working():
                    item = next(items)
            except StopIteration:
                return
            yield item

    @contextmanager
    def joining(self) -> Iterator[None]:
        """The ranks meet. From then on they wait for each other, and the progress of any is progress."""
        self._workers -= 1
        yield
        if self._timeout and int(os.environ["WORLD_SIZE"]) > 1:
            with suppress(RuntimeError):  # met by other means: then the progress of each counts for itself
                self._store = _connect_to_store()

    def _wind(self) -> None:
        """Set the timer anew."""
        if self._timeout:
            faulthandler.dump_traceback_later(self._patience, exit=True, file=sys.__stderr__ or 2)
            self._wound_at = time.monotonic()

    @property
    def _patience(self) -> float:
        return max(self._timeout, STARTING_SECONDS) if self._is_starting else self._timeout

    def _look(self) -> None:
        """In the thread: several looks in the span of a hang."""
        seen, usage = (0, 0), _Usage.now()
        while not self._ended.wait(min(max(self._timeout / 10, 0.05), 5.0)):
            before, usage = usage, _Usage.now()
            if self._workers and usage.is_work_since(before):
                self._heartbeats += 1
            heartbeats = self._heartbeats
            found = (heartbeats, self._count_of_all_ranks(heartbeats != seen[0]))
            if found != seen:
                seen = found
                self._wind()
                self._take_back()
            else:
                self._dump_if_late()

    def _dump_if_late(self) -> None:
        """Leave what there is to see, once, when little of the timeout is left."""
        rested, patience = time.monotonic() - self._wound_at, self._patience
        if (
            self._run is None
            or self._dumped is not None
            or rested < patience - min(_DUMP_SHARE * patience, _DUMP_SECONDS)
        ):
            return
        self._dumped = []
        with suppress(OSError):  # the disk may be what hangs
            rank = int(os.environ.get("RANK", "0"))
            self._dumped = write_dump(self._run, rank, rested)
            print(
                f"rank {rank}: no progress; its stacks and collectives: {self._dumped[0]}", file=sys.stderr, flush=True
            )

    def _take_back(self) -> None:
        """Remove a dump of what was no hang after all."""
        dumped, self._dumped = self._dumped, None
        for path in dumped or []:
            path.unlink(missing_ok=True)

    def _count_of_all_ranks(self, has_progressed: bool) -> int:
        """A number that grows with the progress of any rank."""
        if self._store is not None:
            try:
                self._shared_count = self._store.add(_KEY, int(has_progressed))
            except RuntimeError:  # the rank that keeps it has gone
                self._store = None
        return self._shared_count


def _connect_to_store() -> Any:
    """A connection of our own to the store by which the ranks have met: on theirs, calls wait for each other."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=STARTING_SECONDS))


class _Usage(NamedTuple):
    """What this process has used until now, but for the thread that asks."""

    when: float
    processor_seconds: float
    moved_bytes: int  # to and from files

    @classmethod
    def now(cls) -> "_Usage":
        try:
            moved = sum(int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines())
        except OSError:
            moved = 0
        return cls(time.monotonic(), time.process_time() - time.thread_time(), moved)

    def is_work_since(self, before: "_Usage") -> bool:
        """Whether more was used than libraries use that wait."""
        share = (self.processor_seconds - before.processor_seconds) / max(self.when - before.when, 1e-9)
        return share >= _BUSY_SHARE or self.moved_bytes - before.moved_bytes >= _BUSY_BYTES
