"""The scripts under launch/: both languages of pretrain.sh, the quick path of setup.sh, and a bare Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.train import parse_command
from tests.launched import PATIENCE
from tests.stores import random_documents, store_of

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parent.parent
PRETRAIN = ROOT / "launch/pretrain.sh"
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / "launch/pretrain.sbatch", ROOT / "tests/run.sh", ROOT / ".ci/run"])
BIN = Path(sys.prefix) / "bin"


def run(*command: object, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in an environment with these changes."""
    environ = os.environ | environment
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash(script):
    result = run("bash", "-n", script)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_may_be_executed_and_stop_at_errors(script):
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


def test_pretrain_is_valid_python_without_a_warning():
    code = "import pathlib, sys; compile(pathlib.Path(sys.argv[1]).read_text(), sys.argv[1], 'exec')"
    result = run(sys.executable, "-W", "error", "-c", code, PRETRAIN)
    assert (result.returncode, result.stderr) == (0, "")


def test_pretrain_without_arguments_says_what_it_needs_in_both_languages(tmp_path):
    as_bash = run("bash", PRETRAIN, folder=tmp_path)
    as_python = run(sys.executable, PRETRAIN, "--local_rank=0", folder=tmp_path)
    assert as_bash.returncode == as_python.returncode == 2
    assert as_bash.stderr.strip() == as_python.stderr.strip()
    assert as_bash.stdout == as_python.stdout == ""
    for needed in ("--data", "--out", "--model", "--init_from", "RANKS"):
        assert needed in as_bash.stderr


@pytest.mark.slow
def test_deepspeed_starts_pretrain_and_passes_its_exit_code_on():
    result = run(BIN / "deepspeed", "--num_gpus", "2", PRETRAIN, DS_ACCELERATOR="cpu")
    assert result.returncode == 2
    assert result.stderr.count("It needs what to read") == 1  # only the first rank speaks


@pytest.mark.slow
def test_wrong_input_is_said_once_and_exits_with_2(tmp_path):
    arguments = ("--data", tmp_path / "nowhere", "--out", tmp_path / "run", "--model", "bert-tiny")
    result = run("bash", PRETRAIN, *arguments, RANKS="2", DS_ACCELERATOR="cpu")
    assert result.returncode == 2
    assert result.stderr.count("nowhere does not exist") == 1
    assert not (tmp_path / "run").exists()


def fake_deepspeed(folder: Path) -> str:
    """A PATH whose `deepspeed` prints its arguments and what the ranks would inherit, and exits with code 7."""
    script = folder / "deepspeed"
    script.write_text('#!/bin/sh\necho "$@"\necho "$DS_ACCELERATOR $OMP_NUM_THREADS"\nexit 7\n')
    script.chmod(0o755)
    python = folder / "python"  # a link would forget its .venv
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[str]:
    """What a run needs, and nothing is wrong with."""
    folder = tmp_path_factory.mktemp("asked")
    store = store_of(folder, random_documents(20)).folder
    return ["--data", str(store), "--out", str(folder / "a b"), "--model", "bert-tiny"]


def test_pretrain_as_bash_hands_over_to_deepspeed(tmp_path, asked):
    path = fake_deepspeed(tmp_path)
    result = run("bash", PRETRAIN, *asked, PATH=path, RANKS="4", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="5")
    assert result.returncode == 7
    flags, inherited = result.stdout.splitlines()
    assert f"--num_gpus 4 {PRETRAIN} {' '.join(asked)}" in flags
    assert "--master_port" in flags
    assert inherited == "cpu 5"


def test_flags_of_the_launcher_come_last_so_that_they_count(tmp_path, asked):
    path = fake_deepspeed(tmp_path)
    flags = "--num_gpus 2 --master_port 1234"
    result = run("bash", PRETRAIN, *asked, PATH=path, DS_ACCELERATOR="cpu", DEEPSPEED_FLAGS=flags)
    assert f"{flags} {PRETRAIN} {' '.join(asked)}" in result.stdout


def test_a_hostfile_decides_about_ranks_and_port(tmp_path):
    path, hosts = fake_deepspeed(tmp_path), tmp_path / "hosts"
    hosts.write_text("node1 slots=1\n")
    (tmp_path / "ssh").symlink_to("/bin/true")
    hows: list[dict[str, Any]] = [dict(DEEPSPEED_FLAGS=f"--hostfile {hosts}"), dict(HOSTFILE=str(hosts))]
    for how in hows:
        result = run("bash", PRETRAIN, "--x", PATH=path, DS_ACCELERATOR="cpu", **how)
        flags = result.stdout.splitlines()[0]
        assert flags.endswith(f"--hostfile {hosts} {PRETRAIN} --x")
        assert "--num_gpus" not in flags
        assert "--master_port" not in flags


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("pretrain.sh", (), "It needs what to read"),
        ("setup.sh", ("--everything",), "--minimal"),
        ("quickstart.sh", ("--help",), "From a fresh clone"),
    ],
)
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_scripts_work_by_sh_and_through_links(tmp_path, script, arguments, says, shell):
    link = tmp_path / "another name"
    link.symlink_to(ROOT / "launch" / script)
    for path in (ROOT / "launch" / script, link):
        result = run(shell, path, *arguments, folder=tmp_path)
        assert result.returncode == 2
        assert says in result.stderr
        assert "not found" not in result.stderr


