"""Look at this machine, or all of a hostfile, for what would go wrong when a run starts: a verdict and a remedy a line.

    python launch/doctor.py --data STORE --out RUN
    python launch/doctor.py --hostfile hosts --data STORE --out RUN        each host, and between them
    python launch/doctor.py --json

Takes seconds, and ends with 0 only when all is well. Nothing stays that it writes.
"""

import json
import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of launch/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

from data_prep.calls import ROOT, call
from data_prep.cli import InputError, number_in, print_json, run
from data_prep.store import Store
from data_prep.version import code_sha256
from launch.cluster import Hosts, read_hostfile
from pretrain.network import DEFAULT_PORT, interface_instead_of_loopback, own_address

PINNED = ("accelerate", "deepspeed", "numpy", "tokenizers", "torch", "transformers")  # that a run's numbers depend on
LEAST_MEMORY = 1 << 30  # bytes of /dev/shm, through which ranks of one machine talk
LEAST_FILES = 4096  # open ones: gloo has ten a rank, a store one a shard
LEAST_FREE = 1 << 30  # bytes of a disk
LEAST_INODES = 10_000
LEAST_SPEED = 20e6  # bytes/s, of a disk that checkpoints go to
TRIAL_BYTES = 1 << 25
STALE_SECONDS = 600.0  # after which no build holds a lock
ASK_SECONDS = 120.0  # in which a host must answer
# Name of a file that the first host has left beside --out; where it is set, this is another one, asked by that.
TOKEN = "ZEROBERT_DOCTOR_TOKEN"
REDUCED = 1 << 24  # floats of the all_reduce between hosts


@dataclass(frozen=True)
class DoctorConfig:
    """What to look at."""

    hostfile: Path | None = None
    """hosts on which ranks will be started, a line `node1 slots=8` each"""
    data: tuple[Path, ...] = ()
    """stores that will be read"""
    out: Path | None = None
    """folder that will be written"""
    json: bool = False
    """print one JSON object"""


class Finding(NamedTuple):
    """What one look has shown."""

    check: str
    ok: bool
    what: str
    remedy: str = ""


