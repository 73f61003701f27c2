from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data_prep.cli import InputError
from data_prep.samples import sample_index
from data_prep.samples.sample_index import Objective, Sentences, build_index, usage_counts
from data_prep.store import Store
from tests.reference.pairs import mlm_samples, nsp_samples, sop_samples
from tests.stores import random_documents, store_of


def tokens_of(store, start, length) -> tuple[int, ...]:
    return tuple(store.read_spans(np.array([start]), np.array([length])).tolist())


def as_tokens(store, samples) -> list[tuple]:
    return [
        (tokens_of(store, s["a_start"], s["a_length"]), tokens_of(store, s["b_start"], s["b_length"]), bool(s["label"]))
        for s in samples
    ]


@pytest.mark.parametrize("seq_len", [8, 16, 64])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("chain", [1, 3, 128])
@pytest.mark.parametrize(("count", "longest"), [(30, 12), (6, 70)])  # sentences shorter than most samples, and longer
def test_samples_equal_the_naive_reference(tmp_path, monkeypatch, seq_len, shards, chain, count, longest):
    monkeypatch.setattr(sample_index, "CHUNK_SAMPLES", chain)
    monkeypatch.setattr(sample_index, "BLOCK_SIZE", 9)
    documents = random_documents(count, longest=longest)
    store = store_of(tmp_path, documents, shards=shards)
    by_objective: dict[Objective, list[Any]] = {
        "nsp": nsp_samples(documents, seq_len, 5, 2, chain),
        "sop": sop_samples(documents, seq_len, 5, 2, chain),
        "mlm": mlm_samples(documents, seq_len, chain),
    }
    for objective, expected in by_objective.items():
        found = as_tokens(
            store, build_index(Sentences.of(store), seq_len=seq_len, objective=objective, seed=5, pass_number=2)
        )
        assert sorted(found) == sorted(expected), objective


def test_half_of_the_pairs_are_random_and_come_from_other_documents(tmp_path):
    # Every token names its document, so a pair says itself where it comes from.
    documents = [[[10 + number] * 6 for _ in range(40)] for number in range(40)]
    store = store_of(tmp_path, documents)
    found = as_tokens(store, build_index(Sentences.of(store), seq_len=32, objective="nsp", seed=0, pass_number=0))
    for a, b, is_random in found:
        assert len(set(a)) == len(set(b)) == 1
        assert (set(a) != set(b)) == is_random
    assert abs(np.mean([is_random for *_, is_random in found]) - 0.5) < 0.05
    assert len({b[0] for _, b, is_random in found if is_random}) == 40


def test_one_sample_in_ten_is_short(tmp_path):
    store = store_of(tmp_path, [[[7]] * 2000 for _ in range(4)])
    samples = build_index(Sentences.of(store), seq_len=64, objective="nsp", seed=0, pass_number=0)
    lengths = samples["a_length"].astype(int) + samples["b_length"]
    assert lengths.max() == 61
    assert 0.06 < (lengths < 61).mean() < 0.15


def test_every_sentence_of_a_pass_is_used_as_a_or_true_b(tmp_path):
    documents = random_documents(20, longest=3)
    store = store_of(tmp_path, documents)
    samples = build_index(
        Sentences.of(store), seq_len=128, objective="nsp", seed=0, pass_number=0
    )  # long enough that hardly anything is cut off
    used = np.zeros(int(store.token_starts[-1]), bool)
    for sample in samples:
        used[sample["a_start"] : sample["a_start"] + sample["a_length"]] = True
        if not sample["label"]:
            used[sample["b_start"] : sample["b_start"] + sample["b_length"]] = True
    assert used.mean() > 0.99


def test_sop_swaps_half_of_the_true_pairs(tmp_path):
    store = store_of(tmp_path, [[[10 + row] * 3 for row in range(50)] for _ in range(60)])
    found = as_tokens(store, build_index(Sentences.of(store), seq_len=32, objective="sop", seed=0, pass_number=0))
    swapped = [a[0] > b[0] for a, b, _ in found if b]
    assert swapped == [label for _, b, label in found if b]
    assert 0.4 < np.mean(swapped) < 0.6