def test_a_link_to_pretrain_hands_over_the_script_itself(tmp_path, asked):
    path = fake_deepspeed(tmp_path)
    link = tmp_path / "train"
    link.symlink_to(PRETRAIN)
    result = run("sh", link, *asked, PATH=path, DS_ACCELERATOR="cpu")
    assert result.returncode == 7
    assert f"{PRETRAIN} {' '.join(asked)}" in result.stdout


@pytest.mark.parametrize("ranks", ["0", "two", "-1", "nan", "1.5", "1" * 23, "99999"])
def test_ranks_must_be_a_number(ranks):
    result = run("bash", PRETRAIN, "--x", RANKS=ranks)
    assert result.returncode == 2
    assert f"RANKS={ranks}" in result.stderr


def test_the_job_of_kubernetes_says_what_the_trainer_understands():
    """Read here; no cluster of Kubernetes has run it."""
    replicas = yaml.safe_load((ROOT / "launch/mpijob.yaml").read_text())["spec"]["mpiReplicaSpecs"]
    (launcher,) = replicas["Launcher"]["template"]["spec"]["containers"]
    words = launcher["command"] + launcher["args"]
    options = words[words.index("pretrain.train") + 1 :]
    assert parse_command(options).steps == 7038
    assert int(words[words.index("-n") + 1]) == 8 * replicas["Worker"]["replicas"]


def test_the_image_copies_what_is_there():
    """Read here; the image has not been built."""
    lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)


def copy_of_the_scripts(folder: Path) -> Path:
    """A checkout with everything that setup.sh reads, and no .venv."""
    shutil.copytree(ROOT / "launch", folder / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data_prep", folder / "data_prep", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def bare_python() -> str:
    """A Python that lacks the packages: the one that .venv was made from."""
    python = str(getattr(sys, "_base_executable", sys.executable))
    found = run(python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('tyro') is not None)")
    if sys.prefix == sys.base_prefix or found.returncode != 0:
        pytest.skip("no Python without the packages at hand: these tests run outside .venv")
    return python


def test_setup_refuses_an_old_python(tmp_path):
    copy_of_the_scripts(tmp_path)
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    result = run("bash", "launch/setup.sh", folder=tmp_path, PYTHON=str(old))
    assert result.returncode == 1
    assert "needs Python 3.11 or newer" in result.stderr
    assert "Python 3.9.2" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_setup_refuses_an_unknown_argument():
    result = run("bash", "launch/setup.sh", "--everything")
    assert result.returncode == 2
    assert "--minimal" in result.stderr


FAKE_PYTHON = """#!/bin/sh
echo "$*" >> calls
case "$*" in
    -) cat > /dev/null ;;
    *" pip install "*) [ ! -e broken ] ;;
esac
"""


def test_a_finished_setup_is_left_alone_and_an_interrupted_one_taken_up_again(tmp_path):
    # A pip that only notes what it is asked for: what remains is the order of things and the stamp.
    copy_of_the_scripts(tmp_path)
    home = tmp_path / ".venv/bin"
    home.mkdir(parents=True)
    (home / "python").write_text(FAKE_PYTHON)
    (home / "python").chmod(0o755)
    (home / "pip").write_text(f"#!{home}/python\n")

    def setup() -> tuple[int, str]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        return run("bash", "launch/setup.sh", folder=tmp_path).returncode, calls.read_text()

    code, calls = setup()
    order = [calls.index(part) for part in ("torch==", "--no-build-isolation deepspeed", "-e .[dev,mpi]")]
    assert (code, order) == (0, sorted(order))

    code, calls = setup()
    assert (code, "install" in calls) == (0, False)

    with open(tmp_path / "constraints.txt", "a") as file:
        file.write("# another version\n")
    (tmp_path / "broken").touch()
    assert setup()[0] == 1
    (tmp_path / "broken").unlink()
    code, calls = setup()
    assert (code, "install" in calls) == (0, True)


@pytest.mark.slow
def test_a_bare_python_continues_in_the_venv():
    if not (ROOT / ".venv/bin/python").exists():
        pytest.skip("no .venv beside the tests")
    for command in ("data_prep/vocab.py", "data_prep/shard.py", "launch/pretrain.sh"):
        result = run(bare_python(), command, "--help", folder=ROOT)
        assert result.returncode == 0, result.stderr
        assert "--" in result.stdout + result.stderr


def test_a_bare_python_without_venv_says_what_to_run(tmp_path):
    copy_of_the_scripts(tmp_path)
    result = run(bare_python(), "data_prep/shard.py", "--help", folder=tmp_path)
    assert result.returncode == 1
    assert f"bash {tmp_path}/launch/setup.sh" in result.stderr
