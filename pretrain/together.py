"""Ranks that agree: all go on, or all raise, or all stop. Host tensors only, so nothing waits for a GPU."""

from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from data_prep.cli import InputError

_groups: dict[str, dist.ProcessGroup] = {}


def host_group(purpose: str = "loop") -> dist.ProcessGroup:
    """A gloo group of all ranks. Each thread that talks has its own; the first call for a purpose is collective."""
    if purpose not in _groups:
        _groups[purpose] = dist.new_group(backend="gloo")
    return _groups[purpose]


def largest(value: int, group: dist.ProcessGroup) -> int:
    """The largest of the ranks' values."""
    tensor = torch.tensor([value])
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return int(tensor.item())


def told_by_first(path: Path | None) -> Path | None:
    """What the first rank has, on all ranks."""
    told = [None if path is None else str(path)]
    dist.broadcast_object_list(told, src=0, group=host_group())
    return None if told[0] is None else Path(told[0])


class OtherRankFailed(OSError):  # noqa: N818 - says what happened, not what is wrong here
    """Another rank raised; its own message says why."""

    def __init__(self, what: str, rank: int, exit_code: int):
        super().__init__(f"{what}: rank {rank} failed; its message says why")
        self.exit_code = exit_code


class agreed:  # noqa: N801 - reads as a phrase: with agreed("checkpoint ..."):
    """All ranks leave the block well, or all raise: one rank alone would leave the others in a collective for ever."""

    def __init__(self, what: str, purpose: str = "loop"):
        self.what, self.group = what, host_group(purpose)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, Exception):
            return  # interrupted: the process ends
        exit_code = 0 if error is None else 2 if isinstance(error, InputError) else 1
        failed = largest((dist.get_rank() + 1) * 4 + exit_code if exit_code else 0, self.group)
        if error is None and failed:
            raise OtherRankFailed(self.what, failed // 4 - 1, failed % 4)
