"""Weights after k steps do not depend on ranks, micro-batches, accumulation or ZeRO stage (invariants c and d).

Weights are compared, not losses: a wrong partition shows in the weights long before it shows in a loss. The measure is
the distance between two runs relative to how far training has moved.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.bert.modeling_bert import BertLayer

from pretrain.checkpoints.format import checkpoint_dir
from pretrain.settings.config import TrainConfig
from pretrain.train import train
from tests.ranks import run_ranks
from tests.runs import distance, train_config, weights
from tests.stores import random_documents, store_of

STEPS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40), held_out={3, 17}).folder


def run(store: Path, out: Path, world: int, zero: int, micro_batch: int, **changes: Any) -> dict[str, torch.Tensor]:
    """Weights after a short run, by name."""
    settings: dict[str, Any] = dict(
        data=(str(store),), out=out, model="bert-tiny", seq_len=32, steps=STEPS, warmup=2, lr=1e-3, dropout=0.0,
        global_batch=12, micro_batch=micro_batch, zero=zero, clip=1.0, eval_samples=8, log_every=2,
    )  # fmt: skip
    calls = changes.pop("calls", [])
    calls += run_ranks(world, train_counting_layers, train_config(**settings | changes))
    return weights(checkpoint_dir(out, STEPS))


@pytest.fixture(scope="module")
def plain(
    store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One rank, stage 0, one micro-batch a step; and the weights that it began with."""
    folder = tmp_path_factory.mktemp("plain")
    final = run(store, folder / "run", 1, 0, 12, save_every=1, keep=0)
    return final, weights(checkpoint_dir(folder / "run", 1))


CUTS = [(2, 3, 3), (2, 1, 3), (1, 1, 12), (2, 0, 6), (2, 2, 2), (3, 1, 4)]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "zero", "micro_batch"), CUTS)
def test_weights_do_not_depend_on_how_a_step_is_cut(plain, store, tmp_path, world, zero, micro_batch):
    expected, start = plain
    found = run(store, tmp_path / "run", world, zero, micro_batch)
    assert distance(found, expected, start) < 1e-5


def train_counting_layers(config: TrainConfig) -> int:
    """How often a layer was computed."""
    calls = 0
    forward = BertLayer.feed_forward_chunk

    def counting(self: BertLayer, *inputs: Any) -> Any:
        nonlocal calls
        calls += self.training
        return forward(self, *inputs)

    BertLayer.feed_forward_chunk = counting  # type: ignore[method-assign]
    train(config)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_checkpointed_activations_give_the_same_bits(store, tmp_path, zero):
    common = dict(world=2, zero=zero, micro_batch=3, dropout=0.1)
    plain = run(store, tmp_path / "plain", **common)
    calls: list[int] = []
    again = run(store, tmp_path / "again", **common, checkpoint_activations=True, calls=calls)
    assert calls == [2 * 2 * 2 * STEPS] * 2, "2 layers, twice, for 2 micro-batches a step"
    assert all(torch.equal(plain[name], again[name]) for name in plain)
