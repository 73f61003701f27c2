"""zerobert make: what runs again and what does not, how it stops, labelled files of all kinds; and one in full."""

import fcntl
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import cast

import pytest

from data_prep.cli import ROOT, InputError
from data_prep.fields import write_sealed
from data_prep.store import Store
from launch import labelled
from launch.choices import lasting, settle_changes
from launch.cloze import Gap, gaps_of
from launch.folder_lock import Alone, alone_in
from launch.make import make as make_all
from launch.make import share_trained, stage_of, work_through
from launch.make_record import MakeRecord, StageRecord, TextRecord, changes_of, check_folder
from launch.page import answers_to, leaked, time_of, what_next
from launch.running import STOPPED, Screen, Stage, StageTimes
from launch.settings import MakeConfig
from launch.stages import changed, check, keys_of, placed, read_settings, wanted_settings
from pretrain.advice.settings import AdviceSettings
from pretrain.formatting import filled_in
from tests.corpora import write
from tests.launched import start, wait_for

pytestmark = pytest.mark.usefixtures("no_process_left")
COMMANDS = {
    "vocab": ["vocab", "--corpus", "texts", "--out", "m/vocab", "--size", "1024"],
    "shard": ["shard", "--corpus", "texts", "--vocab", "m/vocab", "--out", "m/store", "--lang", "de"],
    "look": ["show", "m/store", "--samples", "3"],
    "train": ["train", "--data", "m/store", "--out", "m/run", "--model", "bert-tiny", "--lr", "1e-3", "--hours", "3"],
    "export": ["export", "m/run", "m/hf"],
    "fill": ["predict", "m/hf", "--fill", "--json"],
    "finetune": ["finetune", "m/hf", "--task", "classify", "--train", "m/a", "--eval", "m/b", "--out", "m/finetuned"],
}


# What must run again


def stale(before: dict[str, list[str]], now: dict[str, list[str]], **of_now: str) -> tuple[list[str], list[str]]:
    """(made anew, run again) of two makes."""
    had, have = keys_of(before, "texts", "task"), keys_of(now, *(of_now.get(n, n) for n in ("texts", "task")))
    anew = [name for name in had if had[name][0] != have[name][0]]
    return anew, [name for name in had if had[name][1] != have[name][1] and name not in anew]


def with_words(stage: str, **options: str) -> dict[str, list[str]]:
    return COMMANDS | {stage: changed(COMMANDS[stage], options)}


def test_a_change_reaches_what_depends_on_it_and_nothing_else():
    everything = list(COMMANDS)
    assert stale(COMMANDS, COMMANDS) == ([], [])
    assert stale(COMMANDS, COMMANDS, texts="others") == (everything, [])
    assert stale(COMMANDS, with_words("vocab", size="2048")) == (everything, [])
    assert stale(COMMANDS, with_words("shard", lang="en")) == (everything[1:], [])
    assert stale(COMMANDS, with_words("shard", workers="7", corpus="moved")) == ([], [])  # the same bytes
    assert stale(COMMANDS, with_words("train", model="bert-mini")) == (everything[3:], [])
    assert stale(COMMANDS, COMMANDS, task="other rows") == (["finetune"], [])


def test_a_run_goes_on_with_more_hours():
    anew, again = stale(COMMANDS, with_words("train", hours="6", lr="2e-3"))
    assert (anew, again) == ([], ["train", "export", "fill", "finetune"])


def made(folder: Path, *stages: str) -> MakeRecord:
    """A folder in which these stages are done."""
    keys = keys_of(COMMANDS, [], "task")
    given = MakeConfig(("texts",), folder, hours=3).given
    record = MakeRecord([], given, {}, {}, {name: StageRecord("", *keys[name], True, 9.0) for name in stages})
    for name in ("store", "run", "hf"):
        write(folder / name / "file", "old")
    record.write(folder)
    return record


def test_a_run_is_not_thrown_away_unasked(tmp_path):
    record = made(tmp_path, "vocab", "shard", "train", "export")
    keys = keys_of(COMMANDS, [{"path": "new.txt"}], "task")
    config = MakeConfig(("texts",), tmp_path, hours=3)
    with pytest.raises(InputError, match=r"1 text added \(new.txt\). token store and pretraining cannot .* --anew"):
        settle_changes(config, record, [{"path": "new.txt"}], keys)
    assert (tmp_path / "run/file").read_text() == "old"
    settle_changes(MakeConfig(("texts",), tmp_path, hours=3, anew=True), record, [{"path": "new.txt"}], keys)
    assert not any((tmp_path / name).exists() for name in ("store", "run", "hf"))
    assert not record.stages.keys() & {"shard", "train", "export"}


