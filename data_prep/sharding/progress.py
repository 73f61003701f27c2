"""A progress bar on a terminal, a line now and then in a log; both on stderr."""

import sys
import time
from types import TracebackType
from typing import Any

from data_prep.cli import say

EVERY = 10  # seconds between two lines in a log


class Progress:
    """Counts bytes of text and tokens against an estimated total, which may be corrected on the way.

    with Progress(total_bytes) as progress:
        progress.add(text_bytes, tokens)
    """

    def __init__(self, total_bytes: int):
        self.bar = _bar(total_bytes) if sys.stderr.isatty() else None
        self.total, self.done, self.tokens = total_bytes, 0, 0
        self.start = self.said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        seconds = time.monotonic() - self.start
        if self.done and error is None:
            rate = self.done / 1e6 / seconds
            say(f"{self.done / 1e6:,.1f} MB of text, {self.tokens:,} tokens in {seconds:.1f} s: {rate:.2f} MB/s")

    def add(self, text_bytes: int, tokens: int) -> None:
        """Note work done."""
        self.done += text_bytes
        self.tokens += tokens
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(text_bytes)
            self.bar.set_postfix_str(f"{self.tokens / 1e6:.1f} M tokens", refresh=False)
        elif now - self.said >= EVERY:
            self.said = now
            rate = self.done / (now - self.start)
            left = max(0, self.total - self.done) / rate
            say(
                f"{self.done / 1e6:,.0f} of about {self.total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, "
                f"{self.tokens / 1e6:,.1f} M tokens, {left:,.0f} s left"
            )

    def correct(self, estimated: int, true: int) -> None:
        """Replace the estimate of a finished part by its true size."""
        self.total += true - estimated
        if self.bar is not None:
            self.bar.total = self.total


def _bar(total_bytes: int) -> Any:
    from tqdm import tqdm  # inside: 30 ms that only a terminal needs

    return tqdm(total=total_bytes, unit="B", unit_scale=True, file=sys.stderr, desc="text")
