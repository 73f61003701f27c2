"""What a checkpoint is: names, the manifest, the state. No torch here; slices.py has the tensors.

    RUN/checkpoints/latest                 the name of the last folder that was finished, a hint: readers verify
    RUN/checkpoints/step-0001000/
      rank-00000-of-00002.safetensors    "parameter|kind|offset" -> flat fp32; kind: master, exp_avg, exp_avg_sq, and
                                         average, where the run keeps one
      state.json                         RunState (pretrain/state.py) and "loss_scaler"
      manifest.json                      {"format": 2, "step", "world_size", "zero_stage", "held_out_loss", "identity",
                                         "settings", "parameters": name -> shape, "files": name -> {"bytes", "sha256"},
                                         perhaps "held_out", "record", "average"; "sha256": of all the above}

    saver.py writes one while training goes on; verify.py says whether it is whole; resume.py which one a run goes on
    from, resume_policy.py with which other settings; load.py puts it into an engine

    Manifest(...).write(folder)       Manifest.read(folder)     InputError where anything about it is wrong
    finalize(staged, target, ...)     a folder with all slices becomes a checkpoint

It holds 12 bytes per parameter at every ZeRO stage (16-bit weights are casts of these), 16 with an average of the
weights, and no pickle. A slice says where in its parameter it lies, so reading does not need the ranks, stage or groups
that wrote it. Format 3 is the one with an average, so that versions that know none refuse it by name. Format 1 is the
first without the manifest's own checksum: still read, by types and ranges, but a digit of it that has changed in
settings or held_out_loss is not noticed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

from data_prep.cli import InputError, say
from data_prep.fields import SEAL, Fields, read_fields, write_sealed
from data_prep.files import replace_folder, sha256_of, sync_tree, write_json, write_whole
from data_prep.json_types import JsonObject
from pretrain.run_record import RunRecord
from pretrain.settings.averaging import Averaging, parse_average
from pretrain.state import SCALER_FIELDS, RunState

FORMAT = 2
UNSEALED = 1  # the format before
AVERAGED = 3  # FORMAT with an average of the weights
MANIFEST, STATE, POINTER = "manifest.json", "state.json", "latest"
STEP = re.compile(r"step-[0-9]{7,}")
KINDS = ("master", "exp_avg", "exp_avg_sq")
AVERAGE = "average"  # the kind that only some checkpoints have
NOT_WHOLE = "the checkpoint is not whole"


class ModelIdentity(NamedTuple):
    """What a checkpoint may only be resumed under: its model, and its tokenizer."""

    model: JsonObject  # the model's configuration, its vocabulary padded
    vocab_sha256: str
    vocab_size: int  # entries of the tokenizer


class FileEntry(NamedTuple):
    """What a file of the checkpoint must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    world_size: int  # of the run that wrote it, as zero_stage
    zero_stage: int
    held_out_loss: float | None  # nearest before
    identity: ModelIdentity
    ds_config: JsonObject  # the DeepSpeed JSON
    parameters: dict[str, list[int]]  # shapes by name
    files: dict[str, FileEntry]  # state.json, and one per rank
    held_out_identity: str = ""  # of the set that held_out_loss is of
    record: RunRecord | None = None  # config.json as it was when the checkpoint was written
    average: str = ""  # which average of the weights it holds, as --average says it; empty: none

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of slices that the checkpoint holds."""
        return (*KINDS, AVERAGE) if self.average else KINDS

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Return the manifest of a checkpoint; the other files are not looked at.

        Raises
        ------
        InputError: missing, damaged, of another format, or not true to itself.
        """
        fields = read_fields(folder / MANIFEST, NOT_WHOLE)
        version = fields.get("format")
        if version not in (FORMAT, UNSEALED, AVERAGED) or isinstance(version, bool | float):
            raise InputError(
                f"{folder} has checkpoint format {version!r}, this version reads {UNSEALED}, {FORMAT} and {AVERAGED}"
            )
        if version != UNSEALED:
            fields.digest(SEAL)  # there, and right: read_fields has compared it
        return cls(
            step=fields.whole("step"),
            world_size=fields.whole("world_size", least=1),
            zero_stage=fields.whole("zero_stage", most=3),
            held_out_loss=_loss(fields),
            identity=_identity(fields.object("identity")),
            ds_config=fields.object("settings").content,
            parameters=_shapes(fields.object("parameters")),
            files=_files(fields),
            held_out_identity=fields.text("held_out", default=""),
            record=cast(RunRecord, fields.object("record").content) if "record" in fields.content else None,
            average=_average(fields) if version == AVERAGED else "",
        )

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        content: JsonObject = {
            "format": AVERAGED if self.average else FORMAT,
            "step": self.step,
            "world_size": self.world_size,
            "zero_stage": self.zero_stage,
            "held_out_loss": self.held_out_loss,
            "identity": self.identity._asdict(),
            "settings": self.ds_config,
            "parameters": self.parameters,
            "files": {name: entry._asdict() for name, entry in self.files.items()},
        }
        if self.held_out_identity:
            content["held_out"] = self.held_out_identity
        if self.record is not None:
            content["record"] = self.record
        if self.average:
            content["average"] = self.average
        write_sealed(folder / MANIFEST, content)


