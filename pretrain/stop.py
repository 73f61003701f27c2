"""Requests to stop: signals, a launcher that died, a time limit, a file that launch/supervise.py leaves for ranks on
other hosts.

    stop = StopRequests()             first of all: a signal now ends the rank, there is nothing to save
    stop.hold()                       from here on the run can save: a signal is only noted
    stop.reason(stop_at)              why this rank should stop; empty: it should not
    with stop.answering("..."): ...   what a request is answered with: at once, by the thread, as the main one may be
                                      deep in a library

A signal only sets a flag: a rank that saved inside a handler would wait for ranks that are still computing. What
any rank is asked, all are told within the next step (timetable.py); they save together and end with STOPPED.

Standard library only, so that it stands before the seconds that `import torch` takes.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

STOPPED = 75  # exit code (EX_TEMPFAIL): stopped as asked and saved; the same command continues
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LAUNCHER_GONE, TIME_IS_UP = "the launcher is gone", "time is up"
REASONS = ("", *(number.name for number in SIGNALS), LAUNCHER_GONE, TIME_IS_UP)  # of two ranks the later one counts
GRACE_SECONDS = 5.0  # between a signal before there is anything to save and the end, however deep in a library
AGAIN_SECONDS = 1.0  # between a signal and a second one that means it: a terminal and a parent may both send the first
LOOK_EVERY_SECONDS = 1.0  # whether the launcher is there, as long as nothing can be saved
LOOK_FOR_FILES_SECONDS = 3.0  # in a folder that may be far away, by one rank of each node
_PR_SET_PDEATHSIG = 1


class StopRequests:
    """What asks this rank to stop. One a process, made in its main thread."""

    def __init__(self, *, is_rank: bool = True) -> None:
        """`is_rank`: a launcher has started this process, and ends with it; else it is a command of its own, which
        outlives the shell, and which a second signal ends at once."""
        self.signal = 0  # number of the signal that came first
        self._is_rank, self._came = is_rank, 0.0
        self.launcher = _ancestors()
        self._doing = "this step"
        self._holds = False
        self._ended = threading.Event()
        # What a shell that started us has switched off (nohup: SIGHUP) stays so.
        hushed = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [number for number in SIGNALS if not (hushed and number == signal.SIGHUP)]
        # The interpreter writes the number of every signal into this pipe at once, whatever the main thread does.
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._handlers_before = {number: signal.signal(number, self._on_signal) for number in numbers}
        if "LOCAL_RANK" in os.environ:
            # The kernel tells this rank when the process that started it dies, by whatever means.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        self._thread = threading.Thread(target=self._look, daemon=True, name="stop")
        self._thread.start()

    def hold(self) -> None:
        """Note signals from here on: the run can save."""
        self._holds = True
        if self.signal:  # has been swallowed by a library
            raise SystemExit(STOPPED)

    def reason(self, stop_at: float | None) -> str:
        """Return why this rank should stop, one of REASONS; `stop_at` as time.time() has it, None: no time limit."""
        if self.signal:
            return signal.Signals(self.signal).name
        if self._is_orphan():
            return LAUNCHER_GONE
        return TIME_IS_UP if stop_at is not None and time.time() >= stop_at else ""

    @contextmanager
    def answering(self, doing: str) -> Iterator[None]:
        """Tell whoever asks to stop within the block that it comes to its end first."""
        before, self._doing = self._doing, doing
        try:
            yield
        finally:
            self._doing = before

    def end(self) -> None:
        """Look no more; signals are still noted."""
        self._holds = True
        self._ended.set()
        os.write(self._wake, b"\0")
        self._thread.join()  # a thread that ends with the interpreter may take it down

    def close(self) -> None:
        """Give everything back to a process that lives on."""
        self.end()
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        for descriptor in (self._woken, self._wake):
            os.close(descriptor)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_first, self.signal = not self.signal, self.signal or number
        if is_first:
            self._came = time.monotonic()
        elif self._holds and not self._is_rank and time.monotonic() - self._came > AGAIN_SECONDS:
            os._exit(STOPPED)  # what was saved before this is whole
        if is_first and not self._holds:
            for other in self._handlers_before:
                signal.signal(other, signal.SIG_IGN)  # an interpreter that ends takes handlers away, but not this
            raise SystemExit(STOPPED)  # blocks are left orderly: the lock of the run folder goes

    def _look(self) -> None:
        """In the thread: answer signals; before there is anything to save, end the process in time."""
        leave_at, is_answered, look_at = float("inf"), False, 0.0
        while not self._ended.is_set():
            wait = min(LOOK_EVERY_SECONDS, max(leave_at - time.monotonic(), 0.1))
            if select.select([self._woken], [], [], wait)[0]:
                # The numbers of signals: they come at once, while their handler waits for a library to return.
                arrived = set(os.read(self._woken, 512)) & set(self._handlers_before)
                if arrived:
                    leave_at = min(leave_at, time.monotonic() + GRACE_SECONDS)
                if arrived and not is_answered:
                    is_answered = True
                    self._answer(min(arrived))
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_FOR_FILES_SECONDS
                self._look_for_files()
            if self._holds:
                continue
            if time.monotonic() >= leave_at:
                os._exit(STOPPED)
            if leave_at == float("inf") and self._is_orphan():
                os.kill(os.getpid(), signal.SIGTERM)

    def _look_for_files(self) -> None:
        """Take the file "stop" in the folder of outcomes for a signal; "kill" ends this process."""
        folder = os.environ.get("ZEROBERT_OUTCOME")
        if folder is None or not self._is_rank or os.environ.get("LOCAL_RANK", "0") != "0":
            return
        with suppress(OSError):
            names = os.listdir(folder)  # NFS keeps for long in mind that a file was not there, but reads a folder anew
            if "kill" in names:
                os._exit(128 + signal.SIGKILL)
            if "stop" in names and not self.signal:
                os.kill(os.getpid(), signal.SIGTERM)

    def _is_orphan(self) -> bool:
        return self._is_rank and _ancestors() != self.launcher

    def _answer(self, number: int) -> None:
        """Say at once that a request was heard, and when it is met: rank 0's thread to stderr."""
        if os.environ.get("RANK", "0") != "0":
            return
        what = f"after {self._doing}; once more ends it at once" if self._holds else "there is nothing to save yet"
        start = "\r\x1b[K" if sys.stderr.isatty() else ""  # over a bar, which is drawn again
        with suppress(OSError, ValueError):
            # One write: the launcher's ranks speak at the same time, and a newline of its own would come late.
            sys.stderr.write(f"{start}{signal.Signals(number).name}: stopping, {what}\n")
            sys.stderr.flush()


def _ancestors() -> tuple[int, int]:
    """The process that started this rank, and the one that started it: a launcher killed in between shows here."""
    parent = os.getppid()
    return parent, _parent_of(parent)


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
