"""This process among the ranks that train together: read once, first of all, from whatever launched it.

    take_place()      RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE, MASTER_ADDR, MASTER_PORT are right, or none is: alone

| launched by                    | the place is in          | where the ranks meet                                    |
|--------------------------------|--------------------------|---------------------------------------------------------|
| deepspeed (pdsh), torchrun     | RANK, WORLD_SIZE, ...    | MASTER_ADDR, MASTER_PORT                                |
| srun, deepspeed's slurm        | SLURM_PROCID, ...        | the first host of the step; a port from the job's number |
| mpirun, deepspeed's openmpi    | OMPI_COMM_WORLD_*, PMI_* | this machine if it is the only one, else asked of MPI   |

What is in RANK counts before all others, and MASTER_ADDR and MASTER_PORT before what is found here. A launcher that has
started more ranks than this process can know is refused: each would train alone, into one folder.

How nodes reach each other is network.py's.
"""

import os
import re
import socket
import subprocess
import sys
import zlib
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import NamedTuple

from data_prep.cli import InputError, number_in
from data_prep.sharding.ranks import launcher_of
from pretrain.network import DEFAULT_PORT, check_address, check_between_nodes, own_address

MPI_SECONDS = 60.0  # for MPI to say where rank 0 is
PORTS = range(15000, 30000)  # below those that Linux gives to whoever asks for any
ALONE = "to train alone: RANK=0 WORLD_SIZE=1"
_ASK_MPI = """
import sys
from mpi4py import MPI
print(MPI.COMM_WORLD.bcast(sys.argv[1]), MPI.COMM_WORLD.Get_size())
"""


class Place(NamedTuple):
    """One rank of several, as its launcher describes it."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str  # of rank 0; empty: not said
    port: int
    has_own_device: bool = False  # the one that it sees, number 0 to it

    def variables(self) -> dict[str, str]:
        """Return what torch and DeepSpeed read. A rank with a device of its own is alone with it."""
        local_rank, local_size = (0, 1) if self.has_own_device else (self.local_rank, self.local_size)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
        values = (self.rank, self.world_size, local_rank, local_size, self.address, self.port)
        return dict(zip(names, map(str, values), strict=True))


def take_place(environment: MutableMapping[str, str] = os.environ, *, may_be_alone: bool = False) -> None:
    """Write into the environment which rank this is and where the ranks meet, unless it says so already; nothing where
    nothing has launched it. Once done it does nothing any more.

    `may_be_alone`: what is done needs no other rank, whatever was launched.

    Raises
    ------
    InputError: a launcher's variables cannot be, or say too little; the first node is not known or out of reach.
    """
    check_launch(environment)
    place = place_of(environment)
    if place is not None:
        if not place.address:
            place = place._replace(address=_address_by_mpi(place))
        environment.update(place.variables())
    elif not may_be_alone:
        check_alone(environment)
    world = ranks_in(environment) or 1
    if world == 1 or "MASTER_ADDR" not in environment or may_be_alone:
        return
    check_address(environment["MASTER_ADDR"])
    if (told := place or _told_before(environment)) is not None:
        is_first, local_size = told.local_rank == 0, told.local_size
    else:
        is_first = environment.get("LOCAL_RANK") == "0"
        # DeepSpeed's name, and torchrun's.
        local_size = int(environment.get("LOCAL_SIZE") or environment.get("LOCAL_WORLD_SIZE") or world)
    if local_size < world:
        check_between_nodes(environment, is_first=is_first)


def _told_before(environment: Mapping[str, str]) -> Place | None:
    """Return the place that take_place() has written here before, as the launcher's own words have it."""
    with suppress(InputError):
        place = place_of({name: value for name, value in environment.items() if name != "RANK"})
        if place is not None and place.variables().items() <= environment.items():
            return place
    return None


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Return the place that a launcher gives in words of its own; None where RANK has it, or there is no other rank.

    Raises
    ------
    InputError: numbers that cannot be.
    """
    launcher = launcher_of(environment)
    if "RANK" in environment or launcher is None:
        return None
    world = number_in(environment, launcher.world_size, least=1)
    if world == 1:
        return None
    if launcher.name == "MPICH" and "SLURM_STEP_ID" in environment and "MPI_LOCALRANKID" not in environment:
        # srun speaks the language of MPICH, too (--mpi=pmi2), and says more in its own.
        return place_of({name: value for name, value in environment.items() if not name.startswith("PMI_")})
    rank = number_in(environment, launcher.rank, most=world - 1)
    local_rank = number_in(environment, launcher.local_rank, most=world - 1)
    if launcher.name == "srun":
        local_size, address, job = _slurm_step(environment)
    else:
        local_size = number_in(environment, launcher.local_size, least=1)
        address = "127.0.0.1" if local_size == world else ""
        job = environment.get("PMIX_NAMESPACE", "")
    address = environment.get("MASTER_ADDR", address)
    port = number_in(environment, "MASTER_PORT", port_of(job), least=1, most=0xFFFF)
    return Place(rank, world, local_rank, local_size, address, port, _has_a_device_of_its_own(environment))


def _slurm_step(environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Return how many ranks this node has, where rank 0 is, and the name of the step."""
    nodes = number_in(environment, "SLURM_STEP_NUM_NODES", 1, least=1)
    tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = number_in(environment, "SLURM_NODEID", 0)
    if node >= len(tasks):
        raise InputError(
            f"SLURM_STEP_TASKS_PER_NODE={environment.get('SLURM_STEP_TASKS_PER_NODE', '')!r} has no node {node} "
            f"(SLURM_NODEID); start the ranks by srun, or {ALONE}"
        )
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    if nodes > 1 and environment.get("SLURM_DISTRIBUTION") == "arbitrary":
        hosts = ""  # rank 0 may be on any of them
    address = "127.0.0.1" if nodes == 1 else first_host(hosts)
    if not address and "MASTER_ADDR" not in environment:
        raise InputError(
            "SLURM_STEP_NODELIST and SLURM_DISTRIBUTION do not say where rank 0 is; export MASTER_ADDR with its host"
        )
    return tasks[node], address, f"{environment.get('SLURM_JOB_ID', '')}.{environment.get('SLURM_STEP_ID', '')}"


