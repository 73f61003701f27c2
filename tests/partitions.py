"""Partitions without an engine: parameters laid end to end in the buffers that a test gives."""

from collections.abc import Sequence

import torch

from pretrain.zero.partition import Partition, Slice


def partition_of(
    buffers: Sequence[torch.Tensor], lengths: Sequence[dict[str, int]], optimizer: torch.optim.Optimizer
) -> Partition:
    """Return a partition of one rank; `lengths` has, of each buffer, the elements of its parameters by name."""
    slices = []
    for index, inside in enumerate(lengths):
        offset = 0
        for name, length in inside.items():
            slices.append(Slice(name, buffer=index, buffer_offset=offset, length=length, param_offset=0))
            offset += length
    return Partition(
        stage=0,
        fp32_buffers=list(buffers),
        slices=slices,
        shapes={slice_.name: torch.Size([slice_.length]) for slice_ in slices},
        params_in_buffer=[list(inside) for inside in lengths],
        optimizer=optimizer,
    )