def test_more_hours_are_said_and_go_on(tmp_path, capsys):
    record = made(tmp_path, "vocab", "shard", "train", "export")
    settle_changes(
        MakeConfig(("texts",), tmp_path, hours=6), record, [], keys_of(with_words("train", hours="6"), [], "task")
    )
    said = capsys.readouterr().err
    assert "--hours 3 -> 6" in said
    assert "goes on, or runs again: pretraining" in said
    assert (tmp_path / "run/file").exists()


def test_changed_texts_are_named():
    had: list[TextRecord] = [{"path": "a", "bytes": 1}, {"path": "b", "bytes": 2}, {"path": "c", "bytes": 3}]
    have: list[TextRecord] = [{"path": "a", "bytes": 1}, {"path": "b", "bytes": 9}, {"path": "d", "bytes": 3}]
    assert changes_of(had, have) == ["1 text added (d)", "1 text removed (c)", "1 text changed (b)"]


# Command lines


def test_a_folder_that_moved_is_read_where_it_is():
    assert placed("shard", [*COMMANDS["shard"], "--holdout", "0.1"], ["a b", "c"], Path("new")) == [
        *("shard", "--corpus", "a b", "c", "--vocab", "new/vocab", "--out", "new/store", "--lang", "de"),
        *("--holdout", "0.1"),
    ]
    assert placed("export", COMMANDS["export"], [], Path("new")) == ["export", "new/run", "new/hf"]


def test_options_of_stages_win_over_the_advice():
    settings = read_settings(["train.lr=2e-3", "train.mask_split=0.9 0.05", "vocab.cased=no", "vocab.size=4096"])
    words = ["train", "--data", "s", "--lr", "1e-3", "--mask_split", "0.8", "0.1", "--seed", "1"]
    assert changed(words, settings["train"]) == [
        *("train", "--data", "s", "--seed", "1", "--lr", "2e-3", "--mask_split", "0.9", "0.05")
    ]
    assert changed(["vocab", "--cased", "--out", "v"], settings["vocab"]) == ["vocab", "--out", "v", "--size", "4096"]
    assert wanted_settings(settings) == {"lr": 2e-3, "mask_split": "0.9 0.05", "cased": False, "vocab_size": 4096}