def first_host(hosts: str) -> str:
    """Return the first host of a list as Slurm writes it: "rack[1-2]n[03,05-07],login" -> "rack1n03"."""
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])*", hosts)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else "")


def tasks_per_node(counts: str) -> list[int]:
    """Return the numbers that Slurm writes short: "2(x3),1" -> [2, 2, 2, 1]."""
    found = re.findall(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?(?:,|$)", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def port_of(job: str) -> int:
    """Return the port at which the ranks of a job meet: the same on all of them, another for another job."""
    return PORTS[zlib.crc32(job.encode()) % len(PORTS)] if job.strip(".") else DEFAULT_PORT


def _has_a_device_of_its_own(environment: Mapping[str, str]) -> bool:
    """Return whether each rank sees one device only (srun --gpus-per-task=1): it has number 0, whichever it is."""
    return bool(re.fullmatch(r"[^,\s]+", environment.get("CUDA_VISIBLE_DEVICES", "")))


def _address_by_mpi(place: Place) -> str:
    """Return an address of rank 0, which only MPI can say where ranks are on several nodes.

    In a process of its own: what MPI does to signals and to children ends with it.
    """
    asked: subprocess.CompletedProcess[str] | None = None
    why = "it does not answer"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_MPI, own_address()],
            capture_output=True,
            text=True,
            timeout=MPI_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        lines = (asked.stderr or asked.stdout).strip().splitlines()
        why = lines[-1][:200] if lines else f"code {asked.returncode}"
    except subprocess.TimeoutExpired:
        pass
    found = re.search(r"^(\S+) ([0-9]+)$", asked.stdout, re.MULTILINE) if asked is not None else None
    if found is None or int(found[2]) != place.world_size:
        raise InputError(
            f"rank {place.rank} of {place.world_size} on {socket.gethostname()} is not told where rank 0 is (asked of "
            f"mpi4py: {why}); say it: mpirun -x MASTER_ADDR=HOST, the first host of the hostfile"
        )
    return found[1]


def check_alone(environment: Mapping[str, str]) -> None:
    """Refuse a process that was started as one of several, by what does not tell it which one it is.

    Raises
    ------
    InputError: naming the launcher and the remedy.
    """
    if "RANK" in environment:
        return
    if number_in(environment, "WORLD_SIZE", 1, least=1) > 1:
        raise InputError(
            f"WORLD_SIZE={environment['WORLD_SIZE']}, but there is no RANK: whatever starts ranks sets both; {ALONE}"
        )
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise InputError(
            "accelerate launch was asked for several processes and has started one, which would train alone; start "
            "ranks by RANKS=N bash launch/pretrain.sh, by torchrun, or by accelerate launch --multi_gpu"
        )
    tasks = next((name for name in ("SLURM_NTASKS", "SLURM_NPROCS") if name in environment), "")
    if tasks and launcher_of(environment) is None and number_in(environment, tasks, 1, least=1) > 1:
        raise InputError(
            f"{tasks}={environment[tasks]}, but this is no task of srun, and would train alone; start the ranks by "
            f"srun (launch/pretrain.sbatch); {ALONE}"
        )


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what a launcher of ranks that train together cannot have meant.

    Raises
    ------
    InputError: naming the variable.
    """
    world = number_in(environment, "WORLD_SIZE", 1, least=1)
    number_in(environment, "RANK", 0, most=world - 1)
    number_in(environment, "LOCAL_RANK", 0, most=world - 1)
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):  # DeepSpeed's name, and torchrun's
        number_in(environment, name, 1, least=1)
    number_in(environment, "MASTER_PORT", 0, most=0xFFFF)


def ranks_in(environment: Mapping[str, str]) -> int | None:
    """Return the number of ranks, where the launcher says it."""
    return number_in(environment, "WORLD_SIZE", 1, least=1) if "WORLD_SIZE" in environment else None
