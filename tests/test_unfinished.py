"""A fine-tuning that is stopped or killed goes on as if nothing had been."""

import json
import math
import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertForPreTraining

from data_prep.cli import InputError
from data_prep.files import sha256_of
from pretrain.finetune.config import FinetuneConfig
from pretrain.finetune.learning import best_epoch, checkpoints, unfinished
from pretrain.finetune.learning.unfinished import Outcome, Unfinished
from pretrain.stop import STOPPED
from tests.forked import fork_script
from tests.tiny_hf import WORDS, tiny_bert

STEPS = 8  # an epoch


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    """A folder whose model drops out: what is drawn must be the same after a stop."""
    folder = tiny_bert(tmp_path_factory.mktemp("hf") / "hf", BertForPreTraining)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    rng = random.Random(0)
    lines = [f"{' '.join(rng.choices(WORDS, k=rng.randrange(1, 9)))}\t{rng.choice('ab')}" for _ in range(70)]
    path = tmp_path_factory.mktemp("files") / "train.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return path


def tune(hf: Path, file: Path, out: Path, *more: object, before: Callable[[], None] = lambda: None) -> Any:
    """Three seeds of three epochs of STEPS steps, saved at each step, with the best epoch of each."""
    return fork_script(
        *("pretrain.finetune", hf, "--task", "classify", "--train", file, "--eval", file, "--out", out),
        *("--seeds", 3, "--epochs", 3, "--batch_size", 8, "--seq_len", 16, "--patience", 9, "--save_minutes", 1e-9),
        *more,
        before=before,
    )


def at_step(number: int, signal_number: int) -> Callable[[], None]:
    """What sends its own process a signal while it learns its n-th batch."""

    def patch() -> None:
        learn, steps = checkpoints.FineTuner.training_step, iter(range(1, 1000))

        def training_step(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == number:
                os.kill(os.getpid(), signal_number)
            return learn(*args, **kwargs)

        checkpoints.FineTuner.training_step = training_step  # type: ignore[method-assign]

    return patch


def killed_before_measuring() -> None:
    best_epoch.BestEpoch.restore = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]


def results_of(out: Path) -> dict:
    results = json.loads((out / "results.json").read_text())
    for timed in (*results["seeds"], results["baseline"]):
        del timed["seconds"]
    return results


@pytest.mark.slow
def test_killed_and_stopped_it_ends_with_the_same_weights(hf, file, tmp_path):
    whole = tune(hf, file, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    out, progress = tmp_path / "out", tmp_path / "out.progress"
    # In the middle of the second epoch, then between the training and its measuring, then in the second seed.
    assert tune(hf, file, out, before=at_step(STEPS + 4, signal.SIGKILL)).returncode == -signal.SIGKILL
    assert [path.name for path in (progress / "seed-0").iterdir()] == [f"step-{STEPS + 3}"]
    assert not list(progress.rglob("*.bin"))
    assert tune(hf, file, out, before=killed_before_measuring).returncode == -signal.SIGKILL
    assert [path.name for path in (progress / "seed-0").iterdir()] == [f"step-{3 * STEPS}"]
    stopped = tune(hf, file, out, before=at_step(STEPS, signal.SIGTERM))
    assert stopped.returncode == STOPPED, stopped.stderr
    assert f"seed 0 goes on at step {3 * STEPS}" in stopped.stderr
    assert f"stopped: seed 1, step {STEPS} of {3 * STEPS} is saved in {progress}; the same command" in stopped.stderr
    assert not out.exists()

    other = tune(hf, file, out, "--lr", 0.5)
    assert other.returncode == 2
    assert "was begun without --lr, not with --lr 0.5; give that command again to go on" in other.stderr
    assert f"remove {progress} to begin anew" in other.stderr

    last = tune(hf, file, out)
    assert last.returncode == 0, last.stderr
    assert "seed 0, epoch" not in last.stderr  # it was done
    assert f"seed 1 goes on at step {STEPS}" in last.stderr
    assert not progress.exists()
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "whole/predictions.jsonl").read_bytes()
    assert results_of(out) == results_of(tmp_path / "whole")
    assert not list(tmp_path.glob("*.progress")), "of the one that nobody stopped"


