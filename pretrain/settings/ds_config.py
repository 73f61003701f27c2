"""The DeepSpeed JSON of a run: read, completed from the command line, checked.

    ds_configs/*.json -> resolve(...) -> DsConfig: what config.json records and deepspeed.initialize gets

The JSON owns what DeepSpeed consumes: batch sizes, optimizer and its hyper-parameters, precision, clipping, ZeRO. As
in transformers' DeepSpeed integration "auto", or nothing, means: from the command line. DeepSpeed itself does not know
"auto" and accepts unknown keys silently, so both are settled here, before any rank starts to work.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from data_prep import fields
from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.ranges import shortened
from pretrain.settings.ds_values import check_values
from pretrain.settings.limits import BATCH, CLIP, LR, WEIGHT_DECAY

AUTO = "auto"
# What one may write in the JSON: DeepSpeed 0.19.8's names (tests/test_ds_configs.py compares), without those that would
# contradict a decision of ours (REFUSED).
TOP_LEVEL = frozenset(
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping optimizer bf16 fp16 "
    "zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer steps_per_print wall_clock_breakdown "
    "memory_breakdown prescale_gradients gradient_predivide_factor gradient_allreduce_op communication_data_type "
    "disable_allgather dump_state disable_python_gc activation_checkpointing comms_logger flops_profiler aio "
    "data_types "
    "log_level timers seq_parallel_communication_data_type managed_gradient_accumulation compile".split()
)
REFUSED = {
    "scheduler": "the learning rate belongs to --schedule and --warmup; remove the section",
    "elasticity": "DeepSpeed 0.19 has none; checkpoints here resume at any world size without it; remove the section",
    "curriculum_learning": "DeepSpeed 0.19 has none; remove the section",
    "data_efficiency": "samples come from data_prep/samples/mixture.py; remove the section",
    "tensorboard": "every run writes RUN/tensorboard; remove the section",
    "amp": "use bf16 or fp16",
    "torch_autocast": "use bf16 or fp16",
}
# What must stay as DeepSpeed has it by default: the value, and why.
FIXED = {
    "managed_gradient_accumulation": (True, "without it each micro-batch would be a step"),
    "gradient_allreduce_op": ("mean", "gradients are means over all samples of a step, however many ranks there are"),
}
FP16_KEYS = frozenset(
    "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis "
    "min_loss_scale fp16_master_weights_and_grads".split()
)
BF16_KEYS = frozenset(
    "enabled bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow immediate_grad_update".split()
)
ZERO_KEYS = frozenset(
    "stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce allgather_partitions "
    "allgather_bucket_size overlap_comm load_from_fp32_weights offload_param offload_optimizer sub_group_size "
    "stage3_max_live_parameters stage3_max_reuse_distance stage3_prefetch_bucket_size "
    "stage3_param_persistence_threshold stage3_model_persistence_threshold "
    "stage3_gather_16bit_weights_on_model_save "
    "stage3_module_granularity_threshold stage3_use_all_reduce_for_fetch_params "
    "stage3_gather_fp16_weights_on_model_save "
    "ignore_unused_parameters round_robin_gradients memory_efficient_linear allgather_sequential parameter_alignment "
    "log_trace_cache_warnings enable_sanity_checks compute_grad_norm override_module_apply leaf_module".split()
)
SECTIONS = {"fp16": FP16_KEYS, "bf16": BF16_KEYS, "zero_optimization": ZERO_KEYS}
# Where transformers derives "auto" from the hidden size, DeepSpeed's own default is used.
ZERO_AUTO = frozenset("reduce_bucket_size stage3_prefetch_bucket_size stage3_param_persistence_threshold".split())
OPTIMIZERS: dict[str, JsonObject] = {
    # Defaults of an absent or "auto" hyper-parameter.
    # layer_decay: the rate of a layer over that of the layer above it (parameter_groups in model.py).
    "adamw": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "layer_decay": 1.0},
    # None: as the variant has it (VARIANTS in lamb.py).
    "lamb": {
        "lr": 2e-3,
        "betas": [0.9, 0.999],
        "eps": 1e-6,
        "weight_decay": 0.01,
        "layer_decay": 1.0,
        "variant": "nvidia",
        "bias_correction": None,
        "min_ratio": None,
        "max_ratio": None,
        "adapt_undecayed": None,
    },
}
DEFAULT_GLOBAL_BATCH = 256
MAX_DEFAULT_MICRO_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Flags:
    """What the command line says about the values above; None: nothing."""

    global_batch: Annotated[int | None, BATCH] = None
    """samples a step over all ranks (fills "auto"; default 256)"""
    micro_batch: Annotated[int | None, BATCH] = None
    """samples a rank takes through the model at once (fills "auto")"""
    lr: Annotated[float | None, LR] = None
    """peak learning rate (fills "auto"; default 1e-4, of LAMB 2e-3)"""
    weight_decay: Annotated[float | None, WEIGHT_DECAY] = None
    """of weights, not of biases and LayerNorm (fills "auto"; default 0.01)"""
    clip: Annotated[float | None, CLIP] = None
    """largest gradient norm, 0: no clipping (fills "auto"; default 1)"""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """(fills "auto"; default bf16 on a GPU, fp32 on a CPU)"""
    zero: Literal[0, 1, 2, 3] | None = None
    """ZeRO stage (fills "auto"; default 1)"""
    optimizer: Literal["adamw", "lamb"] | None = None
    """(fills "auto"; default adamw)"""


NOTHING = Flags()


def read(path: Path) -> JsonObject:
    """Read a DeepSpeed JSON and refuse names that neither DeepSpeed nor we know.

    Raises
    ------
    InputError: no such file, not JSON, a key twice, an unknown name.
    """
    try:
        content = fields.parse(path.read_bytes())
    except OSError as error:
        raise InputError(f"--ds_config {path}: {error.strerror}; ds_configs/ holds ready ones") from error
    except ValueError as error:
        raise InputError(f"--ds_config {path} is not JSON that says one thing: {error}; mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"--ds_config {path} must hold a JSON object")
    for key in content:
        if key in REFUSED:
            raise InputError(f"{path}: {key}: {REFUSED[key]}")
    for key, (value, why) in FIXED.items():
        if content.get(key, value) != value:
            raise InputError(f"{path}: {key} {shortened(content[key])} must be {value!r}: {why}; remove the line")
    _check_names(path, "", content, TOP_LEVEL)
    for section, known in SECTIONS.items():
        _check_names(path, f"{section}.", content.get(section, {}), known)
    _check_names(path, "optimizer.", content.get("optimizer", {}), frozenset({"type", "params"}))
    check_values(path, content)
    return content


def _check_names(path: Path, prefix: str, found: Any, known: frozenset[str]) -> None:
    if not isinstance(found, dict):
        raise InputError(f"{path}: {prefix.rstrip('.')} must be a JSON object, found {found!r}")
    for key in found:
        if key not in known:
            raise InputError(f"{path}: unknown name {prefix}{key}; known: {', '.join(sorted(known))}")


@dataclasses.dataclass(frozen=True)
class DsConfig:
    """A complete DeepSpeed JSON: no "auto", no absent batch size, optimizer, precision or stage."""

    content: JsonObject  # as config.json records it, and deepspeed.initialize gets it

    @property
    def global_batch(self) -> int:
        """Samples of a step over all ranks."""
        return self.content["train_batch_size"]

    @property
    def micro_batch(self) -> int:
        """Samples that a rank takes through the model at once."""
        return self.content["train_micro_batch_size_per_gpu"]

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on each rank."""
        return self.content["gradient_accumulation_steps"]

    @property
    def ranks(self) -> int:
        """Ranks that share a step."""
        return self.global_batch // (self.micro_batch * self.accumulation)

    @property
    def optimizer(self) -> str:
        """adamw or lamb."""
        return self.content["optimizer"]["type"]

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.content["optimizer"]["params"]["lr"]

    @property
    def weight_decay(self) -> float:
        """Of weights, not of biases and LayerNorm."""
        return self.content["optimizer"]["params"]["weight_decay"]

    @property
    def clip(self) -> float:
        """Largest gradient norm; 0: no clipping."""
        return self.content["gradient_clipping"]

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return next((name for name in ("bf16", "fp16") if self.content[name]["enabled"]), "fp32")

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return self.content["zero_optimization"]["stage"]


