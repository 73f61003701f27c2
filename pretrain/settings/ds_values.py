"""What values the DeepSpeed JSON may hold, by dotted name: DeepSpeed itself takes many that make no sense, and dies of
others with a traceback on every rank.

    check_values(path, content)         # InputError: auto.json: optimizer.params.lr '1e-4' must be a number in (0, 100]
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.ranges import Range, shortened
from pretrain.settings.limits import BATCH, CLIP, LR, STEPS, WEIGHT_DECAY

AUTO = "auto"
SIZE = Range(0, 2**62, whole=True)  # elements or bytes; 5e8 is written, too
SOME = Range(1, 2**62, whole=True)
RATIO = Range(0, 1e6)
NUMBERS = {
    "train_batch_size": BATCH,
    "train_micro_batch_size_per_gpu": BATCH,
    "gradient_accumulation_steps": BATCH,
    "gradient_clipping": CLIP,
    "steps_per_print": SOME,
    "gradient_predivide_factor": Range(0, 1e6, low_open=True),
    "optimizer.params.lr": LR,
    "optimizer.params.weight_decay": WEIGHT_DECAY,
    "optimizer.params.eps": Range(0, 1, low_open=True),
    "optimizer.params.layer_decay": Range(0, 1, low_open=True, why="1: the same rate everywhere"),
    "optimizer.params.min_ratio": RATIO,
    "optimizer.params.max_ratio": RATIO,
    "fp16.loss_scale": Range(0, 2**32, why="0: found while training"),
    "fp16.initial_scale_power": Range(0, 32, whole=True),
    "fp16.loss_scale_window": STEPS,
    "fp16.hysteresis": STEPS,
    "fp16.min_loss_scale": Range(1, 2**32, whole=True),
    "zero_optimization.stage": Range(0, 3, whole=True),
    "zero_optimization.reduce_bucket_size": SOME,
    "zero_optimization.allgather_bucket_size": SOME,
    "zero_optimization.sub_group_size": SOME,
    "zero_optimization.stage3_max_live_parameters": SIZE,
    "zero_optimization.stage3_max_reuse_distance": SIZE,
    "zero_optimization.stage3_prefetch_bucket_size": SIZE,
    "zero_optimization.stage3_param_persistence_threshold": SIZE,
    "zero_optimization.stage3_model_persistence_threshold": Range(0, 2**63, whole=True),
    "zero_optimization.stage3_module_granularity_threshold": SIZE,
    "zero_optimization.offload_param.buffer_count": Range(1, 1e6, whole=True),
    "zero_optimization.offload_param.buffer_size": SOME,
    "zero_optimization.offload_param.max_in_cpu": SIZE,
    "zero_optimization.offload_optimizer.buffer_count": Range(1, 1e6, whole=True),
    "zero_optimization.offload_optimizer.ratio": Range(0, 1),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": Range(0, 1, low_open=True),
    "aio.block_size": SOME,
    "aio.queue_depth": SOME,
    "aio.intra_op_parallelism": SOME,
    "flops_profiler.profile_step": STEPS,
}
_PRECISIONS = ("fp32", "fp16", "bf16")
_DEVICES = ("none", "cpu", "nvme")
CHOICES = {
    "communication_data_type": _PRECISIONS,
    "seq_parallel_communication_data_type": _PRECISIONS,
    "data_types.grad_accum_dtype": _PRECISIONS,
    "log_level": ("debug", "info", "warning", "error", "critical"),
    "zero_optimization.offload_param.device": _DEVICES,
    "zero_optimization.offload_optimizer.device": _DEVICES,
}
PAIRS = {"optimizer.params.betas": Range(0, 1, high_open=True)}
YES_OR_NO = frozenset(
    "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer wall_clock_breakdown memory_breakdown "
    "prescale_gradients disable_allgather dump_state disable_python_gc "
    "optimizer.params.bias_correction optimizer.params.adapt_undecayed "
    "fp16.enabled fp16.auto_cast fp16.consecutive_hysteresis fp16.fp16_master_weights_and_grads "
    "bf16.enabled bf16.bf16_master_weights_and_grads bf16.bf16_optimizer_states bf16.check_grad_overflow "
    "bf16.immediate_grad_update "
    "flops_profiler.enabled flops_profiler.detailed "
    "comms_logger.enabled comms_logger.verbose comms_logger.prof_all comms_logger.debug "
    "aio.single_submit aio.overlap_events aio.use_gds "
    "activation_checkpointing.partition_activations activation_checkpointing.cpu_checkpointing "
    "activation_checkpointing.contiguous_memory_optimization activation_checkpointing.profile "
    "activation_checkpointing.synchronize_checkpoint_boundary".split()
) | {
    f"zero_optimization.{name}"
    for name in (
        "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm "
        "load_from_fp32_weights stage3_gather_16bit_weights_on_model_save stage3_use_all_reduce_for_fetch_params "
        "stage3_gather_fp16_weights_on_model_save ignore_unused_parameters round_robin_gradients "
        "memory_efficient_linear allgather_sequential parameter_alignment log_trace_cache_warnings "
        "enable_sanity_checks compute_grad_norm override_module_apply offload_param.pin_memory "
        "offload_optimizer.pin_memory offload_optimizer.pipeline_read offload_optimizer.pipeline_write "
        "offload_optimizer.fast_init offload_optimizer.super_offload"
    ).split()
}
_OFFLOADS = ("zero_optimization.offload_param", "zero_optimization.offload_optimizer")
OBJECTS = (
    *("optimizer.params", *_OFFLOADS, "zero_optimization.leaf_module", "activation_checkpointing", "aio"),
    *("comms_logger", "compile", "data_types", "flops_profiler", "timers"),
)
# null means here: as the variant of LAMB has it; and in DeepSpeed: as the stage has it.
MAY_BE_NULL = {f"optimizer.params.{name}" for name in ("bias_correction", "min_ratio", "max_ratio", "adapt_undecayed")}
MAY_BE_NULL |= {"zero_optimization.overlap_comm", *_OFFLOADS, *CHOICES}
OTHER = Range(-1, 2**62)  # what no rule is known for, such as a module_depth of -1


def check_values(path: Path, content: JsonObject) -> None:
    """Refuse values that are not of the kind or outside the range of their name; "auto" is for others to judge.

    Raises
    ------
    InputError: naming file, name, value and what is allowed.
    """
    for name, value in leaves("", content):
        if value == AUTO or (value is None and name in MAY_BE_NULL):
            continue
        if wrong := _wrong(name, value):
            raise InputError(f"{path}: {name} {shortened(repr(value))} must {wrong}")


def leaves(prefix: str, content: JsonObject) -> Iterator[tuple[str, Any]]:
    """Yield every value of an object and of the objects in it, by its dotted name."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def _wrong(name: str, value: Any) -> str:
    """Return what a value must be and is not; empty where it is."""
    if name in OBJECTS:
        return "be a JSON object"
    if name == "optimizer.type":
        return "" if isinstance(value, str) else "be a name"
    if allowed_names := CHOICES.get(name):
        return "" if isinstance(value, str) and value in allowed_names else f"be one of {', '.join(allowed_names)}"
    if name in YES_OR_NO:
        return "" if isinstance(value, bool) else "be true or false"
    if allowed := NUMBERS.get(name):
        is_number = type(value) is int or (type(value) is float and not allowed.whole)
        kind = "" if is_number else f"be a {'whole ' if allowed.whole else ''}number and "
        return "" if allowed.holds(value) else f"{kind}{allowed}"
    if allowed := PAIRS.get(name):
        fits = isinstance(value, list) and len(value) == 2 and all(map(allowed.holds, value))
        return "" if fits else f"be two numbers that {allowed}"
    numbers = [part for part in (value if isinstance(value, list) else [value]) if type(part) in (int, float)]
    return "" if all(OTHER.holds(part) for part in numbers) else str(OTHER)