def test_a_wrong_option_of_a_stage_is_told_before_anything_runs():
    check(
        read_settings(["train.lr=1e-3", "vocab.size=4096", "look.samples=1", "finetune.seeds=3", "shard.holdout=0.1"])
    )
    with pytest.raises(InputError, match=r"--set train.lr=-3: --lr -3 must lie in"):
        check(read_settings(["train.lr=-3"]))
    with pytest.raises(InputError, match=r"--set vocab.size=many: --size many must be a whole number"):
        check(read_settings(["vocab.size=many"]))
    with pytest.raises(InputError, match=r"--set train.learning=3: .*no option learning; did you mean .*train\.lr"):
        check(read_settings(["train.learning=3"]))
    with pytest.raises(InputError, match=r"--model bert-smal is not one of .*; did you mean bert-small\?"):
        check(read_settings(["train.model=bert-smal"]))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"set": ("lr=1",)}, "STAGE.OPTION=VALUE"),
        ({"set": ("train.out=x",)}, "make sets this itself"),
        ({"set": ("train.init_from=hf",)}, r"make begins a new model; .*--vocab HF_FOLDER.*--init_from HF_FOLDER$"),
        ({"set": ("train.hours=1",)}, "give --hours"),
        ({"set": ("train.model=bert-mini",), "model": "bert-tiny"}, "say the same"),
        ({"set": ("finetune.lr=1",)}, "goes with a --task"),
        ({"steps": 3}, "one of --hours"),
        ({"hours": 0}, "one of --hours"),
        ({"corpus": ()}, "--corpus needs"),
        ({"eval": Path("dev.tsv")}, "give that too"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        MakeConfig(**{"corpus": ("texts",), "out": Path("m"), "hours": 3, **wrong})


def test_a_value_with_an_open_quote_is_refused_with_how_to_write_it():
    with pytest.raises(InputError, match=r"a quote is left open.* write shard\.drop='o'\"'\"'brien'"):
        read_settings(["shard.drop=o'brien"])


def test_phases_take_the_hours_that_are_asked_for():
    words = ["train", "--phase", "seq_len=128,steps=900,lr=1", "--phase", "seq_len=512,steps=100", "--lr", "1e-3"]

    def steps(share: float) -> list[int]:
        return [int(word) for word in re.findall(r"steps=(\d+)", " ".join(lasting(words, share)))]

    assert lasting(words, 1.0) == words
    assert steps(2.0) == [900, 1100]  # a run that has come into the last one goes on in it
    assert steps(0.5) == [450, 50]


def test_folders_of_others_are_left_alone(tmp_path):
    texts = write(tmp_path / "texts/a.txt", "A text.").parent
    for out, told in ((texts, "is the folder of the texts"), (tmp_path, "no make.json of an earlier make")):
        with pytest.raises(InputError, match=told):
            check_folder(out, [str(texts)])
    with pytest.raises(InputError, match="is a file"):
        check_folder(texts / "a.txt", [str(texts)])
    check_folder(texts / "model", [str(texts)])  # within the texts is fine
    made(tmp_path / "m", "vocab")
    check_folder(tmp_path / "m", [str(texts)])


def test_a_damaged_record_is_named(tmp_path):
    made(tmp_path, "vocab")
    path = tmp_path / "make.json"
    path.write_text(path.read_text().replace("9.0", "8.0"))
    with pytest.raises(InputError, match="damaged, or was edited"):
        MakeRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("stages", [1]), ("stages", {"vocab": {"seconds": "9"}}), ("sources", 5), ("given", "x"), ("advice", {"a": 1})],
)
def test_a_record_of_something_else_is_refused(tmp_path, name, wrong):
    write_sealed(tmp_path / "make.json", {"format": 1, "sources": [], "given": {}, "task": {}, "advice": {}} | {
        "stages": {}, name: wrong})  # fmt: skip
    with pytest.raises(InputError, match=rf"make\.json.*; choose another --out, or remove {tmp_path} and make all"):
        MakeRecord.read(tmp_path)


# Running


def script(code: str) -> str:
    return f"{sys.executable} -c '{code}'"


def test_stages_run_in_turn_and_what_they_say_passes_through(tmp_path, capfd):
    stages = [
        Stage("vocab", "words", script('import sys; print("one"); print("two", file=sys.stderr)'), 5),
        Stage("fill", "gaps", script('print("{}")'), 5, result=tmp_path / "fill.json"),
        Stage("train", "pretraining", script('print("Grösse ü"); raise SystemExit(2)'), 5),
    ]
    with Screen(StageTimes(stages, {}), tmp_path) as screen:
        assert [screen.run(stage) for stage in stages] == [0, 0, 2]
    said = capfd.readouterr().err
    for told in ("== 1/3 words (15 s left in all)", "\none\ntwo\n", "== 3/3 pretraining", "Grösse ü"):
        assert told in said
    assert (tmp_path / "vocab.log").read_text().endswith("one\ntwo\n")
    assert (tmp_path / "fill.json").read_text() == "{}\n"
    assert "{}" not in said.replace('"{}"', "")


def test_what_an_earlier_stage_has_said_is_not_said_again(tmp_path, capfd):
    told = "texts: left out: .pdf files: 1 (a.pdf); text can be made of .pdf by pdftotext"
    stages = [Stage(name, name, script(f'print("{told}"); print("short")'), 5) for name in ("vocab", "shard")]
    with Screen(StageTimes(stages, {}), tmp_path) as screen:
        for stage in stages:
            screen.run(stage)
    lines = capfd.readouterr().err.splitlines()
    assert (lines.count(told), lines.count("short")) == (1, 2)
    assert told in (tmp_path / "shard.log").read_text()


def test_the_time_of_a_stage_is_that_of_all_its_attempts():
    first = StageRecord("train", "base", "key", seconds=40.0)  # killed: nobody has written that it ended
    second = first.begun_again("train", "base", "key", goes_on=True)
    second.seconds += 60
    assert time_of(second) == "1 min 40 s, interrupted once"
    second.is_done = True
    longer = second.begun_again("train --hours 6", "base", "another key", goes_on=True)
    assert (longer.seconds, longer.interruptions, longer.is_done) == (100.0, 1, False)
    assert second.begun_again("shard", "base", "another key", goes_on=False).seconds == 0
    assert first.begun_again("train", "another base", "key", goes_on=True).seconds == 0