def resolve(path: Path, flags: Flags, world_size: int, default_precision: str, phase: Flags = NOTHING) -> DsConfig:
    """Return the complete DeepSpeed JSON of a phase.

    What the phase says (of batches, learning rate and weight decay) goes before the JSON and the flags.

    Raises
    ------
    InputError: an unknown name, a flag that contradicts a fixed value, batches that ranks do not divide, 16 bit at
        stage 0, an unsupported optimizer.
    """
    content = read(path)
    draft = _Draft(path, content)
    flags = _override(content, flags, phase)
    zero = content.get("zero_optimization", {})
    zero["stage"] = draft.choose("zero_optimization.stage", "--zero", flags.zero, 1)
    content["zero_optimization"] = {key: value for key, value in zero.items() if value != AUTO or key not in ZERO_AUTO}
    _resolve_precision(draft, flags.precision, default_precision)
    _resolve_batches(draft, flags, world_size)
    content["optimizer"] = _resolve_optimizer(draft, flags)
    content["gradient_clipping"] = draft.choose("gradient_clipping", "--clip", flags.clip, 1.0)
    content["zero_allow_untested_optimizer"] = True  # our optimizers are not on DeepSpeed's list
    content.setdefault("zero_force_ds_cpu_optimizer", False)  # nor are they DeepSpeed's, when it offloads
    content.setdefault("steps_per_print", 10**9)  # the console is meter.py's
    _refuse_auto(path, "", content)
    if content["zero_optimization"].get("round_robin_gradients"):
        raise InputError(
            f"{path}: zero_optimization.round_robin_gradients scatters parameters over the ranks in an order that "
            "checkpoints and LAMB do not follow; remove it"
        )
    resolved = DsConfig(content)
    if resolved.stage not in (0, 1, 2, 3):
        raise InputError(f"{path}: ZeRO stage {resolved.stage!r}; choose 0, 1, 2 or 3")
    if resolved.stage == 0 and resolved.precision != "fp32":
        raise InputError(
            f"{path}: {resolved.precision} with ZeRO stage 0 is broken in DeepSpeed 0.19.8 (gradients are divided "
            "by a loss scale that was never applied); use --zero 1, also on one GPU, or --precision fp32"
        )
    return resolved


