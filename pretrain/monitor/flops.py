"""Floating-point operations: what a step takes, and what a device can do at most.

step_flops(config, counts)      of a step on real tokens
peak_flops(device)              per second: a data sheet's for known GPUs, else measured here
"""

import time

import torch
from transformers import BertConfig

from pretrain.advice.machine import sheet_of
from pretrain.state import StepCounts

GEMM_SECONDS = 0.25
GEMM_SIZES = {"cuda": (8192,), "cpu": (384, 1024)}  # a small product fits between the turns of other programs


def step_flops(config: BertConfig, counts: StepCounts) -> float:
    """Return the floating-point operations of a step's forward and backward pass on real tokens."""
    hidden, inner = config.hidden_size, config.intermediate_size
    encoder = config.num_hidden_layers * (counts.tokens * (8 * hidden**2 + 4 * hidden * inner))
    attention = config.num_hidden_layers * 4 * hidden * counts.attended
    heads = counts.masked * (2 * hidden**2 + 2 * hidden * config.vocab_size) + counts.pairs * 2 * hidden**2
    return 3.0 * (encoder + attention + heads)


def peak_flops(device: torch.device) -> float:
    """Return the peak FLOP/s of this rank's device: known for GPUs, else measured here in a quarter of a second."""
    if device.type == "cuda" and (sheet := sheet_of(torch.cuda.get_device_name(device))):
        return sheet.peak
    return gemm_peak(device, torch.float32)


def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a square matrix product on this device: the best in a quarter of a second."""
    sizes = GEMM_SIZES[device.type]
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size, dtype=dtype, device=device)
        until = time.perf_counter() + GEMM_SECONDS / len(sizes)
        while time.perf_counter() < until:
            start = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
