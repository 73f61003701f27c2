"""Checkpoints of google-research/bert, read without TensorFlow.

    FOLDER/bert_config.json  vocab.txt  bert_model.ckpt.index  bert_model.ckpt.data-00000-of-00001

    .index      a table of LevelDB's kind: key -> BundleEntryProto (type, shape, file, offset, size, checksum); the key
                "" has a BundleHeaderProto
    .data-*     the numbers of all tensors, end to end

    table       blocks, then 48 bytes that say where the index of the blocks lies
    block       entries, each with what its key has in common with the one before; then where keys are whole again;
                behind it a byte, 0 where it is not compressed, and a checksum

A dense layer's `kernel` is [in, out], the transpose of a torch weight. Moments of Adam are passed over; other names are
refused by sources.py, where they have no place. Numbers are mapped into memory and their checksums compared.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep.cli import InputError

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48  # two places in at most 40 bytes, and the magic number
TRAILER = 5  # of a block: how it is compressed, and its checksum
TYPES = {1: np.float32, 2: np.float64, 19: np.float16, 14: np.uint16}  # DataType; the last is bfloat16, for torch
BFLOAT16 = 14
_MOST_BYTES = 1 << 28  # of an index; that of BERT-large has 20 kB
# What a trainer keeps beside the weights.
PASSED_OVER = re.compile(r"global_step|.*/(adam_[mv]|Adam(_\d+)?|AdamWeightDecayOptimizer(_\d+)?|LAMB(_\d+)?)|.*_power")
ENDS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "output_weights": "weight", "output_bias": "bias"}


class Entry(NamedTuple):
    """Where a tensor lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int  # masked