def _override(content: JsonObject, flags: Flags, phase: Flags) -> Flags:
    """Write a phase's values into the JSON; return the flags without those."""
    for name in ("lr", "weight_decay"):
        if (value := getattr(phase, name)) is not None:
            content.setdefault("optimizer", {}).setdefault("params", {})[name] = value
    if phase.global_batch is not None:
        content["train_batch_size"] = phase.global_batch
    if phase.micro_batch is not None:
        content["train_micro_batch_size_per_gpu"] = phase.micro_batch
    if phase.global_batch is not None or phase.micro_batch is not None:
        content.pop("gradient_accumulation_steps", None)
    given = {name for name, value in dataclasses.asdict(phase).items() if value is not None}
    return dataclasses.replace(flags, **dict.fromkeys(given))


class _Draft(NamedTuple):
    path: Path
    content: JsonObject

    def get(self, name: str) -> Any:
        """Return the value at a dotted name; None where it is absent or "auto"."""
        value: Any = self.content
        for part in name.split("."):
            value = value.get(part, AUTO) if isinstance(value, dict) else AUTO
        return None if value == AUTO else value

    def choose(self, name: str, flag: str, given: Any, default: Any) -> Any:
        """Return the JSON's value, else the flag's, else the default; the first two may not differ."""
        fixed = self.get(name)
        if fixed is not None and given is not None and fixed != given:
            raise InputError(
                f"{flag} {given} contradicts {self.path}, where {name} is {fixed}; leave the flag out, or write "
                f'"auto" there'
            )
        return fixed if fixed is not None else given if given is not None else default


