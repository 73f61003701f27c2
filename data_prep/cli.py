"""What every command of the project shares: arguments from a dataclass, errors in one clear line, exit codes.

    @dataclass(frozen=True)
    class ShardConfig: ...                      # one field per option, its docstring is its help

    def main(config: ShardConfig) -> None: ...

    if __name__ == "__main__":
        run(main, ShardConfig, __doc__)

Exit codes: 0 only when what was asked for exists whole, 2 for wrong usage or input (InputError), 1 for a failure while
running. Progress and messages go to stderr, results to stdout.

Importing this module from a Python that lacks the project's packages continues in .venv where launch/setup.sh has
made one, and says to run launch/setup.sh where it has not. Entry files therefore import it before anything else.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from data_prep.errors import InputError as InputError
from data_prep.ranges import check_arguments

ROOT = Path(__file__).resolve().parent.parent
C = TypeVar("C")


def _continue_in_venv() -> None:
    python = ROOT / ".venv/bin/python"
    if not python.exists():
        sys.exit(f"{sys.executable} has not the packages of zerobert; run first: bash {ROOT}/launch/setup.sh")
    if Path(sys.prefix) == ROOT / ".venv":
        sys.exit(f"{python} is not complete; run again: bash {ROOT}/launch/setup.sh")
    os.execv(python, [str(python), *sys.orig_argv[1:]])


if importlib.util.find_spec("tyro") is None:
    _continue_in_venv()

import tyro  # noqa: E402


def say(message: str) -> None:
    """A line of progress: to stderr, so that stdout holds results only."""
    print(message, file=sys.stderr, flush=True)


def print_json(result: dict[str, Any]) -> None:
    """The result of `--json`: one object on one line of stdout."""
    print(json.dumps(result, ensure_ascii=False))


def parse(config_class: type[C], description: str | None, args: list[str] | None = None) -> C:
    """Read the command line into `config_class`; unknown names and values end the program with code 2.

    Raises
    ------
    InputError: an empty value, a number out of its range; where the dataclass' own `__post_init__` refuses one.
    """
    args = sys.argv[1:] if args is None else args
    check_arguments(config_class, args)
    return tyro.cli(
        config_class,
        description=description,
        args=args,
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def run(main: Callable[[C], None], config_class: type[C], description: str | None) -> NoReturn:
    """Parse, call `main`, and end the process with the exit codes above."""
    try:
        main(parse(config_class, description))
    except InputError as error:
        say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    sys.exit(0)
