"""Which Python runs a command: the one that was called, or that of .venv where it lacks the project's packages.

    if __name__ == "__main__":
        from data_prep.interpreter import continue_in_venv

        continue_in_venv()          # before the first import of a package

Standard library only.
"""

import importlib.util
import os
import sys
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
