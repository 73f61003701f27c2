"""Write a corpus as a token store, the only form in which pretraining reads text.

    python data_prep/shard.py --corpus wiki/ news-*.jsonl.zst --vocab vocab --out stores/wiki
    python data_prep/shard.py --corpus wiki/ --vocab vocab --out stores/wiki --workers 8
    python data_prep/shard.py --corpus more/ --vocab vocab --out stores/wiki --append
    mpirun -n 32 python data_prep/shard.py --corpus wiki/ --vocab vocab --out stores/wiki    # a shared file system
    srun or sbatch --array=0-31: the same command; the last task to end writes the manifest

files -> documents (corpus.py, cleaning.py) -> sentences (sentences.py) -> ids (encode.py) -> STORE/shard-*.bin
(builder.py), then manifest.json (manifest.py).

The bytes of a store depend on the corpus, the vocabulary and the settings, not on workers, ranks or restarts: plan.py
cuts the corpus into units beforehand. Stop it in any way and run it again: shards that are whole are kept. Without
manifest.json, which is written last, a store is unfinished and nothing opens it. docs/format.md has the byte layout.
"""

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    if not __package__:  # a plain script: data_prep/ itself is on the path, where its file names could hide others'
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: threads would start, with nothing to do

from tyro.conf import OmitArgPrefixes

from data_prep.cli import InputError, printable, run, say
from data_prep.files import check_writable, sha256_of
from data_prep.json_types import JsonObject
from data_prep.progress import TextProgress
from data_prep.ranges import SHARD_MB, WORKERS, Range, check_ranges
from data_prep.samples.coverage import look_over, why_not_evaluated
from data_prep.samples.sample_index import Objective
from data_prep.sharding import manifest
from data_prep.sharding.builder import ShardBuilder
from data_prep.sharding.locks import writer_lock
from data_prep.sharding.plan import SHARD_SLACK, WorkPlan, WorkUnit, plan_work, unit_documents, unit_name
from data_prep.sharding.ranks import local_workers, rank_from_env, shard_for_rank
from data_prep.sharding.records import Records, ShardRecord, shard_path
from data_prep.sharding.worker_pool import WorkerError, map_processes
from data_prep.store import Store
from data_prep.store_manifest import ShardEntry, StoreManifest
from data_prep.text.cleaning import Cleaner, CleaningConfig, cleaner_of, settings_of
from data_prep.text.corpus import Document
from data_prep.text.damage import check_damage_of_all
from data_prep.text.discovery import check_unchanged, find_sources
from data_prep.text.languages import defaults
from data_prep.text.sentences import SplitBy, Splitter, splitter, version_of
from data_prep.text.source import Source
from data_prep.tokens import contract
from data_prep.tokens.continuations import continuation_token_ids
from data_prep.tokens.encode import Encoder, EncodeWith
from data_prep.tokens.tokenizer_folder import tokenizer_sha256
from data_prep.tokens.word_borders import WordBorders, WordsFrom, words_version

REPORT_EVERY_BYTES = 1 << 20  # of text that a worker has read
OBJECTIVE: Objective = "nsp"  # of a run that says nothing else
SEQ_LEN = 128
SELF_CHECK_SENTENCES = 200  # of the corpus, by which the encoder is checked
SELF_CHECK_CHARS = 20_000  # of a document that they are taken from


