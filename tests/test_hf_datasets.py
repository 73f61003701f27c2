"""Hugging Face datasets become the same documents as files do, offline, saved or streamed."""

import re

import numpy as np
import pytest

from data_prep.cli import InputError, parse
from data_prep.shard import ShardConfig, make_store
from data_prep.store import Store
from tests.corpora import as_jsonl, files_of, texts, tiny_vocab, write, write_parquet

DOCUMENTS = texts(120, seed=3)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "v")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    import datasets

    folder = tmp_path_factory.mktemp("data") / "saved"
    rows = [{"id": number, "text": " ".join(document)} for number, document in enumerate(DOCUMENTS)]
    train, test = datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows[:5])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder)
    return folder


def shard(out, vocab, *more):
    """In this process: importing datasets takes longer than all the rest."""
    arguments = ["--vocab", vocab, "--out", out, "--shard_mb", "0.02", "--workers", "1", *more]
    make_store(parse(ShardConfig, None, [str(argument) for argument in arguments]))


def arrays_of(folder):
    store = Store.open(folder)
    return [
        np.concatenate([getattr(part, name) for part in store.shards]).tolist()
        for name in ("tokens", "sentence_lengths")
    ]


def test_a_saved_dataset_gives_what_files_give(saved, vocab, tmp_path):
    for workers in ("1", "2"):
        shard(tmp_path / workers, vocab, "--dataset", saved, "--workers", workers)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    assert len(Store.open(tmp_path / "1").shards) > 1
    write(tmp_path / "a.jsonl", as_jsonl(DOCUMENTS))
    shard(tmp_path / "files", vocab, "--corpus", tmp_path / "a.jsonl")
    assert arrays_of(tmp_path / "1") == arrays_of(tmp_path / "files")
    shard(tmp_path / "test", vocab, "--dataset", f"{saved}:test")
    assert Store.open(tmp_path / "test").manifest.counts.documents == 5


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_folder_of_data_files_is_streamed(vocab, tmp_path, kind):
    (tmp_path / "data").mkdir()
    if kind == "jsonl":
        write(tmp_path / "data/train.jsonl", as_jsonl(DOCUMENTS, "body"))
    else:
        write_parquet(tmp_path / "data/train.parquet", DOCUMENTS, "body")
    shard(tmp_path / "store", vocab, "--dataset", tmp_path / "data", "--column", "body")
    write(tmp_path / "a.jsonl", as_jsonl(DOCUMENTS))
    shard(tmp_path / "files", vocab, "--corpus", tmp_path / "a.jsonl")
    assert arrays_of(tmp_path / "store") == arrays_of(tmp_path / "files")


def test_what_is_missing_is_named(saved, vocab, tmp_path):
    for more, message in (
        (("--dataset", saved, "--column", "body"), "has no column 'body', only ['id', 'text']"),
        (("--dataset", f"{saved}:dev"), "has no split 'dev', only ['test', 'train']"),
        (("--dataset", tmp_path / "gone"), "no such folder"),
        ((), "nothing to read: give --corpus PATH... or --dataset"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            shard(tmp_path / "store", vocab, *more)


def test_splits_to_measure_on_are_left_out_whatever_they_are_called(saved, vocab, tmp_path, capsys):
    import datasets

    found = datasets.load_from_disk(str(saved))
    odd = {
        "Train": found["train"],
        **dict.fromkeys(("val", "eval", "Test", "dev-2", "validation_matched"), found["test"]),
    }
    folder = tmp_path / "a@b:c"  # signs that part configurations and splits from names
    datasets.DatasetDict(odd).save_to_disk(folder)
    shard(tmp_path / "store", vocab, "--dataset", folder)
    assert Store.open(tmp_path / "store").manifest.counts.documents == len(DOCUMENTS)
    assert "splits left out: val, eval, Test, dev-2, validation_matched (name one to read it: :SPLIT)" in (
        capsys.readouterr().err
    )
    shard(tmp_path / "val", vocab, "--dataset", f"{folder}:val")
    assert Store.open(tmp_path / "val").manifest.counts.documents == 5
    datasets.DatasetDict({"test": found["test"]}).save_to_disk(tmp_path / "alone")
    with pytest.raises(InputError, match=r"alone has no split to train on, only \['test'\]; name one: .*alone:SPLIT"):
        shard(tmp_path / "none", vocab, "--dataset", tmp_path / "alone")
