"""The commands that `make` runs, from an advice and from what the user wants otherwise; and which of them must run.

words = commands_of(advice, settings)       stage -> its words, such as ["shard", "--corpus", "texts", ...]
keys = keys_of(words, sources, task)        stage -> (base, key), see make_record.py

vocab -> shard -> look
               -> train -> export -> fill
                                  -> finetune (where there is a task)
"""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import dropwhile
from pathlib import Path
from typing import Any, NamedTuple

from data_prep import usage
from data_prep.calls import call
from data_prep.cli import InputError, parse
from data_prep.json_types import JsonObject
from launch.make_record import key_of
from pretrain.settings.config import OF_A_NEW_MODEL

Words = list[str]


class Kind(NamedTuple):
    """A stage, as it is in every make."""

    title: str
    command: str  # of data_prep/calls.py
    reads: tuple[str, ...]  # stages, or "sources" or "task", on which its result depends
    result: str  # in DIR, once it is done
    is_costly: bool = False  # its result is not thrown away unasked


KINDS = {
    "vocab": Kind("vocabulary", "vocab", ("sources",), "vocab/tokenizer.json"),
    "shard": Kind("token store", "shard", ("sources", "vocab"), "store/manifest.json", True),
    "look": Kind("a look at the store", "show", ("shard",), "logs/look.log"),
    "train": Kind("pretraining", "train", ("shard",), "run/metrics.jsonl", True),
    "export": Kind("export", "export", ("train",), "hf/config.json"),
    "fill": Kind("gaps in sentences", "predict", ("export",), "fill.json"),
    "finetune": Kind("fine-tuning", "finetune", ("export", "task"), "finetuned/results.json"),
}
# Where things lie is not what they are, and the number of workers changes nothing.
PLACES = {"corpus", "out", "vocab", "data", "train", "eval", "workers", "json"}
OURS = {
    "vocab": ("corpus", "out"), "shard": ("corpus", "vocab", "out"), "look": (),
    "train": ("data", "out", "init_from", "resume"), "export": (), "finetune": ("train", "eval", "out"),
}  # fmt: skip
# Options whose setting has another name in an advice.
SETTINGS = {("vocab", "size"): "vocab_size", ("vocab", "model"): "vocab_kind"}
# What a run of training cannot take over; all else it goes on with, and says so.
OF_A_RUN = {
    "model",
    "init_from",
    "ds_config",
    "objective",
    "seq_len",
    "optimizer",
    "seed",
    "positions",
    *OF_A_NEW_MODEL,
}


def go_on_elsewhere() -> str:
    """Return which commands go on from a model that is there."""
    return (
        "make begins a new model; to go on from a Hugging Face folder: "
        f"{call('shard', '--vocab', 'HF_FOLDER')}, then {call('train', '--init_from', 'HF_FOLDER')}"
    )


