"""Faults for real: processes killed and signalled, a full disk, numbers that are none. docs/faults.md lists them.

Whatever happens, the run goes on afterwards and ends with the weights of an undisturbed run, bit for bit.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.cli import InputError
from data_prep.files import write_json
from pretrain.checkpoints import run_lock
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.checkpoints.run_lock import RunLock
from pretrain.checkpoints.verify import latest_valid_checkpoint
from pretrain.model import PretrainingModule
from pretrain.settings.config import TrainConfig
from pretrain.state import RunState
from pretrain.stop import STOPPED
from pretrain.train import train
from tests.launched import PATIENCE, start, wait_for
from tests.ranks import run_ranks, start_ranks
from tests.runs import SAVING_STEPS, contents, events, saving_run, steps_done
from tests.stores import random_documents, store_of

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40), held_out={3, 17}).folder


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_ranks(2, train, saving_run(store, out))
    return out


def finish_and_compare(store: Path, run: Path, undisturbed: Path) -> None:
    run_ranks(2, train, saving_run(store, run))
    assert contents(checkpoint_dir(run, SAVING_STEPS)) == contents(checkpoint_dir(undisturbed, SAVING_STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_kill_9_at_a_random_moment(store, undisturbed, tmp_path, victim):
    run = tmp_path / "run"
    ranks = start_ranks(2, train, saving_run(store, run))
    step = random.Random(victim).randrange(2, SAVING_STEPS - 6)
    wait_for(lambda: steps_done(run) >= step)
    pause = random.random() * 0.05  # drawn anew each time, and said where the test fails
    print(f"killed {pause} s after step {step}")
    time.sleep(pause)
    ranks[victim][0].kill()
    for process, _ in ranks:  # the launcher ends the other; here the test does
        process.kill()
        process.join()
    assert steps_done(run) < SAVING_STEPS
    finish_and_compare(store, run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_one_rank_stops_all_and_saves(store, undisturbed, tmp_path, number):
    run = tmp_path / "run"
    ranks = start_ranks(2, train, saving_run(store, run, save_every=0))
    wait_for(lambda: steps_done(run) >= 3)
    os.kill(ranks[1][0].pid, number)
    states = [pipe.recv()[1] for _, pipe in ranks]
    for process, _ in ranks:
        process.kill()
    assert 3 <= states[0].step == states[1].step < SAVING_STEPS
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, states[0].step)
    assert events(run, "stop")[0]["reason"] == signal.Signals(number).name
    finish_and_compare(store, run, undisturbed)


@pytest.mark.slow
def test_a_time_limit_stops_and_saves(store, tmp_path):
    state = run_ranks(
        2, train, saving_run(store, tmp_path / "run", steps=100_000, keep=2, time_limit=61.5, stop_before=60.0)
    )[0]
    assert events(tmp_path / "run", "stop")[0]["reason"] == "time is up"
    assert latest_valid_checkpoint(tmp_path / "run") == checkpoint_dir(tmp_path / "run", state.step)


def test_slurm_s_time_limit_is_known(monkeypatch, store, tmp_path):
    monkeypatch.setenv("SLURM_JOB_END_TIME", "5000")
    assert saving_run(store, tmp_path).stop_at(0.0) == 5000 - 120


@pytest.mark.parametrize(
    ("rank", "answer", "end"), [("0", "5000", 5000 - 120), ("1", "5000", None), ("0", "N/A", None)]
)
def test_slurm_is_asked_when_the_job_ends_where_it_does_not_say(monkeypatch, store, tmp_path, rank, answer, end):
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$SLURM_TIME_FORMAT $*" = "%s -h -j 17 -o %e" ] && echo {answer}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("RANK", rank)
    assert saving_run(store, tmp_path).stop_at(0.0) == end


def train_with_stderr(settings: TrainConfig, path: Path) -> None:
    descriptor = os.open(path.with_name(f"stderr-{os.environ['RANK']}"), os.O_CREAT | os.O_WRONLY)
    os.dup2(descriptor, 2)
    sys.__stderr__ = os.fdopen(2, "w")  # type: ignore[misc]
    train(settings)


@pytest.mark.slow
def test_a_rank_that_hangs_is_ended_with_its_stack(store, undisturbed, tmp_path):
    run = tmp_path / "run"
    ranks = start_ranks(2, train_with_stderr, saving_run(store, run, hang_timeout=5.0), run)
    wait_for(lambda: steps_done(run) >= 3)
    os.kill(ranks[1][0].pid, signal.SIGSTOP)  # rank 1 is silent; rank 0 waits for it in a collective
    ranks[0][0].join(PATIENCE)
    assert ranks[0][0].exitcode == 1
    stack = (tmp_path / "stderr-0").read_text()
    assert "Timeout" in stack
    assert "train_step" in stack or "told" in stack
    dumped = (run / "hang/rank-00000.txt").read_text()
    assert "train_step" in dumped or "after_step" in dumped or "told" in dumped
    assert re.search(r"WAITS  gloo:\w+ number \d+ of group", dumped)
    recorded = json.loads((run / "hang/rank-00000.json").read_text())
    assert any(not entry["retired"] for entry in recorded["fr"]["entries"])
    assert not (run / "hang/rank-00001.txt").exists()  # which tells who it is
    os.kill(ranks[1][0].pid, signal.SIGCONT)
    ranks[1][0].join(PATIENCE)
    assert ranks[1][0].exitcode == 1
    finish_and_compare(store, run, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for two checkpoints of bert-tiny, and not for three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def train_on_a_disk_that_fills(settings: TrainConfig) -> RunState:
    """The disk looks large when the run begins: someone else fills it."""
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12)
    return train(settings)


@pytest.mark.slow
def test_a_full_disk_during_a_save(store, undisturbed, tmp_path, small_disk):
    run = small_disk / "run"
    with pytest.raises(RuntimeError, match=r"No space left|failed; its message says why"):
        run_ranks(2, train_on_a_disk_that_fills, saving_run(store, run))
    whole = latest_valid_checkpoint(run)
    assert whole == checkpoint_dir(run, 8)  # there is no room for a third one
    assert not list((run / "checkpoints").glob("*.partial"))
    shutil.copytree(run, tmp_path / "larger")
    finish_and_compare(store, tmp_path / "larger", undisturbed)


def test_a_disk_that_is_too_small_is_refused_at_the_start(store, small_disk):
    with pytest.raises(RuntimeError, match=r"InputError: .*more checkpoints of .* each need .*make room.*--keep"):
        run_ranks(1, train, saving_run(store, small_disk / "run"))
    assert not (small_disk / "run").exists()


def test_a_folder_that_cannot_be_written(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file: choose a folder"):
        train(saving_run(store, tmp_path / "file" / "run"))


class TestRunLock:
    """One writer a run folder."""

    def test_a_second_writer_is_refused_by_name(self, tmp_path):
        with RunLock(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} on"), RunLock(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_a_dead_holder_s_lock_is_taken_over(self, tmp_path):
        process, _ = start_ranks(1, hold_for_ever, tmp_path)[0]
        wait_for((tmp_path / "lock.json").exists)
        process.kill()
        process.join()
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()

    @pytest.mark.parametrize(("age", "refused"), [(1.0, True), (1000.0, False), (-1e9, False), (1e300, False)])
    def test_another_host_counts_by_its_heartbeat(self, tmp_path, monkeypatch, age, refused):
        monkeypatch.setattr(run_lock, "WATCHED", 0.1)
        holder = {
            "host": "elsewhere",
            "pid": 1,
            "process_start": "1",
            "started": "then",
            "heartbeat": time.time() - age,
        }
        (tmp_path / "lock.json").write_text(json.dumps(holder))
        if refused:
            with pytest.raises(InputError, match="on elsewhere"), RunLock(tmp_path):
                pass
        else:
            with RunLock(tmp_path):
                pass

    def test_a_heartbeat_by_another_clock_that_goes_on_is_alive(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run_lock, "WATCHED", 60.0)
        holder = {"host": "elsewhere", "pid": 1, "process_start": "1", "started": "then", "heartbeat": 1e12}
        write_json(tmp_path / "lock.json", holder)
        beat = threading.Timer(0.5, write_json, (tmp_path / "lock.json", holder | {"heartbeat": 1e12 + 15}))
        beat.start()
        with pytest.raises(InputError, match="on elsewhere"), RunLock(tmp_path):
            pass
        beat.join()

    @pytest.mark.parametrize(
        "content",
        [
            "{",
            "[]",
            "null",
            "3",
            "{}",
            '{"host": 1}',
            '{"pid": "x"}',
            "[" * 99_999,
            "\xff",
            '{"host": "h", "pid": true}',
        ],
    )
    def test_a_damaged_lock_is_stale(self, tmp_path, content):
        (tmp_path / "lock.json").write_bytes(content.encode("latin-1"))
        with RunLock(tmp_path):
            pass
        changes = {"host": socket.gethostname(), "pid": "1", "started": "then", "heartbeat": "now", "process_start": 1}
        for name in changes:
            write_json(tmp_path / "lock.json", {n: v for n, v in changes.items() if n != name})
            with RunLock(tmp_path):
                pass

    def test_a_folder_in_the_place_of_the_lock_stays(self, tmp_path):
        (tmp_path / "lock.json").mkdir()
        with pytest.raises(InputError, match="is a folder, and none of ours"), RunLock(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


def hold_for_ever(folder: Path) -> None:
    with RunLock(folder):
        time.sleep(1000)


def train_with_bad_batches(settings: TrainConfig, bad: list[int]) -> Any:
    """The loss of these micro-batches of rank 0 is not a number, or on the way back infinite."""
    forward, calls = PretrainingModule.forward, iter(range(10_000))

    def poisoned(self: PretrainingModule, *arguments: Any, **named: Any) -> Any:
        losses: Any = forward(self, *arguments, **named)
        if self.training and next(calls) in bad and os.environ["RANK"] == "0":
            return losses._replace(mlm=losses.mlm * float("nan"))
        return losses

    PretrainingModule.forward = poisoned  # type: ignore[method-assign]
    return train(settings)


@pytest.mark.parametrize(
    ("precision", "zero"),
    [
        ("fp32", 0),
        ("bf16", 1),
        ("fp32", 3),
        ("bf16", 2),
    ],
)
@pytest.mark.slow
def test_a_bad_gradient_is_skipped_and_counted(store, tmp_path, precision, zero):
    settings = saving_run(store, tmp_path / "run", steps=5, precision=precision, zero=zero, save_every=0)
    state = run_ranks(2, train_with_bad_batches, settings, [2])[0]
    assert (state.step, state.steps_skipped, state.samples) == (5, 1, 6 * 8)
    assert [event["step"] for event in events(tmp_path / "run", "skip")] == [2]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["loss"] < 20 for line in lines if line["kind"] == "train")
    manifest = json.loads((checkpoint_dir(tmp_path / "run", 5) / "state.json").read_text())
    assert manifest["skipped"] == 1


@pytest.mark.slow
def test_too_many_skips_end_the_run_with_advice(store, tmp_path):
    settings = saving_run(store, tmp_path / "run", max_skips=3)
    with pytest.raises(RuntimeError, match=r"3 steps in a row were skipped.*Try a lower --lr"):
        run_ranks(2, train_with_bad_batches, settings, list(range(5, 1000)))
    assert latest_valid_checkpoint(tmp_path / "run") == checkpoint_dir(tmp_path / "run", 4)


def train_in_fp16(settings: TrainConfig) -> Any:
    """DeepSpeed's CPU accelerator refuses fp16, though all of it runs."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda self: True
    return train(settings)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [3])
