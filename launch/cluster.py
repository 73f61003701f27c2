"""What DeepSpeed's launcher lacks on several hosts: looked at before, handed to the ranks, and said in the end.

    hosts = Hosts.of_command(["deepspeed", "--hostfile", "hosts", ...])       None: one machine
    hosts.check(script)                         ssh works on each, and finds this checkout there
    hosts.wait(script)                          for as long as a machine takes that starts anew
    with shared_folder(command) as folder: ...  seen from all nodes: requests to stop go there, and outcomes come back
    hosts.environment(folder)                   for the launcher: what it forwards, and ssh that notices a lost link

The launcher ends ranks by `pkill -f` on every host, which hits other runs, and 30 seconds after a signal, which may be
too soon for a save. So a request to stop is a file in the folder, that a rank of each node sees (pretrain/stop.py).
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from data_prep.errors import InputError
from launch.outcomes import Place

SCRIPT = "pretrain.sh"
DEFAULT_HOSTFILE = Path("/job/hostfile")  # DeepSpeed's
SSH_SECONDS = 10  # in which a host must answer
KEEPALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"  # a link that is down is an end after 15 seconds
BACK_SECONDS = 600.0  # in which hosts that are gone may come back
AT_ONCE = 64  # hosts that are asked
# Beside what DeepSpeed passes on by itself (PYTHON*, UCX*, and on a machine with a GPU NCCL*). Not HF_TOKEN: it would
# stand in command lines, which everybody sees.
FORWARDED = re.compile(
    r"(NCCL|GLOO|TORCH|OMP|MKL|KMP|HF(?!_TOKEN)|TOKENIZERS|ZEROBERT|CUDA_(?!VISIBLE)|HSA|MIOPEN|FI|DEEPSPEED)_.*"
    r"|DS_ACCELERATOR|LD_LIBRARY_PATH"
)
ITSELF = {"DS_ENV_FILE", "DEEPSPEED_FLAGS"}
PLAIN = re.compile(r"[\w@%+=:,./ -]*")  # what comes through pdsh and a shell unharmed
HOST = re.compile(r"(?!-)[\w.@:%\[\]-]+(?=\s)", re.ASCII)  # no option of ssh
# What each host is asked in one connection: these must be at the same path as here.
MISSING = {71: "no Python", 72: "no script", 73: "no folder"}
NARROWED = ("--include", "-i", "--exclude", "-e", "--num_nodes", "--no_ssh", "--no_ssh_check")


class Hosts(NamedTuple):
    """The machines of a hostfile."""

    hostfile: Path
    names: list[str]
    ssh_port: str = ""
    are_all_used: bool = True  # and by ssh, as far as can be told here

    @classmethod
    def of_command(cls, command: Sequence[str]) -> "Hosts | None":
        """Return the machines on which a command of the launcher starts ranks; None: this one alone.

        Raises
        ------
        InputError: the hostfile cannot be read, or names nobody.
        """
        given = option(command, "--hostfile", "-H")
        if given is None and not DEFAULT_HOSTFILE.exists():
            return None
        if given == "":  # DeepSpeed would take this machine alone
            raise InputError("HOSTFILE, or --hostfile, is empty; give a file with a line for each host: node1 slots=8")
        hostfile = DEFAULT_HOSTFILE if given is None else Path(given)
        launcher = option(command, "--launcher") or "pdsh"
        are_all_used = launcher == "pdsh" and not any(word.split("=")[0] in NARROWED for word in command)
        return cls(hostfile, read_hostfile(hostfile), option(command, "--ssh_port") or "", are_all_used)

    def check(self, script: Path) -> list[str]:
        """Return what is wrong with each host, in ssh's own words; empty: every one is reached, and has the script and
        this Python at the same path."""
        places = [Path(sys.executable), script, Path.cwd()]
        if odd := next((place for place in places if " " in str(place) or not PLAIN.fullmatch(str(place))), None):
            return [f"{odd}: blanks and special characters in this path are lost on the way to other hosts; rename it"]
        ask = "; ".join(
            f"test -{test} {shlex.quote(str(place))} || exit {code}"
            for test, place, code in zip("xrd", places, MISSING, strict=True)
        )
        with ThreadPoolExecutor(AT_ONCE) as pool:
            wrong = pool.map(lambda name: self._ask(name, ask, dict(zip(MISSING, places, strict=True))), self.names)
            return list(filter(None, wrong))

    def wait(self, script: Path) -> None:
        """Wait for hosts that do not answer, before a run is started again on them."""
        until = time.monotonic() + BACK_SECONDS
        while self.are_all_used and self.check(script) and time.monotonic() < until:
            time.sleep(SSH_SECONDS)

    def _ask(self, name: str, ask: str, places: Mapping[int, Path]) -> str:
        try:
            asked = self._ssh(name, ask)
        except FileNotFoundError:
            return f"{name}: there is no ssh on {socket.gethostname()}"
        except subprocess.TimeoutExpired:
            return f"{name}: ssh does not end within {3 * SSH_SECONDS} seconds; try: ssh {name} true"
        if asked.returncode in MISSING:
            place = places[asked.returncode]
            return f"{name} has {MISSING[asked.returncode]} {place}; the checkout must be at the same path on all hosts"
        if asked.returncode:
            words = " ".join(asked.stderr.split())[-300:] or f"code {asked.returncode}"
            return f"{name}: {words}; ranks are started by ssh, which must ask nothing: ssh {name} true"
        return ""

    def _ssh(self, name: str, command: str) -> subprocess.CompletedProcess[str]:
        port = ["-p", self.ssh_port] if self.ssh_port else []
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_SECONDS}"]
        return subprocess.run(
            ["ssh", *options, *port, name, command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * SSH_SECONDS,
        )

    def lost(self, processes: Iterable[psutil.Process]) -> set[str]:
        """Return the hosts to which the launcher holds no ssh any more: of their ranks none is left, or none that
        could be told anything. Without users, as ranks write them."""
        held = {_without_user(word) for process in processes for word in _words_of_ssh(process)}
        return set(map(_without_user, self.names)) - held

    def kill(self, places: Iterable[Place]) -> None:
        """End ranks on their hosts, without a chance to object."""
        names = {_without_user(name): name for name in self.names}

        def kill_one(place: Place) -> None:
            # A number may be another process's by now; ranks know themselves by this word.
            command = f"grep -qs -e --local_rank= /proc/{place.pid}/cmdline && kill -9 {place.pid}"
            with suppress(OSError, subprocess.TimeoutExpired):
                self._ssh(names.get(place.host, place.host), command)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(kill_one, places))

    def environment(self, folder: Path) -> dict[str, str]:
        """Return variables for the launcher; writes the file of those that it forwards into the folder."""
        outcome = {"ZEROBERT_OUTCOME": str(folder)}
        # pdsh puts the host for %h, as the hostfile calls it: maybe by an address that the host itself does not know.
        host = {"ZEROBERT_HOST": "%h"} if self.are_all_used else {}
        file = folder / "environment"
        file.write_text(forwarded_lines(os.environ | outcome | host))
        keepalive = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {KEEPALIVE}".strip()
        return outcome | {"DS_ENV_FILE": str(file), "PDSH_SSH_ARGS_APPEND": keepalive}


def script_of(command: Sequence[str]) -> Path:
    """Return the file that a command of the launcher makes ranks of."""
    return next((Path(word) for word in command if word.endswith(SCRIPT)), Path(__file__))


def option(command: Sequence[str], *names: str) -> str | None:
    """Return the value of an option of the launcher, written with a space or with `=`; the last one counts."""
    found = None
    for index, word in enumerate(command):
        if word.endswith(SCRIPT):
            break
        name, equals, value = word.partition("=")
        if name in names:
            found = value if equals else command[index + 1] if index + 1 < len(command) else ""
    return found


def read_hostfile(path: Path) -> list[str]:
    """Return the hosts of lines such as `node1 slots=8`.

    Raises
    ------
    InputError: naming the file, and the line where one is wrong.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"--hostfile {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--hostfile {path} is not UTF-8; write it again as plain text") from error
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        if not HOST.match(line) or not re.fullmatch(r"\S+\s+slots=[1-9][0-9]*", line):
            raise InputError(f"{path}, line {number}: {line!r} is not of the form: node1 slots=8")
        names.append(line.split()[0])
    if not names:
        raise InputError(f"--hostfile {path} names no host; a line for each: node1 slots=8")
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InputError(f"{path} names {twice} twice; one line a host: {twice} slots=8")
    return names


