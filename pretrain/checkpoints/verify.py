"""Whether a checkpoint is whole: its files are what the manifest says, and what they hold fits together.

verify_checkpoint(folder) -> Manifest              InputError names what is damaged
latest_valid_checkpoint(run) -> folder             the newest that verifies; those that do not are named on stderr
"""

import math
from pathlib import Path

import torch
from transformers import BertConfig, BertForPreTraining

from data_prep.cli import InputError, say
from data_prep.fields import Fields
from data_prep.files import sha256_of
from pretrain.checkpoints.format import (
    AVERAGE,
    MANIFEST,
    NOT_WHOLE,
    POINTER,
    STEP,
    FileEntry,
    Manifest,
    list_checkpoints,
    read_state,
    step_of,
)
from pretrain.checkpoints.slices import index_slices


def verify_checkpoint(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint that is whole.

    Raises
    ------
    InputError: naming what is damaged.
    """
    manifest = Manifest.read(folder)
    if STEP.fullmatch(folder.name) and step_of(folder) != manifest.step:
        raise InputError(f"{folder} holds step {manifest.step}, by its {MANIFEST}; {NOT_WHOLE}")
    for name, entry in manifest.files.items():
        check_file(folder / name, entry)
    if strangers := [path.name for path in folder.glob("*.safetensors") if path.name not in manifest.files]:
        raise InputError(
            f"{folder / min(strangers)} is not in {MANIFEST}, which holds another save; remove one of them"
        )
    read_state(folder, manifest)
    _check_shapes(folder, manifest)
    _check_slices(folder, manifest)
    return manifest


def latest_valid_checkpoint(run: Path) -> Path | None:
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
            verify_checkpoint(folder)
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


def _check_slices(folder: Path, manifest: Manifest) -> None:
    """Check that every element of every parameter is stored once, and nothing else is."""
    slices = index_slices(folder)
    if strangers := sorted({name for name, _ in slices} - manifest.parameters.keys()):
        raise InputError(f"{folder} holds slices of {strangers[0]}, which the model has not; {NOT_WHOLE}")
    if not manifest.average and any(kind == AVERAGE for _, kind in slices):
        raise InputError(f"{folder} holds an average that its {MANIFEST} does not name; {NOT_WHOLE}")
    for name, shape in manifest.parameters.items():
        for kind in manifest.kinds:
            # Sorted by offset, each must begin where the one before ends.
            end = 0
            for stored in slices[name, kind]:
                if stored.offset != end:
                    what = "a gap" if stored.offset > end else "slices over each other"
                    raise InputError(f"{folder}: {name}, {kind}, has {what} at element {end}; {NOT_WHOLE}")
                end += stored.length
            if end != math.prod(shape):
                raise InputError(f"{folder} holds {end} of {math.prod(shape)} elements of {name}, {kind}; {NOT_WHOLE}")
