"""What every command of the project shares: arguments from a dataclass, errors in one clear line, exit codes.

    @dataclass(frozen=True)
    class ShardConfig: ...                      # one field per option, its docstring is its help

    def main(config: ShardConfig) -> None: ...

    if __name__ == "__main__":
        run(main, ShardConfig, __doc__)

Exit codes: 0 only when what was asked for exists whole, 2 for wrong usage or input (InputError), 1 for a failure while
running. Progress and messages go to stderr, results to stdout.
"""

import codecs
import errno
import hashlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import tyro

from data_prep.calls import ROOT as ROOT
from data_prep.calls import hand_on, in_style, own
from data_prep.errors import InputError as InputError
from data_prep.errors import one_line as one_line
from data_prep.json_types import JsonObject
from data_prep.ranges import check_arguments
from data_prep.safe_output import failure_of, survive_console
from data_prep.usage import in_one_line

C = TypeVar("C")
OTHERS_SECONDS = 2.0  # the ranks of a step are at the same place; files are looked at every second
# What a terminal would act on, or an encoder choke on: controls, marks of writing direction, halves of surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Return a text on one line that no terminal acts on: names of files may hold line ends, escapes, bytes of no
    encoding."""
    return _UNPRINTABLE.sub(_spelled, str(text))


def _spelled(character: re.Match[str]) -> str:
    code = ord(character[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python has it from the file system
        return f"\\x{code - 0xDC00:02x}"
    return character[0].encode("unicode_escape", "surrogatepass").decode()


def say(message: str) -> None:
    """A message of progress: to stderr, so that stdout holds results only."""
    print("\n".join(map(printable, message.split("\n"))), file=sys.stderr, flush=True)


def say_once(message: str, *, about: str) -> None:
    """Say what several ranks of this node may find at the same moment `about` one thing: the first of them says it."""
    # A name among Linux's sockets belongs to one process, and is free again when that ends. Whoever has it waits until
    # the others have met it, too; they are the children of one launcher.
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(b"\0zerobert-" + hashlib.sha256(f"{os.getppid()} {about}".encode(errors="replace")).digest())
    except OSError:
        return
    say(message)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        time.sleep(OTHERS_SECONDS)
    claim.close()


def print_json(result: JsonObject) -> None:
    """The result of `--json`: one object on one line of stdout, in ASCII where that has no letters beyond."""
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    print(json.dumps(result, ensure_ascii=not is_utf8))


def number_in(
    environment: Mapping[str, str], name: str, default: int | None = None, least: int = 0, most: int = 1_000_000
) -> int:
    """Return the whole number that a variable holds; `default` where it is not set.

    Raises
    ------
    InputError: it holds something else, or is not set and there is no default.
    """
    text = environment.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise InputError(f"{name}={text!r} is no whole number from {least} to {most}; mend or unset this variable")
    return int(text)


def parse(config_class: type[C], description: str | None, args: list[str] | None = None) -> C:
    """Read the command line into `config_class`.

    Raises
    ------
    InputError: an unknown option or choice, a missing or an empty value, a number out of its range; what the
        dataclass' own `__post_init__` refuses.
    """
    args = sys.argv[1:] if args is None else args
    for name in check_arguments(config_class, args):
        if os.environ.get("RANK", "0") == "0":
            say(f"warning: --{name} is given twice: the last one counts; write all that it holds behind one --{name}")
    with in_one_line(config_class, args):
        return tyro.cli(
            config_class,
            prog=own(),
            description=in_style(description or ""),
            args=args,
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff,),
        )


def run(main: Callable[[C], None], config_class: type[C], description: str | None) -> NoReturn:
    """Parse, call `main`, and end the process with the exit codes above. A console that dies ends nothing; results
    that a full disk refuses on stdout are a failure."""
    survive_console()
    hand_on()  # to workers
    try:
        main(parse(config_class, description))
    except InputError as error:
        say(f"error: {printable(error)}")
        sys.exit(2)
    except OSError as error:  # the disk: full, gone, not ours
        say(f"error: {printable(error)}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    if sys.stdout is not None:
        sys.stdout.flush()
    failure = failure_of(sys.stdout)
    if failure is not None and failure.errno != errno.EPIPE:  # a reader that has gone has what it wanted
        say(f"error: the results could not be written to stdout: {failure.strerror}")
        sys.exit(1)
    sys.exit(0)
