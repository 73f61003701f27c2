"""Checkpoints: named slices of the fp32 weights and moments, whole or not there, readable without DeepSpeed.

    RUN/checkpoints/latest                 the name of the last folder that was finished, a hint: readers verify
    RUN/checkpoints/step-0001000/
      rank-00000-of-00002.safetensors    "parameter|kind|offset" -> flat fp32; kind: master, exp_avg, exp_avg_sq
      state.json                         counters, position in the data, loss scaler
      manifest.json                      model, tokenizer, sizes and checksums of the other files

Written by saver.py; here is what one is, and how it is found, verified, read and resumed. It holds 12 bytes a parameter
at every ZeRO stage (16-bit weights are casts of the masters) and no pickle. A slice says where in its parameter it
lies, so reading does not need the ranks, stage or groups that wrote it.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_prep.cli import InputError, say
from data_prep.files import replace_folder, sha256_of, sync_tree, write_json, write_whole
from pretrain.data import Position, StepCounts
from pretrain.together import agreed

if TYPE_CHECKING:  # export reads checkpoints without DeepSpeed
    from pretrain.zero.partition import Partition

FORMAT = 1
POINTER = "latest"
KINDS = ("master", "exp_avg", "exp_avg_sq")
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class RunState(NamedTuple):
    """How far a run is, over all ranks."""

    step: int = 0  # optimizer steps that happened
    skipped: int = 0  # steps that did not, for an overflow
    samples: int = 0
    tokens: int = 0
    position: Position = Position()
    seconds: float = 0.0  # of training, where --hours measures the run
    best_loss: float | None = None  # of the evaluations of this phase, on one held-out set
    held_out: str = ""  # which set that is (Evaluation.identity)
    worse: int = 0  # evaluations since
    recent: tuple[float, ...] = ()  # losses of the last steps, where --rollback watches them
    passed_over: tuple[tuple[int, int], ...] = ()  # first and end of spans of samples, in the order they are drawn

    @classmethod
    def of(cls, content: dict[str, Any]) -> "RunState":
        """From a state.json, which may be of a version that knew fewer fields."""
        state = cls(**{name: content[name] for name in cls._fields if name in content})
        return state._replace(
            position=Position(**content["position"]),
            recent=tuple(state.recent),
            passed_over=tuple((first, end) for first, end in state.passed_over),
        )

    @property
    def drawn(self) -> int:
        """Samples that were trained on or passed over: where `position` is, counted from the beginning."""
        return self.samples + sum(end - first for first, end in self.passed_over)

    def after(self, counts: StepCounts, happened: bool, seconds: float) -> "RunState":
        """The state after a step, or after the attempt at one."""
        return self._replace(
            step=self.step + happened,
            skipped=self.skipped + (not happened),
            samples=self.samples + counts.samples,
            tokens=self.tokens + counts.tokens,
            position=counts.end,
            seconds=seconds,
        )

    def evaluated(self, loss: float, held_out: str) -> "RunState":
        """The state after an evaluation; losses of another held-out set are no measure for this one."""
        best = self.best_loss if held_out == self.held_out else None
        is_better = best is None or math.isnan(best) or loss < best
        if is_better:
            return self._replace(best_loss=loss, held_out=held_out, worse=0)
        return self._replace(worse=self.worse + 1)


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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there, in the right sizes and with the right checksums.

    Raises
    ------
    InputError: naming what is damaged.
    """
    manifest = _parse_manifest(folder)
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing")
        if file.stat().st_size != entry["bytes"]:
            raise InputError(f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}")
        if sha256_of(file) != entry["sha256"]:
            raise InputError(f"{file} is damaged: its sha256 is not the manifest's")
    return manifest


def _parse_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); the checkpoint is not whole") from error
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} has checkpoint format {manifest.get('format')}, this version reads {FORMAT}")
    return manifest


def read_about(folder: Path) -> tuple[dict[str, Any], RunState]:
    """The manifest and the state of a checkpoint that read_manifest() has found whole.

    Raises
    ------
    InputError: they cannot be read.
    """
    manifest, path = _parse_manifest(folder), folder / "state.json"
    try:
        return manifest, RunState.of(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read as the state of a run ({error!r}); resume another checkpoint with --resume PATH"
        ) from error


