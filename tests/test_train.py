"""The command: what it leaves behind, and how it answers to wrong input."""

import io
import json
import math
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import BertForPreTraining

import pretrain.trainer as train_module
from data_prep.cli import InputError
from data_prep.samples.mixture import Mixture
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.data import sample_stream
from pretrain.settings.config import TrainConfig
from pretrain.setup import prepare
from pretrain.state import DataPosition
from pretrain.train import main, train
from pretrain.zero import partition
from tests.ranks import run_ranks
from tests.runs import lines_of, tiny_run
from tests.stores import random_documents, store_of

TRAIN_KEYS = (
    "kind step samples tokens loss mlm_loss nsp_loss mlm_acc nsp_acc lr grad_norm "
    "tokens_per_s mfu padding_saved memory_gb seconds"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder, sources = tmp_path_factory.mktemp("store"), ("c/wiki-0.txt", "c/laws.txt", "c/wiki-1.txt")
    return store_of(folder, random_documents(60), held_out={3, 16, 31}, sources=sources).folder


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    settings = dict(steps=6, warmup=2, global_batch=12, eval_every=3, eval_samples=16, log_every=2)
    return tiny_run(store, out, **settings | changes)


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run_ranks(2, train, config(store, out, dropout=0.0))
    return out


def test_metrics_hold_what_scripts_rely_on(finished):
    lines = lines_of(finished, "train")
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert set(TRAIN_KEYS.split()) <= lines[0].keys()
    assert lines[-1]["samples"] == 72
    assert all(0 < line["mlm_loss"] < 10 and 0 <= line["nsp_acc"] <= 1 and line["tokens_per_s"] > 0 for line in lines)
    assert [line["lr"] for line in lines] == pytest.approx([1e-3 * 2 / 3, 1e-3 * 3 / 4, 1e-3 / 4])
    evaluations = lines_of(finished, "eval")
    assert [line["step"] for line in evaluations] == [3, 6]
    assert {"mlm_loss", "mlm_acc", "perplexity", "nsp_acc"} <= evaluations[0].keys()


def test_evaluation_is_also_by_source(finished):
    line = lines_of(finished, "eval")[-1]
    assert set(line["by_source"]) == {"laws", "wiki"}
    for name in ("mlm_loss", "mlm_acc", "nsp_acc", "samples"):
        values = [scores[name] for scores in line["by_source"].values()]
        assert name == "samples" or min(values) <= line[name] <= max(values), name
    assert sum(scores["samples"] for scores in line["by_source"].values()) == 11
    assert f"by source: laws {line['by_source']['laws']['mlm_loss']:.3f}" in (finished / "log.txt").read_text()


def test_log_begins_with_what_will_run_and_ends_with_what_came_out(finished):
    log = (finished / "log.txt").read_text()
    start, end = log.partition("\nstep 2/6")[0], log.rpartition("What came out")[2]
    assert "What will run" in start
    for part in ("bert-tiny", "12 samples = 2 ranks", "AdamW", "fp32", "stage 1", "a new run", "2 ranks, each on"):
        assert part in start
    evaluations = lines_of(finished, "eval")
    best = min(evaluations, key=lambda line: line["mlm_loss"])
    assert f"held-out loss {best['mlm_loss']:.4f}" in end
    assert "finished at step 6 of 6" in end
    assert f"python -m pretrain.report {finished} --out {finished / 'report'}" in end
    assert "python -m pretrain.export" in end


def test_tensorboard_holds_the_same_numbers(finished):
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("train/mlm_loss")}
    assert found == pytest.approx({line["step"]: line["mlm_loss"] for line in lines_of(finished, "train")}, rel=1e-5)
    assert [event.step for event in events.Scalars("eval/perplexity")] == [3, 6]


def test_config_json_has_all_that_repeats_the_run(finished, store):
    record = json.loads((finished / "config.json").read_text())
    assert record["train"]["seed"] == 0
    assert record["deepspeed"]["train_batch_size"] == 12
    assert record["stores"][0]["folder"] == str(store)
    assert "deepspeed" in record["versions"]
    assert (finished / "vocab/tokenizer.json").is_file()
    assert "held out, step 6" in (finished / "log.txt").read_text()