@dataclass(frozen=True)
class ShardConfig:
    """What is made of which corpus."""

    vocab: Path
    """tokenizer folder, from data_prep/vocab.py"""
    out: Path
    """the store to write"""
    corpus: tuple[str, ...] = ()
    """files, folders or globs of .txt, .jsonl, .json, .csv, .tsv, .parquet, .tar, Wikipedia's .xml (.gz, .bz2, .zst)"""
    dataset: tuple[str, ...] = ()
    """Hugging Face datasets: folders, or names as NAME[@CONFIG][:SPLIT], which are streamed"""
    append: bool = False
    """add sources to a finished store; its shards stay as they are"""
    strict: bool = False
    """refuse what is otherwise mended or left out, and counted: wrong UTF-8, NUL, long lines, lines that are not JSON,
    damaged and empty files"""
    workers: Annotated[int, WORKERS] = 0
    """processes; 0: one a core, or one a rank under MPI or Slurm"""
    shard_mb: Annotated[float, SHARD_MB] = 64
    """MB of text in a shard at most, about"""
    holdout: Annotated[float, Range(0, 1, high_open=True, why="a part of the documents")] = 0.01
    """part of the documents kept for evaluation, chosen by a hash of their text; of ten documents or more two to eight
    at least (a tenth); 0: none"""
    txt: Literal["auto", "lines", "prose"] = "auto"
    """layout of .txt: one sentence a line, or paragraphs"""
    encoding: str | None = None
    """that of all text without a byte order mark, such as cp1252; by default found for each file, and said"""
    max_damaged: Annotated[float | None, Range(0, 1)] = None
    """share of a source's characters that may be U+FFFD or controls: 0.01, but 0 with --encoding"""
    column: str = "text"
    """field of .jsonl, .json, column of .csv, .tsv, .parquet; without "text" .json, .csv, .tsv take a likely one"""
    encode_with: EncodeWith = "auto"
    """what makes the ids, which are the same with all: auto takes the fastest at hand"""
    lang: str = "en"
    """language of the text (de, pt-BR, zh ...): the abbreviations of its sentences, or what is common to all"""
    sentences: SplitBy = "rule"
    """what ends a sentence: our rules; Punkt (extra [text]; en, de, ru and 16 more); or every line is one"""
    words: WordsFrom = "vocab"
    """what a word is when whole words are masked: what the vocabulary says, or in Chinese jieba (extra [zh])"""
    cleaning: OmitArgPrefixes[CleaningConfig] = field(default_factory=CleaningConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.corpus and not self.dataset:
            raise InputError("nothing to read: give --corpus PATH... or --dataset NAME_OR_FOLDER...")
        defaults(self.lang)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a unit's shards depend on, and where they go."""

    config: ShardConfig
    sources: list[Source]  # those that are read now
    first_source: int  # index of the first of them in the store
    encoder: Encoder
    vocab_sha256: str
    plan: WorkPlan
    records: Records
    clean: Cleaner | None
    words: WordBorders | None

    @cached_property
    def split(self) -> Splitter:
        """The function that cuts texts into sentences."""
        return splitter(self.config.lang, self.config.sentences)


def main(config: ShardConfig) -> None:
    """Make the store, or the part of it that belongs to this rank."""
    try:
        make_store(config)
    except WorkerError as error:
        sys.exit(f"error: {printable(error)}")
    except OSError as error:
        sys.exit(f"error: {printable(error)}; what is written is kept, run the command again to continue")


def make_store(config: ShardConfig) -> None:
    """Make the store, or the part of it that belongs to this rank.

    Raises
    ------
    InputError: wrong input, or a store of something else at `config.out`.
    WorkerError: a worker died or failed. OSError: the disk.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes do it; threads would not survive the fork
    config = replace(config, lang=defaults(config.lang).code)
    with contract.settled(config.vocab) as vocab:
        _make_store(replace(config, vocab=vocab), config.vocab)


def _make_store(config: ShardConfig, named: Path) -> None:
    """As above; `named` is the tokenizer folder that the user gave, --vocab the one that the store will keep."""
    encoder, vocab_sha256 = Encoder.load(config.vocab, config.encode_with), tokenizer_sha256(config.vocab)
    sources = find_sources(
        config.corpus,
        config.txt,
        config.dataset,
        strict=config.strict,
        column=config.column,
        encoding=config.encoding,
        max_damaged=config.max_damaged,
        out=config.out,
    )
    wanted = manifest.describe(encoder, vocab_sha256, settings(config), sources)
    base = manifest.base_manifest(config.out, wanted) if config.append else None
    if base is not None:
        new = manifest.new_sources(config.out, base.sources, wanted.sources)
        sources = [sources[index] for index in new]
        wanted = replace(wanted, sources=(*base.sources, *(wanted.sources[index] for index in new)))
    if manifest.is_finished(config.out, wanted, base is not None):
        return
    check_writable(config.out, within=True)
    job = Job(
        config=config,
        sources=sources,
        first_source=len(base.sources) if base else 0,
        encoder=encoder,
        vocab_sha256=vocab_sha256,
        plan=plan_work(sources, config.column, int(config.shard_mb * 1e6), first_unit(base)),
        records=Records(config.out),
        clean=cleaner_of(config.cleaning),
        words=word_borders(config, encoder),
    )
    records, units, rank = job.records, job.plan.units, rank_from_env()
    sentences = sample_sentences(job)
    if base is None and not (records.folder / "plan.json").exists():  # else it was done when the store was begun
        contract.check(config.vocab, encoder, sentences, named)
    times = {"modified": [source.modified for source in sources]}
    continuing = records.begin(wanted.recipe() | times, base is not None)
    with writer_lock(records.folder, rank):
        done = sum(records.finished_unit(unit) is not None for unit in units)
        if continuing and (done or rank.world_size == 1):
            say(f"{config.out}: continuing, {done} of {len(units)} units are done")
        encoder.check(sentences)
        work_through(job)
        is_finished = manifest.finish(
            records, units, wanted, vocab=config.vocab, base=base, check=lambda counts: check_sources(job, counts)
        )
    if is_finished:
        for line in coverage_lines(Store.open(config.out)):
            say(line)


def first_unit(base: StoreManifest | None) -> int:
    """Return the number of the first unit of work that is added to a store: one above the highest there."""
    return 1 + max((int(shard.name.split("-")[1]) for shard in base.shards), default=-1) if base else 0


def check_sources(job: Job, counts: dict[int, Counter[str]]) -> None:
    """Refuse to finish what was made of files that changed meanwhile, or that are damaged beyond --max_damaged.

    Raises
    ------
    InputError: naming the file.
    """
    for source in job.sources:
        check_unchanged(source)
    counted = [(source, counts.get(index, Counter())) for index, source in enumerate(job.sources, job.first_source)]
    check_damage_of_all(counted, job.config.max_damaged, encoding_is_named=job.config.encoding is not None)


def coverage_lines(store: Store) -> list[str]:
    """Return what a run with the usual samples will make of a store: the share of the text that they show, what is
    amiss."""
    lines = []
    coverage = look_over([store], OBJECTIVE, SEQ_LEN)
    if coverage is None:
        lines.append(f"warning: {OBJECTIVE} needs two documents to train on; use --objective mlm, or add documents")
    else:
        lines.append(f"tokens seen by {OBJECTIVE} with {SEQ_LEN} tokens a sample: {coverage.in_words()}")
        lines += [f"warning: {coverage.warning}"] if coverage.warning else []
    if why := why_not_evaluated([store], OBJECTIVE):
        lines.append(f"warning: no evaluation, and --patience is refused: {why}")
    return lines


def settings(config: ShardConfig) -> JsonObject:
    """Return what decides the bytes beside corpus and vocabulary, as the manifest says it."""
    named = {name: getattr(config, name) for name in ("shard_mb", "holdout", "txt", "column", "lang")}
    named |= version_of(config.sentences) | words_version(config.words)
    return named | settings_of(config.cleaning)


def word_borders(config: ShardConfig, encoder: Encoder) -> WordBorders | None:
    """Return what finds words, where it is not the vocabulary."""
    if config.words == "vocab":
        return None
    return WordBorders(
        encoder.tokenizer, continuation_token_ids(config.vocab, encoder.size, encoder.special_ids.values())
    )


def sample_sentences(job: Job) -> list[str]:
    """Return some sentences of the corpus for the encoder's self-check: from the beginning of some of its units."""
    units = job.plan.units[:: max(1, len(job.plan.units) // 4)][:4]
    found: list[str] = []
    for unit in units:
        for _, document in islice(unit_documents(unit, job.sources, job.config.column, {}), 1):
            found += job.split([document.text[:SELF_CHECK_CHARS]])[0][: SELF_CHECK_SENTENCES // len(units)]
    return found


def work_through(job: Job) -> None:
    """Make the shards of all units of this rank that are not done yet."""
    rank = rank_from_env()
    longest_first = sorted(job.plan.units, key=lambda unit: -unit.text_bytes)  # less waiting at the end
    mine = shard_for_rank(longest_first, *rank)
    if rank.world_size > 1:
        say(f"rank {rank.rank} of {rank.world_size}: {len(mine)} of {len(job.plan.units)} units")
    left = [unit for unit in mine if job.records.finished_unit(unit) is None]
    with TextProgress(sum(unit.text_bytes for unit in left)) as progress:
        for unit, text_bytes in map_processes(
            lambda unit, report: build_unit(job, unit, report),
            left,
            workers=job.config.workers or local_workers(rank),
            name=lambda unit: unit_name(unit, job.sources),
            report=lambda counts: progress.add(*counts),
        ):
            progress.correct(unit.text_bytes, text_bytes)


def build_unit(job: Job, unit: WorkUnit, report: Callable[[tuple[int, int]], None]) -> tuple[WorkUnit, int]:
    """Write the shards of a unit that are not there yet; return the unit and its true bytes of text.

    `report` is told, now and then, how many bytes of text were read and how many tokens made since it was told last.
    """
    counts: dict[int, Counter[str]] = {}  # of the reader, by source
    documents = unit_documents(unit, job.sources, job.config.column, counts, job.clean)
    shards = text_bytes = 0
    for shard in parted_by_shard(documents, int(job.plan.shard_text * SHARD_SLACK)):
        # Of a shard that is whole already the documents are read only, so that the next one begins where it should.
        is_whole = job.records.finished_shard(unit, shards) is not None
        builder = None if is_whole else new_builder(job)
        unreported = 0
        for source, document, raw in shard:
            if builder is not None:
                builder.add(job.first_source + source, document, raw)
            text_bytes += len(raw)
            unreported += len(raw)
            if unreported >= REPORT_EVERY_BYTES:
                report((unreported, builder.new_tokens() if builder else 0))
                unreported = 0
        if builder is not None:
            check_unit_unchanged(job, unit)  # before anything says that it is done
            record = write_built(shard_path(job.config.out, unit, shards), builder, job)
            job.records.add_shard(unit, shards, record)
        report((unreported, builder.new_tokens() if builder else 0))
        shards += 1
    check_unit_unchanged(job, unit)
    if job.config.strict:
        manifest.refuse_irregular(job.sources, counts)
    job.records.add_unit(unit, shards, {job.first_source + source: found for source, found in counts.items()})
    return unit, text_bytes


def parted_by_shard(
    documents: Iterator[tuple[int, Document]], most_bytes: int
) -> Iterator[Iterator[tuple[int, Document, bytes]]]:
    """Yield the documents of each shard, with their text in UTF-8: a shard is full with the document by which it has
    `most_bytes`. Each is to be read to its end before the next one."""
    for first in documents:
        yield _until_full(chain([first], documents), most_bytes)


def _until_full(documents: Iterable[tuple[int, Document]], most_bytes: int) -> Iterator[tuple[int, Document, bytes]]:
    size = 0
    for source, document in documents:
        raw = document.text.encode()
        size += len(raw)
        yield source, document, raw
        if size >= most_bytes:
            return


def check_unit_unchanged(job: Job, unit: WorkUnit) -> None:
    """Refuse what was made of files that are no longer as they were planned.

    Raises
    ------
    InputError: naming the file.
    """
    for part in unit.ranges:
        check_unchanged(job.sources[part.source])


def new_builder(job: Job) -> ShardBuilder:
    """Return what collects the documents of the next shard."""
    config = job.config
    return ShardBuilder(
        job.records.folder, split=job.split, encoder=job.encoder, holdout=config.holdout, words=job.words
    )


def write_built(path: Path, builder: ShardBuilder, job: Job) -> ShardRecord:
    """Write a shard; return its record."""
    sections = builder.write(path, job.vocab_sha256)
    entry = ShardEntry(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        tokens=len(sections.tokens),
        sentences=len(sections.sentence_lengths),
        documents=len(sections.document_sentences),
    )
    return ShardRecord(entry, dict(builder.counts), builder.lowest.to_json())


if __name__ == "__main__":
    gc.set_threshold(100_000)  # hardly anything here refers to itself: looking for it took 4 % of the time
    run(main, ShardConfig, __doc__)