def complete(staged: Path, target: Path, content: dict[str, Any], about: dict[str, Any]) -> None:
    """Make a checkpoint of a folder that holds all slices: state.json with `content`, the manifest with `about`, and
    the folder in its place, which the pointer then names."""
    write_json(staged / "state.json", content)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(staged.iterdir())}
    write_json(staged / "manifest.json", {"format": FORMAT, **about, "files": files})
    sync_tree(staged)
    replace_folder(staged, target)
    write_whole(target.with_name(POINTER), [f"{target.name}\n".encode()])


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint of a run that verifies, saying which were damaged or lost; None for a run without any.

    Raises
    ------
    InputError: the run has, or had, checkpoints and none of them verifies.
    """
    folders = present(run)
    pointer = run / "checkpoints" / POINTER
    pointed = pointer.read_text(errors="replace").strip() if pointer.is_file() else None
    if pointed is not None and pointed not in [folder.name for folder in folders]:
        if not folders:
            raise InputError(
                f"{pointer} names {pointed!r}, and no checkpoint is there; put it back or remove the file to start anew"
            )
        say(f"passing over {pointer}: it names {pointed!r}, which is not there")
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


class Scored(NamedTuple):
    """A checkpoint with the held-out loss nearest before it."""

    loss: float
    folder: Path


def best_of(folders: Sequence[Path]) -> Scored | None:
    """The checkpoint with the lowest held-out loss, of those on the held-out set of the newest of `folders` (newest
    first) that has one: losses on different sets do not compare. None where there was no evaluation."""
    found: list[Scored] = []
    held_out = None
    for folder in folders:
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            loss, its_set = manifest["held_out_loss"], manifest.get("held_out")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if isinstance(loss, float) and math.isfinite(loss) and (not found or its_set == held_out):
            held_out = its_set
            found.append(Scored(loss, folder))
    return min(found, key=lambda scored: scored.loss, default=None)


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
    """Put a checkpoint that read_manifest() has found whole into an engine; collective.

    Each rank reads the slices that it needs, and no more.

    Raises
    ------
    InputError: of another model or tokenizer.
    """
    with agreed(f"checkpoint {folder}"):
        manifest = _parse_manifest(folder)
        check_identity(folder, manifest, identity, partition.shapes)
        content = json.loads((folder / "state.json").read_text())
        pieces = stored_pieces(folder)
    state = RunState.of(content)
    with partition.writing(), agreed(f"checkpoint {folder}"):
        try:
            for piece in partition.slices:
                for kind in KINDS:
                    read_parameter(pieces[piece.name, kind], partition.view(piece, kind), piece.offset)
        except SafetensorError as error:
            raise InputError(f"{folder}: {error}") from error
    for master in partition.masters:
        partition.optimizer.state[master]["step"] = torch.tensor(float(state.step), device=master.device)
    scaler, saved = getattr(engine.optimizer, "loss_scaler", None), content["loss_scaler"]
    if set(saved) == set(SCALER_FIELDS) and all(hasattr(scaler, field) for field in SCALER_FIELDS):
        # fp16 then and now; another precision has a constant scale, or none.
        for field, value in saved.items():
            setattr(scaler, field, value)
    engine.global_steps = state.step + state.skipped
    engine.global_samples = state.samples
    engine.skipped_steps = state.skipped
    return state


def check_identity(
    folder: Path, manifest: dict[str, Any], identity: Identity, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse a checkpoint of another model, whose parameters have other `shapes`, or of another tokenizer.

    Raises
    ------
    InputError: naming what differs.
    """
    stored = Identity(**manifest["identity"])
    if stored.vocab_sha256 != identity.vocab_sha256:
        raise InputError(
            f"{folder} was trained with tokenizer {stored.vocab_sha256[:12]}, the store has "
            f"{identity.vocab_sha256[:12]}; resume with its own store, or choose another --out folder"
        )
    own_shapes = {name: list(shape) for name, shape in shapes.items()}
    if stored.model != identity.model or manifest["parameters"] != own_shapes:
        different = [key for key in identity.model if stored.model.get(key) != identity.model[key]]
        raise InputError(
            f"{folder} holds another model: {', '.join(different) or 'parameters'} differ; "
            "resume with its own --model, or choose another --out folder"
        )