def test_mlm_samples_are_whole_sentences_of_one_document_and_use_all_tokens(tmp_path):
    documents = random_documents(20)
    store = store_of(tmp_path, documents)
    samples = build_index(Sentences.of(store), seq_len=32, objective="mlm", seed=0, pass_number=0)
    assert not samples["b_length"].any()
    spans = sorted((int(s["a_start"]), int(s["a_length"])) for s in samples)
    assert spans[0][0] == 0
    assert all(start + length == following for (start, length), (following, _) in pairwise(spans))
    assert sum(length for _, length in spans) == int(store.token_starts[-1])


def test_held_out_documents_are_never_trained_on(tmp_path):
    documents = [[[10 + number] * 4 for _ in range(10)] for number in range(20)]
    store = store_of(tmp_path, documents, held_out={4, 9})
    for held_out, expected in ((False, set(range(20)) - {4, 9}), (True, {4, 9})):
        found = as_tokens(
            store, build_index(Sentences.of(store, held_out), seq_len=32, objective="nsp", seed=0, pass_number=0)
        )
        assert {a[0] - 10 for a, _, _ in found} == expected
        assert {b[0] - 10 for _, b, _ in found} <= expected


def test_numbers_beyond_32_bits_hold(tmp_path):
    """A stand-in for a store of 2^33 tokens: the same sentences, far out."""
    store = store_of(tmp_path, random_documents(30))
    near, far = Sentences.of(store), 1 << 33
    there = near._replace(token_starts=near.token_starts + far)
    for objective in ("nsp", "sop", "mlm"):
        expected = build_index(near, seq_len=32, objective=objective, seed=0, pass_number=0)
        found = build_index(there, seq_len=32, objective=objective, seed=0, pass_number=0)
        assert (found["a_start"] == expected["a_start"] + far).all()
        assert (found["a_length"] == expected["a_length"]).all()
    shards = (store.shards[0]._replace(tokens=np.broadcast_to(np.uint16(7), far)), store.shards[0])
    long = Store(store.folder, store.manifest, store.identity, shards)
    assert long.token_starts[-1] > 1 << 33
    assert long.read_spans(np.array([far - 2, far + 3]), np.array([2, 4])).tolist() == [
        *[7, 7],
        *store.shards[0].tokens[3:7].tolist(),
    ]


def test_one_document_is_no_corpus_for_nsp(tmp_path):
    store = store_of(tmp_path, [[[10], [11]]])
    with pytest.raises(InputError, match="two documents"):
        build_index(Sentences.of(store), seq_len=16, objective="nsp", seed=0, pass_number=0)
    assert len(build_index(Sentences.of(store), seq_len=16, objective="sop", seed=0, pass_number=0)) == 1


@pytest.mark.parametrize("objective", ["nsp", "sop"])
@pytest.mark.parametrize("seq_len", [16, 64])
def test_every_sentence_is_taken_once_and_what_samples_show_agrees(tmp_path, objective, seq_len):
    """Before truncation, once; after it, what is left of a sentence lies in the samples that took it."""
    store = store_of(tmp_path, random_documents(300, seed=4))
    sentences = Sentences.of(store)
    for number in (0, 1):
        times = usage_counts(sentences, seq_len=seq_len, objective=objective, seed=5, pass_number=number)
        assert (times == 1).all()
        assert len(times) == len(sentences.token_starts)
    samples = build_index(sentences, seq_len=seq_len, objective=objective, seed=5, pass_number=0)
    true_b = samples["label"] == 0 if objective == "nsp" else np.ones(len(samples), bool)
    tokens = samples["a_length"].astype(np.int64).sum() + samples["b_length"][true_b].astype(np.int64).sum()
    assert 0.5 * sentences.ends[-1] < tokens <= sentences.ends[-1]
