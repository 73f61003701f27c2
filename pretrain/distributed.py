"""What ranks say to each other. Host tensors only (gloo), so nothing waits for a GPU.

meet("gloo", timeout)                               the ranks come together, or who is missing is said
gloo_group("saver")                                 a group of all ranks, for one thread to talk in
all_reduce_max(value, group)                        the largest of the ranks' values
told = begin_broadcast((1, 2)); ...; told()         rank 0's numbers, on their way while something else is done
Notices("stop")                                     what any rank may pin up, and rank 0 looks for
broadcast_object(value)                             rank 0's value, on all ranks
gather_objects(value)                               the values of all ranks, on all ranks
with all_ranks_or_none("checkpoint ..."): ...       all leave the block well, or all raise
on_rank_0("run folder ...", function)               what a function returns on rank 0, on all ranks; or all raise
led_by_rank_0("run folder ...", lead, answer)       the same, where rank 0 asks all ranks to do parts of it
check_same_on_all_ranks(what)                       versions, settings and stores are alike
"""

import hashlib
import json
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_prep.cli import InputError
from pretrain.network import wait_for_first_rank

T = TypeVar("T")
R = TypeVar("R")
MAX_DIFFERENCES = 6  # that a message names
MEET_SECONDS = 300.0  # in which every rank must come to where they meet: nodes start apart
CONNECT_SECONDS = 60.0  # in which they must then connect to each other
# Of what ranks tell each other on the host: one may build an index for an hour. What hangs is ended by watchdog.py.
HOST_TIMEOUT = timedelta(days=7)
_groups: dict[str, dist.ProcessGroup] = {}


class OtherRankError(OSError):
    """Another rank raised; its own message says why."""

    def __init__(self, what: str, rank: int, exit_code: int):
        super().__init__(f"{what}: rank {rank} failed; its message says why")
        self.exit_code = exit_code


def meet(backend: str, timeout: timedelta) -> None:
    """Start torch.distributed between the ranks that the launcher's variables describe. Collective.

    timeout: of the collectives that follow. Coming together has shorter ones, so that it fails by its name.

    Raises
    ------
    InputError: nobody is where the ranks should meet, some do not come, or they cannot connect to each other.
    """
    if dist.is_initialized():
        return
    _groups.clear()
    if os.environ["RANK"] != "0":
        wait_for_first_rank(os.environ)
    where = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEET_SECONDS)))
    except (dist.DistError, RuntimeError) as error:
        raise InputError(
            f"{where}: the ranks cannot meet there ({_first_line(error)}); the address is that of the first node, and "
            "the port one that is free there and that the others may reach: --master_addr, --master_port"
        ) from error
    wait_for_all(store, rank, world, where)
    try:
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=CONNECT_SECONDS)
        )
        _groups["loop"] = dist.new_group(backend="gloo", timeout=timedelta(seconds=CONNECT_SECONDS))
    except (dist.DistError, RuntimeError) as error:
        raise InputError(
            f"rank {rank} on {socket.gethostname()}: the ranks have met at {where}, but cannot connect to each other "
            f"({_first_line(error)}); name the network that joins the nodes, GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME, and open ports above 1023 between them in the firewall"
        ) from error
    dist.distributed_c10d._set_pg_timeout(timeout)
    dist.distributed_c10d._set_pg_timeout(HOST_TIMEOUT, gloo_group())


def wait_for_all(store: dist.Store, rank: int, world: int, where: str) -> None:
    """Wait until every rank is there.

    Raises
    ------
    InputError: naming those that are not, within MEET_SECONDS.
    """
    store.set(f"zerobert/came/{rank}", socket.gethostname())
    if store.add("zerobert/came", 1) == world:
        store.set("zerobert/all", "")
    try:
        store.wait(["zerobert/all"], timedelta(seconds=MEET_SECONDS))
    except (dist.DistError, RuntimeError) as error:
        try:
            missing = [other for other in range(world) if not store.check([f"zerobert/came/{other}"])]
        except (dist.DistError, RuntimeError):  # rank 0, which keeps the store, has gone: it says why
            raise InputError(f"{where}: rank 0 has ended ({_first_line(error)})") from error
        raise InputError(
            f"{where}: {_in_words(missing)} of {world} did not come within {MEET_SECONDS:.0f} seconds; what their "
            "nodes say stands above, or in the log of the launcher"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].strip()[:300]  # C++ frames follow


