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
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

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


class InputError(Exception):
    """Something a user gave us is wrong. The message names the file, the value and the remedy."""


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
    InputError: where the dataclass' own `__post_init__` refuses a value.
    """
    words = sys.argv[1:] if args is None else args
    values = read_plainly(config_class, words)
    if values is not None:
        return config_class(**values)
    import tyro  # inside: it takes a tenth of a second, in which shard.py prepares 3 MB of text

    return tyro.cli(
        config_class,
        description=description,
        args=words,
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def read_plainly(config_class: type[Any], words: list[str]) -> dict[str, Any] | None:
    """The fields of a plain command line: each `--name` once, with values of its type. None where anything is out of
    the ordinary or missing: tyro, which knows more, reads it, or says what is wrong."""
    kinds = get_type_hints(config_class, include_extras=True)
    given: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--") and word[2:] in kinds and word[2:] not in given:
            values = given[word[2:]] = []
        elif word.startswith("-") or not given:
            return None
        else:
            values.append(word)
    required = {field.name for field in fields(config_class) if MISSING is field.default is field.default_factory}
    try:
        if required <= given.keys():
            return {name: _value(kinds[name], values) for name, values in given.items()}
    except ValueError:
        pass
    return None


def _value(kind: Any, words: list[str]) -> Any:
    """What the words after an option mean.

    Raises
    ------
    ValueError: it is not plain.
    """
    if kind is bool and not words:  # our flags are off where they are not given
        return True
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,) and words:
        return tuple(_value(get_args(kind)[0], [word]) for word in words)
    [word] = words
    if kind in (str, int, float, Path):
        return kind(word)
    if kind == Path | None and word != "None":
        return Path(word)
    if get_origin(kind) is Literal and word in get_args(kind):
        return word
    raise ValueError(f"{kind} {words}")


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
