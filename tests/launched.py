"""Processes that a test starts, and all that those start in turn: none is left, whatever happens to the test.

    pytestmark = pytest.mark.usefixtures("no_process_left")      of conftest.py
    process = start("bash", "launch/pretrain.sh", ...)
    wait_for(lambda: path.exists())

Deadlines are long, since machines are busy; what is waited for is a condition.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from data_prep.cli import ROOT

PATIENCE = 900.0  # seconds, of a machine that does eight other things
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)


def start(*command: object, **settings: Any) -> subprocess.Popen:
    """Start a command in a session of its own; it gets SIGTERM when the tests themselves are killed."""
    settings["env"] = os.environ | settings.get("env", {})
    words = [str(word) for word in command]
    return subprocess.Popen(words, cwd=ROOT, start_new_session=True, preexec_fn=_end_with_parent, **settings)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in (signal.SIGHUP, signal.SIGINT):  # whoever started the tests may have switched them off
        signal.signal(number, signal.SIG_DFL)


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `condition` gives, as soon as that is something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError("what the test waits for has not happened")


@contextmanager
def none_left() -> Iterator[None]:
    """At the end kill, by number, every process that was started within, orphans too: they come to this process."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    finally:
        while left := set(psutil.Process().children(recursive=True)) - before:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
