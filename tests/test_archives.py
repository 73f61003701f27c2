"""Tar archives are read as they stream by; nothing leaves them but text."""

import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from data_prep.cli import InputError
from data_prep.store import Store
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources
from tests.corpora import COMPRESSORS, as_jsonl, as_lines, as_prose, files_of, read, shard, texts, tiny_vocab

DOCUMENTS = texts(90)
MEMBERS = (
    ("en/a.txt", as_lines(DOCUMENTS[:30]).encode()),
    ("en/b.jsonl.gz", COMPRESSORS[".gz"](as_jsonl(DOCUMENTS[30:60]).encode())),
    ("c.txt.zst", COMPRESSORS[".zst"](as_prose(DOCUMENTS[60:]).encode())),
)


def pack(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, style: int = tarfile.PAX_FORMAT) -> Path:
    """An archive, packed as its name says."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=style) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(bytes(member.size)))
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    suffix = path.suffix.replace(".tgz", ".gz")
    path.write_bytes(COMPRESSORS.get(suffix, bytes)(raw.getvalue()))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.zst"])
@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_whatever_packs_them_and_the_archive(tmp_path, name, style):
    assert read(pack(tmp_path / name, *MEMBERS, style=style)) == DOCUMENTS


def test_what_leads_out_of_it_is_not_followed_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "secret.txt").write_text("Secret.\n")
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    path = pack(
        tmp_path / "c/a.tar",
        ("../out.txt", b"Kept as text.\n"),
        (f"{tmp_path}/abs.txt", b"This too.\n"),
        special("link.txt", tarfile.SYMTYPE, "../secret.txt"),
        special("hard.txt", tarfile.LNKTYPE, "../secret.txt"),
        special("dev.txt", tarfile.CHRTYPE),
        special("pipe.txt", tarfile.FIFOTYPE),
        special("folder.txt", tarfile.DIRTYPE),
        ("notes.md", b"No text for us."),
        (".hidden.txt", b"Nor this."),
        ("inner.tar", b""),
    )
    before = files_of(tmp_path)
    counts: Counter[str] = Counter()
    assert read(path, txt="lines", counts=counts) == [["Kept as text."], ["This too."]]
    assert counts == {"refused_members": 4, "other_members": 3}
    said = capsys.readouterr().err
    assert "link.txt is a link, a device or sparse" in said
    assert "3 members that are neither .txt nor .jsonl, .json, .csv, .tsv with a text left out" in said
    assert files_of(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["c", "secret.txt"]


@pytest.mark.parametrize("damage", ["cut", "header", "packed member"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_of_a_damaged_archive_what_stands_before_is_kept(tmp_path, name, damage):
    members = [(f"{n}.txt", as_lines(DOCUMENTS[n : n + 1]).encode()) for n in range(90)]
    if damage == "packed member":
        members[45] = ("45.txt.gz", COMPRESSORS[".gz"](members[45][1])[:-20])
    raw = bytearray(pack(tmp_path / "whole.tar", *members).read_bytes())
    if damage == "header":
        with tarfile.open(tmp_path / "whole.tar") as archive:
            raw[archive.getmember("45.txt").offset + 5] ^= 1  # its name: the sum of the header is wrong
    elif damage == "cut":
        raw = raw[: len(raw) // 2]
    (tmp_path / name).write_bytes(COMPRESSORS[".gz"](bytes(raw)) if name.endswith("gz") else bytes(raw))
    counts: Counter[str] = Counter()
    found = read(tmp_path / name, txt="lines", counts=counts)
    assert counts["damaged_parts"] == 1
    if damage == "header":
        assert found == DOCUMENTS[:45]
    elif damage == "packed member":
        assert found[:45] == DOCUMENTS[:45]
        assert found[-44:] == DOCUMENTS[46:]
    else:
        assert 20 < len(found) < 90
        assert found[:-1] == DOCUMENTS[: len(found) - 1]


def test_a_header_that_asks_for_much_memory_is_damage(tmp_path):
    info = special("x", tarfile.XHDTYPE)
    info.size = 1 << 40
    path = pack(tmp_path / "a.tar", *MEMBERS)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    whole = -(-(last.offset_data + last.size) // 512) * 512
    path.write_bytes(path.read_bytes()[:whole] + info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    counts: Counter[str] = Counter()
    assert read(path, counts=counts) == DOCUMENTS
    assert counts == {"damaged_parts": 1}


def test_what_is_no_archive_is_damage_too(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"not a tar archive" * 100)
    counts: Counter[str] = Counter()
    assert read(tmp_path / "a.tar", counts=counts) == []
    assert counts == {"damaged_parts": 1}


def test_an_archive_in_a_store(tmp_path):
    vocab = tiny_vocab(tmp_path / "v")
    (tmp_path / "c").mkdir()
    pack(tmp_path / "c/a.tar.gz", *MEMBERS, special("link.txt", tarfile.SYMTYPE, "a.txt"))
    assert shard(tmp_path / "c", vocab, tmp_path / "store").returncode == 0
    manifest = Store.open(tmp_path / "store").manifest
    assert manifest.counts.documents == 90
    assert manifest.irregularities == {"c/a.tar.gz": {"refused_members": 1}}
    done = shard(tmp_path / "c", vocab, tmp_path / "strict", "--strict")
    assert (done.returncode, "a.tar.gz: refused_members 1, which --strict refuses" in done.stderr) == (2, True)
    source = find_sources([str(tmp_path / "c")])[0]
    identities = [document.id for document in read_documents(source, "text", Counter())]
    assert identities[0] == "c/a.tar.gz/en/a.txt:0"
    assert len(set(identities)) == 90


def test_a_parquet_member_is_left_out(tmp_path):
    counts: Counter[str] = Counter()
    assert read(pack(tmp_path / "a.tar", ("a.parquet", b"PAR1")), counts=counts) == []
    assert counts == {"other_members": 1}
    with pytest.raises(InputError, match=r"is not a \.gz file"):
        find_sources([str((tmp_path / "a.tar").rename(tmp_path / "b.tar.gz"))])


def test_what_a_member_is_taken_for_is_said_and_a_stranger_is_none(tmp_path, capsys):
    table, article = b"Id,Review\n1,A review.\n", b'<doc id="1" url="u" title="T">\nT\n\nOf it.\n</doc>\n'
    path = pack(tmp_path / "a.tar", ("wiki_00", b"<html>no text</html>"), ("b.csv", table), ("AA/wiki_01", article))
    [source] = find_sources([str(path)], column="text")
    counts: Counter[str] = Counter()
    assert [one.text for one in read_documents(source, "text", counts)] == ["A review.", "T\n\nOf it."]
    assert counts["other_members"] == 1
    assert "the text is taken from 'Review': a.tar/b.csv" in capsys.readouterr().err
