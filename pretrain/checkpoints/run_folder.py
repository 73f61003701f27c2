"""The run folder: where its run begins, what it says about its run, and who may write into it.

    RUN/config.json      resolved settings and DeepSpeed JSON, identity of the stores, versions, state of the code;
                         from_step, where these settings began, and segments: the same of the settings before
    RUN/vocab/           the tokenizer, for export
    RUN/lock.json        who writes here now

    find_start(config, record, ...) -> Start      reads and compares all there is, and writes nothing
    with RunLock(RUN): prepare_folder(...)        the first bytes that a run writes

One writer at a time: the holder of the lock rewrites it every HEARTBEAT seconds. A lock is stale, and taken over, when
its process is gone from this host, or, on another host, when its heartbeat is not of the last STALE seconds and, since
clocks differ, does not change while it is watched.
"""

import hashlib
import math
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from data_prep.cli import ROOT, InputError, say
from data_prep.fields import SEAL, read_fields, write_sealed
from data_prep.files import sha256_of, write_folder, write_json
from data_prep.samples.pair_index import VERSION
from data_prep.store import Store, project_version, tokenizer_sha256
from pretrain.checkpoints import checkpoint
from pretrain.checkpoints.manifest import Identity, Manifest
from pretrain.checkpoints.resume_policy import Change, changes_of, check_resume, fresh_epoch, refuse
from pretrain.outlook import look_ahead
from pretrain.settings.config import TrainConfig
from pretrain.settings.phases import Phase
from pretrain.state import RunState

HEARTBEAT, STALE = 15.0, 120.0  # seconds
WATCHED = 45.0  # seconds for which a heartbeat that may be stale is looked at


class Start(NamedTuple):
    """Where a run begins."""

    checkpoint: Path | None  # None: a new run
    state: RunState
    changes: tuple[Change, ...]  # from the settings that the checkpoint was written under
    record: dict[str, Any]  # what config.json is to say
    present: tuple[str, ...]  # checkpoints that the run folder held


def find_start(
    config: TrainConfig, record: dict[str, Any], identity: Identity, shapes: Mapping[str, Sequence[int]]
) -> Start:
    """Where to begin under the settings of `record`, with a model of these `shapes`; writes nothing.

    Raises
    ------
    InputError: as find_checkpoint() does; a checkpoint of another model or tokenizer, or of settings that may not
        change; one at which nothing is left to train, in a folder of its own.
    """
    seen = tuple(folder.name for folder in checkpoint.present(config.out))
    found = find_checkpoint(config)
    if found is None:
        return Start(None, RunState(), (), record | {"from_step": 0, "from": None, "segments": []}, seen)
    manifest = Manifest.read(found)
    state, _ = checkpoint.read_state(found, manifest)
    checkpoint.check_identity(found, manifest, identity, shapes)
    before = record_under(found, manifest)
    changes = changes_of(before, record, state.step)
    refuse(found, changes, config.allow_change)
    state = placed(state, before, record, changes)
    if not _is_of(found, config.out) and state.step >= config.total_steps:
        raise InputError(
            f"{found} is at step {state.step}, and there are {config.total_steps} steps: nothing is left to train in "
            f"{config.out}; give more --steps"
        )
    return Start(found, state, changes, record | _history(found, before, state.step, changes), seen)


def placed(state: RunState, before: dict[str, Any], now: dict[str, Any], changes: tuple[Change, ...]) -> RunState:
    """The state, at a place that is one in the samples of `now`."""
    position = state.position
    if not position.seq_len:  # of a version that did not keep it
        phases = before.get("phases", [])
        if position.phase < len(phases):
            position = position._replace(seq_len=phases[position.phase]["seq_len"])
    begun = position.epoch + (position.sample > 0)
    if begun and any(change.moves for change in changes):
        position = position._replace(epoch=fresh_epoch(begun, before, now), sample=0)
    return state._replace(position=position)


