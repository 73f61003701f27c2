"""DIR/make.json: what a folder of `make` was made from, so that the same command goes on and another one is noticed.

    record = MakeRecord.read(folder)                None in a new folder
    record.write(folder)                        aside, then renamed
    changes_of(record.sources, sources)         texts that were added, removed or changed, in words

    {"format": 1, "sources": [{"path", "bytes", "ends_sha256"}, ...], "given": {what the command line said},
     "task": {...}, "advice": {what `zerobert plan --json` says}, "stages": {name: {"command", "base", "key", "is_done",
     "seconds", "interruptions"}}}

A stage's `key` is a hash of its options and of the keys of what it reads: where it differs the stage runs again. `base`
is the same without what a result may take over: with another base a result cannot go on and is made anew.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

from data_prep.cli import InputError
from data_prep.fields import read_fields, write_sealed
from data_prep.files import check_writable
from data_prep.json_types import JsonObject
from data_prep.sharding.manifest import ends_sha256
from data_prep.text.source import Source
from pretrain.advice.settings import AdviceSettings, Found

NAME = "make.json"
LOCK = ".make.lock"  # of launch/folder_lock.py
FORMAT = 1
SHOWN = 3  # names in a message


@dataclass
class StageRecord:
    """How far a stage is."""

    command: str
    base: str
    key: str
    is_done: bool = False
    seconds: float = 0.0  # of all attempts, those that were stopped or killed among them
    interruptions: int = 0  # attempts that did not end it

    def begun_again(self, command: str, base: str, key: str, *, goes_on: bool) -> "StageRecord":
        """Return the record of the next attempt. One that `goes_on` in what the last one left adds to its seconds."""
        if self.base != base or not (goes_on or (self.key == key and not self.is_done)):
            return StageRecord(command, base, key)
        return StageRecord(command, base, key, False, self.seconds, self.interruptions + (not self.is_done))


class TextRecord(TypedDict, total=False):
    """A file of --corpus."""

    path: str
    bytes: int
    ends_sha256: str | None  # of the first and last bytes; None of what is no file


class TaskRecord(TypedDict, total=False):
    """The labelled files of --task; nothing where there are none."""

    file: str
    kind: str  # as fine-tuning calls it
    rows: int
    labels: dict[str, int]  # how often each is there
    sha256: str
    told: str  # of what is held back
    overlap: str  # a warning, where texts of it stand in the corpus, too


class AdviceRecord(TypedDict, total=False):
    """An Advice, and what it was for; nothing where make was stopped before it."""

    settings: AdviceSettings
    commands: dict[str, list[str]]  # by stage
    reasons: dict[str, str]
    warnings: list[str]
    found: Found
    basis: str  # hash of all that it stands on but the task
    of_task: str  # hash of the task
    hours: float  # as asked for; 0 where steps were


@dataclass
class MakeRecord:
    """The content of make.json."""

    sources: list[TextRecord]
    given: JsonObject  # MakeConfig
    task: TaskRecord = field(default_factory=TaskRecord)
    advice: AdviceRecord = field(default_factory=AdviceRecord)
    stages: dict[str, StageRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "MakeRecord | None":
        """Return the record of a folder; None where there is none.

        Raises
        ------
        InputError: it is damaged, or of a later version.
        """
        path = folder / NAME
        if not path.exists():
            return None
        remedy = f"choose another --out, or remove {folder} and make all of it anew"
        found = read_fields(path, remedy)
        content = found.content
        if content.get("format") != FORMAT:
            raise found.error(f"has format {content.get('format')!r}, which this version does not read")
        for source in found.rows("sources"):
            source.text("path")
        advice = found.object("advice")
        if advice.content:  # there is none where the first make was stopped before it
            advice.object("settings").whole("ranks", least=1)
            advice.object("commands").list("train")
        stages = {}
        for name, entry in found.object("stages").each():
            stages[name] = StageRecord(
                command=entry.text("command"),
                base=entry.text("base"),
                key=entry.text("key"),
                is_done=entry.get("is_done") is True,
                seconds=entry.number("seconds", least=0),
                interruptions=entry.whole("interruptions", default=0),
            )
        return cls(
            content["sources"],
            found.object("given").content,
            cast(TaskRecord, found.object("task").content),
            cast(AdviceRecord, advice.content),
            stages,
        )

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_sealed(folder / NAME, {"format": FORMAT} | asdict(self))


def described(sources: Sequence[Source]) -> list[TextRecord]:
    """Return the texts as a store's manifest tells them apart: by name, size, first and last bytes. Times do not count:
    a copy of a folder holds the same texts."""
    return [{"path": source.name, "bytes": source.bytes, "ends_sha256": ends_sha256(source.path)} for source in sources]


def changes_of(before: Sequence[TextRecord], now: Sequence[TextRecord]) -> list[str]:
    """Return which texts were added, removed or changed; nothing where all are the same."""
    had, have = ({entry["path"]: entry for entry in entries} for entries in (before, now))
    groups = {
        "added": [name for name in have if name not in had],
        "removed": [name for name in had if name not in have],
        "changed": [name for name in have if name in had and have[name] != had[name]],
    }
    return [
        f"{len(names):,} text{'s' * (len(names) > 1)} {what} ({_some(names)})"
        for what, names in groups.items()
        if names
    ]


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def key_of(*parts: Any) -> str:
    """Return a hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def check_folder(out: Path, corpus: Sequence[str]) -> None:
    """Refuse a folder that holds other things than what make has made.

    Raises
    ------
    InputError: as said; a file; a folder that is the corpus itself.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: choose a folder")
    check_writable(out, within=True)
    for text in corpus:
        if Path(text).exists() and out.exists() and Path(text).resolve() == out.resolve():
            raise InputError(f"--out {out} is the folder of the texts: choose another, such as {out}/model")
        if Path(text).exists() and Path(text).resolve().is_relative_to(out.resolve()) and (out / NAME).exists():
            raise InputError(f"--corpus {text} lies in --out {out}, where what is made goes: choose another --out")
    if not out.exists() or (out / NAME).exists():
        return
    if foreign := sorted(path.name for path in out.iterdir() if not path.name.startswith((f"{NAME}.partial", LOCK))):
        raise InputError(f"--out {out} holds {foreign[0]}, and no {NAME} of an earlier make: choose another folder")
