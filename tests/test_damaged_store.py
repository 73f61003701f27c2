"""Damage of a store is found when it is opened, in a time that does not grow with tokens; or when it is met."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import mapped, show
from data_prep import store as store_module
from data_prep.cli import ROOT, InputError
from data_prep.fields import write_sealed
from data_prep.files import write_json
from data_prep.samples.mixture import Mixture
from data_prep.store import HEADER, Store, shard_name
from data_prep.store_manifest import read_manifest
from pretrain import trainer
from pretrain.zero.engine import init_distributed
from tests.damage import sweep
from tests.ranks import run_ranks
from tests.stores import random_documents, store_of

DOCUMENTS = random_documents(12)


@pytest.fixture
def store(tmp_path) -> Path:
    """Two shards; the manifest has its checksum, as data_prep/shard.py writes it."""
    folder = store_of(tmp_path / "store", DOCUMENTS, held_out={1, 5}, shards=2, sources=("a.txt", "b.txt")).folder
    write_sealed(folder / "manifest.json", json.loads((folder / "manifest.json").read_text()))
    return folder


def opened(folder: Path) -> Any:
    """All that a store says, but its identity, in which white space counts."""
    store = Store.open(folder)
    arrays = [array.tolist() for shard in store.shards for array in shard if array is not None]
    return store.manifest, arrays


def test_a_flipped_byte_of_a_manifest_is_never_taken_for_another_content(store):
    counts = sweep(store / "manifest.json", lambda: opened(store))
    assert counts["refused"] > 4 * counts["the same"]  # white space, and the name of the checksum


def test_a_flipped_byte_of_a_header_is_found(store):
    path = store / shard_name(1)
    whole, counts = path.read_bytes(), Counter[str]()
    for place in range(HEADER.size):
        for mask in (0x01, 0x20, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            with pytest.raises(InputError, match=path.name):
                Store.open(store)
            counts["refused"] += 1
    print(f"{path.name}, header: {dict(counts)}")


def test_a_flipped_byte_of_lengths_and_documents_is_found_or_is_no_traceback(store):
    """Behind the tokens: lengths that no longer add up are found at once, other sources or flags by --verify."""
    path = store / shard_name(1)
    whole = path.read_bytes()
    tokens = len(Store.open(store).shards[1].tokens)
    counts = Counter[str]()
    for place in range(HEADER.size + 2 * tokens, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        try:
            found = Store.open(store)
        except InputError:
            counts["refused"] += 1
            continue
        assert found.verify()
        Mixture([found], [1.0], seq_len=32, objective="nsp", seed=0).epoch(0)
        counts["found by --verify"] += 1
    assert counts["refused"] > counts["found by --verify"]


def test_a_shard_of_a_large_store_is_looked_at_when_it_is_used(store):
    whole = Store.open(store)
    path = store / shard_name(1)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(InputError, match=path.name):
        Store.open(store)
    large = Store.open(store, most=5)
    assert (large.is_checked, large.tokens, large.sentences) == (False, whole.tokens, whole.sentences)
    first = int(large.token_starts[1])
    assert len(large.read_spans(np.array([3]), np.array([9]))) == 9
    for use in (lambda: large.read_spans(np.array([first]), np.array([2])), lambda: large.check_shards(1, 2)):
        with pytest.raises(InputError, match=path.name):
            use()
    assert large.check_shards(0, 2) == 2
    with pytest.raises(InputError, match="counts 2 held_out_documents, the shards hold 1"):
        large.end_check(1)


def shards_looked_at(folder: Path) -> list[str]:
    """What a rank of two on a node looks at where they share that, and in the second shard afterwards."""
    os.environ["LOCAL_SIZE"] = "2"
    init_distributed()
    looked: list[str] = []
    check = store_module.check_sums
    store_module.check_sums = lambda path, *rest: (looked.append(path.name), check(path, *rest))  # type: ignore
    large = Store.open(folder, most=5)
    trainer.check_stores([large])
    assert large.is_checked
    assert len(large.shards[1].tokens)
    return looked


def test_the_ranks_of_a_node_share_the_look_at_a_large_store(store, capfd):
    assert run_ranks(2, shards_looked_at, store) == [[shard_name(0)], [shard_name(1)]]
    path = store / shard_name(1)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(RuntimeError, match=f"{path.name} has|rank 1 failed"):
        run_ranks(2, shards_looked_at, store)
    assert f": {path} has" in capfd.readouterr().err


def edited(folder: Path, path: str, value: Any) -> None:
    """Set a field of the manifest, named by its path, as of a version that wrote no checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    *way, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    within = manifest
    for name in way:
        within = within[name]
    if value is None:
        del within[last]
    else:
        within[last] = value
    write_json(folder / "manifest.json", manifest)


