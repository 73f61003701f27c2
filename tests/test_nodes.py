"""Two true nodes: ranks started over ssh, by Open MPI and by Slurm make the bytes of one machine, and end well.

`.ci/run` installs what it takes (tests/nodes.py); elsewhere these are skipped, with the reason.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.checkpoints.format import checkpoint_dir
from tests.launched import start, wait_for
from tests.nodes import NETWORK, Nodes, missing, two_nodes, watched
from tests.runs import contents, events
from tests.stores import random_documents, store_of

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(3000)]
BIN = Path(sys.prefix) / "bin"
RANKS = dict(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
STEPS = 3


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    if reason := missing():
        pytest.skip(reason)
    with two_nodes(tmp_path_factory.mktemp("nodes")) as found:
        (found.base / "hosts.txt").write_text("node1 slots=1\nnode2 slots=1\n")
        (found.base / "addresses.txt").write_text(f"{NETWORK}.1 slots=1\nroot@{NETWORK}.2 slots=1\n")
        yield found


@pytest.fixture(scope="module")
def slurm(nodes) -> None:
    nodes.start_slurm()


@pytest.fixture(scope="module")
def asked(nodes) -> list[str]:
    """What every run is told, but for --out."""
    store = store_of(nodes.base / "store", random_documents(20)).folder
    return f"--data {store} --model bert-tiny --seq_len 32 --global_batch 8 --lr 1e-3 --eval_samples 0".split()


@pytest.fixture(scope="module")
def expected(nodes, asked) -> dict[str, bytes]:
    """The checkpoint of two ranks on one machine."""
    out = nodes.base / "one"
    words = ["bash", "launch/pretrain.sh", *asked, "--steps", str(STEPS), "--out", str(out)]
    assert start(*words, env=RANKS | {"RANKS": "2"}).wait() == 0
    return contents(checkpoint_dir(out, STEPS))


def made_by(nodes: Nodes, asked: list[str], *launcher: object, **variables: str) -> dict[str, bytes]:
    """Train by a launcher, on node1 and node2, and return the checkpoint."""
    out = nodes.base / "out"
    shutil.rmtree(out, ignore_errors=True)
    nodes.run(1, *launcher, *asked, "--steps", STEPS, "--out", out, check=True, **RANKS | variables)
    return contents(checkpoint_dir(out, STEPS))


def test_over_ssh_the_bytes_are_those_of_one_machine(nodes, asked, expected):
    hosts = str(nodes.base / "hosts.txt")
    assert made_by(nodes, asked, "bash", "launch/pretrain.sh", HOSTFILE=hosts) == expected


def test_open_mpi_makes_the_same_bytes(nodes, asked, expected):
    forward = [word for name in RANKS for word in ("-x", name)]
    mpirun = ["mpirun", "--allow-run-as-root", "-n", 2, "--host", "node1,node2", *forward]
    assert made_by(nodes, asked, *mpirun, BIN / "python", "-m", "pretrain.train") == expected


def test_srun_makes_the_same_bytes(nodes, slurm, asked, expected):
    srun = ["srun", "-N2", "-n2", "--ntasks-per-node=1"]
    assert made_by(nodes, asked, *srun, BIN / "python", "-m", "pretrain.train") == expected


def long_run(nodes: Nodes, asked: list[str], out: Path, hosts: str = "hosts.txt") -> subprocess.Popen[str]:
    """A run over ssh without an end, that has saved."""
    words = ["bash", "launch/pretrain.sh", *asked, "--steps", 100_000, "--save_every", 5, "--out", out]
    process = nodes.popen(1, *words, HOSTFILE=str(nodes.base / hosts), **RANKS)
    watched(process, (out / "checkpoints/latest").exists)
    return process


def ranks_of(nodes: Nodes, number: int) -> list[str]:
    return nodes.run(number, "pgrep", "-f", "[-]-local_rank=", check=False).stdout.split()


def test_a_request_to_stop_saves_on_all_nodes_and_ends_with_75(nodes, asked):
    out = nodes.base / "stopped"
    process = long_run(nodes, asked, out)
    supervisor = nodes.run(1, "pgrep", "-f", "[s]upervise.py --cluster").stdout.split()[0]
    nodes.run(1, "kill", "-TERM", supervisor)
    said, _ = process.communicate()
    assert process.returncode == 75, said
    (stop,) = events(out, "stop")
    assert checkpoint_dir(out, stop["step"]).is_dir()
    assert ranks_of(nodes, 1) == ranks_of(nodes, 2) == []
    assert not list(nodes.base.glob(".zerobert-*"))


def test_a_job_of_slurm_saves_in_time_and_goes_back_into_the_queue(nodes, slurm, asked):
    out, log = nodes.base / "job", nodes.base / "job.log"
    size = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={log}"]
    words = ["launch/pretrain.sbatch", *asked, "--steps", 100_000, "--save_every", 5, "--out", out]
    job = nodes.run(1, "sbatch", "--parsable", *size, *words, **RANKS).stdout.strip()
    wait_for((out / "checkpoints/latest").exists)
    nodes.run(1, "scancel", "--signal=USR1", "--batch", job)
    wait_for(lambda: "goes back into the queue" in log.read_text())
    wait_for(lambda: nodes.run(1, "squeue", "-h", "-j", job, "-o", "%T").stdout.strip() == "PENDING")
    nodes.run(1, "scancel", job)
    (stop,) = events(out, "stop")
    assert stop["reason"] == "SIGUSR1"
    assert checkpoint_dir(out, stop["step"]).is_dir()


def test_a_node_whose_processes_are_killed_is_named(nodes, asked):
    process = long_run(nodes, asked, nodes.base / "killed")
    nodes.run(2, "pkill", "-9", "-f", "[d]eepspeed.launcher.launch|[-]-local_rank=")
    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert "error: rank 1 on node2 ended without a word" in said
    assert ranks_of(nodes, 1) == []


def test_deepspeed_starts_ranks_by_open_mpi_too(nodes, asked, expected):
    hosts = nodes.base / "hosts.txt"
    flags = "--launcher openmpi --launcher_args=--allow-run-as-root"
    assert made_by(nodes, asked, "bash", "launch/pretrain.sh", HOSTFILE=str(hosts), DEEPSPEED_FLAGS=flags) == expected


def test_torchrun_makes_the_same_bytes(nodes, asked, expected):
    out = nodes.base / "torchrun"
    words = "--nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint node1:29501 -m pretrain.train".split()
    command = [BIN / "torchrun", *words, *asked, "--steps", STEPS, "--out", out]
    both = [nodes.popen(number, *command, **RANKS) for number in (1, 2)]
    for process in both:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    assert contents(checkpoint_dir(out, STEPS)) == expected


def test_a_name_that_leads_to_its_own_machine_only_does_not_matter(nodes, asked, expected):
    """Debian writes such a line for every machine."""
    nodes.run(2, "sed", "-i", "1i 127.0.1.1 node2", "/etc/hosts")
    try:
        assert made_by(nodes, asked, "bash", "launch/pretrain.sh", HOSTFILE=str(nodes.base / "hosts.txt")) == expected
    finally:
        nodes.run(2, "sed", "-i", "1d", "/etc/hosts")


def test_a_first_node_that_calls_itself_loopback_is_refused_by_the_others(nodes, asked):
    """A MASTER_ADDR that leads every node to itself: each would wait for the others for ever."""
    words = f"-n 2 --host node1,node2 -x MASTER_ADDR=localhost {BIN / 'python'} -m pretrain.train".split()
    forward = [word for name in RANKS for word in ("-x", name)]
    command = ["mpirun", "--allow-run-as-root", *forward, *words, *asked, "--steps", STEPS]
    told = nodes.run(1, *command, "--out", nodes.base / "localhost", check=False, **RANKS)
    assert told.returncode == 2, told.stdout
    assert "MASTER_ADDR='localhost' is node2 itself, where rank 1 is and rank 0 not" in told.stdout


def test_data_is_prepared_on_both_nodes(nodes, asked):
    corpus = nodes.base / "corpus"
    corpus.mkdir()
    for file in range(4):
        lines = (f"w{file} w{line % 40} w{line % 7}\n\n" for line in range(200))
        (corpus / f"{file}.txt").write_text("".join(lines))
    vocab = nodes.base / "store/vocab"
    shard = ["data_prep/shard.py", "--corpus", corpus, "--vocab", vocab, "--shard_mb", 0.001, "--out"]
    nodes.run(1, BIN / "python", *shard, nodes.base / "store_of_one", **RANKS)
    mpirun = ["mpirun", "--allow-run-as-root", "-n", 2, "--host", "node1,node2"]
    nodes.run(1, *mpirun, BIN / "python", *shard, nodes.base / "store_of_two", **RANKS)
    one, two = (
        {path.name: path.read_bytes() for path in (nodes.base / store).glob("shard-*")}
        for store in ("store_of_one", "store_of_two")
    )
    assert len(one) > 2
    assert two == one


def test_ctrl_c_saves_on_all_nodes(nodes, asked):
    process = long_run(nodes, asked, nodes.base / "interrupted")
    supervisor = nodes.run(1, "pgrep", "-f", "[s]upervise.py --cluster").stdout.split()[0]
    nodes.run(1, "kill", "-INT", supervisor)
    said, _ = process.communicate()
    assert process.returncode == 75, said
    assert ranks_of(nodes, 1) == ranks_of(nodes, 2) == []


def test_a_rank_that_stands_still_ends_all_within_the_timeout(nodes, asked):
    """By addresses, which the nodes do not have for themselves: it is killed over ssh."""
    process = long_run(nodes, [*asked, "--hang_timeout", "20"], nodes.base / "still", "addresses.txt")
    (rank,) = ranks_of(nodes, 2)
    nodes.run(2, "kill", "-STOP", rank)
    said, _ = process.communicate()
    assert process.returncode not in (0, 75), said
    assert f"rank 1 on {NETWORK}.2 ended without a word" in said
    wait_for(lambda: ranks_of(nodes, 1) == ranks_of(nodes, 2) == [])


def test_a_cut_link_ends_the_run_which_goes_on_when_it_is_mended(nodes, asked):
    out = nodes.base / "cut"
    words = ["bash", "launch/pretrain.sh", *asked, "--steps", 100_000, "--save_every", 5, "--hang_timeout", "20"]
    hosts = str(nodes.base / "hosts.txt")
    with open(nodes.base / "cut.log", "wb") as log:
        process = nodes.popen_into(log, 1, *words, "--out", out, HOSTFILE=hosts, RESTARTS="1", **RANKS)
        wait_for((out / "checkpoints/latest").exists)
        nodes.set_link(2, "down")
        wait_for(lambda: "restart 1 of 1" in (nodes.base / "cut.log").read_text())
        wait_for(lambda: ranks_of(nodes, 1) == ranks_of(nodes, 2) == [])
        nodes.set_link(2, "up")
        wait_for(lambda: events(out, "resume"))
        nodes.run(1, "kill", "-TERM", nodes.run(1, "pgrep", "-f", "[s]upervise.py --cluster").stdout.split()[0])
        assert process.wait() == 75, (nodes.base / "cut.log").read_text()
    assert "rank 1 on node2 ended without a word" in (nodes.base / "cut.log").read_text()
