"""Rates that fall from layer to layer, by weights: against a float64 reference that knows each parameter's own rate."""

import json
from pathlib import Path

import pytest

from data_prep.cli import InputError
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.model import build_model, parameter_groups
from pretrain.train import train
from pretrain.zero.engine import make_optimizer
from tests.lamb_runs import STEPS, lamb_run, reference_weights
from tests.ranks import run_ranks
from tests.runs import distance, weights
from tests.stores import random_documents, store_of

DECAY = 0.5
# A trust ratio that is always 1 makes LAMB AdamW.
AS_ADAMW = {"min_ratio": 1.0, "max_ratio": 1.0, "eps": 1e-8}


def lr_scale(name: str) -> float:
    """Of bert-tiny, which has two layers: heads and pooler 1, layers from the top 1/2 and 1/4, embeddings 1/8."""
    for part, scale in {"embeddings": DECAY**3, "layer.0.": DECAY**2, "layer.1.": DECAY}.items():
        if part in name:
            return scale
    return 1.0


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(40)).folder


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "zero"), [("adamw", 1), ("lamb", 3), ("adamw", 3), ("lamb", 1)])
def test_weights_equal_the_reference(store, tmp_path, optimizer, zero):
    final, start = reference_weights(store, lr_scale, **(AS_ADAMW if optimizer == "adamw" else {}))
    ds_config = {
        "optimizer": {"type": optimizer, "params": {"layer_decay": DECAY}},
        "zero_optimization": {"stage": zero},
    }
    (tmp_path / "ds.json").write_text(json.dumps(ds_config))
    settings = lamb_run(store, tmp_path / "run", ds_config=tmp_path / "ds.json", optimizer=optimizer, micro_batch=3)
    run_ranks(2, train, settings)
    assert distance(weights(checkpoint_dir(tmp_path / "run", STEPS)), final, start) < 1e-5


def test_every_parameter_has_its_layer_s_rate():
    model = build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1, DECAY)
    assert len(groups) == 8
    for group in groups:
        for parameter in group["params"]:
            assert group["lr_scale"] == lr_scale(names.pop(parameter))
    assert not names
    assert [group["lr_scale"] for group in parameter_groups(model, 0.1)] == [1.0, 1.0]


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_that_is_none_is_refused(decay):
    model = build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True)
    with pytest.raises(InputError, match=r"layer_decay .* must lie in \(0, 1\]"):
        make_optimizer(model, {"type": "adamw", "params": {"lr": 1.0, "weight_decay": 0.0, "layer_decay": decay}})
