"""A store holds the corpus, and its bytes depend on nothing but the corpus, the vocabulary and the settings."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_prep.cli import InputError
from data_prep.sharding.ranks import rank_from_env, shard_for_rank
from data_prep.sharding.worker_pool import WorkerError, map_processes
from data_prep.store import HELD_OUT, Store
from data_prep.text.sentences import splitter
from tests.corpora import (
    ROOT,
    as_jsonl,
    as_lines,
    as_prose,
    files_of,
    run_script,
    texts,
    tiny_vocab,
    write,
    write_parquet,
)
from tests.forked import fork_script


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "v")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Every format, large and small files, several shards each."""
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "a.txt", as_lines(texts(300, seed=1)))
    write(folder / "b.jsonl.gz", as_jsonl(texts(300, seed=2)))
    write(folder / "c.txt.zst", as_prose(texts(100, seed=3)))
    write_parquet(folder / "d.parquet", texts(100, seed=4))
    for number in range(10):
        write(folder / f"small/{number}.jsonl", as_jsonl(texts(3, seed=10 + number)))
    write(folder / "small/empty.txt", "")
    return folder


def shard(corpus, vocab, out, *more, **environment):
    arguments = ("--corpus", corpus, "--vocab", vocab, "--out", out, "--shard_mb", "0.03", *more)
    return fork_script("shard", *arguments, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def made(corpus, vocab, tmp_path_factory):
    """The store that one worker makes."""
    out = tmp_path_factory.mktemp("made") / "store"
    done = shard(corpus, vocab, out, "--workers", "1")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return out


def test_the_store_holds_the_corpus(made, vocab):
    from transformers import AutoTokenizer

    store = Store.open(made)
    expected = [
        sentence
        for documents in (
            texts(300, 1),
            texts(300, 2),
            texts(100, 3),
            texts(100, 4),
            *(texts(3, 10 + n) for n in range(10)),
        )
        for document in documents
        for sentence in document
    ]
    assert splitter("en")(expected) == [[sentence] for sentence in expected]
    wanted = AutoTokenizer.from_pretrained(vocab)(expected, add_special_tokens=False)["input_ids"]
    lengths = np.concatenate([part.sentence_lengths for part in store.shards])
    tokens = np.concatenate([part.tokens for part in store.shards])
    assert lengths.tolist() == [len(ids) for ids in wanted]
    assert tokens.tolist() == [number for ids in wanted for number in ids]
    sources = np.concatenate([part.document_sources for part in store.shards])
    names = [source.path.split("/", 1)[1] for source in store.manifest.sources]
    assert [names[source] for source in np.unique(sources)] == [name for name in names if name != "small/empty.txt"]
    assert np.bincount(sources)[:4].tolist() == [300, 300, 100, 100]


def test_the_manifest_counts_what_is_there(made):
    store = Store.open(made)
    assert store.verify() == []
    manifest = store.manifest
    written = json.loads((made / "manifest.json").read_text())
    assert json.dumps(manifest.to_json() | {"sha256": written["sha256"]}) == json.dumps(written)  # in the same order
    counts = manifest.counts
    for name in ("documents", "sentences", "tokens"):
        assert getattr(counts, name) == sum(getattr(entry, name) for entry in manifest.shards)
    assert counts.documents == 830
    flags = np.concatenate([part.document_flags for part in store.shards])
    assert counts.held_out_documents == np.count_nonzero(flags & HELD_OUT) == 8
    unknown = sum(np.count_nonzero(part.tokens == store.special_ids["unk"]) for part in store.shards)
    assert counts.unknown == unknown
    assert len(manifest.shards) == 11
    assert {path.name for path in made.iterdir()} == {
        "manifest.json",
        "vocab",
        *(entry.name for entry in manifest.shards),
    }


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_workers_or_place(made, corpus, vocab, tmp_path):
    for workers in (2, 3):
        done = shard(corpus, vocab, tmp_path / str(workers), "--workers", workers)
        assert done.returncode == 0, done.stderr
        assert files_of(tmp_path / str(workers)) == files_of(made)
    elsewhere = ("--corpus", ".", "--vocab", vocab, "--out", tmp_path / "here", "--shard_mb", "0.03")
    assert run_script("shard", *elsewhere, cwd=corpus).returncode == 0
    assert files_of(tmp_path / "here") == files_of(made)


@pytest.mark.slow
def test_ranks_that_share_a_folder_make_the_same_store(made, corpus, vocab, tmp_path):
    out = tmp_path / "store"
    for rank in (2, 0, 1):  # whoever comes last finishes
        assert not (out / "manifest.json").exists()
        done = shard(corpus, vocab, out, PMI_RANK=str(rank), PMI_SIZE="3")
        assert done.returncode == 0, done.stderr
    assert files_of(out) == files_of(made)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_it_continues_to_the_same_bytes(corpus, vocab, tmp_path, workers):
    out, enough = tmp_path / "store", ("--holdout", "0.05")  # so many that no shard has to be written again at the end
    command = [sys.executable, ROOT / "data_prep/shard.py", "--corpus", corpus, "--vocab", vocab, "--out", out, *enough]
    kept = []
    for pieces in (3, 9):
        process = subprocess.Popen(
            [*command, "--shard_mb", "0.03", "--workers", str(workers)], stderr=subprocess.PIPE, start_new_session=True
        )
        while process.poll() is None and len(list(out.glob("shard-*.bin"))) < pieces:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)  # the parent only: workers must notice by themselves
        process.communicate()
        assert not (out / "manifest.json").exists()
        kept = [(path, path.stat().st_mtime_ns) for path in out.glob("shard-*.bin")]
    (out / f"{kept[0][0].name}.partial99").write_bytes(b"what a crash leaves")
    recorded = {json.loads(path.read_text())["shard"]["name"] for path in (out / "parts").glob("*-*.json")}
    done = shard(corpus, vocab, out, "--workers", workers, *enough)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stderr
    assert shard(corpus, vocab, tmp_path / "whole", *enough).returncode == 0
    assert files_of(out) == files_of(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == when for path, when in kept if path.name in recorded)


