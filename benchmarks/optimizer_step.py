"""The time of one optimizer step: LAMB over the partition map beside torch's fused AdamW, on the same parameters.

    python benchmarks/optimizer_step.py [--model bert-small] [--rounds 20] [--accumulation 64]

Both step in turn in one process, unsharded, on the CPU or the GPU that torch finds; the median of rounds counts. One
JSON line; "ratio" is LAMB's time over AdamW's, "lamb_share" LAMB's part of a whole training step of `accumulation`
micro-batches, of which the forward and backward pass of one is measured (fp32 on a CPU, bf16 on a GPU).
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import torch

from benchmarks import step_time
from benchmarks.machine import machine
from data_prep.cli import parse
from pretrain.model import PretrainingModule, build_model, parameter_groups
from pretrain.settings.limits import Preset
from pretrain.zero.lamb import Lamb
from pretrain.zero.partition import Partition, Slice


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
    accumulation: int = 64
    """micro-batches of the training step that the optimizer's share is of; 0: do not measure it"""
    micro_batch: int = 32
    """samples of 128 tokens in each"""


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
    figures = {f"{name}_ms": round(1e3 * median, 2) for name, median in medians.items()}
    if config.accumulation:
        micro_batch = micro_batch_time(config)
        figures["micro_batch_ms"] = round(1e3 * micro_batch, 1)
        step = config.accumulation * micro_batch + medians["lamb"]
        figures["lamb_share"] = round(medians["lamb"] / step, 5)
    result = {
        "name": "optimizer_step",
        "figures": figures,
        "ratio": round(medians["lamb"] / medians["adamw"], 3),
        "parameters": sum(tensor.numel() for tensor in adamw[1]),
        "settings": {**config.__dict__, "threads": torch.get_num_threads()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    print(json.dumps(result | machine("torch")))


def optimizer_of(
    kind: str, config: BenchmarkConfig, device: torch.device
) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    """An optimizer over a model's parameters, and the tensors that it updates."""
    model = build_model(preset=config.model, vocab_size=config.vocab_size, dropout=0.0, seed=0, needs_nsp=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    slices: list[Slice] = []
    buffers: list[torch.Tensor] = []
    params_in_buffer: list[list[str]] = []
    groups: list[dict] = []
    for group in parameter_groups(model, 0.01):
        buckets = [group["params"]] if config.flat else [[parameter] for parameter in group["params"]]
        tensors = []
        for bucket in buckets:
            offset = 0
            for parameter in bucket:
                slices.append(
                    Slice(
                        names[parameter],
                        buffer=len(buffers),
                        buffer_offset=offset,
                        length=parameter.numel(),
                        param_offset=0,
                    )
                )
                offset += parameter.numel()
            flat = torch.cat([parameter.detach().flatten() for parameter in bucket]).to(device)
            tensors.append(torch.nn.Parameter(flat))
            buffers.append(tensors[-1])
            params_in_buffer.append([names[parameter] for parameter in bucket])
        groups.append({"params": tensors, "weight_decay": group["weight_decay"]})
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=1e-4, fused=True), buffers
    optimizer = Lamb(groups, lr=1e-4)
    partition = Partition(
        stage=0,
        fp32_buffers=buffers,
        slices=slices,
        shapes={name: parameter.shape for parameter, name in names.items()},
        params_in_buffer=params_in_buffer,
        optimizer=optimizer,
    )
    optimizer.set_partition(partition)
    return optimizer, buffers


def micro_batch_time(config: BenchmarkConfig) -> float:
    """Seconds of the forward and backward pass of one micro-batch; the best of three."""
    bert = build_model(preset=config.model, vocab_size=config.vocab_size, dropout=0.1, seed=0, needs_nsp=True).config
    module = PretrainingModule(step_time.new_model(bert)).train()
    sample = step_time.Sample(
        step_time.BenchmarkConfig(vocab_size=config.vocab_size, batch=config.micro_batch), number=0
    )
    seconds = []
    for _ in range(3):
        step_time.synchronize()
        start = time.perf_counter()
        losses = module(sample.ours.to(step_time.DEVICE))
        (losses.mlm / sample.masked + losses.nsp / sample.counts.pairs).backward()
        step_time.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
