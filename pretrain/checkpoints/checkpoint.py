"""Checkpoints: named slices of the fp32 weights and moments, whole or not there, readable without DeepSpeed.

    RUN/checkpoints/latest                 the name of the last folder that was finished, a hint: readers verify
    RUN/checkpoints/step-0001000/
      rank-00000-of-00002.safetensors    "parameter|kind|offset" -> flat fp32; kind: master, exp_avg, exp_avg_sq
      state.json                         counters, position in the data, loss scaler
      manifest.json                      model, tokenizer, sizes and checksums of the other files

Written by saver.py; manifest.py has the manifest and the names; here is how a checkpoint is found, verified, read and
resumed. It holds 12 bytes a parameter at every ZeRO stage (16-bit weights are casts of these) and no pickle. A
slice says where in its parameter it lies, so reading does not need the ranks, stage or groups that wrote it.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from data_prep.cli import InputError, say
from data_prep.fields import Fields, read_fields
from data_prep.files import replace_folder, sha256_of, sync_tree, write_json, write_whole
from pretrain.checkpoints.manifest import (
    KINDS,
    NAME,
    NOT_WHOLE,
    STATE,
    STEP,
    FileEntry,
    Identity,
    Manifest,
    parse_slice_key,
    present,
    step_of,
)
from pretrain.state import SCALER_FIELDS, RunState

POINTER = "latest"


class Piece(NamedTuple):
    """A stored slice of one parameter and kind."""

    offset: int
    length: int
    file: Path
    key: str


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint that is whole: its files are all there, in the right sizes and with the right
    checksums, and what they hold fits together.

    Raises
    ------
    InputError: naming what is damaged.
    """
    manifest = Manifest.read(folder)
    if STEP.fullmatch(folder.name) and step_of(folder) != manifest.step:
        raise InputError(f"{folder} holds step {manifest.step}, by its {NAME}; {NOT_WHOLE}")
    for name, entry in manifest.files.items():
        check_file(folder / name, entry)
    if strangers := [path.name for path in folder.glob("*.safetensors") if path.name not in manifest.files]:
        raise InputError(f"{folder / min(strangers)} is not in {NAME}, which holds another save; remove one of them")
    read_state(folder, manifest)
    _check_shapes(folder, manifest)
    _check_slices(folder, manifest)
    return manifest


