"""Averaged weights: the mean that they should be, at any stage, wherever a run is cut, and nothing else touched."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.cli import InputError
from pretrain.checkpoints.format import KINDS, checkpoint_dir, list_checkpoints, step_of
from pretrain.checkpoints.slices import read_weights
from pretrain.checkpoints.verify import verify_checkpoint
from pretrain.evaluation import evaluate, held_out_set
from pretrain.export.command import ExportConfig, main
from pretrain.model import PretrainingModule, model_from_weights
from pretrain.settings.averaging import OFF, Averaging, parse_average
from pretrain.settings.config import TrainConfig
from pretrain.setup import prepare
from pretrain.train import train
from pretrain.zero.engine import init_distributed
from tests.checkpoints import rewrite, rewrite_state
from tests.partitions import partition_of
from tests.ranks import run_ranks
from tests.runs import contents, events, lines_of, tiny_run
from tests.stores import random_documents, store_of

STEPS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40), held_out={3, 17}).folder


def config(store: Path, out: Path, **changes: Any) -> TrainConfig:
    common = dict(steps=STEPS, warmup=2, global_batch=12, save_every=1, average="ema=.7")
    return tiny_run(store, out, **common | changes)


@pytest.fixture(scope="module")
def averaged(store, tmp_path_factory) -> Path:
    """A run of one rank with an average, evaluated after each step."""
    out = tmp_path_factory.mktemp("averaged") / "run"
    run_ranks(1, train, config(store, out, eval_samples=8, eval_every=1, zero=2))
    return out


def flat(folder: Path, kind: str = "master") -> np.ndarray:
    """All weights of a checkpoint in float64, end to end."""
    found = read_weights(folder, verify_checkpoint(folder).parameters, kind)
    return torch.cat([tensor.flatten() for tensor in found.values()]).double().numpy()


def check_averages(run: Path, share: Any) -> None:
    """Every checkpoint from the first with an average on holds, of the weights in all of these, the sum that `share`
    gives: share(n) is with what the n-th enters, and the others then count less."""
    folders = [folder for folder in reversed(list_checkpoints(run)) if verify_checkpoint(folder).average]
    weights, expected = [flat(folder) for folder in folders], None
    for count, (folder, newest) in enumerate(zip(folders, weights, strict=True), 1):
        expected = newest if expected is None else expected + share(count) * (newest - expected)
        np.testing.assert_allclose(flat(folder, "average"), expected, rtol=1e-6, atol=1e-7)  # it is kept in fp32
    assert abs(expected - weights[-1]).max() > 1e-4, "it is another thing than the weights"


def ema(decay: float) -> Any:
    return lambda count: 1 - min(decay, (count - 1) / (count + 8))


# What an average is


@pytest.mark.parametrize(("text", "count"), [("ema=.5", 30), ("ema=.999", 30), ("last=.3", 9), ("last=1", 30)])
def test_an_average_is_the_weighted_mean_of_the_weights_after_each_step(text, count):
    """Against float64 and weights of the steps written out, which add up to 1; the initial weights are not in it."""
    averaging, steps = parse_average(text), 30
    buffer = torch.nn.Parameter(torch.full((1000,), 1e6))
    partition = partition_of([buffer], [{"a": 400, "b": 600}], torch.optim.AdamW([buffer]))
    history, averaged = [], 0
    for step in range(1, steps + 1):
        history.append(torch.randn(1000, generator=torch.Generator().manual_seed(step)))
        buffer.data.copy_(history[-1])
        averaged = averaging.count_after(averaged, step=step, steps=steps, share_of_hours=None)
        if averaged:
            partition.add_to_average(averaging.share_of_newest(averaged))
    assert averaged == count
    if averaging.kind == "last":
        shares = np.full(count, 1 / count)
    else:
        kept = np.array([min(averaging.value, (n - 1) / (n + 8)) for n in range(1, count + 1)])
        shares = np.array([(1 - kept[n]) * np.prod(kept[n + 1 :]) for n in range(count)])
    assert shares.sum() == pytest.approx(1)
    expected = shares @ torch.stack(history[-count:]).double().numpy()
    for slice_ in partition.slices:
        own = slice(slice_.buffer_offset, slice_.buffer_offset + slice_.length)
        np.testing.assert_allclose(partition.view(slice_, "average").numpy(), expected[own], atol=1e-6)


def test_the_last_share_of_a_run_is_of_its_steps_or_of_its_clock():
    def counts(text: str, steps: int) -> list[int]:
        found, count = [], 0
        for step in range(1, steps + 1):
            count = parse_average(text).count_after(count, step=step, steps=steps, share_of_hours=None)
            found.append(count)
        return found

    assert counts("last=.2", 10) == [0] * 8 + [1, 2]
    assert counts("last=.01", 3) == [0, 0, 1], "the last step at least"
    assert counts("last=1", 3) == counts("ema=.9", 3) == [1, 2, 3]
    assert counts("off", 3) == [0, 0, 0]
    last = parse_average("last=.25")
    spent = [0.0, 0.7, 0.75, 0.9]
    assert [last.count_after(0, step=1, steps=9, share_of_hours=share) for share in spent] == [0, 0, 1, 1]
    # More steps than before: what is in it is of no share of the longer run, or of more than that.
    assert last.count_after(20, step=91, steps=200, share_of_hours=None) == 0
    assert last.count_after(20, step=91, steps=104, share_of_hours=None) == 1
    assert last.count_after(12, step=91, steps=104, share_of_hours=None) == 13


@pytest.mark.parametrize("text", ["ema", "ema=", "ema=1", "ema=0", "ema=nan", "last=0", "last=1.5", "swa=.2", "", "on"])
def test_another_average_is_refused_in_one_line(store, tmp_path, text):
    with pytest.raises(InputError, match=r"--average .*(must be ema=DECAY|must lie in)"):
        config(store, tmp_path / "run", average=text)


def test_an_average_is_called_alike_however_it_is_written():
    assert str(parse_average("ema=.9990")) == str(parse_average("ema=0.999")) == "ema=0.999"
    assert parse_average(str(Averaging("last", 1 / 3))) == Averaging("last", 1 / 3)
    assert str(OFF) == "off"


# In a run


def test_a_run_keeps_it_and_evaluates_it(averaged):
    check_averages(averaged, ema(0.7))
    lines = lines_of(averaged, "eval")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["avg_mlm_loss"] == lines[0]["mlm_loss"], "of one step it is the weights"
    assert all(line["avg_mlm_loss"] != line["mlm_loss"] for line in lines[1:])
    assert {f"avg_{name}" for name in ("mlm_loss", "mlm_acc", "perplexity", "nsp_loss", "nsp_acc")} <= lines[0].keys()
    log = (averaged / "log.txt").read_text()
    assert f"averaged weights, step 6: mlm loss {lines[-1]['avg_mlm_loss']:.4f}" in log
    assert "exponential moving average of the weights, decay 0.7, over 6 steps; export it" in log


def test_its_loss_is_that_of_a_model_with_the_averaged_weights(store, averaged):
    """Read from the checkpoint, without an engine."""

    def loss_of(kind: str) -> float:
        init_distributed()
        folder = checkpoint_dir(averaged, STEPS)
        manifest = verify_checkpoint(folder)
        weights = read_weights(folder, manifest.parameters, kind)
        module = PretrainingModule(model_from_weights(manifest.identity.model, weights)).eval()
        setup = prepare(config(store, averaged, eval_samples=8), 1)
        found = held_out_set(setup, setup.phases[0])
        assert found is not None
        sums = evaluate(
            lambda batch: module(batch, by_sample=True),
            found,
            device=torch.device("cpu"),
            title="",
            on_batch=lambda: None,
        )
        return float(sums[:, 0].sum()) / sum(source.masked for source in found.sources)

    line = lines_of(averaged, "eval")[-1]
    assert run_ranks(1, loss_of, "average") == [pytest.approx(line["avg_mlm_loss"], rel=1e-6)]
    assert run_ranks(1, loss_of, "master") == [pytest.approx(line["mlm_loss"], rel=1e-6)]


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "precision"), [(0, "fp32"), (1, "bf16"), (3, "bf16")])
def test_neither_to_keep_nor_to_look_at_it_changes_a_bit_of_the_rest(store, tmp_path, zero, precision):
    """With an average that is evaluated after each step, and without any, weights and moments are the same."""
    common = dict(zero=zero, precision=precision)
    run_ranks(2, train, config(store, tmp_path / "seen", eval_samples=8, eval_every=1, **common))
    run_ranks(2, train, config(store, tmp_path / "none", average="off", **common))
    check_averages(tmp_path / "seen", ema(0.7))
    for kind in KINDS:
        seen, none = (flat(checkpoint_dir(tmp_path / name, STEPS), kind) for name in ("seen", "none"))
        np.testing.assert_array_equal(seen, none)


@pytest.mark.slow
@pytest.mark.parametrize("average", ["ema=.7", "last=.67"])
def test_cut_and_continued_it_is_the_same_bytes(store, tmp_path, average):
    whole = config(store, tmp_path / "whole", average=average, zero=1)
    run_ranks(2, train, whole)
    cut = tmp_path / "cut"
    shutil.copytree(whole.out, cut)
    for step in (4, 5, 6):
        shutil.rmtree(checkpoint_dir(cut, step))
    run_ranks(2, train, config(store, cut, average=average, zero=1))
    assert contents(checkpoint_dir(cut, STEPS)) == contents(checkpoint_dir(whole.out, STEPS))
    check_averages(cut, ema(0.7) if "ema" in average else lambda count: 1 / count)
    assert [bool(verify_checkpoint(checkpoint_dir(cut, step)).average) for step in (1, 2, 3)] == (
        [True, True, True] if "ema" in average else [False, False, True]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("world", "zero"), [(3, 3), (1, 0)])
def test_at_another_number_of_ranks_and_stage_it_goes_on(store, tmp_path, world, zero):
    out = tmp_path / "run"
    run_ranks(2, train, config(store, out, zero=1, dropout=0.0))
    for step in (4, 5, 6):
        shutil.rmtree(checkpoint_dir(out, step))
    run_ranks(world, train, config(store, out, zero=zero, dropout=0.0))
    assert verify_checkpoint(checkpoint_dir(out, STEPS)).zero_stage == zero
    check_averages(out, ema(0.7))


@pytest.mark.slow
def test_another_average_begins_where_the_run_goes_on(store, averaged, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(averaged, out)
    run_ranks(1, train, config(store, out, zero=2, average="last=.5", steps=12))
    assert events(out, "change")[-1]["average"] == "ema=0.7 -> last=0.5"
    kept = {step_of(folder): verify_checkpoint(folder).average for folder in list_checkpoints(out)}
    assert kept[12] == "last=0.5"
    assert [step for step in range(7, 13) if not kept[step]] == []
    mean = np.mean([flat(checkpoint_dir(out, step)) for step in range(7, 13)], 0)
    np.testing.assert_allclose(flat(checkpoint_dir(out, 12), "average"), mean, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_whose_average_is_not_whole_is_none(averaged, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(averaged, out)
    folder = checkpoint_dir(out, STEPS)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 3
    for changes, message in (
        (dict(average=""), "holds an average that its manifest.json does not name"),
        (dict(average="ema=7"), "says average 'ema=7'"),
    ):
        rewrite(folder, **changes)
        with pytest.raises(InputError, match=message):
            verify_checkpoint(folder)
        shutil.copy(averaged / "checkpoints" / folder.name / "manifest.json", folder)
    rewrite_state(folder, {**json.loads((folder / "state.json").read_text()), "averaged": 7})
    with pytest.raises(InputError, match="says averaged 7"):
        verify_checkpoint(folder)


# Exported


def test_export_takes_the_weights_that_are_asked_for(averaged, tmp_path, capsys):
    line = lines_of(averaged, "eval")[-1]
    for weights, name in (("raw", "mlm_loss"), ("averaged", "avg_mlm_loss")):
        out = tmp_path / weights
        main(ExportConfig(averaged, out, weights=weights))  # type: ignore[arg-type]
        said = capsys.readouterr().err
        assert f"a held-out loss of {line['mlm_loss']:.4f} and {line['avg_mlm_loss']:.4f}" in said
        assert f"these are the {weights} ones" in said.lower()
        record, card = json.loads((out / "provenance.json").read_text()), (out / "README.md").read_text()
        assert [record[key] for key in ("weights", "average", "averaged_steps")] == [weights, "ema=0.7", 6]
        assert f"MLM loss {line[name]:.3f} nats" in card
        assert ("exponential moving average of the weights, decay 0.7, over 6 steps" in card) == (weights == "averaged")
    stored = read_weights(
        checkpoint_dir(averaged, STEPS), verify_checkpoint(checkpoint_dir(averaged, STEPS)).parameters, "average"
    )
    from transformers import BertForPreTraining

    exported = BertForPreTraining.from_pretrained(tmp_path / "averaged").state_dict()
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(exported[name], stored[name])


def test_export_of_what_has_no_average_is_refused_in_one_line(store, averaged, tmp_path):
    run_ranks(1, train, config(store, tmp_path / "run", average="off", steps=1, warmup=0))
    for source, message in (
        (tmp_path / "run", "holds no averaged weights"),
        (tmp_path / "hf", "is no run of zerobert"),
    ):
        if source.name == "hf":
            main(ExportConfig(averaged, source))
        with pytest.raises(InputError, match=message):
            main(ExportConfig(source, tmp_path / "out", weights="averaged"))
    assert not (tmp_path / "out").exists()
