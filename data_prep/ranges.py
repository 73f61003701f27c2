"""Which numbers an option takes, declared where the option is, and checked in one place.

    steps: Annotated[int, Range(1, 1e9)] = 10_000      # a field of a dataclass or NamedTuple

    def __post_init__(self) -> None:
        check_ranges(self)                             # InputError: --steps 0 must lie in [1, 1e+09]

    check_arguments(Config, ["--steps", "many"])       # InputError: --steps many must be a whole number and lie in ...

Every range has two finite ends, so that nan, inf and a slip of the finger over twenty zeros are in none.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from data_prep.errors import InputError

SHOWN_CHARS = 40  # characters of a value in a message


class Range(NamedTuple):
    """Numbers from `low` to `high`."""

    low: float
    high: float
    low_open: bool = False  # without `low` itself
    high_open: bool = False
    or_zero: bool = False  # and 0, which switches off
    whole: bool = False  # nothing after the point; what says so of an option is its type
    why: str = ""  # a word more in the message

    def holds(self, number: object) -> bool:
        """Whether it is a number, and one of these."""
        if isinstance(number, bool) or not isinstance(number, int | float):
            return False
        if self.or_zero and number == 0:
            return True
        above = number > self.low if self.low_open else number >= self.low
        below = number < self.high if self.high_open else number <= self.high
        return above and below and not (self.whole and number != int(number))

    def __str__(self) -> str:
        ends = f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"
        return ("be 0 or lie in " if self.or_zero else "lie in ") + ends + (f"; {self.why}" if self.why else "")


WORKERS = Range(0, 1024, why="0: one a core")
HOURS = Range(1 / 3600, 1e5, why="a second is 0.00028 hours")
SHARD_MB = Range(0, 1e6, low_open=True)  # to a terabyte


def check_ranges(settings: Any, option: str = "--") -> None:
    """Compare the numbers of a dataclass or NamedTuple with the ranges that its fields declare; None is no number, and
    of a tuple every element counts. `option` is what stands before a name in a message.

    Raises
    ------
    InputError: with name, value and range of the first number that is outside.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        for allowed in getattr(hint, "__metadata__", ()):
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            if isinstance(allowed, Range) and not all(map(allowed.holds, numbers)):
                raise InputError(f"{option}{name} {shortened(value)} must {allowed}")


def classes_of(config_class: type) -> Iterator[type]:
    """Yield the class of a command's options, and those of groups within it."""
    yield config_class
    for hint in get_type_hints(config_class).values():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from classes_of(hint)


def hints_of(config_class: type) -> dict[str, Any]:
    """Return the options of a command by name, with their types and marks; those of a group stand among the others."""
    hints: dict[str, Any] = {}
    for part in classes_of(config_class):
        hints |= get_type_hints(part, include_extras=True)
    return {name: hint for name, hint in hints.items() if not dataclasses.is_dataclass(kind_of(hint))}


def kind_of(hint: Any) -> Any:
    """Return a type without its marks."""
    return _kind_and_ranges(hint)[0]


def check_arguments(config_class: type, args: Sequence[str]) -> list[str]:
    """Look at what follows each option of a command line, before it is parsed: numbers out of their range, and what
    should be a number and is none, are refused in one line; an empty value (an unset variable of a script) is no path.
    Returns the lists that are given twice, of which the parser keeps the last alone.

    Raises
    ------
    InputError: with name, value and range.
    """
    hints = hints_of(config_class)
    lists: list[str] = []  # that were given
    option, left = "", 0  # the last one, and how many numbers it still takes
    for arg in args:
        value = arg
        if arg.startswith("--"):
            option, equals, value = arg.removeprefix("--").partition("=")
            kind, ranges = _kind_and_ranges(hints.get(option.replace("-", "_")))
            left = len(get_args(kind)) if get_origin(kind) is tuple else 1
            name = option.replace("-", "_")
            if _is_open_list(hints.get(name)):
                lists.append(name)
            if not equals:
                continue
        if not value and option and kind is not bool:
            raise InputError(f"--{option} is followed by an empty value; give one, or leave the option out")
        if option and left > 0 and not (value == "None" and type(None) in get_args(kind)):
            for allowed in ranges:
                _check_number(option, value, {int, float} & {kind, *get_args(kind)} == {int}, allowed)
        left -= 1
    return [name for name in dict.fromkeys(lists) if lists.count(name) > 1]


def _is_open_list(hint: Any) -> bool:
    """Whether an option takes any number of values at once; with a mark, such as tyro's for appending, it may not."""
    kind, ranges = _kind_and_ranges(hint)
    is_marked = len(getattr(hint, "__metadata__", ())) > len(ranges)
    return get_origin(kind) is tuple and get_args(kind)[-1] is ... and not is_marked


def _kind_and_ranges(hint: Any) -> tuple[Any, list[Range]]:
    if get_origin(hint) is not Annotated:
        return hint, []
    return get_args(hint)[0], [part for part in hint.__metadata__ if isinstance(part, Range)]


def _check_number(option: str, value: str, whole: bool, allowed: Range) -> None:
    try:
        number = int(value) if whole else float(value)
    except ValueError as error:
        kind = "whole number" if whole else "number"
        if not whole and re.fullmatch(r"-?[0-9]+,[0-9]+", value):  # as half of Europe writes it
            kind = f"number, with a point ({value.replace(',', '.')}),"
        raise InputError(f"--{option} {shortened(value)} must be a {kind} and {allowed}") from error
    if not allowed.holds(number):
        raise InputError(f"--{option} {shortened(value)} must {allowed}")


def shortened(value: object) -> str:
    """Return a value as a message shows it."""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
