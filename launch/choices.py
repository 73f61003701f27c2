"""What runs, and why: the advice, what is wanted otherwise, and what a change of either means for what is there.

advice = settle_advice(config, record, sources)     the one that the folder was begun with, if it is about the same
commands = commands_of(config, advice, found)       stage -> the words of its command
settle_changes(config, record, sources, keys)       says what has changed; refuses what cannot go on
"""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from data_prep.calls import call
from data_prep.cli import InputError, number_in, say
from data_prep.json_types import JsonObject
from launch.labelled import Found
from launch.make_record import AdviceRecord, MakeRecord, TextRecord, changes_of, key_of
from launch.settings import MakeConfig
from launch.stages import (
    KINDS,
    OF_A_RUN,
    Words,
    changed,
    folder_of,
    options_of,
    placed,
    wanted_settings,
)
from pretrain.advice.advice import Advice, advised
from pretrain.advice.machine import here
from pretrain.advice.rules import why_warmup
from pretrain.advice.survey import survey
from pretrain.advice.tables import WIDTH, shown


def advise_for(config: MakeConfig) -> AdviceRecord:
    """Return what fits the text, the machine and the hours, as make.json keeps it."""
    ranks = number_in(os.environ, "RANKS", 0, most=999)
    with nullcontext() if config.dry_run else redirect_stderr(io.StringIO()):  # the stages say what is left out
        text = survey(config.corpus, config.lang)
    machine = here(ranks)
    wanted = wanted_settings(config.wanted)

    def for_hours(hours: float, **more: Any) -> Advice:
        task = config.out / "task/train.jsonl" if config.task else None
        return advised(
            text, machine, hours, corpus=config.corpus, lang=config.lang, task=task, out=config.out,
            wanted=wanted | more,
        )  # fmt: skip

    advice = for_hours(config.hours or 1.0)
    if config.steps:  # how long they take decides how often is looked and saved
        settings = advice.settings
        tokens = config.steps * settings["global_batch"] * settings["seq_len"]
        by_name: Mapping[str, object] = settings
        same = {name: by_name[name] for name in ("model", "vocab_size", "global_batch", "seq_len", "micro_batch")}
        first, advice = advice, for_hours(tokens / settings["tokens_per_second"] / 3600, **same)
        advice.reasons.update({name: why for name, why in first.reasons.items() if name in same and name != "model"})
        if "warmup" not in wanted:
            advice.reasons["warmup"] = why_warmup(advice.settings["warmup"], "steps")
    plain: AdviceRecord = json.loads(json.dumps(advice._asdict(), default=str))
    return plain | {"commands": dict(advice.commands)}


def settle_advice(config: MakeConfig, record: MakeRecord, sources: list[TextRecord]) -> AdviceRecord:
    """Return the advice that this folder was begun with, where it is about the same; else a new one. A probe of the
    machine never comes out twice the same, and a run goes on as it began."""
    fixed = {stage: {k: v for k, v in options.items() if stage != "train" or k in OF_A_RUN}
             for stage, options in config.wanted.items() if stage in ("vocab", "shard", "train")}  # fmt: skip
    basis, of_task = key_of(sources, config.lang, fixed), key_of(str(config.task), str(config.eval))
    had = record.advice
    if had.get("basis") == basis and had.get("of_task") == of_task:
        return had
    advice = advise_for(config) | {"basis": basis, "of_task": of_task, "hours": config.hours}
    if had.get("basis") == basis:  # another task is another fine-tuning, and nothing else
        finetune = advice["commands"].get("finetune")
        kept = {name: words for name, words in had["commands"].items() if name != "finetune"}
        advice = had | {"of_task": of_task, "commands": kept | ({"finetune": finetune} if finetune else {})}
    return advice