class SavedState(NamedTuple):
    """What state.json holds."""

    state: RunState
    scaler: dict[str, float]  # of the loss scaler, by SCALER_FIELDS; empty in other precisions than fp16


class ScoredCheckpoint(NamedTuple):
    """A checkpoint with the held-out loss nearest before it."""

    loss: float
    folder: Path


def checkpoint_dir(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:07d}"


def staging_dir(target: Path) -> Path:
    """Return where the files of a checkpoint are written before it is whole."""
    return target.with_name(f"{target.name}.partial")


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first; not verified."""
    found = [path for path in (run / "checkpoints").glob("step-*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint, by its folder's name."""
    return int(folder.name.removeprefix("step-"))


def rank_file(rank: int, world_size: int) -> str:
    """Return the name of the file with the slices of one rank."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def slice_key(name: str, kind: str, offset: int) -> str:
    """Return what the slice of a parameter that begins `offset` elements from its start is called in a rank's file."""
    return f"{name}|{kind}|{offset}"


def parse_slice_key(key: str) -> tuple[str, str, int]:
    """Return name, kind and offset of a slice.

    Raises
    ------
    ValueError: no name that slice_key() gives.
    """
    found = re.fullmatch(r"(.+)\|(\w+)\|(0|[1-9][0-9]{0,17})", key, re.ASCII)
    if not found or found[2] not in (*KINDS, AVERAGE):
        raise ValueError(f"{key!r} is not the name of a slice")
    return found[1], found[2], int(found[3])


def read_state(folder: Path, manifest: Manifest) -> SavedState:
    """Return how far the run was.

    Raises
    ------
    InputError: not readable, or not true to itself or the manifest.
    """
    fields = read_fields(folder / STATE, NOT_WHOLE)
    state, scaler = RunState.from_json(fields), fields.object("loss_scaler", default={})
    if state.step != manifest.step:
        raise fields.error(f"says step {state.step}, {MANIFEST} {manifest.step}")
    if bool(state.averaged) != bool(manifest.average) or state.averaged > state.step:
        raise fields.error(f"says averaged {state.averaged}, {MANIFEST} average {manifest.average!r}")
    for name in SCALER_FIELDS:
        scaler.number(name, default=0)
    return SavedState(state, scaler.content)


def keep_average(state: RunState, manifest: Manifest, averaging: Averaging) -> RunState:
    """Return the state of a checkpoint under an --average: that of another one, or of none, is not gone on with."""
    return state if manifest.average == str(averaging) else state._replace(averaged=0)


def finalize(staged: Path, target: Path, *, state: RunState, scaler: dict[str, float], manifest: Manifest) -> None:
    """Make a checkpoint of a folder that holds all slices: state.json, the manifest, which is given without files, and
    the folder in its place, which the pointer then names."""
    write_json(staged / STATE, state.to_json() | {"loss_scaler": scaler})
    files = {path.name: FileEntry(path.stat().st_size, sha256_of(path)) for path in sorted(staged.iterdir())}
    replace(manifest, files=files).write(staged)
    sync_tree(staged)
    replace_folder(staged, target)
    write_whole(target.with_name(POINTER), [f"{target.name}\n".encode()])


