"""Ranks on the hosts of a hostfile: what is looked at before, handed on, asked and said. ssh and pdsh are scripts here;
tests/test_nodes.py has the real ones.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.cli import ROOT, InputError
from launch.cluster import Hosts, forwarded_lines, option, read_hostfile, shared_folder
from launch.outcomes import Place, outcome_of, who_failed
from tests.launched import PATIENCE, start, wait_for

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(1800)]


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def hosts(tmp_path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("# two\nnode1 slots=1\n\nnode2 slots=1  # the other\n")
    return path


def test_a_hostfile_names_its_hosts(hosts):
    assert read_hostfile(hosts) == ["node1", "node2"]
    found = Hosts.of_command(["deepspeed", f"--hostfile={hosts}", "pretrain.sh", "-H", "x"])
    assert found is not None
    assert found.names == ["node1", "node2"]
    assert Hosts.of_command(["deepspeed", "--num_gpus", "2", "launch/pretrain.sh", "--hostfile", "x"]) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no host"),
        ("node1\n", "line 1: 'node1' is not of the form: node1 slots=8"),
        ("node1 slots=2\nnode2 slots=none\n", "line 2"),
        ("node1 slots=1\nnode1 slots=1\n", "names node1 twice"),
        ("-oProxyCommand=x slots=1\n", "line 1"),
        ("\ufeffnode1 slots=1\n", "line 1: '\\ufeffnode1 slots=1'"),
        ("node1 slots=1\n".encode("utf-16"), "is not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_hostfile_that_is_wrong_is_refused_before_anything_starts(tmp_path, text, says):
    path = tmp_path / "the hosts"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    command = ["bash", str(ROOT / "launch/pretrain.sh"), "--x"]
    result = subprocess.run(command, env=os.environ | {"HOSTFILE": str(path)}, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_empty_hostfile_is_not_this_machine_alone():
    with pytest.raises(InputError, match="is empty"):
        Hosts.of_command(["deepspeed", "--hostfile", "", "launch/pretrain.sh"])


@pytest.mark.parametrize(
    ("ssh", "says"),
    [
        ("exit 0", ""),
        (
            "echo 'Host key verification failed.' >&2; exit 255",
            "node2: Host key verification failed.; ranks are started",
        ),
        ("exit 71", f"node2 has no Python {sys.executable}; the checkout must be at the same path"),
        ("exit 72", "node2 has no script"),
    ],
)
def test_each_host_is_asked_before_and_says_what_is_wrong_in_ssh_s_words(tmp_path, hosts, monkeypatch, ssh, says):
    program(tmp_path, "ssh", f'[[ "$*" != *node2* ]] || {{ {ssh}; }}')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    wrong = Hosts(hosts, ["node1", "node2"]).check(ROOT / "launch/pretrain.sh")
    assert len(wrong) == bool(says)
    assert says in "".join(wrong)


def test_a_path_that_a_shell_would_part_is_refused(hosts):
    assert "a folder/pretrain.sh: blanks" in Hosts(hosts, ["node1"]).check(Path("a folder/pretrain.sh"))[0]


def test_what_matters_on_other_hosts_is_handed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=WARN\nMINE=1\n")
    environment = {
        "OMP_NUM_THREADS": "4", "NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "ib0", "CUDA_VISIBLE_DEVICES": "0",
        "HF_TOKEN": "secret", "HOME": "/root", "ZEROBERT_OUTCOME": "/shared/x", "NCCL_ODD": "a;b", "NCCL_EMPTY": "",
    }  # fmt: skip
    assert forwarded_lines(environment).splitlines() == [
        "GLOO_SOCKET_IFNAME=ib0", "NCCL_DEBUG=WARN", "OMP_NUM_THREADS=4", "ZEROBERT_OUTCOME=/shared/x", "MINE=1"
    ]  # fmt: skip


def test_the_folder_that_all_nodes_see_lies_beside_the_run_and_goes(tmp_path):
    with shared_folder(["deepspeed", "x", "--out", str(tmp_path / "not/yet/there")]) as folder:
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    with shared_folder(["deepspeed", "x", f"--out={tmp_path / 'run'}"]) as folder:
        assert folder.parent == tmp_path
    with (
        pytest.raises(InputError, match="--out /proc/run: /proc cannot be written to"),
        shared_folder(["--out=/proc/run"]),
    ):
        pass


def test_who_failed_is_said_by_rank_and_node(tmp_path):
    assert who_failed(tmp_path) == ""
    for rank, text in (("0", "node1 11 1"), ("1", "node2 12 "), ("10", "node3 13 75")):
        (tmp_path / f"place-{rank}").write_text(text)
    assert who_failed(tmp_path) == "rank 1 on node2 ended without a word: killed, or the node or its link is gone"
    (tmp_path / "place-1").write_text("node2 12 0")
    assert who_failed(tmp_path) == "rank 0 on node1 (code 1) failed"
    (tmp_path / "place-0").write_text("")  # the disk is full
    assert who_failed(tmp_path).startswith("rank 0 on a node ended without a word")
    (tmp_path / "0").write_text("")
    assert outcome_of(tmp_path, is_of_all=True) is None


def test_options_of_the_launcher_end_at_the_script():
    command = ["deepspeed", "--ssh_port=2222", "-H", "a", "launch/pretrain.sh", "--ssh_port", "1"]
    assert option(command, "--ssh_port") == "2222"
    assert option(command, "--hostfile", "-H") == "a"
    assert option(command, "--launcher") is None


# What DeepSpeed does over pdsh: it starts two ranks elsewhere, and ends with 255 where ssh lost one.
DEEPSPEED = """
import os, subprocess, sys
from pathlib import Path
folder = Path(os.environ["ZEROBERT_OUTCOME"])
lines = (folder / "environment").read_text().splitlines()
assert f"ZEROBERT_OUTCOME={folder}" in lines and "ZEROBERT_HOST=%h" in lines
assert "ServerAliveInterval" in os.environ["PDSH_SSH_ARGS_APPEND"]
rank = [sys.executable, str(Path(__file__).with_name("rank.py"))]
place = dict(os.environ, LOCAL_RANK="0", WORLD_SIZE="2")
ranks = [
    subprocess.Popen(rank, env=place | {"RANK": number, "ZEROBERT_HOST": host})
    for number, host in [("0", "10.0.0.1"), ("1", "10.0.0.2")]
]
codes = [each.wait() for each in ranks]
sys.exit(255 if min(codes) < 0 else max(codes))
"""
RANK = """
import os, sys, time
sys.path[0] = ROOT
import pretrain.stop
pretrain.stop.LOOK_FOR_FILES_SECONDS = 0.1
from pretrain.train import tell_outcome, tell_place
stop = pretrain.stop.StopRequests()
tell_place()
if os.environ["RANK"] == VICTIM:
    os.kill(os.getpid(), 9)
