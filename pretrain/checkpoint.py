"""Checkpoints: named slices of the fp32 weights and moments, whole or not there, readable without DeepSpeed.

    RUN/checkpoints/step-0001000/
      rank-00000-of-00002.safetensors    "parameter|kind|offset" -> flat fp32; kind: master, exp_avg, exp_avg_sq
      state.json                         counters, position in the data, loss scaler
      manifest.json                      model, tokenizer, sizes and checksums of the other files

A checkpoint is written into a folder aside, fsynced and renamed, on all ranks or on none. It holds 12 bytes a parameter
at every ZeRO stage (16-bit weights are casts of the masters) and no pickle. A slice says where in its parameter it
lies, so reading does not need the ranks, stage or groups that wrote it.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.cli import InputError, say
from data_prep.files import replace_folder, sha256_of, sync_tree, write_json
from pretrain.data import Position

if TYPE_CHECKING:  # export reads checkpoints without DeepSpeed
    from pretrain.partition import Partition

FORMAT = 1
KINDS = ("master", "exp_avg", "exp_avg_sq")
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class RunState(NamedTuple):
    """How far a run is, over all ranks."""

    step: int = 0  # optimizer steps that happened
    skipped: int = 0  # steps that did not, for an overflow
    samples: int = 0
    tokens: int = 0
    position: Position = Position()


class Identity(NamedTuple):
    """What a checkpoint may only be resumed under."""

    model: dict[str, Any]  # the model's configuration, its vocabulary padded
    vocab_sha256: str
    vocab_size: int  # entries of the tokenizer


class Piece(NamedTuple):
    """A stored slice of one parameter and kind."""

    offset: int
    length: int
    file: Path
    key: str


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:07d}"


def present(run: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first; not verified."""
    return sorted((run / "checkpoints").glob("step-" + "[0-9]" * 7), reverse=True)


