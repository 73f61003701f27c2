"""The console command, and how messages name commands: as the program was called."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import calls
from data_prep.calls import COMMANDS, ROOT, call, in_style, own

ZEROBERT = Path(sys.executable).parent / "zerobert"  # launch/setup.sh leaves it there


def zerobert(*arguments, folder):
    environment = {name: value for name, value in os.environ.items() if name != calls.STYLE}
    return subprocess.run(
        [ZEROBERT, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def called(monkeypatch):
    """Pretend that this process was called by such words, in such a folder."""

    def pretend(words: str, argv0: str, folder: Path = ROOT, style: str | None = None, file: str = "") -> None:
        monkeypatch.setattr(sys, "orig_argv", [*shlex.split(words), "--option"])
        monkeypatch.setattr(sys, "argv", [argv0, "--option"])
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        monkeypatch.delenv(calls.STYLE, raising=False)
        if style:
            monkeypatch.setenv(calls.STYLE, style)

    return pretend


@pytest.mark.parametrize(
    ("words", "style", "shard", "train", "export"),
    [
        (
            "python data_prep/vocab.py",
            None,
            "python data_prep/shard.py",
            "bash launch/pretrain.sh",
            "python -m pretrain.export",
        ),
        (
            ".venv/bin/python -m pretrain.predict",
            None,
            ".venv/bin/python data_prep/shard.py",
            "bash launch/pretrain.sh",
            ".venv/bin/python -m pretrain.export",
        ),
        ("python3.11 zerobert", "zerobert", "zerobert shard", "zerobert train", "zerobert export"),
        (
            "/bin/python3.11 -u launch/pretrain.sh",
            "python3 -m launch.zerobert",
            "python3 -m launch.zerobert shard",
            "python3 -m launch.zerobert train",
            "python3 -m launch.zerobert export",
        ),
    ],
)
def test_commands_are_named_as_the_program_was_called(called, words, style, shard, train, export):
    called(words, words.split()[-1], style=style)
    assert (call("shard"), call("train"), call("export")) == (shard, train, export)
    assert call("show", "my store", "--json") == f"{shard.replace('shard', 'show')} 'my store' --json"
    text = "python data_prep/shard.py --corpus x; RANKS=2 bash launch/pretrain.sh; .venv/bin/python -m pretrain.export."
    assert in_style(text) == f"{shard} --corpus x; RANKS=2 {train}; {export}."


def test_a_call_can_be_pasted_in_the_folder_where_it_is_read(called, tmp_path):
    called("python data_prep/vocab.py", "data_prep/vocab.py", ROOT / "data_prep")
    assert call("shard") == "python shard.py"
    called(f"{sys.executable} {ROOT}/data_prep/vocab.py", "data_prep/vocab.py", tmp_path)
    python, script = call("shard").split()
    assert (tmp_path / python).samefile(sys.executable)
    assert (tmp_path / script).samefile(ROOT / "data_prep/shard.py")


def test_the_ranks_of_a_run_speak_as_it_was_started(called):
    called("/x/python -u launch/pretrain.sh", "launch/pretrain.sh")
    assert own() == "deepspeed launch/pretrain.sh"
    called("/x/python -u launch/pretrain.sh", "launch/pretrain.sh", style="bash launch/pretrain.sh")
    assert own() == "bash launch/pretrain.sh"


def test_the_console_command_lists_what_there_is_and_names_what_is_near(tmp_path):
    alone, asked = zerobert(folder=tmp_path), zerobert("--help", folder=tmp_path)
    assert (alone.returncode, alone.stdout, asked.returncode, asked.stderr) == (2, "", 0, "")
    assert asked.stdout == alone.stderr
    told = [line.split()[0] for line in asked.stdout.splitlines() if line.startswith("    ")]
    assert told[1:] == list(COMMANDS)
    wrong = zerobert("exprot", "run", folder=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: zerobert has no command 'exprot'; did you mean export?\n"


def test_every_command_is_a_module_or_a_package_that_runs():
    for name, command in COMMANDS.items():
        path = ROOT / command.module.replace(".", "/")
        if name in ("make", "plan") and not path.exists() and not path.with_suffix(".py").exists():
            continue
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


@pytest.mark.slow
def test_a_command_of_the_console_is_the_command_itself(tmp_path):
    missing = zerobert("show", "nix", folder=tmp_path)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("error: nix does not exist; make a token store with ")
    assert missing.stderr.endswith("zerobert shard\n")
    usage = zerobert("train", "--help", folder=tmp_path)
    assert usage.returncode == 0
    assert usage.stdout.split()[2:4] == ["train", "[-h]"]
    assert "bash launch/pretrain.sh" not in usage.stdout
