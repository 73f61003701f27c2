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

import io
import json
import os
import shlex
import shutil
import sys
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a plain script: launch/ itself is on the path, where its file names could hide others'
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

from data_prep.calls import call, hand_on, own
from data_prep.cli import InputError, print_json, run, say
from data_prep.files import write_whole
from data_prep.store import Store
from data_prep.store_manifest import read_manifest
from data_prep.text.discovery import find_sources
from launch import labelled
from launch.choices import advise_for, commands_of, settle_advice, settle_changes, show
from launch.cloze import gaps_of
from launch.folder_lock import Alone, alone_in
from launch.make_record import MakeRecord, StageRecord, TaskRecord, check_folder, described
from launch.overlap import overlap_in_words
from launch.running import STOPPED, Screen, Stage, StageTimes, rounded
from launch.settings import MakeConfig
from launch.stages import KINDS, Words, check, keys_of, result_of, without
from pretrain.finetune.learning.unfinished import progress_of
from pretrain.report.history import History

GAPS = 8  # sentences with a gap


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
    if config.dry_run:
        found, eval_file = labelled_files(config)
        advice = advise_for(config)
        show(config, advice, commands_of(config, advice, found))
        tell_overlap(config, found, eval_file)
        return
    with alone_in(config.out) as alone:  # first of all: who is not alone is told so at once
        with redirect_stderr(io.StringIO()):  # the stages say what is left out, and in which encodings the files are
            sources = described(find_sources(config.corpus, out=config.out))
        found, eval_file = labelled_files(config)
        record = MakeRecord.read(config.out) or MakeRecord([], {})
        task, had_task = described_task(found, eval_file), record.task
        had, advice = record.advice, settle_advice(config, record, sources)
        commands = commands_of(config, advice, found)
        keys = keys_of(commands, sources, task.get("sha256", ""))
        settle_changes(config, record, sources, keys)
        record = replace(record, sources=sources, given=config.given, task=task, advice=advice)
        record.stages = {name: entry for name, entry in record.stages.items() if name in keys}
        record.write(config.out)  # first of all: from here on the folder is known as one of make
        if found is not None:
            task["told"] = labelled.write_split(found, eval_file, config.out / "task")
            say(task["told"])
            record.write(config.out)
        if advice is not had:
            show(config, advice, commands)
        if found is not None:
            is_same = "shard" in record.stages and task["sha256"] == had_task.get("sha256")  # as when it was told
            known = had_task.get("overlap") if is_same else None
            task["overlap"] = tell_overlap(config, found, eval_file) if known is None else known
            record.write(config.out)
        work_through(config, record, commands, keys, alone)
        write_page(config, record)


def labelled_files(config: MakeConfig) -> tuple[labelled.Found | None, labelled.Found | None]:
    """Return the labelled files, understood."""
    if config.task is None:
        return None, None
    found = labelled.look_at(config.task)
    say(found.words)
    eval_file = labelled.look_at(config.eval, found) if config.eval else None
    labelled.check(found, eval_file)
    if eval_file is None:
        labelled.split(found)  # refuses what is too small before anything is written
    return found, eval_file


def tell_overlap(config: MakeConfig, found: labelled.Found | None, eval_file: labelled.Found | None) -> str:
    """Say how much of the labelled files stands in the corpus, too; returns it."""
    if told := overlap_in_words(config, [file for file in (found, eval_file) if file is not None]):
        say(told)
    return told


def described_task(found: labelled.Found | None, eval_file: labelled.Found | None) -> TaskRecord:
    """Return what is known of the labelled files, for make.json and the page."""
    if found is None:
        return {}
    sha256 = labelled.fingerprint([found.path, *([eval_file.path] if eval_file else [])])
    labels = dict(found.labels.most_common())
    return {"file": str(found.path), "kind": found.kind, "rows": len(found.rows), "labels": labels, "sha256": sha256}