def read_settings(entries: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return --set STAGE.OPTION=VALUE ... as stage -> option -> value.

    Raises
    ------
    InputError: not of this form, no such stage, an option that make sets itself.
    """
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        stage, dot, option = name.partition(".")
        option = option.removeprefix("--")
        if not equals or not dot or stage not in OURS or not option.isidentifier():
            raise InputError(
                f"--set {entry}: write STAGE.OPTION=VALUE, with one of {', '.join(OURS)}, as in train.lr=1e-3"
            )
        if option == "init_from":
            raise InputError(f"--set {entry}: {go_on_elsewhere()}")
        if option in OURS[stage]:
            raise InputError(f"--set {entry}: make sets this itself, by --out, --corpus and --task")
        try:
            shlex.split(value)
        except ValueError as error:
            raise InputError(
                f"--set {entry}: a quote is left open; the value is read as a shell reads it, so write "
                f"{stage}.{option}={shlex.quote(value)}"
            ) from error
        found.setdefault(stage, {})[option] = value
    return found


def wanted_settings(wanted: Mapping[str, Mapping[str, str]]) -> JsonObject:
    """Return the same as settings of an advice, which chooses the others to fit."""
    found: JsonObject = {}
    for stage, options in wanted.items():
        for option, value in options.items() if stage in ("vocab", "shard", "train") else ():
            found[SETTINGS.get((stage, option), option)] = _read(value)
    return found


def _read(value: str) -> Any:
    if value in ("yes", "true", "no", "false"):
        return value in ("yes", "true")
    try:
        return int(value)
    except ValueError:
        with suppress(ValueError):
            return float(value)
    return value


def changed(words: Sequence[str], options: Mapping[str, str]) -> Words:
    """Return the words of a command with these options in place of its own; `yes` and `no` are those of a flag."""
    kept = list(words)
    for name, value in options.items():
        kept = without(kept, name)
        if value not in ("no", "false"):
            kept += [f"--{name}", *(() if value in ("yes", "true") else shlex.split(value))]
    return kept


def without(words: Sequence[str], name: str) -> Words:
    """Return the words of a command without one option and its values."""
    kept: Words = []
    is_of_it = False
    for word in words:
        if word.startswith("--"):
            is_of_it = word.removeprefix("--").partition("=")[0] == name
        if not is_of_it:
            kept.append(word)
    return kept


def placed(name: str, words: Sequence[str], corpus: Sequence[str], out: Path) -> Words:
    """Return a command with these places for its own, which may be those of another time: folders move."""
    vocab, store, run, hf = (str(out / folder) for folder in ("vocab", "store", "run", "hf"))
    places = {
        "vocab": ["--corpus", *corpus, "--out", vocab],
        "shard": ["--corpus", *corpus, "--vocab", vocab, "--out", store],
        "look": [store],
        "train": ["--data", store, "--out", run],
        "export": [run, hf],
        "fill": [hf],
        "finetune": [
            *(hf, "--train", str(out / "task/train.jsonl"), "--eval", str(out / "task/eval.jsonl")),
            *("--out", str(out / "finetuned")),
        ],
    }[name]
    rest = list(dropwhile(lambda word: not word.startswith("--"), words[1:]))
    for option in OURS.get(name, ()):
        rest = without(rest, option)
    return [words[0], *places, *rest]


def options_of(words: Sequence[str]) -> dict[str, str]:
    """Return the options of a command but those that say where things lie; positional words are such, too."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words[1:]:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            found.setdefault(name, []).extend([value] if value else [])
        else:
            found.setdefault(name, []).append(word)
    return {name: " ".join(values) for name, values in found.items() if name and name not in PLACES}


def keys_of(commands: Mapping[str, Words], sources: Any, task: str) -> dict[str, tuple[str, str]]:
    """Return (base, key) of each stage. `sources` describes the texts; `task` is a hash of the labelled files."""
    keys = {"sources": (key_of(sources), key_of(sources)), "task": (task, task)}
    for name, kind in KINDS.items():
        if name in commands:
            options = options_of(commands[name])
            fixed = {k: v for k, v in options.items() if name != "train" or k in OF_A_RUN}
            bases, whole = zip(*(keys[source] for source in kind.reads), strict=True)
            keys[name] = key_of(name, fixed, bases), key_of(name, options, whole)
    return {name: keys[name] for name in KINDS if name in keys}


def check(wanted: Mapping[str, Mapping[str, str]]) -> None:
    """Parse the options that are wanted as their commands will do: a wrong one is told now and not after hours.

    Raises
    ------
    InputError: an unknown option, or a value that is refused.
    """
    from data_prep.shard import ShardConfig
    from data_prep.show import ShowConfig
    from data_prep.vocab import VocabConfig
    from pretrain.export.command import ExportConfig
    from pretrain.finetune.command import FinetuneConfig
    from pretrain.settings.config import TrainConfig

    least: dict[str, tuple[Any, str]] = {  # what each needs beside
        "vocab": (VocabConfig, "--corpus texts --out vocab"),
        "shard": (ShardConfig, "--corpus texts --vocab vocab --out store"),
        "look": (ShowConfig, "store"),
        "train": (TrainConfig, "--data store --out run --model bert-tiny"),
        "export": (ExportConfig, "run hf"),
        "finetune": (FinetuneConfig, "hf --task classify --train train.tsv --eval dev.tsv --out tuned"),
    }
    for name, options in wanted.items():
        config, words = least[name]
        known = usage.options_of(config)
        for option, value in options.items():
            if option not in known:
                meant = " or ".join(f"{name}.{near}" for near in usage.nearest(option, known))
                raise InputError(
                    f"--set {name}.{option}={value}: {KINDS[name].command} has no option {option}"
                    f"{f'; did you mean {meant}?' if meant else ''} ({call(KINDS[name].command, '--help')} lists all)"
                )
        try:
            parse(config, None, changed(words.split(), options))
        except InputError as error:
            said_of = [option for option in options if str(error).startswith(f"--{option} ")]
            what = f"{name}.{said_of[0]}={options[said_of[0]]}" if said_of else f"{name}..."
            raise InputError(f"--set {what}: {error}") from error


def result_of(name: str, out: Path) -> Path:
    """Return the file that is there once a stage is done."""
    return out / KINDS[name].result


def folder_of(name: str, out: Path) -> Path:
    """Return what a stage makes: a folder of DIR, or a file."""
    return out / KINDS[name].result.partition("/")[0] if name != "look" else result_of(name, out)