DIES = """
import os, sys
from data_prep import shard
from data_prep.cli import parse
from data_prep.sharding import held_out, manifest

module, name = {"held_out": held_out, "manifest": manifest}[sys.argv[1]], sys.argv[2]
setattr(module, name, lambda *_: os._exit(9))
shard.main(parse(shard.ShardConfig, None, sys.argv[3:]))
"""


@pytest.mark.parametrize(
    "moment",
    [
        "manifest copy_tokenizer",
        "held_out write_shard",
        "held_out sha256_of",
        "manifest write_sealed",
    ],
)
@pytest.mark.slow
def test_killed_while_it_is_finished_it_continues_to_the_same_bytes(vocab, tmp_path, moment):
    source = write(tmp_path / "a.txt", as_lines(texts(30, seed=2)))
    arguments = ("--corpus", source, "--vocab", vocab, "--workers", "1")
    out = tmp_path / "killed"
    command = [sys.executable, "-c", DIES, *moment.split(), *map(str, arguments), "--out", str(out)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 9
    for folder in (out, tmp_path / "whole"):
        done = fork_script("shard", *arguments, "--out", folder)
        assert done.returncode == 0, done.stderr
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_finished_store_is_left_alone(made, corpus, vocab):
    before = [(path, path.stat().st_mtime_ns) for path in made.iterdir()]
    done = shard(corpus, vocab, made)
    assert (done.returncode, "nothing to do" in done.stderr) == (0, True)
    assert before == [(path, path.stat().st_mtime_ns) for path in made.iterdir()]


@pytest.mark.slow
def test_other_settings_are_refused(made, corpus, vocab, tmp_path):
    done = shard(corpus, vocab, made, "--holdout", "0.5", "--lang", "de")
    assert done.returncode == 2
    assert "was made from something else: holdout 0.01, now 0.5; lang en, now de" in done.stderr
    done = shard(corpus, tiny_vocab(tmp_path / "v", cased=True), made)
    assert (done.returncode, "vocab" in done.stderr) == (2, True)


def test_a_source_that_changed_since_is_noticed(vocab, tmp_path):
    path = write(tmp_path / "a.jsonl", as_jsonl(texts(300)))
    arguments = (path, vocab, tmp_path / "store", "--workers", "1")
    assert shard(*arguments, PMI_RANK="0", PMI_SIZE="2").returncode == 0
    os.utime(path, (1, 1))
    done = shard(*arguments)
    assert (done.returncode, "is being made from something else: modified changed" in done.stderr) == (2, True)


@pytest.mark.slow
def test_the_held_out_documents_depend_on_their_text_only(vocab, tmp_path):
    documents = texts(400, seed=5)
    found = []
    for name, part in (("a", documents), ("b", documents[::-1][:200])):
        write(tmp_path / f"{name}.jsonl", as_jsonl(part))
        assert shard(tmp_path / f"{name}.jsonl", vocab, tmp_path / name, "--holdout", "0.2").returncode == 0
        flags = np.concatenate([part.document_flags for part in Store.open(tmp_path / name).shards])
        found.append({" ".join(part[row]) for row in np.flatnonzero(flags & HELD_OUT)})
    assert 50 < len(found[0]) < 110
    assert found[1] == found[0] & {" ".join(document) for document in documents[200:]}


def test_oddities_are_counted_and_sentences_cut(vocab, tmp_path):
    lines = ['{"text": ""}', '{"text": "\\u0001\\u0002"}', json.dumps({"text": "a " * 70_000}), '{"text": "x \\ud800"}']
    write(tmp_path / "a.jsonl", "\n".join(lines))
    done = shard(tmp_path / "a.jsonl", vocab, tmp_path / "store")
    assert done.returncode == 0, done.stderr
    store = Store.open(tmp_path / "store")
    counts = store.manifest.counts
    names = ("documents", "empty_documents", "cut_sentences", "invalid_utf8")
    assert [getattr(counts, name) for name in names] == [2, 2, 1, 1]
    assert np.concatenate([part.sentence_lengths for part in store.shards]).tolist()[:2] == [65_535, 70_000 - 65_535]
    assert "oddities: empty_documents 2, cut_sentences 1, invalid_utf8 1" in done.stderr


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, "", "c does not exist"),
        ({"a.txt": "\n \n"}, "", "the corpus holds no text"),
        ({"a.txt": ""}, "", "the corpus is empty"),
        ({"a.jsonl": '{"body": "x"}'}, "--workers 2", "has no field 'text'"),
        ({"a.jsonl": '{"text": "x"}'}, "--holdout 1.5", "--holdout 1.5 must lie in [0, 1)"),
        ({"a.jsonl": '{"text": "x"}'}, "--vocab c", "is not a tokenizer folder"),
        ({"a.jsonl": '{"text": "x"}'}, "--out taken", "exists and is not a token store"),
        ({"a.jsonl": '{"text": "x"}'}, "--txt paragraphs", "paragraphs"),
        ({"a.jsonl": '{"text": "x"}'}, "--worker 2", "worker"),
    ],
)
def test_wrong_input_is_named_and_leaves_nothing(vocab, tmp_path, files, arguments, message):
    for name, content in files.items():
        write(tmp_path / "c" / name, content)
    write(tmp_path / "taken/thesis.doc", "mine")
    options = ["--corpus", "c", "--vocab", str(vocab), "--out", "store", *arguments.split()]
    for name in ("--vocab", "--out"):  # the last one counts
        if options.count(name) > 1:
            del options[options.index(name) : options.index(name) + 2]
    done = fork_script("shard", *options, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store/manifest.json").exists()
    assert files_of(tmp_path / "taken") == {"thesis.doc": b"mine"}


@pytest.mark.slow
def test_a_disk_that_is_full_ends_it_without_a_manifest(made, corpus, vocab, tmp_path):
    out = tmp_path / "store"
    arguments = ("--corpus", corpus, "--vocab", vocab, "--out", out, "--shard_mb", "0.03", "--workers", "2")
    limit = 8 * 1024  # bytes a file may have: a full disk for all but the smallest

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = fork_script("shard", *arguments, before=fill)
    assert done.returncode == 1
    assert "error: unit" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "manifest.json").exists()
    assert fork_script("shard", *arguments).returncode == 0
    assert files_of(out) == files_of(made)


