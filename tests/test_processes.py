"""Processes and threads end: on a signal in their first moments, when whoever started them is killed, when they hang.

The launcher and its ranks are scripts of a few lines here, without torch; tests/test_faults.py has the real ones.
"""

import gc
import importlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import pretrain.loop
from data_prep.cli import ROOT, InputError
from data_prep.interpreter import importing
from data_prep.samples import mixture as mixtures
from data_prep.samples.mixture import BuildAbandonedError, Mixture
from data_prep.samples.sample_index import Sentences, build_index
from data_prep.sharding.ranks import rank_from_env
from pretrain import network
from pretrain.data import prefetch
from pretrain.placement import check_launch, take_place
from pretrain.settings.config import TrainConfig
from pretrain.stop import STOPPED
from pretrain.train import exit_code_of, train
from tests.launched import PATIENCE, start, wait_for
from tests.ranks import run_ranks, start_ranks
from tests.runs import tiny_run
from tests.stores import random_documents, store_of

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(1800)]

# What a rank is before its first step: it is watched, and says where it is.
RANK = """
    import ctypes, os, pathlib, sys, time
    sys.path[0] = ROOT
    from pretrain.stop import StopRequests
    stop = StopRequests()
    here, outcome = pathlib.Path(__file__).parent, pathlib.Path(os.environ.get("ZEROBERT_OUTCOME", "."))

    def stands(name):
        (here / f"{name}.partial").write_text(str(os.getpid()))
        (here / f"{name}.partial").rename(here / name)
"""
# What DeepSpeed's two processes are: the first starts the second and says its code, unless it was killed.
LAUNCHER = """
    import pathlib, subprocess, sys
    here = pathlib.Path(__file__).parent
    if "inner" in sys.argv:
        ranks = [subprocess.Popen([sys.executable, here / "rank.py", f"--local_rank={rank}"],
                                  env=dict(__import__("os").environ, LOCAL_RANK=str(rank))) for rank in range(2)]
        sys.exit(next((code for code in [rank.wait() for rank in ranks] if code), 0))
    code = subprocess.call([sys.executable, __file__, "inner"])
    sys.exit(max(code, 0))
"""


# What a rank may still say to a signal that ends it before it has begun.
ANSWER = re.compile(r"(SIG[A-Z0-9]+: stopping, there is nothing to save yet\n?)*")


def script(path: Path, *parts: str) -> Path:
    path.write_text("".join(textwrap.dedent(part) for part in parts).replace("ROOT", repr(str(ROOT))))
    return path


def supervised(folder: Path, rank: str) -> subprocess.Popen:
    """supervise.py over a launcher of two ranks that do what `rank` says."""
    script(folder / "rank.py", RANK, rank)
    launcher = script(folder / "launcher.py", LAUNCHER)
    return start(sys.executable, "launch/supervise.py", sys.executable, launcher, stderr=subprocess.PIPE, text=True)


WAITS = """
    stands(os.environ["LOCAL_RANK"])
    time.sleep(1000)
"""


def both_stand(folder: Path) -> list[psutil.Process]:
    """The launcher's processes and the ranks."""
    wait_for(lambda: (folder / "0").exists() and (folder / "1").exists())
    rank = psutil.Process(int((folder / "0").read_text()))
    inner = rank.parent()
    assert inner is not None
    outer = inner.parent()
    assert outer is not None
    return [outer, inner, rank, psutil.Process(int((folder / "1").read_text()))]


def are_over(processes: list[psutil.Process]) -> bool:
    return not any(is_alive(one) for one in processes)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


