"""A run of plain DeepSpeed AdamW, converted by DeepSpeed's own tool, goes on here as if it had never been elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

from data_prep.cli import ROOT, InputError
from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from data_prep.store import Store
from pretrain.checkpoints.format import KINDS, checkpoint_dir
from pretrain.checkpoints.slices import index_slices, read_elements
from pretrain.checkpoints.verify import latest_valid_checkpoint
from pretrain.data import SampleStream, train_steps
from pretrain.import_universal import ImportConfig, main
from pretrain.model import PretrainingModule, build_model, parameter_groups, strip_vocab_padding
from pretrain.settings.config import TrainConfig
from pretrain.settings.shape import Shape
from pretrain.state import DataPosition
from pretrain.train import train
from pretrain.zero.engine import init_distributed, silence_libraries
from tests.ranks import run_ranks
from tests.runs import NOISE, distance, tiny_run, weights
from tests.stores import random_documents, store_of

HALF, STEPS, LR, BATCH, SEQ_LEN = 3, 6, 1e-3, 12, 32


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40)).folder


def train_plainly(store: Path, out: Path) -> dict[str, torch.Tensor]:
    """Another trainer: DeepSpeed's engine, torch's AdamW, ZeRO-1, a checkpoint after three of six steps.

    From the fourth step on its data is what a new run here begins with. Returns the weights at the end.
    """
    import deepspeed

    silence_libraries()
    init_distributed()
    opened = Store.open(store)
    model = build_model(preset="bert-tiny", vocab_size=opened.vocab_size, dropout=0.0, seed=5, needs_nsp=True)
    settings = {
        "train_micro_batch_size_per_gpu": BATCH // 2,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1},
    }
    settings["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=LR)
    engine, *_ = deepspeed.initialize(model=PretrainingModule(model), optimizer=optimizer, config=settings)
    for seed in (1, 0):
        stream = SampleStream(Mixture([opened], [1.0], seq_len=SEQ_LEN, objective="nsp", seed=seed), DataPosition())
        steps = train_steps(
            stream,
            masking_after=lambda taken: Masking(),
            batch_after=lambda taken: BATCH,
            micro_batch=BATCH // 2,
            rank=dist.get_rank(),
            world=2,
        )
        for step in islice(steps, HALF):
            losses = engine(next(step.micro_batches))
            engine.backward(2 * (losses.mlm / step.counts.masked + losses.nsp / step.counts.pairs))
            engine.step()
        if seed:
            engine.save_checkpoint(str(out))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def plain(store, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The checkpoint in universal format, and the weights of the run that was not interrupted."""
    out = tmp_path_factory.mktemp("plain")
    final = run_ranks(2, train_plainly, store, out / "theirs")[0]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(out / f"theirs/global_step{HALF}"), "--output_folder", str(out / "universal")]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return out / "universal", {name: tensor.flatten() for name, tensor in final.items() if not name.endswith(NOISE)}


def config(store: Path, out: Path, zero: Literal[1, 3]) -> TrainConfig:
    return tiny_run(
        store, out, steps=STEPS, schedule="constant", warmup=0, lr=LR, dropout=0.0, global_batch=BATCH, zero=zero
    )


@pytest.mark.slow
@pytest.mark.parametrize(("world", "zero"), [(2, 1), (1, 3)])
def test_a_plain_deepspeed_run_goes_on(store, plain, tmp_path, world, zero):
    universal, final = plain
    run = tmp_path / "run"
    main(ImportConfig(universal, store, run, model="bert-tiny"))
    assert latest_valid_checkpoint(run) == checkpoint_dir(run, HALF)
    start = weights(checkpoint_dir(run, HALF))
    state = run_ranks(world, train, config(store, run, zero))[0]
    assert (state.step, state.samples) == (STEPS, HALF * BATCH)
    assert distance(weights(checkpoint_dir(run, STEPS)), final, start) < 1e-5


@pytest.mark.slow
def test_what_does_not_fit_is_refused(store, plain, tmp_path):
    universal, run = tmp_path / "universal", tmp_path / "run"
    shutil.copytree(plain[0], universal)
    settings = ImportConfig(universal, store, run, model="bert-tiny")

    def refused(message: str, changed: ImportConfig = settings) -> None:
        with pytest.raises(InputError, match=message):
            main(changed)
        assert not run.exists()

    refused("holds no zero/NAME/step.pt", ImportConfig(tmp_path, store, run, model="bert-tiny"))
    refused("lacks bert.encoder.layer.2.attention", ImportConfig(universal, store, run, model="bert-mini"))
    bias = next((universal / "zero").glob("*pooler.dense.bias"))
    torch.save({"param": torch.zeros(128), "x": os.getcwd}, bias / "exp_avg.pt")
    refused(re.escape(f"{bias}/exp_avg.pt is refused: it calls") + ".*getcwd")
    (bias / "exp_avg.pt").unlink()
    refused("lacks bert.pooler.dense.bias")
    torch.save(torch.tensor(7.0), bias / "step.pt")
    refused("is at step 3, .*pooler.dense.bias at step 7")


def test_rows_that_pad_the_vocabulary_are_our_own(tmp_path):
    """Their vocabulary has 70 entries and no padding; ours is padded to 128, with entries that nothing predicts. The
    model is of no preset's shape."""
    opened = store_of(tmp_path / "store", random_documents(40, vocab_size=70), vocab_size=70)
    model = build_model(shape=Shape(1, 48, 3), vocab_size=70, dropout=0.0, seed=3, needs_nsp=True)
    for name, parameter in model.named_parameters():
        folder = tmp_path / "universal/zero" / f"module.{name}"
        folder.mkdir(parents=True)
        theirs = strip_vocab_padding(name, parameter.detach(), 70)
        for number, kind in enumerate(("fp32", "exp_avg", "exp_avg_sq")):
            torch.save({"param": theirs + number}, folder / f"{kind}.pt")
        torch.save(torch.tensor(9.0), folder / "step.pt")
    shape: dict[str, Any] = dict(layers=1, hidden=48, heads=3)
    main(ImportConfig(tmp_path / "universal", opened.folder, tmp_path / "run", model="bert-tiny", **shape))
    with pytest.raises(InputError, match="--heads go with --model"):
        ImportConfig(tmp_path / "universal", opened.folder, tmp_path / "run", init_from=tmp_path, **shape)
    slices = index_slices(checkpoint_dir(tmp_path / "run", 9))
    for name, parameter in model.named_parameters():
        for number, kind in enumerate(KINDS):
            found = torch.empty(parameter.numel())
            read_elements(slices[name, kind], found, 0)
            expected = parameter.detach().clone() if kind == "master" else torch.zeros_like(parameter)
            strip_vocab_padding(name, expected, 70)[:] = strip_vocab_padding(name, parameter.detach(), 70) + number
            assert torch.equal(found, expected.flatten()), (name, kind)
