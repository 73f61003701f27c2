import numpy as np
import pytest

from data_prep.samples.counter_rng import feistel_permutation, feistel_permutations, randint, random_bits, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 100, 4097])
def test_feistel_permutation_is_a_permutation_and_depends_on_its_key(size):
    shuffled = feistel_permutation(np.arange(size), size, key=7)
    assert sorted(shuffled.tolist()) == list(range(size))
    if size > 60:
        assert (shuffled != feistel_permutation(np.arange(size), size, key=8)).mean() > 0.9
        assert (shuffled != np.arange(size)).mean() > 0.9


def test_feistel_permutation_of_a_few_is_that_of_all_at_these_places():
    places = np.array([5, 999, 17])
    assert (
        feistel_permutation(places, 1000, 3).tolist() == feistel_permutation(np.arange(1000), 1000, 3)[places].tolist()
    )


def test_feistel_permutation_is_the_one_that_it_was():
    """Runs go on in the order in which they began: these numbers are part of the format of a checkpoint."""
    assert feistel_permutation(np.arange(4), 1000, 3).tolist() == [434, 307, 706, 535]
    far = feistel_permutation(np.array([0, 1, 1 << 32]), (1 << 33) + 5, (1 << 64) - 1)
    assert far.tolist() == [6196809455, 5311603159, 3199665898]


@pytest.mark.parametrize("sizes", [[1000, 1100, 900], [4096, 4097, 5, 70_000], [3]])
def test_permutations_at_once_are_each_by_itself(sizes):
    rng = np.random.default_rng(0)
    which = rng.integers(0, len(sizes), 3000)
    positions = (rng.random(3000) * np.array(sizes)[which]).astype(np.int64)
    found = feistel_permutations(positions, which, sizes, [7, 8, 9, 10][: len(sizes)])
    for number, size in enumerate(sizes):
        rows = which == number
        assert found[rows].tolist() == feistel_permutation(positions[rows], size, 7 + number).tolist()


def test_draws_are_uniform_and_do_not_correlate_along_any_part_of_the_key():
    rows, columns = np.arange(500)[:, None], np.arange(400)[None, :]
    values = uniform(random_bits(1, rows, columns))
    assert abs(values.mean() - 0.5) < 0.005
    assert abs(values.var() - 1 / 12) < 0.002
    for first, second in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.01
    counts = np.bincount(randint(random_bits(2, np.arange(70_000)), 7), minlength=7)
    assert abs(counts - 10_000).max() < 500


def test_the_order_of_the_parts_of_a_key_matters():
    assert random_bits(1, 2)[0] != random_bits(2, 1)[0]
    assert random_bits(1)[0] != random_bits(1, 0)[0]
