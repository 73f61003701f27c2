"""An index is made once a node, mapped by all, and nothing depends on whether it was."""

import multiprocessing
import time

import numpy as np
import pytest

from data_prep.samples import index_cache
from data_prep.samples import mixture as mixtures
from data_prep.samples.index_cache import cached
from data_prep.samples.mixture import Mixture
from tests.stores import random_documents, store_of


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "MIN_CACHED_BYTES", 0)
    return tmp_path / "cache"


def never():
    raise AssertionError("made again")


def test_what_was_made_is_mapped_and_keyed_by_all_settings(folder):
    first = cached(("store", 128), 0, lambda: np.arange(5))
    assert isinstance(first.base, np.memmap)
    assert cached(("store", 128), 0, never).tolist() == [0, 1, 2, 3, 4]
    assert cached(("store", 128), 1, lambda: np.arange(2)).tolist() == [0, 1]
    assert cached(("store", 256), 0, lambda: np.arange(3)).tolist() == [0, 1, 2]


def test_a_torn_file_is_made_again(folder):
    cached(("s",), 0, lambda: np.arange(500))
    (path,) = folder.glob("*.npy")
    for content in (path.read_bytes()[:-100], b"", b"\x93NUMPY"):
        path.write_bytes(content)
        assert cached(("s",), 0, lambda: np.arange(500)).sum() == 499 * 250


def test_old_passes_are_removed(folder):
    for number in range(6):
        cached(("s",), number, lambda: np.arange(5))
    assert sorted(path.name[-10:] for path in folder.glob("*.npy")) == ["000003.npy", "000004.npy", "000005.npy"]


def test_small_arrays_and_foreign_folders_need_no_file(folder, monkeypatch, capsys):
    monkeypatch.setattr(index_cache, "MIN_CACHED_BYTES", 1000)
    assert cached(("s",), 0, lambda: np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert not list(folder.glob("*.npy"))
    monkeypatch.setenv("ZEROBERT_CACHE", "/proc/none")
    assert len(cached(("s",), 0, lambda: np.arange(5000))) == 5000
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_said_and_survived(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_cache, "_save", full)
    assert len(cached(("s",), 0, lambda: np.arange(5))) == 5
    assert "the index is not kept in" in capsys.readouterr().err


def _make_slowly(queue):
    def make():
        queue.put("made")
        time.sleep(0.3)
        return np.arange(5)

    queue.put(cached(("s",), 0, make).sum())


def test_of_several_processes_one_makes_it():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_make_slowly, args=(queue,)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=20) for _ in range(5)]
    for process in processes:
        process.join()
    assert found.count("made") == 1
    assert found.count(10) == 4


def test_a_mixture_gives_the_same_with_and_without(tmp_path, monkeypatch):
    store = store_of(tmp_path / "store", random_documents(30))
    plain = [
        Mixture([store], [1.5], seq_len=32, objective="nsp", seed=3)._spans(mixtures.Part(0, number, 1))
        for number in range(3)
    ]
    mixture = Mixture([store], [1.5], seq_len=32, objective="nsp", seed=3)
    mixture.epoch(0)
    mixture.prefetch_epoch(1)
    mixture.epoch(1)
    monkeypatch.setattr(mixtures, "build_index", lambda *_, **__: never())
    again = Mixture([store], [1.5], seq_len=32, objective="nsp", seed=3)
    assert all((again._spans(mixtures.Part(0, number, 1)) == plain[number]).all() for number in range(3))
    with pytest.raises(AssertionError, match="made again"):
        Mixture([store], [1.5], seq_len=32, objective="nsp", seed=4).epoch(0)
