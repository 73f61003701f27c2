"""From texts and hours to a model, with one command that can be stopped at any moment and goes on where it was.

    python launch/make.py --corpus texts/ --out runs/mine --hours 3
    python launch/make.py --corpus texte/ --out runs/mine --hours 3 --lang de --task train.csv
    python launch/make.py --corpus texts/ --out runs/mine --hours 3 --model bert-small --set train.lr=5e-4
    python launch/make.py --corpus texts/ --out runs/mine --hours 3 --dry_run        # what would run, and why

Looks at the text and at this machine, chooses what fits the hours, then runs the commands of the project one after
another, each shown as one could paste it: vocabulary, token store, a look at it, pretraining, export to a Hugging Face
folder, gaps in held-out sentences, and with --task a fine-tuned model with its score. At the end stands one page,
DIR/index.html.

    DIR/vocab, store, run, hf, finetuned     what the commands leave
    DIR/make.json, logs/                     what was chosen, which stages are done; what each has said
    DIR/task/                                the labelled file, with a part held back to measure on

Exit codes: 0 all of it is there, 2 wrong input, 75 stopped as asked, else that of the stage that failed.
"""

import fcntl
import io
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

if not __package__:  # a plain script: launch/ itself is on the path, where its file names could hide others'
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep.cli import (  # first: it continues in .venv where packages are missing
    InputError,
    number_in,
    print_json,
    run,
    say,
)

# isort: split
from rich.console import Console
from rich.text import Text

from data_prep.calls import call, hand_on, own
from data_prep.ranges import Range, check_ranges
from data_prep.text.corpus import find_sources
from launch import labelled
from launch.record import Json, Record, StageRecord, changes_of, check_folder, described, key_of
from launch.running import STOPPED, Plan, Screen, Stage, rounded
from launch.stages import (
    KINDS,
    OF_A_RUN,
    Words,
    changed,
    check,
    folder_of,
    keys_of,
    options_of,
    read_settings,
    result_of,
    wanted_settings,
    without,
)
from pretrain.advice.__main__ import WIDTH, shown
from pretrain.advice.advice import Advice, advised
from pretrain.advice.machine import here
from pretrain.advice.survey import survey
from pretrain.report.history import History

GAPS = 8  # sentences with a gap
PATIENCE = 60.0  # seconds for an earlier make of the same folder to end
Preset = Literal["bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base", "bert-large"]


@dataclass(frozen=True)
class MakeConfig:
    """What a model is made of, for how long, and where it goes."""

    corpus: tuple[str, ...]
    """files, folders or globs of text, as data_prep/shard.py reads them"""
    out: Path
    """folder for everything"""
    hours: Annotated[float, Range(0, 1e5)] = 0.0
    """hours of pretraining; the rest takes what it takes, and the whole is said at the start"""
    steps: Annotated[int | None, Range(1, 1e9)] = None
    """optimizer steps in place of --hours: the same on every machine"""
    lang: str = ""
    """language of the text: en, de, ru, ...; "": as it looks"""
    task: Path | None = None
    """labelled file (.csv, .tsv, .jsonl) to fine-tune on; what is asked and which columns are meant is found out"""
    eval: Path | None = None
    """labelled file to measure on; left out: a fifth of --task is held back"""
    model: Preset | None = None
    """size of the model in place of the advice"""
    size: Annotated[int | None, Range(256, 1e7)] = None
    """entries of the vocabulary in place of the advice"""
    cased: bool = False
    """keep case and accents, whatever is advised; --set vocab.cased=no does not, whatever is advised"""
    set: tuple[str, ...] = ()
    """any other option of a stage, as STAGE.OPTION=VALUE: train.lr=1e-3 finetune.seeds=5 shard.holdout=0.05"""
    anew: bool = False
    """throw away what was made of other texts or settings; without it this is refused"""
    dry_run: bool = False
    """say what would run, and why, and run nothing"""
    json: bool = False
    """print one JSON object at the end instead of the page's path"""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.corpus:
            raise InputError("--corpus needs files or folders of text")
        if (self.hours > 0) == (self.steps is not None):
            raise InputError("give one of --hours (of pretraining; 0.1 is six minutes) and --steps")
        if self.eval is not None and self.task is None:
            raise InputError(f"--eval {self.eval} measures a --task; give that too")
        if self.task is None and "finetune" in self.wanted:
            raise InputError("--set finetune... goes with a --task")
        if {"hours", "steps"} & {*self.wanted.get("train", {})}:
            raise InputError("--set train.hours and train.steps: give --hours or --steps itself")

    @property
    def wanted(self) -> dict[str, dict[str, str]]:
        """What is wanted otherwise than advised: stage -> option -> value."""
        found = read_settings(self.set)
        named = (("train", "model", self.model), ("vocab", "size", self.size), ("vocab", "cased", self.cased))
        for stage, option, value in named:
            if value not in (None, False):
                if option in found.setdefault(stage, {}):
                    raise InputError(f"--{option} and --set {stage}.{option} say the same: give one")
                found[stage][option] = "yes" if value is True else str(value)
        return found

    @property
    def given(self) -> Json:
        """What the command line says, as JSON values."""
        plain: Json = json.loads(json.dumps(asdict(self), default=str))
        return {name: value for name, value in plain.items() if name not in ("out", "anew", "dry_run", "json")}