def work_through(
    config: MakeConfig, record: MakeRecord, commands: dict[str, Words], keys: dict[str, tuple[str, str]], alone: Alone
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
    times = StageTimes([stage_of(name, words, config, record) for name, words in commands.items()], done)
    say(f"in all about {rounded(times.total)}" + (f", {rounded(times.left(None, 0))} of it left" if done else ""))
    with Screen(times, config.out / "logs", [alone.of_folder], alone.note_ending) as screen:
        for name, words in commands.items():
            if name in done:
                screen.say(f"{KINDS[name].title}: done before")
                continue
            stage = stage_of(name, words, config, record)
            if name == "finetune" and (name not in record.stages or record.stages[name].key != keys[name][1]):
                shutil.rmtree(progress_of(config.out / "finetuned"), ignore_errors=True)  # of another command
            entry = record.stages.get(name, StageRecord(stage.command, *keys[name], is_done=True))
            entry = entry.begun_again(stage.command, *keys[name], goes_on=name == "train")
            record.stages[name] = entry
            record.write(config.out)
            note_time = partial(add_seconds, record, config.out, entry, entry.seconds)
            if name == "fill" and not texts_with_gaps(config.out / "store"):  # predict would wait for a text
                screen.say(f"{KINDS[name].title}: no sentence here has a word to ask for")
                write_whole(result_of(name, config.out), [b'{"answers": []}\n'])
            elif code := screen.run(stage, note_time):
                break
            entry.is_done = True
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


def add_seconds(record: MakeRecord, out: Path, entry: StageRecord, before: float, seconds: float) -> None:
    """Write how long a stage has taken: in earlier attempts, and in the one under way."""
    entry.seconds = before + seconds
    record.write(out)


def stage_of(name: str, words: Words, config: MakeConfig, record: MakeRecord) -> Stage:
    """Return a stage as it runs now."""
    kind, arguments, store = KINDS[name], list(words[1:]), config.out / "store"
    if name == "train" and "patience" not in config.wanted.get("train", {}) and holds_nothing_out(store):
        arguments = without(arguments, "patience")  # the advice guessed the number of documents, the store knows it
    if name == "fill":
        arguments += texts_with_gaps(store)
    command = call(kind.command, *arguments)
    ranks = record.advice["settings"]["ranks"] if record.advice else 1
    if name == "train" and ranks > 1 and "RANKS" not in os.environ:
        command = f"env RANKS={ranks} {command}"  # as it was planned
    stage = Stage(name, kind.title, command, planned(name, config, record))
    if name == "train" and config.steps:
        return stage._replace(share=partial(share_trained, config.out / "run/metrics.jsonl", config.steps))
    return stage._replace(result=config.out / kind.result) if name == "fill" else stage


def holds_nothing_out(store: Path) -> bool:
    """Return whether a store is there and has no document to evaluate on."""
    return (store / "manifest.json").exists() and not read_manifest(store).counts.held_out_documents


def texts_with_gaps(store: Path) -> list[str]:
    """Return the sentences to fill; none while the store is not there."""
    if not (store / "manifest.json").exists():
        return []
    return [gap.text for gap in gaps_of(Store.open(store), GAPS)]


def share_trained(metrics: Path, steps: int) -> float | None:
    """Return the share of its steps that a run has done, from the end of its metrics."""
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


def planned(name: str, config: MakeConfig, record: MakeRecord) -> float:
    """Return the seconds that a stage should take."""
    if name == "train":
        hours = config.hours or float(record.advice["settings"]["hours"])
        with suppress(InputError):  # nothing is trained yet
            return 20 + max(0.0, 3600 * hours - History.read(config.out / "run").clock)
        return 20 + 3600 * hours
    if name == "finetune":
        return 30 + 0.02 * int(record.task.get("rows", 0))
    start, per_mb = SECONDS[name]
    return start + per_mb * sum(source["bytes"] for source in record.sources) / 1e6


def write_page(config: MakeConfig, record: MakeRecord) -> None:
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
