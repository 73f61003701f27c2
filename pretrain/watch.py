"""What a rank is watched by from its first line to its last: requests to stop, a launcher that died, hangs.

    watch = Watch()                  first of all: a signal now ends the rank, there is nothing to save
    watch.expect(hang_timeout)       from here on there must be progress
    with watch.joining(): ...        the ranks meet; until here all that a rank did was its own
    watch.hold()                     from here on a signal is only noted in watch.requested
    watch.beat()                     progress
    with watch.working(): ...        alone, without waiting for other ranks: the processor time and the disk that this
                                     takes are progress (an index, checksums, a save)
    with watch.naming("..."): ...    what a request to stop is answered with: at once, by the thread, as the main one
                                     may be deep in a library

A hang ends through faulthandler's own timer, which needs no Python to run: it prints the stack of every thread and ends
the process. A thread sets the timer anew while there is progress. Ranks that wait for one that works know of it by a
counter in the store by which they have met, so a long index build of one rank is no hang of the others; a rank that is
stuck, and all that wait for it, end.

Standard library only, so that it stands before the seconds that `import torch` takes.
"""

import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

STOPPED = 75  # exit code (EX_TEMPFAIL): stopped as asked and saved; the same command continues
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
GRACE = 5.0  # seconds between a signal before there is anything to save and the end, however deep in a library
STARTING = 120.0  # seconds that a start may rest in any case: ranks start apart, and libraries load others
_LONGEST = 1e9  # seconds that the timer can count
STEP = "this step"
_BUSY = 0.05  # share of a core that is work and not a library's housekeeping
_MOVED = 1 << 18  # bytes, the same for a disk
_PR_SET_PDEATHSIG = 1
_KEY = "zerobert/progress"


