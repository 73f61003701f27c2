"""Text that is longer than a sample is trained on all the same, and the share that samples show is counted and said."""

import numpy as np
import pytest

from data_prep.samples import coverage
from data_prep.samples.coverage import look_over
from data_prep.samples.mixture import Mixture
from data_prep.samples.sample_index import Objective, Pieces, Sentences, build_index
from data_prep.shard import coverage_lines
from data_prep.show import ShowConfig, seen
from data_prep.store import Store
from pretrain.data_coverage import data_coverage_of
from pretrain.monitor.console import rendered
from pretrain.monitor.summary import start_summary
from pretrain.run_record import RunRecord
from pretrain.setup import Setup
from tests.runs import tiny_run
from tests.stores import random_documents, store_of

SEQ_LENS = (16, 64, 128)


def seen_in(store: Store, objective: str, seq_len: int, passes: int) -> float:
    """The share of tokens that stand in a sample of some pass, counted one by one."""
    seen: set[int] = set()
    sentences = Sentences.of(store)
    for number in range(passes):
        for sample in build_index(sentences, seq_len=seq_len, objective=objective, seed=0, pass_number=number):  # type: ignore[arg-type]
            for segment in "ab":
                start = int(sample[f"{segment}_start"])
                seen |= set(range(start, start + int(sample[f"{segment}_length"])))
    return len(seen) / int(store.token_starts[-1])


def of_lengths(folder, *lengths: int, documents: int = 4) -> Store:
    """Documents of sentences of these lengths, one after another."""
    rng = np.random.default_rng(0)
    return store_of(folder, [[rng.integers(5, 64, size).tolist() for size in lengths] for _ in range(documents)])


SHAPES = [
    pytest.param((600,), id="one long sentence"),
    pytest.param((3, 300, 4, 5, 130), id="long among short"),
    pytest.param((60,) * 9, id="just below a sample of 64"),
    pytest.param((61, 62, 63) * 4, id="as long as a sample of 64"),
    pytest.param((100,) * 8, id="just below a sample of 128"),
    pytest.param((45,) * 9, id="two are too long"),
]


@pytest.mark.parametrize("lengths", SHAPES)
def test_without_pairs_every_token_is_in_one_sample_of_every_pass(tmp_path, lengths):
    store = of_lengths(tmp_path, *lengths)
    for seq_len in SEQ_LENS:
        samples = build_index(Sentences.of(store), seq_len=seq_len, objective="mlm", seed=0, pass_number=1)
        spans = sorted(zip(samples["a_start"].tolist(), samples["a_length"].tolist(), strict=True))
        assert np.concatenate([np.arange(start, start + size) for start, size in spans]).tolist() == list(
            range(store.tokens)
        )
        assert max(size for _, size in spans) <= seq_len - 2


def test_without_pairs_sentences_that_fit_stay_whole_and_long_ones_fill_their_samples(tmp_path):
    store = of_lengths(tmp_path, 5, 30, 6, 7, documents=1)
    samples = build_index(Sentences.of(store), seq_len=16, objective="mlm", seed=0, pass_number=0)  # 14 tokens each
    # 5 and 9 of the 30, 14, the last 7 and the 6, then the 7 that did not fit.
    assert samples["a_length"].tolist() == [14, 14, 13, 7]
    assert samples["a_start"].tolist() == [0, 14, 28, 41]


@pytest.mark.parametrize("objective", ["nsp", "sop"])
@pytest.mark.parametrize("lengths", SHAPES)
def test_ten_passes_of_pairs_show_nearly_all_tokens(tmp_path, objective, lengths):
    store = of_lengths(tmp_path, *lengths, documents=8)
    for seq_len in (64, 128):
        assert seen_in(store, objective, seq_len, 10) >= 0.99


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_a_sentence_as_long_as_a_sample_has_true_pairs_too(tmp_path, objective):
    """Its rest is what follows: else every B would be random, and no order could be told."""
    store = of_lengths(tmp_path, 900, documents=20)
    samples = build_index(Sentences.of(store), seq_len=64, objective=objective, seed=0, pass_number=0)
    pairs = samples[samples["b_length"] > 0]
    assert len(pairs) > 0.9 * len(samples)
    assert 0.4 < pairs["label"].mean() < 0.6
    true = pairs[pairs["label"] == 0]
    assert (true["b_start"] >= true["a_start"].astype(np.int64) + true["a_length"]).all()


def test_long_sentences_are_cut_at_other_places_in_other_passes(tmp_path):
    sentences = Sentences.of(of_lengths(tmp_path, 10, 200, 10))
    first, second = (Pieces.cut(sentences, 61, 0, number) for number in (0, 1))
    assert first.sentences.ends.tolist() != second.sentences.ends.tolist()
    for pieces in (first, second):
        lengths = np.diff(pieces.sentences.ends)
        assert set(pieces.sentences.ends) >= set(sentences.ends)  # no border of a sentence is lost
        assert lengths.max() <= 15  # a quarter of 61
        assert set(np.searchsorted(sentences.ends, pieces.sentences.ends[pieces.inner]) - 1) == {1, 4, 7, 10}
        assert np.isin(pieces.sentences.ends, sentences.ends).tolist() == (~pieces.is_inner).tolist()
        assert (pieces.sentences.token_starts == pieces.sentences.ends[:-1]).all()


