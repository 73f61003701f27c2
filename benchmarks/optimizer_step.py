"""The time of one optimizer step: LAMB over the partition map beside torch's fused AdamW, on the same parameters.

    python benchmarks/optimizer_step.py [--model bert-small] [--rounds 20]

Both step in turn in one process, unsharded, on the CPU or the GPU that torch finds; the median of rounds counts. One
JSON line; "ratio" is LAMB's time over AdamW's.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.machine import machine
from data_prep.cli import parse
from pretrain.config import Preset
from pretrain.lamb import Lamb
from pretrain.model import build, parameter_groups
from pretrain.partition import Partition, Slice


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured."""

    model: Preset = "bert-medium"
    """whose parameters"""
    vocab_size: int = 30_522
    """entries of its vocabulary"""
    rounds: int = 20
    """steps of each optimizer"""
    flat: bool = True
    """one flat tensor a group, as ZeRO lays them, for both; else a tensor a parameter"""


def main(config: BenchmarkConfig) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adamw, lamb = (optimizer_of(kind, config, device) for kind in ("adamw", "lamb"))
    times: dict[str, list[float]] = {"adamw": [], "lamb": []}
    for _ in range(config.rounds + 2):
        for name, (optimizer, tensors) in (("adamw", adamw), ("lamb", lamb)):
            for tensor in tensors:
                tensor.grad = torch.randn_like(tensor)
            times[name].append(timed(optimizer, device))
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    result = {
        "name": "optimizer_step",
        "figures": {f"{name}_ms": round(1e3 * median, 2) for name, median in medians.items()},
        "ratio": round(medians["lamb"] / medians["adamw"], 3),
        "parameters": sum(tensor.numel() for tensor in adamw[1]),
        "settings": {"model": config.model, "flat": config.flat, "threads": torch.get_num_threads()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    print(json.dumps(result | machine("torch")))


def optimizer_of(
    kind: str, config: BenchmarkConfig, device: torch.device
) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    """An optimizer over a model's parameters, and the tensors that it updates."""
    model = build(config.model, None, config.vocab_size, dropout=0.0, seed=0, needs_nsp=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    slices: list[Slice] = []
    masters: list[torch.Tensor] = []
    members: list[list[str]] = []
    groups: list[dict] = []
    for group in parameter_groups(model, 0.01):
        buckets = [group["params"]] if config.flat else [[parameter] for parameter in group["params"]]
        tensors = []
        for bucket in buckets:
            start = 0
            for parameter in bucket:
                slices.append(Slice(names[parameter], len(masters), start, parameter.numel(), 0))
                start += parameter.numel()
            flat = torch.cat([parameter.detach().flatten() for parameter in bucket]).to(device)
            tensors.append(torch.nn.Parameter(flat))
            masters.append(tensors[-1])
            members.append([names[parameter] for parameter in bucket])
        groups.append({"params": tensors, "weight_decay": group["weight_decay"]})
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=1e-4, fused=True), list(masters)
    optimizer = Lamb(groups, lr=1e-4)
    shapes = {name: parameter.shape for parameter, name in names.items()}
    optimizer.bind(Partition(0, list(masters), slices, shapes, members, optimizer, None))
    return optimizer, list(masters)


def timed(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(parse(BenchmarkConfig, __doc__))
