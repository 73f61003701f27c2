"""The manifest of a checkpoint: what the folder is, and the sizes and checksums of its other files. No torch here.

    Manifest(...).write(folder)         manifest.json, with a checksum of its own
    Manifest.read(folder)               InputError where anything about it is wrong

    {"format": 2, "step", "world_size", "zero_stage", "held_out_loss", "identity", "settings", "parameters": name ->
     shape, "files": name -> {"bytes", "sha256"}, perhaps "held_out", "record"; "sha256": of all the above}

Format 1 is the same without its own checksum: still read, by types and ranges, but a digit of it that has changed in
settings or held_out_loss is not noticed. The names of folders, of files and of the slices in them are made and taken
apart here.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cli import InputError
from data_prep.fields import Fields, read_fields, write_sealed

FORMAT = 2
UNSEALED = 1  # the format before
NAME, STATE = "manifest.json", "state.json"
STEP = re.compile(r"step-[0-9]{7,}")
KINDS = ("master", "exp_avg", "exp_avg_sq")
NOT_WHOLE = "the checkpoint is not whole"


class Identity(NamedTuple):
    """What a checkpoint may only be resumed under."""

    model: dict[str, Any]  # the model's configuration, its vocabulary padded
    vocab_sha256: str
    vocab_size: int  # entries of the tokenizer


class FileEntry(NamedTuple):
    """What a file of the checkpoint must be."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What a checkpoint says of itself."""

    step: int
    world_size: int  # of the run that wrote it, as zero_stage
    zero_stage: int
    held_out_loss: float | None  # nearest before
    identity: Identity
    settings: dict[str, Any]
    parameters: dict[str, list[int]]  # shapes by name
    files: dict[str, FileEntry]  # state.json, and one a rank
    held_out: str = ""  # which held-out set held_out_loss is of
    record: dict[str, Any] | None = None  # config.json as it was when the checkpoint was written

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a checkpoint; the other files are not looked at.

        Raises
        ------
        InputError: missing, damaged, of another format, or not true to itself.
        """
        fields = read_fields(folder / NAME, NOT_WHOLE)
        version = fields.get("format")
        if version not in (FORMAT, UNSEALED) or isinstance(version, bool | float):
            raise InputError(f"{folder} has checkpoint format {version!r}, this version reads {UNSEALED} and {FORMAT}")
        if version == FORMAT:
            fields.digest("sha256")  # there, and right: read_fields has compared it
        return cls(
            fields.whole("step"),
            fields.whole("world_size", least=1),
            fields.whole("zero_stage", most=3),
            _loss(fields),
            _identity(fields.of("identity")),
            fields.of("settings").content,
            _shapes(fields.of("parameters")),
            _files(fields),
            fields.text("held_out", default=""),
            fields.of("record").content if "record" in fields.content else None,
        )

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        content = self._asdict() | {
            "identity": self.identity._asdict(),
            "files": {name: entry._asdict() for name, entry in self.files.items()},
        }
        optional = {name for name, default in self._field_defaults.items() if content[name] == default}
        written = {name: value for name, value in content.items() if name not in optional}
        write_sealed(folder / NAME, {"format": FORMAT, **written})


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:07d}"


def present(run: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first; not verified."""
    found = [path for path in (run / "checkpoints").glob("step-*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by its folder's name."""
    return int(folder.name.removeprefix("step-"))


def rank_file(rank: int, world: int) -> str:
    """The file with the slices of one rank."""
    return f"rank-{rank:05d}-of-{world:05d}.safetensors"


def slice_key(name: str, kind: str, offset: int) -> str:
    """What the slice of a parameter that begins `offset` elements from its start is called in a rank's file."""
    return f"{name}|{kind}|{offset}"


def parse_slice_key(key: str) -> tuple[str, str, int]:
    """Name, kind and offset of a slice.

    Raises
    ------
    ValueError: no name that slice_key() gives.
    """
    found = re.fullmatch(r"(.+)\|(\w+)\|(0|[1-9][0-9]{0,17})", key, re.ASCII)
    if not found or found[2] not in KINDS:
        raise ValueError(f"{key!r} is not the name of a slice")
    return found[1], found[2], int(found[3])


def _loss(fields: Fields) -> float | None:
    loss = fields.get("held_out_loss", None)
    return None if loss is None or loss != loss else fields.number("held_out_loss")  # format 1 may say NaN


def _identity(fields: Fields) -> Identity:
    return Identity(fields.of("model").content, fields.digest("vocab_sha256"), fields.whole("vocab_size", least=1))


def _shapes(fields: Fields) -> dict[str, list[int]]:
    for name in fields.content:
        shape = fields.list(name)
        sizes = [size for size in shape if type(size) is int and 0 < size < 1 << 40]
        if not shape or len(sizes) != len(shape) or math.prod(sizes) >= 1 << 48:
            raise fields.error(f"says {name} {shape!r:.60}, which is not a shape")
    if not fields.content:
        raise fields.error("names none")
    return fields.content


def _files(fields: Fields) -> dict[str, FileEntry]:
    """The entries of exactly the files that so many ranks write: no name leads out of the folder."""
    entries = fields.of("files")
    world = fields.whole("world_size", least=1)
    if len(entries.content) != world + 1 or entries.content.keys() != _names(world):
        raise entries.error(f"are not {STATE} and one file for each of {world} ranks")
    return {name: FileEntry(entry.whole("bytes"), entry.digest("sha256")) for name, entry in entries.each()}


def _names(world: int) -> set[str]:
    return {STATE, *(rank_file(rank, world) for rank in range(world))}