def test_a_random_b_begins_within_a_sentence_where_the_true_one_would(tmp_path):
    """Else the label could be read off the beginning of B."""
    documents = [[[10] * 4 if row % 3 else [20] + [11] * 199 for row in range(30)] for _ in range(12)]
    store = store_of(tmp_path, documents)
    sentences = Sentences.of(store)
    begins = set(sentences.token_starts.tolist())
    clean: dict[int, list[bool]] = {0: [], 1: []}
    for sample in build_index(sentences, seq_len=64, objective="nsp", seed=0, pass_number=0):
        if int(sample["a_length"]) + int(sample["b_length"]) < 61:  # nothing was cut off
            clean[int(sample["label"])].append(int(sample["b_start"]) in begins)
    shares = {label: np.mean(values) for label, values in clean.items()}
    assert min(map(len, clean.values())) > 10
    assert 0 < shares[0] < 1
    # What decides it is A's end, which is chosen before the label.
    after_a = {0: [], 1: []}  # type: ignore[var-annotated]
    samples = build_index(sentences, seq_len=64, objective="nsp", seed=0, pass_number=0)
    for sample in samples[(samples["a_length"] + samples["b_length"]) < 61]:
        ends_clean = int(sample["a_start"]) + int(sample["a_length"]) in begins
        after_a[int(sample["label"])].append(ends_clean == (int(sample["b_start"]) in begins))
    assert np.mean(after_a[0]) == 1
    assert np.mean(after_a[1]) > 0.95  # but where A ends its document


def test_the_label_cannot_be_read_off_the_lengths(tmp_path):
    """A logistic regression on lengths does no better than always saying the more frequent label."""
    store = store_of(tmp_path, random_documents(300, longest=150))
    samples = build_index(Sentences.of(store), seq_len=64, objective="nsp", seed=0, pass_number=0)
    a, b = samples["a_length"].astype(float), samples["b_length"].astype(float)
    features = np.stack([np.ones_like(a), a, b, a + b, a * b, a**2, b**2, (a + b) == 61], 1)
    features[:, 1:] = (features[:, 1:] - features[:, 1:].mean(0)) / (features[:, 1:].std(0) + 1e-9)
    label = samples["label"].astype(float)
    train = np.arange(len(label)) % 2 == 0
    weights = np.linalg.lstsq(features[train], label[train] - 0.5, rcond=None)[0]
    accuracy = ((features[~train] @ weights > 0) == label[~train]).mean()
    assert accuracy < max(label.mean(), 1 - label.mean()) + 0.03


@pytest.mark.parametrize("objective", ["nsp", "sop", "mlm"])
@pytest.mark.parametrize("lengths", SHAPES[:3])
def test_the_share_is_what_one_counts_by_hand(tmp_path, objective, lengths):
    store = of_lengths(tmp_path, *lengths)
    found = look_over([store], objective, 64)
    assert found is not None
    assert found.tokens_seen == pytest.approx(seen_in(store, objective, 64, 1))
    assert found.tokens_seen_10 == pytest.approx(seen_in(store, objective, 64, 10))
    assert found.looked_at == 1


def test_a_large_store_is_judged_by_documents_from_all_over_it(tmp_path, monkeypatch):
    store = store_of(tmp_path, random_documents(400, longest=60), shards=20)
    whole = look_over([store], "nsp", 64)
    monkeypatch.setattr(coverage, "SAMPLED_TOKENS", store.tokens // 10)
    part = look_over([store], "nsp", 64)
    assert whole is not None
    assert part is not None
    assert 0.05 < part.looked_at < 0.2 < whole.looked_at
    assert part.tokens_seen == pytest.approx(whole.tokens_seen, abs=0.03)
    assert "counted on" in part.in_words()


def test_show_and_shard_say_the_share(tmp_path):
    store = of_lengths(tmp_path / "s", 600, documents=2)
    least_of: dict[Objective, float] = {"mlm": 1, "nsp": 0.8}
    for objective, least in least_of.items():
        found = seen(store, ShowConfig(store.folder, objective=objective, seq_len=64))
        assert least <= found["tokens_seen"] <= found["tokens_seen_10"] == 1
    (line, *_) = coverage_lines(store)
    assert "in a pass, 100 % in ten; what pairs cut off differs from pass to pass, --objective mlm" in line


def test_one_document_has_no_pairs_and_show_says_null(tmp_path):
    store = of_lengths(tmp_path, 20, 20, documents=1)
    assert seen(store, ShowConfig(store.folder)) == {"tokens_seen": None, "tokens_seen_10": None}
    assert "nsp needs two documents" in coverage_lines(store)[0]


def test_plan_and_start_say_the_share(tmp_path):
    store = of_lengths(tmp_path / "s", 600, documents=4)
    config = tiny_run(store.folder, tmp_path / "run", objective="mlm")
    found = data_coverage_of(config, [store])
    assert (found.tokens_seen, found.tokens_seen_10) == (1, 1)
    record: RunRecord = {"train": config.to_json(), "outlook": found._asdict(), "deepspeed": {}}
    told = rendered(start_summary(Setup(config, [store], 1, []), record, devices="CPU", resumed_from=None))
    assert "Tokens seen  100 % in a pass" in told.replace("   ", " ")


def test_an_epoch_does_not_depend_on_what_was_looked_at(tmp_path):
    store = of_lengths(tmp_path, 600, 20, 30)
    before = Mixture([store], [1.0], seq_len=64, objective="nsp", seed=0).epoch(0).size
    look_over([store], "nsp", 64)
    assert Mixture([store], [1.0], seq_len=64, objective="nsp", seed=0).epoch(0).size == before
