"""manifest.json of a token store as typed values: what it is made from, which shards it has, what was counted.

    manifest = read_manifest(folder)                  InputError where it is damaged
    manifest.counts.held_out_documents, manifest.vocab.special_ids["mask"], manifest.shards[0].name
    write_sealed(folder / "manifest.json", manifest.to_json())

docs/format.md describes the file key by key; read and written again it is the same, byte for byte.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from data_prep.calls import call
from data_prep.cli import InputError
from data_prep.fields import Fields, read_fields
from data_prep.json_types import JsonObject

FORMAT = 1
FORMAT_WITH_WORDS = 2  # the same and one array more in each shard
SPECIALS = ("pad", "unk", "cls", "sep", "mask")
LARGEST_VOCABULARY = 1 << 26  # entries; the largest published ones have 2 ** 18


@dataclass(frozen=True, kw_only=True)
class Vocab:
    """The tokenizer that a store was made with."""

    sha256: str
    size: int  # entries; every id is below it
    special_ids: dict[str, int]  # by name: pad, unk, cls, sep, mask


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """Where documents come from."""

    path: str  # below the folder named with --corpus, which is its first part
    bytes: int = 0  # on disk
    ends_sha256: str | None = None  # of its first and last bytes; None for what is no file
    layout: str = ""
    encoding: str = ""
    column: str = ""

    def to_json(self) -> JsonObject:
        """Return the entry; what is empty is left out."""
        content = asdict(self)
        return {name: value for name, value in content.items() if name not in ("layout", "encoding", "column") or value}


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A shard."""

    name: str
    bytes: int
    sha256: str
    tokens: int
    sentences: int
    documents: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sums over a store; docs/format.md says what each means."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    held_out_documents: int = 0
    unknown: int = 0
    text_bytes: int = 0
    characters: int | None = 0  # None where an older version did not count them
    unknown_characters: int | None = 0
    # Irregularities, from here on.
    empty_documents: int = 0
    cut_documents: int = 0
    cut_sentences: int = 0
    invalid_utf8: int = 0
    nul_characters: int = 0
    long_lines: int = 0
    bad_lines: int = 0
    damaged_parts: int = 0
    refused_members: int = 0
    other_members: int = 0
    damaged_characters: int = 0
    mended_texts: int = 0
    control_characters: int = 0
    dropped_lines: int = 0
    dropped_documents: int = 0
    short_documents: int = 0
    other_languages: int = 0
    excluded_documents: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "Counts":
        """Return those of these counts that a manifest has."""
        return cls(**{name: counts.get(name, 0) for name in COUNTS})

    @property
    def irregularities(self) -> dict[str, int]:
        """What was odd about the text, by name; without those that did not occur."""
        return {name: count for name in IRREGULARITIES if (count := getattr(self, name))}


COUNTS = tuple(one.name for one in fields(Counts))
IRREGULARITIES = COUNTS[COUNTS.index("empty_documents") :]


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """The content of manifest.json; what is known of a store before it is made, where there are no shards yet."""

    format: int
    zerobert: str  # version that made the store
    token_dtype: str
    vocab: Vocab
    settings: JsonObject
    sources: tuple[SourceEntry, ...]
    shards: tuple[ShardEntry, ...] = ()
    counts: Counts = Counts()
    irregularities: dict[str, dict[str, int]] = field(default_factory=dict)  # by the path of a source

    @classmethod
    def from_fields(cls, content: Fields) -> "StoreManifest":
        """Return what a manifest says, of the types and in the ranges that it must have.

        Raises
        ------
        InputError: naming the field that does not fit.
        """
        vocab = _vocab(content.object("vocab"))
        dtype = token_dtype(vocab.size).str
        shards = tuple(map(_shard, content.rows("shards")))
        if not shards or len({shard.name for shard in shards}) < len(shards):
            raise content.error("names no shards, or one twice")
        return cls(
            format=content.whole("format"),
            zerobert=content.text("zerobert", default=""),
            token_dtype=content.text("token_dtype", (dtype,), default=dtype),
            vocab=vocab,
            settings=content.object("settings", default={}).content,
            sources=tuple(map(_source, content.rows("sources"))),
            shards=shards,
            counts=_counts(content.object("counts")),
            irregularities={
                path: {name: odd.whole(name) for name in odd.content}
                for path, odd in content.object("oddities", default={}).each()
            },
        )

    def recipe(self) -> JsonObject:
        """Return what a store is made from, as JSON values: the part that is known before it is made."""
        return {
            "format": self.format,
            "zerobert": self.zerobert,
            "token_dtype": self.token_dtype,
            "vocab": asdict(self.vocab),
            "settings": self.settings,
            "sources": [source.to_json() for source in self.sources],
        }

    def to_json(self) -> JsonObject:
        """Return all of it, as JSON values."""
        return self.recipe() | {
            "shards": [asdict(shard) for shard in self.shards],
            "counts": {name: count for name, count in asdict(self.counts).items() if count is not None},
            "oddities": self.irregularities,
        }


def read_manifest(folder: Path) -> StoreManifest:
    """Return the manifest of a store.

    Raises
    ------
    InputError: damaged, or of another format.
    """
    content = read_fields(folder / "manifest.json", mend())
    check_format(folder, content.whole("format"))
    return StoreManifest.from_fields(content)


def check_format(path: Path, version: int) -> None:
    """Raise InputError where `path` has a format that this version does not read."""
    if version not in (FORMAT, FORMAT_WITH_WORDS):
        known = f"{FORMAT} and {FORMAT_WITH_WORDS}"
        raise InputError(f"{path} has format {version}, this version reads {known}; make the store again")


def mend() -> str:
    """Return the remedy for what is damaged."""
    return f"make the store again with {call('shard')}"


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the little-endian type that holds every id of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _vocab(content: Fields) -> Vocab:
    size = content.whole("size", least=len(SPECIALS), most=LARGEST_VOCABULARY)
    special = content.object("special_ids")
    names = dict.fromkeys([*special.content, *SPECIALS])
    ids = {name: special.whole(name, most=size - 1) for name in names}
    if len(set(ids.values())) < len(ids):
        raise special.error("has one id under two names")
    return Vocab(sha256=content.digest("sha256"), size=size, special_ids=ids)


def _source(content: Fields) -> SourceEntry:
    hashed = content.get("ends_sha256", default=None)
    return SourceEntry(
        path=content.text("path"),
        bytes=content.whole("bytes", default=0),
        ends_sha256=None if hashed is None else content.digest("ends_sha256"),
        **{name: content.text(name, default="") for name in ("layout", "encoding", "column")},
    )


def _shard(content: Fields) -> ShardEntry:
    name = content.text("name")
    if not re.fullmatch(r"shard-[0-9]{5,}-[0-9]{3,}\.bin", name, re.ASCII):  # so that it leads nowhere else
        raise content.error(f"says name {name!r:.60}, which is not one of a shard")
    sizes = {count: content.whole(count) for count in ("bytes", "tokens", "sentences", "documents")}
    return ShardEntry(name=name, sha256=content.digest("sha256"), **sizes)


def _counts(content: Fields) -> Counts:
    required = ("documents", "sentences", "tokens", "held_out_documents")
    known = {name: content.whole(name) for name in (*required, *content.content)}
    for name in ("characters", "unknown_characters"):
        known.setdefault(name, None)  # type: ignore[arg-type]
    return Counts(**{name: known[name] for name in COUNTS if name in known})
