"""The samples of an epoch: every one once, in an order of its own, from stores with weights; and their tokens."""

import numpy as np
import pytest

from data_prep.samples.assemble import gather_tokens
from data_prep.samples.mixture import Mixture, Samples
from data_prep.samples.sample_index import Sentences, build_index
from tests.stores import random_documents, store_of


def sample_ids(epoch) -> list[tuple]:
    samples = epoch.samples_at(np.arange(epoch.size))
    return list(zip(samples.store.tolist(), samples.key.tolist(), strict=True))


def test_an_epoch_holds_every_sample_once_in_another_order_each_time(tmp_path):
    mixture = Mixture([store_of(tmp_path, random_documents(30))], [1.0], seq_len=32, objective="nsp", seed=3)
    first, second = (mixture.epoch(number) for number in (0, 1))
    assert len(set(sample_ids(first))) == first.size
    starts = [epoch.samples_at(np.arange(epoch.size)).spans["a_start"].tolist() for epoch in (first, second)]
    assert starts[0] != sorted(starts[0])
    assert starts[0] != starts[1]


def test_weights_are_passes_an_epoch_and_fractions_add_up(tmp_path):
    stores = [store_of(tmp_path / name, random_documents(30, seed)) for seed, name in enumerate("ab")]
    mixture = Mixture(stores, [2.5, 0.5], seq_len=32, objective="nsp", seed=0)
    epochs = [mixture.epoch(number) for number in (0, 1)]
    for epoch in epochs:
        counts = np.bincount(epoch.samples_at(np.arange(epoch.size)).store)
        passes = [Mixture([store], [1.0], seq_len=32, objective="nsp", seed=0).epoch(0).size for store in stores]
        assert counts == pytest.approx([2.5 * passes[0], 0.5 * passes[1]], rel=0.1)
    # Two epochs are five whole passes of the first store and one of the second: no sample twice, none left out.
    drawn = [identity for epoch in epochs for identity in sample_ids(epoch)]
    assert len(set(drawn)) == len(drawn)
    whole = Mixture(stores, [5.0, 1.0], seq_len=32, objective="nsp", seed=0).epoch(0)
    assert sorted(sample_ids(whole)) == sorted(drawn)


def test_a_mixture_is_shuffled_through_and_through(tmp_path):
    stores = [store_of(tmp_path / name, random_documents(60, seed)) for seed, name in enumerate("ab")]
    epoch = Mixture(stores, [1.0, 1.0], seq_len=32, objective="nsp", seed=0).epoch(0)
    store = epoch.samples_at(np.arange(epoch.size)).store
    half = epoch.size // 2
    assert store[:half].mean() == pytest.approx(store[half:].mean(), abs=0.1)


def test_assemble_puts_special_tokens_around_the_segments(tmp_path):
    store = store_of(tmp_path, [[[10, 11], [12]], [[20], [21, 22]]])
    samples = Samples(
        np.zeros(2, int),
        np.zeros(2, np.uint64),
        build_index(Sentences.of(store), seq_len=16, objective="sop", seed=0, pass_number=0),
    )
    samples.spans["a_start"], samples.spans["a_length"] = [0, 3], [2, 1]
    samples.spans["b_start"], samples.spans["b_length"] = [4, 0], [2, 0]
    ids, types, special, lengths = gather_tokens((store,), samples)
    cls, sep = 2, 3
    assert ids.tolist() == [cls, 10, 11, sep, 21, 22, sep, cls, 20, sep]
    assert types.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert special.tolist() == [True, False, False, True, False, False, True, True, False, True]
    assert lengths.tolist() == [7, 3]


def test_assemble_reads_each_sample_from_its_own_store(tmp_path):
    stores = tuple(
        store_of(tmp_path / str(word), [[[word] * 4 for _ in range(6)] for _ in range(3)]) for word in (10, 30)
    )
    epoch = Mixture(stores, [1.0, 1.0], seq_len=16, objective="nsp", seed=0).epoch(0)
    samples = epoch.samples_at(np.arange(epoch.size))
    ids, _, special, lengths = gather_tokens(stores, samples)
    owner = np.repeat(samples.store, lengths)
    assert (ids[~special] == np.where(owner == 0, 10, 30)[~special]).all()
    assert set(owner) == {0, 1}
