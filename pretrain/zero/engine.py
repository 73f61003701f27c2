"""DeepSpeed's engine around the model: ranks, optimizer, engine, and the step.

    join_ranks()  ->  start_engine(model, settings)  ->  backward(engine, loss, is_last), ...  ->  apply_step(engine)

With partition.py the only file that knows DeepSpeed.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler
from transformers import BertForPreTraining
from transformers.utils import logging as transformers_logging

from data_prep.cli import InputError
from pretrain.model import PretrainingModule, parameter_groups
from pretrain.settings.ds_config import precision_of
from pretrain.zero.lamb import VARIANTS, Lamb
from pretrain.zero.partition import Partition, bind


def default_precision() -> str:
    """bf16 where the GPU has it, else fp32."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def check_precision(settings: dict[str, Any]) -> None:
    """Refuse fp16 where DeepSpeed's accelerator does."""
    if precision_of(settings) == "fp16" and not get_accelerator().is_fp16_supported():
        raise InputError("fp16 needs a GPU; use --precision bf16 or fp32 on this machine")


def quiet() -> None:
    """Leave the console to what a person wants to read."""
    deepspeed.utils.logger.setLevel("ERROR")
    # DeepSpeed 0.19.8 calls names that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*is deprecated")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def join_ranks() -> None:
    """Start torch.distributed: gloo on CPU, NCCL on GPUs. A process alone needs no launcher and no set port."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    # Otherwise DeepSpeed starts compilers to see what it could build, for an inference-only kernel that it then builds
    # at every first start; and a killed build hangs the next run.
    deepspeed.ops.__compatible_ops__ = {}
    backend = get_accelerator().communication_backend_name() if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)


def leave_ranks() -> None:
    """End the threads of torch.distributed, where it was started: none may be left when the interpreter ends."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start_engine(
    model: BertForPreTraining,
    settings: dict[str, Any],
    allow_untested: bool = False,
    checkpoint_activations: bool = False,
) -> tuple[Any, Partition]:
    """DeepSpeed's engine around the model, with our optimizer, and where its slices lie."""
    optimizer = make_optimizer(model, settings["optimizer"])
    import_muon_uncompiled()
    engine, *_ = deepspeed.initialize(
        model=PretrainingModule(model, checkpoint_activations),
        optimizer=optimizer,
        config={key: value for key, value in settings.items() if key != "optimizer"},
    )
    partition = bind(engine, model, allow_untested)
    if isinstance(optimizer, Lamb):
        optimizer.bind(partition)
    return engine, partition


def import_muon_uncompiled() -> None:
    """Spare every start the seconds in which torch.compile loads its compiler.

    DeepSpeed 0.19.8 asks of every optimizer whether it is its Muon, and to import that is to compile three functions.
    Nothing here calls them.
    """
    compiled, compiler.compile = compiler.compile, lambda *args, **kwargs: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compiled


def make_optimizer(model: BertForPreTraining, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW or LAMB over the parameter groups, as the resolved JSON has it.

    Raises
    ------
    InputError: an unknown variant of LAMB, a decay by layer that is not one.
    """
    params = dict(settings["params"])
    layer_decay = params.pop("layer_decay")
    if not 0 < layer_decay <= 1:
        raise InputError(f"optimizer.params.layer_decay {layer_decay} must lie in (0, 1]; 1: the same rate everywhere")
    groups = parameter_groups(model, params.pop("weight_decay"), layer_decay)
    if settings["type"] == "adamw":
        return torch.optim.AdamW(groups, **params, fused=True)
    variant = params.pop("variant")
    if variant not in VARIANTS:
        raise InputError(f"optimizer.params.variant {variant!r}; known: {', '.join(VARIANTS)}")
    given = {name: value for name, value in params.items() if value is not None}
    return Lamb(groups, **VARIANTS[variant] | given)


def backward(engine: Any, loss: torch.Tensor, is_last: bool) -> None:
    """Add a micro-batch's gradients; after the last one of a step they are summed over ranks, and apply_step() is due.

    DeepSpeed divides by the number of ranks.
    """
    # Told, not counted: a step may have another number of micro-batches than the one before.
    engine.set_gradient_accumulation_boundary(is_last)
    engine.backward(loss, scale_wrt_gas=False)
    if not is_last:
        engine.step()  # only counts


def apply_step(engine: Any) -> tuple[bool, Callable[[], float]]:
    """engine.step() after the last micro-batch: whether the step happened, and the gradient's norm before clipping.

    A step whose gradient is infinite or not a number does not happen, in any precision and at any stage. The norm is a
    function: asking for it makes the host wait for the device.
    """
    if engine.zero_optimization_stage():
        engine.step()
        return not engine.optimizer.overflow, lambda: float(engine.get_global_grad_norm())
    # Stage 0 in fp32: DeepSpeed keeps no norm and looks for no infinity.
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    happens = norm < float("inf")  # False for nan too
    hook = None if happens else engine.optimizer.register_step_pre_hook(_without_gradients)
    engine.step()
    if hook is not None:
        hook.remove()
    return happens, lambda: norm


def _without_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """A hook: the optimizer passes over parameters that have no gradient."""
    optimizer.zero_grad(set_to_none=True)