class Watch:
    """One a process, made in its main thread."""

    def __init__(self) -> None:
        self.requested = 0  # number of the signal that asked this rank to stop
        self.launcher = ancestors()
        self.doing = STEP
        self._holds = False
        self._beats, self._working = 0, 1  # alone, until the ranks join
        self._timeout = 0.0
        self._store: Any = None
        self._shared = 0
        self._ended = threading.Event()
        # What a shell that started us has switched off (nohup: SIGHUP) stays so.
        hushed = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [number for number in SIGNALS if not (hushed and number == signal.SIGHUP)]
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        self._pipe = (self._woken, wake)
        self._woke_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._signalled) for number in numbers}
        if "LOCAL_RANK" in os.environ:
            # The kernel tells this rank when the process that started it dies, by whatever means.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        self._thread = threading.Thread(target=self._look, daemon=True, name="watch")
        self._thread.start()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, self.requested or number
        if first and not self._holds:
            for other in self._previous:
                signal.signal(other, signal.SIG_IGN)  # an interpreter that ends takes handlers away, but not this
            raise SystemExit(STOPPED)  # blocks are left orderly: the lock of the run folder goes

    def hold(self) -> None:
        """From here on the run can save: signals are noted."""
        self._holds = True
        self._wind()
        if self.requested:  # has been swallowed by a library
            raise SystemExit(STOPPED)

    def expect(self, timeout: float) -> None:
        """Progress must be made every `timeout` seconds; 0: never."""
        self._timeout = min(timeout, _LONGEST)
        self._wind()

    def beat(self) -> None:
        """This rank has made progress."""
        self._beats += 1

    @contextmanager
    def working(self, doing: str = "") -> Iterator[None]:
        """What this rank does alone, with threads of its own if need be, is progress as long as it keeps them busy."""
        self._beats += 1
        self._working += 1
        try:
            with self.naming(doing or self.doing):
                yield
        finally:
            self._working -= 1
            self._beats += 1

    @contextmanager
    def naming(self, doing: str) -> Iterator[None]:
        """What the block does, for whoever asks to stop in it."""
        before, self.doing = self.doing, doing
        try:
            yield
        finally:
            self.doing = before

    def _answer(self, number: int) -> None:
        """Say at once that a request was heard, and when it is met: the first rank's thread to stderr."""
        if os.environ.get("RANK", "0") != "0":
            return
        what = f"after {self.doing}; once more ends it at once" if self._holds else "there is nothing to save yet"
        start = "\r\x1b[K" if sys.stderr.isatty() else ""  # over a bar, which is drawn again
        with suppress(OSError, ValueError):
            print(f"{start}{signal.Signals(number).name}: stopping, {what}", file=sys.stderr, flush=True)

    @contextmanager
    def joining(self) -> Iterator[None]:
        """The ranks meet. From then on they wait for each other, and the progress of any is progress."""
        self._working -= 1
        yield
        if self._timeout and int(os.environ["WORLD_SIZE"]) > 1:
            with suppress(RuntimeError):  # met by other means: then the progress of each counts for itself
                self._store = _store()

    def end(self) -> None:
        """No more watching; signals are still noted."""
        self._holds = True
        self._ended.set()
        os.write(self._pipe[1], b"\0")
        self._thread.join()  # first: a thread that ends with the interpreter may take it down
        faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Give everything back to a process that lives on."""
        self.end()
        signal.set_wakeup_fd(self._woke_before)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        for descriptor in self._pipe:
            os.close(descriptor)

    def _wind(self) -> None:
        if self._timeout:
            timeout = self._timeout if self._holds else max(self._timeout, STARTING)
            faulthandler.dump_traceback_later(timeout, exit=True, file=sys.__stderr__ or 2)

    def _look(self) -> None:
        """In the thread: several looks in the span of a hang."""
        leave_at, seen, used, answered = float("inf"), (0, 0), _Use.now(), False
        while not self._ended.is_set():
            every = min(max(self._timeout / 10, 0.05), 5.0) if self._timeout else 1.0
            if select.select([self._woken], [], [], min(every, max(leave_at - time.monotonic(), 0.1)))[0]:
                # The numbers of signals: they come at once, while their handler waits for a library to return.
                arrived = set(os.read(self._woken, 512)) & set(self._previous)
                leave_at = min(leave_at, time.monotonic() + GRACE) if arrived else leave_at
                if arrived and not answered:
                    answered = True
                    self._answer(min(arrived))
            if not self._holds:
                if time.monotonic() >= leave_at:
                    os._exit(STOPPED)
                if leave_at == float("inf") and ancestors() != self.launcher:
                    os.kill(os.getpid(), signal.SIGTERM)
            now = _Use.now()
            if self._working and now.is_work_since(used):
                self._beats += 1
            used = now
            if (now_seen := (self._beats, self._progress_of_all(self._beats != seen[0]))) != seen:
                seen = now_seen
                self._wind()

    def _progress_of_all(self, progressed: bool) -> int:
        """A number that grows with the progress of any rank."""
        if self._store is not None:
            try:
                self._shared = self._store.add(_KEY, int(progressed))
            except RuntimeError:  # the rank that keeps it has gone
                self._store = None
        return self._shared


def _store() -> Any:
    """A connection of our own to the store by which the ranks have met: on theirs, calls wait for each other."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=STARTING))


class _Use(NamedTuple):
    """What this process has used until now, but for the thread that asks."""

    when: float
    processor: float  # seconds
    moved: int  # bytes, to and from files

    @classmethod
    def now(cls) -> "_Use":
        try:
            moved = sum(int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines())
        except OSError:
            moved = 0
        return cls(time.monotonic(), time.process_time() - time.thread_time(), moved)

    def is_work_since(self, before: "_Use") -> bool:
        """Whether more was used than libraries use that wait."""
        share = (self.processor - before.processor) / max(self.when - before.when, 1e-9)
        return share >= _BUSY or self.moved - before.moved >= _MOVED


def ancestors() -> tuple[int, int]:
    """The process that started this rank, and the one that started it: a launcher killed in between shows here."""
    parent = os.getppid()
    return parent, _parent_of(parent)


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
