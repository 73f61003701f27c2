"""How long this process has waited for a core: where others take the cores, no figure of speed is its own."""

from pathlib import Path

BUSY = 0.1  # share of waiting above which a machine is busy; alone, a run of as many threads as cores waits 0.02


class CoreWait:
    """Waiting since the last look, as the kernel counts it (/proc/PID/task/TID/schedstat)."""

    def __init__(self) -> None:
        self._before = _by_thread()

    def share(self) -> float:
        """Return the share of the time since the last call in which threads that could have run had no core."""
        now = _by_thread()
        ran = waited = 0
        for thread, (running, waiting) in now.items():
            had_run, had_waited = self._before.get(thread, (0, 0))
            ran, waited = ran + running - had_run, waited + waiting - had_waited
        self._before = now
        return waited / max(ran + waited, 1)


def _by_thread() -> dict[str, tuple[int, int]]:
    """Return the nanoseconds that each thread has run, and has waited; nothing where the kernel does not tell."""
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            running, waiting, *_ = map(int, path.read_text().split())
        except (OSError, ValueError):  # it has just ended
            continue
        found[path.parent.name] = running, waiting
    return found
