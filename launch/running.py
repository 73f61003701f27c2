"""Stages that run one after another: each a command of the project, shown before it runs, under one bar over all.

    with Screen(stages, log_folder) as screen:
        code = screen.run(stage)               what the command prints passes through, and stands in a log beside

On a terminal the bar stays below what passes; elsewhere each stage begins with a line that says the same. Ctrl-C,
SIGTERM and a closed terminal go to the stage, which keeps what it has; where this process is killed, the kernel ends
the stage. What an earlier stage has said word for word (which files are left out, say) is not said again; the log of
each stage has all of it.
"""

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from data_prep.cli import printable, say
from data_prep.safe_output import Journal, can_redraw

STOPPED = 75  # as launch/supervise.py has it: stopped as asked, the same command continues
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
BEAT = 15.0  # seconds between two notes of how long a stage has taken: a kill -9 leaves no time for one
DRAIN = 5.0  # seconds that the last words of a stage may take after its end
REPEATED_CHARS = 60  # a line of so many is worth not being said twice
NEARLY = 0.98  # of a stage's share of the bar: what takes longer than planned is not done


class Stage(NamedTuple):
    """One command, and what is known of it beforehand."""

    name: str  # of its log and its record
    title: str  # for people
    command: str  # as it is shown and as it runs: words for a shell
    seconds: float  # that it should take
    share: Callable[[], float | None] = lambda: None  # of its work that is done, where it says so itself
    result: Path | None = None  # gets what it prints on stdout, which else passes through


class StageTimes:
    """What all stages should take, by what each has taken or is planned to take."""

    def __init__(self, stages: Sequence[Stage], done: dict[str, float]):
        self.stages = list(stages)
        self.done = dict(done)  # seconds by name

    def place_of(self, stage: Stage) -> int:
        """Return the number of a stage, from 1."""
        return [each.name for each in self.stages].index(stage.name) + 1

    @property
    def total(self) -> float:
        """Return the seconds of all stages."""
        return sum(self.done.get(stage.name, stage.seconds) for stage in self.stages) or 1.0

    def spent(self, now: Stage | None, share: float) -> float:
        """Return the seconds of `total` that are done, with so much of the stage under way."""
        return sum(
            self.done.get(stage.name, stage.seconds * share if now and stage.name == now.name else 0.0)
            for stage in self.stages
        )

    def left(self, now: Stage | None, share: float) -> float:
        """Return the seconds that are left."""
        return self.total - self.spent(now, share)


