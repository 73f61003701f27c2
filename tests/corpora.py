"""Small corpora in every format, a vocabulary that can spell them, and commands run as a user runs them."""

import bz2
import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import zstandard

from data_prep.cli import InputError, parse
from data_prep.shard import ShardConfig, main
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources
from data_prep.text.sentences import splitter
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.wordpiece import write_tokenizer

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    "the of and river stone walked slowly under old bridge Paris nobody quick brown fox über naïve 中文 2026".split()
)

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def texts(count: int, seed: int = 0, sentences: int = 12) -> list[list[str]]:
    """Documents of sentences, the same for the same arguments."""
    draw = random.Random(seed)
    return [
        [
            " ".join(draw.choices(WORDS, k=draw.randint(2, 14))).capitalize() + "."
            for _ in range(draw.randint(1, sentences))
        ]
        for _ in range(count)
    ]


def as_lines(documents: list[list[str]]) -> str:
    """One sentence a line, a blank line between documents."""
    return "\n\n".join("\n".join(document) for document in documents) + "\n"


def as_prose(documents: list[list[str]]) -> str:
    """Paragraphs of three sentences, wrapped lines, two blank lines between documents."""
    paragraphs = [[" ".join(d[i : i + 3]).replace(" the ", "\nthe ") for i in range(0, len(d), 3)] for d in documents]
    return "\n\n\n".join("\n\n".join(document) for document in paragraphs) + "\n"


def as_jsonl(documents: list[list[str]], column: str = "text") -> str:
    """One object a line."""
    return "".join(
        json.dumps({"id": n, column: " ".join(d)}, ensure_ascii=n % 2 == 0) + "\n" for n, d in enumerate(documents)
    )


def write(path: Path, content: str | bytes) -> Path:
    """Write a text, packed as the name says."""
    raw = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(COMPRESSORS.get(path.suffix, bytes)(raw))
    return path


def write_parquet(path: Path, documents: list[list[str]], column: str = "text", row_group: int = 7) -> Path:
    """One document a row."""
    table = pyarrow.table({"id": list(range(len(documents))), column: [" ".join(d) for d in documents]})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group)
    return path


def tiny_vocab(folder: Path, cased: bool = False) -> Path:
    """A tokenizer folder that spells ASCII, some words and some pieces."""
    characters = [chr(code) for code in range(33, 127) if cased or not chr(code).isupper()] + list("éü中文—“”")
    words = ["the", "of", "and", "river", "walk", "##ed", "##ly", "slow", "stone", "under", "quick", "mask", "##sep"]
    inside = [f"##{character}" for character in characters if character.isalnum() and ord(character) < 0x4E00]
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, [*SPECIAL, *characters, *inside, *words], cased)
    return folder


def run_script(name: str, *arguments: object, cwd: Path = ROOT, **more) -> subprocess.CompletedProcess[str]:
    """Run data_prep/NAME.py as a plain script: where a new process matters, as its hashes of strings do for bytes."""
    command = [sys.executable, str(ROOT / "data_prep" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **more)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Done(NamedTuple):
    returncode: int
    stderr: str


def shard(folder, vocab, out, *more, workers=1) -> Done:
    """What the command says and how it ends; in this process, which is quicker."""
    arguments = ("--corpus", folder, "--vocab", vocab, "--out", out, "--workers", workers, *more)
    try:
        main(parse(ShardConfig, None, [str(argument) for argument in arguments]))
    except InputError as error:
        return Done(2, f"error: {error}")
    except SystemExit as end:
        return Done(1, str(end.code))
    return Done(0, "")


def read(*arguments, txt="auto", column="text", counts=None):
    """Sentences of all documents."""
    counts = Counter() if counts is None else counts
    split = splitter("en")
    return [
        document.text.split("\n") if document.lines else split([document.text])[0]
        for source in find_sources([str(argument) for argument in arguments], txt)
        for document in read_documents(source, column, counts)
    ]