stop.hold()
while not stop.signal and VICTIM is None:
    time.sleep(0.05)
tell_outcome(75)
tell_place(75)
stop.end()
sys.exit(75)
"""


def supervised(folder: Path, hosts: Path, victim: str | None) -> Any:
    (folder / "deepspeed.py").write_text(DEEPSPEED)
    (folder / "rank.py").write_text(RANK.replace("ROOT", repr(str(ROOT))).replace("VICTIM", repr(victim)))
    program(folder, "ssh", "exit 0")
    words = [sys.executable, "launch/supervise.py", "--cluster", sys.executable, folder / "deepspeed.py"]
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    options = ("--hostfile", hosts, "--out", folder / "run")
    return start(*words, *options, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_request_to_stop_reaches_ranks_on_other_hosts_as_a_file(tmp_path, hosts):
    supervisor = supervised(tmp_path, hosts, None)
    wait_for(lambda: len(list(tmp_path.glob(".zerobert-*/place-*"))) == 2)
    supervisor.send_signal(signal.SIGTERM)
    _, said = supervisor.communicate(timeout=PATIENCE)
    assert (supervisor.returncode, said.count("error")) == (75, 0)
    assert not list(tmp_path.glob(".zerobert-*"))


def test_a_rank_that_ssh_lost_is_a_failure_that_names_its_node(tmp_path, hosts):
    supervisor = supervised(tmp_path, hosts, "1")
    _, said = supervisor.communicate(timeout=PATIENCE)
    assert supervisor.returncode == 1
    assert "error: rank 1 on 10.0.0.2 ended without a word" in said


def test_ranks_that_stand_still_are_killed_by_the_name_that_the_hostfile_has(tmp_path, monkeypatch):
    """And nothing else that has got their number since."""
    program(tmp_path, "ssh", f'echo "${{@: -2:1}}" >> {tmp_path}/asked; bash -c "${{@: -1}}"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    rank, other = (
        start(sys.executable, "-c", "import time; time.sleep(600)", word) for word in ("--local_rank=0", "--other")
    )
    os.kill(rank.pid, signal.SIGSTOP)
    hosts = Hosts(tmp_path, ["10.0.0.1", "me@10.0.0.2"])
    hosts.kill([Place(0, "10.0.0.1", other.pid, None), Place(1, "10.0.0.2", rank.pid, None)])
    assert (rank.wait(), other.poll()) == (-signal.SIGKILL, None)
    other.kill()
    other.wait()
    assert sorted((tmp_path / "asked").read_text().split()) == ["10.0.0.1", "me@10.0.0.2"]


def test_a_host_is_lost_where_the_launcher_holds_no_ssh_to_it():
    words = ["ssh", "-2", "-a", "-x", "-lme", "10.0.0.2", "export X=1; cd /; python"]  # as pdsh calls it
    ssh: Any = SimpleNamespace(name=lambda: "ssh", cmdline=lambda: words)
    assert Hosts(Path("hosts"), ["10.0.0.1", "me@10.0.0.2", "node3"]).lost([ssh]) == {"10.0.0.1", "node3"}
