"""What `bash launch/pretrain.sh` starts: the launcher of DeepSpeed, with its loose ends tied.

    RESTARTS=2 python launch/supervise.py deepspeed --num_gpus 2 launch/pretrain.sh ...

DeepSpeed's launcher ends with 0 when it is killed in the middle, leaves ranks behind, and ends ranks one after another
when it gets a signal, so that they cannot save together. Here

1. SIGTERM, SIGINT and SIGUSR1 go to the ranks themselves, which save together at the next step and end; a second one
   kills everything;
2. nothing that was started outlives this process: orphans come to it (it is their subreaper) and are waited for;
3. a run that failed is started again, up to RESTARTS times (default 0); it continues from its newest whole checkpoint.

Ends with 0: the run is finished; 2: wrong input; 75: stopped as asked, and saved; else the code of what failed, 128 +
the number of a signal for what was killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import psutil

FINISHED, WRONG_INPUT, STOPPED = 0, 2, 75
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PR_SET_CHILD_SUBREAPER = 36
PAUSE = 5.0  # seconds before a restart
POLL = 0.2  # seconds


class Supervisor:
    """Runs one command, again if need be."""

    def __init__(self, command: list[str], restarts: int):
        self.command, self.restarts = command, restarts
        self.signals = 0  # forwarded so far
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        for number in FORWARDED:
            signal.signal(number, self._forward)

    def run(self) -> int:
        """The exit code of the last attempt."""
        for attempt in range(self.restarts + 1):
            code = self._attempt()
            if code in (FINISHED, WRONG_INPUT, STOPPED) or self.signals or attempt == self.restarts:
                break
            print(f"the run failed with code {code}; restart {attempt + 1} of {self.restarts}", file=sys.stderr)
            time.sleep(PAUSE)
        return code

    def _attempt(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            outcome = Path(folder) / "outcome"  # written by rank 0 where it ends well, on this host
            # A session of its own: Ctrl-C reaches the ranks through us only, once.
            launcher = subprocess.Popen(
                self.command, start_new_session=True, env={**os.environ, "ZEROBERT_OUTCOME": str(outcome)}
            )
            try:
                codes = [_positive(launcher.wait()), *self._wait_for_orphans()]
            finally:
                for process in _descendants():
                    _send(process, signal.SIGKILL)
            return int(outcome.read_text()) if outcome.exists() else _worst(codes)

    def _wait_for_orphans(self) -> list[int]:
        """Exit codes of what the launcher left behind. Ranks that lose their launcher save and end by themselves."""
        codes: list[int] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return codes
            if pid:
                codes.append(_positive(os.waitstatus_to_exitcode(status)))
            else:
                time.sleep(POLL)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        processes = _descendants()
        ranks = [process for process in processes if _is_rank(process)]
        if self.signals > 1 or not ranks:
            # A second request, or nothing has begun (or runs on other hosts, where the launcher's end is noticed).
            for process in processes:
                _send(process, signal.SIGKILL if self.signals > 1 else signal.SIGTERM)
            return
        for process in ranks:
            _send(process, number)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _is_rank(process: psutil.Process) -> bool:
    try:
        return any(argument.startswith("--local_rank=") for argument in process.cmdline())
    except psutil.Error:
        return False


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _positive(code: int) -> int:
    """Exit codes as a shell has them: 128 + the signal where a process was killed (DeepSpeed makes 256 - it)."""
    killed_by = -code if code < 0 else 256 - code if code > 192 else 0
    return 128 + killed_by if killed_by else code


def _worst(codes: list[int]) -> int:
    """Stopped-and-saved counts more than the launcher's 0, a failure more than either."""
    failures = [code for code in codes if code not in (FINISHED, STOPPED)]
    return failures[0] if failures else max(codes)


if __name__ == "__main__":
    sys.exit(Supervisor(sys.argv[1:], int(os.environ.get("RESTARTS", "0"))).run())
