"""Who does which part: two integers, wherever they come from, and a pool of local processes that fails loudly.

    rank, world = rank_and_world()              # from mpirun, srun or a Slurm array; (0, 1) otherwise
    mine = part_of(items, rank, world)
    for result in run_local(work, mine, workers=4, name=str, report=bar): ...

Ranks need not talk to each other: they share a folder, each writes its own files whole, and whoever finds all of them
there finishes. `run_local` hands items to processes as they become free, and fails naming the item whose process died:
a missing part is never passed over.
"""

import fcntl
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from data_prep.cli import InputError, number_in

T = TypeVar("T")
R = TypeVar("R")

_LAUNCHERS = (  # variables that hold the rank and the number of ranks
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun; the latter is absent in a batch script outside srun
)


class WorkFailed(Exception):  # noqa: N818
    """A part of the work failed or its process died; the message names the part."""


class Place(NamedTuple):
    """This process among all that share the work."""

    rank: int
    world: int


def rank_and_world(environment: Mapping[str, str] = os.environ) -> Place:
    """This process' place as its launcher tells it; (0, 1) where nothing launched it.

    Raises
    ------
    InputError: what a launcher says cannot be: parts of the work would be done twice, or by nobody.
    """
    for rank, world in _LAUNCHERS:
        if rank in environment and world in environment:
            return _place(environment, rank, number_in(environment, rank), number_in(environment, world, least=1))
    task = "SLURM_ARRAY_TASK_ID"
    if task in environment:
        first = number_in(environment, "SLURM_ARRAY_TASK_MIN", 0)
        step = number_in(environment, "SLURM_ARRAY_TASK_STEP", 1, least=1)
        count = number_in(environment, "SLURM_ARRAY_TASK_COUNT", least=1)
        return _place(environment, task, (number_in(environment, task) - first) // step, count)
    return Place(0, 1)


def _place(environment: Mapping[str, str], name: str, rank: int, world: int) -> Place:
    if not 0 <= rank < world:
        raise InputError(
            f"{name}={environment[name]} makes this rank {rank} of {world}; ranks go from 0 to {world - 1} "
            "(a Slurm array must be one range, such as --array=0-7)"
        )
    return Place(rank, world)


def part_of(items: Sequence[T], rank: int, world: int) -> Sequence[T]:
    """This rank's share. Every item belongs to exactly one rank, whatever starts the ranks."""
    return items[rank::world]


@contextmanager
def only_writer(folder: Path, place: Place) -> Iterator[None]:
    """Hold a folder for the ranks of one job: a process of another job, or a second one of the same rank, is refused.

    A lock is held by a file for each rank, and by the process alone: not by its children, which may outlive it.

    Raises
    ------
    InputError: somebody else is writing there.
    """
    mine = folder / f"writer-{place.rank}-of-{place.world}"
    descriptor = os.open(mine, os.O_RDWR | os.O_CREAT)
    try:
        others = [path for path in folder.glob("writer-*") if not path.name.endswith(f"-of-{place.world}")]
        if not _lock(descriptor) or any(map(_is_locked, others)):
            raise InputError(f"{folder.parent} is being written by another process; wait for it or give another --out")
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: nobody can tell
        return True
    return True


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def local_workers(place: Place) -> int:
    """Processes to start where nobody says: one a core, or one where a launcher started several ranks."""
    return 1 if place.world > 1 else len(os.sched_getaffinity(0))


def run_local(
    work: Callable[[T, Callable[[Any], None]], R],
    items: Sequence[T],
    workers: int,
    name: Callable[[T], str],
    report: Callable[[Any], None],
) -> Iterator[R]:
    """Results of `work(item, report)` in the order in which they are ready; `report` is called in this process.

    `work` runs in forked processes and may close over whatever it needs; with one worker it runs right here.

    Raises
    ------
    InputError: as `work` raised it. WorkFailed: `work` raised something else, or its process died.
    """
    if workers == 1 or len(items) <= 1:
        for item in items:
            try:
                yield work(item, report)
            except OSError as error:
                raise WorkFailed(f"{name(item)}: {error}") from error
        return
    pool = _Pool(work, min(workers, len(items)))
    try:
        yield from pool.results(items, name, report)
    finally:
        pool.end()


class _Pool:
    def __init__(self, work: Callable[..., Any], workers: int):
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe() for _ in range(workers)]
        self.ends = [ours for ours, _ in pipes]
        self.processes = {}
        for mine, (ours, theirs) in enumerate(pipes):
            # A copy of our end in a sibling would keep a worker alive, waiting, after this process was killed.
            foreign = [*self.ends, *(end for other, (_, end) in enumerate(pipes) if other > mine)]
            process = context.Process(target=_serve, args=(work, theirs, foreign), daemon=True)
            process.start()
            theirs.close()
            self.processes[ours] = process

    def results(self, items: Sequence[Any], name: Callable[[Any], str], report: Callable[[Any], None]) -> Iterator[Any]:
        waiting = list(reversed(items))
        doing: dict[Connection, Any] = {}
        for end in self.ends:
            doing[end] = waiting.pop()
            end.send(doing[end])
        while doing:
            for end in cast(list[Connection], wait(list(doing))):
                kind, content = self._receive(end, name(doing[end]))
                if kind == "report":
                    report(content)
                    continue
                del doing[end]
                if waiting:
                    doing[end] = waiting.pop()
                    end.send(doing[end])
                yield content

    def _receive(self, end: Connection, item: str) -> tuple[str, Any]:
        try:
            kind, content = end.recv()
        except (EOFError, ConnectionResetError) as error:
            self.processes[end].join(5)
            code = self.processes[end].exitcode
            how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            raise WorkFailed(f"{item}: its worker process died ({how}); run the command again to continue") from error
        if kind == "input error":
            raise InputError(content)
        if kind == "failure":
            raise WorkFailed(f"{item}: {content}")
        return kind, content

    def end(self) -> None:
        """End the processes, whatever they are doing."""
        for process in self.processes.values():
            process.terminate()
        for end, process in self.processes.items():
            process.join()
            end.close()


def _serve(work: Callable[..., Any], pipe: Connection, foreign: list[Connection]) -> None:
    """What a worker process does: items in, reports and results out, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which is how it decides, whatever it does itself on such a signal
    for end in foreign:
        end.close()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            item = pipe.recv()
            try:
                pipe.send(("result", work(item, lambda content: pipe.send(("report", content)))))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except InputError as error:
                pipe.send(("input error", str(error)))
            except OSError as error:
                pipe.send(("failure", str(error)))
            except Exception:
                pipe.send(("failure", traceback.format_exc()))
