"""What `bash launch/pretrain.sh` starts: the launcher of DeepSpeed, with its loose ends tied.

    RESTARTS=2 python launch/supervise.py deepspeed --num_gpus 2 launch/pretrain.sh ...

DeepSpeed's launcher ends with 0 when it is killed in the middle, leaves ranks behind, and ends ranks one after another
when it gets a signal, so that they cannot save together. Here

1. SIGTERM, SIGINT, SIGUSR1 and SIGHUP (a terminal that was closed, unless under nohup) go to the ranks themselves,
   which save together at the next step and end; a second one, a second later or more, kills everything;
2. nothing that was started outlives this process: orphans come to it (it is their subreaper) and are waited for; where
   it is itself killed, the kernel ends the launcher, and ranks that lose theirs save and end;
3. a run that failed is started again, up to RESTARTS times (default 0); it continues from its newest whole checkpoint.

With `--cluster` first the ranks are on the hosts of a hostfile (cluster.py): each host is looked at before, a request
to stop is a file in a folder that all see, and in the end it is said which rank on which node has failed.

Ends with 0: the run is finished; 2: wrong input; 75: stopped as asked, and saved; else the code of what failed, 128 +
the number of a signal for what was killed. 0 and 75 are what every rank of this host has written at its end, and are
believed unless one of them then came to another end.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of launch/

from data_prep.errors import InputError
from launch.cluster import Hosts, script_of, shared_folder
from launch.outcomes import outcome_of, places_in, who_failed

FINISHED, WRONG_INPUT, STOPPED = 0, 2, 75
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# A launcher that gets one of these ends by it, or with 1 (DeepSpeed's launch.py): neither says anything about ranks.
OF_A_SIGNAL = {128 + number for number in FORWARDED}
OF_THE_LAUNCHER = {*OF_A_SIGNAL, 128 + signal.SIGKILL, 1}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None)
ONE = 1.0  # seconds within which several signals are one: of a parent that is killed each of its threads gives one
PAUSE = 5.0  # seconds before a restart
POLL = 0.2  # seconds
FAR = 20.0  # seconds in which ranks on other hosts end that are told to end at once
LAST_WORDS = 60.0  # seconds in which ranks end by themselves of which others have failed
LOST_CONNECTION = 255  # of ssh and pdsh: it says nothing of what was run


class Supervisor:
    """Runs one command, again if need be."""

    def __init__(self, command: list[str], restarts: int, hosts: Hosts | None = None):
        self.command, self.restarts, self.hosts = command, restarts, hosts
        self._folder: Path | None = None  # while ranks on other hosts see it
        self.signals = 0  # forwarded so far
        self._heard_at = 0.0  # when the last of these came
        self._stopped_early = False
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
        for number in FORWARDED:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._forward)

    def run(self) -> int:
        """Return the exit code of the last attempt."""
        for attempt in range(self.restarts + 1):
            code = self._attempt()
            if code in (FINISHED, WRONG_INPUT, STOPPED) or self.signals or attempt == self.restarts:
                break
            _say(f"the run failed with code {code}; restart {attempt + 1} of {self.restarts}")
            time.sleep(PAUSE)
            if self.hosts is not None:
                self.hosts.wait(script_of(self.command))
            if self.signals:  # in the pause
                break
        return code

    def _attempt(self) -> int:
        with self._outcomes() as folder:
            variables = {"ZEROBERT_OUTCOME": str(folder)} if self.hosts is None else self.hosts.environment(folder)
            self._folder = folder if self.hosts is not None else None
            # A session of its own: Ctrl-C reaches the ranks through us only, once.
            launcher = subprocess.Popen(
                self.command,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                env=os.environ | variables,
            )
            try:
                code = self._wait(launcher)
                codes = [_positive(code), *self._wait_for_orphans()]
            finally:
                for process in _descendants():
                    _send(process, signal.SIGKILL)
            self._folder = None
            outcome = outcome_of(folder, is_of_all=self.hosts is not None)
            if self.hosts is not None and outcome is None and (words := who_failed(folder)):
                _say(f"error: {words}")
        failures = {code for code in codes if code not in (FINISHED, STOPPED)}
        if outcome is not None and (code <= 192 or code == LOST_CONNECTION) and failures <= OF_THE_LAUNCHER:
            return outcome
        if self._stopped_early and failures <= OF_A_SIGNAL:
            return STOPPED
        return _worst(codes)

    def _wait(self, launcher: subprocess.Popen[bytes]) -> int:
        """Return the launcher's code. On several hosts: when ranks of one have failed, no other can go on or save, and
        those that do not see it themselves in time (stopped, stuck in a driver) are killed."""
        if self.hosts is None or self._folder is None or not self.hosts.are_all_used:
            return launcher.wait()
        seen_at = float("inf")
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return launcher.wait(ONE)
            places = places_in(self._folder)
            lost = self.hosts.lost(_descendants())
            if any(place.has_failed or (place.code is None and place.host in lost) for place in places):
                seen_at = min(seen_at, time.monotonic())
            if time.monotonic() >= seen_at + LAST_WORDS:
                self.hosts.kill(place for place in places if place.code is None and place.host not in lost)
                seen_at = time.monotonic()

    @contextlib.contextmanager
    def _outcomes(self) -> Iterator[Path]:
        """The folder in which ranks say how they ended."""
        if self.hosts is not None:
            with shared_folder(self.command) as folder:
                yield folder
        else:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
                yield Path(name)

    def _wait_for_orphans(self) -> list[int]:
        """Return the exit codes of what the launcher left behind. Ranks that lose their launcher save and end by
        themselves."""
        codes: list[int] = []
        told: set[int] = set()
        while True:
            # But for those that lost it in their first moments.
            for rank in filter(_is_rank, psutil.Process().children()):
                if rank.pid not in told:
                    told.add(rank.pid)
                    _send(rank, signal.SIGTERM)
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return codes
            if pid:
                codes.append(_positive(os.waitstatus_to_exitcode(status)))
            else:
                time.sleep(POLL)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signals and now - self._heard_at < ONE:
            return
        self.signals, self._heard_at = self.signals + 1, now
        if self._folder is not None:
            self._tell_hosts(self._folder)
            return
        processes = _descendants()
        ranks = [process for process in processes if _is_rank(process)]
        # Until ranks stand they end by a signal like any process, and there is nothing to save.
        self._stopped_early = self.signals == 1 and not any(map(_is_remote, processes))
        if self.signals > 1 or not ranks:
            # A second request, or nothing has begun (or runs on other hosts, where the launcher's end is noticed).
            for process in processes:
                _send(process, signal.SIGKILL if self.signals > 1 else signal.SIGTERM)
            return
        for process in ranks:
            _send(process, number)

    def _tell_hosts(self, folder: Path) -> None:
        """Ask ranks on other hosts to stop; the second time to end at once, with all that is here."""
        with contextlib.suppress(OSError):
            (folder / ("stop" if self.signals == 1 else "kill")).touch()
        if self.signals > 1:
            signal.signal(signal.SIGALRM, _kill_all)
            signal.setitimer(signal.ITIMER_REAL, FAR)


def _kill_all(*_: object) -> None:
    for process in _descendants():
        _send(process, signal.SIGKILL)


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _is_rank(process: psutil.Process) -> bool:
    try:
        return any(argument.startswith("--local_rank=") for argument in process.cmdline())
    except psutil.Error:
        return False


def _is_remote(process: psutil.Process) -> bool:
    """Return whether it starts ranks on other hosts, of which nothing is known here."""
    try:
        return process.name() in ("pdsh", "ssh", "mpirun", "mpiexec", "srun")
    except psutil.Error:
        return False


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _positive(code: int) -> int:
    """Return the exit codes as a shell has them: 128 + the signal where a process was killed (DeepSpeed makes 256 -
    it)."""
    if code == LOST_CONNECTION:
        return 1
    killed_by = -code if code < 0 else 256 - code if code > 192 else 0
    return 128 + killed_by if killed_by else code


def _worst(codes: list[int]) -> int:
    """Stopped-and-saved counts more than the launcher's 0, a failure more than either."""
    return next((code for code in codes if code not in (FINISHED, STOPPED)), max(codes))


def _end_with_parent() -> None:
    """In the child: if we are killed, the kernel ends it."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # a console that has died ends nothing
        print(message, file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line."""
    restarts = os.environ.get("RESTARTS", "0")
    if not re.fullmatch(r"[0-9]{1,6}", restarts):
        _say(f"error: RESTARTS={restarts} is not a number of restarts")
        return 2
    command, hosts = sys.argv[1:], None
    try:
        if command[:1] == ["--cluster"]:
            command = command[1:]
            hosts = Hosts.of_command(command)
            for words in (wrong := hosts.check(script_of(command)) if hosts is not None and hosts.are_all_used else []):
                _say(f"error: {words}")
            if wrong:
                return 2
        return Supervisor(command, int(restarts), hosts).run()
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except OSError as error:  # a full disk, no launcher
        _say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
