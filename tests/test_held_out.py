"""One-sentence documents, and corpora too small to hold anything out: said with the remedy, or mended."""

import numpy as np
import pytest

from data_prep.cli import InputError
from data_prep.shard import ShardConfig, make_store
from data_prep.sharding import manifest
from data_prep.sharding.held_out import LEAST, Lowest, least_of
from data_prep.show import ShowConfig, seen
from data_prep.store import HELD_OUT, Store
from pretrain.data_coverage import data_coverage_of
from pretrain.evaluation import held_out_set
from pretrain.setup import Setup
from tests.corpora import as_jsonl, files_of, texts, tiny_vocab, write
from tests.runs import tiny_run
from tests.stores import random_documents, store_of


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "vocab")


@pytest.fixture
def shard(vocab, capfd):
    """Make a store; returns what was said."""

    def make(corpus, out, **settings) -> str:
        capfd.readouterr()
        make_store(ShardConfig(vocab=vocab, out=out, corpus=(str(corpus),), **{"workers": 1} | settings))
        return capfd.readouterr().err

    return make


def held_out(store: Store) -> list[str]:
    """First tokens of the documents held out, which tell them apart."""
    found = []
    for part in store.shards:
        ends = np.cumsum(part.document_sentences)[part.document_flags & HELD_OUT > 0]
        found += [str(part.sentence_lengths[end - 3 : end].tolist()) for end in ends]
    return found


def tweets(folder, count: int = 60):
    rng = np.random.default_rng(0)
    return store_of(folder, [[rng.integers(5, 64, 9).tolist()] for _ in range(count)], held_out={3, 5})


@pytest.mark.parametrize(("documents", "least"), [(1, 0), (9, 0), (10, 2), (29, 2), (57, 5), (80, 8), (10**6, LEAST)])
def test_a_tenth_of_a_small_corpus_is_held_out_at_least(documents, least):
    assert least_of(documents) == least


def test_a_small_corpus_holds_out_the_same_documents_whoever_makes_the_store(shard, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path / f"corpus/{name}.jsonl", as_jsonl(texts(40, seed=seed)))
    made = {}
    for name, more in (("one", {}), ("two", {"workers": 2}), ("cut", {"shard_mb": 0.003})):
        assert "80 documents (8 held out)" in shard(tmp_path / "corpus", tmp_path / name, **more)
        made[name] = Store.open(tmp_path / name)
        assert not made[name].verify()
        flags = np.concatenate([part.document_flags for part in made[name].shards])
        assert np.count_nonzero(flags & HELD_OUT) == made[name].manifest.counts.held_out_documents == 8
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert held_out(made["one"]) == held_out(made["cut"])


