import numpy as np
import pytest

from data_prep.draws import draw
from data_prep.masking import Masking, mask_counts, mask_tokens
from tests.reference.masking import masked_sample

MASK, VOCAB = 4, 50


def samples(lengths: list[int], seed: int = 0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCAB, sum(lengths))
    special = np.zeros(len(ids), bool)
    stops = np.cumsum(lengths)
    for start, stop in zip(stops - lengths, stops, strict=True):
        special[[start, stop - 1]] = True
    return ids, special, np.array(lengths), draw(9, np.arange(len(lengths)))


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_masking_equals_the_naive_reference(rate):
    ids, special, lengths, keys = samples([3, 4, 128, 17, 64, 128, 5])
    corrupted, rows, labels = mask_tokens(ids, special, lengths, keys, MASK, VOCAB, Masking(rate=rate))
    expected_ids: list[int] = []
    expected_rows: list[int] = []
    for start, length, key in zip(np.cumsum(lengths) - lengths, lengths, keys, strict=True):
        span = slice(start, start + length)
        new, chosen = masked_sample(ids[span].tolist(), special[span].tolist(), int(key), MASK, VOCAB, rate)
        expected_ids += new
        expected_rows += [start + position for position in chosen]
    assert corrupted.tolist() == expected_ids
    assert rows.tolist() == expected_rows
    assert labels.tolist() == ids[expected_rows].tolist()


def test_counts_are_exact_and_special_tokens_stay():
    ids, special, lengths, keys = samples([128] * 100)
    corrupted, rows, _ = mask_tokens(ids, special, lengths, keys, MASK, VOCAB)
    assert (np.bincount(rows // 128) == mask_counts(lengths, np.full(100, 2), 0.15)).all()
    assert not special[rows].any()
    untouched = np.ones(len(ids), bool)
    untouched[rows] = False
    assert (corrupted[untouched] == ids[untouched]).all()


def test_eighty_ten_ten():
    ids, special, lengths, keys = samples([512] * 200)
    corrupted, rows, labels = mask_tokens(ids, special, lengths, keys, MASK, VOCAB)
    now = corrupted[rows]
    assert (now == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert (now == labels).mean() == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.01)
    positions = np.bincount(rows % 512, minlength=512)[1:-1]
    assert positions.std() / positions.mean() < 0.3  # no position is preferred


def test_a_sample_is_masked_the_same_in_any_company():
    ids, special, lengths, keys = samples([40, 50, 60])
    together = mask_tokens(ids, special, lengths, keys, MASK, VOCAB)[0]
    alone = mask_tokens(ids[40:90], special[40:90], lengths[1:2], keys[1:2], MASK, VOCAB)[0]
    assert together[40:90].tolist() == alone.tolist()
    other_key = mask_tokens(ids[40:90], special[40:90], lengths[1:2], keys[:1], MASK, VOCAB)[0]
    assert alone.tolist() != other_key.tolist()
