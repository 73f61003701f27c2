"""How a corpus is cut into units of work, and what is known to be done: the reason why a store's bytes do not depend on
who makes it.

A unit is a list of segments, each a byte range (plain files), a row range (parquet) or all of a packed file, of about
as much text as a shard shall hold. It depends on names, sizes and settings, never on workers. Whoever takes a unit
writes its shards, one for a plain unit, as many as needed for a packed one, whose text is known once unpacked; each
shard is followed by its record, and the unit by its own:

    STORE/parts/plan.json          settings and sources; a run with others is refused
    STORE/parts/00003-000.json     shard-00003-000.bin is whole: its checksum and counts
    STORE/parts/00003.json         so are all shards of unit 3: their number, and what the reader counted

When every unit has its record, manifest.json is written and parts/ removed.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError
from data_prep.files import write_json
from data_prep.store import shard_name
from data_prep.text.cleaning import Cleaner
from data_prep.text.corpus import Document, count_rows, read_counted_documents
from data_prep.text.source import TO_THE_END, Source

ASSUMED_COMPRESSION_RATIO = 4  # bytes of text in a byte of a compressed file: a guess, for balance only
LEAST_UNITS = 32  # a small corpus is cut finer than shards need be, so that several workers have work
LEAST_BYTES = 1 << 20
SLACK = 5 / 4  # a shard is closed when it holds this many times the text aimed at


class Segment(NamedTuple):
    """A part of a source: bytes of its text, or rows of parquet."""

    source: int
    start: int
    stop: int


class Unit(NamedTuple):
    """What one worker does at a time."""

    number: int
    segments: tuple[Segment, ...]
    text_bytes: int  # estimated


class Plan(NamedTuple):
    """All the work."""

    units: tuple[Unit, ...]
    shard_text: int  # bytes of text aimed at in a shard


def make_plan(sources: list[Source], column: str, shard_bytes: int, first_unit: int = 0) -> Plan:
    """Cut a corpus into units of at most about `shard_bytes` bytes of text, numbered from `first_unit` on.

    Raises
    ------
    InputError: a parquet file is damaged or lacks the column.
    """
    sizes = [_size(source, column) for source in sources]
    aim = min(shard_bytes, max(LEAST_BYTES, sum(text for _, text in sizes) // LEAST_UNITS))
    units: list[Unit] = []
    open_segments: list[Segment] = []
    open_bytes = 0

    def close() -> None:
        nonlocal open_segments, open_bytes
        if open_segments:
            units.append(Unit(first_unit + len(units), tuple(open_segments), open_bytes))
        open_segments, open_bytes = [], 0

    for number, (length, text) in enumerate(sizes):
        parts = 1 if length == TO_THE_END else max(1, -(-text // aim))
        for part in range(parts if length else 0):
            if open_bytes + text // parts > aim:
                close()
            open_segments.append(Segment(number, part * length // parts, (part + 1) * length // parts))
            open_bytes += text // parts
    close()
    return Plan(tuple(units), aim)


def _size(source: Source, column: str) -> tuple[int, int]:
    """Length in the units of a segment, and bytes of text."""
    if not source.bytes:
        return 0, 0
    if source.kind in ("parquet", "dataset"):
        return count_rows(source, column)
    text = source.bytes * (ASSUMED_COMPRESSION_RATIO if source.compression else 1)
    return (TO_THE_END if source.is_stream else text, text)


def unit_documents(
    unit: Unit, sources: list[Source], column: str, counts: dict[int, Counter[str]], clean: Cleaner | None = None
) -> Iterator[tuple[int, Document]]:
    """(source number, document) of a unit, in order, cleaned; `counts` gets what was counted, by source."""
    for segment in unit.segments:
        seen = counts.setdefault(segment.source, Counter())
        for document in read_counted_documents(sources[segment.source], column, seen, segment.start, segment.stop):
            if clean is None or (document := clean(document, seen)) is not None:  # type: ignore[assignment]
                yield segment.source, document


def unit_name(unit: Unit, sources: list[Source]) -> str:
    """What a message calls a unit."""
    first, *others = unit.segments
    where = sources[first.source].name
    if not others and not sources[first.source].is_stream:
        where += f" from {'row' if sources[first.source].kind == 'parquet' else 'byte'} {first.start}"
    return f"unit {unit.number} ({where}{f' and {len(others)} more' if others else ''})"


class Records:
    """What is done, as files in STORE/parts. The store's own folder decides, nothing is kept in memory."""

    def __init__(self, store: Path):
        self.store = store
        self.folder = store / "parts"

    def begin(self, content: dict[str, Any], appending: bool = False) -> bool:
        """Note what is being made; returns whether a run that made the same was interrupted here.

        Raises
        ------
        InputError: the folder holds something else.
        """
        path = self.folder / "plan.json"
        if path.exists():
            remedy = f"Run the command that was begun, or remove {self.folder}" if appending else ""
            differing(json.loads(path.read_text("utf-8")), content, self.store, "is being made", remedy)
            return True
        if not appending and self.store.exists() and not (self.store.is_dir() and set(_names(self.store)) <= {"parts"}):
            raise InputError(f"{self.store} exists and is not a token store; it stays as it is; give another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        return False

    def shard(self, unit: Unit, piece: int) -> dict[str, Any] | None:
        """The record of a shard, if the shard is whole."""
        record = _read(self.folder / f"{unit.number:05d}-{piece:03d}.json")
        return record if record is not None and self._is_whole(record["shard"]) else None

    def unit(self, unit: Unit) -> list[dict[str, Any]] | None:
        """Records of all shards of a unit and at last its own, if it is done."""
        end = _read(self.folder / f"{unit.number:05d}.json")
        if end is None:
            return None
        shards = [self.shard(unit, piece) for piece in range(end["shards"])]
        return None if None in shards else [*(shard for shard in shards if shard is not None), end]

    def add_shard(self, unit: Unit, piece: int, record: dict[str, Any]) -> None:
        """Note that a shard is whole."""
        write_json(self.folder / f"{unit.number:05d}-{piece:03d}.json", record, sync=False)

    def add_unit(self, unit: Unit, shards: int, counts: dict[int, Counter[str]]) -> None:
        """Note that a unit is done, and what was counted in which source."""
        record = {
            "shards": shards,
            "counts": {str(source): dict(sorted(found.items())) for source, found in counts.items()},
        }
        write_json(self.folder / f"{unit.number:05d}.json", record, sync=False)

    def _is_whole(self, entry: dict[str, Any]) -> bool:
        path = self.store / entry["name"]
        return path.is_file() and path.stat().st_size == entry["bytes"]


def shard_path(store: Path, unit: Unit, piece: int) -> Path:
    """Where a shard of a unit lies."""
    return store / shard_name(unit.number, piece)


def differing(theirs: dict[str, Any], ours: dict[str, Any], store: Path, state: str, remedy: str = "") -> None:
    """Refuse to go on in a store that is or was made from something else.

    Raises
    ------
    InputError: naming what differs.
    """
    changed = _changed(theirs, ours)
    theirs, ours = _flat(theirs), _flat(ours)
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    if not names:
        return
    shown = []
    for name in names:
        old, new = (_brief(content.get(name)) for content in (theirs, ours))
        shown.append(f"{name} {old}, now {new}" if old != new else f"{name} changed")
    if changed:
        shown.append(
            f"that is {', '.join(changed[:5])}" + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        )
    remedy = remedy or "Remove it or give another --out"
    raise InputError(f"{store} {state} from something else: {'; '.join(shown)}. {remedy}")


def _changed(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Names of the sources that are new, gone, other, or were modified."""
    parts = []
    for content in (theirs, ours):
        sources, times = content.get("sources", []), content.get("modified", [])  # times: of those that are added
        times = [None] * (len(sources) - len(times)) + times
        parts.append([(source["path"], source, time) for source, time in zip(sources, times, strict=True)])
    old, new = parts
    return sorted({one[0] for one in (*(x for x in old if x not in new), *(x for x in new if x not in old))})


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """The settings among the rest, for a message that names the very setting."""
    return {name: value for name, value in content.items() if name != "settings"} | content.get("settings", {})


def _brief(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else str(value)[:40]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):  # a power cut may tear a record: its work is done again
        return None


def _names(folder: Path) -> Iterable[str]:
    return (path.name for path in folder.iterdir() if ".partial" not in path.name)
