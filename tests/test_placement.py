"""Which rank a process is, by what each launcher tells it; how nodes reach each other."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import ROOT, InputError
from pretrain import network
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.network import check_interfaces, check_within_reach, interface_instead_of_loopback
from pretrain.placement import DEFAULT_PORT, PORTS, first_host, place_of, port_of, take_place, tasks_per_node
from pretrain.train import train
from tests.launched import PATIENCE
from tests.ranks import run_ranks
from tests.runs import contents, tiny_run
from tests.stores import random_documents, store_of

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR")
# Real environments, of rank 3 of 4 on the second of two nodes, and of rank 1 of 2 on one.
SRUN = {
    "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "127.0.0.[1-2]", "SLURM_DISTRIBUTION": "block",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-node1-29994@1",
}  # fmt: skip
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
DEEPSPEED = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}  # fmt: skip
ONE_GPU = {"CUDA_VISIBLE_DEVICES": "3"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (SRUN, ("3", "4", "1", "2", "127.0.0.1")),
        (SRUN | {"SLURM_DISTRIBUTION": "arbitrary", "MASTER_ADDR": "other"}, ("3", "4", "1", "2", "other")),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4"}, ("3", "4", "1", "2", "127.0.0.1")),  # srun --mpi=pmi2
        (SRUN | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"},
         ("3", "4", "1", "4", "127.0.0.1")),
        (SRUN | ONE_GPU, ("3", "4", "0", "1", "127.0.0.1")),  # --gpus-per-task=1: each sees its own as the first
        (OPEN_MPI, ("1", "2", "1", "2", "127.0.0.1")),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_ADDR": "node1"}, ("1", "2", "1", "1", "node1")),
        # mpirun starts its daemons by srun, a task a node, whose variables the ranks inherit.
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"} | OPEN_MPI, ("1", "2", "1", "2", "127.0.0.1")),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"} | MPICH, ("1", "2", "1", "2", "127.0.0.1")),
        (MPICH, ("1", "2", "1", "2", "127.0.0.1")),
        (MVAPICH, ("1", "2", "1", "2", "127.0.0.1")),
    ],
)  # fmt: skip
def test_every_launcher_tells_the_place(environment, place):
    found = place_of(environment)
    assert found is not None
    assert tuple(found.variables()[name] for name in PLACE) == place


@pytest.mark.parametrize("alone", [{}, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, DEEPSPEED | SRUN | OPEN_MPI])
def test_a_place_that_is_known_or_not_needed_is_left_as_it_is(alone):
    assert place_of(alone) is None


def test_the_place_is_written_where_torch_and_deepspeed_look(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    environment = dict(OPEN_MPI)
    take_place(environment)
    assert environment.items() >= dict(zip(PLACE, ("1", "2", "1", "2", "127.0.0.1"), strict=True)).items()
    assert int(environment["MASTER_PORT"]) in PORTS
    again = dict(environment)
    take_place(again)
    assert again == environment


@pytest.mark.parametrize(("nodes", "counts", "node", "rank"), [("1", "4", "0", "3"), ("2", "2(x2)", "0", "1")])
def test_ranks_that_see_a_device_each_are_not_taken_for_other_nodes(monkeypatch, nodes, counts, node, rank):
    """The first host of the step is this one, whose name leads to itself alone, as Debian has it."""
    monkeypatch.setattr(network, "interface_instead_of_loopback", lambda towards: "eth0")
    place = {"SLURM_STEP_NUM_NODES": nodes, "SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": node}
    environment = SRUN | ONE_GPU | place | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
    for _ in range(2):
        take_place(environment)
    assert (environment["LOCAL_RANK"], environment["MASTER_ADDR"].startswith("127.")) == ("0", True)
    with pytest.raises(InputError, match="where rank 2 is and rank 0 not"):
        take_place(SRUN | ONE_GPU | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0"})


def test_ranks_of_a_job_meet_at_one_port_and_other_jobs_elsewhere():
    assert port_of("17.0") == port_of("17.0") != port_of("18.0")
    assert port_of("") == port_of(".") == DEFAULT_PORT
    place = place_of(SRUN | {"MASTER_PORT": "1234"})
    assert place is not None
    assert place.port == 1234


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("node1", "node1"), ("node[3,5-7],x1", "node3"), ("rack[1-2]n[03,05-07],login", "rack1n03"), ("a-b,c", "a-b"),
     ("gpu-[007-009]", "gpu-007"), ("", "")],
)  # fmt: skip
def test_the_first_host_of_slurm_s_list(hosts, first):
    assert first_host(hosts) == first


def test_tasks_per_node_as_slurm_writes_them():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("4") == [4]


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORLD_SIZE": "4"}, "there is no RANK"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "accelerate launch"),
        (
            {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
            "SLURM_NTASKS=8, but this is no task of srun",
        ),  # in a batch script
        ({"SLURM_NPROCS": "8"}, "srun"),
    ],
)
def test_what_would_train_alone_beside_others_is_refused(environment, says):
    with pytest.raises(InputError, match=says):
        take_place(dict(environment))
    take_place(dict(environment), may_be_alone=True)  # a dry run
    take_place(environment | {"RANK": "0", "WORLD_SIZE": "1"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID='4' is no whole number from 0 to 3"),
        ({"SLURM_NODEID": "2"}, "no node 2"),
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, "no node 1"),
        ({"SLURM_STEP_NODELIST": ""}, "export MASTER_ADDR"),
        ({"SLURM_DISTRIBUTION": "arbitrary"}, "export MASTER_ADDR"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT='x'"),
    ],
)
def test_a_place_that_cannot_be_is_refused_by_name(changes, says):
    with pytest.raises(InputError, match=says):
        take_place(SRUN | changes)


def test_ranks_of_mpirun_on_several_nodes_must_know_where_the_first_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(InputError, match=r"mpirun -x MASTER_ADDR=HOST"):
        take_place(OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


@pytest.mark.slow
def test_mpirun_trains_as_other_launchers_do(tmp_path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("needs the extra [mpi]")
    store = store_of(tmp_path / "store", random_documents(20)).folder
    run_ranks(2, train, tiny_run(store, tmp_path / "forked", steps=2, global_batch=4))
    options = f"--data {store} --out {tmp_path / 'mpi'} --model bert-tiny --seq_len 32 --lr 1e-3 --eval_samples 0"
    start_two = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-m", "pretrain.train"]
    words = [*map(str, start_two), *options.split(), "--steps", "2", "--global_batch", "4"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert contents(checkpoint_dir(tmp_path / "mpi", 2)) == contents(checkpoint_dir(tmp_path / "forked", 2))


def test_the_script_that_mpirun_has_started_is_a_rank_and_starts_none():
    place = OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    command = ["bash", str(ROOT / "launch/pretrain.sh"), "--no_such_option"]
    ended = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: --no_such_option")
    twice = subprocess.run(
        command, env=os.environ | place | {"PMIX_NAMESPACE": "", "OMPI_COMM_WORLD_LOCAL_RANK": "x"}, capture_output=True
    )
    assert b"OMPI_COMM_WORLD_LOCAL_RANK='x'" in twice.stderr


class TestNetwork:
    """Between nodes; of which there is one here, under several names."""

    @pytest.fixture
    def named(self, monkeypatch) -> Any:
        """Give this machine a name that leads to `address`, and one interface."""

        def name(address: str, **interfaces: str) -> None:
            def look_up(host: str, *_: object, **__: object) -> list[Any]:
                return [(socket.AF_INET, 0, 0, "", (address if host == "node1" else host, 0))]

            monkeypatch.setattr(socket, "gethostname", lambda: "node1")
            monkeypatch.setattr(socket, "getaddrinfo", look_up)
            monkeypatch.setattr(network, "own_address", lambda towards="": next(iter(interfaces.values()), "127.0.0.1"))
            monkeypatch.setattr(network, "outward_interfaces", lambda: {key: [it] for key, it in interfaces.items()})

        return name

    def test_a_name_that_leads_to_the_machine_itself_is_replaced_by_an_interface(self, named):
        named("127.0.1.1", eth0="10.0.0.1")
        assert interface_instead_of_loopback("10.0.0.2") == "eth0"
        named("10.0.0.1", eth0="10.0.0.1")
        assert interface_instead_of_loopback("10.0.0.2") == ""

    def test_where_no_interface_leads_out_the_remedy_is_said(self, named):
        named("127.0.1.1")
        with pytest.raises(InputError, match=r"node1 leads to 127\.0\.1\.1, .* GLOO_SOCKET_IFNAME=NAME"):
            interface_instead_of_loopback("10.0.0.2")

    def test_the_first_node_is_not_this_one_where_rank_0_is_elsewhere(self):
        with pytest.raises(InputError, match=r"MASTER_ADDR='localhost' is .* itself, where rank 1 is and rank 0 not"):
            take_place(
                {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "localhost"}
            )

    def test_an_unknown_interface_is_refused_with_those_that_are_there(self):
        with pytest.raises(InputError, match=r"no interface 'ib7'; it has .*lo"):
            check_interfaces("lo,ib7")

    def test_a_node_that_does_not_answer_is_refused_and_one_that_does_not_listen_yet_is_not(self, monkeypatch):
        monkeypatch.setattr(network, "ADDRESS_SECONDS", 0.0)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            check_within_reach("127.0.0.1", probe.getsockname()[1])  # refuses connections

        def drops(*_: object, **__: object) -> None:
            raise TimeoutError("timed out")

        monkeypatch.setattr(socket, "create_connection", drops)
        with pytest.raises(InputError, match=r"does not reach it \(timed out\); open this port"):
            check_within_reach("10.9.9.9", 29500)
