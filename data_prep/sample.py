"""The part of a corpus that a vocabulary is made of: all of it, or documents chosen by a hash of their text.

    sample = Sample.of(sources, reading, 1000)                    # MB of text at most, about
    counted = sample.count(Cutter(tokenizer), workers=0, what="words")
    say(sample.share_in_words(counted))
    for paragraphs in sample.texts("pieces", counted.read_bytes): ...

What is chosen depends on the corpus and on the size asked for, not on the order of files or on how many processes read
them. Documents that a store holds out (sharding/held_out.py) are the last to be chosen: they have the lowest hashes,
and a sample has the highest.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from data_prep.cli import say
from data_prep.progress import Progress
from data_prep.sharding.held_out import digest_of
from data_prep.sharding.plan import WorkPlan, WorkUnit, plan_work, unit_documents, unit_name
from data_prep.sharding.ranks import RankInfo, local_workers
from data_prep.sharding.worker_pool import map_processes
from data_prep.text.corpus import read_documents
from data_prep.text.damage import check_damage, check_damage_of_all
from data_prep.text.discovery import check_unchanged
from data_prep.text.source import Source
from data_prep.tokens.words import Counted, Cutter, WordCounter, joined

UNIT_BYTES = 64_000_000  # of text that a process reads at a time, at most
REPORT_EVERY_BYTES = 1 << 20  # of text that it has read


class Reading(NamedTuple):
    """How the sources are read."""

    column: str
    max_damaged: float | None
    encoding_is_named: bool


class Seen(NamedTuple):
    """What a unit of the corpus has given."""

    unit: WorkUnit
    counted: Counted
    by_source: dict[int, Counter[str]]  # of the reader


@dataclass(frozen=True)
class Sample:
    """Documents of a corpus."""

    sources: list[Source]
    reading: Reading
    plan: WorkPlan
    share: float  # of the documents; 1: all

    @classmethod
    def of(cls, sources: list[Source], reading: Reading, megabytes: float) -> Self:
        """Plan to read sources, and to choose about so many MB of their text.

        Raises
        ------
        InputError: a parquet file is damaged or lacks the column.
        """
        plan = plan_work(sources, reading.column, UNIT_BYTES)
        total = sum(unit.text_bytes for unit in plan.units)
        return cls(sources, reading, plan, min(1.0, megabytes * 1e6 / max(1, total)))

    def takes(self, raw: bytes) -> bool:
        """Whether a document, here its text in UTF-8, is chosen."""
        return self.share == 1 or digest_of(raw) >= (1 - self.share) * 2**64

    def share_in_words(self, counted: Counted) -> str:
        """Return what part of the corpus was counted, for the user."""
        if self.share == 1:
            return f"all {counted.text_bytes / 1e6:,.1f} MB of text"
        part = 100 * counted.text_bytes / max(1, counted.read_bytes)
        chosen, read = counted.text_bytes / 1e6, counted.read_bytes / 1e6
        return f"{chosen:,.1f} of {read:,.1f} MB of text ({part:.2g} %), documents chosen by a hash"

    def count(self, cutter: Cutter | None, workers: int, what: str) -> Counted:
        """Return the words and characters of the sample, without a cutter the characters alone: the same for any number
        of `workers` (0: one a core).

        Raises
        ------
        InputError: a source is damaged, or changed meanwhile. WorkerError: a process died or failed.
        """
        total = sum(unit.text_bytes for unit in self.plan.units)
        with Progress(what=f"counting {what}", unit="B", total=total) as progress:
            seen = map_processes(
                lambda unit, report: self._count_unit(unit, cutter, report),
                sorted(self.plan.units, key=lambda unit: -unit.text_bytes),  # less waiting at the end
                workers=workers or local_workers(RankInfo(0, 1)),
                name=lambda unit: unit_name(unit, self.sources),
                report=progress.update,
            )
            return joined(self._checked(seen))

    def _count_unit(self, unit: WorkUnit, cutter: Cutter | None, report: Callable[[int], None]) -> Seen:
        counter = WordCounter(cutter)
        by_source: dict[int, Counter[str]] = {}
        unreported = 0
        for _, document in unit_documents(unit, self.sources, self.reading.column, by_source):
            raw = document.text.encode()
            if self.takes(raw):
                counter.add(document.text, len(raw))
            else:
                counter.pass_over(len(raw))
            unreported += len(raw)
            if unreported >= REPORT_EVERY_BYTES:
                report(unreported)
                unreported = 0
        report(unreported)
        return Seen(unit, counter.result(), by_source)

    def _checked(self, parts: Iterable[Seen]) -> Iterator[Counted]:
        """Yield what units have given; a source is looked at when it was read to its end: now, and not hours later."""
        ranges_left = Counter(part.source for unit in self.plan.units for part in unit.ranges)
        found: dict[int, Counter[str]] = defaultdict(Counter)
        named = self.reading.encoding_is_named
        for seen in parts:
            yield seen.counted
            for index, counts in seen.by_source.items():
                found[index].update(counts)
            for part in seen.unit.ranges:
                ranges_left[part.source] -= 1
                if not ranges_left[part.source]:
                    source = self.sources[part.source]
                    check_unchanged(source)
                    check_damage(source, found[part.source], self.reading.max_damaged, encoding_is_named=named)
        counted = [(self.sources[index], counts) for index, counts in sorted(found.items())]
        check_damage_of_all(counted, self.reading.max_damaged, encoding_is_named=named)
        if invalid := sum(counts["invalid_utf8"] for _, counts in counted):
            say(f"{invalid:,} lines were not valid UTF-8; their wrong bytes were replaced by U+FFFD")

    def texts(self, what: str, total_bytes: int) -> Iterator[list[str]]:
        """Yield the paragraphs of the sample, some 1 MB of them at a time, in the order of the corpus; `total_bytes` of
        text are read."""
        batch: list[str] = []
        size = 0
        with Progress(what=f"reading {what}", unit="B", total=total_bytes) as progress:
            for source in self.sources:
                for document in read_documents(source, self.reading.column, Counter()):
                    raw = document.text.encode()
                    size += len(raw)
                    if self.takes(raw):
                        batch += document.text.split("\n" if document.lines else "\n\n")
                    if size >= REPORT_EVERY_BYTES:
                        progress.update(size)
                        yield batch
                        batch, size = [], 0
                check_unchanged(source)
            progress.update(size)
            yield batch
