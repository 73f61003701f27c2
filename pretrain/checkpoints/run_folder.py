"""The run folder: what it says about its run, and who may write into it.

    RUN/config.json      resolved settings and DeepSpeed JSON, identity of the stores, versions, state of the code
    RUN/vocab/           the tokenizer, for export
    RUN/lock.json        who writes here now

One writer at a time: the holder of the lock rewrites it every HEARTBEAT seconds. A lock is stale, and taken over, when
its process is gone from this host, or, on another host, when its heartbeat is not of the last STALE seconds and, since
clocks differ, does not change while it is watched.
"""

import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.cli import ROOT, InputError, say
from data_prep.fields import read_fields, write_sealed
from data_prep.files import write_folder, write_json
from data_prep.store import Store
from pretrain.checkpoints import checkpoint
from pretrain.config import TrainConfig
from pretrain.outlook import look_ahead
from pretrain.phases import Phase

HEARTBEAT, STALE = 15.0, 120.0  # seconds
WATCHED = 45.0  # seconds for which a heartbeat that may be stale is looked at


def find_checkpoint(config: TrainConfig) -> Path | None:
    """Where to continue; None for a new run. A folder that holds checkpoints is never trained from zero.

    Raises
    ------
    InputError: --resume never on a run with checkpoints, a PATH that is no checkpoint, none that is whole.
    """
    if config.resume == "never":
        if checkpoint.present(config.out):
            raise InputError(
                f"--resume never, but {config.out} holds checkpoints; choose another --out or --resume auto"
            )
        return None
    if config.resume == "auto":
        return checkpoint.newest_whole(config.out)
    checkpoint.read_manifest(Path(config.resume))
    return Path(config.resume)


def record_of(
    config: TrainConfig, phases: list[Phase], settings: dict[str, Any], stores: list[Store], parameters: int
) -> dict[str, Any]:
    """What is needed to repeat the run: the content of config.json."""
    return {
        "train": config.record(),
        "phases": [phase.described() for phase in phases],
        "parameters": parameters,
        "deepspeed": settings,
        "stores": [{"folder": str(store.folder), "identity": store.identity} for store in stores],
        "outlook": look_ahead(config, stores)._asdict(),
        "vocab_sha256": stores[0].vocab_sha256,
        "vocab_size": stores[0].vocab_size,
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers", "numpy")},
        "python": platform.python_version(),
        "git": git_state(),
    }


def prepare_folder(config: TrainConfig, record: dict[str, Any], stores: list[Store]) -> None:
    """Write the record, and the tokenizer that export will need."""
    config.out.mkdir(parents=True, exist_ok=True)
    write_sealed(config.out / "config.json", record)

    def copy_vocab(folder: Path) -> None:
        shutil.copytree(stores[0].folder / "vocab", folder, dirs_exist_ok=True)

    write_folder(config.out / "vocab", copy_vocab)


def git_state() -> dict[str, Any]:
    """Commit and cleanliness of the checkout that the code runs from; empty outside of one."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": head, "clean": not changes}


class RunLock:
    """Hold a run folder: `with RunLock(run): ...`

    Raises
    ------
    InputError: another process holds it.
    """

    def __init__(self, run: Path):
        self.path = run / "lock.json"
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="run lock")

    def __enter__(self) -> "RunLock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                # The file appears with its content: link() fails where the name exists.
                mine = self.path.with_name(f"lock.json.{socket.gethostname()}.{os.getpid()}")
                write_json(mine, _holder())
                try:
                    os.link(mine, self.path)
                finally:
                    mine.unlink()
                break
            except FileExistsError:
                self._remove_stale()
        self._beating.start()
        return self

    def _remove_stale(self) -> None:
        holder = _read(self.path)
        if holder is not None and _is_alive(self.path, holder):
            raise InputError(
                f"{self.path.parent} is being written by process {holder['pid']} on {holder['host']} since "
                f"{holder['started']}; wait for it, stop it, or choose another --out"
            )
        # Renamed, then looked at again: between reading and removing, another process may have taken the lock over.
        aside = self.path.with_name(f"lock.json.stale.{socket.gethostname()}.{os.getpid()}")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return
        if _read(aside) != holder:
            os.link(aside, self.path)
        aside.unlink()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._beating.join()
        self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        started = _holder()
        while not self._done.wait(HEARTBEAT):
            try:
                write_json(self.path, started | {"heartbeat": time.time()})
            except OSError:
                continue  # a full disk must not end a run that can still train; the next beat tries again


def _holder() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "heartbeat": time.time(),
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None where the file does not say it, which is nobody's then."""
    try:
        fields = read_fields(path, "")
        fields.whole("pid", least=1)
        fields.number("heartbeat")
        for name in ("host", "started"):
            fields.text(name)
        fields.get("process_start")
    except InputError:
        return None
    return fields.content


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    """Whether the holder of a lock lives: by its process on this host, by its heartbeat on another one."""
    if holder["host"] == socket.gethostname():
        return _process_start(holder["pid"]) == holder["process_start"] is not None
    if abs(time.time() - holder["heartbeat"]) < STALE:
        return True
    # Long ago, or in the future: or a clock is wrong. What beats changes.
    say(f"{path} is of {holder['host']}, and its time is not ours: waiting {WATCHED:g} s to see whether it still beats")
    until = time.monotonic() + WATCHED
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCHED / 4))
        if _read(path) != holder:
            return True
    return False


def _process_start(pid: int) -> str | None:
    """When a process of this host started, in clock ticks; process numbers are reused, this tells them apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
