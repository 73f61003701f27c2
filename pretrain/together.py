"""Ranks that agree: all go on, or all raise, or all stop. Host tensors only, so nothing waits for a GPU.

same_on_all_ranks(what)               versions, settings and stores are those of the first rank
with agreed("checkpoint ..."): ...    all leave the block well, or all raise
told_by_first(value)                  what one rank has found out
"""

import hashlib
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_prep.cli import InputError

T = TypeVar("T")
MOST = 6  # differences that a message names
_groups: dict[str, dist.ProcessGroup] = {}


def host_group(purpose: str = "loop") -> dist.ProcessGroup:
    """A gloo group of all ranks. Each thread that talks has its own; the first call for a purpose is collective."""
    if purpose not in _groups:
        _groups[purpose] = dist.new_group(backend="gloo")
    return _groups[purpose]


def largest(value: int, group: dist.ProcessGroup) -> int:
    """The largest of the ranks' values."""
    return largest_of((value,), group)[0]


def largest_of(values: Sequence[int], group: dist.ProcessGroup) -> list[int]:
    """The largest of the ranks' values, for each of several: one message for all of them."""
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor.tolist()


def told_by_first(value: T) -> T:
    """What the first rank has, on all ranks."""
    told = [value]
    dist.broadcast_object_list(told, src=0, group=host_group())
    return told[0]


def same_on_all_ranks(what: Mapping[str, Any]) -> None:
    """Compare named JSON values over the ranks: a hash, and the values only where it differs. Collective.

    Raises
    ------
    InputError: on all ranks alike, naming what differs and who has which.
    """
    mine = {name: json.dumps(value, sort_keys=True) for name, value in what.items()}
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).digest()
    first = told_by_first(digest)
    if not largest(int(digest != first), host_group()):
        return
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (socket.gethostname(), mine), group=host_group())
    names = {name: None for _, values in everyone for name in values}  # a dict keeps their order
    different = [name for name in names if len({values.get(name) for _, values in everyone}) > 1]
    told = "; ".join(f"{name} is {_by_rank(name, everyone)}" for name in different[:MOST])
    more = f"; and {len(different) - MOST} more" if len(different) > MOST else ""
    raise InputError(
        f"the ranks are not alike: {told}{more}. Give all nodes the same software and stores, and all ranks one command"
    )


def _by_rank(name: str, everyone: list[Any]) -> str:
    """Which ranks have which value."""
    having: dict[str, list[int]] = {}
    for rank, (_, values) in enumerate(everyone):
        having.setdefault(values.get(name, "absent"), []).append(rank)
    return ", ".join(f"{value} on {_in_words(ranks)} ({everyone[ranks[0]][0]})" for value, ranks in having.items())


def _in_words(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    is_span = ranks == list(range(ranks[0], ranks[-1] + 1))
    return f"ranks {f'{ranks[0]} to {ranks[-1]}' if is_span else ', '.join(map(str, ranks))}"


class OtherRankFailed(OSError):  # noqa: N818 - says what happened, not what is wrong here
    """Another rank raised; its own message says why."""

    def __init__(self, what: str, rank: int, exit_code: int):
        super().__init__(f"{what}: rank {rank} failed; its message says why")
        self.exit_code = exit_code


class agreed:  # noqa: N801 - reads as a phrase: with agreed("checkpoint ..."):
    """All ranks leave the block well, or all raise: one rank alone would leave the others in a collective for ever.

    Of the ranks that meet wrong input the lowest says so; the first one's words are left to whoever catches them.
    """

    def __init__(self, what: str, purpose: str = "loop"):
        self.what, self.group = what, host_group(purpose)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, Exception):
            return  # interrupted: the process ends
        exit_code = 0 if error is None else 2 if isinstance(error, InputError) else 1
        rank, world = dist.get_rank(), dist.get_world_size()
        failed = largest((world - rank) * 4 + exit_code if exit_code else 0, self.group)
        first = world - failed // 4
        if error is None and failed:
            raise OtherRankFailed(self.what, first, failed % 4)
        if isinstance(error, InputError) and rank == first > 0:
            print(f"error: rank {rank} on {socket.gethostname()}: {error}", file=sys.stderr, flush=True)