def test_a_finish_that_was_cut_short_comes_to_the_same(shard, tmp_path, monkeypatch):
    corpus = write(tmp_path / "a.jsonl", as_jsonl(texts(40)))
    shard(corpus, tmp_path / "whole")

    def dies(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "completed_manifest", dies)  # after the shards were rewritten
        with pytest.raises(OSError, match="full"):
            shard(corpus, tmp_path / "again")
    shard(corpus, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")


def test_what_is_added_is_held_out_where_the_store_has_too_few(shard, tmp_path):
    write(tmp_path / "a.jsonl", as_jsonl(texts(8)))
    write(tmp_path / "b.jsonl", as_jsonl(texts(32, seed=5)))
    assert "(0 held out)" in shard(tmp_path / "a.jsonl", tmp_path / "store")
    before = files_of(tmp_path / "store")
    assert "40 documents (4 held out)" in shard(tmp_path / "b.jsonl", tmp_path / "store", append=True)
    after = files_of(tmp_path / "store")
    assert all(after[name] == content for name, content in before.items() if name.endswith(".bin"))


def test_copies_of_a_document_are_on_one_side_and_never_most_of_the_text(shard, tmp_path):
    copies = write(tmp_path / "copies.jsonl", as_jsonl(texts(1) * 30 + texts(10, seed=3)))
    shard(copies, tmp_path / "store")
    found = held_out(Store.open(tmp_path / "store"))
    assert len(found) == 2
    assert len(set(found)) == len(found)  # all thirty copies train, or would be held out
    lowest = Lowest()
    for row, digest in enumerate([9, 5, 9, 7, *range(100, 200)]):
        lowest.add(digest, row)
    assert lowest.to_json()[:4] == [[5, 1], [7, 3], [9, 0], [9, 2]]
    assert len({digest for digest, _ in lowest.to_json()}) == LEAST


def test_holdout_0_holds_out_nothing_and_says_what_that_means(shard, tmp_path):
    write(tmp_path / "a.jsonl", as_jsonl(texts(40)))
    said = shard(tmp_path / "a.jsonl", tmp_path / "store", holdout=0)
    assert "(0 held out)" in said
    assert "warning: no evaluation, and --patience is refused" in said
    assert "larger --holdout" in said


def test_shard_warns_of_documents_of_one_sentence(shard, tmp_path):
    write(tmp_path / "a.jsonl", as_jsonl([[f"The river {number}."] for number in range(40)]))
    said = shard(tmp_path / "a.jsonl", tmp_path / "store")
    assert "B can only be random, and the label says nothing; use --objective mlm" in said
    shown = seen(Store.open(tmp_path / "store"), ShowConfig(tmp_path / "store"))
    assert shown["without_choice"] == 1


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_a_run_whose_labels_say_nothing_is_refused(tmp_path, objective):
    store = tweets(tmp_path / "store")
    with pytest.raises(InputError, match=r"100 % of the samples .* hold one sentence.*use --objective mlm"):
        data_coverage_of(tiny_run(store.folder, tmp_path / "run", objective=objective), [store])
    data_coverage_of(tiny_run(store.folder, tmp_path / "run", objective="mlm"), [store])


def test_a_run_with_many_forced_labels_is_warned_of(tmp_path):
    half = [*[[[7] * 9]] * 60, *random_documents(4)]
    store = store_of(tmp_path / "store", half, held_out={1, 2})
    found = data_coverage_of(tiny_run(store.folder, tmp_path / "run"), [store])
    assert "hold one sentence" in found.warnings[0]
    ordinary = store_of(tmp_path / "ordinary", random_documents(40), held_out={1, 2})
    assert data_coverage_of(tiny_run(ordinary.folder, tmp_path / "run"), [ordinary]).warnings == []


@pytest.mark.parametrize(("kept", "objective", "possible"), [((), "mlm", 0), ((1,), "nsp", 0), ((1,), "mlm", 1)])
def test_an_evaluation_that_cannot_be_is_said_and_patience_refused(tmp_path, kept, objective, possible):
    store = store_of(tmp_path / "store", random_documents(20), held_out=kept)
    settings = {"objective": objective, "eval_samples": 8, "eval_every": 2}
    found = data_coverage_of(tiny_run(store.folder, tmp_path / "run", **settings), [store])
    assert found.is_evaluated == bool(possible)
    if possible:
        assert not found.no_evaluation
        return
    assert "of 20 documents" in found.no_evaluation
    assert "larger --holdout" in found.no_evaluation
    assert found.no_evaluation in found.warnings
    patient = tiny_run(store.folder, tmp_path / "run", **settings, patience=3)
    setup = Setup(patient, [store], ranks=1, phases=[])
    assert held_out_set(setup, phase=None) is None  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--patience 3 waits for evaluations that cannot be"):
        data_coverage_of(patient, [store])


def test_patience_without_evaluations_on_the_way_is_refused(tmp_path):
    for settings in ({"eval_samples": 0}, {"eval_samples": 8, "eval_every": 0}):
        with pytest.raises(InputError, match="--patience 3 waits for evaluations on the way"):
            tiny_run(tmp_path, tmp_path / "run", patience=3, **settings)
