"""The output bias that a new model begins with: the frequencies of what is trained on, at any ZeRO stage, once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from data_prep import store as store_module
from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from data_prep.store import HELD_OUT, Store
from pretrain.checkpoints.format import checkpoint_dir
from pretrain.checkpoints.verify import verify_checkpoint
from pretrain.data import collate
from pretrain.export.command import ExportConfig, main
from pretrain.hf_folder import load_config
from pretrain.model import PADDING_BIAS, PretrainingModule, build_model, set_output_bias
from pretrain.settings.config import TrainConfig
from pretrain.train import train
from pretrain.unigram import unigram_bias
from tests.ranks import run_ranks
from tests.runs import contents, lines_of, tiny_run, weights
from tests.stores import random_documents, store_of

BIAS = "cls.predictions.bias"
HELD = {0, 3, 7, 8, 29}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(30), held_out=HELD, shards=3)


def counted(store: Store) -> np.ndarray:
    """How often each entry occurs in the documents that are not held out, one document after another."""
    uses = np.zeros(store.vocab_size, np.int64)
    for shard in store.shards:
        sentence = token = 0
        for sentences, flags in zip(shard.document_sentences, shard.document_flags, strict=True):
            length = int(shard.sentence_lengths[sentence : sentence + int(sentences)].sum())
            for each in shard.tokens[token : token + length] if not flags & HELD_OUT else ():
                uses[each] += 1
            sentence, token = sentence + int(sentences), token + length
    return uses


@pytest.mark.parametrize("window", [7, 64, 1 << 20])
def test_tokens_of_training_documents_are_counted_in_windows_of_any_size(store, monkeypatch, window):
    monkeypatch.setattr(store_module, "COUNTED_TOKENS", window)
    np.testing.assert_array_equal(store.training_token_uses(10**9), counted(store))


def test_of_a_large_store_windows_all_over_it_stand_for_the_rest(store, monkeypatch):
    monkeypatch.setattr(store_module, "COUNTED_TOKENS", 16)
    uses, every = store.training_token_uses(-(-store.tokens // 4)), counted(store)
    assert uses.sum() == pytest.approx(every.sum(), rel=0.3)
    assert (uses % 4 == 0).all(), "one window of four is read"
    frequent = np.argsort(every)[-5:]
    np.testing.assert_allclose(uses[frequent] / uses.sum(), every[frequent] / every.sum(), rtol=0.4)


def test_the_bias_is_the_log_of_the_frequency_by_the_passes_over_each_store(store, tmp_path):
    other = store_of(tmp_path / "other", [[[9] * 100], [[10] * 28]], held_out={1})
    share = np.exp(unigram_bias([store, other], [1.0, 3.0]).astype(float))
    met = counted(store) + 1 + 3 * (np.bincount([9] * 100, minlength=64) + 1)
    np.testing.assert_allclose(share / share.sum(), met / met.sum(), rtol=1e-5)
    assert unigram_bias([store, other], [2.0, 6.0]) == pytest.approx(unigram_bias([store, other], [1.0, 3.0]))
    assert unigram_bias([store], [1.0]).mean() == pytest.approx(0, abs=1e-6)


def test_the_first_loss_is_the_cross_entropy_of_single_tokens(store):
    """And an entry that pads the vocabulary is as impossible as before."""
    model = build_model(preset="bert-tiny", vocab_size=60, dropout=0.0, seed=0, needs_nsp=True)
    bias = unigram_bias([store], [1.0])
    set_output_bias(model, bias[:60])
    assert (model.cls.predictions.decoder.bias[60:] == PADDING_BIAS).all()
    model = build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True)
    set_output_bias(model, bias)
    mixture = Mixture([store], [1.0], seq_len=32, objective="mlm", seed=0)
    batch = collate(mixture.stores, mixture.epoch(0).samples_at(np.arange(64)), Masking(0.5))
    with torch.no_grad():
        loss = PretrainingModule(model).eval()(batch).mlm / len(batch.mlm_labels)
    alone = cross_entropy(torch.from_numpy(bias).expand(len(batch.mlm_labels), -1), batch.mlm_labels)
    assert float(loss) == pytest.approx(float(alone), abs=0.1)
    assert float(loss) < np.log(64) - 0.5


def config(store: Store, out: Path, **changes: Any) -> TrainConfig:
    shape: dict[str, Any] = dict(layers=1, hidden=48, heads=3, initializer_range=0.1, mlm_bias="unigram")
    settings: dict[str, Any] = dict(steps=2, warmup=0, global_batch=8, save_every=1, lr=1e-6)
    return tiny_run(store.folder, out, **settings | shape | changes)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_a_run_of_a_free_shape_begins_there_at_any_stage_and_is_exported_as_it_is(store, tmp_path, zero):
    """At so small a rate a checkpoint holds what the run began with."""
    run_ranks(2, train, config(store, tmp_path / "run", zero=zero))
    folder = checkpoint_dir(tmp_path / "run", 1)
    model = verify_checkpoint(folder).identity.model
    assert [model[f"num_{name}"] for name in ("hidden_layers", "attention_heads")] == [1, 3]
    assert (model["hidden_size"], model["intermediate_size"]) == (48, 192)
    found = weights(folder)
    np.testing.assert_allclose(found[BIAS].numpy(), unigram_bias([store], [1.0]), atol=1e-5)
    assert found["bert.encoder.layer.0.intermediate.dense.weight"].std() == pytest.approx(0.1, rel=0.02)
    assert "Model            bert-tiny 1x48, 3 heads" in (tmp_path / "run" / "log.txt").read_text()

    main(ExportConfig(tmp_path / "run", tmp_path / "hf"))
    exported = load_config(tmp_path / "hf")
    assert (exported.initializer_range, exported.num_attention_heads) == (0.1, 3)
    assert "bert-tiny 1x48, 3 heads" in (tmp_path / "hf" / "README.md").read_text()

    with pytest.raises(RuntimeError, match=r"holds another model: num_attention_heads differ; .*--heads"):
        run_ranks(1, train, config(store, tmp_path / "run", heads=4, steps=3))


@pytest.mark.slow
def test_a_run_that_goes_on_has_its_bias_from_the_checkpoint(store, tmp_path):
    whole = tmp_path / "whole"
    run_ranks(1, train, config(store, whole, lr=1e-2))
    shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(checkpoint_dir(tmp_path / "cut", 2))
    run_ranks(1, train, config(store, tmp_path / "cut", lr=1e-2))
    again = [lines_of(run, "train")[-1]["mlm_loss"] for run in (whole, tmp_path / "cut")]
    assert again[0] == again[1]
    assert contents(checkpoint_dir(tmp_path / "cut", 2)) == contents(checkpoint_dir(whole, 2))