def save(
    run: Path,
    partition: "Partition",
    engine: Any,
    state: RunState,
    identity: Identity,
    settings: dict[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `state.step`; collective. Older ones beyond `keep` (0: all stay) are removed afterwards.

    Raises
    ------
    OSError: on every rank, where the disk refused one of them; the run's other checkpoints are untouched.
    """
    target = folder_of(run, state.step)
    staged = target.with_name(f"{target.name}.partial")
    rank, world = dist.get_rank(), dist.get_world_size()
    with _agreed(f"checkpoint {target}"):
        if rank == 0:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
    with _agreed(f"checkpoint {target}"):
        _write_slices(staged / f"rank-{rank:05d}-of-{world:05d}.safetensors", partition)
    with _agreed(f"checkpoint {target}"):
        if rank == 0:
            write_json(
                staged / "state.json", state._asdict() | {"position": state.position._asdict(), **_scaler(engine)}
            )
            _write_manifest(staged, partition, state, identity, settings, world)
            sync_tree(staged)
            replace_folder(staged, target)
            for old in present(run)[keep:] if keep else []:
                shutil.rmtree(old)
    return target


def _write_slices(path: Path, partition: "Partition") -> None:
    tensors = {
        f"{piece.name}|{kind}|{piece.offset}": partition.view(piece, kind).cpu()
        for piece in _own(partition)
        for kind in KINDS
    }
    save_file(tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _own(partition: "Partition") -> Iterator[Any]:
    """The slices that this rank writes: at stage 0, where all ranks hold all, an equal share of every parameter."""
    if partition.stage:
        yield from partition.slices
        return
    rank, world = dist.get_rank(), dist.get_world_size()
    for piece in partition.slices:
        low, high = piece.length * rank // world, piece.length * (rank + 1) // world
        if low < high:
            yield piece._replace(start=low, length=high - low, offset=low)


def _write_manifest(
    staged: Path, partition: "Partition", state: RunState, identity: Identity, settings: dict[str, Any], world: int
) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(staged.iterdir())}
    if len(files) != world + 1:
        raise OSError(
            f"{staged}: {len(files) - 1} rank files for {world} ranks; is the run folder shared by all nodes?"
        )
    manifest = {
        "format": FORMAT,
        "step": state.step,
        "world_size": world,
        "zero_stage": partition.stage,
        "identity": identity._asdict(),
        "settings": settings,
        "parameters": {name: list(shape) for name, shape in partition.shapes.items()},
        "files": files,
    }
    write_json(staged / "manifest.json", manifest)


def _scaler(engine: Any) -> dict[str, Any]:
    """State of the fp16 loss scaler; nothing in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {"loss_scaler": {field: getattr(scaler, field) for field in SCALER_FIELDS if hasattr(scaler, field)}}


class _agreed:  # noqa: N801 - reads as a phrase in `with`
    """All ranks leave the block well, or all raise: one rank alone would leave the others in a collective for ever."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not isinstance(error, Exception):
            return  # interrupted: the process ends
        failed = torch.tensor([dist.get_rank() + 1 if error is not None else 0])
        dist.all_reduce(failed, dist.ReduceOp.MAX, group=_host_group())
        if error is None and failed.item():
            raise OSError(f"{self.what}: rank {int(failed.item()) - 1} failed, see its message")


def _host_group() -> dist.ProcessGroup | None:
    """A group for host tensors: the default one on CPU, a gloo one beside NCCL."""
    if dist.get_backend() == "gloo":
        return None
    if not hasattr(_host_group, "group"):
        _host_group.group = dist.new_group(backend="gloo")  # type: ignore[attr-defined]
    return _host_group.group  # type: ignore[attr-defined]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there, in the right sizes and with the right checksums.

    Raises
    ------
    InputError: naming what is damaged.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); the checkpoint is not whole") from error
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} has checkpoint format {manifest.get('format')}, this version reads {FORMAT}")
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing")
        if file.stat().st_size != entry["bytes"]:
            raise InputError(f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}")
        if sha256_of(file) != entry["sha256"]:
            raise InputError(f"{file} is damaged: its sha256 is not the manifest's")
    return manifest


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint of a run that verifies, saying which were damaged; None where the run has none at all.

    Raises
    ------
    InputError: the run has checkpoints and none of them verifies.
    """
    folders = present(run)
    for folder in folders:
        try:
            read_manifest(folder)
        except InputError as error:
            say(f"passing over {folder}: {error}")
        else:
            return folder
    if folders:
        raise InputError(
            f"{run} holds {len(folders)} checkpoints and none is whole; start anew in another --out folder"
        )
    return None


def stored_pieces(folder: Path) -> dict[tuple[str, str], list[Piece]]:
    """Every stored slice, by parameter and kind, ordered by offset."""
    pieces: dict[tuple[str, str], list[Piece]] = defaultdict(list)
    for path in sorted(folder.glob("rank-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                name, kind, offset = key.rsplit("|", 2)
                pieces[name, kind].append(Piece(int(offset), file.get_slice(key).get_shape()[0], path, key))
    for entry in pieces.values():
        entry.sort()
    return pieces


def read_parameter(pieces: list[Piece], out: Tensor, first: int) -> None:
    """Fill `out` [n] with elements first .. first + n of a parameter, reading only the slices that overlap.

    Raises
    ------
    InputError: where the stored slices leave a gap.
    """
    stop, filled = first + len(out), 0
    for piece in pieces:
        low, high = max(first, piece.offset), min(stop, piece.offset + piece.length)
        if low < high:
            with safe_open(piece.file, framework="pt") as file:
                part = file.get_slice(piece.key)[low - piece.offset : high - piece.offset]
            out[low - first : high - first].copy_(part)
            filled += high - low
    if filled != len(out):
        raise InputError(f"the checkpoint holds {filled} of {len(out)} elements of a slice; it is not whole")


def read_weights(folder: Path, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The fp32 weights of a checkpoint, whole, by name; needs no rank and no DeepSpeed.

    Raises
    ------
    InputError: where slices are missing.
    """
    pieces = stored_pieces(folder)
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    for name, weight in weights.items():
        read_parameter(pieces[name, "master"], weight.view(-1), 0)
    return weights


def load(folder: Path, partition: "Partition", engine: Any, identity: Identity) -> RunState:
    """Put a checkpoint into a fresh engine; collective.

    Raises
    ------
    InputError: damaged, or of another model or tokenizer.
    """
    with _agreed(f"checkpoint {folder}"):
        manifest = read_manifest(folder)
        _check_identity(folder, manifest, identity, partition)
        content = json.loads((folder / "state.json").read_text())
        pieces = stored_pieces(folder)
    position = Position(**content["position"])
    state = RunState(content["step"], content["skipped"], content["samples"], content["tokens"], position)
    with partition.writing(), _agreed(f"checkpoint {folder}"):
        try:
            for piece in partition.slices:
                for kind in KINDS:
                    read_parameter(pieces[piece.name, kind], partition.view(piece, kind), piece.offset)
        except SafetensorError as error:
            raise InputError(f"{folder}: {error}") from error
    for master in partition.masters:
        partition.optimizer.state[master]["step"] = torch.tensor(float(state.step), device=master.device)
    for field, value in content["loss_scaler"].items():
        setattr(engine.optimizer.loss_scaler, field, value)
    engine.global_steps = state.step + state.skipped
    engine.global_samples = state.samples
    engine.skipped_steps = state.skipped
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    return state


def _check_identity(folder: Path, manifest: dict[str, Any], identity: Identity, partition: "Partition") -> None:
    stored = Identity(**manifest["identity"])
    if stored.vocab_sha256 != identity.vocab_sha256:
        raise InputError(
            f"{folder} was trained with tokenizer {stored.vocab_sha256[:12]}, the store has "
            f"{identity.vocab_sha256[:12]}; resume with its own store, or choose another --out folder"
        )
    shapes = {name: list(shape) for name, shape in partition.shapes.items()}
    if stored.model != identity.model or manifest["parameters"] != shapes:
        different = [key for key in identity.model if stored.model.get(key) != identity.model[key]]
        raise InputError(
            f"{folder} holds another model: {', '.join(different) or 'parameters'} differ; "
            "resume with its own --model, or choose another --out folder"
        )