def test_a_folder_in_use_is_told_at_once_and_what_is_ending_is_waited_for(tmp_path, monkeypatch, capsys):
    with alone_in(tmp_path) as first:
        with pytest.raises(InputError, match=rf"process {os.getpid()}, since .* at work .*kill {os.getpid()}\), or"):
            alone_in(tmp_path).__enter__()
        monkeypatch.setattr("launch.folder_lock.PATIENCE", 0.3)
        first.note_ending()
        with pytest.raises(InputError, match=r"is stopping in .* has not ended in 0\.3 s"):
            alone_in(tmp_path).__enter__()
    assert "is stopping" in capsys.readouterr().err
    with alone_in(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    lock = os.open(tmp_path, os.O_RDONLY)  # as a stage has it whose make was killed
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(InputError, match=r"make that was killed had started .* still ending"):
        alone_in(tmp_path).__enter__()
    os.close(lock)


WAITS = """
import sys
from pathlib import Path
from typing import cast
from launch.running import *
waits = "import pathlib, time; pathlib.Path(sys.argv[1], 'here').touch(); time.sleep(600)".replace("'", '"')
stage = Stage("train", "pretraining", f"{sys.executable} -c 'import sys; {waits}' {sys.argv[1]}", 5)
with Screen(StageTimes([stage], {}), Path(sys.argv[1])) as screen:
    sys.exit(screen.run(stage))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_stage_and_is_no_failure(tmp_path, number):
    process = start(sys.executable, "-c", WAITS, tmp_path)
    wait_for((tmp_path / "here").exists)
    process.send_signal(number)
    assert process.wait(60) == STOPPED
    assert f"{number.name}: stopped" in (tmp_path / "train.log").read_text()


def test_a_stage_with_handlers_is_told_the_signal_that_came(tmp_path):
    hears = "import signal; [signal.signal(n, lambda n, f: sys.exit(signal.Signals(n).name)) for n in (2, 15)]; "
    process = start(sys.executable, "-c", WAITS.replace('waits = "', f'waits = "{hears}'), tmp_path)
    wait_for((tmp_path / "here").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == STOPPED
    assert (tmp_path / "train.log").read_text().splitlines()[-2:] == ["SIGINT", "SIGINT: stopped"]


def test_a_killed_make_takes_its_stage_along(tmp_path):
    process = start(sys.executable, "-c", WAITS.replace("sys.exit", "print"), tmp_path)
    wait_for((tmp_path / "here").exists)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    wait_for(lambda: all(is_over(child) for child in children), 60)


def is_over(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_training_runs_on_the_ranks_that_were_planned_unless_told_otherwise(tmp_path, monkeypatch):
    settings = cast(AdviceSettings, {"ranks": 2})
    config, record = MakeConfig(("texts",), tmp_path, hours=3), MakeRecord([], {}, advice={"settings": settings})
    monkeypatch.delenv("RANKS", raising=False)
    planned = stage_of("train", COMMANDS["train"], config, record).command
    assert planned.startswith("env RANKS=2 ")
    monkeypatch.setenv("RANKS", "1")
    assert stage_of("train", COMMANDS["train"], config, record).command == planned.removeprefix("env RANKS=2 ")


def test_the_share_of_a_run_is_read_off_its_metrics(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert share_trained(metrics, 100) is None
    metrics.write_text('{"kind": "train", "step": 20}\n{"kind": "train", "step": 40}\n{"kind": "tr')
    assert share_trained(metrics, 100) == 0.4


# Labelled files


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_columns_are_found_by_what_they_hold(tmp_path):
    rows = [f'{n},"Ein Satz, der {n} mal ""Komma"" sagt.",{"gut" if n % 4 else "schlecht"}' for n in range(40)]
    found = labelled.look_at(write(tmp_path / "t.csv", "Nr,Satz,Urteil\n" + "\n".join(rows) + "\n"))
    assert (found.kind, found.columns) == ("classify", {"text": "Satz", "label": "Urteil"})
    assert found.words.endswith("(column Satz as text, Urteil as label)")
    told = labelled.write_split(found, None, tmp_path / "task")
    learnt, asked = (rows_of(tmp_path / f"task/{name}.jsonl") for name in ("train", "eval"))
    assert told.startswith("8 of 40 rows")
    assert sorted(row["label"] for row in asked) == ["gut"] * 6 + ["schlecht"] * 2  # a fifth of each
    assert len(learnt) == 32
    assert any(row["text"] == 'Ein Satz, der 7 mal "Komma" sagt.' for row in learnt + asked)


def test_rows_of_one_text_stay_together_in_any_order(tmp_path):
    lines = [f"text number {n % 30}\t{n % 2}" for n in range(60)]
    sides = []
    for name, order in (("a", lines), ("b", lines[::-1])):
        found = labelled.look_at(write(tmp_path / f"{name}.tsv", "\n".join(["text\tlabel", *order])))
        sides.append([{row["text"] for row in side} for side in labelled.split(found)])
    assert sides[0] == sides[1]
    assert not sides[0][0] & sides[0][1]


TOPICS = ("food", "food|staff", "price", "staff")


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["premise\thypothesis\tlabel", *(f"a {n}\tb {n}\t{n % 3}" for n in range(20))], "pair"),
        (["review\tstars", *(f"text {n}\t{n / 4}" for n in range(20))], "regress"),
        (["review\tstars", *(f"text {n}\t{1 + n % 5}" for n in range(20))], "classify"),
        (["review\ttopics", *(f"text {n}\t{TOPICS[n % 4]}" for n in range(40))], "multilabel"),
        (["review\tplace", *(f"text {n}\t{('Paris; Texas', 'Rome; Italy')[n % 2]}" for n in range(20))], "classify"),
        ([json.dumps({"review": f"text {n}", "label": TOPICS[n % 4].split("|")}) for n in range(40)], "multilabel"),
        (["1\tAnna\tB-PER\tO\n2\tleft\tO\tO\n"] * 20, "tag"),
        (['{"words": ["Anna", "left"], "ner_tags": ["B-PER", "O"]}'] * 20, "tag"),
    ],
)
def test_the_kind_of_task_follows_from_the_file(tmp_path, lines, kind):
    found = labelled.look_at(write(tmp_path / "t.tsv", "\n".join(lines)))
    assert found.kind == kind
    if kind == "tag":
        assert found.rows[0] == {"tokens": ["Anna", "left"], "tags": ["B-PER", "O"]}
    if kind == "multilabel":
        assert found.rows[1]["label"] == ["food", "staff"]
        assert found.labels == {"food": 20, "staff": 20, "price": 10}
        assert labelled.write_split(found, None, tmp_path / "task").startswith("8 of 40 rows")
    labelled.check(found, None)


@pytest.mark.parametrize(("yes", "no"), [(1, 0), (1.0, 0.0), (True, False), ("True", "False")])
def test_columns_of_0_and_1_are_labels(tmp_path, yes, no):
    def rows(*names: str) -> str:
        values = [{name: yes if n % (of + 2) else no for of, name in enumerate(names)} for n in range(40)]
        return "\n".join(json.dumps({"Nr": n, "comment": f"text {n}"} | flags) for n, flags in enumerate(values))

    one = labelled.look_at(write(tmp_path / "one.jsonl", rows("spam")))
    assert (one.kind, one.columns) == ("classify", {"text": "comment", "label": "spam"})
    names = sorted(str(int(value) if isinstance(value, float) else value) for value in (yes, no))
    assert f"one of 2 labels a text: {', '.join(names)} (column" in one.words
    several = labelled.look_at(write(tmp_path / "several.jsonl", rows("Rude", "spam", "false")))
    assert (several.kind, several.flags) == ("multilabel", ("Rude", "spam", "false"))
    assert (
        "any of 3 labels a text, a column of 0 and 1 for each: Rude, spam, false (column comment as text)"
        in several.words
    )
    assert [row["label"] for row in several.rows[:4]] == [
        [],
        ["Rude", "spam", "false"],
        ["spam", "false"],
        ["Rude", "false"],
    ]
    labelled.check(one, labelled.look_at(tmp_path / "one.jsonl", one))
    labelled.check(several, labelled.look_at(write(tmp_path / "eval.jsonl", rows("Rude", "spam", "false")), several))
    with pytest.raises(InputError, match="no column false"):
        labelled.look_at(write(tmp_path / "other.jsonl", rows("Rude", "spam")), several)


def test_flags_beside_another_label_are_not_taken_for_it(tmp_path):
    lines = ["text\tVerdict\tlong\tquoted", *(f"text {n}\t{'ab'[n % 2]}\t{n % 2}\t{n % 3 % 2}" for n in range(40))]
    with pytest.raises(InputError, match="which column is the label"):
        labelled.look_at(write(tmp_path / "a.tsv", "\n".join(lines)))
    lines[0] = lines[0].replace("Verdict", "label")
    assert labelled.look_at(write(tmp_path / "b.tsv", "\n".join(lines))).kind == "classify"


def test_a_file_without_a_label_or_with_few_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"which column is the label\? none is it .* call it label"):
        labelled.look_at(write(tmp_path / "a.csv", "eins,zwei\n" + "\n".join(f"a{n},b{n}" for n in range(20))))
    with pytest.raises(InputError, match=r"4 rows, too few .* --eval FILE"):
        labelled.split(labelled.look_at(write(tmp_path / "b.csv", "text,label\na,0\nb,1\nc,0\nd,1\n")))


def test_labelled_texts_that_stand_in_the_corpus_are_told_for_each_file_and_on_the_page(tmp_path, monkeypatch, capsys):
    def only_the_store(config, record, commands, keys, alone):
        base, key = keys["shard"]
        record.stages["shard"] = StageRecord("", base, key, is_done=True)
        record.write(config.out)

    monkeypatch.setattr("launch.make.settle_advice", lambda *_: {})
    monkeypatch.setattr("launch.make.commands_of", lambda *_: COMMANDS)
    monkeypatch.setattr("launch.make.work_through", only_the_store)
    for name in ("show", "write_page"):
        monkeypatch.setattr(f"launch.make.{name}", lambda *_: None)
    texts = [f"The farmer number {n} went to the market in spring" for n in range(40)]
    write(tmp_path / "texts/a.txt", ". ".join(texts))
    seen = write(tmp_path / "seen.csv", "text,label\n" + "\n".join(f"{text},{n % 2}" for n, text in enumerate(texts)))
    other = write(tmp_path / "other.csv", seen.read_text().replace("farmer", "baker"))
    out = tmp_path / "made"
    for task, is_told, is_on_the_page in ((other, False, False), (seen, True, True), (seen, False, True)):
        make_all(MakeConfig((str(tmp_path / "texts"),), out, steps=1, task=task))
        assert ("40 of 40 texts" in capsys.readouterr().err) == is_told
        record = MakeRecord.read(out)
        assert record is not None
        assert [line.startswith("40 of 40 texts") for line in leaked(record.task)] == [True] * is_on_the_page


def test_a_text_without_a_word_to_ask_for_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.make.texts_with_gaps", lambda store: [])  # as in a script without spaces
    record = MakeRecord([], {})
    config = MakeConfig(("texts",), tmp_path, steps=1)
    work_through(
        config, record, {"fill": ["predict", "no/model", "--fill", "--json"]}, {"fill": ("base", "key")}, Alone(0, 0)
    )
    assert record.stages["fill"].is_done
    assert answers_to([], json.loads((tmp_path / "fill.json").read_text()))["answers"] == []


def test_a_piece_is_shown_with_the_word_that_it_makes():
    filled = {"answers": [{"text": "Sie gingen frei [MASK] hin.", "masks": [[{"token": "##en", "probability": 0.5}]]}]}
    answers = answers_to([Gap("Sie gingen frei [MASK] hin.", "weit", True)], filled)["answers"]
    assert answers[0]["guesses"] == [{"token": "frei[en]", "share": "50%"}]
    assert (filled_in("Ja,", "##en"), filled_in("", "##en"), filled_in("frei", "en")) == ("...en", "...en", "en")


def test_the_next_command_has_the_settings_of_this_one(tmp_path):
    config = MakeConfig(("texts",), tmp_path, steps=1, model="bert-tiny", set=("train.lr=1e-3",))
    commands = dict(what_next(tmp_path, MakeRecord([], config.given)))
    with_a_task = next(command for command in commands.values() if "--task" in command)
    assert "--model bert-tiny --set train.lr=1e-3" in with_a_task


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["one text,a"] * 4 + [",b"], r"line 6: the text is empty"),
        (["one text,a"] * 4 + ["two,"], r"line 6: a label must be a name or an integer, not ''"),
        ([f"text {n},a" for n in range(20)], r"every label is 'a'; at least two"),
        ([f"text {n},{(2, '1e999')[n % 2]}" for n in range(20)], r"line 3: a label .* must be a number"),
    ],
)
def test_what_fine_tuning_would_refuse_after_hours_is_refused_at_once(tmp_path, cells, told):
    found = labelled.look_at(write(tmp_path / "t.csv", "review,stars\n" + "\n".join(cells)))
    with pytest.raises(InputError, match=rf"t\.csv.*{told}"):
        labelled.check(found, None)


def test_a_label_that_only_the_file_to_measure_on_has_is_refused_at_once(tmp_path):
    found = labelled.look_at(write(tmp_path / "t.csv", "review,stars\na,x\nb,y\n"))
    eval_file = labelled.look_at(write(tmp_path / "e.csv", "stars,review\nx,c\nz,d\n"), found)
    with pytest.raises(InputError, match=r"e\.csv, line 3: label 'z' does not occur in .*t\.csv"):
        labelled.check(found, eval_file)


@pytest.mark.parametrize(("key", "is_kept"), [("this", True), ("that", False)])
def test_an_unfinished_fine_tuning_goes_on_only_where_it_is_the_same(key, is_kept, tmp_path, monkeypatch):
    (tmp_path / "finetuned.progress").mkdir()
    monkeypatch.setattr("launch.make.Screen.run", lambda *_: STOPPED)
    record = MakeRecord([], {}, stages={"finetune": StageRecord("", "base", key)})
    with pytest.raises(SystemExit):
        work_through(
            MakeConfig(("texts",), tmp_path, steps=1), record, {"finetune": ["finetune", "hf"]},
            {"finetune": ("base", "this")}, Alone(0, 0),
        )  # fmt: skip
    assert (tmp_path / "finetuned.progress").exists() == is_kept


# One in full


LAUNCHER = f"""#!/bin/sh
while [ "${{1#--}}" != "$1" ]; do [ "$1" != --master_port ] || port=$2; shift 2; done
exec env RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port {sys.executable} "$@"
"""


def light_launcher(folder: Path) -> str:
    """A PATH whose `deepspeed` starts one rank at once; the real one imports torch twice before, and is seen in
    tests/test_faults.py."""
    folder.mkdir()
    for name, text in (("deepspeed", LAUNCHER), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        write(folder / name, text).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def make(out: Path, texts: Path, path: str, **settings):
    words = ("--corpus", texts, "--out", out, "--steps", 30, "--model", "bert-tiny", "--size", 512)
    stages = "train.save_every=10 train.log_every=5 train.global_batch=8 train.micro_batch=4 shard.holdout=0.2".split()
    environment = {"RANKS": "1", "PATH": path}  # that more of them are started as planned is seen above
    return start(sys.executable, "launch/make.py", *words, "--set", *stages, env=environment, **settings)


@pytest.mark.slow
def test_a_make_that_is_killed_goes_on_and_ends_with_its_page(tmp_path):
    text = (ROOT / "launch/sample/corpus.txt").read_text("utf-8")
    for number, document in enumerate(text.split("\n\n")[:12]):
        write(
            tmp_path / f"texts/Größe {number}.txt", f"Café, née: {document}".encode("cp1252" if number % 2 else "utf-8")
        )
    write(tmp_path / "texts/strange.pdf", b"%PDF-1.4")
    texts, out = tmp_path / "texts", tmp_path / "texts/made here"
    path = light_launcher(tmp_path / "bin")
    process = make(out, texts, path)
    wait_for(lambda: (out / "run/checkpoints/step-0000010/manifest.json").exists() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()

    with open(tmp_path / "second", "w") as said:
        code = make(out, texts, path, stderr=said).wait()
    said = (tmp_path / "second").read_text()
    assert code == 0, said
    assert said.count("done before") == 3
    assert "Resume" in said
    assert "from a new run" not in said
    page = (out / "index.html").read_text("utf-8")
    for told in ("What was chosen, and why", "made here", "Größe 1.txt", "cp1252", "--fill"):
        assert told in page, told
    assert "<script src" not in page
    record = MakeRecord.read(out)
    assert record is not None
    assert all(entry.is_done for entry in record.stages.values())
    gaps = gaps_of(Store.open(out / "store"), 4)
    assert len(gaps) == 4
    assert all("[MASK]" in gap.text and gap.is_held_out for gap in gaps)

    write(texts / "new.txt", "Another text.")
    with open(tmp_path / "third", "w") as said:
        assert make(out, texts, path, stderr=said).wait() == 2
    assert "1 text added (texts/new.txt)" in (tmp_path / "third").read_text()
    os.unlink(texts / "new.txt")
