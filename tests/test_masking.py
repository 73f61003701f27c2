import numpy as np
import pytest

from data_prep.samples.counter_rng import random_bits
from data_prep.samples.masking import Masking, mask_counts, mask_tokens
from tests.reference.masking import masked_sample, units_of

MASK, VOCAB = 4, 50
CONTINUES = np.arange(VOCAB) >= 25  # entries that go on with a word


def samples(lengths: list[int], seed: int = 0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCAB, sum(lengths))
    special = np.zeros(len(ids), bool)
    stops = np.cumsum(lengths)
    for start, stop in zip(stops - lengths, stops, strict=True):
        special[[start, stop - 1]] = True
    return ids, special, np.array(lengths), random_bits(9, np.arange(len(lengths)))


@pytest.mark.parametrize("unit", ["token", "word", "span", "ngram"])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_masking_equals_the_naive_reference(rate, unit):
    ids, special, lengths, keys = samples([3, 4, 128, 17, 64, 128, 5, 512, 9, 300])
    masking = Masking(rate=rate, unit=unit)
    corrupted, rows, labels = mask_tokens(
        ids, special, lengths, keys, mask_id=MASK, vocab_size=VOCAB, masking=masking, continues=CONTINUES[ids]
    )
    expected_ids: list[int] = []
    expected_rows: list[int] = []
    for start, length, key in zip(np.cumsum(lengths) - lengths, lengths, keys, strict=True):
        span = slice(start, start + length)
        new, chosen = masked_sample(
            ids[span].tolist(),
            special[span].tolist(),
            int(key),
            MASK,
            VOCAB,
            rate,
            unit,
            CONTINUES[ids[span]].tolist(),
        )
        expected_ids += new
        expected_rows += [start + position for position in chosen]
    assert corrupted.tolist() == expected_ids
    assert rows.tolist() == expected_rows
    assert labels.tolist() == ids[expected_rows].tolist()


def test_counts_are_exact_and_special_tokens_stay():
    ids, special, lengths, keys = samples([128] * 100)
    corrupted, rows, _ = mask_tokens(ids, special, lengths, keys, mask_id=MASK, vocab_size=VOCAB)
    assert (np.bincount(rows // 128) == mask_counts(lengths, np.full(100, 2), 0.15)).all()
    assert not special[rows].any()
    untouched = np.ones(len(ids), bool)
    untouched[rows] = False
    assert (corrupted[untouched] == ids[untouched]).all()


def test_eighty_ten_ten():
    ids, special, lengths, keys = samples([512] * 200)
    corrupted, rows, labels = mask_tokens(ids, special, lengths, keys, mask_id=MASK, vocab_size=VOCAB)
    now = corrupted[rows]
    assert (now == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert (now == labels).mean() == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.01)
    positions = np.bincount(rows % 512, minlength=512)[1:-1]
    assert positions.std() / positions.mean() < 0.3  # no position is preferred


def test_a_sample_is_masked_the_same_in_any_company():
    ids, special, lengths, keys = samples([40, 50, 60])
    together = mask_tokens(ids, special, lengths, keys, mask_id=MASK, vocab_size=VOCAB)[0]
    alone = mask_tokens(ids[40:90], special[40:90], lengths[1:2], keys[1:2], mask_id=MASK, vocab_size=VOCAB)[0]
    assert together[40:90].tolist() == alone.tolist()
    other_key = mask_tokens(ids[40:90], special[40:90], lengths[1:2], keys[:1], mask_id=MASK, vocab_size=VOCAB)[0]
    assert alone.tolist() != other_key.tolist()


def test_whole_words_are_masked_together():
    ids, special, lengths, keys = samples([128] * 50)
    _, rows, _ = mask_tokens(
        ids,
        special,
        lengths,
        keys,
        mask_id=MASK,
        vocab_size=VOCAB,
        masking=Masking(unit="word"),
        continues=CONTINUES[ids],
    )
    assert (np.bincount(rows // 128) == mask_counts(lengths, np.full(50, 2), 0.15)).all()
    hidden = np.zeros(len(ids), bool)
    hidden[rows] = True
    begins = np.flatnonzero(~CONTINUES[ids] | special | np.roll(special, 1))
    parts = [hidden[start:stop] for start, stop in zip(begins, [*begins[1:], len(ids)], strict=True)]
    in_part = [part.any() and not part.all() for part in parts]
    assert sum(in_part) <= 50  # at most one word of a sample is cut
    assert all(part[0] for part in parts if part.any())  # and it keeps its end, not its beginning


def test_spans_are_runs_of_words_of_some_length():
    ids, special, lengths, keys = samples([512] * 100)
    none = np.zeros(len(ids), bool)  # every token is a word
    corrupted, rows, _ = mask_tokens(
        ids, special, lengths, keys, mask_id=MASK, vocab_size=VOCAB, masking=Masking(unit="span"), continues=none
    )
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    assert 3.5 < np.mean([len(run) for run in runs]) < 5  # two drawn runs may touch
    fates = [
        {"mask" if corrupted[row] == MASK else "kept" if corrupted[row] == ids[row] else "random" for row in run}
        for run in runs
        if len(run) < 4
    ]
    assert np.mean([len(fate) == 1 for fate in fates]) > 0.8


@pytest.mark.slow
def test_the_references_ngrams_have_the_lengths_of_macbert():
    words = [len(run) for run in units_of([5] * 20_000, [False] * 20_000, 7, "ngram", [False] * 20_000)]
    counts = np.bincount(words)
    assert counts[1:] / counts.sum() == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.02)


def test_words_need_to_know_the_vocabulary():
    ids, special, lengths, keys = samples([8])
    with pytest.raises(ValueError, match="masking by word needs to know"):
        mask_tokens(ids, special, lengths, keys, mask_id=MASK, vocab_size=VOCAB, masking=Masking(unit="word"))
