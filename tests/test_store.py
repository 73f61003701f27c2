"""The store's bytes are what docs/format.md says, and whatever is wrong with them is named."""

import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import InputError
from data_prep.store import Sections, Store, read_shard, shard_name, write_shard
from data_prep.store_manifest import token_dtype
from data_prep.tokens.tokenizer_folder import tokenizer_sha256
from tests.stores import store_of

SHA = "ab" * 32
DOCUMENTS = [[[10, 11, 12], [13]], [[20]], [[30, 31], [32], [33, 34]]]


WORDS = np.array([0b10010], np.uint8)  # tokens 1 and 4 go on with a word


def sections(dtype="<u2", words=None):
    """Two documents: of two sentences, and of one."""
    return Sections(
        np.array([10, 11, 12, 13, 14], dtype),
        np.array([2, 1, 2]),
        np.array([2, 1]),
        np.array([0, 70_000]),
        np.array([0, 1]),
        words,
    )


@pytest.mark.parametrize("token_bytes", [2, 4])
def test_a_reader_of_format_md_alone_finds_everything(tmp_path, token_bytes):
    """Written from docs/format.md with struct and numpy.fromfile only."""
    path = tmp_path / shard_name(3, 1)
    assert path.name == "shard-00003-001.bin"
    write_shard(path, sections(f"<u{token_bytes}"), SHA)
    with open(path, "rb") as file:
        head = struct.unpack("<8sII32sQQQ56x", file.read(128))
        assert head == (b"ZBSTORE\0", 1, token_bytes, bytes.fromhex(SHA), 5, 3, 2)
        arrays = []
        for kind, count in ((f"<u{token_bytes}", 5), ("<u2", 3), ("<u4", 2), ("<u4", 2), ("u1", 2)):
            arrays.append(np.fromfile(file, kind, count).tolist())
            file.seek(-file.tell() % 8, 1)
        assert file.read() == b""
    assert arrays == [[10, 11, 12, 13, 14], [2, 1, 2], [2, 1], [0, 70_000], [0, 1]]


def test_a_reader_of_format_md_alone_finds_which_tokens_go_on_with_a_word(tmp_path):
    path = tmp_path / "a"
    write_shard(path, sections(words=WORDS), SHA)
    with open(path, "rb") as file:
        _, version, token_bytes, _, tokens, sentences, documents = struct.unpack("<8sII32sQQQ56x", file.read(128))
        assert version == 2
        for size in (tokens * token_bytes, sentences * 2, documents * 4, documents * 4, documents):
            file.seek(size, 1)
            file.seek(-file.tell() % 8, 1)
        bits = np.fromfile(file, "u1", (tokens + 7) // 8)
        file.seek(-file.tell() % 8, 1)
        assert file.read() == b""
    assert [int(bits[token // 8] >> token % 8 & 1) for token in range(tokens)] == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("words", [None, WORDS])
def test_what_is_written_is_read(tmp_path, words):
    write_shard(tmp_path / "a", sections(words=words), SHA)
    for found, written in zip(read_shard(tmp_path / "a", SHA), sections(words=words), strict=True):
        np.testing.assert_array_equal(found, written)
    nothing = sections(words=words)._replace(**{name: np.zeros(0, "u1") for name in Sections._fields[:5]})
    nothing = nothing._replace(tokens=np.zeros(0, "<u2"), continues=None if words is None else np.zeros(0, "u1"))
    write_shard(tmp_path / "b", nothing, SHA)
    assert [len(array) for array in read_shard(tmp_path / "b", SHA) if array is not None] == [0] * (6 - (words is None))


def test_vocabularies_above_65536_take_four_bytes():
    assert (token_dtype(65_536), token_dtype(65_537)) == (np.dtype("<u2"), np.dtype("<u4"))


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_tokens_have_one_number_over_all_shards(tmp_path, shards):
    store = store_of(tmp_path, DOCUMENTS, shards=shards)
    assert store.token_starts[-1] == 10
    read = store.read_spans(np.array([5, 0, 4, 9]), np.array([3, 2, 1, 1]))
    assert read.tolist() == [30, 31, 32, 10, 11, 20, 34]


def test_a_store_of_more_shards_than_files_may_be_open_is_read(tmp_path):
    documents = [[[5 + number % 50, 6]] for number in range(300)]
    store_of(tmp_path, documents, shards=300)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        before = len(os.listdir("/proc/self/fd"))
        store = Store.open(tmp_path)
        assert store.read_spans(np.arange(0, 600, 2), np.ones(300, int)).tolist() == [d[0][0] for d in documents]
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    last, maps = tmp_path / shard_name(299), Path("/proc/self/maps")
    assert str(last) in maps.read_text()
    del store
    assert str(last) not in maps.read_text()  # given back with the last array


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-8], "has 168 bytes, its header says 176"),
        (lambda raw: raw + b"12345678", "has 184 bytes, its header says 176"),
        (lambda raw: raw[:100], "is not a shard of a token store"),
        (lambda raw: b"", "cannot be read"),
        (lambda raw: b"X" + raw[1:], "is not a shard of a token store"),
        (lambda raw: raw[:8] + b"\2" + raw[9:], "has 176 bytes, its header says 184"),
        (lambda raw: raw[:8] + b"\3" + raw[9:], "has format 3, this version reads 1 and 2"),
        (lambda raw: raw[:16] + b"\0" + raw[17:], "was made with tokenizer"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage, message):
    path = tmp_path / "shard-00000-000.bin"
    write_shard(path, sections(), SHA)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"shard-00000-000\.bin {message}"):
        read_shard(path, SHA)


def test_a_store_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="gone does not exist"):
        Store.open(tmp_path / "gone")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        Store.open(tmp_path)
    store = store_of(tmp_path / "s", DOCUMENTS)
    assert Store.open(tmp_path / "s", store.vocab_sha256).identity == store.identity
    with pytest.raises(
        InputError, match=f"was made with tokenizer {store.vocab_sha256[:12]}, this run uses abababababab"
    ):
        Store.open(tmp_path / "s", SHA)
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    for content, message in (("{", "is damaged"), (json.dumps(manifest | {"format": 7}), "has format 7, this version")):
        (tmp_path / "s/manifest.json").write_text(content)
        with pytest.raises(InputError, match=message):
            Store.open(tmp_path / "s")


def test_verify_finds_one_changed_byte(tmp_path):
    store = store_of(tmp_path, DOCUMENTS, shards=2)
    assert store.verify() == []
    path = tmp_path / shard_name(1)
    raw = bytearray(path.read_bytes())
    raw[130] ^= 1
    path.write_bytes(raw)
    assert [line.split(":")[0] for line in store.verify()] == [str(path)]


def test_a_tokenizers_identity_is_what_decides_its_ids(tmp_path):
    store = store_of(tmp_path, DOCUMENTS)
    before = tokenizer_sha256(tmp_path / "vocab")
    (tmp_path / "vocab/README.md").write_text("no matter")
    assert tokenizer_sha256(tmp_path / "vocab") == before == store.vocab_sha256
    (tmp_path / "vocab/vocab.txt").write_text("matters")
    assert tokenizer_sha256(tmp_path / "vocab") != before
    with pytest.raises(InputError, match="is not a tokenizer folder"):
        tokenizer_sha256(tmp_path)
