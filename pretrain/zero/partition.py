"""Which slice of which parameter lies where on this rank, under ZeRO 0, 1, 2 and 3.

    map_partition(engine, model) -> Partition: flat fp32 buffers (the master weights that the optimizer updates), and
                                               the slices of parameters in them

    stage 0      every rank has every parameter whole, each a buffer of its own
    stages 1, 2  the parameters of a group laid end to end, cut into equal shards, one per rank
    stage 3      every parameter cut into equal shards, one per rank; a rank's shards laid end to end

This is the only file that knows DeepSpeed's private handles. They are those of the pinned version; map_partition()
proves by an all-reduce that the slices of all ranks cover every parameter exactly once, whatever the handles say.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.cli import InputError
from pretrain.distributed import gloo_group

TESTED_DEEPSPEED = "0.19.8"


class Slice(NamedTuple):
    """`length` consecutive elements of a parameter, and where they lie.

    Elements [param_offset, param_offset + length) of the flattened parameter are elements [buffer_offset,
    buffer_offset + length) of fp32 buffer `buffer`.
    """

    name: str  # of the parameter
    buffer: int  # index into Partition.fp32_buffers
    buffer_offset: int
    length: int
    param_offset: int

    def part(self, first: int, length: int) -> "Slice":
        """Return elements [first, first + length) of this slice, as a slice."""
        return self._replace(
            buffer_offset=self.buffer_offset + first, length=length, param_offset=self.param_offset + first
        )

    def of(self, buffer: Tensor) -> Tensor:
        """Return the slice's elements of its buffer, or of a tensor that is laid out like it: a flat view [length]."""
        return buffer.view(-1).narrow(0, self.buffer_offset, self.length)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """This rank's part of the optimizer's tensors."""

    stage: int
    fp32_buffers: list[Tensor]  # master weights; flat at stages 1 to 3
    slices: list[Slice]
    shapes: dict[str, torch.Size]  # of every parameter, by name
    params_in_buffer: list[list[str]]  # of each buffer, the parameters with a slice in it on any rank; alike on all
    optimizer: torch.optim.Optimizer  # its state is keyed by the buffers
    zero_optimizer: Any = None  # DeepSpeed's ZeRO optimizer; None at stage 0

    def view(self, slice_: Slice, kind: str) -> Tensor:
        """Return a slice of kind "master" (the weights) or of an optimizer state such as "exp_avg", or "average", which
        is made where it is absent: a flat view."""
        buffer = self.fp32_buffers[slice_.buffer]
        if kind == "master":
            return slice_.of(buffer.detach())
        state = self.optimizer.state[buffer]
        if kind not in state:
            state[kind] = torch.zeros_like(buffer)
        return slice_.of(state[kind].detach())

    @torch.no_grad()
    def add_to_average(self, share: float) -> None:
        """Move the average of this rank's master weights towards them: average += share * (weights - average).

        It lies beside the moments, an fp32 number for each weight that this rank owns: at stage 0, as the weights do,
        whole on every rank. The first share must be 1, with which it becomes the weights, whatever it was.
        """
        states = [self.optimizer.state[buffer] for buffer in self.fp32_buffers]
        for state, buffer in zip(states, self.fp32_buffers, strict=True):
            if "average" not in state or share == 1:
                state["average"] = buffer.detach().clone()
        if share < 1:
            averages = [state["average"] for state in states]
            torch._foreach_lerp_(averages, [buffer.detach() for buffer in self.fp32_buffers], share)

    @contextmanager
    def computing_with_average(self) -> Iterator[None]:
        """Let the model compute with the average inside; then both are what they were, bit for bit. Collective."""
        with self._model_following():
            self._swap_average()
        yield
        with self._model_following():
            self._swap_average()

    def _swap_average(self) -> None:
        for slice_ in self.slices:  # one by one: memory for a copy of the largest
            weights, average = self.view(slice_, "master"), self.view(slice_, "average")
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    @contextmanager
    def overwriting_master_weights(self) -> Iterator[None]:
        """Overwrite the fp32 buffers inside; the weights that the model computes with follow at the end. Collective."""
        with self._model_following():
            for buffer in self.fp32_buffers:
                if self.zero_optimizer is not None:
                    buffer.detach().zero_()  # the padding between slices is uninitialised memory
            yield

    @contextmanager
    def _model_following(self) -> Iterator[None]:
        """Let the weights that the model computes with become those of the fp32 buffers at the end."""
        if self.stage == 3:
            self.zero_optimizer.checkpoint_event_prologue()  # gathered copies would survive and hide what is written
        yield
        if self.stage == 3:
            for group in range(len(self.fp32_buffers)):
                self.zero_optimizer._reassign_or_swap_out_partitioned_parameters(group)
            self.zero_optimizer.checkpoint_event_epilogue()
        elif self.zero_optimizer is not None:
            self.zero_optimizer.update_lp_params()


def map_partition(engine: deepspeed.DeepSpeedEngine, model: nn.Module, *, allow_untested: bool = False) -> Partition:
    """Find every slice of this rank. Collective: all ranks call it.

    Raises
    ------
    InputError: another DeepSpeed.
    RuntimeError: slices that do not cover the parameters.
    """
    if deepspeed.__version__ != TESTED_DEEPSPEED and not allow_untested:
        raise InputError(
            f"DeepSpeed {deepspeed.__version__} is not the tested {TESTED_DEEPSPEED}; run "
            "launch/setup.sh, or try it with --allow_untested_deepspeed (the slices are checked at start)"
        )
    stage = engine.zero_optimization_stage()
    names = {parameter: name for name, parameter in model.named_parameters()}
    if stage == 0:
        shards = _unsharded(names)
    elif stage == 3:
        shards = _param_shards(engine.optimizer, names)
    else:
        shards = _flat_group_shards(engine.optimizer, names)
    shapes = {name: getattr(parameter, "ds_shape", parameter.shape) for parameter, name in names.items()}
    return Partition(
        stage=stage,
        fp32_buffers=shards.fp32_buffers,
        slices=shards.slices,
        shapes=shapes,
        params_in_buffer=_params_per_buffer(stage, shards, shapes),
        optimizer=getattr(engine.optimizer, "optimizer", engine.optimizer) if stage else engine.optimizer,
        zero_optimizer=engine.optimizer if stage else None,
    )


