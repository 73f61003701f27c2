"""What is done of a store in the making, as files in STORE/parts: nothing is kept in memory.

    STORE/parts/plan.json          settings and sources; a run with others is refused
    STORE/parts/00003-000.json     shard-00003-000.bin is whole: its checksum and counts
    STORE/parts/00003.json         so are all shards of unit 3: their number, and what the reader counted

Each shard is followed by its record, and the unit by its own. When every unit has its record, manifest.json is written
and parts/ removed (manifest.py).
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError
from data_prep.files import write_json
from data_prep.json_types import JsonObject
from data_prep.sharding.plan import WorkUnit
from data_prep.store import shard_name
from data_prep.store_manifest import ShardEntry


class ShardRecord(NamedTuple):
    """That a shard is whole."""

    shard: ShardEntry
    counts: dict[str, int]  # of the builder
    lowest: list[list[int]]  # [hash, document] of the lowest hashes in it


class FinishedUnit(NamedTuple):
    """That all shards of a unit are whole."""

    shards: list[ShardRecord]
    counts: dict[int, Counter[str]]  # of the reader, by the index of a source in the store


class Records:
    """What is done."""

    def __init__(self, store: Path):
        self.store = store
        self.folder = store / "parts"

    def begin(self, content: JsonObject, appending: bool = False) -> bool:
        """Note what is being made; return whether a run that made the same was interrupted here.

        Raises
        ------
        InputError: the folder holds something else.
        """
        path = self.folder / "plan.json"
        if path.exists():
            remedy = f"Run the command that was begun, or remove {self.folder}" if appending else ""
            begun = json.loads(path.read_text("utf-8"))
            refuse_if_different(begun, content, store=self.store, state="is being made", remedy=remedy)
            return True
        if not appending and self.store.exists() and not (self.store.is_dir() and set(_names(self.store)) <= {"parts"}):
            raise InputError(f"{self.store} exists and is not a token store; it stays as it is; give another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        return False

    def finished_shard(self, unit: WorkUnit, piece: int) -> ShardRecord | None:
        """Return the record of a shard, if the shard is whole."""
        content = _read(self._shard_path(unit, piece))
        if content is None:
            return None
        record = ShardRecord(ShardEntry(**content["shard"]), content["counts"], content["lowest"])
        return record if self._is_whole(record.shard) else None

    def finished_unit(self, unit: WorkUnit) -> FinishedUnit | None:
        """Return the records of all shards of a unit, if it is done."""
        content = _read(self._unit_path(unit))
        if content is None:
            return None
        shards = [self.finished_shard(unit, piece) for piece in range(content["shards"])]
        whole = [shard for shard in shards if shard is not None]
        counts = {int(source): Counter(found) for source, found in content["counts"].items()}
        return FinishedUnit(whole, counts) if len(whole) == len(shards) else None

    def count_missing(self, units: Iterable[WorkUnit]) -> int:
        """Return how many units have no record, by one look at the names in the folder; 0 where that is gone."""
        try:
            names = set(_names(self.folder))
        except FileNotFoundError:
            return 0
        return sum(self._unit_path(unit).name not in names for unit in units)

    def add_shard(self, unit: WorkUnit, piece: int, record: ShardRecord) -> None:
        """Note that a shard is whole."""
        content = record._asdict() | {"shard": asdict(record.shard)}
        write_json(self._shard_path(unit, piece), content, sync=False)

    def add_unit(self, unit: WorkUnit, shards: int, counts: dict[int, Counter[str]]) -> None:
        """Note that a unit is done, and what was counted in which source."""
        by_source = {str(source): dict(sorted(found.items())) for source, found in counts.items()}
        write_json(self._unit_path(unit), {"shards": shards, "counts": by_source}, sync=False)

    def _shard_path(self, unit: WorkUnit, piece: int) -> Path:
        return self.folder / f"{unit.number:05d}-{piece:03d}.json"

    def _unit_path(self, unit: WorkUnit) -> Path:
        return self.folder / f"{unit.number:05d}.json"

    def _is_whole(self, shard: ShardEntry) -> bool:
        path = self.store / shard.name
        return path.is_file() and path.stat().st_size == shard.bytes


def shard_path(store: Path, unit: WorkUnit, piece: int) -> Path:
    """Return where a shard of a unit lies."""
    return store / shard_name(unit.number, piece)


def refuse_if_different(theirs: JsonObject, ours: JsonObject, *, store: Path, state: str, remedy: str = "") -> None:
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


def _changed(theirs: JsonObject, ours: JsonObject) -> list[str]:
    """Return the names of the sources that are new, gone, other, or were modified."""
    sides = []
    for content in (theirs, ours):
        sources, times = content.get("sources", []), content.get("modified", [])  # times: of those that are added
        times = [None] * (len(sources) - len(times)) + times
        sides.append([(source["path"], source, time) for source, time in zip(sources, times, strict=True)])
    old, new = sides
    return sorted({one[0] for one in (*(x for x in old if x not in new), *(x for x in new if x not in old))})


def _flat(content: JsonObject) -> JsonObject:
    """Return the settings among the rest, for a message that names the very setting."""
    return {name: value for name, value in content.items() if name != "settings"} | content.get("settings", {})


def _brief(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else str(value)[:40]


def _read(path: Path) -> JsonObject | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):  # a power cut may tear a record: its work is done again
        return None


def _names(folder: Path) -> Iterable[str]:
    return (path.name for path in folder.iterdir() if ".partial" not in path.name)
