"""show.py says what is in a store, shows samples as training sees them, and finds damage."""

import json
import re

import pytest

from tests.corpora import as_jsonl, texts, tiny_vocab, write
from tests.forked import fork_script


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    write(folder / "a.jsonl", as_jsonl(texts(80)))
    vocab = tiny_vocab(folder / "vocab")
    done = fork_script("shard", "--corpus", folder / "a.jsonl", "--vocab", vocab, "--out", folder / "store")
    assert done.returncode == 0, done.stderr
    return folder / "store"


def test_json_is_one_object_with_the_names_of_the_interface(store):
    done = fork_script("show", store, "--json")
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert {"documents", "sentences", "tokens", "bytes_per_token", "unknown_rate", "shards"} <= set(found)
    assert found["documents"] == 80
    assert found["sentences"] == sum(map(len, texts(80)))
    assert found["sentence_length"]["mean"] == pytest.approx(found["tokens"] / found["sentences"], abs=0.01)
    assert found["document_length"]["mean"] == pytest.approx(found["tokens"] / 80, abs=0.01)
    assert found["sources"] == [
        {
            "path": "a.jsonl",
            "documents": 80,
            "held_out_documents": found["held_out_documents"],
            "tokens": found["tokens"],
        }
    ]


def test_samples_show_segments_labels_and_masks(store):
    done = fork_script("show", store, "--samples", "5", "--seq_len", "64")
    assert done.returncode == 0, done.stderr
    heads = re.findall(r"^#\d  (\d+) tokens, (\d+) to predict  (B follows A|B is random)$", done.stdout, re.M)
    bodies = [line for line in done.stdout.splitlines() if line.startswith("[CLS]")]
    assert len(heads) == len(bodies) == 5
    for (tokens, masked, _), body in zip(heads, bodies, strict=True):
        assert int(tokens) <= 64
        assert int(masked) == max(1, round(0.15 * int(tokens)))
        marked = re.findall(r"\[[^\[\] ]+\]", body.replace("[SEP]", "").replace("[CLS]", "").replace("[UNK]", "?"))
        assert len(marked) == int(masked), body
        assert body.count("[SEP]") == 2
    assert "\x1b" not in done.stdout
    assert "sentences by length in tokens" in done.stdout
    for objective in ("sop", "mlm"):
        assert fork_script("show", store, "--objective", objective, "--samples", "1").returncode == 0


def test_verify_finds_damage(store):
    good = fork_script("show", store, "--verify", "--samples", "0")
    assert (good.returncode, "verified" in good.stderr) == (0, True)
    path = store / "shard-00000-000.bin"
    raw = path.read_bytes()
    try:
        path.write_bytes(raw[:200] + bytes([raw[200] ^ 1]) + raw[201:])
        bad = fork_script("show", store, "--verify")
        assert (bad.returncode, f"{path}: sha256" in bad.stderr) == (1, True), bad.stderr
        path.write_bytes(raw[:-8])
        cut = fork_script("show", store)
        assert (cut.returncode, cut.stderr.count("\n"), "its header says" in cut.stderr) == (2, 1, True)
    finally:
        path.write_bytes(raw)


def test_what_is_no_store_is_named(tmp_path):
    done = fork_script("show", tmp_path)
    assert (done.returncode, "has no manifest.json" in done.stderr) == (2, True)
    assert fork_script("show", tmp_path / "gone").returncode == 2


@pytest.mark.parametrize("unit", ["word", "span", "ngram"])
@pytest.mark.slow
def test_it_shows_words_and_spans_and_what_an_epoch_uses(store, tmp_path, unit):
    done = fork_script("show", store, "--unit", unit, "--picture", tmp_path / "lengths.png")
    assert done.returncode == 0, done.stderr
    assert f"masked by {unit}:" in done.stdout
    shares = {name: float(share) for name, share in re.findall(r"  (\w[^\n]+?)  +([\d.]+) %", done.stdout)}
    assert shares["sentences taken into a sample, each once"] == 100
    assert shares["sentences used in their place, in whole or in part"] > 80
    assert 40 < shares["samples with label 1"] < 100
    assert (tmp_path / "lengths.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_imbalance_between_ranks_is_shown_and_small(tmp_path):
    write(tmp_path / "a.jsonl", as_jsonl(texts(1500, seed=1)))
    vocab = tiny_vocab(tmp_path / "v")
    made = fork_script("shard", "--corpus", tmp_path / "a.jsonl", "--vocab", vocab, "--out", tmp_path / "s")
    assert made.returncode == 0
    done = fork_script("show", tmp_path / "s", "--samples", "1", "--seq_len", "64")
    shares = {name: float(share) for name, share in re.findall(r"  (\w[^\n]+?)  +([\d.]+) %", done.stdout)}
    mean = shares["the fullest of 8 ranks above the mean, 256 samples a step"]
    (most,) = (share for name, share in shares.items() if name.startswith("at most, in "))
    assert 0 <= mean <= most < 2
