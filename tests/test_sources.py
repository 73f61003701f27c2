"""What is read is what was planned: files that change are noticed, what is no text is left out by name, names do no
harm, and what cannot be read twice is refused."""

import io
import json
import os
import tarfile
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep import dedup, vocab
from data_prep.cli import InputError, parse, printable, say
from data_prep.shard import build_unit as real_build_unit
from data_prep.store import Store
from data_prep.text import corpus
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import check_unchanged, find_sources
from tests.corpora import as_jsonl, as_lines, files_of, shard, texts, tiny_vocab, write, write_parquet
from tests.forked import fork_script

DOCUMENTS = texts(40)


@pytest.fixture(scope="module")
def vocab_folder(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "v")


def shrink(path):
    os.truncate(path, path.stat().st_size // 8)


def grow(path):
    with open(path, "ab") as file:
        file.write(b'{"text": "More of it."}\n')


def touch(path):
    os.utime(path, ns=(1, 1))


def change_when_read(monkeypatch, path, how):
    """Change a file once the reading of it has begun."""
    read = corpus.read_documents

    def reading(*arguments):
        documents = read(*arguments)
        yield next(documents)
        if path.stat().st_mtime_ns != 1:
            how(path)
            os.utime(path, ns=(1, 1))
        yield from documents

    monkeypatch.setattr(corpus, "read_documents", reading)


class TestFilesThatChange:
    @pytest.mark.parametrize("how", [shrink, grow, touch, os.remove])
    @pytest.mark.parametrize("workers", [1, 2])
    def test_nothing_is_finished_and_no_unit_of_it_counts_as_done(
        self, tmp_path, vocab_folder, monkeypatch, how, workers
    ):
        path = write(tmp_path / "c/a.jsonl", as_jsonl(texts(3000)))

        def build_unit(job, unit, report):
            if unit.number == 1 and path.exists() and path.stat().st_mtime_ns != 1:
                how(path)
            return real_build_unit(job, unit, report)

        monkeypatch.setattr("data_prep.shard.build_unit", build_unit)
        monkeypatch.setattr("data_prep.sharding.plan.LEAST_BYTES", 50_000)
        done = shard(tmp_path / "c", vocab_folder, tmp_path / "store", workers=workers)
        assert done.returncode == 2
        assert "a.jsonl" in done.stderr
        assert "changed while it was read" in done.stderr or "cannot be read" in done.stderr
        assert not (tmp_path / "store/manifest.json").exists()
        assert not (tmp_path / "store/parts/00001.json").exists()
        assert not list((tmp_path / "store/parts").glob("00001-*.json"))

    def test_going_on_with_the_changed_file_is_refused_by_name(self, tmp_path, vocab_folder, monkeypatch):
        path = write(tmp_path / "c/a.jsonl", as_jsonl(DOCUMENTS))
        write(tmp_path / "c/b.jsonl", as_jsonl(texts(5, seed=1)))
        change_when_read(monkeypatch, path, shrink)
        assert shard(tmp_path / "c", vocab_folder, tmp_path / "store").returncode == 2
        done = shard(tmp_path / "c", vocab_folder, tmp_path / "store")
        assert done.returncode == 2
        assert "that is c/a.jsonl. Remove it or give another --out" in done.stderr

    @pytest.mark.parametrize("name", ["a.jsonl.gz", "a.tar", "a.parquet", "a.txt"])
    def test_streams_and_columns_are_watched_too(self, tmp_path, vocab_folder, monkeypatch, name):
        path = tmp_path / "c" / name
        if name == "a.parquet":
            path.parent.mkdir()
            write_parquet(path, DOCUMENTS)
        elif name == "a.tar":
            path.parent.mkdir()
            with tarfile.open(path, "w") as archive:
                archive.add(write(tmp_path / "x.jsonl", as_jsonl(DOCUMENTS)), "x.jsonl")
        else:
            write(path, (as_lines if name == "a.txt" else as_jsonl)(DOCUMENTS))
        change_when_read(monkeypatch, path, touch)
        done = shard(tmp_path / "c", vocab_folder, tmp_path / "store")
        assert (done.returncode, f"{name} changed while it was read (written to since)" in done.stderr) == (2, True)

    def test_vocabularies_and_drop_lists_are_not_made_of_them_either(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a.jsonl", as_jsonl(DOCUMENTS))
        change_when_read(monkeypatch, path, shrink)
        config = parse(vocab.VocabConfig, None, ["--corpus", str(path), "--out", str(tmp_path / "v"), "--size", "256"])
        with pytest.raises(InputError, match="changed while it was read"):
            vocab.main(config)
        write(path, as_jsonl(DOCUMENTS))
        arguments = ["--corpus", str(path), "--out", str(tmp_path / "d.npz"), "--similar", "1", "--workers", "1"]
        with pytest.raises(InputError, match="changed while it was read"):
            dedup.main(parse(dedup.DedupConfig, None, arguments))
        assert not (tmp_path / "v").exists()
        assert not (tmp_path / "d.npz").exists()

    def test_a_dataset_is_the_files_of_its_folder(self, tmp_path):
        folder = tmp_path / "d"
        write(folder / "dataset_info.json", "{}")
        write(folder / "a.arrow", "x")
        source = find_sources([], datasets=[f"{folder}:train"])[0]
        check_unchanged(source)
        write(folder / "a.arrow", "xy")
        with pytest.raises(InputError, match=r"\(of 3 bytes, now 4\)"):
            check_unchanged(source)


class TestWhatIsLeftOut:
    def test_what_this_project_writes_is_no_text(self, tmp_path, vocab_folder, capsys):
        folder = tmp_path / "c"
        write(folder / "a.jsonl", as_jsonl(DOCUMENTS))
        clean = [source.name for source in find_sources([str(folder)])]
        assert shard(folder, vocab_folder, folder / "store").returncode == 0
        tiny_vocab(folder / "vocabulary")
        write(folder / "bert-vocab.txt", (folder / "vocabulary/vocab.txt").read_bytes())
        for name in ("config.json", "metrics.jsonl", "log.txt", "checkpoints/step-1/x.txt"):
            write(folder / "run" / name, "{}")
        for name in ("config.json", "model.safetensors", "notes.txt"):
            write(folder / "hf" / name, "{}")
        write(folder / "begun/parts/plan.json", "{}")
        write(folder / "begun/more.txt", "text")
        write(folder / "half.partial0123abcd/vocab.txt", "text")
        capsys.readouterr()
        assert [source.name for source in find_sources([str(folder)])] == clean
        said = capsys.readouterr().err
        for named in (
            "a token store: 1 (store)",
            "a token store in the making: 1 (begun)",
            "a run of training: 1 (run)",
            "a model: 1 (hf)",
            "of a tokenizer: 4 (bert-vocab.txt, vocabulary/tokenizer.json, vocabulary/tokenizer_config.json, ",
            "half-written by this project: 1 (half.partial0123abcd)",
        ):
            assert named in said
        before = files_of(folder / "store")
        assert shard(folder, vocab_folder, folder / "store").returncode == 0
        assert "nothing to do" in capsys.readouterr().err
        assert files_of(folder / "store") == before
        with pytest.raises(InputError, match="store is a token store, not text"):
            find_sources([str(folder / "store")])

    def test_the_own_output_is_no_source_even_before_it_looks_like_one(self, tmp_path):
        write(tmp_path / "a.jsonl", as_jsonl(DOCUMENTS))
        write(tmp_path / "new/vocab.txt", "half of a vocabulary")
        assert len(find_sources([str(tmp_path)], out=tmp_path / "new")) == 1

    def test_the_rest_is_counted_by_ending_and_named(self, tmp_path, capsys):
        write(tmp_path / "a.jsonl", as_jsonl(DOCUMENTS))
        for number in range(6):
            write(tmp_path / f"{number}.md", "")
        for name in ("LICENSE", ".hidden.txt", ".git/x.txt", "b.txt/c.jsonl"):
            write(tmp_path / name, as_jsonl(DOCUMENTS))
        (tmp_path / "loop").symlink_to(tmp_path)
        (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
        os.mkfifo(tmp_path / "pipe.txt")
        names = [source.name for source in find_sources([str(tmp_path)])]
        assert names == [f"{tmp_path.name}/{name}" for name in ("a.jsonl", "b.txt/c.jsonl")]
        said = capsys.readouterr().err
        for named in (
            ".md files: 6 (0.md, 1.md, 2.md, 3.md and 2 more)",
            "files without an ending: 1 (LICENSE)",
            "hidden: 2 (.git, .hidden.txt)",
            "links to folders: 1 (loop)",
            "links to nothing: 1 (gone.txt)",
            "pipes, sockets or devices: 1 (pipe.txt)",
        ):
            assert named in said

    def test_a_folder_that_cannot_be_read_is_an_error(self, tmp_path, monkeypatch):
        write(tmp_path / "a.jsonl", as_jsonl(DOCUMENTS))
        (tmp_path / "closed").mkdir()
        real = os.scandir

        def scandir(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(InputError, match="closed cannot be read: Permission denied"):
            find_sources([str(tmp_path)])

    def test_the_whole_machine_is_no_corpus(self):
        with pytest.raises(InputError, match=r"^/ is the whole machine"):
            find_sources(["/"])

    def test_a_link_that_may_not_be_followed_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "link").symlink_to("/proc/1/cwd")
        real = os.stat

        def stat(path, **options):
            if str(path).endswith("link"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, **options)

        monkeypatch.setattr(os, "stat", stat)
        with pytest.raises(InputError, match="link cannot be read: Permission denied; make it readable"):
            find_sources([str(tmp_path)])

    @pytest.mark.parametrize("name", ["pipe.txt", "pipe.jsonl.gz", "pipe"])
    def test_a_pipe_is_refused_and_does_not_hang(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=f"{name} is a pipe or a device, which can be read once only"):
            find_sources([str(tmp_path / name)])


class TestNames:
    ODD = (b"caf\xe9.jsonl", b"a\x1b[2J\x1b]0;owned\x07.jsonl", b"two\nlines.jsonl", "right\u202eleft.jsonl".encode())

    @pytest.mark.slow
    def test_any_name_makes_a_store_and_no_terminal_acts_on_it(self, tmp_path, vocab_folder):
        folder = tmp_path / "c"
        folder.mkdir()
        for number, name in enumerate(self.ODD):
            with open(os.path.join(os.fsencode(folder), name), "wb") as file:
                file.write(as_jsonl(texts(5, seed=number)).encode() + b"no json\n")
            with open(os.path.join(os.fsencode(folder), name.replace(b"jsonl", b"md")), "wb") as file:
                file.write(b"left out")
        arguments = ("--corpus", folder, "--vocab", vocab_folder, "--workers", "2", "--out", tmp_path / "store")
        done = fork_script("shard", *arguments)
        assert done.returncode == 0, done.stderr
        assert not set(done.stderr) & set("\x1b\x07\u202e")
        assert "c/caf\\xe9.jsonl" in {source.path for source in Store.open(tmp_path / "store").manifest.sources}
        assert len(Store.open(tmp_path / "store").manifest.irregularities) == 4
        strict = fork_script("shard", *arguments[:-1], tmp_path / "strict", "--strict")
        assert strict.returncode == 2
        assert len([line for line in strict.stderr.splitlines() if "which --strict refuses" in line]) == 1
        assert not set(strict.stderr) & set("\x1b\x07\u202e")

    def test_drop_lists_and_archives_take_them_too(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name in self.ODD:
                raw = as_jsonl(DOCUMENTS).encode()
                member = tarfile.TarInfo(os.fsdecode(name))
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        arguments = ["--corpus", str(tmp_path / "a.tar"), "--out", str(tmp_path / "d.npz"), "--similar", "1"]
        dedup.main(parse(dedup.DedupConfig, None, [*arguments, "--workers", "1"]))
        found = list(read_documents(find_sources([str(tmp_path / "a.tar")])[0], "text", Counter()))
        assert len(found) == 160
        assert all(printable(document.id) == document.id for document in found)

    def test_messages_are_spelled_so_that_nothing_acts_on_them(self, capsys):
        say("one \x1b[31m\r\x9b\udce9\nsecond é 中")
        assert capsys.readouterr().err == "one \\x1b[31m\\r\\x9b\\xe9\nsecond é 中\n"


class TestColumns:
    TEXTS = ("good", "zwei ü", None)

    @pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "binary", "large_binary", "binary_view"])
    @pytest.mark.parametrize("in_dictionary", [False, True])
    def test_every_kind_of_text_is_read(self, tmp_path, kind, in_dictionary):
        raw = [text.encode() if text and "binary" in kind else text for text in self.TEXTS]
        column = pyarrow.array(raw, getattr(pyarrow, kind)())
        if in_dictionary:
            column = pyarrow.array(raw, pyarrow.binary() if "binary" in kind else pyarrow.string()).dictionary_encode()
        pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": column}), tmp_path / "a.parquet")
        source, counts = find_sources([str(tmp_path)])[0], Counter[str]()
        assert corpus.count_rows(source, "text")[0] == 3
        assert [document.text for document in read_documents(source, "text", counts)] == ["good", "zwei ü"]
        assert counts == {"empty_documents": 1}

    def test_wrong_bytes_in_any_of_them_are_counted(self, tmp_path):
        raw = pyarrow.array([b"good", b"wrong \xff bytes"], pyarrow.binary_view())
        for number, column in enumerate([raw, raw.view(pyarrow.string_view()), raw.cast(pyarrow.binary())]):
            path = tmp_path / f"{number}.parquet"
            pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
            counts: Counter[str] = Counter()
            found = list(read_documents(find_sources([str(path)])[0], "text", counts))
            assert [document.text for document in found] == ["good", "wrong \ufffd bytes"]
            assert counts == {"invalid_utf8": 1}

    def test_a_column_that_is_there_twice_is_refused(self, tmp_path):
        table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(InputError, match="has 2 columns 'text'; write all but one under other names"):
            corpus.count_rows(find_sources([str(tmp_path)])[0], "text")


def test_a_wide_window_of_zst_is_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # of unknown size, as from a pipe
    packed = packer.compress(as_jsonl(DOCUMENTS).encode()) + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << 31
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "a.jsonl.zst", "a.jsonl.zst")
    for source in find_sources([str(tmp_path)]):
        counts: Counter[str] = Counter()
        assert len(list(read_documents(source, "text", counts))) == 40
        assert not {name for name in counts if name != "other_members"}


def test_lines_end_in_cr_lf_or_both(tmp_path):
    lines = as_lines(DOCUMENTS)
    wanted = [
        d.text for d in read_documents(find_sources([str(write(tmp_path / "a.txt", lines))])[0], "text", Counter())
    ]
    for number, end in enumerate(["\r", "\r\n"]):
        for suffix in ("", ".gz"):
            path = write(tmp_path / f"{number}.txt{suffix}", lines.replace("\n", end))
            source = find_sources([str(path)])[0]
            assert (source.layout, source.encoding) == ("lines", "utf-8" if end == "\r" else "")
            assert [document.text for document in read_documents(source, "text", Counter())] == wanted
    path = write(tmp_path / "b.jsonl", as_jsonl(DOCUMENTS).replace("\n", "\r"))
    assert len(list(read_documents(find_sources([str(path)])[0], "text", Counter()))) == 40


def test_line_ends_of_unicode_part_words(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "one\x85two\u2028three\u2029four"}))
    assert [d.text for d in read_documents(find_sources([str(path)])[0], "text", Counter())] == [
        "one\ntwo\nthree\n\nfour"
    ]
