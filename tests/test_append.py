"""--append adds what is not in a store yet, in any order, and nothing twice: sources are compared, not counted."""

import itertools

import pytest

from data_prep.store import Store
from tests.corpora import as_jsonl, files_of, shard, texts, tiny_vocab, write


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "v")


@pytest.fixture
def files(tmp_path):
    """Three files of one folder, of 20 documents each."""
    return {
        name: write(tmp_path / f"{name}.jsonl", as_jsonl(texts(20, seed=number))) for number, name in enumerate("abc")
    }


def append(vocab, out, *files):
    return shard(files[0], vocab, out, "--append", *(["--corpus", *files] if len(files) > 1 else []))


def paths(store):
    return [source.path for source in Store.open(store).manifest.sources]


def test_new_sources_are_added_once_in_any_order(files, vocab, tmp_path, capsys):
    for number, order in enumerate(itertools.permutations("abc")):
        out = tmp_path / f"store{number}"
        assert append(vocab, out, files["b"]).returncode == 0
        given = [files[name] for name in order]
        assert append(vocab, out, *given).returncode == 0
        assert paths(out) == ["b.jsonl", *(f"{name}.jsonl" for name in order if name != "b")]
        assert Store.open(out).manifest.counts.documents == 60
        sources = [int(row) for part in Store.open(out).shards for row in part.document_sources]
        assert sources == [0] * 20 + [1] * 20 + [2] * 20
        before = files_of(out)
        capsys.readouterr()
        for again in (given, given[::-1], given[:1]):
            assert append(vocab, out, *again).returncode == 0
            assert "nothing to do" in capsys.readouterr().err
            assert files_of(out) == before


def test_a_known_source_that_changed_is_refused_and_nothing_is_written(files, vocab, tmp_path):
    out = tmp_path / "store"
    assert append(vocab, out, files["a"]).returncode == 0
    before = files_of(out)
    write(files["a"], as_jsonl(texts(21, seed=0)))
    done = append(vocab, out, files["b"], files["a"])
    assert (done.returncode, "a.jsonl is in" in done.stderr, "has changed since" in done.stderr) == (2, True, True)
    assert files_of(out) == before


def test_a_known_source_under_another_name_is_left_out_and_named(files, vocab, tmp_path, capsys):
    out = tmp_path / "store"
    assert append(vocab, out, files["a"]).returncode == 0
    copy = write(tmp_path / "copy.jsonl", files["a"].read_bytes())
    assert append(vocab, out, copy, files["b"]).returncode == 0
    assert "copy.jsonl is a.jsonl under another name" in capsys.readouterr().err
    assert paths(out) == ["a.jsonl", "b.jsonl"]
    assert Store.open(out).manifest.counts.documents == 40


def test_another_addition_does_not_take_the_place_of_one_that_was_begun(files, vocab, tmp_path, monkeypatch):
    out = tmp_path / "store"
    assert append(vocab, out, files["a"]).returncode == 0
    before = files_of(out)
    monkeypatch.setattr("data_prep.sharding.manifest.finish", lambda *_, **__: None)  # as if it were stopped before
    assert append(vocab, out, files["b"]).returncode == 0
    monkeypatch.undo()
    done = append(vocab, out, files["c"])
    assert done.returncode == 2
    assert "b.jsonl, c.jsonl" in done.stderr
    assert f"Run the command that was begun, or remove {out}/parts" in done.stderr
    assert {name: content for name, content in files_of(out).items() if name in before} == before
    assert append(vocab, out, files["b"]).returncode == 0
    assert paths(out) == ["a.jsonl", "b.jsonl"]