@pytest.mark.slow
def test_a_seed_that_goes_wrong_leaves_those_before_it(hf, file, tmp_path):
    def wrong_in_the_second_seed() -> None:
        add, steps = checkpoints.Course.add, iter(range(1, 1000))

        def add_loss(self: Any, loss: torch.Tensor) -> None:
            add(self, loss * (math.nan if next(steps) > 3 * STEPS else 1))

        checkpoints.Course.add = add_loss  # type: ignore[method-assign]

    out = tmp_path / "out"
    failed = tune(hf, file, out, before=wrong_in_the_second_seed)
    assert failed.returncode == 1, failed.stderr
    assert "error: the training loss became nan with seed 1; try a lower --lr" in failed.stderr
    assert "the same command with --seeds 1 ends with the seeds before this" in failed.stderr
    one = tune(hf, file, out, "--seeds", 1)
    assert one.returncode == 0, one.stderr
    assert "seed 0, epoch" not in one.stderr  # it was done
    assert len(results_of(out)["seeds"]) == 1
    assert not (tmp_path / "out.progress").exists()


def test_what_another_command_has_begun_is_not_gone_on_with(hf, file, tmp_path):
    def unfinished(**options: Any) -> Unfinished:
        given: dict[str, Any] = {"hf": hf, "task": "classify", "train": file, "eval": file, "out": tmp_path / "out"}
        return Unfinished(FinetuneConfig(**given | options))

    unfinished().begin()
    unfinished(json=True, save_minutes=1.0).check()
    moved = Path(shutil.copy(file, tmp_path / "moved.tsv"))
    unfinished(train=moved).check()  # the same content
    moved.write_text(moved.read_text() + "one\ta\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": moved}, f"was begun with another --train than {moved}; give"),
        ({"balance": True}, "was begun without --balance, not with --balance; give"),
        ({"label": ("label",), "seed": 3}, "was begun without --label, not with --label label; give"),
        ({"epochs": 5}, "was begun without --epochs, not with --epochs 5; give"),
    ]
    for options, message in cases:
        with pytest.raises(Exception, match=message):
            unfinished(**options).check()
    unfinished().clear()
    (tmp_path / "out.progress/notes.txt").touch()
    with pytest.raises(Exception, match=r"out.progress holds notes.txt, and is none of ours: choose another --out"):
        unfinished().check()
    shutil.rmtree(tmp_path / "out.progress")
    (tmp_path / "out.progress").touch()
    with pytest.raises(InputError, match=r"out.progress, where what is under way would lie, is a file"):
        unfinished().check()


def test_a_seed_is_done_where_all_that_it_leaves_is_whole(hf, file, tmp_path):
    unfinished = Unfinished(FinetuneConfig(hf, "classify", file, file, tmp_path / "out"))
    outcome = Outcome({"seed": 0, "scores": {"accuracy": 0.123456789}}, ["a", ["b", 0.1]], 0.5)
    unfinished.keep(0, outcome)
    assert unfinished.done(0) is None, "the model of the first seed, which OUT will hold, is lost"
    unfinished.model.mkdir()
    assert unfinished.done(0) == outcome
    kept = tmp_path / "out.progress/seed-0.json"
    whole = kept.read_text()
    for damaged in (whole.replace("0.123456789", "0.923456789"), whole[:40], "{}", ""):
        kept.write_text(damaged)
        with pytest.raises(InputError, match=r"seed-0.json.*; remove it to train this seed anew"):
            unfinished.done(0)


def test_a_lock_may_be_written_anew_while_all_is_done(hf, file, tmp_path, monkeypatch):
    found = Unfinished(FinetuneConfig(hf, "classify", file, file, tmp_path / "out"))
    found.folder.mkdir()
    written = [found.folder / name for name in ("lock.json", "lock.json.partial7", "command.json")]
    for path in written:
        path.write_text("{}")
    written[1].replace(written[0])  # by the heartbeat, between the listing and the removal
    monkeypatch.setattr(unfinished, "_within", lambda folder: written)
    found.clear()
    assert list(found.folder.iterdir()) == written[:1]
    monkeypatch.undo()
    written[1].write_text("{}")  # of a process that was killed while it wrote
    found.check()