def commands_of(config: MakeConfig, advice: AdviceRecord, found: Found | None) -> dict[str, Words]:
    """stage -> the words of its command, as advised and as wanted, with places as they are now."""
    wanted = config.wanted
    commands: dict[str, Words] = dict(advice["commands"])
    if config.steps:
        by_name: Mapping[str, object] = advice["settings"]
        sizes = {name: str(by_name[name]) for name in ("seq_len", "global_batch", "micro_batch")}
        length = sizes | {"hours": "no", "phase": "no", "steps": str(config.steps)}
    elif "--phase" in commands["train"]:
        commands["train"] = lasting(commands["train"], config.hours / advice["settings"]["hours"])
        length = {}
    else:
        length = {"hours": f"{config.hours:g}"}
    commands["train"] = changed(commands["train"], length | wanted.get("train", {}))
    if found is None:
        commands.pop("finetune", None)
    else:
        commands["finetune"] = changed(commands["finetune"], {"task": found.kind})
    samples = {name: value for name, value in options_of(commands["train"]).items() if name in ("seq_len", "objective")}
    commands["look"] = changed(["show", "--samples", "3"], samples)
    commands["fill"] = ["predict", "--fill", "--json"]
    return {
        name: placed(name, changed(commands[name], wanted.get(name, {})), config.corpus, config.out)
        for name in KINDS
        if name in commands
    }


def lasting(words: Words, share: float) -> Words:
    """Return a command of training whose phases take `share` of their steps. What is more goes to the last one, so that
    a run that has come into it goes on."""
    places = [place for place, word in enumerate(words) if "steps=" in word]
    steps = [int(re.search(r"steps=(\d+)", words[place])[1]) for place in places]  # type: ignore[index]
    if share < 1:
        steps = [max(1, round(count * share)) for count in steps]
    else:
        steps[-1] += round(sum(steps) * share) - sum(steps)
    kept = list(words)
    for place, count in zip(places, steps, strict=True):
        kept[place] = re.sub(r"steps=\d+", f"steps={count}", words[place])
    return kept


def settle_changes(
    config: MakeConfig, record: MakeRecord, sources: list[TextRecord], keys: dict[str, tuple[str, str]]
) -> None:
    """Say what is other than when this folder was begun; throw away what cannot be gone on with, if that is allowed.

    Raises
    ------
    InputError: it is not allowed.
    """
    if not record.given:
        return
    changes = changes_of(record.sources, sources) + [
        f"--{name} {_shown(record.given.get(name))} -> {_shown(value)}"
        for name, value in config.given.items()
        if value != record.given.get(name) and name != "corpus"
    ]
    stale = [name for name, entry in record.stages.items()
             if name in keys and entry.base != keys[name][0] and folder_of(name, config.out).exists()]  # fmt: skip
    again = [name for name, entry in record.stages.items()
             if name in keys and entry.key != keys[name][1] and entry.is_done and name not in stale]  # fmt: skip
    costly = [KINDS[name].title for name in stale if KINDS[name].is_costly]
    told = f"{config.out} was begun with other texts or settings: {'; '.join(changes) or 'the advice has changed'}"
    if costly and not config.anew:
        raise InputError(
            f"{told}. {' and '.join(costly)} cannot go on with them: add --anew to throw away what is there and make "
            "it anew, choose another --out, or give what it had"
        )
    if stale or again or changes:
        say(told)
    if stale:
        say(f"made anew: {', '.join(KINDS[name].title for name in stale)}")
    if again:
        say(f"goes on, or runs again: {', '.join(KINDS[name].title for name in again)}")
    for name in reversed(stale):  # what was made last first: what is left of a stop on the way fits together
        remove(folder_of(name, config.out))
        del record.stages[name]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value in (None, "", 0) else f"{value:g}" if isinstance(value, float) else str(value)


def remove(path: Path) -> None:
    """Remove a file or a folder that make has made."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def show(config: MakeConfig, advice: AdviceRecord, commands: dict[str, Words]) -> None:
    """What was found and chosen, and why; of a dry run the commands, too."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False,
                      width=None if sys.stderr.isatty() else WIDTH)  # fmt: skip
    for part in shown(Advice(**advice_fields(advice))):
        console.print(part, soft_wrap=isinstance(part, Text))
    for name, words in commands.items() if config.dry_run else ():
        say(f"{KINDS[name].title}:\n    {call(KINDS[name].command, *words[1:])}")


def advice_fields(advice: AdviceRecord) -> JsonObject:
    """Return the fields of an Advice in what make.json keeps of one."""
    return {name: value for name, value in advice.items() if name in Advice._fields}