def main(config: MakeConfig) -> None:
    """Make what is not there yet, then the page.

    Raises
    ------
    InputError: wrong input, another make at work in the folder, or one of other texts or settings.
    """
    hand_on()
    try:
        make(config)
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        sys.exit(STOPPED)


def make(config: MakeConfig) -> None:
    """As above."""
    check(config.wanted)
    check_folder(config.out, config.corpus)
    with redirect_stderr(io.StringIO()):  # the stages say it: what is left out, in which encodings the files are
        sources = described(find_sources(config.corpus, out=config.out))
    found, held_out = labelled_files(config)
    if config.dry_run:
        advice = advise_for(config)
        commands = commands_of(config, advice, found)
        show(config, advice, commands)
        return
    with alone_in(config.out) as lock:
        record = Record.read(config.out) or Record([], {})
        task = described_task(found, held_out)
        had, advice = record.advice, settle_advice(config, record, sources)
        commands = commands_of(config, advice, found)
        keys = keys_of(commands, sources, task.get("sha256", ""))
        settle_changes(config, record, sources, keys)
        record = replace(record, sources=sources, given=config.given, task=task, advice=advice)
        record.stages = {name: entry for name, entry in record.stages.items() if name in keys}
        record.write(config.out)  # first of all: from here on the folder is known as one of make
        if found is not None:
            task["told"] = labelled.write_split(found, held_out, config.out / "task")
            say(task["told"])
            record.write(config.out)
        if advice is not had:
            show(config, advice, commands)
        work_through(config, record, commands, keys, lock)
        write_page(config, record)


@contextmanager
def alone_in(out: Path) -> Iterator[int]:
    """Keep another make out of a folder, which is made. Stages inherit the lock: after a kill -9 the next make waits
    until what the last one had started has ended.

    Raises
    ------
    InputError: another one is at work.
    """
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise InputError(
                        f"another make is at work in {out}; wait for it, or choose another --out"
                    ) from error
                if until - time.monotonic() > PATIENCE - 0.5:
                    say(f"another make is at work in {out}, or ends there; waiting for a minute")
                time.sleep(0.5)
        yield descriptor
    finally:
        os.close(descriptor)


def labelled_files(config: MakeConfig) -> tuple[labelled.Found | None, labelled.Found | None]:
    """The labelled files, understood."""
    if config.task is None:
        return None, None
    found = labelled.look_at(config.task)
    say(found.words)
    if config.eval is None:
        labelled.split(found)  # refuses what is too small before anything is written
        return found, None
    return found, labelled.look_at(config.eval, found.columns)