def _resolve_precision(draft: _Draft, flag: str | None, default: str) -> None:
    fixed = [name for name in ("bf16", "fp16") if draft.get(f"{name}.enabled")]
    open_choice = any(draft.get(f"{name}.enabled") is None for name in ("bf16", "fp16"))
    if len(fixed) == 2:
        raise InputError(f"{draft.path}: bf16 and fp16 are both enabled; enable one")
    chosen = fixed[0] if fixed else (flag or default) if open_choice else "fp32"
    if flag not in (None, chosen) or draft.get(f"{chosen}.enabled") is False:
        raise InputError(f'--precision {flag or chosen} contradicts {draft.path}; write "auto" for bf16 and fp16 there')
    for name in ("bf16", "fp16"):
        draft.content.setdefault(name, {})["enabled"] = name == chosen
    # Otherwise ZeRO 1 and 2 apply a gradient that is no number.
    draft.content["bf16"].setdefault("check_grad_overflow", chosen == "bf16")


def _resolve_batches(draft: _Draft, flags: Flags, world_size: int) -> None:
    micro = draft.choose("train_micro_batch_size_per_gpu", "--micro_batch", flags.micro_batch, None)
    accumulation = draft.get("gradient_accumulation_steps")
    product = micro * accumulation * world_size if micro and accumulation else None
    total = draft.choose("train_batch_size", "--global_batch", flags.global_batch, product or DEFAULT_GLOBAL_BATCH)
    for name, value in (("global batch", total), ("micro-batch", micro), ("accumulation", accumulation)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{draft.path}: {name} {value!r} must be a whole number above 0")
    if total % world_size:
        raise InputError(
            f"a global batch of {total} samples cannot be divided among {world_size} ranks; choose a multiple"
        )
    share = total // world_size
    if micro is None:
        micro = share // accumulation if accumulation else _largest_divisor(share, MAX_DEFAULT_MICRO_BATCH)
    if micro < 1 or share % micro or (accumulation or share // micro) != share // micro:
        raise InputError(
            f"a global batch of {total} samples is not {world_size} ranks x micro-batch {micro} x accumulation "
            f"{accumulation or share // micro or 1}; change --global_batch or --micro_batch"
        )
    draft.content["train_batch_size"] = total
    draft.content["train_micro_batch_size_per_gpu"] = micro
    draft.content["gradient_accumulation_steps"] = share // micro


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def _resolve_optimizer(draft: _Draft, flags: Flags) -> JsonObject:
    written = draft.get("optimizer.type")
    flag = flags.optimizer
    kind = (written or flag or "adamw").lower()
    if kind not in OPTIMIZERS:
        raise InputError(f"{draft.path}: optimizer.type {written or flag}; known: {', '.join(OPTIMIZERS)}")
    if flag is not None and flag != kind:
        raise InputError(f"--optimizer {flag} contradicts {draft.path}, where optimizer.type is {written}")
    defaults = OPTIMIZERS[kind]
    params = draft.content.get("optimizer", {}).get("params", {})
    _check_names(draft.path, "optimizer.params.", params, frozenset(defaults))
    least, most = (params.get(name) for name in ("min_ratio", "max_ratio"))
    if None not in (least, most) and AUTO not in (least, most) and least > most:
        raise InputError(f"{draft.path}: optimizer.params.min_ratio {least} is above max_ratio {most}")
    given = {"lr": ("--lr", flags.lr), "weight_decay": ("--weight_decay", flags.weight_decay)}
    return {
        "type": kind,
        "params": {
            name: draft.choose(f"optimizer.params.{name}", *given.get(name, ("", None)), default)
            for name, default in defaults.items()
        },
    }


def _refuse_auto(path: Path, prefix: str, content: JsonObject) -> None:
    for key, value in content.items():
        if value == AUTO:
            raise InputError(f'{path}: {prefix}{key} cannot be "auto"; write a value or remove the line')
        if isinstance(value, dict):
            _refuse_auto(path, f"{prefix}{key}.", value)
