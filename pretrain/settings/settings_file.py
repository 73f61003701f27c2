"""Settings of a run from a file, under what the command line says.

    with_settings(["--config", "RUN/config.json", "--lr", "2e-4"]) -> ["--data", ..., "--steps=9", ..., "--lr", "2e-4"]

    RUN/config.json             the record of a run: all its settings, and what DeepSpeed's JSON was resolved to
    X.json, X.yaml, X.toml      options by name, as the command line has them

The file becomes options of the command line, so that one parser checks both; an option that is given replaces the
file's. From a record come the settings that decide the numbers; those that say how a command goes on (--resume and the
like) are of that command only. Batch, rate, decay, clipping, precision, stage and optimizer are taken as DeepSpeed had
them, whatever the defaults are by now; the rest of DeepSpeed's JSON is the file that the record names.
"""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from data_prep.cli import ROOT, InputError, say
from data_prep.fields import SEAL, parse, read_fields
from data_prep.json_types import JsonObject
from data_prep.ranges import hints_of, kind_of
from pretrain.settings.config import OF_A_NEW_MODEL, SHAPE, TrainConfig
from pretrain.settings.ds_config import DsConfig, Flags, resolve

Settings = JsonObject

OF_A_COMMAND = ("config", "resume", "allow_change", "dry_run", "verify_store")
ALIASES = {"deepspeed_config": "ds_config"}
EITHER = ("model", "init_from")  # one excludes the other
EDITED = f"take the file from its run again; of a copy that was edited on purpose, remove {SEAL!r}"
KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def with_settings(args: Sequence[str]) -> list[str]:
    """Return the arguments, behind those that the file of --config stands for.

    Raises
    ------
    InputError: a file that cannot be read, a name that is no option, a value of another kind.
    """
    path = _config_of(args)
    if path is None:
        return list(args)
    given = {_name_of(arg) for arg in args if arg.startswith("--")}
    settings = read_settings(path, is_whole="ds_config" not in given)
    if given & {*EITHER}:
        given |= {
            *EITHER,
            *(OF_A_NEW_MODEL if "init_from" in given else (*SHAPE, "vocab_from")),
        }  # those were of the other model
    return [*_arguments({name: value for name, value in settings.items() if name not in given}), *args]


def _config_of(args: Sequence[str]) -> Path | None:
    for at, arg in enumerate(args):
        if _name_of(arg) == "config" and arg.startswith("--"):
            value = arg.partition("=")[2] if "=" in arg else "".join(args[at + 1 : at + 2])
            return Path(value) if value else None  # what has no value is refused by the parser
    return None


def _name_of(arg: str) -> str:
    name = arg.removeprefix("--").partition("=")[0].replace("-", "_")
    return ALIASES.get(name, name)


def read_settings(path: Path, is_whole: bool = True) -> Settings:
    """Return the settings in a file, each of the kind that its option takes.

    is_whole: with DeepSpeed's, where it is a record

    Raises
    ------
    InputError: as with_settings().
    """
    path = path / "config.json" if path.is_dir() else path
    content = _read(path)
    if isinstance(content.get("train"), dict):
        content = _of_record(path, content, is_whole)
    hints = {name: kind_of(hint) for name, hint in hints_of(TrainConfig).items()}
    settings = {}
    for written, value in content.items():
        name = ALIASES.get(written, written)
        if name not in hints or name == "config":
            near = difflib.get_close_matches(str(name), hints, n=1)
            what = f"did you mean {near[0]}?" if near else f"known: {', '.join(hints)}"
            raise InputError(f"--config {path}: unknown name {written!r}; {what}")
        if not _fits(value, hints[name]):
            raise InputError(f"--config {path}: {name} {value!r:.60} is not {_kind(hints[name])}")
        settings[name] = value
    return settings


def _read(path: Path) -> Settings:
    readers: dict[str, Callable[[str], Any]] = {".json": parse, ".toml": tomllib.loads}
    readers |= {".yaml": _yaml, ".yml": _yaml}
    if path.suffix.lower() not in readers:
        raise InputError(f"--config {path} must be a run's config.json, or end in {', '.join(readers)}")
    try:
        content = readers[path.suffix.lower()](path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"--config {path} must hold names with values, such as steps: 1000")
    return content