class Screen:
    """Runs stages and shows where the whole stands."""

    def __init__(
        self, times: StageTimes, logs: Path, inherited: Sequence[int] = (), at_stop: Callable[[], None] = lambda: None
    ):
        """`inherited`: descriptors that every stage keeps open, the lock of the folder say. `at_stop` is called once,
        when the first signal comes."""
        self.times, self.logs, self.inherited, self.at_stop = times, logs, inherited, at_stop
        self.stopped_by = ""  # the name of the first signal
        self._said: set[str] = set()  # by earlier stages
        self._now: Stage | None = None
        self._began = 0.0
        self._first_share = 0.0
        self._child: subprocess.Popen[str] | None = None
        self._live: Live | None = None

    def __enter__(self) -> "Screen":
        self._before = {number: signal.signal(number, self._stop) for number in SIGNALS if _is_heard(number)}
        if can_redraw(sys.stderr):
            console = Console(stderr=True, highlight=False, markup=False, emoji=False)
            self._live = Live(
                get_renderable=self._bar, console=console, refresh_per_second=2, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, stage: Stage, at_beat: Callable[[float], None] = lambda seconds: None) -> int:
        """Run a stage to its end. Return its exit code as shells have it; STOPPED where it was told to stop.

        `at_beat` is called every now and then, and at the end, with the seconds that the stage has taken.
        """
        self._now, self._began = stage, time.monotonic()
        self._first_share = stage.share() or 0.0
        place = self.times.place_of(stage)
        left = rounded(self.times.left(stage, 0.0))
        self.say(f"\n== {place}/{len(self.times.stages)} {stage.title} ({left} left in all)\n   $ {stage.command}")
        if self.stopped_by:
            return STOPPED
        journal = Journal(self.logs / f"{stage.name}.log")
        journal.write(f"$ {stage.command}")
        out = open(_aside(stage.result), "w", encoding="utf-8") if stage.result else None  # noqa: SIM115
        try:
            code = self._run(stage, journal, out.fileno() if out else None, at_beat)
        finally:
            at_beat(time.monotonic() - self._began)
            if out:
                out.close()
        if code == 0 and stage.result:
            os.replace(_aside(stage.result), stage.result)
        if code == 0:
            self.times.done[stage.name] = time.monotonic() - self._began
        self._now = None
        if code and self.stopped_by:
            journal.write(f"{self.stopped_by}: stopped")
            return STOPPED
        return code

    def _run(self, stage: Stage, journal: Journal, out: int | None, at_beat: Callable[[float], None]) -> int:
        self._child = subprocess.Popen(
            shlex.split(stage.command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if out is None else out,
            stderr=subprocess.STDOUT if out is None else subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches it through us only, once
            preexec_fn=_end_with_parent,
            pass_fds=self.inherited,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        spoken = self._child.stdout if out is None else self._child.stderr
        assert spoken is not None

        lines: set[str] = set()

        def pass_on() -> None:
            for line in spoken:
                text = printable(line.rstrip("\n").expandtabs())
                if text not in self._said:
                    self.say(text)
                journal.write(text)
                if len(text) >= REPEATED_CHARS:
                    lines.add(text)

        reader = threading.Thread(target=pass_on, daemon=True)
        reader.start()
        if self.stopped_by:  # the signal came before there was a child to tell
            self._tell(signal.Signals[self.stopped_by])
        while (code := _ended(self._child, BEAT)) is None:
            at_beat(time.monotonic() - self._began)
        reader.join(DRAIN)  # not for ever: what the stage has left running may hold its end of the pipe
        self._child = None
        self._said.update(list(lines))
        return 128 - code if code < 0 else code

    def say(self, message: str) -> None:
        """Lines above the bar."""
        if self._live is None:
            say(message)
        else:
            self._live.console.print(Text(message), soft_wrap=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self.stopped_by:
            self.stopped_by = signal.Signals(number).name
            os.write(2, f"\n{self.stopped_by}: stopping; what is done is kept\n".encode())
            self.at_stop()
        self._tell(number)

    def _tell(self, number: int) -> None:
        """Pass a signal on: the same where the stage has a handler for it, and can say by what it was stopped. Any
        other gets SIGTERM: a Python that is still importing answers SIGINT with a traceback."""
        if self._child is None or self._child.poll() is not None:
            return
        if _catches(self._child.pid, signal.SIGTERM) and _catches(self._child.pid, number):
            os.kill(self._child.pid, number)
        else:
            os.killpg(self._child.pid, signal.SIGTERM)

    def _share(self) -> tuple[float, float]:
        """Return (share of the stage under way that is done, seconds it still takes)"""
        stage = self._now
        if stage is None:
            return 0.0, 0.0
        elapsed = time.monotonic() - self._began
        told = stage.share()
        if told is not None and told > self._first_share:
            return told, elapsed * (1 - told) / (told - self._first_share)
        if told is not None:
            return told, max(stage.seconds * (1 - told) - elapsed, 0.0)
        return min(elapsed / max(stage.seconds, 1e-9), NEARLY), max(stage.seconds - elapsed, 0.0)

    def _bar(self) -> Table:
        share, seconds = self._share()
        after = self.times.left(self._now, 1.0) if self._now else self.times.left(None, 0.0)
        spent = self.times.spent(self._now, share)
        place = self.times.place_of(self._now) if self._now else len(self.times.done)
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(justify="right", no_wrap=True)
        title = self._now.title if self._now else ""
        line.add_row(
            Text(f"{place}/{len(self.times.stages)} {title}", "bold"),
            ProgressBar(self.times.total, spent),
            Text(f"{100 * spent / self.times.total:.0f}%, about {rounded(seconds + after)} left"),
        )
        return line


def _is_heard(number: int) -> bool:
    """Return whether a signal is heard: what a shell that started us has switched off (nohup: SIGHUP) stays so."""
    return signal.getsignal(number) != signal.SIG_IGN


def _catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal. Python has one for SIGINT from its start, for others
    never."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return False
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def _ended(child: subprocess.Popen[str], seconds: float) -> int | None:
    """Return the code of a process that ends within so many seconds."""
    with suppress(subprocess.TimeoutExpired):
        return child.wait(seconds)
    return None


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def rounded(seconds: float) -> str:
    """Return a time to come, as exactly as it is known."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _end_with_parent() -> None:
    """In the child: if we are killed, the kernel ends it."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
