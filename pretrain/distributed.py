"""What ranks say to each other. Host tensors only (gloo), so nothing waits for a GPU.

gloo_group("saver")                                 a group of all ranks, for one thread to talk in
all_reduce_max(value, group)                        the largest of the ranks' values
broadcast_object(value)                             rank 0's value, on all ranks
with all_ranks_or_none("checkpoint ..."): ...       all leave the block well, or all raise
on_rank_0("run folder ...", function)               what a function returns on rank 0, on all ranks; or all raise
check_same_on_all_ranks(what)                       versions, settings and stores are alike
"""

import hashlib
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_prep.cli import InputError

T = TypeVar("T")
MAX_DIFFERENCES = 6  # that a message names
_groups: dict[str, dist.ProcessGroup] = {}


class OtherRankError(OSError):
    """Another rank raised; its own message says why."""

    def __init__(self, what: str, rank: int, exit_code: int):
        super().__init__(f"{what}: rank {rank} failed; its message says why")
        self.exit_code = exit_code


def gloo_group(name: str = "loop") -> dist.ProcessGroup:
    """Return the gloo group of all ranks that has this name. Each thread that talks has its own; the first call for a
    name is collective."""
    if name not in _groups:
        _groups[name] = dist.new_group(backend="gloo")
    return _groups[name]


def all_reduce_max(value: int, group: dist.ProcessGroup) -> int:
    """Return the largest of the ranks' values."""
    return all_reduce_max_each((value,), group)[0]


def all_reduce_max_each(values: Sequence[int], group: dist.ProcessGroup) -> list[int]:
    """Return the largest of the ranks' values, for each of several: one message for all of them."""
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor.tolist()


def broadcast_object(value: T) -> T:
    """Return rank 0's value on all ranks."""
    values = [value]
    dist.broadcast_object_list(values, src=0, group=gloo_group())
    return values[0]


@contextmanager
def all_ranks_or_none(what: str, group: str = "loop") -> Iterator[None]:
    """Let all ranks leave the block well, or let all raise: one alone would leave the others in a collective for ever.

    A rank that met no error raises OtherRankError. Of the ranks that meet wrong input the lowest says so; rank 0's
    words are left to whoever catches them.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # whoever is interrupted (KeyboardInterrupt, SystemExit) ends without the others
        error = raised
    rank = dist.get_rank()
    # The exit code of each rank, 0 where it met no error: every rank fills in its own, and the maximum has all of them.
    exit_codes = [0] * dist.get_world_size()
    if error is not None:
        exit_codes[rank] = 2 if isinstance(error, InputError) else 1
    exit_codes = all_reduce_max_each(exit_codes, gloo_group(group))
    first_failed = next((index for index, code in enumerate(exit_codes) if code), None)
    if error is not None:
        if isinstance(error, InputError) and rank == first_failed != 0:
            print(f"error: rank {rank} on {socket.gethostname()}: {error}", file=sys.stderr, flush=True)
        raise error
    if first_failed is not None:
        raise OtherRankError(what, first_failed, exit_codes[first_failed])


def on_rank_0(what: str, function: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its result on all ranks; where it raises, all raise. Collective."""
    result: Any = None
    with all_ranks_or_none(what):
        if dist.get_rank() == 0:
            result = function()
    return broadcast_object(result)


def check_same_on_all_ranks(what: Mapping[str, Any]) -> None:
    """Compare named JSON values over the ranks: a hash, and the values only where it differs. Collective.

    Raises
    ------
    InputError: on all ranks alike, naming what differs and who has which.
    """
    mine = {name: json.dumps(value, sort_keys=True) for name, value in what.items()}
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).digest()
    if not all_reduce_max(int(digest != broadcast_object(digest)), gloo_group()):
        return
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (socket.gethostname(), mine), group=gloo_group())
    names = {name: None for _, values in everyone for name in values}  # a dict keeps their order
    different = [name for name in names if len({values.get(name) for _, values in everyone}) > 1]
    described = "; ".join(f"{name} is {_by_rank(name, everyone)}" for name in different[:MAX_DIFFERENCES])
    more = f"; and {len(different) - MAX_DIFFERENCES} more" if len(different) > MAX_DIFFERENCES else ""
    raise InputError(
        f"the ranks are not alike: {described}{more}. Give all nodes the same software and stores, and all ranks one "
        "command"
    )


def _by_rank(name: str, everyone: list[Any]) -> str:
    """Return in words which ranks have which value."""
    ranks_with: dict[str, list[int]] = {}
    for rank, (_, values) in enumerate(everyone):
        ranks_with.setdefault(values.get(name, "absent"), []).append(rank)
    return ", ".join(f"{value} on {_in_words(ranks)} ({everyone[ranks[0]][0]})" for value, ranks in ranks_with.items())


def _in_words(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    is_span = ranks == list(range(ranks[0], ranks[-1] + 1))
    return f"ranks {f'{ranks[0]} to {ranks[-1]}' if is_span else ', '.join(map(str, ranks))}"
