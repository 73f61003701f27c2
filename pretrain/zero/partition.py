"""Which slice of which parameter lies where on this rank, under ZeRO 0, 1, 2 and 3.

    bind(engine, model) -> Partition: masters (flat fp32 tensors that the optimizer updates) and the slices in them

    stage 0      every rank has every parameter whole
    stages 1, 2  the parameters of a group laid end to end, cut into equal windows, one a rank
    stage 3      every parameter cut into equal pieces, one a rank; a rank's pieces laid end to end

This is the only file that knows DeepSpeed's private handles. They are those of the pinned version; bind() proves by an
all-reduce that the slices of all ranks cover every parameter exactly once, whatever the handles say.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.cli import InputError
from pretrain.distributed import gloo_group

TESTED_DEEPSPEED = "0.19.8"


class Slice(NamedTuple):
    """`length` elements of a parameter, `offset` elements from its beginning, at `start` in master number `master`."""

    name: str
    master: int
    start: int
    length: int
    offset: int


class Partition(NamedTuple):
    """This rank's part of the optimizer's tensors."""

    stage: int
    masters: list[Tensor]  # fp32, flat at stages 1 to 3
    slices: list[Slice]
    shapes: dict[str, torch.Size]  # of every parameter, by name
    members: list[list[str]]  # for each master, the parameters with a slice in it on any rank; the same on all ranks
    optimizer: torch.optim.Optimizer  # its state is keyed by the masters
    zero: Any  # DeepSpeed's ZeRO optimizer; None at stage 0

    def view(self, piece: Slice, kind: str) -> Tensor:
        """The slice of kind "master", or of an optimizer state such as "exp_avg" (made if absent): a flat view."""
        tensor = self.masters[piece.master]
        if kind != "master":
            state = self.optimizer.state[tensor]
            if kind not in state:
                state[kind] = torch.zeros_like(tensor)
            tensor = state[kind]
        return tensor.detach().view(-1)[piece.start : piece.start + piece.length]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Overwrite masters inside; the weights that the model computes with follow at the end. Collective."""
        if self.stage == 3:
            self.zero.checkpoint_event_prologue()  # gathered copies would survive and hide what is written
        for master in self.masters:
            if self.zero is not None:
                master.detach().zero_()  # the padding between slices is uninitialised memory
        yield
        if self.stage == 3:
            for group in range(len(self.masters)):
                self.zero._reassign_or_swap_out_partitioned_parameters(group)
            self.zero.checkpoint_event_epilogue()
        elif self.zero is not None:
            self.zero.update_lp_params()


def bind(engine: Any, model: nn.Module, allow_untested: bool = False) -> Partition:
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
    shapes = {name: getattr(parameter, "ds_shape", parameter.shape) for parameter, name in names.items()}
    zero = engine.optimizer if stage else None
    if stage == 0:
        masters, slices = _whole(names)
    elif stage == 3:
        masters, slices = _pieces(zero, names)
    else:
        masters, slices = _windows(zero, names)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer) if stage else engine.optimizer
    members = _check_coverage(stage, masters, slices, shapes)
    return Partition(stage, masters, slices, shapes, members, inner, zero)


def unsharded(model: nn.Module, optimizer: torch.optim.Optimizer) -> Partition:
    """A model without an engine, as stage 0 has it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    masters, slices = _whole(names)
    shapes = {name: parameter.shape for parameter, name in names.items()}
    return Partition(0, masters, slices, shapes, [[name] for name in shapes], optimizer, None)


def _whole(names: dict[nn.Parameter, str]) -> tuple[list[Tensor], list[Slice]]:
    slices = [Slice(name, number, 0, parameter.numel(), 0) for number, (parameter, name) in enumerate(names.items())]
    return list(names), slices


def _windows(zero: Any, names: dict[nn.Parameter, str]) -> tuple[list[Tensor], list[Slice]]:
    """Stages 1 and 2. Offsets come from storage: DeepSpeed's own _hp_mapping is wrong with round_robin_gradients."""
    prefix = "bit16" if hasattr(zero, "bit16_groups") else "bf16"  # BF16_Optimizer has its own names
    groups, flats = getattr(zero, f"{prefix}_groups"), getattr(zero, f"{prefix}_groups_flat")
    masters = zero.single_partition_of_fp32_groups if prefix == "bit16" else zero.fp32_groups_flat_partition
    slices = []
    for number, (group, flat, master) in enumerate(zip(groups, flats, masters, strict=True)):
        first = dist.get_rank(zero.real_dp_process_group[number]) * master.numel()
        for parameter in group:
            begin = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
            low = max(begin, first)
            high = min(begin + parameter.numel(), first + master.numel())
            if low < high:
                slices.append(Slice(names[parameter], number, low - first, high - low, low - begin))
    return list(masters), slices


def _pieces(zero: Any, names: dict[nn.Parameter, str]) -> tuple[list[Tensor], list[Slice]]:
    slices = []
    for number, group in enumerate(zero.fp16_groups):
        start = 0
        for parameter in group:
            piece = parameter.ds_tensor.numel()  # the same on all ranks; the last one's tail is padding
            offset = zero._get_param_partition_rank(parameter) * piece
            length = min(max(parameter.ds_numel - offset, 0), piece)
            if length:
                slices.append(Slice(names[parameter], number, start, length, offset))
            start += piece
    return list(zero.fp32_partitioned_groups_flat), slices


def _check_coverage(
    stage: int, masters: list[Tensor], slices: list[Slice], shapes: dict[str, torch.Size]
) -> list[list[str]]:
    """All ranks' slices hold every element of every parameter once: their number and the sum of their indices agree.

    Returns, for each master, the parameters with a slice in it on any rank.
    """
    names = list(shapes)
    row_of = {name: row for row, name in enumerate(names)}
    found = torch.zeros(len(names), 2 + len(masters), dtype=torch.float64)
    for piece in slices:
        row = found[row_of[piece.name]]
        row[0] += piece.length
        row[1] += piece.length * (piece.offset + (piece.length - 1) / 2)
        row[2 + piece.master] += 1
    if stage and dist.get_world_size() > 1:
        dist.all_reduce(found, group=gloo_group())
    for name, (length, index_sum, *_) in zip(names, found.tolist(), strict=True):
        count = math.prod(shapes[name])
        if (length, index_sum) != (count, count * (count - 1) / 2):
            raise RuntimeError(f"ZeRO stage {stage}: ranks hold {length:.0f} elements of {name}, which has {count}")
    return [[name for name in names if found[row_of[name], 2 + number]] for number in range(len(masters))]
