"""Held-out evaluation: the same samples at any world size, and sums by the source that they come from."""

from pathlib import Path, PurePath

import numpy as np
import pytest
import torch

from data_prep.samples.mixture import Mixture
from data_prep.store import HELD_OUT, Store
from pretrain.evaluation import HeldOutSet
from pretrain.model import Losses, PretrainingModule, build_model
from pretrain.source_names import MAX_SOURCES, file_groups, sources_of, store_names
from tests.stores import random_documents, store_of

FILES = ("en/wiki-00.txt", "en/wiki-01.txt", "en/laws.jsonl.gz")
HELD = {2, 5, 6, 9, 16, 17, 20, 21}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return store_of(tmp_path_factory.mktemp("store"), random_documents(30), held_out=HELD, shards=2, sources=FILES)


def held_out(*stores: Store, objective: str = "nsp") -> Mixture:
    return Mixture(stores, [1.0] * len(stores), seq_len=32, objective=objective, seed=4, held_out=True)  # type: ignore[arg-type]


def chosen(mixture: Mixture, samples: int, batch_size: int, rank: int = 0, world: int = 1) -> HeldOutSet:
    return HeldOutSet.choose(mixture, samples=samples, batch_size=batch_size, rank=rank, world=world)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_sample_is_there_once_at_any_world_size(store, world):
    sets = [chosen(held_out(store), 10, 4, rank, world) for rank in range(world)]
    assert len({len(evaluation.batches) for evaluation in sets}) == 1, "ranks must run as many batches under ZeRO-3"
    found = {
        number: (batch.input_ids.tolist(), batch.mlm_labels.tolist(), source.tolist())
        for evaluation in sets
        for number, batch, source in evaluation.batches
        if number < evaluation.batch_count
    }
    alone = chosen(held_out(store), 10, 4)
    assert found == {
        number: (batch.input_ids.tolist(), batch.mlm_labels.tolist(), source.tolist())
        for number, batch, source in alone.batches
    }
    assert sum(source.masked for source in alone.sources) == sum(len(b.mlm_labels) for _, b, _ in alone.batches)
    assert sum(source.samples for source in alone.sources) == 10


def test_a_samples_source_is_that_of_the_document_it_begins_in(store):
    samples = held_out(store).epoch(0).samples_at(np.arange(20))
    names, owners = sources_of([store], samples)
    assert names == ["laws", "wiki"]
    documents = []  # source and tokens, in the order of the store
    for shard in store.shards:
        sentences = np.split(shard.sentence_lengths.astype(int), np.cumsum(shard.document_sentences)[:-1])
        documents += list(zip(shard.document_sources, map(sum, sentences), shard.document_flags, strict=True))
    per_token = np.concatenate([np.full(length, source) for source, length, _ in documents])
    is_held_out = np.concatenate([np.full(length, flag & HELD_OUT) for _, length, flag in documents])
    starts = samples.spans["a_start"]
    assert is_held_out[starts].all()
    assert [names[owner] for owner in owners] == [["wiki", "wiki", "laws"][n] for n in per_token[starts]]
    assert len(set(owners)) == 2


def test_several_stores_are_the_sources(store, tmp_path):
    other = store_of(tmp_path / "other", random_documents(20, seed=9), held_out={1, 4}, sources=FILES)
    found = chosen(held_out(store, other), 1000, 4).sources
    assert [source.name for source in found] == sorted([store.folder.name, "other"])
    assert all(source.samples for source in found)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/en/store", "runs/zh/store"], ["en", "zh"]),
        (["a/wiki", "b/laws"], ["wiki", "laws"]),
        (["a/x/wiki", "a/y/wiki", "a/laws"], ["x/wiki", "y/wiki", "a/laws"]),
        (["same", "same"], ["same", "same"]),
    ],
)
def test_names_of_stores_are_short_and_differ(folders, names):
    assert store_names([PurePath(folder) for folder in folders]) == names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["c/books-00.jsonl.gz", "c/books-01.jsonl.gz", "c/news.txt"], ["books", "books", "news"]),
        (["c/wiki/train-00000-of-00002.parquet", "c/laws/train-00001-of-00002.parquet"], ["wiki", "laws"]),
        (["corpus.txt"], [""]),
        (["c/de/00.txt", "c/de/01.txt", "c/en/00.txt"], ["de", "de", "en"]),
        ([f"c/{kind}/{letter}.txt" for kind in "xy" for letter in "abcdefghijklm"], ["x"] * 13 + ["y"] * 13),
        ([f"c/{letter}{letter}.txt" for letter in "abcdefghijklmnop"], [""] * 16),
    ],
)
def test_files_are_grouped_under_few_names(paths, names):
    found = file_groups(paths)
    assert found == names
    assert len(set(found)) <= MAX_SOURCES


def test_no_file_has_a_name_of_its_own_beside_its_group():
    held_out = ["c/old/Lydia 084 (copy).txt", "c/old/Lydia 091.txt", "c/new/Lydia 3.txt", "c/new/Notes (2020).txt"]
    assert file_groups(held_out) == ["old/Lydia", "old/Lydia", "new/Lydia", "new/Notes (2020)"]
    assert file_groups(held_out[:1] + held_out[3:], held_out)[0] == "old/Lydia"  # the others are not held out


def tiny_module() -> PretrainingModule:
    return PretrainingModule(build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True)).eval()


@pytest.mark.parametrize("objective", ["nsp", "mlm"])
def test_sums_by_sample_add_up_to_those_of_the_batch(store, objective):
    model = PretrainingModule(
        build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True)
    ).eval()
    for _, batch, _ in chosen(held_out(store, objective=objective), 12, 5).batches:
        with torch.no_grad():
            whole, by_sample = model(batch), model(batch, by_sample=True)
        assert all(values.shape == batch.nsp_labels.shape for values in by_sample)
        for name, total, values in zip(Losses._fields, whole, by_sample, strict=True):
            torch.testing.assert_close(values.sum(), total, rtol=1e-5, atol=1e-6, msg=name)


def test_a_samples_loss_is_that_of_the_sample_alone(store):
    model = PretrainingModule(
        build_model(preset="bert-tiny", vocab_size=64, dropout=0.0, seed=0, needs_nsp=True)
    ).eval()
    together, alone = (chosen(held_out(store), 6, size) for size in (6, 1))
    singles = {}
    with torch.no_grad():
        for _, batch, source in alone.batches:
            singles[tuple(batch.input_ids.tolist())] = (model(batch).mlm.item(), source.item())
        (_, batch, sources), *_ = together.batches
        losses = model(batch, by_sample=True).mlm
    for ids, loss, source in zip(batch.input_ids.split(batch.seqlens.lengths), losses, sources, strict=True):
        expected, expected_source = singles[tuple(ids.tolist())]
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert source == expected_source


def test_a_store_without_sources_is_one(tmp_path: Path):
    bare = store_of(tmp_path / "bare", random_documents(20), held_out={1, 4})
    assert [source.name for source in chosen(held_out(bare), 10, 4).sources] == ["bare"]
