"""The slices of parameters in a checkpoint's rank files: written, found, read.

write_slices(path, tensors)                          one rank's file; format.py has the keys
index_slices(folder) -> {(name, kind): slices}       what all files hold, without reading it
read_elements(slices, out, first)                    any part of a parameter, whoever wrote it
list_spans(folder, manifest, ranks) -> rows          what some files hold, in 28 bytes a slice: ranks tell each other
SliceTable(folder, manifest, rows)                   such rows of all files, put in order
read_weights(folder, shapes) -> {name: tensor}       all weights; needs no rank and no DeepSpeed
read_weight(slices, shape) -> tensor                 one of them
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.cli import InputError
from data_prep.files import set_umask_mode
from pretrain.checkpoints.format import (
    AVERAGE,
    KINDS,
    MANIFEST,
    NOT_WHOLE,
    Manifest,
    parse_slice_key,
    rank_file,
    slice_key,
)

ALL_KINDS = (*KINDS, AVERAGE)
# A stored slice among many: its parameter, by index in the manifest, and kind; its elements; the rank that wrote it.
SPAN = np.dtype([("parameter", "<i4"), ("kind", "<i4"), ("offset", "<i8"), ("length", "<i8"), ("file", "<i4")])


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


def read_keys(path: Path) -> Iterator[tuple[str, str, StoredSlice]]:
    """Yield parameter, kind and slice of all that the file of a rank holds, without reading it.

    Raises
    ------
    InputError: something in it that is no slice.
    """
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                name, kind, offset = parse_slice_key(key)
                stored = file.get_slice(key)
                if stored.get_dtype() != "F32" or len(stored.get_shape()) != 1:
                    raise ValueError(f"{key} is {stored.get_dtype()} {stored.get_shape()}, not flat fp32")
                yield name, kind, StoredSlice(offset, stored.get_shape()[0], path, key)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); {NOT_WHOLE}") from error


def index_slices(folder: Path) -> dict[tuple[str, str], list[StoredSlice]]:
    """Return every stored slice, by parameter and kind, ordered by offset.

    Raises
    ------
    InputError: something in the files that is no slice.
    """
    slices: dict[tuple[str, str], list[StoredSlice]] = defaultdict(list)
    for path in sorted(folder.glob("rank-*.safetensors")):
        for name, kind, stored in read_keys(path):
            slices[name, kind].append(stored)
    for entry in slices.values():
        entry.sort()
    return slices


def list_spans(folder: Path, manifest: Manifest, ranks: Iterable[int]) -> np.ndarray:
    """Return [N] SPAN: the slices in the files of some of the ranks that wrote a checkpoint.

    Raises
    ------
    InputError: something in them that is no slice, or one of a parameter or kind that the manifest does not have.
    """
    index_of = {name: index for index, name in enumerate(manifest.parameters)}
    rows = []
    for rank in ranks:
        for name, kind, stored in read_keys(folder / rank_file(rank, manifest.world_size)):
            if name not in index_of:
                raise InputError(f"{folder} holds slices of {name}, which the model has not; {NOT_WHOLE}")
            if kind not in manifest.kinds:
                raise InputError(f"{folder} holds an {kind} that its {MANIFEST} does not name; {NOT_WHOLE}")
            rows.append((index_of[name], ALL_KINDS.index(kind), stored.offset, stored.length, rank))
    return np.array(rows, SPAN)


class SliceTable:
    """All slices of a checkpoint, which may be a million. Rows [N] SPAN lie in the order of their elements."""

    def __init__(self, folder: Path, manifest: Manifest, rows: np.ndarray):
        """rows [N] SPAN, in any order: those of all files."""
        self._folder, self._ranks = folder, manifest.world_size
        self._index_of = {name: index for index, name in enumerate(manifest.parameters)}
        self._rows = rows[np.lexsort((rows["offset"], rows["kind"], rows["parameter"]))]
        # One number for a parameter and a kind, by which both are found.
        self._numbers = self._rows["parameter"].astype(np.int64) * len(ALL_KINDS) + self._rows["kind"]

    def spans(self, name: str, kind: str) -> np.ndarray:
        """Return the rows [n] SPAN of one parameter and kind."""
        number = self._index_of[name] * len(ALL_KINDS) + ALL_KINDS.index(kind)
        first, end = np.searchsorted(self._numbers, [number, number + 1])
        return self._rows[first:end]

    def overlapping(self, name: str, kind: str, first: int, count: int) -> list[StoredSlice]:
        """Return the slices with any of elements [first, first + count) of a parameter."""
        rows = self.spans(name, kind)
        rows = rows[(rows["offset"] < first + count) & (rows["offset"] + rows["length"] > first)]
        return [
            StoredSlice(offset, length, self._folder / rank_file(rank, self._ranks), slice_key(name, kind, offset))
            for _, _, offset, length, rank in rows.tolist()
        ]


class Part(NamedTuple):
    """Elements [begin, end) of a stored slice."""

    stored: StoredSlice
    begin: int
    end: int

    def read(self, file: safe_open, out: Tensor) -> None:
        """Fill `out` [end - begin] from the slice's file."""
        out.copy_(file.get_slice(self.stored.key)[self.begin : self.end])


def parts_of(slices: list[StoredSlice], first: int, count: int) -> list[Part]:
    """Return where elements [first, first + count) of a parameter are stored, one part after another.

    Slices [0, 4) and [4, 9), first 3 and count 4: one element of the first slice, three of the second.

    Raises
    ------
    InputError: where the stored slices leave a gap.
    """
    parts, at, stop = [], first, first + count
    for stored in slices:
        if stored.offset > at:
            break  # a gap: the next ones begin even later
        high = min(stop, stored.offset + stored.length)
        if at < high:
            parts.append(Part(stored, at - stored.offset, high - stored.offset))
            at = high
    if at != stop:
        raise InputError(f"the checkpoint holds {at - first} of {count} elements of a slice; it is not whole")
    return parts


def read_elements(slices: list[StoredSlice], out: Tensor, first: int) -> None:
    """Fill `out` [n] with elements [first, first + n) of a parameter, reading only the slices that overlap.

    Raises
    ------
    InputError: where the stored slices leave a gap.
    """
    at = 0
    for part in parts_of(slices, first, len(out)):
        length = part.end - part.begin
        with safe_open(part.stored.file, framework="pt") as file:
            part.read(file, out[at : at + length])
        at += length


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
