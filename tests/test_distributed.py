"""Ranks that are not alike, as on two nodes: refused before anything is written, naming who has what."""

import contextlib
import io
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import pretrain.rank_checks
from data_prep.cli import InputError
from pretrain import distributed
from pretrain.checkpoints.format import ModelIdentity
from pretrain.network import wait_for_first_rank
from pretrain.run_record import RunRecord
from pretrain.settings.config import TrainConfig
from pretrain.stop import StopRequests
from pretrain.timetable import Timetable
from pretrain.train import main, train
from pretrain.zero.engine import init_distributed
from tests.ranks import free_port, run_ranks
from tests.runs import tiny_run
from tests.stores import random_documents, store_of


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(20)).folder


def test_where_ranks_cannot_meet_is_one_line_without_frames(monkeypatch):
    def port_is_taken(*_, **__):
        raise torch.distributed.DistNetworkError("address already in use\nframe #0: c10::Error")

    monkeypatch.setattr(torch.distributed, "rendezvous", port_is_taken)
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for name, value in rank.items():  # all that init_distributed() would set, and nobody would unset
        monkeypatch.setenv(name, value)
    with pytest.raises(
        InputError, match=r"^MASTER_ADDR=127.0.0.1, MASTER_PORT=29511: .*address already in use\)"
    ) as told:
        init_distributed()
    assert "frame" not in str(told.value)


def meet_late(seconds_of: dict[int, float], interfaces: dict[int, str]) -> str:
    """A rank that comes so late, or never, and announces itself by that interface; others have little patience."""
    distributed.MEET_SECONDS, distributed.CONNECT_SECONDS = 2.0, 2.0
    os.environ["ZEROBERT_MEET_SECONDS"] = "2"  # for a first rank that has gone
    rank = int(os.environ["RANK"])
    if rank in interfaces:
        os.environ["GLOO_SOCKET_IFNAME"] = interfaces[rank]
    time.sleep(seconds_of.get(rank, 0.0))
    try:
        init_distributed()
    except InputError as error:
        return str(error)
    time.sleep(3.0 * rank)  # longer than they have for each other at the start
    return str(distributed.all_reduce_max(rank, distributed.gloo_group()))


def test_a_rank_that_does_not_come_is_named():
    first, second = run_ranks(2, meet_late, {1: 5.0}, {})
    assert "rank 1 of 2 did not come within 2 seconds" in first or "1/2 clients joined" in first
    assert "MASTER_PORT=" in second


def test_a_first_rank_that_never_comes_is_named_by_its_address():
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ZEROBERT_MEET_SECONDS": "0"}
    with pytest.raises(InputError, match=r"nobody has answered .* rank 0 did not"):
        wait_for_first_rank(address)
    with pytest.raises(InputError, match="ZEROBERT_MEET_SECONDS='soon'"):
        wait_for_first_rank(address | {"ZEROBERT_MEET_SECONDS": "soon"})
    with socket.create_server(("127.0.0.1", int(address["MASTER_PORT"]))):
        wait_for_first_rank(address)


def test_ranks_that_have_met_may_take_their_time():
    assert run_ranks(2, meet_late, {}, {}) == ["1", "1"]


def stopping_steps(store: Path, asked_in: dict[int, int]) -> list[str]:
    """Go through steps of which nothing is computed; ranks are asked to stop in steps of theirs. What each was told."""
    init_distributed()
    rank, steps = dist.get_rank(), []
    stop = StopRequests(is_rank=False)
    stop.hold()
    timetable = Timetable(config(store, store, save_minutes=1e-9 * (rank == 0)), stop)
    for step in range(6):
        timetable.ask(seconds=100.0 * rank + step)
        if asked_in.get(rank) == step:
            signal.raise_signal(signal.SIGUSR1)
        steps.append(timetable.told())
        dist.barrier()  # as gradients make them wait for each other
    assert [told.seconds for told in steps] == [*range(6)]  # by rank 0's clock
    assert all(told.save and not told.evaluate for told in steps)
    assert timetable.stop_reason() == "SIGUSR1"
    stop.close()
    fresh = StopRequests(is_rank=False)
    again = Timetable(config(store, store), fresh)  # of another run in this process: old notices are none of its own
    again.ask(0.0)
    assert again.told().stop == ""
    fresh.close()
    return [told.stop for told in steps]


@pytest.mark.parametrize(("world", "asked_in"), [(1, {0: 1}), (2, {0: 1}), (4, {3: 1, 2: 2})])
def test_a_request_in_a_step_stops_all_ranks_after_the_next(tmp_path, world, asked_in):
    first, *others = run_ranks(world, stopping_steps, tmp_path, asked_in)
    assert others == [first] * (world - 1)
    # After that step, where the others were asked before rank 0 had begun it.
    assert first in (["", ""] + ["SIGUSR1"] * 4, [""] + ["SIGUSR1"] * 5)


