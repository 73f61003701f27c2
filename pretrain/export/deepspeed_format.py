"""Read the checkpoints that DeepSpeed itself writes, of any trainer: fp32 weights by name, and no code runs.

    FOLDER/latest                                                  names the tag, such as global_step100
    FOLDER/global_step100/mp_rank_00_model_states.pt               stages 0 to 2: the module, shapes, counters
                          zero_pp_rank_0_mp_rank_00_model_states.pt    stage 3: the same, one a rank
                          [bf16_]zero_pp_rank_0_mp_rank_00_optim_states.pt    stages 1 to 3: flat fp32 weights, moments

    stage 0      the module's own tensors
    stages 1, 2  each group's ranks laid end to end hold its parameters in order, with padding behind some of them
    stage 3      each rank holds 1/ranks of every parameter, rounded up; frozen ones lie in the model_states

These files are pickles, and a pickle is a program. DeepSpeed runs it; here pickles.py reads it, with an allow-list of
names, and neither DeepSpeed nor NumPy is asked. The numbers of elements must come out exactly.
"""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_prep.cli import InputError, say
from pretrain.export import pickles
from pretrain.export.origin import MODEL_FILE
from pretrain.export.pickles import COMMON, Inert

OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
FLAT = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}


# Whatever else a trainer puts into its client_state is refused.
NOT_NEEDED = """
    deepspeed.runtime.fp16.loss_scaler.LossScaler deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler
    deepspeed.utils.tensor_fragment.fragment_address
""".split()
ALLOWED: list[Any] = [
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    *((Inert, name) for name in (*NOT_NEEDED, *COMMON)),
]
REMEDY = "Loading it with DeepSpeed would run this; if it comes from your own client_state, save without it"


class DeepSpeedCheckpoint(NamedTuple):
    """What one held."""

    folder: Path  # of the tag
    stage: int
    ranks: int
    step: int  # the engine's count, skipped steps included
    version: str  # of the DeepSpeed that wrote it
    weights: dict[str, Tensor]  # fp32; a tied parameter under each of its names, buffers as they are


