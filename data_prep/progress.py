"""Long work shows itself: a bar on a terminal; elsewhere, as in a log, a line now and then.

    for batch in Progress(batches, "evaluation", "batch"): ...
    with Progress(total=n, what="building the index", unit="part") as progress: ... progress.update()
    with still("joining pieces") as begin: ...  nobody knows how far it is: how long it has taken

Work that takes less than a moment says nothing.
"""

import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from data_prep.cli import say

MOMENT = 1.0  # seconds before a bar appears on a terminal
EVERY = 30.0  # seconds between lines where there is no terminal


class Progress(tqdm):  # type: ignore[type-arg]
    """tqdm with lines in place of a bar where nobody could see one move."""

    def __init__(
        self, work: Iterable[Any] | None = None, what: str = "", unit: str = "it", quiet: bool = False, **more: Any
    ):
        """`quiet`: another rank speaks."""
        tqdm.monitor_interval = 0  # no thread of its own
        self._in_lines = not sys.stderr.isatty()
        often = EVERY if self._in_lines else 0.1
        delay = EVERY if self._in_lines else MOMENT
        file = io.StringIO() if self._in_lines else sys.stderr  # say() writes lines
        super().__init__(
            work, desc=what, unit=unit, disable=quiet, leave=False, file=file, dynamic_ncols=True,
            mininterval=often, maxinterval=often, miniters=1, delay=delay, **more,
        )  # fmt: skip

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]
        """Show how far it is."""
        if not self._in_lines:
            return bool(super().display(msg, pos))
        if msg is None and self.n:  # not the empty one that clears a bar
            figures = self.format_dict
            rate = figures["rate"] or self.n / max(figures["elapsed"], 1e-9)
            left = f", {tqdm.format_interval((self.total - self.n) / rate)} left" if self.total else ""
            share = f"{self.n / self.total:.0%}" if self.total else f"{self.n:,} {self.unit}"
            say(f"{self.desc.rstrip(': ')}: {share} in {tqdm.format_interval(figures['elapsed'])}{left}")
        return True


@contextmanager
def still(what: str) -> Iterator[Callable[[], None]]:
    """A call of a library that cannot say how far it is: how long it has taken, every now and then, from when the
    function that this yields is called. Ctrl-C ends the program at once: the library would not hear of it.
    """
    begun, done = threading.Event(), threading.Event()

    def tell() -> None:
        begun.wait()
        began = time.monotonic()
        with tqdm(desc=what, bar_format="{desc}: {elapsed} so far", disable=None, leave=False, file=sys.stderr) as bar:
            while not done.wait(EVERY if bar.disable else MOMENT):
                if bar.disable:
                    say(f"{what}: {tqdm.format_interval(time.monotonic() - began)} so far")
                bar.refresh()

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
