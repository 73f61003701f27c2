"""Trackers, TensorBoard's texts and histograms: what is asked of them, and that none can end a run."""

import sys
import types
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer, models

from data_prep.cli import InputError
from pretrain import setup
from pretrain.model import Answers
from pretrain.monitor.board import Board
from pretrain.monitor.gaps import gaps_in_words
from pretrain.monitor.sinks import Histogram
from pretrain.monitor.tracker import Tracker
from pretrain.setup import open_named
from tests.runs import tiny_run
from tests.stores import random_documents, store_of


class FakeTracker(types.ModuleType):
    """Notes what it is asked; from the second point on it fails."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple] = []

    def init(self, **settings):
        self.calls.append(("init", settings))
        return self

    def log(self, values, step):
        self.calls.append(("log", values, step))
        if len(self.calls) > 2:
            raise ConnectionError("no route\nto host")

    def finish(self):
        self.calls.append(("finish",))


def test_a_tracker_gets_settings_and_curves_offline_and_ends_alone(tmp_path: Path, monkeypatch):
    fake, said = FakeTracker(), list[str]()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = Tracker("wandb", tmp_path / "wiki/run", said.append)
    tracker.settings(0, {"Model": "tiny"}, {"lr": 1e-3})
    tracker.draw(1, {"train/loss": 5.0}, {"trust": {"min": 1.0}})
    for step in (2, 3):
        tracker.draw(step, {"train/loss": 4.0})
    tracker.close()
    init, first, second = fake.calls
    assert (init[1]["mode"], init[1]["name"], init[1]["config"]) == ("offline", "wiki-run", {"lr": 1e-3})
    assert first == ("log", {"train/loss": 5.0, "trust/min": 1.0}, 1)
    assert second[2] == 2
    assert said == [
        "warning: --track wandb has failed (ConnectionError: no route); it ends here, the run goes on",
    ]


def test_trackio_goes_on_with_a_run_and_is_quiet_on_stdout(tmp_path: Path, monkeypatch, capsys):
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr(fake, "finish", lambda: print("Run finished."), raising=False)
    for step in (0, 7):
        tracker = Tracker("trackio", tmp_path / "wiki/run", pytest.fail)
        tracker.settings(step, {}, {})
        tracker.close()
    assert [settings["resume"] for _, settings in fake.calls] == ["never", "allow"]
    said = capsys.readouterr()
    assert (said.out, said.err.count("Run finished.")) == ("", 2)


def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(tmp_path: Path, monkeypatch):
    store = store_of(tmp_path / "store", random_documents(20)).folder
    monkeypatch.setattr(setup, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--track trackio needs the package trackio: pip install 'zerobert\[track\]'"):
        open_named(tiny_run(store, tmp_path / "run", track="trackio"))


def test_tensorboard_has_settings_texts_and_histograms(tmp_path: Path):
    board = Board(tmp_path, 0, pytest.fail)
    board.settings(0, {"Model": "bert-tiny"}, {"lr": 1e-3, "optimizer": "adamw"})
    board.text(3, "gaps", "the **cat** (dog, 12%)")
    board.histograms(3, {"weights/heads": Histogram([-1.0, 0.0, 1.0], [1, 2, 3], 1.5, 2.5)})
    board.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert {"settings/text_summary", "gaps/text_summary", "_hparams_/session_start_info"} <= {
        *read.Tags()["tensors"]
    } | {*read.summary_metadata}
    (histogram,) = read.Histograms("weights/heads")
    assert (histogram.step, histogram.histogram_value.num) == (3, 6)


def test_gaps_show_what_was_hidden_and_what_was_taken_for_it():
    vocab = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "d*g": 2, "[MASK]": 3}, unk_token="the"))
    batch = types.SimpleNamespace(
        input_ids=torch.tensor([0, 3, 0, 3]), head_rows=torch.tensor([1, 2, 3]), mlm_index=torch.tensor([0, 2]),
        mlm_labels=torch.tensor([1, 1]), seqlens=types.SimpleNamespace(lengths=(2, 2)),
    )  # fmt: skip
    answers = Answers(torch.tensor([0.25, 0.5]), torch.tensor([2, 1]))
    text = gaps_in_words(batch, answers, vocab)  # type: ignore[arg-type]
    assert text == "the **cat** (d\\*g, 25%)\n\nthe **cat** (right, 50%)"