def gloo_group(name: str = "loop") -> dist.ProcessGroup:
    """Return the gloo group of all ranks that has this name. Each thread that talks has its own; the first call for a
    name is collective."""
    if name not in _groups:
        _groups[name] = dist.new_group(backend="gloo", timeout=HOST_TIMEOUT)
    return _groups[name]


def all_reduce_max(value: int, group: dist.ProcessGroup) -> int:
    """Return the largest of the ranks' values."""
    return all_reduce_max_each((value,), group)[0]


def all_reduce_max_each(values: Sequence[int], group: dist.ProcessGroup) -> list[int]:
    """Return the largest of the ranks' values, for each of several: one message for all of them."""
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor.tolist()


def begin_broadcast(values: Sequence[int]) -> Callable[[], list[int]]:
    """Begin to send rank 0's values to all ranks; the function that is returned waits for them. Collective.

    It goes down a tree: for 1,024 ranks 10 messages one after another, where an all-reduce is a ring of 2,046.
    """
    tensor = torch.tensor(values)
    work = dist.broadcast(tensor, src=0, group=gloo_group(), async_op=True)

    def told() -> list[int]:
        work.wait()
        return tensor.tolist()

    return told


class Notices:
    """Small numbers that any rank may pin up, and that rank 0 looks for, in the store by which the ranks have met: it
    costs the others nothing as long as nobody has anything to say. Made collectively."""

    def __init__(self, name: str):
        # The store lives on when a run has ended in this process: each has names of its own.
        self._store = dist.PrefixStore(
            f"zerobert/{name}/{broadcast_object(uuid.uuid4().hex)}", dist.distributed_c10d._get_default_store()
        )
        self._pinned: set[int] = set()

    def pin(self, number: int) -> None:
        """Let rank 0 know; once is enough."""
        if number not in self._pinned:
            self._pinned.add(number)
            with suppress(RuntimeError):  # rank 0, which keeps the store, has gone: the next collective says so
                self._store.set(str(number), "")
                self._store.set("any", "")

    def largest(self, below: int) -> int:
        """Return the largest number below `below` that is pinned up; 0: there is none."""
        if not self._store.check(["any"]):
            return 0
        return max((number for number in range(1, below) if self._store.check([str(number)])), default=0)


def broadcast_object(value: T) -> T:
    """Return rank 0's value on all ranks."""
    values = [value]
    dist.broadcast_object_list(values, src=0, group=gloo_group())
    return values[0]


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, by rank. Collective."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=gloo_group())
    return values


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


def led_by_rank_0(what: str, lead: Callable[[Callable[[Any], list[T]]], R], answer: Callable[[Any], T]) -> R:
    """Call `lead(ask)` on rank 0 and return its result on all ranks; where it raises, all raise. Collective.

    `ask(question)` returns what `answer(question)` does on each rank, by rank. Where one of them raises, the first such
    error is raised by `ask`, on rank 0: it may go on.
    """

    def try_to_answer(question: Any) -> T | Exception:
        try:
            return answer(question)
        except Exception as error:
            return error

    def ask(question: Any) -> list[T]:
        broadcast_object((question,))
        answers: list[Any] = [None] * dist.get_world_size()
        dist.gather_object(try_to_answer(question), answers, group=gloo_group())
        for error in answers:
            if isinstance(error, Exception):
                raise error
        return answers

    result: Any = None
    with all_ranks_or_none(what):
        if dist.get_rank() == 0:
            try:
                result = lead(ask)
            finally:
                broadcast_object(())  # no more questions
        else:
            while asked := broadcast_object(()):
                dist.gather_object(try_to_answer(*asked), group=gloo_group())
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
    everyone = gather_objects((socket.gethostname(), mine))
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
    """Return "rank 3", "ranks 2 to 5" or "ranks 1, 4"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    is_span = ranks == list(range(ranks[0], ranks[-1] + 1))
    return f"ranks {f'{ranks[0]} to {ranks[-1]}' if is_span else ', '.join(map(str, ranks))}"
