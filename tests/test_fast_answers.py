"""Refusals and --help come before anything heavy is imported: seconds of processor time would pass first."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.answers import REFUSALS, prepare
from data_prep.calls import COMMANDS, ROOT

HEAVY = ("torch", "transformers", "deepspeed", "sklearn", "scipy", "matplotlib")
# Every refusal in one process: code, message, and the heavy modules that are there after it.
PROGRAM = """
import contextlib, io, json, runpy, shlex, sys

for name, module, lines, heavy in json.load(sys.stdin):
    for line in lines:
        sys.argv = [name, *shlex.split(line)]
        said, code = io.StringIO(), 0
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                code = end.code
        found = [each for each in heavy if each in sys.modules]
        print(json.dumps([name, line, code, said.getvalue(), found]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("answers")
    prepare(made)
    return made


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_a_refusal_or_help(folder):
    asked = [
        (name, command.module, [*REFUSALS[name], "--help"], HEAVY)
        for name, command in COMMANDS.items()
        if name in REFUSALS
    ]
    before = sorted(folder.rglob("*"))
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(asked),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == sum(len(lines) for _, _, lines, _ in asked), ended.stderr
    for name, line, code, said, heavy in answers:
        assert (code, heavy) == (0 if line == "--help" else 2, []), f"{name} {line}: {said}"
        assert "Traceback" not in said
        assert line == "--help" or said.splitlines()[-1].startswith("error: "), said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("ranks", "options"), [("2", "--steps 0"), ("3", "--global_batch 100")])
def test_the_launcher_is_not_started_for_what_is_refused(folder, tmp_path, ranks, options):
    for name, program in (("deepspeed", f"touch {tmp_path}/started"), ("python", f'exec {sys.executable} "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    command = ["bash", str(ROOT / "launch/pretrain.sh"), "--data", "store", "--out", "new", "--model", "bert-tiny"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RANKS": ranks}
    ended = subprocess.run([*command, *options.split()], cwd=folder, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("\n"), ended.stderr[:7]) == (2, 1, "error: "), ended.stderr
    assert not (tmp_path / "started").exists()


def test_a_plan_starts_no_launcher_and_one_rank(folder, tmp_path):
    for name, program in (("deepspeed", f"touch {tmp_path}/started"), ("python", 'echo "$WORLD_SIZE $RANK $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    command = ["bash", str(ROOT / "launch/pretrain.sh"), "--data", "store", "--dry_run"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RANKS": "3"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == f"3 0 {ROOT}/launch/pretrain.sh --data store --dry_run", ended.stderr
    assert not (tmp_path / "started").exists()
