"""Every format gives the same documents; every document belongs to one range; what is broken is named or counted."""

import bz2
import gzip
import itertools
import json
import os
import random
import re
import string
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.cli import InputError
from data_prep.sharding.plan import plan_work, unit_documents
from data_prep.text import corpus
from data_prep.text import source as text_source
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources
from tests.corpora import as_jsonl, as_lines, as_prose, read, texts, write, write_parquet

DOCUMENTS = texts(60)


@pytest.mark.parametrize("compression", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize(("name", "make"), [("a.txt", as_lines), ("b.txt", as_prose), ("c.jsonl", as_jsonl)])
def test_every_format_and_compression_gives_the_same_documents(tmp_path, name, make, compression):
    assert read(write(tmp_path / (name + compression), make(DOCUMENTS))) == DOCUMENTS


def test_parquet_gives_the_same_documents(tmp_path):
    assert read(write_parquet(tmp_path / "a.parquet", DOCUMENTS)) == DOCUMENTS
    assert read(write_parquet(tmp_path / "b.parquet", DOCUMENTS, "body"), column="body") == DOCUMENTS


def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path):
    windows = "\ufeff" + as_lines(DOCUMENTS).replace("\n", "\r\n")
    assert read(write(tmp_path / "a.txt", windows)) == DOCUMENTS
    assert read(write(tmp_path / "b.jsonl", "\ufeff" + as_jsonl(DOCUMENTS).replace("\n", "\r\n"))) == DOCUMENTS


def test_folders_and_globs_are_sorted_and_a_file_counts_once(tmp_path):
    for number, name in enumerate(["b/z.txt", "a.jsonl", "b/a.jsonl.gz"]):
        write(tmp_path / name, (as_lines if "txt" in name else as_jsonl)(DOCUMENTS[number * 20 : number * 20 + 20]))
    write(tmp_path / "notes.md", "not text for us")
    write(tmp_path / ".hidden.txt", "nor this")
    (tmp_path / "loop").symlink_to(tmp_path)
    names = [source.name for source in find_sources([str(tmp_path)])]
    assert names == [f"{tmp_path.name}/{name}" for name in ["a.jsonl", "b/a.jsonl.gz", "b/z.txt"]]
    assert [source.name for source in find_sources([str(tmp_path / "**/a.jsonl*")])] == ["a.jsonl", "a.jsonl.gz"]
    assert len(find_sources([str(tmp_path), str(tmp_path / "a.jsonl")])) == 3


@pytest.mark.parametrize("aim", [300, 1000, 7000])
@pytest.mark.parametrize("kind", ["lines", "prose", "jsonl", "parquet"])
def test_every_document_belongs_to_one_range(tmp_path, monkeypatch, kind, aim):
    monkeypatch.setattr("data_prep.sharding.plan.LEAST_BYTES", 100)
    if kind == "parquet":
        path = write_parquet(tmp_path / "a.parquet", DOCUMENTS)
    elif kind == "jsonl":
        path = write(tmp_path / "a.jsonl", as_jsonl(DOCUMENTS))
    else:
        path = write(tmp_path / "a.txt", (as_lines if kind == "lines" else as_prose)(DOCUMENTS))
    sources = find_sources([str(path)])
    plan = plan_work(sources, "text", aim)
    assert len(plan.units) > 2
    found = [document for unit in plan.units for _, document in unit_documents(unit, sources, "text", {})]
    if kind == "prose":  # a long document may be parted between paragraphs
        whole = [p for d in read_documents(sources[0], "text", Counter()) for p in d.text.split("\n\n")]
        assert [p for d in found for p in d.text.split("\n\n")] == whole
    else:
        assert found == list(read_documents(sources[0], "text", Counter()))


def test_ranges_of_odd_texts_lose_and_repeat_nothing(tmp_path):
    draw = random.Random(1)
    for number in range(150):
        text = "".join(draw.choice(["\n", "\n", "a", "b\n", "\n\n", " ", "cc", "\r\n"]) for _ in range(40))
        source = find_sources([str(write(tmp_path / f"{number}.txt", text + "x"))], "lines")[0]
        cuts = [0, *sorted(draw.sample(range(1, source.bytes), 3)), source.bytes]
        parts = [d for a, b in itertools.pairwise(cuts) for d in read_documents(source, "text", Counter(), a, b)]
        assert parts == list(read_documents(source, "text", Counter())), (text, cuts)