@pytest.mark.slow
def test_ranks_that_cannot_connect_to_each_other_end_soon():
    """As where one node announces itself by an address that the other cannot reach."""
    answers = run_ranks(2, meet_late, {}, {1: "none"})
    assert all("cannot connect to each other" in answer for answer in answers)
    assert "rank 1 on " in answers[1]


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    return tiny_run(store, out, **dict(steps=1, global_batch=4) | changes)


def answers(*commands: tuple[TrainConfig, TrainConfig]) -> list[str]:
    """What rank 0 and rank 1, each with its own command, are refused with."""
    pretrain.rank_checks.SHARED_WITHIN = 0.5
    found = []
    for each in commands:
        try:
            train(each[int(os.environ["RANK"])])
            found.append("trained")
        except (InputError, distributed.OtherRankError) as error:
            found.append(str(error))
    return found


@pytest.mark.slow
def test_ranks_with_other_stores_settings_or_folders_are_refused(store, tmp_path):
    other = store_of(tmp_path / "other", random_documents(20, seed=1)).folder
    copied = tmp_path / "copied"
    shutil.copytree(store, copied)
    run, elsewhere, held = tmp_path / "run", tmp_path / "elsewhere", tmp_path / "held"
    held.mkdir()
    commands = [
        (config(store, run), config(other, run)),
        (config(store, run), config(store, run, seed=1, lr=0.5)),
        (config(store, run), config(store, elsewhere)),
        (config(store, run), config(copied, run)),  # the same store, elsewhere
    ]
    first, second = run_ranks(2, answers, *commands)
    assert first[:2] == second[:2]
    assert "store 1 is " in first[0]
    assert " on rank 0 (" in first[0]
    assert " on rank 1 (" in first[0]
    for part in ("--seed is 0 on rank 0", "1 on rank 1", "DeepSpeed setting optimizer.params.lr is 0.001 on rank 0"):
        assert part in first[1]
    assert "rank 1 failed" in first[2]
    assert "is not the folder that rank 0 on" in second[2]
    assert not elsewhere.exists()
    assert first[3] == second[3] == "trained"


def compare(what: dict[str, Any], different: dict[int, dict[str, Any]]) -> str:
    init_distributed()
    try:
        distributed.check_same_on_all_ranks(what | different.get(int(os.environ["RANK"]), {}))
    except InputError as error:
        return str(error)
    return ""


def test_a_difference_is_told_by_rank():
    what = {"torch": "2.13.0", "python": "3.11"}
    assert run_ranks(3, compare, what, {}) == ["", "", ""]
    messages = run_ranks(3, compare, what, {2: {"torch": "2.12.1", "apex": 1}})
    assert len(set(messages)) == 1
    assert 'torch is "2.13.0" on ranks 0 to 1 (' in messages[0]
    assert '"2.12.1" on rank 2 (' in messages[0]
    assert "apex is absent on ranks 0 to 1" in messages[0]
    assert "python" not in messages[0]


def speak(failing: list[int]) -> str:
    init_distributed()
    text = io.StringIO()
    caught = contextlib.suppress(InputError, distributed.OtherRankError)
    with contextlib.redirect_stderr(text), caught, distributed.all_ranks_or_none("a store"):
        if int(os.environ["RANK"]) in failing:
            raise InputError("no such store")
    return text.getvalue()


def test_wrong_input_of_a_later_rank_is_said_once():
    """The first rank's words are main()'s."""
    silent, lowest, other = run_ranks(3, speak, [1, 2])
    assert silent == other == ""
    assert lowest.startswith("error: rank 1 on ")
    assert "no such store" in lowest
    assert run_ranks(3, speak, [0, 2]) == ["", "", ""]


@pytest.mark.parametrize(("local_rank", "says"), [("0", True), ("1", False)])
def test_wrong_input_of_another_node_is_said_there(tmp_path, monkeypatch, capsys, local_rank, says):
    """Before ranks have joined the first rank cannot know of it."""
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"), "--model", "bert-tiny"])
    error = capsys.readouterr().err
    assert ("error: rank 9 on " in error and "nowhere does not exist" in error) == says


def test_weights_to_start_from_and_pairs_to_score_are_compared():
    record: RunRecord = {
        "train": {}, "phases": [], "stores": [], "versions": {}, "python": "3",
        "init_sha256": "ab" * 32, "eval_pairs_sha256": "cd" * 32,
    }  # fmt: skip
    shared = pretrain.rank_checks.what_ranks_share(record, [], ModelIdentity({}, "", 0))
    assert (shared["--init_from"], shared["--eval_pairs"]) == ("ab" * 6, "cd" * 6)
