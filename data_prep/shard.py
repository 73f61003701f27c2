"""Write a corpus as a token store, the only form in which pretraining reads text.

    python data_prep/shard.py --corpus wiki/ news-*.jsonl.zst --vocab vocab --out stores/wiki
    python data_prep/shard.py --corpus wiki/ --vocab vocab --out stores/wiki --workers 8
    mpirun -n 32 python data_prep/shard.py --corpus wiki/ --vocab vocab --out stores/wiki    # a shared file system

files -> documents (corpus.py) -> sentences (sentences.py) -> ids (encode.py) -> STORE/shard-*.bin, then manifest.json.

The bytes of a store depend on the corpus, the vocabulary and the settings, not on workers, ranks or restarts: plan.py
cuts the corpus into units beforehand. Stop it in any way and run it again: shards that are whole are kept. Without
manifest.json, which is written last, a store is unfinished and nothing opens it. docs/format.md has the byte layout.
"""

import fcntl
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

if not __package__:  # a plain script: data_prep/ itself is on the path, where its file names could hide others'
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep.cli import InputError, run, say  # first: it continues in .venv where packages are missing

# isort: split
from data_prep import sentences
from data_prep.builder import ShardBuilder
from data_prep.corpus import Source, find_sources
from data_prep.encode import Encoder, EncodeWith
from data_prep.files import sha256_of, write_folder, write_json
from data_prep.plan import SLACK, Plan, Records, Unit, differing, make_plan, shard_path, unit_documents, unit_name
from data_prep.progress import Progress
from data_prep.ranks import WorkFailed, local_workers, part_of, rank_and_world, run_local
from data_prep.store import (
    FORMAT,
    TOKENIZER_FILES,
    project_version,
    tokenizer_sha256,
    write_shard,
)

REPORT = 1 << 20  # bytes of text between two reports of a worker
SAMPLE = 200  # sentences of the corpus in the self-check of the encoder


@dataclass(frozen=True)
class ShardConfig:
    """What is made of which corpus."""

    corpus: tuple[str, ...]
    """files, folders or globs of .txt, .jsonl, .parquet (.gz, .zst)"""
    vocab: Path
    """tokenizer folder, from data_prep/vocab.py"""
    out: Path
    """the store to write"""
    workers: int = 0
    """processes; 0: one a core, or one a rank under MPI or Slurm"""
    shard_mb: float = 64
    """MB of text in a shard at most, about; a worker's memory grows with it"""
    holdout: float = 0.01
    """part of the documents kept for evaluation, chosen by a hash of their text"""
    txt: Literal["auto", "lines", "prose"] = "auto"
    """layout of .txt: one sentence a line, or paragraphs"""
    column: str = "text"
    """field of .jsonl, column of .parquet"""
    encode_with: EncodeWith = "auto"
    """what makes the ids, which are the same with all: auto takes the fastest at hand"""
    lang: str = "en"
    """language whose abbreviations the sentence splitter knows: en, de, ru; any other code: common rules"""

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise InputError(f"--holdout {self.holdout} is not a part of the documents; give 0 <= holdout < 1")
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: give 1 or more, or 0 for one a core")
        if self.shard_mb <= 0:
            raise InputError(f"--shard_mb {self.shard_mb}: give a positive number of MB")


@dataclass(frozen=True)
class Job:
    """All that a unit's shards depend on, and where they go."""

    config: ShardConfig
    sources: list[Source]
    encoder: Encoder
    vocab_sha256: str
    plan: Plan
    records: Records


def main(config: ShardConfig) -> None:
    """Make the store, or the part of it that belongs to this rank."""
    try:
        make_store(config)
    except WorkFailed as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; what is written is kept, run the command again to continue")


