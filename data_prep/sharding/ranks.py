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

_LAUNCHERS = (  # variables that hold the rank and the number of ranks
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun; the latter is absent in a batch script outside srun
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
    for rank, world in _LAUNCHERS:
        if rank in environment and world in environment:
            return _rank_info(environment, rank, number_in(environment, rank), number_in(environment, world, least=1))
    task = "SLURM_ARRAY_TASK_ID"
    if task in environment:
        first = number_in(environment, "SLURM_ARRAY_TASK_MIN", 0)
        step = number_in(environment, "SLURM_ARRAY_TASK_STEP", 1, least=1)
        count = number_in(environment, "SLURM_ARRAY_TASK_COUNT", least=1)
        return _rank_info(environment, task, (number_in(environment, task) - first) // step, count)
    return RankInfo(0, 1)


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
