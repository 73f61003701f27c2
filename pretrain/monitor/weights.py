"""How the weights of each layer are spread, for TensorBoard's histograms: sampled, over all ranks.

weight_histograms(partition) -> {"weights/layer.0": Histogram}      collective
"""

import re

import torch
import torch.distributed as dist

from pretrain.monitor.sinks import Histogram
from pretrain.zero.partition import Partition

SAMPLED = 1 << 14  # elements of a slice, at even distances
# Upper ends of the bins: magnitudes from .0001 to 10, each a quarter above the one before, on both sides of 0.
_MAGNITUDES = [1e-4 * 1.25**power for power in range(53)]
LIMITS = [-value for value in reversed(_MAGNITUDES)] + [0.0, *_MAGNITUDES]


@torch.no_grad()
def weight_histograms(partition: Partition) -> dict[str, Histogram]:
    """Return the spread of the master weights of each layer. Collective."""
    groups = list(dict.fromkeys(map(layer_of, partition.shapes)))
    device = partition.fp32_buffers[0].device
    limits = torch.tensor(LIMITS, device=device)
    found = torch.zeros(len(groups), len(LIMITS) + 2, dtype=torch.float64, device=device)  # counts, sum, squares
    for slice_ in partition.slices:
        weights = partition.view(slice_, "master")
        sample = weights[:: max(1, len(weights) // SAMPLED)].float()
        sample = sample.clamp(LIMITS[0], LIMITS[-1])
        row = found[groups.index(layer_of(slice_.name))]
        row[:-2] += torch.bincount(torch.bucketize(sample, limits), minlength=len(LIMITS)).double()
        row[-2] += sample.double().sum()
        row[-1] += sample.double().square().sum()
    dist.all_reduce(found)
    return {
        f"weights/{group}": Histogram(LIMITS, [int(count) for count in row[:-2]], row[-2], row[-1])
        for group, row in zip(groups, found.tolist(), strict=True)
    }


def layer_of(name: str) -> str:
    """Return what a parameter belongs to: layer.3, embeddings or heads."""
    match = re.search(r"layer\.\d+|embeddings", name)
    return match[0] if match else "heads"