def read(folder: Path) -> DeepSpeedCheckpoint:
    """Return all weights of the checkpoint in a tag folder.

    Raises
    ------
    InputError: a file is missing, damaged, or holds what the allow-list lacks; numbers of elements do not fit.
    """
    model_files = _by_rank(folder, MODEL_FILE)
    optimizer_files = _by_rank(folder, OPTIMIZER_FILE)
    if 0 not in model_files:
        raise InputError(f"{folder} has no model_states.pt of rank 0: it is not a whole DeepSpeed checkpoint")
    model = _load(model_files[0])
    if not optimizer_files and model.get("param_shapes") is not None:
        raise InputError(f"{folder} has no *_optim_states.pt, which hold the fp32 weights: it is not whole")
    try:
        optimizers = {rank: _load(path)["optimizer_state_dict"] for rank, path in optimizer_files.items()}
        stage, ranks = _stage_and_ranks(folder, optimizers)
        if stage == 3:
            models = {0: model} | {rank: _load(path) for rank, path in model_files.items() if rank}
            _check_ranks(folder, "model_states", models, ranks)
            weights = _read_param_shards(folder, models, optimizers)
        else:
            weights = _read_flat_group_shards(folder, model, optimizers)
        for alias, name in (model.get("shared_params") or {}).items():
            weights[alias] = weights[name]
        step, version = int(model["global_steps"]), str(model["ds_version"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # forged, or of another layout
        raise InputError(f"{folder} is not laid out as DeepSpeed does it: {error!r}") from error
    return DeepSpeedCheckpoint(folder, stage, ranks, step, version, weights)


def _by_rank(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    found = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            if int(match[2]):
                raise InputError(f"{path} is of a tensor-parallel run; only data-parallel ones are read")
            found[int(match[1] or 0)] = path
    return dict(sorted(found.items()))


def _load(path: Path) -> dict[str, Any]:
    content = load(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not one of DeepSpeed's files: it holds a {type(content).__name__}")
    return content


def load(path: Path) -> Any:
    """Return the content of a .pt file, tensors mapped from it; nothing outside the allow-list comes to life.

    Raises
    ------
    InputError: damaged, or refused, naming what is.
    """
    return pickles.load(path, ALLOWED, remedy=REMEDY)


def _stage_and_ranks(folder: Path, optimizers: dict[int, Any]) -> tuple[int, int]:
    """Return the ZeRO stage and the number of ranks, all of which have left their file."""
    if not optimizers:
        return 0, 1
    first = next(iter(optimizers.values()))
    if not isinstance(first, dict) or "partition_count" not in first:
        raise InputError(f"{folder} has *_optim_states.pt without ZeRO's flat weights")
    # BF16_Optimizer names no stage; it lays its weights as stage 1 does.
    stage = first.get("zero_stage", 1)
    if stage not in FLAT:
        raise InputError(f"{folder} says ZeRO stage {stage}; stages 0 to 3 are known")
    count = first["partition_count"]
    ranks = max(count) if isinstance(count, list) else count
    _check_ranks(folder, "optim_states", optimizers, ranks)
    return stage, ranks


def _groups(model: dict[str, Any], optimizers: dict[int, Any], stage: int) -> Iterator[tuple[int, Any, list[Tensor]]]:
    """Return the number, shapes by name, and each rank's flat weights of every group."""
    shapes = model["param_shapes"] or []
    flats = [optimizer[FLAT[stage]] for optimizer in optimizers.values()]
    for number, (group, *parts) in enumerate(zip(shapes, *flats, strict=True)):
        yield number, group, [part.detach() for part in parts]


def _check_ranks(folder: Path, what: str, found: dict[int, Any], ranks: int) -> None:
    if missing := sorted(set(range(ranks)) - found.keys()):
        raise InputError(f"{folder}: the {what}.pt of rank {missing[0]} is missing ({len(found)} of {ranks} are there)")
    if len(found) > ranks:
        raise InputError(
            f"{folder} holds {what}.pt of {len(found)} ranks for {ranks}: files of another run are mixed in"
        )


def _read_flat_group_shards(folder: Path, model: dict[str, Any], optimizers: dict[int, Any]) -> dict[str, Tensor]:
    """Return the weights of stages 0 to 2: the module as it is, in which the master weights replace what the optimizer
    owns."""
    module = {name: tensor for name, tensor in model["module"].items() if isinstance(tensor, Tensor)}
    if not optimizers and any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in module.values()):
        say(f"{folder}: a 16-bit run without ZeRO; its weights are read as the 16-bit numbers that they are")
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in module.items()}
    first = optimizers.get(0, {})
    for number, shapes, shards in _groups(model, optimizers, 1):
        paddings = (first.get("param_alignment_paddings") or {number: [0] * len(shapes)})[number]
        needed = sum(map(math.prod, shapes.values())) + sum(paddings)
        # What may stand behind the last parameter fills its shards to a multiple of this.
        multiple = 2 * len(shards)
        _check_total(folder, number, -(-needed // multiple), -(-sum(map(len, shards)) // multiple), multiple)
        flat, start = torch.cat(shards), 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            weights[name] = flat[start : start + math.prod(shape)].view(shape)
            start += math.prod(shape) + padding
            _check_cast(folder, name, weights[name], module.get(name))
    return weights


def _check_cast(folder: Path, name: str, master: Tensor, cast: Tensor | None) -> None:
    """Refuse a copy of the module that is no rounded one: another step's, parameter's or run's lies further off."""
    if cast is not None and not torch.allclose(master, cast.float(), rtol=1e-2, atol=1e-3, equal_nan=True):
        raise InputError(f"{folder}: the fp32 weights of {name} are not the module's; files of two saves are mixed")


def _read_param_shards(folder: Path, models: dict[int, Any], optimizers: dict[int, Any]) -> dict[str, Tensor]:
    """Return the weights of stage 3: every parameter from its shards; what the optimizer does not own from the ranks'
    model_states."""
    model, ranks = models[0], len(optimizers)
    weights = {name: model["module"][name] for name in model["buffer_names"]}
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    for name, shape in (model.get("frozen_param_shapes") or {}).items():
        shards = [models[rank]["frozen_param_fragments"][name] for rank in range(ranks)]
        _check_total(folder, name, ranks * -(-math.prod(shape) // ranks), sum(map(len, shards)))
        weights[name] = _joined(shards, shape)
    for number, shapes, flats in _groups(model, optimizers, 3):
        lengths = {name: -(-math.prod(shape) // ranks) for name, shape in shapes.items()}
        for flat in flats:
            _check_total(folder, number, sum(lengths.values()), len(flat))
        start = 0
        for name, shape in shapes.items():
            weights[name] = _joined([flat[start : start + lengths[name]] for flat in flats], shape)
            start += lengths[name]
    return weights


def _joined(shards: Iterable[Tensor], shape: torch.Size) -> Tensor:
    return torch.cat([shard.view(-1) for shard in shards])[: math.prod(shape)].view(shape).float()


def _check_total(folder: Path, what: int | str, needed: int, found: int, unit: int = 1) -> None:
    if needed != found:
        part = f"group {what}" if isinstance(what, int) else what
        raise InputError(
            f"{folder}: {part} needs {needed * unit:,} elements for its shapes, the files hold {found * unit:,}"
        )
