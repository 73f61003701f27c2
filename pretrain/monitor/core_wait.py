"""How long this process has waited for a core that others had: then no figure of speed is the program's own.

    wait = CoreWait()
    wait.share()      of the time since the last call: 0.3 where threads that could run had no core for 30 % of it

Waiting is what the kernel counts for each thread (/proc/PID/task/TID/schedstat). Ranks and their loaders wait for each
other, too: waiting counts only where others, who are not ranks of this host, have used the cores (/proc/stat).
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

from pretrain.advice.machine import usable_cores

BUSY = 0.1  # share of waiting above which a machine is busy
OTHERS = 0.1  # share of the cores that others use at least, where there are others


class _Use(NamedTuple):
    """The cores until now."""

    when: float
    by_all: float  # seconds of cores that anything on this host has used
    by_this: float  # and this process
    by_thread: dict[str, tuple[int, int]]  # of this process: nanoseconds that each has run, and has waited

    @classmethod
    def now(cls) -> "_Use":
        return cls(time.monotonic(), _used_by_all(), time.process_time(), _by_thread())


class CoreWait:
    """Waiting since the last look."""

    def __init__(self) -> None:
        self._local_ranks = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or "1")
        self._before = _Use.now()

    def share(self) -> float:
        """Return the share of the time since the last call in which threads that could have run had no core, since
        others had it; 0 where the kernel does not tell."""
        before, now = self._before, _Use.now()
        self._before = now
        by_ranks = self._local_ranks * (now.by_this - before.by_this)
        cores = usable_cores() * max(now.when - before.when, 1e-9)
        if (now.by_all - before.by_all - by_ranks) / cores <= OTHERS:
            return 0.0
        ran = waited = 0
        for thread, (running, waiting) in now.by_thread.items():
            had_run, had_waited = before.by_thread.get(thread, (0, 0))
            ran, waited = ran + running - had_run, waited + waiting - had_waited
        return waited / max(ran + waited, 1)


def _used_by_all() -> float:
    """Return the seconds of cores that were used since the host began; 0 where nothing tells."""
    try:
        user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
            int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        )
    except (OSError, ValueError, IndexError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _by_thread() -> dict[str, tuple[int, int]]:
    """Return what each thread has run and waited; nothing where the kernel does not tell."""
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            running, waiting, *_ = map(int, path.read_text().split())
        except (OSError, ValueError):  # it has just ended
            continue
        found[path.parent.name] = running, waiting
    return found