def test_fp16_skips_until_the_loss_scale_fits_and_resumes_with_it(store, tmp_path, zero):
    ds_config = {
        "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 21, "hysteresis": 1, "min_loss_scale": 1},
        "zero_optimization": {"stage": zero},
    }
    (tmp_path / "ds.json").write_text(json.dumps(ds_config))
    settings = saving_run(store, tmp_path / "run", ds_config=tmp_path / "ds.json", steps=4, save_every=2, max_skips=30)
    state = run_ranks(2, train_in_fp16, settings)[0]
    skips = events(tmp_path / "run", "skip")
    assert state.steps_skipped == len(skips) > 3
    assert skips[-1]["loss_scale"] < skips[0]["loss_scale"]
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "run", cut)
    shutil.rmtree(checkpoint_dir(cut, 4))
    run_ranks(
        2, train_in_fp16, saving_run(store, cut, ds_config=tmp_path / "ds.json", steps=4, save_every=2, max_skips=30)
    )
    assert contents(checkpoint_dir(cut, 4)) == contents(checkpoint_dir(tmp_path / "run", 4))


KINDS = {"supervise.py": "supervisor", "--local_rank=": "rank", "deepspeed.launcher.launch": "launch.py"}


def kind_of(process: psutil.Process) -> str:
    """Which part of a launched run a process is; empty for others, such as git, or one that has just gone."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    found = (kind for part, kind in KINDS.items() if any(word.endswith(part) or part in word for word in words))
    return next(found, "deepspeed" if any(word.endswith("/deepspeed") for word in words) else "")


def family(process: subprocess.Popen) -> dict[str, list[psutil.Process]]:
    """The processes of a run that has begun to train, by kind."""
    found: dict[str, list[psutil.Process]] = {"rank": [], "launch.py": [], "deepspeed": [], "supervisor": []}
    for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        if kind := kind_of(member):
            found[kind].append(member)
    return found


def is_over(member: psutil.Process) -> bool:
    """Whether a process has ended; it may wait for a parent that reads its exit code."""
    try:
        return not member.is_running() or member.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
class TestLauncher:
    """The real command, its processes found in the process table."""

    def launch(self, store: Path, run: Path, console: int = subprocess.DEVNULL, ranks: int = 2) -> subprocess.Popen:
        return start(
            "bash", "launch/pretrain.sh", "--data", store, "--out", run, "--model", "bert-tiny",
            "--seq_len", "32", "--steps", "100000", "--lr", "1e-3", "--global_batch", "8", "--save_every", "0",
            "--eval_samples", "0", "--log_every", "1", env={"RANKS": str(ranks)}, stdout=console, stderr=console,
        )  # fmt: skip

    def training(self, process: subprocess.Popen, run: Path, ranks: int = 2) -> dict[str, list[psutil.Process]]:
        wait_for(lambda: steps_done(run) >= 3 or process.poll() is not None)
        found = family(process)
        assert {kind: len(members) for kind, members in found.items()} == {
            "rank": ranks, "launch.py": 1, "deepspeed": 1, "supervisor": 1,
        }  # fmt: skip
        return found

    def saved_once(self, run: Path) -> None:
        assert len(events(run, "stop")) == len(events(run, "save")) == 1
        assert latest_valid_checkpoint(run) == checkpoint_dir(run, events(run, "save")[0]["step"])

    def ends(self, process: subprocess.Popen, members: dict[str, list[psutil.Process]]) -> int:
        wait_for(lambda: all(is_over(member) for kind in members.values() for member in kind))
        return process.wait(PATIENCE)

    def test_a_terminal_that_is_closed_ends_nothing_until_all_get_its_signal(self, store, tmp_path):
        """Lines for a console that has died are lost and said to be; SIGHUP, which tells of it, saves once and stops,
        and leaves no orphan."""
        run = tmp_path / "run"
        reading, writing = os.pipe()
        process = self.launch(store, run, console=writing)
        os.close(writing)
        members = self.training(process, run)
        os.close(reading)
        done = steps_done(run)
        wait_for(lambda: steps_done(run) > done + 2)
        os.killpg(process.pid, signal.SIGHUP)
        assert self.ends(process, members) == STOPPED
        self.saved_once(run)
        assert (run / "log.txt").read_text().count("warning: the console cannot be written (Broken pipe)") == 1

    def test_kill_9_of_deepspeed_saves_and_leaves_no_orphan(self, store, tmp_path):
        process = self.launch(store, tmp_path / "run")
        members = self.training(process, tmp_path / "run")
        members["deepspeed"][0].kill()
        assert self.ends(process, members) == STOPPED
        self.saved_once(tmp_path / "run")

    def test_kill_9_of_the_supervisor_saves_and_leaves_no_orphan(self, store, tmp_path):
        """The kernel ends the launcher; what a rank then does is seen above."""
        process = self.launch(store, tmp_path / "run", ranks=1)
        members = self.training(process, tmp_path / "run", ranks=1)
        process.kill()
        assert self.ends(process, members) == -signal.SIGKILL
        self.saved_once(tmp_path / "run")
