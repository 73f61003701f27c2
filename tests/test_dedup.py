"""Copies are found, the first one stays, and the list is the same whoever makes it."""

import json
import random

import numpy as np
import pytest

from data_prep.cli import InputError
from data_prep.dedup import exact_copies, frequent, near_copies, rows_of
from data_prep.store import Store
from data_prep.text.cleaning import read_drop_list
from tests.corpora import tiny_vocab, write
from tests.forked import fork_script

pytest.importorskip("rensa")


def documents(seed=0):
    """100 texts of 120 words; each tenth one again with a word changed, each 25th one exactly but for case."""
    draw = random.Random(seed)
    words = [f"word{number}" for number in range(2000)]
    found = [draw.choices(words, k=120) for _ in range(100)]
    for number in range(0, 100, 10):
        copy = list(found[number])
        copy[20] = "changed"
        found.append(copy)
    found += [[word.upper() for word in found[number]] for number in range(0, 100, 25)]
    return [" ".join(text) + "\nAll rights reserved." for text in found]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents())
    write(folder / "a.jsonl", lines)
    return folder


def dedup(corpus, out, *more):
    done = fork_script("dedup", "--corpus", corpus, "--out", out, "--shard_mb", "0.03", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_copies_are_found_and_left_out(corpus, tmp_path):
    found = json.loads(dedup(corpus, tmp_path / "drops.npz", "--json", "--line_copies", "50", "--workers", "1"))
    assert found == {"documents": 114, "exact": 4, "near": 10, "lines": 1}
    dedup(corpus, tmp_path / "two.npz", "--line_copies", "50", "--workers", "2")
    assert (tmp_path / "drops.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    options = ("--vocab", tiny_vocab(tmp_path / "v"), "--out", tmp_path / "store", "--shard_mb", "0.03")
    done = fork_script("shard", "--corpus", corpus, *options, "--drop", tmp_path / "drops.npz")
    assert done.returncode == 0, done.stderr
    counts = Store.open(tmp_path / "store").manifest.counts
    assert (counts.documents, counts.dropped_documents, counts.dropped_lines) == (100, 14, 100)


def test_exact_copies_only(corpus, tmp_path):
    found = json.loads(dedup(corpus, tmp_path / "drops.npz", "--json", "--similar", "1"))
    assert found == {"documents": 114, "exact": 4, "near": 0, "lines": 0}


def test_the_parts():
    assert exact_copies(np.array([5, 7, 5, 7, 9])).tolist() == [False, False, True, True, False]
    assert frequent(np.array([3, 1, 3, 2, 3, 2], np.uint64), 2).tolist() == [2, 3]
    for similar in (0.5, 0.7, 0.8, 0.9):
        rows = rows_of(128, similar)
        assert 1 - (1 - similar**rows) ** (128 // rows) >= 0.95
    base = np.arange(128, dtype=np.uint32)
    alike, other = base.copy(), base + 1000
    alike[:10] = 9999
    assert near_copies(np.stack([base, other, alike]), 0.8).tolist() == [False, False, True]


def test_a_list_that_is_none_is_refused(tmp_path):
    for content in (b"", b"not a list"):
        write(tmp_path / "x.npz", content)
        with pytest.raises(InputError, match=r"x\.npz is not a list of .*data_prep/dedup\.py"):
            read_drop_list(tmp_path / "x.npz")
    assert fork_script("dedup", "--out", tmp_path / "y").returncode == 2