class TestKilledFromOutside:
    """kill -9 of any process of a run leaves none of them."""

    @pytest.mark.parametrize("victims", [["supervisor"], [0], [1], [0, 1], ["supervisor", 0, 1]])
    @pytest.mark.slow
    def test_nothing_stays(self, tmp_path, victims):
        supervisor = supervised(tmp_path, WAITS)
        processes = both_stand(tmp_path)
        for victim in victims:
            (supervisor if victim == "supervisor" else processes[victim]).send_signal(signal.SIGKILL)
        wait_for(lambda: are_over(processes))
        supervisor.wait(PATIENCE)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
    def test_a_signal_before_there_is_anything_to_save_is_a_stop(self, tmp_path, number):
        supervisor = supervised(tmp_path, WAITS)
        processes = both_stand(tmp_path)
        supervisor.send_signal(number)
        _, said = supervisor.communicate(timeout=PATIENCE)
        assert supervisor.returncode == STOPPED
        assert ANSWER.fullmatch(said)
        assert are_over(processes)


SAVES = """
    rank = os.environ["LOCAL_RANK"]
    stop.hold()
    stands(rank)
    while not stop.signal:
        time.sleep(0.01)
    time.sleep(0.3)
    (outcome / rank).write_text("75 2")
    stands(f"saved {rank}")
    sys.exit(75)
"""


def test_signals_that_come_together_are_one_and_leave_time_to_save(tmp_path):
    supervisor = supervised(tmp_path, SAVES)
    both_stand(tmp_path)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):  # as the threads of a killed parent send them
        supervisor.send_signal(number)
    assert supervisor.wait(PATIENCE) == STOPPED
    assert all((tmp_path / f"saved {rank}").exists() for rank in "01")


ENDS = """
    rank = os.environ["LOCAL_RANK"]
    if not (rank == "1" and SILENT):
        (outcome / rank).write_text(f"{CODE} 2")
    stands(rank)
    while not all((here / name).exists() for name in "01"):
        time.sleep(0.01)
    if rank == "1":
        LAST
    sys.exit(CODE)
"""


@pytest.mark.parametrize(
    ("code", "is_silent", "last", "expected"),
    [
        (0, False, "pass", 0),
        (STOPPED, False, "pass", STOPPED),
        (0, False, "os.abort()", 128 + signal.SIGABRT),  # after it had said that all is well
        (0, False, "os.kill(os.getpid(), 11)", 128 + signal.SIGSEGV),
        (0, True, "sys.exit(1)", 1),
    ],
)
def test_an_abnormal_end_is_not_hidden(tmp_path, code, is_silent, last, expected):
    rank = ENDS.replace("CODE", str(code)).replace("SILENT", str(is_silent)).replace("LAST", last)
    assert supervised(tmp_path, rank).wait(PATIENCE) == expected


DIES_ONCE = """
    rank, again = os.environ["LOCAL_RANK"], (here / "again").exists()
    stands(f"{rank} {again}")
    if rank == "1" and not again:
        while not (here / "0 False").exists():
            time.sleep(0.01)
        stands("again")
        os.kill(os.getpid(), 9)
    if not again:
        while not (here / "again").exists():
            time.sleep(0.01)
        sys.exit(0)
    (outcome / rank).write_text("0 2")
"""


@pytest.mark.parametrize(("restarts", "code"), [("1", 0), ("0", 128 + signal.SIGKILL)])
@pytest.mark.slow
def test_a_run_whose_rank_was_killed_is_started_again(tmp_path, monkeypatch, restarts, code):
    monkeypatch.setenv("RESTARTS", restarts)
    supervisor = supervised(tmp_path, DIES_ONCE)
    assert supervisor.wait(PATIENCE) == code
    assert (tmp_path / "0 True").exists() == (code == 0)


@pytest.mark.parametrize("restarts", ["nan", "-1", "x", "1" * 23])
def test_restarts_must_be_a_number(restarts):
    command = [sys.executable, "launch/supervise.py", "false"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | {"RESTARTS": restarts}, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, f"error: RESTARTS={restarts} is not a number of restarts\n")