def described_task(found: labelled.Found | None, held_out: labelled.Found | None) -> Json:
    """What is known of the labelled files, for make.json and the page."""
    if found is None:
        return {}
    sha256 = labelled.fingerprint([found.path, *([held_out.path] if held_out else [])])
    labels = dict(found.labels.most_common())
    return {"file": str(found.path), "kind": found.kind, "rows": len(found.rows), "labels": labels, "sha256": sha256}


def advise_for(config: MakeConfig) -> Json:
    """What fits the text, the machine and the hours, as make.json keeps it."""
    ranks = number_in(os.environ, "RANKS", 0, most=999)
    text, machine = survey(config.corpus, config.lang), here(ranks)
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
        same = {name: settings[name] for name in ("model", "vocab_size", "global_batch", "seq_len", "micro_batch")}
        first, advice = advice, for_hours(tokens / settings["tokens_per_second"] / 3600, **same)
        advice.reasons.update({name: why for name, why in first.reasons.items() if name in same and name != "model"})
    plain: Json = json.loads(json.dumps(advice._asdict(), default=str))
    return plain | {"commands": dict(advice.commands)}


def settle_advice(config: MakeConfig, record: Record, sources: list[Json]) -> Json:
    """The advice that this folder was begun with, where it is about the same; else a new one. A probe of the machine
    never comes out twice the same, and a run goes on as it began."""
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


def commands_of(config: MakeConfig, advice: Json, found: labelled.Found | None) -> dict[str, Words]:
    """stage -> the words of its command, as advised and as wanted."""
    wanted, out = config.wanted, config.out
    plain: dict[str, Words] = dict(advice["commands"])
    length = {} if "--phase" in plain["train"] else {"hours": f"{config.hours:g}"}
    if config.steps:
        plain["train"] = without(without(plain["train"], "hours"), "phase")
        sizes = {name: str(advice["settings"][name]) for name in ("seq_len", "global_batch", "micro_batch")}
        length = sizes | {"steps": str(config.steps)}
    if found is not None:
        files = {name: shlex.quote(str(out / f"task/{name}.jsonl")) for name in ("train", "eval")}
        plain["finetune"] = changed(plain["finetune"], {"task": found.kind, **files})
    else:
        plain.pop("finetune", None)
    train = options_of(changed(plain["train"], wanted.get("train", {})))
    looked = {name: train[name] for name in ("seq_len", "objective") if name in train}
    plain["look"] = changed(["show", str(out / "store"), "--samples", "3"], looked)
    plain["fill"] = ["predict", str(out / "hf"), "--fill", "--json"]
    own_length = {"train": length}
    return {
        name: changed(plain[name], own_length.get(name, {}) | wanted.get(name, {})) for name in KINDS if name in plain
    }


def settle_changes(config: MakeConfig, record: Record, sources: list[Json], keys: dict[str, tuple[str, str]]) -> None:
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


def work_through(
    config: MakeConfig, record: Record, commands: dict[str, Words], keys: dict[str, tuple[str, str]], lock: int
) -> None:
    """Run the stages that are not done. Ends the process where one fails or is stopped."""
    (config.out / "logs").mkdir(exist_ok=True)
    done = {
        name: entry.seconds
        for name, entry in record.stages.items()
        if entry.is_done and entry.key == keys[name][1] and result_of(name, config.out).exists()
    }
    # What reads a result that is made again is made again.
    for name in commands:
        if name in done and any(source in commands and source not in done for source in KINDS[name].reads):
            del done[name]
    plan = Plan([stage_of(name, words, config, record) for name, words in commands.items()], done)
    say(f"in all about {rounded(plan.total)}" + (f", {rounded(plan.left(None, 0))} of it left" if done else ""))
    with Screen(plan, config.out / "logs", [lock]) as screen:
        for name, words in commands.items():
            if name in done:
                screen.say(f"{KINDS[name].title}: done before")
                continue
            stage = stage_of(name, words, config, record)
            began = time.monotonic()
            record.stages[name] = StageRecord(stage.command, *keys[name])
            record.write(config.out)
            if code := screen.run(stage):
                break
            record.stages[name] = StageRecord(stage.command, *keys[name], True, time.monotonic() - began)
            record.write(config.out)
        else:
            return
    again = f"{own()} {shlex.join(sys.argv[1:])}"
    if code == STOPPED:
        say(f"stopped in {KINDS[name].title}; the same command goes on: {again}")
    else:
        say(
            f"make has stopped at its stage {KINDS[name].title}, which ended with code {code}; what it said is above "
            f"and in {config.out}/logs/{name}.log. Mend that, and the same command goes on: {again}"
        )
    sys.exit(code)


