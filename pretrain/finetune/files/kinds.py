"""Which kind a labelled file is: by its name, and by how it begins, which has the last word.

    kind_of(Path("train.parquet"))     "parquet"
    kind_of(Path("train.txt"))         "conll", if each line is a word and a tag; else refused

Excel's files, archives and pickles are refused by what they are, and never opened.
"""

import json
from pathlib import Path
from typing import Literal

from data_prep.cli import InputError
from pretrain.finetune.files.conll import looks_like_conll
from pretrain.finetune.files.parquet import MAGIC

FileKind = Literal["csv", "tsv", "jsonl", "parquet", "conll"]

KINDS = ".csv or .tsv (with a header line) or .jsonl, .parquet or .conll"
SUFFIXES: dict[str, FileKind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".conll", ".conll2003", ".bio", ".iob", ".iob2", ".bioes", ".bilou"), "conll"),
}
# How files begin that are often given, what they are, and the way out.
OTHERS = (
    (b"PK\x03\x04", "a spreadsheet or a zip archive; save the table as .csv, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet; save the table as .csv"),
    (b"\x1f\x8b", "compressed; unpack it: gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed; unpack it: unzstd"),
    (b"BZh", "compressed; unpack it: bunzip2"),
    (b"\xfd7zXZ", "compressed; unpack it: unxz"),
    *(
        (b"\x80" + bytes([protocol]), "a pickle, which is never opened; write .csv or .parquet")
        for protocol in range(2, 6)
    ),
    (b"ARROW1", "an Arrow file; write .parquet"),
    (b"%PDF", "a PDF; write .csv"),
)
HEAD = 1 << 16  # bytes that are looked at


def kind_of(path: Path) -> FileKind:
    """Return the kind of a labelled file.

    Raises
    ------
    InputError: no such file, no regular file, or of a kind that is not read.
    """
    if not path.is_file():
        raise InputError(f"{path}: " + ("not a regular file" if path.exists() else "no such file"))
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    named = SUFFIXES.get(path.suffix.lower())
    for magic, what in OTHERS:
        if head.startswith(magic):
            raise InputError(f"{path} is {what}. Files that are read end in {KINDS}")
    kind = _by_content(head, named)
    if kind is None:
        raise InputError(f"{path}: the name must end in {KINDS}; what begins like this is none of them by itself")
    if kind == "parquet" and not head.startswith(MAGIC):
        raise InputError(
            f"{path} is no Parquet, which begins with {MAGIC.decode()}; write it again, or name it {KINDS}"
        )
    return kind


def _by_content(head: bytes, named: FileKind | None) -> FileKind | None:
    """Return what the first bytes of a file are, or else what its name says."""
    if head.startswith(MAGIC):
        return "parquet"
    if named in ("jsonl", "conll", "parquet"):
        return named
    text = head.decode(json.detect_encoding(head), errors="replace").lstrip("\ufeff")
    lines = text.splitlines()
    if len(head) == HEAD:
        lines = lines[:-1]  # cut
    if _is_json_object(next((line for line in lines if line.strip()), "")):
        return "jsonl"
    return "conll" if looks_like_conll(lines) else named


def _is_json_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
