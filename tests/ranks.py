"""Run a function on several ranks over gloo, in processes forked from this one: imports are paid once.

    weights = run_ranks(2, train_a_little, settings)      # a list, one result a rank

A rank that raises fails the caller with its traceback; past the deadline all are killed, by pid.
"""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

# Here, before ranks are forked: else each of them imports them for itself, as deepspeed.initialize does the first.
import deepspeed.module_inject.auto_ep_layer  # noqa: F401
import torch.distributed

import pretrain.trainer  # noqa: F401
from pretrain.zero.engine import import_muon_uncompiled

ECHO_SECONDS = 20.0  # for the rank that failed, after another has repeated it
DEADLINE = 540.0  # seconds, of a busy machine


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any, deadline: float = DEADLINE) -> list[Any]:
    """Results of `function(*arguments)` on ranks 0 .. world - 1; they must pickle."""
    ranks = start_ranks(world, function, *arguments)
    until = time.monotonic() + deadline
    try:
        return _results([connection for _, connection in ranks], until)
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()


def start_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[tuple[Any, Connection]]:
    """The ranks and the pipes on which they answer, for tests that do something to them."""
    # Forked ranks would take this process' group for theirs, whose threads they do not have, and wait for ever.
    assert not torch.distributed.is_initialized(), "a test before this one trained in this process: use run_ranks there"
    import_muon_uncompiled()  # here, and not in every rank
    port = free_port()
    context = multiprocessing.get_context("fork")
    ranks = []
    for rank in range(world):
        ours, theirs = context.Pipe()
        process = context.Process(target=_rank, args=(theirs, rank, world, port, function, arguments), daemon=True)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    return ranks


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(connection: Connection, rank: int, world: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        connection.send((True, function(*arguments)))
    except BaseException:
        connection.send((False, traceback.format_exc()))
    connection.recv()  # stay until all ranks are done: a rank that leaves early breaks the others' collectives


def _results(connections: list[Connection], until: float) -> list[Any]:
    """What all ranks answer; the first failure ends the wait, since the others may hang for it. One that only repeats
    that another rank failed gives that one some seconds to say why."""
    results: dict[int, Any] = {}
    echo: RuntimeError | None = None
    while len(results) < len(connections):
        open_ones = [connection for rank, connection in enumerate(connections) if rank not in results]
        ready = wait(open_ones, max(until - time.monotonic(), 0))
        if not ready:
            raise echo or TimeoutError(f"{len(open_ones)} of {len(connections)} ranks have not answered in time")
        for connection in ready:
            rank = connections.index(connection)  # type: ignore[arg-type]
            try:
                results[rank] = _result(connections[rank], rank)
            except RuntimeError as error:
                if "OtherRankError" not in str(error):
                    raise
                results[rank], echo = None, error
                until = min(until, time.monotonic() + ECHO_SECONDS)
    if echo:
        raise echo
    return [results[rank] for rank in range(len(connections))]


def _result(connection: Connection, rank: int) -> Any:
    try:
        well, value = connection.recv()
    except EOFError:
        raise RuntimeError(f"rank {rank} died") from None
    if not well:
        raise RuntimeError(f"rank {rank} raised\n{value}")
    return value