def unsharded_partition(model: nn.Module, optimizer: torch.optim.Optimizer) -> Partition:
    """Return the partition of a model without an engine, which is that of stage 0."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    buffers, slices = _unsharded(names)
    return Partition(
        stage=0,
        fp32_buffers=buffers,
        slices=slices,
        shapes={name: parameter.shape for parameter, name in names.items()},
        params_in_buffer=[[name] for name in names.values()],
        optimizer=optimizer,
    )


class _Shards(NamedTuple):
    """What this rank holds."""

    fp32_buffers: list[Tensor]
    slices: list[Slice]


def _unsharded(names: dict[nn.Parameter, str]) -> _Shards:
    """Stage 0: every parameter is a buffer, and its only slice."""
    slices = [
        Slice(name, buffer=index, buffer_offset=0, length=parameter.numel(), param_offset=0)
        for index, (parameter, name) in enumerate(names.items())
    ]
    return _Shards(list(names), slices)


def _flat_group_shards(zero: Any, names: dict[nn.Parameter, str]) -> _Shards:
    """Stages 1 and 2: each group is one flat tensor, of which each rank owns an equal shard.

    Two ranks, a group of a [6 elements] and b [4]: rank 0 holds a[0:5], rank 1 holds a[5:6] and b[0:4].
    """
    prefix = "bit16" if hasattr(zero, "bit16_groups") else "bf16"  # BF16_Optimizer has its own names
    groups, flats = getattr(zero, f"{prefix}_groups"), getattr(zero, f"{prefix}_groups_flat")
    buffers = zero.single_partition_of_fp32_groups if prefix == "bit16" else zero.fp32_groups_flat_partition
    slices = []
    for index, (group, flat, buffer) in enumerate(zip(groups, flats, buffers, strict=True)):
        # This rank's shard is [first, first + len(buffer)) of the group.
        first = dist.get_rank(zero.real_dp_process_group[index]) * buffer.numel()
        for parameter in group:
            # Where the parameter lies in the group is read off its storage: DeepSpeed's own _hp_mapping is wrong with
            # round_robin_gradients.
            begin = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
            # What the parameter and the shard have in common.
            low, high = max(begin, first), min(begin + parameter.numel(), first + buffer.numel())
            if low < high:
                name = names[parameter]
                slices.append(
                    Slice(name, buffer=index, buffer_offset=low - first, length=high - low, param_offset=low - begin)
                )
    return _Shards(list(buffers), slices)


def _param_shards(zero: Any, names: dict[nn.Parameter, str]) -> _Shards:
    """Stage 3: each parameter is cut into equal shards, rounded up; a rank's shards of a group lie end to end.

    Two ranks, a [5 elements] and b [4]: rank 0 holds a[0:3], b[0:2], rank 1 holds a[3:5], one of padding, b[2:4].
    """
    slices = []
    for index, group in enumerate(zero.fp16_groups):
        buffer_offset = 0
        for parameter in group:
            shard_size = parameter.ds_tensor.numel()  # the same on all ranks; the last one's tail is padding
            param_offset = zero._get_param_partition_rank(parameter) * shard_size
            length = min(max(parameter.ds_numel - param_offset, 0), shard_size)
            if length:
                name = names[parameter]
                slices.append(
                    Slice(name, buffer=index, buffer_offset=buffer_offset, length=length, param_offset=param_offset)
                )
            buffer_offset += shard_size
    return _Shards(list(zero.fp32_partitioned_groups_flat), slices)


def _params_per_buffer(stage: int, shards: _Shards, shapes: dict[str, torch.Size]) -> list[list[str]]:
    """Return, for each buffer, the parameters with a slice in it on any rank, having proved that the slices of all
    ranks cover every parameter exactly once. Collective where sharded.

    Raises
    ------
    RuntimeError: they do not.
    """
    names = list(shapes)
    index_of = {name: index for index, name in enumerate(names)}
    # Of each parameter: its elements, the sum of their indices, and its slices in each buffer; over all ranks.
    totals = torch.zeros(len(names), 2 + len(shards.fp32_buffers), dtype=torch.float64)
    for slice_ in shards.slices:
        row = totals[index_of[slice_.name]]
        row[0] += slice_.length
        row[1] += slice_.length * (slice_.param_offset + (slice_.length - 1) / 2)
        row[2 + slice_.buffer] += 1
    if stage and dist.get_world_size() > 1:
        dist.all_reduce(totals, group=gloo_group())
    # A parameter of n elements has n of them, and their indices 0 .. n - 1 add up to n (n - 1) / 2.
    for name, (length, index_sum, *_) in zip(names, totals.tolist(), strict=True):
        count = math.prod(shapes[name])
        if (length, index_sum) != (count, count * (count - 1) / 2):
            raise RuntimeError(f"ZeRO stage {stage}: ranks hold {length:.0f} elements of {name}, which has {count}")
    return [
        [name for name in names if totals[index_of[name], 2 + buffer]] for buffer in range(len(shards.fp32_buffers))
    ]