EDITS = [
    ("format", "1"), ("format", True), ("format", 2), ("format", None), ("vocab", []), ("vocab.size", 0),
    ("vocab.size", -64), ("vocab.size", 63), ("vocab.size", 10**10), ("vocab.size", 70_000), ("vocab.size", "64"),
    ("vocab.size", 64.0), ("vocab.sha256", "ab"), ("vocab.sha256", 7), ("vocab.special_ids", [0, 1, 2, 3, 4]),
    ("vocab.special_ids.mask", 64), ("vocab.special_ids.mask", -1), ("vocab.special_ids.mask", 2),
    ("vocab.special_ids.mask", None), ("vocab.special_ids.mask", "4"), ("shards", []), ("shards", {}),
    ("shards.0", "shard-00000-000.bin"), ("shards.0.name", "../store/shard-00000-000.bin"),
    ("shards.0.name", "shard-00001-000.bin"), ("shards.0.name", 0), ("shards.0.sha256", None), ("shards.0.bytes", 8),
    ("shards.0.bytes", -8), ("shards.0.tokens", 10**12), ("shards.0.sentences", 1), ("shards.0.documents", 0),
    ("sources", {"path": "a.txt"}), ("sources.0", "a.txt"), ("sources.0.path", 1), ("sources", [{"path": "a.txt"}]),
    ("counts", [1]), ("counts.documents", 13), ("counts.documents", "12"), ("counts.held_out_documents", 3),
    ("token_dtype", "<u4"), ("settings", "none"), ("oddities", []),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), EDITS)
def test_an_edited_field_is_refused_by_name(store, path, value):
    edited(store, path, value)
    started = time.process_time()
    with pytest.raises(InputError, match=str(store)):
        Store.open(store)
    assert time.process_time() - started < 5


def test_a_store_without_checksum_in_its_manifest_is_opened(store):
    before = opened(store)
    edited(store, "token_dtype", "<u2")
    after = opened(store)
    assert after[1] == before[1]
    assert read_manifest(store).counts == before[0].counts


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_store_whose_tokenizer_is_another_is_refused(store, name):
    content = (store / "vocab" / name).read_text()
    (store / "vocab" / name).write_text(content.replace("w7", "x7"))
    with pytest.raises(InputError, match="is not the tokenizer that the store was made with"):
        Store.open(store)


def with_a_token_beyond(folder: Path) -> Path:
    """Flip the highest bit of token 20 of the second shard."""
    path = folder / shard_name(1)
    raw = bytearray(path.read_bytes())
    raw[HEADER.size + 41] ^= 0x80
    path.write_bytes(raw)
    return path


def test_a_token_that_the_vocabulary_has_not_is_named_when_it_is_read(store):
    path = with_a_token_beyond(store)
    found = Store.open(store)
    first = int(found.token_starts[1])
    assert len(found.read_spans(np.array([first, 3]), np.array([20, 9]))) == 29
    with pytest.raises(mapped.FileChangedError, match=rf"{path} is damaged: it holds token 32,\d+, "):
        found.read_spans(np.array([3, first + 19, 0]), np.array([9, 3, 2]))
    with pytest.raises(mapped.FileChangedError, match=str(path)):
        found.token_uses()
    edited(store, "counts.tokens", found.tokens)
    with pytest.raises(InputError, match=str(path)):
        show.main(show.ShowConfig(store))


def test_verifying_is_the_same_in_show_and_before_training(store, capsys):
    trainer.verify_stores([Store.open(store)])
    assert f"verified: {store}" in capsys.readouterr().err
    path = with_a_token_beyond(store)
    with pytest.raises(InputError, match=f"stores of --data are damaged.*{path}: sha256"):
        trainer.verify_stores([Store.open(store)])
    with pytest.raises(SystemExit, match=f"{path}: sha256"):
        show.main(show.ShowConfig(store, verify=True))
    parts = [Store.open(store).verify(part=part, parts=2) for part in range(2)]
    assert [len(lines) for lines in parts] == [0, 1]


def test_a_store_of_one_document_is_verified(tmp_path, capsys):
    """That pairs need two documents has nothing to do with it."""
    folder = store_of(tmp_path / "store", DOCUMENTS[:1], sources=("a.txt",)).folder
    show.main(show.ShowConfig(folder, verify=True))
    assert "verified: all 1 shards" in capsys.readouterr().err


READER = """
import sys, numpy as np
from data_prep.cli import say_once
from data_prep.store import Store
store = Store.open(sys.argv[1])
starts = np.arange(0, store.tokens - 100, 97)
print("reading", flush=True)
try:
    while True:
        store.read_spans(starts, np.full(len(starts), 90))
except OSError as error:  # as a rank does
    say_once(f"error: {error}", about=str(error))
    sys.exit(1)
"""


@pytest.mark.slow
def test_a_shard_cut_under_two_ranks_is_named_once(tmp_path):
    folder = store_of(tmp_path / "store", [[[7] * 100] * 100 for _ in range(4)]).folder
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"WORLD_SIZE": "2", "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        os.truncate(folder / shard_name(0), 5000)
        told = "".join(reader.communicate(timeout=60)[1] for reader in readers)
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert ([reader.returncode for reader in readers], told.count("was cut short")) == ([1, 1], 1), told


@pytest.mark.parametrize("left", [5000, -3])
def test_a_shard_cut_under_a_reader_is_named(tmp_path, left):
    """Cut in the middle, which would be a SIGBUS; and by three bytes, where the last page reads as zeros."""
    documents = [[[7] * 100] * 100 for _ in range(4)]
    folder = store_of(tmp_path / "store", documents).folder
    path = folder / shard_name(0)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        os.truncate(path, left if left > 0 else path.stat().st_size + left)
        _, told = reader.communicate(timeout=60)
    finally:
        reader.kill()
        reader.wait()
    assert (reader.returncode, f"{path} was cut short while it was read" in told) == (1, True), told