def best_checkpoint(folders: Sequence[Path]) -> ScoredCheckpoint | None:
    """Return the checkpoint with the lowest held-out loss, of those on the held-out set of the newest of `folders`
    (newest first) that has one: losses on different sets do not compare. None where there was no evaluation."""
    scored: list[ScoredCheckpoint] = []
    held_out_identity = None
    for folder in folders:
        try:
            manifest = Manifest.read(folder)
        except InputError:
            continue  # whoever looks for a checkpoint to resume says what is wrong with it
        if manifest.held_out_loss is not None and (not scored or manifest.held_out_identity == held_out_identity):
            held_out_identity = manifest.held_out_identity
            scored.append(ScoredCheckpoint(manifest.held_out_loss, folder))
    return min(scored, key=lambda one: one.loss, default=None)


def check_identity(
    folder: Path, manifest: Manifest, identity: ModelIdentity, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse a checkpoint of another model, whose parameters have other `shapes`, or of another tokenizer.

    Raises
    ------
    InputError: naming what differs.
    """
    stored = manifest.identity
    if stored.vocab_sha256 != identity.vocab_sha256:
        raise InputError(
            f"{folder} was trained with tokenizer {stored.vocab_sha256[:12]}, the store has "
            f"{identity.vocab_sha256[:12]}; resume with its own store, or choose another --out folder"
        )
    own_shapes = {name: list(shape) for name, shape in shapes.items()}
    if stored.model != identity.model or manifest.parameters != own_shapes:
        different = [key for key in identity.model if stored.model.get(key) != identity.model[key]]
        raise InputError(
            f"{folder} holds another model: {', '.join(different) or 'parameters'} differ; "
            "resume with its own --model (--layers, --hidden, --heads), or choose another --out folder"
        )


def record_under(folder: Path, manifest: Manifest) -> RunRecord:
    """Return the content of config.json under which a checkpoint was written.

    Older versions kept the DeepSpeed JSON in it, and the rest is what its run folder says; what was imported has none.
    """
    if manifest.record is not None:
        return manifest.record
    try:
        content = read_fields(folder.resolve().parent.parent / "config.json", "it is not compared").content
    except InputError as error:
        say(f"warning: {error}")
        content = {}
    content.pop(SEAL, None)  # of the file
    known = {"samples_version": 2} | content if content else {}
    return cast(RunRecord, known | {"deepspeed": manifest.ds_config})


def _loss(fields: Fields) -> float | None:
    loss = fields.get("held_out_loss", None)
    return None if loss is None or loss != loss else fields.number("held_out_loss")  # format 1 may say NaN


def _average(fields: Fields) -> str:
    try:
        averaging = parse_average(text := fields.text("average"))
    except InputError as error:
        raise fields.error(f"says average {fields.get('average', None)!r:.40}") from error
    if not averaging.is_on:
        raise fields.error("says that its average is off")
    return text


def _identity(fields: Fields) -> ModelIdentity:
    return ModelIdentity(
        fields.object("model").content, fields.digest("vocab_sha256"), fields.whole("vocab_size", least=1)
    )


def _shapes(fields: Fields) -> dict[str, list[int]]:
    for name in fields.content:
        shape = fields.list(name)
        sizes = [size for size in shape if type(size) is int and 0 < size < 1 << 40]
        if not shape or len(sizes) != len(shape) or math.prod(sizes) >= 1 << 48:
            raise fields.error(f"says {name} {shape!r:.60}, which is not a shape")
    if not fields.content:
        raise fields.error("names none")
    return fields.content


def _files(fields: Fields) -> dict[str, FileEntry]:
    """Return the entries of exactly the files that so many ranks write: no name leads out of the folder."""
    entries = fields.object("files")
    world_size = fields.whole("world_size", least=1)
    # The number first: world_size may be anything, and so many names are not made in vain.
    if len(entries.content) != world_size + 1 or entries.content.keys() != _names(world_size):
        raise entries.error(f"are not {STATE} and one file for each of {world_size} ranks")
    return {name: FileEntry(entry.whole("bytes"), entry.digest("sha256")) for name, entry in entries.each()}


def _names(world_size: int) -> set[str]:
    return {STATE, *(rank_file(rank, world_size) for rank in range(world_size))}
