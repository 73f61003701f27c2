"""Consoles and logs that die, fill up or vanish: the work goes on, what is lost is said, exit codes stay right."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from data_prep.cli import ROOT
from data_prep.safe_output import KEPT_LINES, Journal
from data_prep.store import Store
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.checkpoints.verify import latest_valid_checkpoint
from pretrain.train import train
from tests.ranks import run_ranks
from tests.runs import tiny_run
from tests.stores import random_documents, store_of

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(1800)]
FULL = Path("/dev/full")


class TestJournal:
    """Lines of a file that cannot always be written."""

    def test_lines_wait_for_their_file_and_lose_nothing(self, tmp_path):
        journal = Journal(tmp_path / "log")
        journal.write("one")
        (tmp_path / "log").rename(tmp_path / "rotated")
        (tmp_path / "log").mkdir()  # in its place
        journal.write("two")
        journal.write("three")
        assert isinstance(journal.failure, IsADirectoryError)
        assert journal.waiting == 2
        (tmp_path / "log").rmdir()
        journal.write("four")
        assert (tmp_path / "rotated").read_text() == "one\n"
        assert (tmp_path / "log").read_text() == "two\nthree\nfour\n"
        assert (journal.failure, journal.waiting, journal.lost) == (None, 0, 0)

    def test_a_file_that_was_removed_begins_anew(self, tmp_path):
        journal = Journal(tmp_path / "log")
        journal.write("one")
        (tmp_path / "log").unlink()
        journal.write("two")
        assert (tmp_path / "log").read_text() == "two\n"

    def test_a_line_never_goes_on_with_one_that_a_crash_has_cut(self, tmp_path):
        (tmp_path / "log").write_text('{"kind": "tr')
        Journal(tmp_path / "log").write("{}")
        assert (tmp_path / "log").read_text() == '{"kind": "tr\n{}\n'

    def test_a_part_of_a_line_is_taken_back(self, tmp_path, monkeypatch):
        journal, whole_write = Journal(tmp_path / "log"), os.write
        journal.write("one")

        def filling_up(descriptor: int, data: bytes) -> int:
            if len(data) < 4:
                raise OSError(28, "No space left on device")
            return whole_write(descriptor, data[:4])

        monkeypatch.setattr(os, "write", filling_up)
        journal.write("a longer line")
        assert (tmp_path / "log").read_text() == "one\n"
        monkeypatch.undo()
        journal.write("two")
        assert (tmp_path / "log").read_text() == "one\na longer line\ntwo\n"

    def test_what_is_too_much_to_keep_is_counted(self, tmp_path):
        (tmp_path / "log").symlink_to(FULL)
        journal = Journal(tmp_path / "log")
        journal.write("x")
        journal._waiting.extend([b"x\n"] * (KEPT_LINES - 1))
        journal.write("y")
        assert (journal.waiting, journal.lost) == (KEPT_LINES, 1)


COMMAND = """
    import dataclasses, pathlib, sys
    from data_prep.cli import print_json, run, say

    @dataclasses.dataclass(frozen=True)
    class Config:
        out: pathlib.Path

    def main(config: Config) -> None:
        for number in range(2000):
            say(f"line {number} " + "x" * 100)
            print_json({"number": number})
        config.out.write_text("whole")

    run(main, Config, "")
"""


def dead_reader() -> int:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    ("locale", "plain"), [("C", "Größe 北京 \\ud800"), ("ascii", "Gr\\xf6\\xdfe \\u5317\\u4eac \\ud800")]
)
def test_letters_that_a_console_has_not_are_spelled(tmp_path, locale, plain):
    text = "Größe 北京 \ud800"
    (tmp_path / "command.py").write_text(
        "from dataclasses import dataclass\nfrom data_prep.cli import print_json, run\n"
        "@dataclass\nclass Config: pass\n"
        f"def main(config): print({text!a}); print_json(dict(text={text!a}))\n"
        "run(main, Config, '')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONUTF8")}
    environment |= {"PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    if locale != "C":  # in which Python says UTF-8
        environment["PYTHONIOENCODING"] = locale
    command = [sys.executable, tmp_path / "command.py"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == plain
    assert json.loads(second) == {"text": text}


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">&DEAD 2>&DEAD", 0),
        ("2>&DEAD > /dev/null", 0),
        ("2> /dev/full > /dev/null", 0),
        ("> /dev/full", 1),
        ("2>&- > /dev/null", 0),
        (">&- 2>&- <&-", 0),
    ],
)
def test_a_command_ends_its_work_whatever_its_console_does(tmp_path, redirection, code):
    script, dead = tmp_path / "command.py", dead_reader()
    script.write_text(textwrap.dedent(COMMAND))
    line = f'"{sys.executable}" "{script}" --out "{tmp_path}/out" {redirection.replace("DEAD", str(dead))}'
    result = subprocess.run(
        ["bash", "-c", line],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        pass_fds=[dead],
        capture_output=True,
        text=True,
    )
    os.close(dead)
    assert result.returncode == code
    assert (tmp_path / "out").read_text() == "whole"
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    if code:
        assert (
            result.stderr.splitlines()[-1]
            == "error: the results could not be written to stdout: No space left on device"
        )


@pytest.mark.slow
def test_shards_are_whole_though_nobody_reads_what_is_said(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"A text of words. Number {n} of many." for n in range(60)))
    store_of(tmp_path / "any", random_documents(4))
    dead = dead_reader()
    outputs = {"stdout": dead, "stderr": dead}
    for name, streams in (("dead", outputs), ("read", {"capture_output": True})):
        command = [sys.executable, "data_prep/shard.py", "--corpus", corpus, "--vocab", tmp_path / "any/vocab"]
        subprocess.run([*command, "--out", tmp_path / name, "--workers", "1"], cwd=ROOT, check=True, **streams)
    os.close(dead)
    assert Store.open(tmp_path / "dead").identity == Store.open(tmp_path / "read").identity


def train_and_tell(settings, path):
    """Train; returns what the console was told."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w")
    state = train(settings)
    sys.stderr.flush()
    return state.step, path.read_text()


def test_logs_that_cannot_be_written_are_said_once_and_end_nothing(tmp_path):
    store = store_of(tmp_path / "store", random_documents(40)).folder
    run = tmp_path / "run"
    (run / "log.txt").mkdir(parents=True)
    (run / "metrics.jsonl").symlink_to(FULL)
    (run / "tensorboard").write_text("a file where a folder should be")
    settings = tiny_run(store, run, steps=4, global_batch=8, save_every=2)
    ((step, told),) = run_ranks(1, train_and_tell, settings, tmp_path / "console")
    assert step == 4
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, 4)
    for name in ("log.txt", "metrics.jsonl", "tensorboard"):
        assert told.count(f"{run / name} cannot be written") == 1
    assert "metrics.jsonl lacks" in told
