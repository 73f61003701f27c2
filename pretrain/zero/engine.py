"""DeepSpeed's engine around the model: ranks, optimizer, engine, and the step.

    init_distributed()
    engine = init_engine(model, ds_config)      or Engine(deepspeed.initialize(...)[0], model), of a script of one's own
    engine.set_lr(lr)
    engine.backward(loss, is_last=False), ..., engine.backward(loss, is_last=True)
    result = engine.step()

With partition.py the only file that knows DeepSpeed: nobody else touches an attribute of it.
"""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import deepspeed
import deepspeed.comm.comm
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.constants import default_pg_timeout
from deepspeed.runtime import compiler
from torch import Tensor, nn
from transformers import BertForPreTraining
from transformers.utils import logging as transformers_logging

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from pretrain.distributed import meet
from pretrain.model import Answers, Batch, Losses, PretrainingModule, parameter_groups
from pretrain.settings.ds_config import DsConfig
from pretrain.state import SCALER_FIELDS
from pretrain.zero.collective_time import CollectiveTime
from pretrain.zero.lamb import VARIANTS, Lamb
from pretrain.zero.partition import Partition, map_partition


def default_precision() -> str:
    """Return bf16 where the GPU has it, else fp32."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def check_precision(ds_config: DsConfig) -> None:
    """Refuse fp16 where DeepSpeed's accelerator does."""
    if ds_config.precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise InputError("fp16 needs a GPU; use --precision bf16 or fp32 on this machine")


def silence_libraries() -> None:
    """Turn off what DeepSpeed, torch and transformers would print while all is well."""
    deepspeed.utils.logger.setLevel("ERROR")
    # DeepSpeed 0.19.8 calls names that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*is deprecated")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def init_distributed() -> None:
    """Start torch.distributed: gloo on CPU, NCCL on GPUs. A process alone needs no launcher and no set port.

    Raises
    ------
    InputError: as meet() does.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    # Otherwise DeepSpeed starts compilers to see what it could build, for an inference-only kernel that it then builds
    # at every first start; and a killed build hangs the next run.
    deepspeed.ops.__compatible_ops__ = {}
    backend = get_accelerator().communication_backend_name() if torch.cuda.is_available() else "gloo"
    meet(backend, default_pg_timeout)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)  # takes what there is


def end_distributed() -> None:
    """End the threads of torch.distributed, where it was started: none may be left when the interpreter ends."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class LossScale(NamedTuple):
    """What losses are multiplied with before the backward pass."""

    value: float
    at_floor: bool  # it follows the gradients, and cannot fall any further


class StepResult(NamedTuple):
    """What became of a step."""

    is_skipped: bool  # the gradient is infinite or not a number: the weights are as they were
    grad_norm: Callable[[], float]  # before clipping; asking for it makes the host wait for the device