def test_a_worker_that_dies_fails_the_whole_and_is_named():
    def work(item, report):
        report(item)
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    with pytest.raises(WorkerError, match=r"item 3: its worker process died \(SIGKILL\); run the command again"):
        list(map_processes(work, range(50), workers=2, name="item {}".format, report=lambda _: None))


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_workers_reach_the_caller(workers):
    def work(item, report):
        raise {0: InputError("no such file"), 1: OSError(28, "No space left on device")}[item % 2]

    run = lambda items: list(map_processes(work, items, workers=workers, name="item {}".format, report=print))  # noqa: E731
    with pytest.raises(InputError, match="no such file"):
        run([0, 2])
    with pytest.raises(WorkerError, match=r"item [13]: .*No space left on device"):
        run([1, 3])


def test_every_item_is_done_once_and_reported():
    reports: list[int] = []

    def work(item, report):
        report(item)
        return item * item

    found = list(map_processes(work, range(40), workers=3, name=str, report=reports.append))
    assert sorted(found) == [n * n for n in range(40)]
    assert sorted(reports) == list(range(40))


def test_ranks_come_from_whatever_started_them():
    assert rank_from_env({}) == (0, 1)
    assert rank_from_env({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}) == (3, 4)
    assert rank_from_env({"PMI_RANK": "1", "PMI_SIZE": "2"}) == (1, 2)
    assert rank_from_env({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}) == (5, 8)
    assert rank_from_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == (0, 1)  # a batch script, outside srun
    array = {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert rank_from_env({**array, "SLURM_ARRAY_TASK_ID": "20"}) == (2, 4)
    parts = [shard_for_rank(range(11), rank, 3) for rank in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(11))


@pytest.mark.parametrize("how", ["script", "module"])
def test_it_runs_from_elsewhere_and_with_dash_m(corpus, vocab, tmp_path, how):
    if how == "script":
        command, environment = [str(ROOT / "data_prep/shard.py")], {}
    else:
        command, environment = ["-m", "data_prep.shard"], {"PYTHONPATH": str(ROOT)}
    arguments = ["--corpus", str(corpus / "small"), "--vocab", str(vocab), "--out", "store", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Store.open(tmp_path / "store").manifest.counts.documents == 30
