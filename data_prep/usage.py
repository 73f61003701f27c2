"""What is wrong with a command line, in one line: the option, what was written, and the nearest name that there is.

    with in_one_line(ShardConfig, args):
        tyro.cli(ShardConfig, args=args)         InputError, where tyro would print a box and end the process
    nearest("learning", options_of(TrainConfig)) -> ["lr", "schedule"]

tyro calls a hook before it prints anything (tyro._errors, for whose sake pyproject.toml names the very version).
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin

from tyro import _errors
from tyro.conf import Positional

from data_prep.errors import InputError
from data_prep.ranges import classes_of, hints_of, kind_of, shortened

ALL = "--help lists all options"
NEAR, MOST = 0.66, 3  # likeness of a name that was meant, and names in a message


@contextmanager
def in_one_line(config_class: type, args: Sequence[str]) -> Iterator[None]:
    """Raise InputError for what tyro refuses within.

    Before a word about what is missing, `config_class.check_given`, where there is one, looks at what is there. What
    another command has is told by `config_class.elsewhere(option)`, where there is one.
    """

    def refuse(event: _errors.ParseErrorEvent) -> None:
        check_given = getattr(config_class, "check_given", None)
        if isinstance(event, _errors.MissingArgs) and not event.unrecognized_tokens and check_given:
            check_given(_given(event.partial_output))
        if message := _told(event, config_class, args):
            raise InputError(message)

    with _errors.on_parse_error(refuse):
        yield


def _given(output: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that were given with one value each."""
    return {name: value[0] for name, value in output.items() if isinstance(value, list) and len(value) == 1}


def _told(event: _errors.ParseErrorEvent, config_class: type, args: Sequence[str]) -> str:
    match event:
        case _errors.MissingArgs(unrecognized_tokens=[token, *_]) | _errors.UnrecognizedArgs(tokens=[token, *_]):
            return _unknown(str(token), config_class, args)
        case _errors.MissingArgs():
            return _missing([missing.arg for missing in event.missing_arguments], config_class)
        case _errors.InvalidChoice():
            known = hints_of(config_class).get(event.argument.field.intern_name)
            choices = _choices(known) or [choice for choice in event.choices if choice != "None"]
            near = difflib.get_close_matches(event.value, choices, n=1)
            other = _elsewhere(event.argument.field.intern_name, config_class)
            meant = f"; did you mean {near[0]}?" if near else other and f"; {other}"
            return f"{_name(event.argument)} {shortened(event.value)} is not one of {', '.join(choices)}{meant}"
        case _errors.BadValue() if event.argument.is_positional() and (strange := _first_strange(args, config_class)):
            return _unknown(strange, config_class, args)
        case _errors.BadValue():
            count = event.argument.lowered.nargs
            values = f"{count} values" if isinstance(count, int) and count > 1 else "a value"
            return f"{_name(event.argument)} needs {values} behind it{_what(event.argument, config_class)} ({ALL})"
        case _errors.InstantiationFailure(argument=argument) if argument is not None:
            return f"{_name(argument)}: {' '.join(event.message.split())}"
    return ""


def _elsewhere(option: str, config_class: type) -> str:
    knows = getattr(config_class, "elsewhere", None)
    return knows(option) if knows else ""


def _name(argument: Any) -> str:
    """Return an argument as one writes it; one without a name as it stands in the line of usage."""
    return argument.field.intern_name.upper() if argument.is_positional() else argument.lowered.name_or_flags[0]


def _what(argument: Any, config_class: type) -> str:
    text = _docs(config_class).get(argument.field.intern_name, "")
    return f": {text}" if text else ""


def _choices(hint: Any) -> list[str]:
    """Return the words of a Literal, or of one among other types, in their order."""
    kind = kind_of(hint)
    literals = [each for each in (kind, *get_args(kind)) if get_origin(each) is Literal]
    return [str(word) for literal in literals for word in get_args(literal)]


def _missing(arguments: list[Any], config_class: type) -> str:
    *others, last = map(_name, arguments)
    if not others:
        return f"{last} is missing{_what(arguments[0], config_class)} ({ALL})"
    return f"{', '.join(others)} and {last} are missing (--help says what they are)"


def _first_strange(args: Sequence[str], config_class: type) -> str:
    """Return the first option of a command line that there is not: where it stands first, tyro misses what stands
    behind."""
    known = hints_of(config_class)
    named = (arg for arg in args if arg.startswith("--"))
    return next((arg for arg in named if arg[2:].partition("=")[0].replace("-", "_") not in known), "")


def _unknown(token: str, config_class: type, args: Sequence[str]) -> str:
    """Return what to say of a word that tyro has no place for: a misspelt option, or a value too many."""
    options = options_of(config_class)
    written = token.partition("=")[0]
    name = written.lstrip("-").replace("-", "_")
    hint = hints_of(config_class).get(name)
    if written.startswith("--") and kind_of(hint) is bool:
        return f"{written} takes no value: write {written} alone, or leave it out"
    if written.startswith("-") and name[:1].isalpha():
        if other := _elsewhere(name, config_class):
            return f"{written} is no option of this command; {other}"
        meant = " or ".join(f"--{near}" for near in nearest(name, options))
        return f"{written} is no option of this command{f'; did you mean {meant}?' if meant else ''} ({ALL})"
    # The option before the word, or the one that it is written to: --append=yes
    places = [index for index, arg in enumerate(args) if arg == token or arg.partition("=")[2] == token]
    place = max(places, default=0)
    before = next((arg for arg in reversed(args[: place + 1]) if arg.startswith("--")), "").partition("=")[0]
    if before and kind_of(hints_of(config_class).get(before.lstrip("-").replace("-", "_"))) is bool:
        return f"{shortened(token)} stands behind {before}, which takes no value ({ALL})"
    of_what = f"behind what {before} takes" if before else "behind all that this command takes"
    return f"{shortened(token)} is one word too many, {of_what}: quote what holds spaces ({ALL})"


def options_of(config_class: type) -> dict[str, str]:
    """Return the names of a command's options, and what --help says of each."""
    docs = _docs(config_class)
    return {name: docs.get(name, "") for name, hint in hints_of(config_class).items() if not _is_positional(hint)}


def _is_positional(hint: Any) -> bool:
    return any(mark is Positional for mark in getattr(hint, "__metadata__", ()))


def _docs(config_class: type) -> dict[str, str]:
    """Return what stands below each field, in one line."""
    from docstring_parser import parse_from_object  # inside: it reads the source, of which only a refusal has need

    found = {}
    for part in classes_of(config_class):
        for entry in parse_from_object(part).params:
            found[entry.arg_name] = " ".join((entry.description or "").split()).rstrip(".")
    return found


def nearest(name: str, options: Mapping[str, str]) -> list[str]:
    """Return the options that may be meant by a name that is none: misspelt; written out (learning_rate -> lr); else by
    words in common with their names and what --help says of them (learning -> lr, "peak learning rate")."""
    if close := difflib.get_close_matches(name, options, n=1, cutoff=NEAR):
        return close
    initials = "".join(word[0] for word in name.split("_") if word)
    if initials in options:
        return [initials]
    words = {word for word in name.lower().split("_") if word}
    shared = [option for option in options if words & {*option.split("_")}]
    told = [
        option
        for option, what in options.items()
        if words <= {*option.split("_"), *re.findall(r"[a-z]+", what.lower())}
    ]
    return ([option for option in shared if option in told] or told or shared)[:MOST]