class TestFirstMoments:
    """A rank before its first step."""

    @pytest.mark.parametrize("numbers", [[15], [2], [10], [1], [2, 2], [15, 15]])
    def test_a_signal_ends_it_orderly_and_without_a_traceback(self, tmp_path, numbers):
        work = 'try:\n    stands("it")\n    time.sleep(1000)\nfinally:\n    stands("left orderly")\n'
        rank = start(sys.executable, script(tmp_path / "rank.py", RANK, work), stderr=subprocess.PIPE, text=True)
        wait_for((tmp_path / "it").exists)
        for number in numbers:
            rank.send_signal(number)
        _, said = rank.communicate(timeout=PATIENCE)
        assert rank.returncode == STOPPED
        assert ANSWER.fullmatch(said)
        assert (tmp_path / "left orderly").exists()

    def test_a_second_signal_while_the_interpreter_ends_changes_no_code(self, tmp_path):
        work = """
            class Last:
                def __del__(self, kill=os.kill, pid=os.getpid()):
                    kill(pid, 2)  # when handlers of Python have gone

            sys.last = Last()
            stands("it")
            time.sleep(1000)
        """
        rank = start(sys.executable, script(tmp_path / "rank.py", RANK, work), stderr=subprocess.DEVNULL)
        wait_for((tmp_path / "it").exists)
        rank.send_signal(signal.SIGINT)
        assert rank.wait(PATIENCE) == STOPPED

    @pytest.mark.slow
    def test_it_ends_even_in_a_library_that_does_not_return(self, tmp_path):
        work = """
            mutex = ctypes.create_string_buffer(64)
            libc = ctypes.CDLL(None)
            libc.pthread_mutex_lock(mutex)
            stands("it")
            libc.pthread_mutex_lock(mutex)
        """
        rank = start(sys.executable, script(tmp_path / "rank.py", RANK, work), stderr=subprocess.PIPE, text=True)
        wait_for((tmp_path / "it").exists)
        rank.send_signal(signal.SIGTERM)
        _, said = rank.communicate(timeout=PATIENCE)
        assert rank.returncode == STOPPED
        assert ANSWER.fullmatch(said)

    def test_nohup_stays_in_force(self, tmp_path):
        work = 'stands("it")\ntime.sleep(1)\nstands("later")\ntime.sleep(1000)\n'
        rank = start("nohup", sys.executable, script(tmp_path / "rank.py", RANK, work), stderr=subprocess.DEVNULL)
        wait_for((tmp_path / "it").exists)
        rank.send_signal(signal.SIGHUP)
        wait_for((tmp_path / "later").exists)
        rank.send_signal(signal.SIGTERM)
        assert rank.wait(PATIENCE) == STOPPED


class TestStuck:
    """A rank that has not begun to train and makes no progress."""

    WORK = """
        import pretrain.watchdog
        pretrain.watchdog.STARTING_SECONDS = 0
        watchdog = pretrain.watchdog.Watchdog(1.0)
        stands("it")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            burning = time.thread_time() + AT_ONCE
            while time.thread_time() < burning:
                pass
            time.sleep(0.05)
        sys.exit(0)
    """

    @pytest.mark.parametrize(("at_once", "code"), [pytest.param(0.03, 0, marks=pytest.mark.slow), (0.0, 1)])
    def test_it_is_ended_unless_it_works(self, tmp_path, at_once, code):
        work = self.WORK.replace("AT_ONCE", str(at_once))
        rank = start(sys.executable, script(tmp_path / "rank.py", RANK, work), stderr=subprocess.PIPE, text=True)
        _, said = rank.communicate(timeout=PATIENCE)
        assert rank.returncode == code
        assert ("Timeout" in said) == bool(code)