def check_file(file: Path, entry: FileEntry) -> None:
    """Compare a file with its entry in the manifest.

    Raises
    ------
    InputError: missing, of another size, or with another checksum.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing")
    try:
        if file.stat().st_size != entry.bytes:
            raise InputError(f"{file} has {file.stat().st_size} bytes, its manifest says {entry.bytes}")
        if sha256_of(file) != entry.sha256:
            raise InputError(f"{file} is damaged: its sha256 is not the manifest's")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error}); {NOT_WHOLE}") from error


def _check_shapes(folder: Path, manifest: Manifest) -> None:
    """The parameters are those of the model that the manifest describes."""
    model = Fields(manifest.identity.model, f"{folder / NAME}: model", NOT_WHOLE)
    model.whole("num_hidden_layers", least=1, most=len(manifest.parameters))  # before so many are built
    try:
        with torch.device("meta"):
            parameters = BertForPreTraining(BertConfig(**model.content)).named_parameters()
        shapes = {name: list(parameter.shape) for name, parameter in parameters}
    except Exception as error:  # a configuration that was edited fails in many ways
        raise model.error(f"is no configuration of a BERT ({' '.join(str(error).split())})") from error
    if shapes != manifest.parameters:
        different = [name for name, shape in shapes.items() if manifest.parameters.get(name) != shape]
        raise model.error(f"has not the parameters that are stored: {', '.join(different[:3]) or 'there are more'}")


def _check_slices(folder: Path, manifest: Manifest) -> None:
    """Every element of every parameter is stored once, and nothing else is."""
    pieces = stored_pieces(folder)
    if left := sorted({name for name, _ in pieces} - manifest.parameters.keys()):
        raise InputError(f"{folder} holds slices of {left[0]}, which the model has not; {NOT_WHOLE}")
    for name, shape in manifest.parameters.items():
        for kind in KINDS:
            stop = 0
            for piece in pieces[name, kind]:
                if piece.offset != stop:
                    what = "a gap" if piece.offset > stop else "slices over each other"
                    raise InputError(f"{folder}: {name}, {kind}, has {what} at element {stop}; {NOT_WHOLE}")
                stop += piece.length
            if stop != math.prod(shape):
                raise InputError(f"{folder} holds {stop} of {math.prod(shape)} elements of {name}, {kind}; {NOT_WHOLE}")


def read_state(folder: Path, manifest: Manifest) -> tuple[RunState, dict[str, Any]]:
    """How far the run was, and its loss scaler, which is empty in other precisions than fp16.

    Raises
    ------
    InputError: not readable, or not true to itself or the manifest.
    """
    fields = read_fields(folder / STATE, NOT_WHOLE)
    state, scaler = RunState.from_json(fields), fields.of("loss_scaler", default={})
    if state.step != manifest.step:
        raise fields.error(f"says step {state.step}, {NAME} {manifest.step}")
    for name in SCALER_FIELDS:
        scaler.number(name, default=0)
    return state, scaler.content


def complete(staged: Path, target: Path, state: RunState, scaler: dict[str, Any], manifest: Manifest) -> None:
    """Make a checkpoint of a folder that holds all slices: state.json, the manifest, which is given without files, and
    the folder in its place, which the pointer then names."""
    write_json(staged / STATE, state.to_json() | {"loss_scaler": scaler})
    files = {path.name: FileEntry(path.stat().st_size, sha256_of(path)) for path in sorted(staged.iterdir())}
    manifest._replace(files=files).write(staged)
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
            manifest = Manifest.read(folder)
        except InputError:
            continue  # whoever looks for a checkpoint to resume says what is wrong with it
        if manifest.held_out_loss is not None and (not found or manifest.held_out == held_out):
            held_out = manifest.held_out
            found.append(Scored(manifest.held_out_loss, folder))
    return min(found, key=lambda scored: scored.loss, default=None)


def stored_pieces(folder: Path) -> dict[tuple[str, str], list[Piece]]:
    """Every stored slice, by parameter and kind, ordered by offset.

    Raises
    ------
    InputError: something in the files that is no slice.
    """
    pieces: dict[tuple[str, str], list[Piece]] = defaultdict(list)
    for path in sorted(folder.glob("rank-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    name, kind, offset = parse_slice_key(key)
                    stored = file.get_slice(key)
                    if stored.get_dtype() != "F32" or len(stored.get_shape()) != 1:
                        raise ValueError(f"{key} is {stored.get_dtype()} {stored.get_shape()}, not flat fp32")
                    pieces[name, kind].append(Piece(offset, stored.get_shape()[0], path, key))
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read ({error}); {NOT_WHOLE}") from error
    for entry in pieces.values():
        entry.sort()
    return pieces


def read_parameter(pieces: list[Piece], out: Tensor, first: int) -> None:
    """Fill `out` [n] with elements first .. first + n of a parameter, reading only the slices that overlap.

    Raises
    ------
    InputError: where the stored slices leave a gap.
    """
    at, stop = first, first + len(out)
    for piece in pieces:
        if piece.offset > at:
            break  # a gap: the next ones begin even later
        high = min(stop, piece.offset + piece.length)
        if at < high:
            with safe_open(piece.file, framework="pt") as file:
                part = file.get_slice(piece.key)[at - piece.offset : high - piece.offset]
            out[at - first : high - first].copy_(part)
            at = high
    if at != stop:
        raise InputError(f"the checkpoint holds {at - first} of {len(out)} elements of a slice; it is not whole")


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


def check_identity(folder: Path, manifest: Manifest, identity: Identity, shapes: Mapping[str, Sequence[int]]) -> None:
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
            "resume with its own --model, or choose another --out folder"
        )