def make_store(config: ShardConfig) -> None:
    """Make the store, or the part of it that belongs to this rank.

    Raises
    ------
    InputError: wrong input, or a store of something else at `config.out`.
    WorkFailed: a worker died or failed. OSError: the disk.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes do it; threads would not survive the fork
    encoder, vocab_sha256 = Encoder.load(config.vocab, config.encode_with), tokenizer_sha256(config.vocab)
    sources = find_sources(config.corpus, config.txt)
    identity = describe(config, sources, encoder, vocab_sha256)
    if is_finished(config.out, identity):
        return
    plan = make_plan(sources, config.column, int(config.shard_mb * 1e6))
    job = Job(config, sources, encoder, vocab_sha256, plan, Records(config.out))
    times = {"modified": [source.path.stat().st_mtime_ns for source in sources]}
    if job.records.begin(identity | times):
        done = sum(job.records.unit(unit) is not None for unit in plan.units)
        say(f"{config.out}: continuing, {done} of {len(plan.units)} units are done")
    encoder.check(sample_sentences(job))
    work_through(job)
    finish(job, identity)


def describe(config: ShardConfig, sources: list[Source], encoder: Encoder, vocab_sha256: str) -> dict[str, Any]:
    """What a store is made from: the part of its manifest that is known beforehand. No clock, no host, no folder."""
    names = ("shard_mb", "holdout", "txt", "column", "lang")
    return {
        "format": FORMAT,
        "zerobert": project_version(),
        "token_dtype": encoder.dtype.str,
        "vocab": {"sha256": vocab_sha256, "size": encoder.size, "special_ids": encoder.special_ids},
        "settings": {name: getattr(config, name) for name in names} | {"sentence_rules": sentences.VERSION},
        "sources": [
            {"path": source.name, "bytes": source.bytes} | ({"layout": source.layout} if source.layout else {})
            for source in sources
        ],
    }


def is_finished(store: Path, identity: dict[str, Any]) -> bool:
    """Whether `store` is finished, and from the same things.

    Raises
    ------
    InputError: it is finished, but from other things.
    """
    manifest = read_manifest(store)
    if manifest is None:
        return False
    theirs = {name: manifest.get(name) for name in identity if name != "zerobert"}
    differing(theirs, {name: value for name, value in identity.items() if name in theirs}, store, "was made")
    damaged = [e["name"] for e in manifest["shards"] if _size_of(store / e["name"]) != e["bytes"]]
    if damaged:
        raise InputError(f"{store} is damaged: {', '.join(damaged[:3])}; remove the folder and run again")
    shutil.rmtree(store / "parts", ignore_errors=True)
    say(f"{store} is finished, with the same settings: {manifest['counts']['tokens']:,} tokens; nothing to do")
    return True


def read_manifest(store: Path) -> dict[str, Any] | None:
    """The manifest of a finished store."""
    try:
        return json.loads((store / "manifest.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{store / 'manifest.json'} is damaged ({error}); remove {store} and run again") from error


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def sample_sentences(job: Job) -> list[str]:
    """Some sentences of the corpus for the encoder's self-check: from the beginning of some of its units."""
    split = sentences.splitter(job.config.lang)
    units = job.plan.units[:: max(1, len(job.plan.units) // 4)][:4]
    found: list[str] = []
    for unit in units:
        for _, document in islice(unit_documents(unit, job.sources, job.config.column, Counter()), 1):
            found += split(document.text[:20_000])[: SAMPLE // len(units)]
    return found


def work_through(job: Job) -> None:
    """Make the shards of all units of this rank that are not done yet."""
    place = rank_and_world()
    mine = part_of(sorted(job.plan.units, key=lambda unit: -unit.text_bytes), *place)  # the longest first: less waiting
    if place.world > 1:
        say(f"rank {place.rank} of {place.world}: {len(mine)} of {len(job.plan.units)} units")
    left = [unit for unit in mine if job.records.unit(unit) is None]
    workers = job.config.workers or local_workers(place)
    with Progress(sum(unit.text_bytes for unit in left)) as progress:
        for unit, text_bytes in run_local(
            lambda unit, report: make_unit(job, unit, report),
            left,
            workers,
            name=lambda unit: unit_name(unit, job.sources),
            report=lambda counts: progress.add(*counts),
        ):
            progress.correct(unit.text_bytes, text_bytes)


def make_unit(job: Job, unit: Unit, report: Callable[[tuple[int, int]], None]) -> tuple[Unit, int]:
    """Write the shards of a unit that are not there yet. Returns the unit and its true bytes of text."""
    reading: Counter[str] = Counter()
    documents = unit_documents(unit, job.sources, job.config.column, reading)
    split = sentences.splitter(job.config.lang)
    limit = int(job.plan.shard_text * SLACK)
    shards = text_bytes = 0
    pending = next(documents, None)
    while pending is not None:
        builder = None if job.records.shard(unit, shards) else ShardBuilder(job.encoder, job.config.holdout)
        size = reported = 0
        while pending is not None and size < limit:
            source, document = pending
            raw = document.text.encode()
            size += len(raw)
            if builder is not None:
                builder.add(source, raw, document.text.split("\n") if document.lines else split(document.text))
            if size - reported >= REPORT:
                report((size - reported, builder.take_tokens() if builder else 0))
                reported = size
            pending = next(documents, None)
        if builder is not None:
            job.records.add_shard(unit, shards, write_built(shard_path(job.config.out, unit, shards), builder, job))
        report((size - reported, builder.take_tokens() if builder else 0))
        text_bytes += size
        shards += 1
    job.records.add_unit(unit, shards, reading)
    return unit, text_bytes


def write_built(path: Path, builder: ShardBuilder, job: Job) -> dict[str, Any]:
    """Write a shard; returns its record."""
    sections = builder.sections()
    write_shard(path, sections, job.vocab_sha256)
    entry = {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "tokens": len(sections.tokens),
        "sentences": len(sections.sentence_lengths),
        "documents": len(sections.document_sentences),
    }
    return {"shard": entry, "counts": dict(builder.counts)}


COUNTS = (  # in this order in the manifest; the last five are oddities
    *("documents", "sentences", "tokens", "held_out_documents", "unknown", "text_bytes"),
    *("empty_documents", "cut_documents", "cut_sentences", "invalid_utf8", "long_lines"),
)


def finish(job: Job, identity: dict[str, Any]) -> None:
    """Write the manifest if all units are done, by whichever rank sees it first.

    Raises
    ------
    InputError: the corpus turned out to hold no text.
    """
    store = job.config.out
    with only_one(store / "parts") as first:
        if not first:
            say(f"{store} was finished by another rank")
            return
        done = [job.records.unit(unit) for unit in job.plan.units]
        records = [record for unit in done if unit is not None for record in unit]
        if None in done:
            say(f"this rank is done; {done.count(None)} of {len(done)} units are with other ranks")
            return
        shards = [record["shard"] for record in records if record.get("shard", {}).get("documents")]
        if not shards:
            shutil.rmtree(store)
            raise InputError(f"the corpus holds no text: {', '.join(source.name for source in job.sources[:5])}")
        counts = total_counts(records, shards)
        write_folder(store / "vocab", lambda folder: copy_tokenizer(job.config.vocab, folder))
        for leftover in store.glob("*.partial*"):
            leftover.unlink()
        for empty in {record["shard"]["name"] for record in records if "shard" in record} - {s["name"] for s in shards}:
            (store / empty).unlink()
        write_json(store / "manifest.json", identity | {"shards": shards, "counts": counts})
        shutil.rmtree(store / "parts")
    summarise(store, shards, counts)


@contextmanager
def only_one(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder that goes with the work; False where it is gone already."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder.exists()
    finally:
        os.close(descriptor)


def total_counts(records: list[dict[str, Any]], shards: list[dict[str, Any]]) -> dict[str, int]:
    """The sums over all shards, under the names of COUNTS."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record["counts"])
    for shard in shards:
        total.update({name: shard[name] for name in ("documents", "sentences", "tokens")})
    return {name: total[name] for name in COUNTS}


def copy_tokenizer(vocab: Path, folder: Path) -> None:
    """Copy the files that make a tokenizer folder what it is."""
    for name in TOKENIZER_FILES:
        if (vocab / name).is_file():
            shutil.copyfile(vocab / name, folder / name)


def summarise(store: Path, shards: list[dict[str, Any]], counts: dict[str, int]) -> None:
    """Say what came out, oddities included."""
    tokens, size = counts["tokens"], sum(shard["bytes"] for shard in shards)
    say(
        f"{store}: {counts['documents']:,} documents ({counts['held_out_documents']:,} held out), "
        f"{counts['sentences']:,} sentences, {tokens:,} tokens in {len(shards)} shards; "
        f"{size / tokens:.2f} bytes a token, {100 * counts['unknown'] / tokens:.3f} % unknown"
    )
    if oddities := [f"{name} {counts[name]:,}" for name in COUNTS[6:] if counts[name]]:
        say(f"oddities: {', '.join(oddities)}")


if __name__ == "__main__":
    run(main, ShardConfig, __doc__)
