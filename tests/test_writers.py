"""Many processes make one store: under MPI, as a Slurm array, later additions; strangers are refused."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import InputError
from data_prep.sharding.locks import writer_lock
from data_prep.sharding.ranks import RankInfo
from data_prep.store import Store
from tests.corpora import ROOT, as_jsonl, as_lines, files_of, texts, tiny_vocab, write, write_parquet
from tests.forked import fork_script

MPIRUN = Path(sys.executable).with_name("mpirun")


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "v")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "a.txt", as_lines(texts(200, seed=1)))
    write(folder / "b.jsonl.gz", as_jsonl(texts(200, seed=2)))
    write_parquet(folder / "c.parquet", texts(100, seed=3))
    return folder


def options(corpus, vocab, out, *more):
    return ["--corpus", str(corpus), "--vocab", str(vocab), "--out", str(out), "--shard_mb", "0.02", *more]


@pytest.fixture(scope="module")
def made(corpus, vocab, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "store"
    done = fork_script("shard", *options(corpus, vocab, out, "--workers", "1"))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.skipif(not MPIRUN.exists(), reason="no MPI runtime: pip install 'zerobert[mpi]'")
@pytest.mark.parametrize("ranks", [2, 3])
def test_mpirun_makes_the_same_bytes(made, corpus, vocab, tmp_path, ranks):
    command: list[str | Path] = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), sys.executable]
    arguments = options(corpus, vocab, tmp_path / "store")
    done = subprocess.run(
        [*command, ROOT / "data_prep/shard.py", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} of {ranks}" in done.stderr for rank in range(ranks))
    assert files_of(tmp_path / "store") == files_of(made)


@pytest.mark.slow
def test_a_slurm_array_makes_the_same_bytes(made, corpus, vocab, tmp_path):
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    for task in ("2", "1"):
        environment = os.environ | array | {"SLURM_ARRAY_TASK_ID": task}
        done = fork_script("shard", *options(corpus, vocab, tmp_path / "store"), env=environment)
        assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "store") == files_of(made)


def _hold(folder, place, ready, done):
    with writer_lock(folder, place):
        ready.set()
        done.wait(30)


@pytest.mark.parametrize(
    ("theirs", "ours", "allowed"),
    [((0, 1), (0, 1), False), ((0, 2), (1, 2), True), ((0, 2), (0, 2), False), ((1, 2), (0, 1), False)],
)
def test_one_job_writes_a_store(tmp_path, theirs, ours, allowed):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    folder = tmp_path / "store/parts"
    folder.mkdir(parents=True)
    process = context.Process(target=_hold, args=(folder, RankInfo(*theirs), ready, done))
    process.start()
    assert ready.wait(10)
    try:
        if allowed:
            with writer_lock(folder, RankInfo(*ours)):
                pass
        else:
            with (
                pytest.raises(InputError, match="store is being written by another process"),
                writer_lock(folder, RankInfo(*ours)),
            ):
                pass
    finally:
        done.set()
        process.join()
    with writer_lock(folder, RankInfo(*ours)):  # whoever died or ended holds nothing
        pass


@pytest.mark.slow
def test_a_second_command_is_refused_while_the_first_one_works(corpus, vocab, tmp_path):
    write(tmp_path / "long.jsonl", as_jsonl(texts(3000, seed=9)))
    arguments = options(tmp_path / "long.jsonl", vocab, tmp_path / "store", "--workers", "2")
    first = subprocess.Popen([sys.executable, ROOT / "data_prep/shard.py", *arguments], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "store").glob("shard-*")):
        assert first.poll() is None
        time.sleep(0.001)
    first.send_signal(19)  # SIGSTOP: it cannot finish before we look
    try:
        second = fork_script("shard", *arguments)
    finally:
        first.send_signal(18)
    assert (second.returncode, "is being written by another process" in second.stderr) == (2, True), second.stderr
    assert first.wait(60) == 0


@pytest.mark.slow
def test_sources_are_added_without_touching_what_is_there(made, corpus, vocab, tmp_path):
    out = tmp_path / "store"
    shutil.copytree(made, out)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("shard-*")}
    more = write(tmp_path / "more/d.jsonl", as_jsonl(texts(150, seed=4))).parent
    done = fork_script("shard", *options(more, vocab, out, "--append"))
    assert done.returncode == 0, done.stderr
    assert all((path.stat().st_mtime_ns, path.read_bytes()) == old for path, old in before.items())
    old, new = Store.open(made), Store.open(out)
    assert new.verify() == []
    assert new.manifest.shards[: len(old.shards)] == old.manifest.shards
    assert [source.path for source in new.manifest.sources][-1] == "more/d.jsonl"
    assert new.manifest.counts.documents == 500 + 150
    assert new.shards[-1].document_sources.tolist() == [len(old.manifest.sources)] * len(
        new.shards[-1].document_sources
    )
    assert new.manifest.counts.tokens == int(np.sum([len(shard.tokens) for shard in new.shards]))
    for again in ((more,), (more, corpus)):
        done = fork_script("shard", "--corpus", *again, *options(more, vocab, out, "--append")[2:])
        assert (done.returncode, "nothing to do" in done.stderr) == (0, True), done.stderr


@pytest.mark.slow
def test_what_cannot_be_added_is_refused(made, corpus, vocab, tmp_path):
    more = write(tmp_path / "c.jsonl", as_jsonl(texts(5, seed=4)))
    done = fork_script("shard", *options(more, vocab, made, "--append", "--lang", "de"))
    assert (done.returncode, "was made from something else: lang en, now de" in done.stderr) == (2, True)
    changed = write(tmp_path / corpus.name / "a.txt", as_lines(texts(200, seed=7))).parent
    done = fork_script("shard", *options(changed, vocab, made, "--append"))
    assert (done.returncode, "a.txt is in" in done.stderr, "has changed since" in done.stderr) == (2, True, True)
