"""The slices of parameters in a checkpoint's rank files: written, found, read.

write_slices(path, tensors)                          one rank's file; format.py has the keys
index_slices(folder) -> {(name, kind): slices}       what all files hold, without reading it
read_elements(slices, out, first)                    any part of a parameter, whoever wrote it
read_weights(folder, shapes) -> {name: tensor}       all weights; needs no rank and no DeepSpeed
read_weight(slices, shape) -> tensor                 one of them
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.cli import InputError
from data_prep.files import set_umask_mode
from pretrain.checkpoints.format import NOT_WHOLE, parse_slice_key


class StoredSlice(NamedTuple):
    """A stored slice of one parameter and kind: `length` elements from `offset` on."""

    offset: int
    length: int
    file: Path
    key: str


def write_slices(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the file of one rank and wait until it is on the disk.

    Raises
    ------
    OSError: it cannot be written.
    """
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(f"{path}: {error}") from error
    set_umask_mode(path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def index_slices(folder: Path) -> dict[tuple[str, str], list[StoredSlice]]:
    """Return every stored slice, by parameter and kind, ordered by offset.

    Raises
    ------
    InputError: something in the files that is no slice.
    """
    slices: dict[tuple[str, str], list[StoredSlice]] = defaultdict(list)
    for path in sorted(folder.glob("rank-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    name, kind, offset = parse_slice_key(key)
                    stored = file.get_slice(key)
                    if stored.get_dtype() != "F32" or len(stored.get_shape()) != 1:
                        raise ValueError(f"{key} is {stored.get_dtype()} {stored.get_shape()}, not flat fp32")
                    slices[name, kind].append(StoredSlice(offset, stored.get_shape()[0], path, key))
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read ({error}); {NOT_WHOLE}") from error
    for entry in slices.values():
        entry.sort()
    return slices


def read_elements(slices: list[StoredSlice], out: Tensor, first: int) -> None:
    """Fill `out` [n] with elements [first, first + n) of a parameter, reading only the slices that overlap.

    Slices [0, 4) and [4, 9), first 3 and n 4: one element of the first slice, three of the second.

    Raises
    ------
    InputError: where the stored slices leave a gap.
    """
    at, stop = first, first + len(out)
    for stored in slices:
        if stored.offset > at:
            break  # a gap: the next ones begin even later
        high = min(stop, stored.offset + stored.length)
        if at < high:
            with safe_open(stored.file, framework="pt") as file:
                part = file.get_slice(stored.key)[at - stored.offset : high - stored.offset]
            out[at - first : high - first].copy_(part)
            at = high
    if at != stop:
        raise InputError(f"the checkpoint holds {at - first} of {len(out)} elements of a slice; it is not whole")


def read_weights(folder: Path, shapes: dict[str, list[int]], kind: str = "master") -> dict[str, Tensor]:
    """Return the fp32 weights of a checkpoint, or of kind "average" their average, whole, by name.

    Raises
    ------
    InputError: where slices are missing.
    """
    slices = index_slices(folder)
    return {name: read_weight(slices[name, kind], shape) for name, shape in shapes.items()}


def read_weight(slices: list[StoredSlice], shape: list[int]) -> Tensor:
    """Return one parameter, whole, from its slices.

    Raises
    ------
    InputError: where slices are missing.
    """
    weight = torch.empty(shape)
    read_elements(slices, weight.view(-1), 0)
    return weight
