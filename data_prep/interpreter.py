"""Which Python runs a command: the one that was called, or that of .venv where it lacks the project's packages.

    if __name__ == "__main__":
        from data_prep.interpreter import continue_in_venv

        continue_in_venv()          # before the first import of a package

    with importing():               # around the first import of what takes seconds
        from pretrain.trainer import run_rank

Standard library only.
"""

import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.calls import ROOT


def continue_in_venv() -> None:
    """Run this very command by the Python of .venv, if this one lacks the packages; end where .venv lacks them, too."""
    if importlib.util.find_spec("tyro") is not None:
        return
    python = ROOT / ".venv/bin/python"
    if not python.exists():
        sys.exit(f"{sys.executable} lacks the packages of zerobert; run first: bash {ROOT}/launch/setup.sh")
    if Path(sys.prefix) == ROOT / ".venv":
        sys.exit(f"{python} is not complete; run again: bash {ROOT}/launch/setup.sh")
    os.execv(python, [str(python), *sys.orig_argv[1:]])


@contextmanager
def importing() -> Iterator[None]:
    """Leave what is imported out of the search for garbage, then and later.

    torch, transformers and DeepSpeed make a million objects that stay: to look through them again and again takes a
    sixth of the processor time of a start. Where all of it was there before, nothing is left out: what a process makes
    in its work may be garbage.
    """
    was_enabled, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        if was_enabled:
            gc.enable()