def test_layouts_are_told_apart(tmp_path, capsys):
    lines, prose = as_lines(DOCUMENTS), as_prose(DOCUMENTS)
    paragraphs = "\n\n".join(" ".join(document) for document in DOCUMENTS)
    for content, layout in ((lines, "lines"), (prose, "prose"), (paragraphs, "prose"), ("one line", "prose")):
        assert find_sources([str(write(tmp_path / "a.txt", content))])[0].layout == layout
    assert "read as" in capsys.readouterr().err
    assert find_sources([str(write(tmp_path / "a.txt", prose))], "lines")[0].layout == "lines"


def test_broken_text_is_replaced_and_counted(tmp_path):
    counts: Counter[str] = Counter()
    write(tmp_path / "a.txt", b"Good line.\nBad \xff line.\n\nNext \x00 one.\n")
    write(tmp_path / "b.jsonl", b'{"text": "half a \\ud83d pair"}\n{"text": null}\n\n{"text": " "}\n')
    found = read(tmp_path, txt="lines", counts=counts)
    assert found == [["Good line.", "Bad \ufffd line."], ["Next \x00 one."], ["half a \ufffd pair"]]
    assert counts == {"invalid_utf8": 2, "empty_documents": 2, "nul_characters": 1}


def test_long_lines_and_documents_are_cut_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(text_source, "MAX_LINE_BYTES", 200)
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_CHARS", 100)
    counts: Counter[str] = Counter()
    long = json.dumps({"text": "x" * 300}) + "\n"
    write(tmp_path / "a.jsonl", long + json.dumps({"text": "word " * 30}) + "\n" + json.dumps({"text": "end"}) + "\n")
    found = [d.text for s in find_sources([str(tmp_path)]) for d in read_documents(s, "text", counts)]
    assert " ".join(found).split() == ["word"] * 30 + ["end"]
    assert max(map(len, found)) <= 100
    assert counts == {"long_lines": 1, "cut_documents": 1}
    text = write(tmp_path / "b.txt", "y" * 450 + "\n" + "z" * 90 + "\n")
    found = [d.text for d in read_documents(find_sources([str(text)], "lines")[0], "text", counts)]
    assert "".join(found).replace("\n", "") == "y" * 450 + "z" * 90


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '\n{"body": "two"}\n', r"a.jsonl, line 2 has no field 'text', only \['body'\]; see --column"),
        ("a.jsonl", '{"text": \n', "a.jsonl, line 1 is not JSON"),
        ("a.jsonl", '["text"]\n', "a.jsonl, line 1 is not a JSON object"),
        ("a.jsonl.zst", '{"text": 5}\n', "has no text in field 'text' but '5'"),
        ("a.pdf", "%PDF", "a.pdf is of a kind we cannot read"),
        ("a.parquet", "PAR1 or not", "a.parquet is not a whole parquet file"),
        ("a.parquet.gz", "x", "a.parquet.gz is packed twice"),
        ("a.txt", "", "the corpus is empty: a.txt"),
        ("a.md/b.md", "x", r"holds no \.txt, \.jsonl, \.json, \.csv, \.tsv, \.parquet, \.tar or Wikipedia"),
    ],
)
def test_wrong_input_is_named(tmp_path, name, content, message):
    write(tmp_path / name, content)
    with pytest.raises(InputError, match=message):
        plan_work(find_sources([str(tmp_path / name.split("/")[0])], column="text"), "text", 1000)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_what_is_not_packed_as_its_name_says_is_named(tmp_path, suffix):
    (tmp_path / f"a.jsonl{suffix}").write_text(as_jsonl(DOCUMENTS))
    with pytest.raises(InputError, match=rf"a\.jsonl\{suffix} is not a \{suffix} file"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "two"}', r"line 41 has no field 'text', only \['body'\]"),
        ('{"text": ', "line 41 is not JSON"),
        ("[" * 100_000, "line 41 is not JSON"),
        ("7", "line 41 is not a JSON object"),
        ('{"text": 5}', "line 41 has no text in field 'text' but '5'"),
    ],
)
def test_bad_lines_are_left_out_counted_and_the_first_is_named(tmp_path, capsys, line, message, compression):
    good = as_jsonl(DOCUMENTS).splitlines()
    path = write(tmp_path / f"a.jsonl{compression}", "\n".join([*good[:40], line, *good[40:], line]) + "\n")
    counts: Counter[str] = Counter()
    assert read(path, counts=counts) == DOCUMENTS
    assert counts == {"bad_lines": 2}
    found = capsys.readouterr().err
    assert re.search(message, found)
    assert found.count("warning") == 1
    if not compression:  # the line's number is that in the file, wherever a range begins
        source, start = find_sources([str(path)])[0], len("\n".join(good[:20]).encode())
        assert len(list(read_documents(source, "text", counts, start))) == 40
        assert re.search(message, capsys.readouterr().err)