@pytest.mark.parametrize(("world", "zero"), [(1, 0), (3, 3)])
@pytest.mark.slow
def test_losses_and_evaluation_do_not_depend_on_ranks(finished, store, tmp_path, world, zero):
    run_ranks(world, train, config(store, tmp_path / "run", dropout=0.0, zero=zero))
    for kind, keys in (("train", ("loss", "mlm_acc", "grad_norm", "tokens")), ("eval", ("mlm_loss", "nsp_acc"))):
        for found, expected in zip(lines_of(tmp_path / "run", kind), lines_of(finished, kind), strict=True):
            assert [found[key] for key in keys] == pytest.approx([expected[key] for key in keys], rel=1e-4)
            for source, scores in expected.get("by_source", {}).items():
                assert found["by_source"][source] == pytest.approx(scores, rel=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(finished, store, tmp_path):
    run_ranks(2, train, config(store, tmp_path / "again", dropout=0.0))
    run_ranks(2, train, config(store, tmp_path / "other", dropout=0.0, seed=1))
    losses = [
        [line["loss"] for line in lines_of(run, "train")] for run in (finished, tmp_path / "again", tmp_path / "other")
    ]
    assert losses[0] == losses[1] != losses[2]


def test_continuing_a_finished_run_changes_nothing(finished, store):
    before = lines_of(finished, "train")
    state = run_ranks(2, train, config(store, finished, dropout=0.0))[0]
    assert state.step == 6
    assert lines_of(finished, "train") == before


@pytest.mark.parametrize(("objective", "zero"), [("mlm", 3), ("sop", 1)])
@pytest.mark.slow
def test_other_objectives_train(store, tmp_path, objective, zero):
    run_ranks(2, train, config(store, tmp_path / "run", objective=objective, zero=zero))
    last = lines_of(tmp_path / "run", "train")[-1]
    assert (last["nsp_loss"] == 0) == (objective == "mlm")


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["word", "span"])
def test_other_masks_train(store, tmp_path, unit):
    run_ranks(2, train, config(store, tmp_path / "run", mask_unit=unit, mask_rate=0.3, log_every=1))
    losses = [line["mlm_loss"] for line in lines_of(tmp_path / "run", "train")]
    assert losses[0] == pytest.approx(math.log(64), rel=0.05)  # of 64 entries none is known yet
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.slow
def test_several_stores_with_weights(store, tmp_path):
    other = store_of(tmp_path / "other", random_documents(30, seed=9), held_out={1}).folder
    settings = config(store, tmp_path / "run", data=(str(store), f"{other}:2.5"))
    # Of what is trained on, two epochs are two passes over the one store and five over the other.
    stream = sample_stream(prepare(settings, 1), DataPosition())
    per_pass = [Mixture([opened], [1], seq_len=settings.seq_len, objective="nsp", seed=settings.seed).epoch(0).size
                for opened in stream.mixture.stores]  # fmt: skip
    drawn = stream.take(2 * per_pass[0] + 5 * per_pass[1])
    assert np.bincount(drawn.store) == pytest.approx([2 * per_pass[0], 5 * per_pass[1]], abs=0.1 * sum(per_pass))
    run_ranks(1, train, settings)
    assert lines_of(tmp_path / "run", "train")[-1]["step"] == 6
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert [entry["passes"] for entry in record["stores"]] == [1.0, 2.5]


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.slow
def test_bf16_trains_as_fp32_does(store, finished, tmp_path, zero):
    run_ranks(2, train, config(store, tmp_path / "run", precision="bf16", zero=zero, dropout=0.0))
    losses = [[line["mlm_loss"] for line in lines_of(run, "train")] for run in (tmp_path / "run", finished)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


WRONG = {
    "no store": (["--data", "nowhere"], "nowhere does not exist"),
    "no model": (["--model", "None"], "--model"),
    "both models": (["--init_from", "x"], "give one of --model"),
    "unknown option": (["--stepz", "3"], "--stepz"),
    "weight": (["--data", "{store}:heavy"], "weight 'heavy'"),
    "too long": (["--seq_len", "1024"], "beyond the model's 512 positions"),
    "warmup": (["--warmup", "50"], "--warmup 50 must lie in"),
    "batch": (["--global_batch", "10", "--micro_batch", "4"], "10 samples"),
    "16 bit": (["--precision", "bf16", "--zero", "0"], "stage 0"),
    "fp16 on a CPU": (["--precision", "fp16"], "fp16 needs a GPU"),
    "no JSON": (["--ds_config", "nowhere.json"], "nowhere.json"),
    "checkpoint": (["--resume", "nowhere"], "nowhere/manifest.json"),
}


def answers_of(requests: dict[str, list[str]]) -> dict[str, tuple[Any, str]]:
    """The exit code and the message of the command to each list of words."""
    answers = {}
    for name, words in requests.items():
        with redirect_stderr(io.StringIO()) as said:
            try:
                main(words)
                code: Any = 0
            except SystemExit as end:
                code = end.code
        answers[name] = (code, said.getvalue())
    return answers


@pytest.fixture(scope="module")
def answers(store, tmp_path_factory) -> dict[str, tuple[Any, str]]:
    """The command's answer to every wrong input, all from one process."""
    out = tmp_path_factory.mktemp("wrong") / "run"
    right = ["--data", str(store), "--out", str(out), "--model", "bert-tiny", "--steps", "5"]
    requests = {name: right + [part.format(store=store) for part in wrong] for name, (wrong, _) in WRONG.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        (found,) = run_ranks(1, answers_of, requests)
    assert not out.exists(), "wrong input must leave nothing behind"
    return found


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_one_clear_message_and_code_2(answers, name):
    code, message = answers[name]
    assert code == 2
    assert WRONG[name][1] in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_hours_measure_the_run_and_its_schedule(store, tmp_path):
    changes = {"hours": 2.5 / 3600, "steps": 10**6, "warmup": 0.1, "log_every": 1, "eval_every": 0, "lr": 1.0e-3}
    stopped, *_ = run_ranks(2, train, config(store, tmp_path / "run", **changes))
    lines = lines_of(tmp_path / "run", "train")
    rates = [line["lr"] for line in lines]
    assert stopped.seconds >= 2.5
    assert rates[-1] < max(rates), "the schedule has come down with the time"
    assert [line["reason"] for line in lines_of(tmp_path / "run", "event") if line["event"] == "stop"]
    again, *_ = run_ranks(1, train, config(store, tmp_path / "run", **changes))
    assert again.step == stopped.step, "finished: nothing is left to do"
    longer, *_ = run_ranks(1, train, config(store, tmp_path / "run", **changes | {"hours": 3 / 3600}))
    assert longer.step > stopped.step
    assert longer.seconds >= 3, "the time before counts"


def test_hours_go_with_one_phase_and_a_share_as_warmup(store, tmp_path):
    with pytest.raises(InputError, match="--hours"):
        config(store, tmp_path, hours=1.0, warmup=5)
    with pytest.raises(InputError, match="--hours"):
        config(store, tmp_path, hours=1.0, warmup=0.1, phase=("steps=5",))


@pytest.mark.slow
def test_a_run_that_gets_no_better_stops(store, tmp_path):
    changes = {"patience": 2, "steps": 50, "eval_every": 2, "lr": 1e-12, "save_every": 0, "dropout": 0.0}
    state, *_ = run_ranks(2, train, config(store, tmp_path / "run", **changes))
    losses = [line["mlm_loss"] for line in lines_of(tmp_path / "run", "eval")]
    assert state.step == 2 * len(losses) < 50
    assert min(losses) == losses[-3]
    assert checkpoint_dir(tmp_path / "run", state.step).is_dir()
    again, *_ = run_ranks(2, train, config(store, tmp_path / "run", **changes))
    assert again == state


def made_until_joined(settings: TrainConfig) -> None:
    def stop() -> None:
        raise RuntimeError(f"not made: {settings.compile}")

    train_module.init_distributed = stop
    train(settings)


def test_layers_are_compiled_where_asked(store, tmp_path, monkeypatch):
    def mark(model: BertForPreTraining) -> None:  # tests/test_model.py compiles them
        (tmp_path / f"{len(model.bert.encoder.layer)} layers").touch()

    monkeypatch.setattr(train_module, "compile_layers", mark)
    for asked in (False, True):
        with pytest.raises(RuntimeError, match=f"not made: {asked}"):
            run_ranks(1, made_until_joined, config(store, tmp_path / "run", compile=asked))
        assert (tmp_path / "2 layers").exists() == asked


def test_compiled_layers_and_stage_3_do_not_go_together(store, tmp_path):
    with pytest.raises(InputError, match="--compile goes with --zero 0 to 2"):
        train(config(store, tmp_path / "run", compile=True, zero=3))


def another_deepspeed(settings: TrainConfig) -> None:
    partition.TESTED_DEEPSPEED = "0.0.1"
    train(settings)


@pytest.mark.slow
def test_another_deepspeed_is_refused_unless_allowed(store, tmp_path):
    with pytest.raises(RuntimeError, match=r"is not the tested 0\.0\.1"):
        run_ranks(1, another_deepspeed, config(store, tmp_path / "no"))
    run_ranks(1, another_deepspeed, config(store, tmp_path / "yes", allow_untested_deepspeed=True, steps=3))
    assert checkpoint_dir(tmp_path / "yes", 3).is_dir()
