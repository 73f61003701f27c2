"""Whether a checkpoint is whole: its files are what the manifest says, and what they hold fits together.

verify_checkpoint(folder) -> Manifest              InputError names what is damaged
latest_valid_checkpoint(run) -> folder             the newest that verifies; those that do not are named on stderr

Files are read by check_files(); ranks share that among themselves (together.py).
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForPreTraining

from data_prep.cli import InputError, say
from data_prep.fields import Fields
from data_prep.files import sha256_of
from pretrain.checkpoints.format import (
    MANIFEST,
    NOT_WHOLE,
    POINTER,
    STATE,
    STEP,
    FileEntry,
    Manifest,
    list_checkpoints,
    rank_file,
    read_state,
    step_of,
)
from pretrain.checkpoints.slices import SliceTable, list_spans

# Compares all files of a checkpoint with its manifest, and returns the rows of a SliceTable.
CheckFiles = Callable[[Path, Manifest], np.ndarray]


def check_files(folder: Path, manifest: Manifest, ranks: Iterable[int] | None = None) -> np.ndarray:
    """Compare files with their entries in the manifest: those of the ranks that wrote it, or of some of them;
    state.json goes with rank 0's. Returns [N] SPAN, the slices that they hold.

    Raises
    ------
    InputError: naming what is damaged.
    """
    ranks = range(manifest.world_size) if ranks is None else ranks
    for rank in ranks:
        for name in [rank_file(rank, manifest.world_size), *([STATE] if rank == 0 else [])]:
            check_file(folder / name, manifest.files[name])
    return list_spans(folder, manifest, ranks)


def verify_checkpoint(folder: Path, check: CheckFiles = check_files) -> Manifest:
    """Return the manifest of a checkpoint that is whole.

    Raises
    ------
    InputError: naming what is damaged.
    """
    manifest = Manifest.read(folder)
    if STEP.fullmatch(folder.name) and step_of(folder) != manifest.step:
        raise InputError(f"{folder} holds step {manifest.step}, by its {MANIFEST}; {NOT_WHOLE}")
    rows = check(folder, manifest)
    if strangers := [path.name for path in folder.glob("*.safetensors") if path.name not in manifest.files]:
        raise InputError(
            f"{folder / min(strangers)} is not in {MANIFEST}, which holds another save; remove one of them"
        )
    read_state(folder, manifest)
    _check_shapes(folder, manifest)
    _check_slices(folder, manifest, SliceTable(folder, manifest, rows))
    return manifest


def latest_valid_checkpoint(run: Path, check: CheckFiles = check_files) -> Path | None:
    """Return the newest checkpoint of a run that verifies, saying which were damaged or lost; None for a run without
    any.

    Raises
    ------
    InputError: the run has, or had, checkpoints and none of them verifies.
    """
    folders = list_checkpoints(run)
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
            verify_checkpoint(folder, check)
        except InputError as error:
            say(f"passing over {folder}: {error}")
        else:
            return folder
    if folders:
        raise InputError(
            f"{run} holds {len(folders)} checkpoints and none is whole; start anew in another --out folder"
        )
    return None


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
    """Compare the parameters with those of the model that the manifest describes."""
    model = Fields(manifest.identity.model, f"{folder / MANIFEST}: model", NOT_WHOLE)
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


def _check_slices(folder: Path, manifest: Manifest, table: SliceTable) -> None:
    """Check that every element of every parameter is stored once."""
    for name, shape in manifest.parameters.items():
        for kind in manifest.kinds:
            # Sorted by offset, each must begin where the one before ends.
            spans = table.spans(name, kind)
            ends = np.concatenate(([0], spans["offset"] + spans["length"]))
            wrong = np.flatnonzero(spans["offset"] != ends[:-1])
            if len(wrong):
                offset, end = int(spans["offset"][wrong[0]]), int(ends[wrong[0]])
                what = "a gap" if offset > end else "slices over each other"
                raise InputError(f"{folder}: {name}, {kind}, has {what} at element {end}; {NOT_WHOLE}")
            if ends[-1] != math.prod(shape):
                raise InputError(
                    f"{folder} holds {ends[-1]} of {math.prod(shape)} elements of {name}, {kind}; {NOT_WHOLE}"
                )