class TestThreads:
    """None is left when the interpreter ends."""

    def names(self) -> list[str]:
        return [
            thread.name for thread in threading.enumerate() if thread.name in ("prefetch", "index", "stop", "watchdog")
        ]

    def test_prefetch_is_joined_when_it_is_closed(self):
        items = prefetch(iter(range(10**9)))
        assert next(items) == 0
        assert self.names() == ["prefetch"]
        items.close()
        assert self.names() == []

    def test_what_is_being_made_is_hurried_when_it_is_closed(self):
        hurry = threading.Event()

        def source() -> Iterator[int]:
            yield 0
            hurry.wait()
            yield 1

        items = prefetch(source(), at_end=hurry.set)
        assert next(items) == 0
        items.close()
        assert self.names() == []

    def test_an_index_that_nobody_waits_for_is_given_up(self, tmp_path, monkeypatch):
        mixture = Mixture([store_of(tmp_path, random_documents(30))], [1.0], seq_len=32, objective="nsp", seed=0)
        begun = threading.Event()

        def endless(sentences: Any, *, check_wanted: Callable[[], None], **settings: Any) -> Any:
            begun.set()
            while True:
                check_wanted()
                time.sleep(0.01)

        monkeypatch.setattr(mixtures, "build_index", endless)
        mixture.prefetch_epoch(1)
        assert begun.wait(PATIENCE)
        assert self.names() == ["index"]
        mixture.abandon()
        assert self.names() == []
        with pytest.raises(BuildAbandonedError):
            mixture.epoch(0)

    @pytest.mark.slow
    def test_a_program_ends_though_its_threads_were_not_closed(self, tmp_path):
        code = """
            import sys, time
            from pathlib import Path
            from pretrain.data import prefetch
            from data_prep.samples import mixture as mixtures
            from data_prep.store import Store

            def endless(sentences, *, check_wanted, **settings):
                while True:
                    check_wanted()
                    time.sleep(0.01)

            mixture = mixtures.Mixture([Store.open(Path(sys.argv[1]))], [1.0], seq_len=32, objective="nsp", seed=0)
            mixtures.build_index = endless
            mixture.prefetch_epoch(1)
            items = prefetch(iter(range(10**9)))
            next(items)
            sys.keep = items
        """
        store = store_of(tmp_path / "store", random_documents(30)).folder
        command = [sys.executable, "-c", textwrap.dedent(code), str(store)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        assert (result.returncode, result.stderr) == (0, "")


def train_with_slow_index(settings: TrainConfig, slow_rank: str, busy: bool) -> Any:
    """Before its first step one rank works, or does nothing, for much longer than a hang may last."""
    samples_at = pretrain.loop.load_steps

    def slow(*arguments: Any) -> Iterator[Any]:
        until = time.monotonic() + (3 * settings.hang_timeout if busy else 1e6)
        while os.environ["RANK"] == slow_rank and time.monotonic() < until:
            burning = time.thread_time() + 0.03
            while busy and time.thread_time() < burning:
                pass
            time.sleep(0.05)
        return samples_at(*arguments)

    pretrain.loop.load_steps = slow  # type: ignore[assignment]
    return train(settings)


def how_it_ended(rank: tuple[Any, Any]) -> int | str:
    """The exit code of a rank, or the error that it met when another one ended first: it trains no more."""
    process, connection = rank
    assert connection.poll(PATIENCE)
    try:
        went_well, value = connection.recv()
    except EOFError:
        process.join(PATIENCE)
        return process.exitcode
    assert not went_well
    return value


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40)).folder


@pytest.mark.slow
class TestHangs:
    """Work that takes long is none, on the rank that does it and on those that wait for it."""

    @pytest.mark.parametrize("slow_rank", ["0", "1"])
    def test_an_index_that_takes_long_is_none(self, store, tmp_path, slow_rank):
        settings = tiny_run(store, tmp_path / "run", steps=3, global_batch=8, hang_timeout=2.0)
        states = run_ranks(2, train_with_slow_index, settings, slow_rank, True)
        assert [state.step for state in states] == [3, 3]

    @pytest.mark.parametrize("stuck_rank", ["0", "1"])
    def test_a_rank_that_is_stuck_ends_them_all(self, store, tmp_path, stuck_rank):
        settings = tiny_run(store, tmp_path / "run", steps=3, global_batch=8, hang_timeout=2.0)
        ranks = start_ranks(2, train_with_slow_index, settings, stuck_rank, False)
        try:
            assert [how_it_ended(rank) for rank in ranks][int(stuck_rank)] == 1
        finally:
            for process, _ in ranks:
                process.kill()


