"""Who does which part: two integers, wherever they come from.

    rank, world_size = rank_from_env()          # from mpirun, srun or a Slurm array; (0, 1) otherwise
    mine = shard_for_rank(items, rank, world_size)

Ranks need not talk to each other: they share a folder, each writes its own files whole, and whoever finds all of them
there finishes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from data_prep.cli import InputError, number_in

T = TypeVar("T")


class Launcher(NamedTuple):
    """The variables in which a launcher tells each process its place."""

    name: str
    rank: str
    world_size: str
    local_rank: str
    local_size: str  # empty: in none


LAUNCHERS = (
    Launcher(
        "Open MPI",
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    Launcher("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # Intel MPI, too
    Launcher(
        "MVAPICH",
        *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
        *("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ),
    # SLURM_STEP_NUM_TASKS is absent in a batch script, outside srun.
    Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)


class RankInfo(NamedTuple):
    """This process among all that share the work."""

    rank: int
    world_size: int


def rank_from_env(environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Return which rank this process is, as its launcher tells it; (0, 1) where nothing launched it.

    Raises
    ------
    InputError: what a launcher says cannot be: parts of the work would be done twice, or by nobody.
    """
    if (launcher := launcher_of(environment)) is not None:
        rank, world_size = launcher.rank, launcher.world_size
        return _rank_info(environment, rank, number_in(environment, rank), number_in(environment, world_size, least=1))
    task = "SLURM_ARRAY_TASK_ID"
    if task in environment:
        first = number_in(environment, "SLURM_ARRAY_TASK_MIN", 0)
        step = number_in(environment, "SLURM_ARRAY_TASK_STEP", 1, least=1)
        count = number_in(environment, "SLURM_ARRAY_TASK_COUNT", least=1)
        return _rank_info(environment, task, (number_in(environment, task) - first) // step, count)
    return RankInfo(0, 1)


def launcher_of(environment: Mapping[str, str]) -> Launcher | None:
    """Return who started this process as one of several, if anyone did that tells so."""
    return next((each for each in LAUNCHERS if each.rank in environment and each.world_size in environment), None)


def _rank_info(environment: Mapping[str, str], name: str, rank: int, world_size: int) -> RankInfo:
    if not 0 <= rank < world_size:
        raise InputError(
            f"{name}={environment[name]} makes this rank {rank} of {world_size}; ranks go from 0 to {world_size - 1} "
            "(a Slurm array must be one range, such as --array=0-7)"
        )
    return RankInfo(rank, world_size)


def shard_for_rank(items: Sequence[T], rank: int, world_size: int) -> Sequence[T]:
    """Return this rank's share. Every item belongs to exactly one rank, whatever starts the ranks."""
    return items[rank::world_size]


def local_workers(rank: RankInfo) -> int:
    """Return how many processes to start where nobody says: one per core, or one where there are several ranks."""
    return 1 if rank.world_size > 1 else len(os.sched_getaffinity(0))