def look_here(config: DoctorConfig) -> Iterator[Finding]:
    """Yield what is found on this machine."""
    yield packages()
    yield device()
    yield stale_locks(Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions")))
    yield shared_memory(Path("/dev/shm"))
    yield port()
    yield name()
    for folder in config.data:
        yield store(folder)
    yield open_files(config.data)
    if config.out is not None:
        yield from disk(config.out)


def packages() -> Finding:
    """Compare what is installed with what is tested."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    other = []
    for package in PINNED:
        try:
            found = version(package).partition("+")[0]
        except PackageNotFoundError:
            found = "not there"
        if found != pins.get(package, found):
            other.append(f"{package} is {found}, tested is {pins[package]}")
    remedy = "bash launch/setup.sh installs the versions of constraints.txt"
    return Finding("packages", not other, "; ".join(other) or "those of constraints.txt", remedy)


def device() -> Finding:
    """See that GPUs, their driver and torch's build go together."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return Finding("device", True, f"no GPU; {os.cpu_count()} cores")
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("device", False, f"there is a GPU, and nvidia-smi fails: {error}", "install or mend the driver")
    if asked.returncode:
        what = (asked.stdout + asked.stderr).strip().splitlines()[-1:]
        return Finding("device", False, f"nvidia-smi: {''.join(what)}", "mend the driver; a restart often does")
    build, gpus = version("torch"), asked.stdout.strip().splitlines()
    remedy = 'name a build of torch with CUDA: TORCH="torch==... --index-url ..." bash launch/setup.sh'
    return Finding("device", "+cpu" not in build, f"{len(gpus)} x {gpus[0]}; torch {build}", remedy)


def stale_locks(folder: Path) -> Finding:
    """Find what a build of an operator that was killed has left, for which every later one waits for ever."""
    now, stale = time.time(), []
    for lock in folder.glob("*/*/lock"):
        with suppress(OSError):  # a build has just ended
            stale += [lock] * (now - lock.stat().st_mtime > STALE_SECONDS)
    what = f"left by a build that was killed: {', '.join(map(str, stale))}" if stale else "none"
    return Finding("locks of builds", not stale, what, f"rm {shlex.join(map(str, stale))}")


def shared_memory(folder: Path) -> Finding:
    """See that there is shared memory."""
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    remedy = "docker run --shm-size 8g; in Kubernetes an emptyDir with medium: Memory on /dev/shm"
    return Finding("shared memory", free >= LEAST_MEMORY, f"{folder} has {free >> 20} MB free", remedy)


def port() -> Finding:
    """See that the ranks can meet at a port."""
    remedy = "end what has it, or --master_port (MASTER_PORT) names another one"
    try:
        number = number_in(os.environ, "MASTER_PORT", DEFAULT_PORT, least=1, most=0xFFFF)
    except InputError as error:
        return Finding("port", False, str(error), remedy)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", number))
        except OSError as error:
            return Finding("port", False, f"{number}: {error.strerror}", remedy)
    return Finding("port", True, f"{number} is free")


def name() -> Finding:
    """See that other machines find this one by what it says."""
    host = socket.gethostname()
    try:
        interface = interface_instead_of_loopback("")
    except InputError as error:
        return Finding("name", False, str(error), "mend /etc/hosts")
    leads = f"this machine alone; ranks take {interface}" if interface else "an address of its own"
    return Finding("name", True, f"{host} leads to {leads}")


def store(folder: Path) -> Finding:
    """Open a store."""
    try:
        found = Store.open(folder)
    except InputError as error:
        return Finding("store", False, str(error), call("show", folder, "--verify"))
    return Finding("store", True, f"{folder}: {found.identity[:12]}, {len(found.shards)} shards")


def open_files(stores: tuple[Path, ...]) -> Finding:
    """See that as many files may be open as shards, connections and libraries take."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = LEAST_FILES + sum(len(list(folder.glob("shard-*"))) for folder in stores)
    is_enough = hard == resource.RLIM_INFINITY or hard >= least
    what = "without limit" if hard == resource.RLIM_INFINITY else f"at most {hard}, {least} may be needed"
    return Finding("open files", is_enough, what, f"ulimit -Hn {least}, or a line in /etc/security/limits.conf")


def disk(out: Path) -> Iterator[Finding]:
    """See that checkpoints can be written, in time."""
    folder = nearest(out)
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("disk", False, f"{folder} cannot be written to", "choose another --out, or mend its rights")
        return
    free, state = shutil.disk_usage(folder).free, os.statvfs(folder)
    yield Finding("disk", free >= LEAST_FREE, f"{folder} has {free >> 30} GB free", "make room, or another --out")
    is_enough = not state.f_files or state.f_favail >= LEAST_INODES  # some count none
    what = f"{folder} has room for {state.f_favail:,} files" if state.f_files else "without limit"
    yield Finding("inodes", is_enough, what, "remove small files, or another --out")
    try:
        speed = write_speed(folder)
    except OSError as error:
        yield Finding("write speed", False, f"{folder}: {error.strerror}", "make room, or another --out")
        return
    yield Finding("write speed", speed >= LEAST_SPEED, f"{speed / 1e6:.0f} MB/s in {folder}", "another --out")


def write_speed(folder: Path) -> float:
    """Return the bytes a second that reach the disk."""
    trial, block = folder / f".doctor-{socket.gethostname()}-{os.getpid()}", os.urandom(1 << 20)
    try:
        began = time.monotonic()
        with open(trial, "wb") as file:
            for _ in range(TRIAL_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return TRIAL_BYTES / (time.monotonic() - began)
    finally:
        trial.unlink(missing_ok=True)


def nearest(out: Path) -> Path:
    """Return the folder, above or at --out, that is there."""
    return next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())


class Answer(NamedTuple):
    """What one host says of itself."""

    host: str
    findings: list[Finding]
    facts: dict[str, str]  # that must be the same everywhere


def facts(config: DoctorConfig, token: str) -> dict[str, str]:
    """Return what must be the same on all hosts."""
    found = {"code": code_sha256()[:12], "python": sys.version.split()[0]}
    for package in PINNED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not there"
    for folder in config.data:
        try:
            found[f"store {folder}"] = Store.open(folder).identity[:12]
        except InputError:
            found[f"store {folder}"] = "cannot be opened"
    if config.out is not None:
        found[f"--out {config.out}"] = "shared" if (nearest(config.out) / token).exists() else "another folder"
    return found


def look_between(config: DoctorConfig, hosts: Hosts) -> Iterator[Finding]:
    """Yield what is found on each host of a hostfile, and where they are not alike."""
    wrong = hosts.check(Path(__file__).resolve())
    for words in wrong:
        yield Finding("ssh", False, words, "each host must be reached without a question, and have this checkout")
    if wrong:
        return
    yield Finding("ssh", True, f"{len(hosts.names)} hosts answer, and have this checkout")
    token = f".doctor-{socket.gethostname()}-{os.getpid()}-token"
    beside = nearest(config.out) / token if config.out is not None else None
    if beside is not None:
        with suppress(OSError):  # of a disk that is full or not ours each host says so
            beside.touch()
    try:
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda host: ask(host, config, token, hosts.ssh_port), hosts.names))
    finally:
        if beside is not None:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
    for answer in answers:
        yield from (finding._replace(what=f"{answer.host}: {finding.what}") for finding in answer.findings)
    yield from differences(answers)
    if len(hosts.names) > 1:
        yield all_reduce(hosts)


def ask(host: str, config: DoctorConfig, token: str, ssh_port: str = "") -> Answer:
    """Return what this program says on another host."""
    words = ["env", f"{TOKEN}={token}", sys.executable, str(Path(__file__).resolve()), "--json"]
    words += ["--data", *map(str, config.data)] if config.data else []
    words += ["--out", str(config.out)] if config.out is not None else []
    asked = over_ssh(host, f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(words)}", ssh_port)
    try:
        said = json.loads(asked.stdout.strip().rpartition("\n")[2])  # a shell may greet before
        return Answer(host, [Finding(**each) for each in said["findings"]], said["facts"])
    except (ValueError, KeyError, TypeError):
        what = " ".join(asked.stderr.split())[-300:] or f"code {asked.returncode}"
        return Answer(host, [Finding("doctor", False, what, f"ssh {host} and run it there")], {})


def over_ssh(host: str, command: str, ssh_port: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command on a host."""
    port = ["-p", ssh_port] if ssh_port else []
    try:
        return subprocess.run(
            ["ssh", "-o", "BatchMode=yes", *port, host, command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 1, "", f"no answer within {ASK_SECONDS:.0f} seconds")


def differences(answers: list[Answer]) -> Iterator[Finding]:
    """Yield what is not the same on all hosts."""
    different = 0
    for what in dict.fromkeys(name for answer in answers for name in answer.facts):
        values: dict[str, list[str]] = {}
        for answer in answers:
            values.setdefault(answer.facts.get(what, "absent"), []).append(answer.host)
        is_shared = not what.startswith("--out") or set(values) == {"shared"}
        if len(values) > 1 or not is_shared:
            different += 1
            words = ", ".join(f"{value} on {', '.join(hosts[:4])}" for value, hosts in values.items())
            yield Finding(
                "alike", False, f"{what} is {words}", "give all hosts one checkout, store and --out, at one path"
            )
    if not different and all(answer.facts for answer in answers):
        yield Finding("alike", True, "code, packages, stores and --out are the same on all hosts")


_ALL_REDUCE = """
import sys, time
from datetime import timedelta
sys.path[0] = {root!r}
from pretrain.placement import take_place
take_place()
import torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=timedelta(seconds={seconds}))
block = torch.zeros({size})
dist.all_reduce(block)
began = time.monotonic()
dist.all_reduce(block)
print(time.monotonic() - began)
dist.destroy_process_group()  # its threads, where they are left to the interpreter's end, may abort the process
"""


def all_reduce(hosts: Hosts) -> Finding:
    """Let one process on each host take part in an all_reduce, as ranks do."""
    # Whoever waits for others that do not come ends before this side stops asking: nothing stays on a host.
    script = shlex.quote(_ALL_REDUCE.format(root=str(ROOT), size=REDUCED, seconds=ASK_SECONDS / 2))
    world = len(hosts.names)
    first = over_ssh(hosts.names[0], "hostname -I", hosts.ssh_port).stdout.split()[:1] or [own_address()]
    number = 20000 + os.getpid() % 5000

    def start(rank: int) -> subprocess.CompletedProcess[str]:
        place = f"RANK={rank} WORLD_SIZE={world} LOCAL_RANK=0 LOCAL_SIZE=1 MASTER_ADDR={first[0]} MASTER_PORT={number}"
        command = f"env {place} OMP_NUM_THREADS=1 {shlex.quote(sys.executable)} -c {script}"
        return over_ssh(hosts.names[rank], command, hosts.ssh_port)

    with ThreadPoolExecutor(world) as pool:
        ended = list(pool.map(start, range(world)))
    for host, process in zip(hosts.names, ended, strict=True):
        if process.returncode:
            words = process.stderr.strip().splitlines()[-1:] or [f"code {process.returncode}"]
            remedy = "see GLOO_SOCKET_IFNAME and the firewall in docs/cluster.md"
            return Finding("all_reduce", False, f"{host}: {words[0][:300]}", remedy)
    speed = 4 * REDUCED / max(float(process.stdout.split()[-1]) for process in ended)
    return Finding("all_reduce", True, f"{speed / 1e6:.0f} MB/s over {world} hosts (gloo, float32)")


def main(config: DoctorConfig) -> None:
    """Look, and print what was found."""
    findings: list[Finding] = []
    if config.hostfile is not None:
        looked = look_between(config, Hosts(config.hostfile, read_hostfile(config.hostfile)))
    else:
        looked = look_here(config)
    for finding in looked:
        findings.append(finding)
        if not config.json:
            line = f"{'ok  ' if finding.ok else 'BAD '} {finding.check:16} {finding.what}"
            print(line if finding.ok else f"{line}\n     {'':16} -> {finding.remedy}", flush=True)
    is_well = all(finding.ok for finding in findings)
    if config.json:
        listed = [each._asdict() | {"remedy": "" if each.ok else each.remedy} for each in findings]
        token = os.environ.get(TOKEN, "")
        print_json({"ok": is_well, "findings": listed} | ({"facts": facts(config, token)} if token else {}))
    if not is_well:
        sys.exit(1)


if __name__ == "__main__":
    run(main, DoctorConfig, __doc__)