class TestEnvironment:
    """What launchers say in variables."""

    NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")

    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize("value", ["nan", "-1", "x", "1" * 23, "", "1.5", "٣"])
    def test_a_rank_that_is_no_number_is_refused_by_name(self, name, value):
        with pytest.raises(InputError, match=f"{name}="):
            check_launch({name: value})

    def test_every_rank_says_what_is_wrong_with_its_own_place(self, monkeypatch, capsys):
        for rank in ("x", "2"):
            monkeypatch.setenv("RANK", rank)
            assert exit_code_of([], None) == 2  # type: ignore[arg-type]
            assert capsys.readouterr().err.startswith(f"error: RANK='{rank}' is no whole number from 0 to 0")

    def test_a_rank_lies_below_the_number_of_ranks(self):
        check_launch({"RANK": "1", "WORLD_SIZE": "2"})
        with pytest.raises(InputError, match="RANK='2'"):
            check_launch({"RANK": "2", "WORLD_SIZE": "2"})

    @pytest.mark.parametrize("address", ["", "nowhere.invalid", "a..b", "a" * 300])
    def test_a_first_node_that_nobody_knows_is_refused_by_name(self, monkeypatch, address):
        monkeypatch.setattr(network, "ADDRESS_SECONDS", 0.0)
        take_place({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": address})  # a rank alone meets nobody
        take_place({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
        with pytest.raises(InputError, match=f"MASTER_ADDR='{address}' is no host"):
            take_place({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": address})

    @pytest.mark.parametrize(
        "names",
        [
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            ("PMI_RANK", "PMI_SIZE"),
            ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
            ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
        ],
    )
    @pytest.mark.parametrize(
        ("rank", "world"), [("nan", "2"), ("-1", "2"), ("0", "x"), ("0", "1" * 23), ("2", "2"), ("0", "0")]
    )
    def test_the_share_of_a_rank_that_cannot_be_is_refused(self, names, rank, world):
        with pytest.raises(InputError, match=f"{names[0]}=|{names[1]}="):
            rank_from_env(dict(zip(names, (rank, world), strict=True)))

    def test_an_array_with_gaps_is_refused(self):
        # --array=1,5,7: three tasks, of which nobody would do the parts of the second and third rank.
        variables = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "1", "SLURM_ARRAY_TASK_COUNT": "3"}
        assert rank_from_env(variables | {"SLURM_ARRAY_TASK_ID": "1"}) == (0, 3)
        with pytest.raises(InputError, match="one range"):
            rank_from_env(variables | {"SLURM_ARRAY_TASK_ID": "5"})
        with pytest.raises(InputError, match="SLURM_ARRAY_TASK_COUNT"):
            rank_from_env({"SLURM_ARRAY_TASK_ID": "5"})

    @pytest.mark.parametrize("value", ["nan", "-1", "soon", "1" * 23])
    def test_the_end_of_a_job_is_a_number(self, monkeypatch, tmp_path, value):
        monkeypatch.setenv("SLURM_JOB_END_TIME", value)
        with pytest.raises(InputError, match="SLURM_JOB_END_TIME="):
            tiny_run(tmp_path, tmp_path / "run")


def test_an_index_is_the_same_whether_it_may_be_given_up_or_not(tmp_path):
    store = store_of(tmp_path, random_documents(30))
    sentences, calls = Sentences.of(store, False), []
    watched = build_index(
        sentences, seq_len=32, objective="nsp", seed=0, pass_number=0, check_wanted=lambda: calls.append(1)
    )
    assert calls
    assert (watched == build_index(sentences, seq_len=32, objective="nsp", seed=0, pass_number=0)).all()


def test_nothing_is_searched_for_garbage_while_importing():
    sys.modules.pop("colorsys", None)
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        importlib.import_module("colorsys")
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    assert frozen > before
    work: list[list[int]] = [[] for _ in range(1000)]
    with importing():
        importlib.import_module("colorsys")  # was there before
    assert work
    assert gc.get_freeze_count() <= frozen, "work is searched as ever"