class Engine:
    """DeepSpeed's engine around a model, and where the slices of its parameters lie."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, model: nn.Module, *, allow_untested: bool = False):
        """`model`: what the engine wraps, or the part of it that has all its parameters. Collective.

        Raises
        ------
        InputError: another DeepSpeed than the tested one.
        """
        self.deepspeed_engine = engine
        self.partition: Partition = map_partition(engine, model, allow_untested=allow_untested)
        if isinstance(self.partition.optimizer, Lamb):
            self.partition.optimizer.set_partition(self.partition)

    def __call__(self, batch: Batch, **options: Any) -> Losses:
        """Return the losses of a micro-batch; options are those of the module's forward()."""
        return self.deepspeed_engine(batch, **options)

    @torch.no_grad()
    def answers(self, batch: Batch) -> Answers:
        """Return what the model puts into the masked places of a batch. Collective at stage 3."""
        return self.deepspeed_engine(batch, is_asked=True)

    @property
    def module(self) -> nn.Module:
        """The module that the engine wraps."""
        return self.deepspeed_engine.module

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.deepspeed_engine.device

    def train(self) -> None:
        """Turn dropout on."""
        self.deepspeed_engine.train()

    def eval(self) -> None:
        """Turn dropout off."""
        self.deepspeed_engine.eval()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step; a group of parameters has `lr_scale` times as much."""
        for group in self.deepspeed_engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def set_weight_decay(self, weight_decay: float) -> None:
        """Set the weight decay from the next step on; a group of parameters has `decay_scale` times as much."""
        for group in self.deepspeed_engine.optimizer.param_groups:
            group["weight_decay"] = weight_decay * group["decay_scale"]

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradients; after the last one of a step they are averaged over ranks, and step() is due.

        DeepSpeed divides by the number of ranks.
        """
        # Told, not counted: a step may have another number of micro-batches than the one before.
        self.deepspeed_engine.set_gradient_accumulation_boundary(is_last)
        self.deepspeed_engine.backward(loss, scale_wrt_gas=False)
        if not is_last:
            self.deepspeed_engine.step()  # only counts

    def step(self) -> StepResult:
        """Update the weights after the last micro-batch of a step, unless its gradient is not finite.

        Such a step is skipped in any precision and at any stage.
        """
        engine = self.deepspeed_engine
        if self.partition.stage:
            engine.step()
            return StepResult(bool(engine.optimizer.overflow), lambda: float(engine.get_global_grad_norm()))
        # Stage 0 in fp32: DeepSpeed keeps no norm and looks for no infinity.
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        is_finite = norm < float("inf")  # False for nan too
        hook = None if is_finite else engine.optimizer.register_step_pre_hook(drop_gradients_hook)
        engine.step()
        if hook is not None:
            hook.remove()
        return StepResult(not is_finite, lambda: norm)

    def loss_scale(self) -> LossScale | None:
        """Return the loss scale; None where losses are not scaled, as at stage 0."""
        scaler = self._scaler()
        if scaler is None:
            return None
        at_floor = getattr(scaler, "dynamic", False) and scaler.cur_scale <= scaler.min_scale
        return LossScale(scaler.cur_scale, at_floor=bool(at_floor))

    def scaler_state(self) -> dict[str, float]:
        """Return the state of the loss scaler, of SCALER_FIELDS those that it has."""
        scaler = self._scaler()
        return {name: getattr(scaler, name) for name in SCALER_FIELDS if hasattr(scaler, name)}

    def restore(self, *, step: int, steps_skipped: int, samples: int, scaler: dict[str, float]) -> None:
        """Set counters and loss scaler to those of a checkpoint; its slices are written through `partition`."""
        for buffer in self.partition.fp32_buffers:
            self.partition.optimizer.state[buffer]["step"] = torch.tensor(float(step), device=buffer.device)
        own = self._scaler()
        if set(scaler) == set(SCALER_FIELDS) and all(hasattr(own, name) for name in SCALER_FIELDS):
            # fp16 then and now; another precision has a constant scale, or none.
            for name, value in scaler.items():
                setattr(own, name, value)
        self.deepspeed_engine.global_steps = step + steps_skipped
        self.deepspeed_engine.global_samples = samples
        self.deepspeed_engine.skipped_steps = steps_skipped

    def timing_collectives(self, spent: CollectiveTime) -> AbstractContextManager[None]:
        """Count the time in DeepSpeed's collectives, as long as the context lasts."""
        return spent.timing(deepspeed.comm.comm.cdb)

    def trust_ratios(self) -> dict[str, float]:
        """Return LAMB's newest trust ratio of every adapted parameter; of another optimizer none."""
        optimizer = self.partition.optimizer
        return optimizer.trust_ratios() if isinstance(optimizer, Lamb) else {}

    def _scaler(self) -> Any:
        return getattr(self.deepspeed_engine.optimizer, "loss_scaler", None)


def init_engine(
    model: BertForPreTraining,
    ds_config: DsConfig,
    *,
    allow_untested: bool = False,
    checkpoint_activations: bool = False,
) -> Engine:
    """Return an engine around the model, with the optimizer that the resolved DeepSpeed JSON names. Collective.

    Raises
    ------
    InputError: as make_optimizer() and Engine do.
    """
    optimizer = make_optimizer(model, ds_config.content["optimizer"])
    import_muon_uncompiled()
    engine, *_ = deepspeed.initialize(
        model=PretrainingModule(model, checkpoint_activations),
        optimizer=optimizer,
        config={key: value for key, value in ds_config.content.items() if key != "optimizer"},
    )
    return Engine(engine, model, allow_untested=allow_untested)


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


def make_optimizer(model: BertForPreTraining, optimizer_json: JsonObject) -> torch.optim.Optimizer:
    """Return AdamW or LAMB over the parameter groups, as the section `optimizer` of the resolved JSON has it.

    Raises
    ------
    InputError: an unknown variant of LAMB, a decay by layer that is not one.
    """
    params = dict(optimizer_json["params"])
    layer_decay = params.pop("layer_decay")
    if not 0 < layer_decay <= 1:
        raise InputError(f"optimizer.params.layer_decay {layer_decay} must lie in (0, 1]; 1: the same rate everywhere")
    groups = parameter_groups(model, params.pop("weight_decay"), layer_decay)
    if optimizer_json["type"] == "adamw":
        return torch.optim.AdamW(groups, **params, fused=True)
    variant = params.pop("variant")
    if variant not in VARIANTS:
        raise InputError(f"optimizer.params.variant {variant!r}; known: {', '.join(VARIANTS)}")
    given = {name: value for name, value in params.items() if value is not None}
    return Lamb(groups, **VARIANTS[variant] | given)


def drop_gradients_hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Drop all gradients before a step, which then passes over every parameter."""
    optimizer.zero_grad(set_to_none=True)