def test_wrong_bytes_in_parquet_are_replaced(tmp_path):
    texts = pyarrow.array([b"good", b"wrong \xff bytes", None], pyarrow.binary()).view(pyarrow.string())
    for number, column in enumerate([texts, texts.dictionary_encode()]):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{number}.parquet")
        counts: Counter[str] = Counter()
        assert read(tmp_path / f"{number}.parquet", counts=counts) == [["good"], ["wrong \ufffd bytes"]]
        assert counts == {"invalid_utf8": 1, "empty_documents": 1}


def test_of_a_damaged_parquet_the_other_groups_of_rows_stay(tmp_path, capsys):
    path = write_parquet(tmp_path / "a.parquet", DOCUMENTS, row_group=10)
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(1)
    raw = bytearray(path.read_bytes())
    begin = group.dictionary_page_offset or group.data_page_offset
    raw[begin : begin + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(raw)
    counts: Counter[str] = Counter()
    assert read(path, counts=counts) == DOCUMENTS[:20] + DOCUMENTS[30:]
    assert counts == {"damaged_parts": 1}
    assert "a.parquet is not a whole parquet file" in capsys.readouterr().err


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.txt does not exist"):
        find_sources([str(tmp_path / "nothing.txt")])
    path = write_parquet(tmp_path / "a.parquet", DOCUMENTS)
    with pytest.raises(InputError, match=r"has no column 'body', only \['id', 'text'\]; see --column"):
        read(path, column="body")
    with pytest.raises(InputError, match="column 'id' is of type int64, not text"):
        read(path, column="id")


COMPRESSORS: dict[str, tuple[Callable[[bytes], bytes], Callable[[], Any]]] = {
    ".gz": (gzip.compress, lambda: zlib.decompressobj(31)),
    ".bz2": (lambda raw: bz2.compress(raw, 1), bz2.BZ2Decompressor),
    ".zst": (zstandard.ZstdCompressor(write_checksum=True).compress, zstandard.ZstdDecompressor().decompressobj),
}


def whole_lines_of(damaged: bytes, unpacker: Any) -> list[bytes]:
    """What can be had of one packed part, byte by byte."""
    found = bytearray()
    with suppress(zlib.error, OSError, zstandard.ZstdError):
        for number in range(len(damaged)):
            found += unpacker.decompress(damaged[number : number + 1])
    return bytes(found).splitlines(keepends=True)[: found.count(b"\n")]


@pytest.mark.parametrize("damage", ["cut short", "wrong byte", "checksum", "garbage behind", "a second part"])
@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_of_a_damaged_packed_file_every_whole_line_is_read(tmp_path, capsys, suffix, damage):
    pack, unpacker = COMPRESSORS[suffix]
    words = random.Random(0).choices(string.ascii_letters, k=450_000)
    lines = [("".join(words[at : at + 90]) + "\n").encode() for at in range(0, len(words), 90)]
    packed = pack(b"".join(lines))
    middle = len(packed) * 2 // 3
    expected, raw = lines, packed
    if damage == "cut short":
        raw = packed[:middle]
        expected = whole_lines_of(raw, unpacker())
    elif damage in ("wrong byte", "a second part"):
        raw = packed[:middle] + bytes(64) + packed[middle + 64 :]
        expected = whole_lines_of(raw, unpacker())
    elif damage == "checksum":
        raw = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]
        expected = whole_lines_of(raw, unpacker())
    else:
        raw = packed + b"garbage"
    if damage == "a second part":
        raw, expected = packed + raw, lines + expected
    (tmp_path / f"a.txt{suffix}").write_bytes(raw)
    source, counts = find_sources([str(tmp_path)], "lines")[0], Counter[str]()
    assert [line for _, line in text_source.lines_of(source, 0, counts)] == expected
    assert len(expected) > len(lines) // 3
    assert counts == {"damaged_parts": 1}
    assert f"a.txt{suffix} is damaged or cut short" in capsys.readouterr().err


def test_several_packed_parts_in_one_file_are_one_text(tmp_path):
    padding = {".gz": bytes(5000)}  # as on tapes
    for suffix, (pack, _) in COMPRESSORS.items():
        (tmp_path / f"a.jsonl{suffix}").write_bytes(
            b"".join(pack(as_jsonl(part).encode()) for part in (DOCUMENTS[:30], DOCUMENTS[30:]))
            + padding.get(suffix, b"")
        )
        assert read(tmp_path / f"a.jsonl{suffix}") == DOCUMENTS


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", as_jsonl(DOCUMENTS))
    path.chmod(0)
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read"):
        read(path)
