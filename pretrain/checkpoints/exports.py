"""Hugging Face folders on the way: `--export_every N` writes RUN/hf/step-0001000, and so on.

    exports = Exports(run, heartbeat)
    exports.write(checkpoint, has_average=False)    of rank 0, in the saver's thread, when the checkpoint is whole
    exports.news() -> [Exported(...)]                  what has become of them

It is the export command itself, in a process of its own: the folder has the bytes that the command gives, whatever
stage and ranks wrote the checkpoint, and nothing that it sets touches the training. One that fails is said; the run
goes on.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_prep.cli import ROOT
from pretrain.checkpoints.format import step_of

EXPORT_SECONDS = 3600.0  # that one may take
LOOK_SECONDS = 0.2


class Exported(NamedTuple):
    """What became of an export."""

    step: int
    folder: Path
    failure: str  # in the command's own words; empty: the folder is there


class Exports:
    """The exports of one run, by its first rank."""

    def __init__(self, run: Path, heartbeat: Callable[[], None]) -> None:
        """`heartbeat` is called while one is under way: for the watchdog that is progress."""
        self._run, self._heartbeat = run, heartbeat
        self._news: list[Exported] = []

    def write(self, checkpoint: Path, *, has_average: bool) -> None:
        """Export a checkpoint, and its averaged weights where it has some, into a folder beside."""
        folder = self._run / "hf" / checkpoint.name
        for weights in ("raw", "averaged")[: 1 + has_average]:
            out = folder if weights == "raw" else folder.with_name(f"{folder.name}-averaged")
            self._news.append(Exported(step_of(checkpoint), out, self._export(checkpoint, out, weights)))

    def news(self) -> list[Exported]:
        """Return what has become of exports since the last call."""
        told, self._news = self._news, []
        return told

    def _export(self, checkpoint: Path, out: Path, weights: str) -> str:
        """Run the command; return why it failed, or nothing."""
        command = [sys.executable, "-m", "pretrain.export", checkpoint.resolve(), out.absolute(), "--weights", weights]
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the run's, which waits for it
        )
        deadline = time.monotonic() + EXPORT_SECONDS
        while process.poll() is None:  # it says a few lines, for which the pipe has room
            self._heartbeat()
            time.sleep(LOOK_SECONDS)
            if time.monotonic() > deadline:
                process.kill()
        said = process.communicate()[1].strip().splitlines()
        return "" if process.returncode == 0 else (said or [f"code {process.returncode}"])[-1].removeprefix("error: ")
