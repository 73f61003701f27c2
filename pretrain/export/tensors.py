"""Weights that are read one at a time, and written one at a time: a conversion holds one tensor, not the model twice.

weights = StoredWeights({"bert.pooler.dense.bias": lambda: ...})     a mapping; each look reads anew
write_safetensors(path, shapes, dtype, read)
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors calls them


class StoredWeights(Mapping[str, Tensor]):
    """Weights by name, each read when it is asked for; nothing is kept."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]):
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def write_safetensors(
    path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, read: Callable[[str], Tensor]
) -> None:
    """Write tensors of one type in the order of their names, as safetensors does it, holding one of them at a time.

    The file: 8 bytes, the length of the header; the header, JSON, filled up with spaces to a multiple of 8; the data.

    Raises
    ------
    OSError: from the disk.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    names, offset = sorted(shapes), 0
    for name in names:
        end = offset + shapes[name].numel() * dtype.itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": [*shapes[name]], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        _write(path, file, len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = read(name).to(dtype).contiguous()
            assert tensor.shape == shapes[name], name
            _write(path, file, tensor.view(-1).view(torch.uint8).numpy().data)


def _write(path: Path, file: BinaryIO, data: bytes | memoryview) -> None:
    try:
        file.write(data)
        file.flush()  # a small tensor would fail at the end, when nobody knows which file it was
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