def record_under(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The record that a checkpoint was written under. Older versions kept the DeepSpeed JSON in it, and the rest is
    what its run folder says; what was imported has none."""
    if manifest.record is not None:
        return manifest.record
    try:
        content = read_fields(folder.resolve().parent.parent / "config.json", "it is not compared").content
    except InputError as error:
        say(f"warning: {error}")
        content = {}
    content.pop(SEAL, None)  # of the file
    known = {"samples_version": 2} | content if content else {}
    return known | {"deepspeed": manifest.settings}


def _history(folder: Path, before: dict[str, Any], step: int, changes: tuple[Change, ...]) -> dict[str, Any]:
    """The part of a record that says how its run came here: settings that change begin a new segment."""
    segments = before.get("segments", [])
    known = {"from_step": before.get("from_step", 0), "from": before.get("from"), "segments": segments}
    if not changes:
        return known
    ended = {name: value for name, value in before.items() if name != "segments"}
    return {"from_step": step, "from": str(folder), "segments": [*segments, known | ended]}


def _is_of(folder: Path, run: Path) -> bool:
    """Whether a checkpoint is one of a run."""
    return folder.resolve().parent == (run / "checkpoints").resolve()


def find_checkpoint(config: TrainConfig) -> Path | None:
    """Where to continue; None for a new run. A folder that holds checkpoints is never trained from zero.

    Raises
    ------
    InputError: --resume never on a run with checkpoints, a PATH that is no checkpoint, none that is whole.
    """
    check_resume(config)
    if config.resume == "never":
        return None
    if config.resume == "auto":
        return checkpoint.newest_whole(config.out)
    checkpoint.read_manifest(Path(config.resume))
    return Path(config.resume)


def record_of(
    config: TrainConfig, phases: list[Phase], settings: dict[str, Any], stores: list[Store], parameters: int
) -> dict[str, Any]:
    """What is needed to repeat the run: the content of config.json, but for what came before."""
    passes = config.passes([store.tokens for store in stores])
    return {
        "train": config.record(),
        "phases": [phase.described() for phase in phases],
        "parameters": parameters,
        "deepspeed": settings,
        "outlook": look_ahead(config, stores)._asdict(),
        "stores": [
            {"folder": str(store.folder), "identity": store.identity, "passes": number}
            for store, number in zip(stores, passes, strict=True)
        ],
        "samples_version": VERSION,
        "vocab_sha256": stores[0].vocab_sha256,
        "vocab_size": stores[0].vocab_size,
        "versions": {"zerobert": project_version()}
        | {name: version(name) for name in ("torch", "deepspeed", "transformers", "numpy")},
        "python": platform.python_version(),
        "git": git_state(),
    } | ({} if config.init_from is None else {"init_sha256": weights_sha256(config.init_from)})


def weights_sha256(folder: Path) -> str:
    """Identity of a Hugging Face folder's model: its configuration and weights."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def prepare_folder(run: Path, start: Start, stores: list[Store]) -> None:
    """Write the record, and the tokenizer that export will need; checkpoints of another way are put aside."""
    folders = checkpoint.present(run)
    if tuple(folder.name for folder in folders) != start.present:
        raise InputError(f"{run} has been written by another process just now; give the command again")
    run.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        # Else a rollback, or the next resume, would take them for later steps of this run.
        if start.checkpoint is not None and (not _is_of(start.checkpoint, run) or folder.name > start.checkpoint.name):
            _put_aside(folder)
    write_sealed(run / "config.json", start.record)

    def copy_vocab(folder: Path) -> None:
        shutil.copytree(stores[0].folder / "vocab", folder, dirs_exist_ok=True)

    write_folder(run / "vocab", copy_vocab)


def _put_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"aside-{number}-{folder.name}")).exists():
        number += 1
    os.replace(folder, aside)
    say(f"{folder} is not on the way of the checkpoint that this run goes on from; it is now {aside.name}")


def disagreement(run: Path, manifest: Manifest) -> str:
    """What of a run folder is of another run than the checkpoint with this manifest; empty where nothing is.

    A command that an older version refused has left its tokenizer and its settings behind.
    """
    identity = manifest.identity
    wanted: dict[str, Any] = {"vocab_sha256": identity.vocab_sha256, "vocab_size": identity.vocab_size}
    wanted["parameters"] = sum(math.prod(shape) for shape in manifest.parameters.values())
    if not (run / "vocab" / "tokenizer.json").is_file():
        return f"{run}/vocab/tokenizer.json is missing"
    found = tokenizer_sha256(run / "vocab")
    if found != wanted["vocab_sha256"]:
        return (
            f"{run / 'vocab'} is tokenizer {found[:12]}, and the model was trained with {wanted['vocab_sha256'][:12]}"
        )
    path = run / "config.json"
    try:
        record = read_fields(path, "").content
    except InputError:
        return ""  # damaged, or gone: what the checkpoint says itself is used, and whoever uses it says so
    different = [name for name, value in wanted.items() if record.get(name, value) != value]
    return ", ".join(f"{path} says {name} {record[name]}, the checkpoint {wanted[name]}" for name in different)


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
        self.was_stale = False  # whether the last holder was killed: it has left its lock
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="run lock")

    def __enter__(self) -> "RunLock":
        self._made_folder = not self.path.parent.exists()
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
        if self.path.is_dir() and not self.path.is_symlink():
            raise InputError(f"{self.path} is a folder, and none of ours; move it away")
        # Renamed, then looked at again: between reading and removing, another process may have taken the lock over.
        aside = self.path.with_name(f"lock.json.stale.{socket.gethostname()}.{os.getpid()}")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return
        if _read(aside) != holder:
            os.link(aside, self.path)
        else:
            self.was_stale = True
        aside.unlink()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._beating.join()
        self.path.unlink(missing_ok=True)
        if self._made_folder and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()  # what is refused leaves nothing behind

    def _beat(self) -> None:
        started = _holder()
        while not self._done.wait(HEARTBEAT):
            try:
                write_json(self.path, started | {"heartbeat": time.time()})
            except OSError:
                continue  # a full disk must not end a run that can still train; the next beat tries again


def holder_of(run: Path) -> dict[str, Any]:
    """Who holds a run folder, whatever the heartbeat; empty where nobody does."""
    found = _read(run / "lock.json") or {}
    return {name: value for name, value in found.items() if name != "heartbeat"}


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
