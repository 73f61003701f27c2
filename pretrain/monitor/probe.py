"""A few samples through the model on this machine, for the plan of a dry run.

    probe(model, mixture, masking, ...)       seconds of a micro-batch, and the bytes that autograd keeps
    probe_optimizer(model, ds_config)         seconds of a step

Bare torch, in one process and without DeepSpeed: on a GPU in the run's precision, on a CPU in fp32, where 16 bit has no
kernels worth timing. The weights are of no use afterwards.
"""

import os
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import BertForPreTraining

from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from pretrain.data import collate
from pretrain.model import Batch, PretrainingModule
from pretrain.monitor.memory import peak, start_peak
from pretrain.settings.ds_config import DsConfig
from pretrain.zero.engine import make_optimizer
from pretrain.zero.lamb import Lamb
from pretrain.zero.partition import unsharded_partition

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_FLOPS = 1e11  # of a probe on a CPU: a second or two
FLOPS_PER_WEIGHT = 6  # and token: forward 2, backward 4
ONCE_SECONDS = 1.0  # a probe that takes longer is not repeated


class Probe(NamedTuple):
    """One micro-batch, or the part of one that takes seconds only."""

    tokens: int
    seconds: float  # forward and backward
    kept_bytes: int  # for the backward pass: activations, logits
    peak_bytes: int  # in use at most above the weights: activations, gradients and workspace; as the system counts
    element_bytes: int  # of the precision that it ran in


def move_to_device(model: BertForPreTraining, ds_config: DsConfig) -> torch.device:
    """Move the model to where, and into the precision in which, it is probed. Return where."""
    if not torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    model.to(device).to(DTYPES[ds_config.precision])  # type: ignore[arg-type]
    return device


def probe(
    model: BertForPreTraining, mixture: Mixture, masking: Masking, *, micro_batch: int, checkpoint_activations: bool
) -> Probe:
    """Run forward and backward of up to a micro-batch; a short one twice, as the first one finds its memory."""
    weight = next(model.parameters())
    # On a CPU only as many samples of the micro-batch as take seconds.
    samples = micro_batch
    if weight.device.type == "cpu":
        sample_flops = FLOPS_PER_WEIGHT * model.num_parameters() * mixture.seq_len
        samples = max(1, min(micro_batch, int(CPU_FLOPS / sample_flops)))
    epoch = mixture.epoch(0)
    chosen = epoch.samples_at(np.arange(min(samples, epoch.size)))
    batch = collate(mixture.stores, chosen, masking).to(weight.device)
    module = PretrainingModule(model, checkpoint_activations).train()
    # What autograd keeps. Checkpointed layers keep their inputs, which hooks do not see; and while one of them runs
    # again, what that one keeps of its own.
    kept = kept_bytes(module, batch)
    if checkpoint_activations:
        config = model.config
        plain = kept_bytes(PretrainingModule(model).train(), batch)
        inputs = config.num_hidden_layers * len(batch.input_ids) * config.hidden_size * weight.element_size()
        kept += inputs + (plain - kept) // config.num_hidden_layers
    # Time, and memory at most.
    model.zero_grad()
    before = start_peak(weight.device)
    seconds = _timed(module, batch)
    if seconds < ONCE_SECONDS:
        seconds = min(seconds, _timed(module, batch))
    return Probe(len(batch.input_ids), seconds, kept, peak(weight.device) - before, weight.element_size())


def kept_bytes(module: PretrainingModule, batch: Batch) -> int:
    """Return what a forward pass keeps for the backward pass, weights and the batch not counted."""
    given = {tensor.untyped_storage().data_ptr() for tensor in module.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = module(batch)
    total = sum(found.values())
    del losses
    return total


def _timed(module: PretrainingModule, batch: Batch) -> float:
    start = time.perf_counter()
    losses = module(batch)
    (losses.mlm + losses.nsp).backward()
    if batch.input_ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def probe_optimizer(model: BertForPreTraining, ds_config: DsConfig) -> float | None:
    """Return the seconds of an optimizer step over all parameters, after probe(); None where moments would not fit into
    memory."""
    weight = next(model.parameters())
    if weight.device.type == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 12 * model.num_parameters() > free:
            return None
    optimizer = make_optimizer(model, ds_config.content["optimizer"])
    if isinstance(optimizer, Lamb):
        optimizer.set_partition(unsharded_partition(model, optimizer))
    seconds = []
    for _ in range(2):  # the first makes the moments
        start = time.perf_counter()
        optimizer.step()
        if weight.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[-1]
