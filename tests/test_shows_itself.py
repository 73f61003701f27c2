"""Long work shows itself: lines where there is no terminal, an answer to Ctrl-C, saves by the clock, a status."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_prep import progress
from pretrain.monitor import flops, meter
from pretrain.monitor.core_wait import CoreWait
from pretrain.monitor.lines import what_was_lost
from pretrain.report.history import History
from pretrain.state import RunState
from pretrain.stop import STOPPED
from pretrain.train import train
from tests.metrics import event, run_folder
from tests.metrics import train as logged
from tests.ranks import run_ranks
from tests.runs import tiny_run
from tests.stores import random_documents, store_of

ROOT = Path(__file__).resolve().parent.parent


def test_work_of_a_known_size_says_how_far_it_is(monkeypatch, capfd):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    for _ in progress.Progress(range(20), "index", "part"):
        time.sleep(0.01)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("index: ") and line.endswith(" left") for line in lines)
    assert [*progress.Progress(range(20), "index", "part", quiet=True)] == list(range(20))
    assert not capfd.readouterr().err


def test_a_terminal_that_says_it_is_dumb_gets_lines(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.TextProgress(4_000_000) as work:
        work.add(1_000_000, 250_000)
    first, last = capfd.readouterr().err.splitlines()
    assert first.startswith("text: 1 of about 4 MB, ")
    assert "0.2 M tokens, 00:0" in first
    assert last.startswith("1.0 MB of text, 250,000 tokens in ")


def test_work_of_an_unknown_size_says_how_long_it_takes_once_it_has_begun(monkeypatch, capfd):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    handler = signal.getsignal(signal.SIGINT)
    with progress.still("joining") as begin:
        time.sleep(0.1)
        assert not capfd.readouterr().err
        begin()
        time.sleep(0.2)
    assert "joining: 00:00 so far" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_request_to_stop_is_answered_while_the_main_thread_hears_nothing():
    script = (
        "import ctypes, sys; sys.path[0] = sys.argv[1]\n"
        "from pretrain.stop import StopRequests; stop = StopRequests(); stop.hold()\n"
        "mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None); libc.pthread_mutex_lock(mutex)\n"
        "with stop.answering('this evaluation'): print('deep', flush=True); libc.pthread_mutex_lock(mutex)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "deep\n"
    process.send_signal(signal.SIGINT)
    assert "SIGINT: stopping, after this evaluation" in process.stderr.readline()
    process.kill()
    process.communicate()


def test_a_command_of_its_own_is_ended_by_a_second_request_and_not_by_its_parent():
    script = (
        "import os, sys, time; sys.path[0] = sys.argv[1]\n"
        "from pretrain import stop; stop.AGAIN_SECONDS = 0.0; requests = stop.StopRequests(is_rank=False)\n"
        "requests.hold(); requests.launcher = (1, 1); assert requests.reason(None) == ''\n"
        "print('held', flush=True)\n"
        "while True: time.sleep(0.01)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: stopping, after this step; once more ends it at once" in process.stderr.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == STOPPED


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (event(50, "stop", reason="SIGINT"), "stopped"),
        (event(50, "stop", reason="the hours are over"), "finished"),
        (event(50, "stop", reason="out of patience"), "finished"),
        (event(50, "failed", reason="gradients are not finite"), "failed"),
        (event(50, "save", checkpoint="step-0000050"), "failed"),  # killed: nobody could say so
        (logged(100), "finished"),
    ],
)
def test_a_run_has_one_of_four_words(tmp_path, last, status):
    run = run_folder(tmp_path / "run", [event(20, "stop", reason="SIGTERM"), logged(50), last])
    assert History.read(run).status == status


@pytest.mark.parametrize(
    ("lines", "step", "lost"),
    [
        (
            [logged(400), logged(430), logged(437), event(437, "save")],
            400,
            "37 steps since, when the process was killed",
        ),
        ([logged(400), event(400, "save")], 400, "what it did since, when the process was killed"),
        ([logged(1)], None, "1 step, when the process was killed before its first checkpoint"),
    ],
)
def test_what_a_kill_has_lost_is_read_off_the_metrics(tmp_path, lines, step, lost):
    assert what_was_lost(run_folder(tmp_path / "run", lines) / "metrics.jsonl", step) == lost


def test_setup_shows_what_pip_is_at(tmp_path):
    text = (ROOT / "launch/setup.sh").read_text()
    stages = text[text.index("stages() {") : text.index("install() {")]
    (tmp_path / ".venv").mkdir()
    said = [
        "Collecting torch==2.13.0",
        "  Downloading torch-2.13.0-cp311-none-linux_x86_64.whl (532.0 MB)",
        "  Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)",
        "  Building wheel for deepspeed (pyproject.toml): started",
        "Installing collected packages: mpmath, sympy, torch",
        "Successfully installed torch-2.13.0",
    ]
    done = subprocess.run(
        ["bash", "-c", f'say() {{ echo "$*" >&2; }}\n{stages}\nstages'],
        input="\n".join(said) + "\n", cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    told = [line.split(" s  ")[1] for line in done.stderr.splitlines()]
    wheel = "torch-2.13.0-cp311-none-linux_x86_64.whl (532.0 MB)"
    assert told == [f"fetching {wheel}", "building deepspeed", "installing 3 packages"]
    assert (tmp_path / ".venv/setup.log").read_text().splitlines() == said


@pytest.mark.parametrize(("by_others", "share"), [(2.0, 0.2), (0.0, 0.0)])
def test_waiting_for_a_core_counts_where_others_had_it(monkeypatch, by_others, share):
    times, used = iter([0.0, 10.0]), iter([5.0, 6.0 + by_others])
    looks = iter([{"1": (100, 0)}, {"1": (180, 10), "2": (0, 10)}])
    monkeypatch.setattr("pretrain.monitor.core_wait.usable_cores", lambda: 1)
    monkeypatch.setattr("pretrain.monitor.core_wait._used_by_all", lambda: next(used))
    monkeypatch.setattr("pretrain.monitor.core_wait._by_thread", lambda: next(looks))
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    monkeypatch.setattr("time.process_time", lambda: 1.0)
    wait = CoreWait()
    assert wait.share() == share
    monkeypatch.undo()


def test_the_peak_of_a_processor_is_measured(monkeypatch):
    monkeypatch.setattr(flops, "GEMM_SECONDS", 0.01)
    assert flops.peak_flops(torch.device("cpu")) > 0


def train_with_a_small_peak(settings) -> RunState:
    """A machine so busy when its peak is measured that the model is faster."""
    meter.peak_flops = lambda device: 1.0
    return train(settings)


@pytest.mark.slow
def test_the_clock_saves_and_evaluates_and_changes_nothing_and_an_mfu_above_one_is_none(tmp_path):
    documents = random_documents(30)
    store = store_of(tmp_path / "store", documents, held_out=[1, 2, 3, 4]).folder
    moment = 1e-6  # minutes: after every step
    common = {"steps": 4, "global_batch": 8, "micro_batch": 4, "eval_samples": 8, "eval_every": 0}
    by_time = tiny_run(
        store, tmp_path / "time", save_every=0, save_minutes=moment, eval_minutes=moment, **{**common, "steps": 2}
    )
    by_steps = tiny_run(store, tmp_path / "steps", save_every=1, save_minutes=0, **common)
    run_ranks(2, train_with_a_small_peak, by_time)
    lines = [json.loads(line) for line in (tmp_path / "time/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [1, 2]
    assert [line["step"] for line in lines if line.get("event") == "save"] == [1, 2]
    assert {line["mfu"] for line in lines if line["kind"] == "train"} == {None}
    assert "MFU n/a" in (tmp_path / "time/log.txt").read_text()
    run_ranks(2, train, by_steps)
    lines_by_steps = [json.loads(line) for line in (tmp_path / "steps/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "event"
    losses = [[line["loss"] for line in some if line["kind"] == "train"][:1] for some in (lines, lines_by_steps)]
    assert losses[0] == losses[1]
