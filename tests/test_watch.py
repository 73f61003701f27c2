"""A run as it goes, in a terminal and in a pipe; before its first step, at its end, and when nobody looks any more."""

import os
import pty
import signal
import sys
import threading
import time

import numpy as np
import pytest

from data_prep.cli import InputError
from pretrain.report.command import ReportConfig, main
from pretrain.report.history import History
from pretrain.report.watch import plot, seconds_left, warnings_of, watch
from tests.launched import start, wait_for
from tests.metrics import event, held_out, run_folder, train


def test_a_pipe_gets_a_line_an_update_until_the_run_ends(tmp_path, capsys):
    run = tmp_path / "run"
    watching = threading.Thread(target=watch, args=(run, 0.01))
    watching.start()
    text = ""

    def printed(words: str) -> bool:
        nonlocal text
        text += capsys.readouterr().out
        return words in text

    wait_for(lambda: printed("waiting for its first step"))
    made = run_folder(tmp_path / "made", [train(10), train(20), held_out(20, 7.0)])
    (made / "lock.json").write_text(f'{{"host": "h", "pid": 1, "heartbeat": {time.time()}}}')
    made.rename(run)
    wait_for(lambda: printed("step 20/100"))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "event", "step": 20, "event": "stop", "reason": "SIGTERM"}\n')
    (run / "lock.json").unlink()
    watching.join(30)
    printed("")
    _, second, last = text.splitlines()
    assert "running  step 20/100  loss 7.9235  held out 7.0000 (step 20)  520 tokens/s  ETA 01:20" in second
    assert last.startswith("stopped  step 20/100")


def test_a_terminal_sees_the_curve_and_ctrl_c_ends_it_well(tmp_path):
    lines = [*(train(step, slowdown=1.5, slowest_rank=3, collectives=0.2) for step in range(10, 60, 10)), held_out(50)]
    run = run_folder(tmp_path / "run", lines)
    (run / "lock.json").write_text(f'{{"host": "h", "pid": 1, "heartbeat": {time.time() + 60}}}')
    ours, theirs = pty.openpty()
    command = (sys.executable, "-m", "pretrain.report", "--watch", run, "--every", "0.1")
    process = start(*command, stdout=theirs, env={"TERM": "xterm", "COLUMNS": "100", "LINES": "40"})
    os.close(theirs)
    seen = b""

    def shows(words: str) -> bool:
        nonlocal seen
        seen += os.read(ours, 1 << 16)
        return words.encode() in seen

    wait_for(lambda: shows("6.000 |"))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    text = seen.decode()
    assert "rank 3 is slow (1.50 times)" in text
    assert "loss 6.0000, accuracy 0.100, at step 50" in text


def test_a_curve_has_its_scale_and_its_ends():
    lines = plot([("x", np.array([1, 50, 100]), np.array([9.0, 5.0, 1.0]))], 40, 5)
    assert [line.count("x") for line in lines] == [1, 0, 1, 0, 1, 0]
    assert lines[0].startswith("  9.000 |x")
    assert lines[4].startswith("  1.000 |")
    assert lines[4].endswith("x")
    assert lines[5].split() == ["1", "100"]
    assert plot([("x", np.empty(0), np.empty(0))], 40, 5) == []


def test_what_somebody_should_look_at(tmp_path):
    lines = [event(3, "skip"), *(train(step, mlm_loss=5 + step / 100) for step in range(1, 220))]
    history = History.read(run_folder(tmp_path / "run", lines))
    assert warnings_of(history) == ["1 steps skipped", "the loss rises"]
    assert seconds_left(history) is None  # it has ended


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 2}, "--watch shows one run, not 2"),
        ({"out": "page"}, "leave out --out and --json"),
        ({"watch": False}, "give --out DIR"),
        ({"every": float("nan")}, "--every nan"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, options, message):
    settings = {"watch": True} | options
    runs = tuple([tmp_path] * settings.pop("runs", 1))
    with pytest.raises(InputError, match=message):
        ReportConfig(runs, **settings)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("")
    for place in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(InputError, match="give the --out of a pretraining run"):
            main(ReportConfig((place,), watch=True))