def test_without_room_nothing_is_saved_and_training_goes_on(hf, file, tmp_path, monkeypatch, capsys):
    config = FinetuneConfig(hf, "classify", file, file, tmp_path / "out", save_minutes=1e-9)
    stop: Any = SimpleNamespace(signal=0)
    callback = checkpoints.Checkpoints(Unfinished(config), 0, stop, checkpoints.Course(), None)
    args, state = SimpleNamespace(num_train_epochs=1), SimpleNamespace(global_step=1, max_steps=9)
    control, model = SimpleNamespace(should_save=False), torch.nn.Linear(9, 9)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    callback.on_step_end(args, state, control, model=model)
    assert not control.should_save
    assert f"not saved: a checkpoint takes 0.00 GB, and 0.00 GB are free in {tmp_path}" in capsys.readouterr().err
    stop.signal = signal.SIGTERM
    with pytest.raises(SystemExit):
        callback.on_step_end(args, state, control, model=model)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    callback.on_step_end(args, state, control, model=model)
    assert control.should_save


class Hostile:
    """What runs a command where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_and_a_hostile_one_not_run(hf, file, tmp_path):
    assert tune(hf, file, tmp_path / "out", before=at_step(3, signal.SIGKILL)).returncode == -signal.SIGKILL
    [step] = (tmp_path / "out.progress/seed-0").iterdir()
    (step / "optimizer.pt").write_bytes(b"cut short")
    told = tune(hf, file, tmp_path / "out")
    assert (told.returncode, told.stderr.splitlines()[-1]) == (
        2,
        f"error: {step} is damaged; remove {step.parent} to begin this seed anew",
    )
    for name in ("optimizer.pt", "rng_state.pth"):
        (step / name).write_bytes(pickle.dumps(Hostile(tmp_path / "was run")))
    manifest = json.loads((step / "manifest.json").read_text())
    (step / "manifest.json").write_text(json.dumps({name: sha256_of(step / name) for name in manifest}))
    told = tune(hf, file, tmp_path / "out")
    assert (told.returncode, told.stderr.splitlines()[-1]) == (
        2,
        f"error: {step} holds what is not ours, and nothing of it was run; remove it",
    )
    assert not (tmp_path / "was run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("regress", ("--long", "stride")),
        ("multilabel", ()),
        ("choice", ("--patience", 1)),
        ("seq2seq", ("--patience", 1, "--beams", 1, "--max_new_tokens", 4)),
    ],
)
def test_every_kind_of_model_goes_on(hf, tmp_path, task, options):
    rng = random.Random(0)
    labels = {"regress": lambda: str(rng.random()), "multilabel": lambda: rng.choice(["a", "b", "a|b"])}
    labels["choice"] = lambda: "\t".join([*rng.choices(WORDS, k=2), rng.choice("AB")])
    label = labels.get(task, lambda: rng.choice(WORDS))
    lines = [f"{' '.join(rng.choices(WORDS, k=rng.randrange(1, 24)))}\t{label()}" for _ in range(40)]
    file = tmp_path / "train.tsv"
    header = "text\tA\tB\tlabel" if task == "choice" else "text\tlabel"
    file.write_text("\n".join([header, *lines]) + "\n")

    def tuned(out: str, **more: Any) -> Any:
        return fork_script(
            *("pretrain.finetune", hf, "--task", task, "--train", file, "--eval", file, "--out", tmp_path / out),
            *("--epochs", 2, "--batch_size", 8, "--seq_len", 16, "--save_minutes", 1e-9, *options),
            **more,
        )

    assert tuned("whole").returncode == 0
    assert tuned("out", before=at_step(7, signal.SIGKILL)).returncode == -signal.SIGKILL
    last = tuned("out")
    assert last.returncode == 0, last.stderr
    assert "seed 0 goes on at step 6" in last.stderr
    for name in ("model.safetensors", "config.json", "predictions.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
