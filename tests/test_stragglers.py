"""Who holds up the others: told from the time that ranks spend in collectives, by rank and host, once."""

import os
import socket
import statistics
import time
from pathlib import Path

import pytest

from pretrain import loop
from pretrain.monitor.stragglers import IN_A_ROW, Pace, Straggler, StragglerWatch, pace_of
from pretrain.settings.config import TrainConfig
from pretrain.train import train
from tests.ranks import run_ranks
from tests.runs import lines_of, tiny_run
from tests.stores import random_documents, store_of


def test_the_slowest_waits_least():
    pace = pace_of([10.0, 10.0, 10.0], [6.0, 1.0, 5.0])
    assert (pace.slowest_rank, pace.slowdown, pace.collectives) == (1, 2.0, 0.4)
    assert pace_of([10.0, 10.0], [0.0, 0.0]) == Pace(0, 1.0, 0.0)


def test_one_is_told_of_when_it_lasts_and_when_it_is_over():
    watch = StragglerWatch()
    slow, well = Pace(1, 1.6, 0.2), Pace(1, 1.1, 0.05)
    assert [watch.look(pace) for pace in (slow, slow, well, *[slow] * 2)] == [None] * 5  # an accident
    assert watch.look(slow) == Straggler(1, 1.6, is_over=False)
    assert [watch.look(slow) for _ in range(9)] == [None] * 9
    assert [watch.look(well) for _ in range(IN_A_ROW)][-1] == Straggler(1, 1.1, is_over=True)
    assert [watch.look(well) for _ in range(9)] == [None] * 9
    other = Pace(0, 1.6, 0.2)
    assert [watch.look(pace) for pace in (slow, slow, slow, other, other, other)][-1] == Straggler(
        0, 1.6, is_over=False
    )


def train_with_a_slow_rank(settings: TrainConfig, slow_rank: int) -> None:
    """One rank rests three times as long as it computes, however busy the machine is."""
    step, seconds = loop.train_step, [0.1]

    def slow_step(*arguments):
        if int(os.environ["RANK"]) == slow_rank:
            time.sleep(3 * seconds[-1])
        began = time.perf_counter()
        result = step(*arguments)
        seconds.append(time.perf_counter() - began)
        return result

    loop.train_step = slow_step
    train(settings)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_a_rank_that_sleeps_is_named_with_its_host(tmp_path: Path, zero: int):
    store = store_of(tmp_path / "store", random_documents(20)).folder
    settings = tiny_run(store, tmp_path / "run", steps=7, global_batch=8, zero=zero)
    run_ranks(2, train_with_a_slow_rank, settings, 1)
    lines = lines_of(settings.out, "train")
    assert statistics.mode(line["slowest_rank"] for line in lines) == 1
    assert statistics.median(line["slowdown"] for line in lines) > 1.25
    assert all(0 < line["collectives"] <= 1 for line in lines)
    said = [line for line in (settings.out / "log.txt").read_text().splitlines() if " is slow: " in line]
    assert said[0].partition(" is slow: ")[0] == f"warning: rank 1 on {socket.gethostname()}"


def test_a_rank_alone_is_compared_with_nobody(tmp_path: Path):
    store = store_of(tmp_path / "store", random_documents(20)).folder
    settings = tiny_run(store, tmp_path / "run", steps=1, global_batch=4)
    run_ranks(1, train, settings)
    assert not {"slowest_rank", "slowdown", "collectives"} & lines_of(settings.out, "train")[0].keys()
