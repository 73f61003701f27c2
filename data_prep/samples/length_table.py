"""The lengths of an epoch's samples in the order of training, found once a node by all of its ranks together.

    table = LengthTable.of(settings, number, size, make, node)
    table.read(first, stop)     codes of samples: twice the tokens of A and B, and one more where there is a B

Every rank must know the lengths of a whole step, to take its share and to count the rest. Those of 65,536 samples take
15 ms to find: a shuffle is evaluated and an index read here and there. So blocks of them lie in a file of the node, and
each rank finds every eighth one, where 8 ranks are on the node, a little ahead of its need.

    $ZEROBERT_CACHE, or zerobert-UID in the folder for temporary files
      lengths-KEY-000003.bin    epoch 3 of what KEY, a hash of the settings, stands for: a byte for each block, 1 where
                                it is there, then the codes, uint32

Nobody waits: a block that is not there is found by whoever needs it. It is the same whoever finds it.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import cache_folder
from data_prep.rounding import ceil_div

BLOCK_SAMPLES = 1 << 14  # found at once: the shuffle is slow on small calls
CODE = np.dtype("<u4")
KEPT_TABLES = 1  # before the newest one, for whoever lags behind


@dataclass(frozen=True)
class NodeRanks:
    """The ranks of this node."""

    index: int = 0  # of this one
    count: int = 1

    @classmethod
    def here(cls) -> "NodeRanks":
        """Return what the launcher's variables say."""
        return cls(int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_SIZE", "1")))


class LengthTable:
    """Codes of the lengths of an epoch's samples."""

    def __init__(self, path: Path | None, size: int, make: Callable[[int, int], np.ndarray], node: NodeRanks):
        """`make(first, stop)` finds the codes of samples; without a path nothing is shared."""
        self._size, self._make, self._node = size, make, node
        self._blocks = ceil_div(size, BLOCK_SAMPLES)
        self._data_start = self._blocks + -self._blocks % 8
        self._descriptor: int | None = None
        if path is not None:
            with suppress(OSError):  # such as a full disk: each finds what it needs
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.ftruncate(self._descriptor, self._data_start + size * CODE.itemsize)  # zeros that take no room

    @classmethod
    def of(
        cls, settings: tuple[Any, ...], number: int, size: int, make: Callable[[int, int], np.ndarray], node: NodeRanks
    ) -> "LengthTable":
        """Return the table of epoch `number`, whose samples depend on `settings` and `number` alone."""
        folder = cache_folder() if node.count > 1 else None
        if folder is None:
            return cls(None, size, make, node)
        key = hashlib.sha256(repr(settings).encode()).hexdigest()[:20]
        for old in folder.glob(f"lengths-{key}-*.bin"):
            with suppress(ValueError, OSError):
                if int(old.stem.split("-")[2]) < number - KEPT_TABLES:
                    old.unlink()
        return cls(folder / f"lengths-{key}-{number:06d}.bin", size, make, node)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self, first: int, stop: int) -> np.ndarray:
        """Return the codes [stop - first] of samples, and find what the node will need next of this rank."""
        blocks = range(first // BLOCK_SAMPLES, ceil_div(stop, BLOCK_SAMPLES))
        codes = self._stored(first, stop) if all(map(self._is_there, blocks)) else None
        if codes is None:
            codes = np.concatenate([self._block(block) for block in blocks])
            codes = codes[first - blocks.start * BLOCK_SAMPLES : stop - blocks.start * BLOCK_SAMPLES]
        # Rank 2 of 8, which has just read up to block 20: of the next eight, 21 to 28, block 26 is its own.
        self.find(blocks.stop + (self._node.index - blocks.stop) % self._node.count)
        return codes

    def find(self, block: int) -> None:
        """Find a block for all ranks of the node, if it is not there yet."""
        if self._descriptor is not None and block < self._blocks and not self._is_there(block):
            self._found(block)

    def _stored(self, first: int, stop: int) -> np.ndarray | None:
        """Return codes of blocks that are there; None where the file has become shorter."""
        assert self._descriptor is not None
        codes = np.empty(stop - first, CODE)
        size = os.preadv(self._descriptor, [codes.data], self._data_start + first * CODE.itemsize)
        return codes if size == codes.nbytes else None

    def _block(self, block: int) -> np.ndarray:
        codes = self._stored(*self._span(block)) if self._is_there(block) else None
        return self._found(block) if codes is None else codes

    def _found(self, block: int) -> np.ndarray:
        begin, stop = self._span(block)
        codes = self._make(begin, stop).astype(CODE)
        if self._descriptor is not None:
            with suppress(OSError):  # a full disk: then it is not there
                data = codes.tobytes()
                if os.pwrite(self._descriptor, data, self._data_start + begin * CODE.itemsize) == len(data):
                    os.pwrite(self._descriptor, b"\1", block)
        return codes

    def _is_there(self, block: int) -> bool:
        return self._descriptor is not None and os.pread(self._descriptor, 1, block) == b"\1"

    def _span(self, block: int) -> tuple[int, int]:
        return block * BLOCK_SAMPLES, min((block + 1) * BLOCK_SAMPLES, self._size)
