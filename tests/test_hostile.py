"""Input that is broken or meant to break things: memory stays bounded, what is odd is counted and named or refused in a
clear line, and nothing that was good is lost."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from data_prep.store import Store
from tests.corpora import ROOT, as_jsonl, files_of, shard, texts, tiny_vocab, write, write_parquet

GOOD = texts(40, seed=1)
MB = 1 << 20


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "v")


@pytest.fixture
def good(tmp_path):
    """A folder with a good file in it, to which something bad is added."""
    write(tmp_path / "c/good.jsonl", as_jsonl(GOOD))
    return tmp_path / "c"


LINE = json.dumps({"text": "The river walked."}) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "oddity", "documents"),
    [
        ("bad.jsonl", b'{"text": "wrong \xff bytes"}\n' + LINE.encode(), {"invalid_utf8": 1}, 2),
        ("bad.txt", "Nul \x00 and\x00.\n\nNext.\n", {"nul_characters": 2}, 2),
        ("bad.jsonl", json.dumps({"text": "a" * 17 * MB}) + "\n" + LINE, {"long_lines": 1}, 1),
        ("bad.jsonl.gz", json.dumps({"text": "half \ud83d pair"}) + "\n", {"invalid_utf8": 1}, 1),
        ("bad.jsonl", LINE + '{"body": "x"}\n' + LINE, {"bad_lines": 1}, 2),
        ("bad.jsonl.zst", LINE + "{not json\n" + "[" * 100_000 + "\n" + LINE, {"bad_lines": 2}, 2),
    ],
)
def test_what_can_be_mended_is_counted_by_source_or_refused(good, vocab, tmp_path, name, content, oddity, documents):
    write(good / name, content)
    done = shard(good, vocab, tmp_path / "store", "--txt", "lines")
    assert done.returncode == 0, done.stderr
    manifest = Store.open(tmp_path / "store").manifest
    assert manifest.irregularities == {f"c/{name}": oddity}
    assert manifest.counts.documents == 40 + documents
    strict = shard(good, vocab, tmp_path / "strict", "--txt", "lines", "--strict")
    assert strict.returncode == 2
    assert f"{name}: {next(iter(oddity))} " in strict.stderr
    assert "which --strict refuses" in strict.stderr
    assert not (tmp_path / "strict/manifest.json").exists()


def test_a_byte_order_mark_and_an_empty_file_change_nothing(good, vocab, tmp_path):
    write(good / "more.txt", "\ufeffThe river walked.\n\nNobody walked.\n")
    write(good / "none.txt", "")
    assert shard(good, vocab, tmp_path / "store").returncode == 0
    manifest = Store.open(tmp_path / "store").manifest
    assert manifest.irregularities == {}
    assert [source.bytes for source in manifest.sources if source.path == "c/none.txt"] == [0]
    assert manifest.counts.unknown == Store.open(tmp_path / "store").manifest.counts.unknown
    strict = shard(good, vocab, tmp_path / "strict", "--strict")
    assert (strict.returncode, "empty files, which --strict refuses: c/none.txt" in strict.stderr) == (2, True)


@pytest.mark.parametrize("strict", [(), ("--strict",)])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", '{"body": "x"}\n' + LINE, "bad.jsonl, line 1 has no field 'text', only ['body']; see --column"),
        ("bad.jsonl", "[" * 100_000 + "\n", "bad.jsonl, line 1 is not JSON"),
        ("bad.jsonl.gz", b"", "bad.jsonl.gz is not a .gz file"),
        ("bad.parquet", b"PAR1" + bytes(100) + b"PAR1", "bad.parquet is not a whole parquet file"),
    ],
)
def test_what_cannot_be_mended_is_refused_and_named(good, vocab, tmp_path, name, content, message, strict):
    write(good / name, content) if content else (good / name).write_text(LINE)
    done = shard(good, vocab, tmp_path / "store", *strict)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
@pytest.mark.slow
def test_of_a_file_cut_short_what_is_whole_is_kept_the_same_way_by_any_workers(good, vocab, tmp_path, capfd, suffix):
    lines = as_jsonl(texts(3000, seed=5)).splitlines(keepends=True)
    first, second = (write(tmp_path / f"part{suffix}", "".join(lines[at::2])).read_bytes() for at in (0, 1))
    (good / f"z.jsonl{suffix}").write_bytes(first + second[: len(second) // 2])
    options = ("--shard_mb", "0.05")
    for workers in (1, 2):
        assert shard(good, vocab, tmp_path / f"store{workers}", *options, workers=workers).returncode == 0
    assert f"z.jsonl{suffix} is damaged or cut short" in capfd.readouterr().err
    assert files_of(tmp_path / "store1") == files_of(tmp_path / "store2")
    manifest = Store.open(tmp_path / "store1").manifest
    assert manifest.irregularities == {f"c/z.jsonl{suffix}": {"damaged_parts": 1}}
    assert manifest.counts.documents >= 40 + 1500  # all of the first part; of .bz2 and .zst, blocks are lost
    assert manifest.counts.documents < 40 + 3000
    strict = shard(good, vocab, tmp_path / "strict", *options, "--strict")
    assert (strict.returncode, f"z.jsonl{suffix}: damaged_parts 1, which --strict refuses" in strict.stderr) == (
        2,
        True,
    )


def test_a_file_is_added_once_it_is_fetched_again(good, vocab, tmp_path):
    assert shard(good, vocab, tmp_path / "store").returncode == 0
    write(good / "z.jsonl.gz", as_jsonl(texts(3000, seed=5)))
    assert shard(good, vocab, tmp_path / "store", "--append").returncode == 0
    assert Store.open(tmp_path / "store").manifest.counts.documents == 3040


def test_a_damaged_file_of_tests_is_refused(good, vocab, tmp_path):
    whole = write(tmp_path / "tests.jsonl.gz", as_jsonl(texts(300, seed=5))).read_bytes()
    (tmp_path / "tests.jsonl.gz").write_bytes(whole[:-1000])
    done = shard(good, vocab, tmp_path / "store", "--exclude", tmp_path / "tests.jsonl.gz")
    assert (done.returncode, "tests.jsonl.gz is damaged or cut short" in done.stderr) == (2, True)


def test_another_column_is_named(good, vocab, tmp_path):
    write_parquet(good / "bad.parquet", GOOD, "body")
    done = shard(good, vocab, tmp_path / "store")
    assert (done.returncode, "has no column 'text', only ['id', 'body']; see --column" in done.stderr) == (2, True)


def test_links_in_circles_and_to_nowhere_are_passed_over(good, vocab, tmp_path):
    (good / "loop").symlink_to(good)
    (good / "up").symlink_to(tmp_path)
    (good / "gone.txt").symlink_to(tmp_path / "nothing")
    done = shard(good, vocab, tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert Store.open(tmp_path / "store").manifest.counts.documents == 40


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of root")
def test_an_unreadable_file_is_named(good, vocab, tmp_path):
    bad = write(good / "bad.jsonl", LINE)
    bad.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):  # so that nobody at all may walk to the corpus
        if os.access(folder, os.W_OK) and "pytest" in str(folder):
            folder.chmod(0o755)
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from data_prep.text.corpus import read_documents\n"
        "from data_prep.text.discovery import find_sources\n"
        "from data_prep.cli import InputError\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: print(list(read_documents(find_sources([sys.argv[2]])[0], 'text', {})))\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(bad)], capture_output=True, text=True)
    assert "bad.jsonl cannot be read: Permission denied" in done.stdout, done.stderr


def test_an_output_that_cannot_be_written_is_named(good, vocab, tmp_path):
    write(tmp_path / "file", "")
    for out in (tmp_path / "file/store", Path("/proc/store")):
        done = shard(good, vocab, out)
        assert done.returncode in (1, 2)
        assert done.stderr.startswith("error: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_read_only_output_is_named(good, vocab, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", disk], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:
        done = shard(good, vocab, disk / "store")
        assert (done.returncode, f"{disk} cannot be written to" in done.stderr) == (2, True), done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_ends_it_and_more_room_lets_it_go_on(good, vocab, tmp_path):
    write(good / "more.jsonl", as_jsonl(texts(4000, seed=3)))
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:
        done = shard(good, vocab, disk / "store", "--shard_mb", "0.1")
        assert (done.returncode, "No space left on device" in done.stderr) == (1, True), done.stderr
        assert not (disk / "store/manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        done = shard(good, vocab, disk / "store", "--shard_mb", "0.1")
        assert done.returncode == 0, done.stderr
        assert shard(good, vocab, tmp_path / "store", "--shard_mb", "0.1").returncode == 0
        assert files_of(disk / "store") == files_of(tmp_path / "store")
    finally:
        subprocess.run(["umount", disk], check=True)


def peak_mb(folder, vocab, out):
    """Peak memory of shard.py with one worker, as a process of its own says it."""
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(next(line for line in open('/proc/self/status') if 'VmHWM' in line).split()[1])"
    )
    command = [sys.executable, "-c", code, str(ROOT / "data_prep/shard.py"), "--workers", "1"]
    done = subprocess.run(
        [*command, "--corpus", str(folder), "--vocab", str(vocab), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


def bomb(kind: str, path: Path, megabytes: int) -> None:
    """So many MB of one letter, without a line end, then a good document."""
    piece = b"a" * MB
    if kind == "txt":
        with open(path, "wb") as file:
            for _ in range(megabytes):
                file.write(piece)
    elif kind == "gz":
        with gzip.open(path, "wb") as packed:
            packed.write(b'{"text": "')
            for _ in range(megabytes):
                packed.write(piece)
            packed.write(b'"}\n' + LINE.encode())
    else:
        with open(path, "wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as writer:
            writer.write(b'{"text": "')
            for _ in range(megabytes):
                writer.write(piece)
            writer.write(b'"}\n' + LINE.encode())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "megabytes"),
    [("txt", "line.txt", 160), ("gz", "bomb.jsonl.gz", 240), ("zst", "bomb.jsonl.zst", 240)],
)
def test_a_long_line_and_bombs_take_little_memory(good, vocab, tmp_path, kind, name, megabytes):
    bomb(kind, good / name, megabytes)
    # A small corpus takes 120: a line that is held once is too much.
    assert peak_mb(good, vocab, tmp_path / "store") < 60 + megabytes
    manifest = Store.open(tmp_path / "store").manifest
    assert manifest.irregularities[f"c/{name}"]["long_lines"] == megabytes // 16  # pieces that are full
    if kind != "txt":  # what stood after the bomb is there
        assert manifest.counts.documents == 41


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(vocab, tmp_path):
    lines = as_jsonl(texts(15_000, seed=6)).encode()
    peaks = []
    for copies in (2, 8):
        folder = tmp_path / str(copies)
        write(folder / "a.jsonl", lines * copies)
        peaks.append(peak_mb(folder, vocab, tmp_path / f"store{copies}"))
    assert peaks[1] < peaks[0] + 40
    assert peaks[1] < 200
