"""Long work shows itself on stderr: a bar on a terminal; elsewhere, as in a log, a line now and then.

    for batch in Progress(batches, "evaluation", "batch"): ...
    with Progress(what="building the index", unit="part", total=n) as progress: ... progress.update()
    with TextProgress(total_bytes) as progress: ... progress.add(text_bytes, tokens)
    with still("joining pieces") as begin: ...  nobody knows how far it is: how long it has taken

Work that takes less than a moment says nothing. Only a terminal needs tqdm, which takes 30 ms to import.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from data_prep.cli import say
from data_prep.safe_output import can_redraw

MOMENT = 1.0  # seconds before a bar appears on a terminal
EVERY = 15.0  # seconds between lines where there is no terminal


class Progress:
    """Counts what is done, of a total that may be unknown, or become better known on the way."""

    def __init__(
        self,
        work: Iterable[Any] = (),
        what: str = "",
        unit: str = "it",
        *,
        total: int | None = None,
        quiet: bool = False,
    ):
        """`unit` "B" counts bytes, and says them in MB. `quiet`: another rank speaks."""
        self.what, self.unit = what, unit
        self.total = len(work) or None if total is None and isinstance(work, Sized) else total
        self.done, self.note = 0, ""  # the note stands behind the figures
        self._work = work
        self._speaks = not quiet
        self._bar = _bar(what, unit, self.total) if self._speaks and can_redraw(sys.stderr) else None
        self._began = self._said = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._work:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_drawn(self) -> bool:
        """Whether it is a bar."""
        return self._bar is not None

    @property
    def seconds(self) -> float:
        """Return the seconds since the beginning, more than none."""
        return max(time.monotonic() - self._began, 1e-9)

    def update(self, count: int = 1) -> None:
        """Note work done, and show it where it is time to."""
        self.done += count
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(count)
        elif self._speaks and (now := time.monotonic()) - self._said >= EVERY:
            self._said = now
            say(self.line())

    def line(self) -> str:
        """Return how far it is: "index: 40% in 00:20, 00:30 left", "text: 12 of about 24 MB, 1.2 MB/s, 00:10 left"."""
        rate, left = self.done / self.seconds, ""
        if self.total:
            left = f", {clock_time(max(0, self.total - self.done) / max(rate, 1e-9))} left"
        note = f", {self.note}" if self.note else ""
        if self.unit == "B":
            of_total = f" of about {self.total / 1e6:,.0f}" if self.total else ""
            return f"{self.what}: {self.done / 1e6:,.0f}{of_total} MB, {rate / 1e6:.1f} MB/s{note}{left}"
        share = f"{self.done / self.total:.0%}" if self.total else f"{self.done:,} {self.unit}"
        return f"{self.what}: {share} in {clock_time(self.seconds)}{note}{left}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


class TextProgress(Progress):
    """Bytes of text and tokens against an estimate, with a line at the end that says how fast it was."""

    def __init__(self, total_bytes: int):
        super().__init__(what="text", unit="B", total=total_bytes)
        self.tokens = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.done and error is None:
            size, rate = self.done / 1e6, self.done / 1e6 / self.seconds
            say(f"{size:,.1f} MB of text, {self.tokens:,} tokens in {self.seconds:.1f} s: {rate:.2f} MB/s")

    def add(self, text_bytes: int, tokens: int) -> None:
        """Note work done."""
        self.tokens += tokens
        self.note = f"{self.tokens / 1e6:,.1f} M tokens"
        self.update(text_bytes)

    def correct(self, estimated: int, true: int) -> None:
        """Replace the estimate of a finished part by its true size."""
        self.total = (self.total or 0) + true - estimated


@contextmanager
def still(what: str) -> Iterator[Callable[[], None]]:
    """A call of a library that cannot say how far it is: how long it has taken, every now and then, from when the
    function that this yields is called. Ctrl-C ends the program at once: the library would not hear of it.
    """
    begun, done = threading.Event(), threading.Event()

    def tell() -> None:
        begun.wait()
        began = time.monotonic()
        bar = _bar(what, "", None, bar_format="{desc}: {elapsed} so far") if can_redraw(sys.stderr) else None
        while not done.wait(MOMENT if bar is not None else EVERY):
            if bar is not None:
                bar.refresh()
            else:
                say(f"{what}: {clock_time(time.monotonic() - began)} so far")
        if bar is not None:
            bar.close()

    def begin() -> None:
        begun.set()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=tell, daemon=True, name="progress")
    thread.start()
    try:
        yield begin
    finally:
        done.set()
        begun.set()
        thread.join()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def clock_time(seconds: float) -> str:
    """Return a time as 02:05, or as 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _bar(what: str, unit: str, total: int | None, **more: Any) -> Any:
    from tqdm import tqdm  # inside: 30 ms that only a terminal needs

    tqdm.monitor_interval = 0  # no thread of its own
    return tqdm(
        desc=what, unit=unit, unit_scale=unit == "B", total=total, leave=False, file=sys.stderr, dynamic_ncols=True,
        mininterval=0.1, maxinterval=0.1, miniters=1, delay=MOMENT, **more,
    )  # fmt: skip