def forwarded_lines(environment: Mapping[str, str]) -> str:
    """Return the content of the file whose variables DeepSpeed sets for ranks on other hosts: what the user's own file
    says (DS_ENV_FILE, .deepspeed_env), and what of this environment matters there."""
    variables = {
        name: value
        for name, value in sorted(environment.items())
        if FORWARDED.fullmatch(name) and name not in ITSELF and value.strip() and PLAIN.fullmatch(value)
    }
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    for folder in (Path.home(), Path()):  # in DeepSpeed's order
        if (folder / name).is_file():
            lines = (folder / name).read_text().splitlines()
            variables |= {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}
    return "".join(f"{name}={value}\n" for name, value in variables.items())


@contextmanager
def shared_folder(command: Sequence[str]) -> Iterator[Path]:
    """Yield a folder that all nodes see, gone in the end: beside --out, which they share. Nothing of --out is made.

    Raises
    ------
    InputError: it cannot be made there.
    """
    out = next((command[index + 1] for index, word in enumerate(command[:-1]) if word == "--out"), "")
    out = next((word.removeprefix("--out=") for word in command if word.startswith("--out=")), out)
    place = (Path.cwd() / out).resolve().parent if out else Path.cwd()
    while not place.is_dir():
        place = place.parent
    try:
        made = tempfile.TemporaryDirectory(prefix=".zerobert-", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"--out {out or '.'}: {place} cannot be written to ({error.strerror})") from error
    with made as folder:
        yield Path(folder)


def _without_user(name: str) -> str:
    """Return the host of `user@host`."""
    return name.rpartition("@")[2]


def _words_of_ssh(process: psutil.Process) -> list[str]:
    """Return the command line of an ssh; of anything else nothing."""
    try:
        return process.cmdline() if process.name() == "ssh" else []
    except psutil.Error:
        return []
