"""Stores too large for one index: an epoch comes in windows, whose indices are made in parts."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data_prep.samples import index_cache
from data_prep.samples import mixture as mixtures
from data_prep.samples.length_table import NodeRanks
from data_prep.samples.mixture import Mixture, Samples
from data_prep.store import Store
from pretrain.data import SampleStream
from pretrain.state import DataPosition
from tests.stores import random_documents, store_of

PLAIN = {name: getattr(mixtures, name) for name in ("LARGE_SENTENCES", "WINDOW_SENTENCES", "PART_SENTENCES")}


streams: list[SampleStream] = []


def stream_of(mixture: Mixture, position: DataPosition) -> SampleStream:
    streams.append(SampleStream(mixture, position))
    return streams[-1]


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Store]:
    folder = tmp_path_factory.mktemp("stores")
    large = store_of(folder / "large", random_documents(120, seed=1), held_out={3, 50}, shards=24)
    return [large, store_of(folder / "small", random_documents(10, seed=2))]


@pytest.fixture(autouse=True)
def small_windows(stores, tmp_path, monkeypatch):
    """Windows of a fifth of the large store, parts of a twelfth."""
    monkeypatch.setenv("ZEROBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "MIN_CACHED_BYTES", 0)
    sentences = sum(len(shard.sentence_lengths) for shard in stores[0].shards)
    monkeypatch.setattr(mixtures, "LARGE_SENTENCES", sentences // 2)
    monkeypatch.setattr(mixtures, "WINDOW_SENTENCES", -(-sentences // 5))
    monkeypatch.setattr(mixtures, "PART_SENTENCES", -(-sentences // 12))
    yield
    while streams:
        streams.pop().mixture.abandon()  # what is made ahead would go into the next test's cache


def mixture_of(stores: list[Store], passes: list[float], **options: Any) -> Mixture:
    settings: dict[str, Any] = dict(seq_len=24, objective="mlm", seed=3)
    return Mixture(stores, passes, **settings | options)


def epoch_of(mixture: Mixture, number: int) -> list[Samples]:
    """The samples of each window, in the order of training."""
    windows = [mixture.epoch(number, window + 1) for window in range(mixture.windows)]
    return [window.samples_at(np.arange(window.size)) for window in windows]


def tokens_seen(samples: Samples, store: int, count: int) -> np.ndarray:
    """How often each token of a store is in a sample of one segment."""
    seen = np.zeros(count, int)
    for span in samples.spans[samples.store == store]:
        seen[span["a_start"] : span["a_start"] + span["a_length"]] += 1
    return seen


def test_the_windows_of_an_epoch_hold_every_token_as_often_as_the_weights_say(stores):
    mixture = mixture_of(stores, [1.0, 2.5])
    windows = [*epoch_of(mixture, 0), *epoch_of(mixture, 1)]
    assert len(windows) == 2 * mixture.windows > 10
    sizes = [len(samples.store) for samples in windows]
    assert max(sizes) < 2 * min(sizes)
    assert all(set(samples.store) == {0, 1} for samples in windows)  # each is a mixture
    both = Samples.concatenate(windows)
    held_out = np.repeat(
        np.concatenate([shard.document_flags for shard in stores[0].shards]),
        [sum(lengths) for lengths in _document_lengths(stores[0])],
    )
    assert (tokens_seen(both, 0, stores[0].tokens) == np.where(held_out, 0, 2)).all()
    assert (tokens_seen(both, 1, stores[1].tokens) == 5).all()
    assert len(set(both.key.tolist())) == len(both.key)  # no two samples are masked alike


def _document_lengths(store: Store) -> list[np.ndarray]:
    return [
        shard.sentence_lengths[begin:end].astype(int)
        for shard in store.shards
        for begin, end in pairwise(np.cumsum([0, *shard.document_sentences]).tolist())
    ]


def test_passes_part_the_shards_otherwise(stores):
    mixture = mixture_of(stores[:1], [1.0], objective="nsp")
    companies = [
        {tuple(mixture._shards_of(mixtures.Part(0, 12 * p + n, 12)) or ()) for n in range(12)} for p in range(2)
    ]
    assert [sorted(shard for part in parts for shard in part) for parts in companies] == [list(range(24))] * 2
    assert companies[0] != companies[1]


def test_any_position_continues_the_stream(stores):
    stream = stream_of(mixture_of(stores, [1.0, 1.0], objective="nsp"), DataPosition())
    positions, drawn = [], []
    for _ in range(20):
        positions.append(DataPosition(**stream.position._asdict()))
        drawn.append(stream.take(37))
    assert {position.window for position in positions} == {*range(1, stream.mixture.windows + 1)}
    assert positions[-1].epoch > 0
    for position, samples in zip(positions[::4], drawn[::4], strict=True):
        again = stream_of(mixture_of(stores, [1.0, 1.0], objective="nsp"), position)
        assert again.draw(37).take(np.arange(37)).key.tolist() == samples.key.tolist()


def test_a_run_of_an_older_version_ends_its_epoch_as_it_began_it(stores, monkeypatch):
    with monkeypatch.context() as before:
        for name, value in PLAIN.items():
            before.setattr(mixtures, name, value)
        stream = stream_of(mixture_of(stores, [1.0, 1.0]), DataPosition())
        stream.take(50)
        position, rest = stream.position, stream._epoch.size - 50
        whole = stream.take(rest)
    assert (position.window, "window" in position.to_json()) == (0, False)
    stream = stream_of(mixture_of(stores, [1.0, 1.0]), position)
    assert stream.take(rest).key.tolist() == whole.key.tolist()
    stream.take(1)
    assert (stream.position.epoch, stream.position.window, stream.position.sample) == (1, 1, 1)


def test_the_ranks_of_a_node_make_each_part_once_and_old_ones_go(stores, monkeypatch, tmp_path):
    made: list[int] = []
    build = mixtures.build_index

    def counted(*arguments, pass_number: int, **options) -> np.ndarray:
        made.append(pass_number)
        return build(*arguments, pass_number=pass_number, **options)

    monkeypatch.setattr(mixtures, "build_index", counted)
    ranks = [mixture_of(stores[:1], [1.0], node=NodeRanks(rank, 4)) for rank in range(4)]
    for window in range(ranks[0].windows):
        epochs = [rank.epoch(0, window + 1) for rank in ranks]
        assert len({epoch.size for epoch in epochs}) == 1
    assert sorted(made) == list(range(12))
    assert len(list((tmp_path / "cache").glob("index-*.npy"))) < 12
