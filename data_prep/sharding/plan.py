"""How a corpus is cut into units of work: the reason why a store's bytes do not depend on who makes it.

A unit is a list of ranges, each a byte range (plain files), a row range (parquet) or all of a file that can only be
read from its beginning, of about as much text as a shard shall hold. It depends on names, sizes and settings, never on
workers. Whoever takes a unit writes its shards: one for a plain unit, as many as needed for one whose text is known
once it is read. records.py has what is done.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from data_prep.rounding import ceil_div
from data_prep.text.cleaning import Cleaner
from data_prep.text.corpus import Document, count_rows, read_counted_documents
from data_prep.text.source import TO_THE_END, Source

ASSUMED_COMPRESSION_RATIO = 4  # bytes of text in a byte of a compressed file: a guess, for balance only
LEAST_UNITS = 32  # a small corpus is cut finer than shards need be, so that several workers have work
LEAST_BYTES = 1 << 20
SHARD_SLACK = 5 / 4  # a shard is closed when it holds this many times the text aimed at


class SourceRange(NamedTuple):
    """A part of a source: bytes of its text, or rows of parquet."""

    source: int  # index into the sources that are read
    start: int
    stop: int


class WorkUnit(NamedTuple):
    """What one worker does at a time."""

    number: int  # within the store
    ranges: tuple[SourceRange, ...]
    text_bytes: int  # estimated


class WorkPlan(NamedTuple):
    """All the work."""

    units: tuple[WorkUnit, ...]
    shard_text: int  # bytes of text aimed at in a shard


def plan_work(sources: list[Source], column: str, shard_bytes: int, first_unit: int = 0) -> WorkPlan:
    """Cut a corpus into units of at most about `shard_bytes` bytes of text, numbered from `first_unit` on.

    Raises
    ------
    InputError: a parquet file is damaged or lacks the column.
    """
    sizes = [_size(source, column) for source in sources]
    aim = min(shard_bytes, max(LEAST_BYTES, sum(text for _, text in sizes) // LEAST_UNITS))
    units: list[WorkUnit] = []
    ranges: list[SourceRange] = []  # of the unit that is being filled
    filled = 0  # bytes of text in it

    def close() -> None:
        nonlocal ranges, filled
        if ranges:
            units.append(WorkUnit(first_unit + len(units), tuple(ranges), filled))
        ranges, filled = [], 0

    # Aim 10, sources of 4, 5, 25 and 8 bytes: units of 4 + 5; 0..8, 8..16 and 16..25 of the third; 8.
    for index, (length, text) in enumerate(sizes):
        parts = 1 if length == TO_THE_END else max(1, ceil_div(text, aim))
        for part in range(parts if length else 0):
            if filled + text // parts > aim:
                close()
            ranges.append(SourceRange(index, part * length // parts, (part + 1) * length // parts))
            filled += text // parts
    close()
    return WorkPlan(tuple(units), aim)


def _size(source: Source, column: str) -> tuple[int, int]:
    """Return the length of a source, as ranges count it, and its bytes of text."""
    if not source.bytes:
        return 0, 0
    if source.kind in ("parquet", "dataset"):
        return count_rows(source, column)
    text = source.bytes * (ASSUMED_COMPRESSION_RATIO if source.compression else 1)
    return (TO_THE_END if source.is_stream else text, text)


def unit_documents(
    unit: WorkUnit, sources: list[Source], column: str, counts: dict[int, Counter[str]], clean: Cleaner | None = None
) -> Iterator[tuple[int, Document]]:
    """Yield (index of the source, document) of a unit, in order, cleaned; `counts` gets what was counted, by source."""
    for part in unit.ranges:
        seen = counts.setdefault(part.source, Counter())
        for document in read_counted_documents(sources[part.source], column, seen, part.start, part.stop):
            if clean is None or (document := clean(document, seen)) is not None:  # type: ignore[assignment]
                yield part.source, document


def unit_name(unit: WorkUnit, sources: list[Source]) -> str:
    """Return what a message calls a unit."""
    first, *others = unit.ranges
    where = sources[first.source].name
    if not others and not sources[first.source].is_stream:
        where += f" from {'row' if sources[first.source].kind == 'parquet' else 'byte'} {first.start}"
    return f"unit {unit.number} ({where}{f' and {len(others)} more' if others else ''})"