def stage_of(name: str, words: Words, config: MakeConfig, record: Record) -> Stage:
    """A stage as it runs now."""
    arguments, share, result = list(words[1:]), lambda: None, None
    if name == "fill":
        result = config.out / "fill.json"
        arguments += texts_with_gaps(config.out / "store")
    if name == "train" and config.steps:
        share = partial(share_trained, config.out / "run/metrics.jsonl", config.steps)
    command = call(KINDS[name].command, *arguments)
    return Stage(name, KINDS[name].title, command, planned(name, config, record), share, result)


def texts_with_gaps(store: Path) -> list[str]:
    """Sentences to fill; none while the store is not there."""
    if not (store / "manifest.json").exists():
        return []
    from data_prep.store import Store
    from launch.gaps import gaps_of

    return [gap.text for gap in gaps_of(Store.open(store), GAPS)]


def share_trained(metrics: Path, steps: int) -> float | None:
    """The share of its steps that a run has done, from the end of its metrics."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return min(1.0, json.loads(line)["step"] / steps)
        except (ValueError, KeyError, TypeError):
            continue  # cut at its beginning, or being written
    return None


# Seconds of a stage on two cores: to start, and for each MB of text.
SECONDS = {"vocab": (4, 0.6), "shard": (4, 0.3), "look": (3, 0.0), "export": (20, 0), "fill": (15, 0)}


def planned(name: str, config: MakeConfig, record: Record) -> float:
    """Seconds that a stage should take."""
    if name == "train":
        hours = config.hours or float(record.advice["settings"]["hours"])
        with suppress(InputError):  # nothing is trained yet
            return 20 + max(0.0, 3600 * hours - History.read(config.out / "run").clock)
        return 20 + 3600 * hours
    if name == "finetune":
        return 30 + 0.02 * int(record.task.get("rows", 0))
    start, a_mb = SECONDS[name]
    return start + a_mb * sum(source["bytes"] for source in record.sources) / 1e6


def show(config: MakeConfig, advice: Json, commands: dict[str, Words]) -> None:
    """What was found and chosen, and why; of a dry run the commands, too."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False,
                      width=None if sys.stderr.isatty() else WIDTH)  # fmt: skip
    for part in shown(Advice(**advice_fields(advice))):
        console.print(part, soft_wrap=isinstance(part, Text))
    for name, words in commands.items() if config.dry_run else ():
        say(f"{KINDS[name].title}:\n    {call(KINDS[name].command, *words[1:])}")


def advice_fields(advice: Json) -> Json:
    """The fields of an Advice in what make.json keeps of one."""
    return {name: advice[name] for name in Advice._fields}


def write_page(config: MakeConfig, record: Record) -> None:
    """DIR/index.html, and where it is on stdout."""
    from launch.page import in_a_line, what_next, write  # inside: drawing takes seconds to import

    page = write(config.out, record)
    say(f"\nDone. {in_a_line(config.out, record)}")
    for what, command in what_next(config.out, record):
        say(f"{what}:\n    {command}")
    say("The page with all of this:")
    if config.json:
        print_json(
            {"page": str(page), "out": str(config.out), "stages": {n: e.seconds for n, e in record.stages.items()}}
        )
    else:
        print(page)


if __name__ == "__main__":
    run(main, MakeConfig, __doc__)