def _yaml(text: str) -> Any:
    import yaml  # not before it is asked for

    def refuse_twice(node: Any) -> None:
        """A name that stands twice in one place: YAML would keep the last."""
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            names = [name.value for name, _ in inner]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{twice} stands there twice")
            inner = [value for _, value in inner]
        for each in inner:
            refuse_twice(each)

    try:
        refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _of_record(path: Path, record: Settings, is_whole: bool) -> Settings:
    """Return the options that make the run of a record again."""
    if SEAL in record:
        read_fields(path, EDITED)
    settings = {name: value for name, value in record["train"].items() if name not in OF_A_COMMAND}
    if settings.get("phase"):
        settings.pop("steps", None)  # their sum
    known = Path(str(settings.get("ds_config")))
    if not known.exists() and (ROOT / "ds_configs" / known.name).exists():  # of another checkout
        settings["ds_config"] = str(ROOT / "ds_configs" / known.name)
    if not is_whole:
        return settings
    try:
        before = DsConfig(record["deepspeed"])
        flags, world = _flags_of(before), before.ranks
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"--config {path} does not say what DeepSpeed had ({error!r}); {EDITED}") from error
    # What phases say for themselves is no flag.
    phases = [part.partition("=")[0].strip() for text in settings.get("phase", ()) for part in text.split(",")]
    for name, value in dataclasses.asdict(flags).items():
        if settings.get(name) is None and name not in phases:
            settings[name] = value
    if not phases:
        _tell_changes(Path(settings["ds_config"]), flags, world, record["deepspeed"])
    return settings


def _flags_of(resolved: DsConfig) -> Flags:
    """Return what flags can say of resolved settings, but for the micro-batch, which depends on the ranks."""
    return Flags(
        global_batch=resolved.global_batch,
        lr=resolved.lr,
        weight_decay=resolved.weight_decay,
        clip=resolved.clip,
        precision=resolved.precision,  # type: ignore[arg-type]  # the parser looks at it
        zero=resolved.stage,  # type: ignore[arg-type]
        optimizer=resolved.optimizer,  # type: ignore[arg-type]
    )


def _tell_changes(path: Path, flags: Flags, world: int, before: Settings) -> None:
    """Say what of a run's DeepSpeed JSON is another today: flags do not reach it.

    Raises
    ------
    InputError: as ds_config.resolve() does.
    """
    now = resolve(path, flags, world, flags.precision or "fp32").content
    for section in ("optimizer", "zero_optimization", "bf16", "fp16"):
        old, new = _flat(before.get(section, {})), _flat(now.get(section, {}))
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                say(f"{path} has changed since: {section}.{name} was {old.get(name)}, and is {new.get(name)}")


def _flat(section: Settings) -> Settings:
    return {
        f"{name}.{inner}" if inner else name: found
        for name, value in section.items()
        for inner, found in (_flat(value).items() if isinstance(value, dict) else [("", value)])
    }


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of a file is of the kind that an option takes."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return not isinstance(value, bool) and value in inner
    if origin is tuple:
        if isinstance(value, str):  # a single one
            return inner == (str, ...)
        each = [inner[0]] * len(value) if isinstance(value, list) and inner[-1] is ... else inner
        return isinstance(value, list) and len(value) == len(each) and all(map(_fits, value, each))
    if hint is NoneType:
        return value is None
    if hint is float:
        return _is_number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str if hint is Path else hint)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))  # YAML takes 1e-3 for a text
    except (TypeError, ValueError, OverflowError):
        return False


def _kind(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_kind(each) for each in inner if each is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"a list, each {_kind(inner[0])}"
    return KINDS[hint]


def _arguments(settings: Settings) -> list[str]:
    """Return settings as the command line has them. Of an option that is off or left open nothing is said."""
    args: list[str] = []
    for name, value in settings.items():
        if value is True:
            args.append(f"--{name}")
        elif name == "phase":
            args += [f"--phase={each}" for each in ([value] if isinstance(value, str) else value)]
        elif isinstance(value, list):
            args += [f"--{name}", *map(str, value)] if value else []
        elif value is not None and value is not False:
            args.append(f"--{name}={value}")
    return args