def read(prefix: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint under transformers' names; `prefix` is the path without `.index`.

    Raises
    ------
    InputError: no checkpoint of TensorFlow's second format, damaged, of another byte order or of other code.
    """
    entries, shards = read_index(Path(f"{prefix}.index"))
    files = [Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}") for shard in range(shards)]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(f"{missing[0]} is missing, of {shards} files of the checkpoint; copy all of it again")
    maps = [np.memmap(file, np.uint8, "c") if file.stat().st_size else np.zeros(0, np.uint8) for file in files]
    if any(name.endswith("/.ATTRIBUTES/VARIABLE_VALUE") for name in entries):
        raise InputError(
            f"{prefix} holds the objects of a program of TensorFlow 2, whose names say nothing of BERT; only "
            "checkpoints of google-research/bert are read (names such as bert/encoder/layer_0/output/dense/kernel)"
        )
    weights: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if PASSED_OVER.fullmatch(name):
            continue
        inner = name_of(name)
        if inner in weights:
            raise InputError(f"{prefix} holds two tensors for {inner}; which one is meant cannot be told")
        tensor = _tensor(prefix, name, entry, maps)
        weights[inner] = tensor.T.contiguous() if name.endswith("/kernel") else tensor
    return weights


def name_of(name: str) -> str:
    """Return transformers' name of a variable: bert/encoder/layer_3/output/dense/kernel ->
    bert.encoder.layer.3.output.dense.weight."""
    if name in ("output_weights", "output_bias"):  # of a fine-tuned classifier, at the top
        return f"classifier.{ENDS[name]}"
    *parts, end = re.sub(r"(^|/)layer_(\d+)(?=/)", r"\1layer/\2", name).split("/")
    if parts[:2] == ["cls", "squad"]:
        parts = ["qa_outputs"]
    if parts == ["cls", "predictions"] and end == "output_bias":
        return "cls.predictions.bias"
    if end.endswith("_embeddings"):
        parts, end = [*parts, end], "weight"
    return ".".join([*parts, ENDS.get(end, end)])


def _tensor(prefix: Path, name: str, entry: Entry, maps: list[np.ndarray]) -> Tensor:
    """Return a tensor, mapped from its file."""
    if entry.dtype not in TYPES:
        raise InputError(f"{prefix}: {name} is of TensorFlow's type {entry.dtype}; weights are floating-point numbers")
    dtype = np.dtype(TYPES[entry.dtype])
    if entry.shard >= len(maps) or entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise InputError(f"{prefix}.index is damaged: {name} has {entry.size} bytes for {list(entry.shape)}")
    raw = maps[entry.shard][entry.offset : entry.offset + entry.size]
    if len(raw) < entry.size:
        raise InputError(f"{prefix}: the data of {name} is cut short; copy the whole checkpoint again")
    if _masked_crc(raw.tobytes()) != entry.checksum:
        raise InputError(f"{prefix} is damaged: the checksum of {name} does not fit; copy the whole checkpoint again")
    array = raw.view(dtype.newbyteorder("<")).reshape(entry.shape)
    values = torch.from_numpy(array if array.flags.aligned else array.copy())
    return values.view(torch.bfloat16) if entry.dtype == BFLOAT16 else values


def read_index(path: Path) -> tuple[dict[str, Entry], int]:
    """Return where each tensor of a checkpoint lies, and how many data files it has.

    Raises
    ------
    InputError: another format, damaged.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than an index of tensors can be; is it one of TensorFlow's?")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if raw[-8:] != MAGIC or len(raw) < FOOTER:
        raise InputError(f"{path} is no whole index of a TensorFlow checkpoint; copy it again")
    try:
        _, at = _handle(raw, len(raw) - FOOTER)
        (offset, size), _ = _handle(raw, at)
        entries, shards = {}, 0
        for _, handle in _entries(_block(path, raw, offset, size)):
            (offset, size), _ = _handle(handle, 0)
            for key, value in _entries(_block(path, raw, offset, size)):
                if key:
                    entries[key.decode()] = _entry(path, key.decode(), value)
                else:
                    shards = _shards(path, value)
    except (IndexError, ValueError, TypeError, UnicodeDecodeError) as error:  # numbers that lead outside
        raise InputError(f"{path} is damaged ({error}); copy it again") from error
    if not shards or not entries:
        raise InputError(f"{path} names no tensors: it is no checkpoint of TensorFlow's second format")
    return entries, shards


def _block(path: Path, raw: bytes, offset: int, size: int) -> bytes:
    """Return a block of the table, its checksum compared."""
    block, trailer = raw[offset : offset + size], raw[offset + size : offset + size + TRAILER]
    if len(trailer) < TRAILER or _masked_crc(block + trailer[:1]) != int.from_bytes(trailer[1:], "little"):
        raise InputError(f"{path} is damaged: the checksum of a block does not fit; copy it again")
    if trailer[0]:
        raise InputError(f"{path} is compressed ({trailer[0]}), which TensorFlow's own checkpoints are not")
    return block


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block."""
    restarts = int.from_bytes(block[-4:], "little")
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise ValueError("an entry leads outside its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _handle(raw: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return a place, (offset, size), and what follows it."""
    offset, at = _varint(raw, at)
    size, at = _varint(raw, at)
    return (offset, size), at


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number, seven bits a byte, the lowest first, and what follows it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = raw[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message by their numbers: numbers, and the bytes of what is longer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        length, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + length > len(message):
            raise ValueError("a field leads outside its message")
        value = message[at : at + length]
        yield tag >> 3, value if kind == 2 else int.from_bytes(value, "little")
        at += length


def _shards(path: Path, message: bytes) -> int:
    """Return the number of data files that a BundleHeaderProto says."""
    header = dict(_fields(message))
    if header.get(2):
        raise InputError(f"{path} was written on a big-endian machine; only little-endian checkpoints are read")
    shards = header.get(1, 0)
    if not isinstance(shards, int) or not 0 < shards < 100_000:
        raise ValueError(f"{shards!r} data files")
    return shards


def _entry(path: Path, name: str, message: bytes) -> Entry:
    """Return what a BundleEntryProto says."""
    numbers, shape = {}, []
    for field, value in _fields(message):
        if field == 7:
            raise InputError(f"{path}: {name} is in slices; save the model again as a whole")
        if field == 2 and isinstance(value, bytes):
            # TensorShapeProto: a dimension is a message, whose first field is its size, left out where it is 0.
            dimensions = [inner for key, inner in _fields(value) if key == 2 and isinstance(inner, bytes)]
            shape = [int(dict(_fields(dimension)).get(1, 0)) for dimension in dimensions]
        elif isinstance(value, int):
            numbers[field] = value
    return Entry(numbers.get(1, 0), tuple(shape), *(numbers.get(field, 0) for field in (3, 4, 5, 6)))


def _masked_crc(raw: bytes) -> int:
    """Return the crc32c of bytes, turned and moved as LevelDB does, so that a checksum of checksums is none."""
    import google_crc32c  # of the extra [tensorflow]; origin.py has looked for it

    crc = google_crc32c.value(raw)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
