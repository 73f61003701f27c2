"""Commands in processes forked from this one, which has imported what takes a second, or with torch ten.

    done = fork_script("shard", "--corpus", corpus, ...)      data_prep/shard.py
    done = fork_script("pretrain.score", model, ...)          python -m pretrain.score

What only a new interpreter shows is for tests that start one: that imports are silent, that other hashes of strings
give the same bytes (tests/corpora.py: run_script), how a process ends.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile

from data_prep.cli import ROOT

PATIENCE = 300.0  # seconds, of a busy machine


def fork_script(
    name: str,
    *arguments: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] = os.environ,
    before: Callable[[], None] = lambda: None,
) -> subprocess.CompletedProcess[str]:
    """Run data_prep/NAME.py, or a module that has a dot in its name; what it says and how it ends.

    before: called in that process
    """
    command = [name, *map(str, arguments)]
    with TemporaryFile() as out, TemporaryFile() as err:
        process = multiprocessing.get_context("fork").Process(
            target=_script, args=(command, cwd, dict(env), before, (out.fileno(), err.fileno()))
        )
        process.start()
        process.join(PATIENCE)
        process.kill()
        process.join()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, *said)


def _script(
    command: list[str], cwd: Path, env: dict[str, str], before: Callable[[], None], streams: tuple[int, int]
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.argv = command
    before()
    if "." in command[0]:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = str(ROOT / "data_prep" / f"{command[0]}.py")
        runpy.run_path(sys.argv[0], run_name="__main__")
