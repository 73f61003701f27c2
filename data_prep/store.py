"""The token store: the only form in which pretraining reads text. docs/format.md describes it byte by byte.

    STORE/
      manifest.json        what the store is, a checksum of every shard; written last: without it, unfinished
      vocab/               the tokenizer folder it was made with, for export and for looking at samples
      shard-00000-000.bin  header; token ids of all sentences, one after another; lengths of sentences; documents
      shard-00000-001.bin  ... of the same unit of work; shard-00001-000.bin is the first of the next

Inside a store every token has one number: its place in the shards laid end to end. Documents never cross a shard.

A shard is mapped, and compared with the manifest, when it is first used. Store.open() looks at all of them, unless its
caller shares that: of a terabyte of text there are 15,600, and each of a thousand ranks needs some dozens.
"""

import copy
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple, overload

import numpy as np

from data_prep import mapped
from data_prep.calls import call
from data_prep.cli import InputError
from data_prep.files import sha256_of, write_whole
from data_prep.rounding import ceil_div
from data_prep.store_manifest import (
    FORMAT,
    FORMAT_WITH_WORDS,
    ShardEntry,
    StoreManifest,
    check_format,
    mend,
    read_manifest,
    token_dtype,
)
from data_prep.tokens.continuations import continuation_token_ids
from data_prep.tokens.tokenizer_folder import entry_count, tokenizer_sha256

MAGIC = b"ZBSTORE\0"
HEADER = struct.Struct("<8sII32sQQQ56x")  # magic, format, bytes a token, tokenizer sha256, tokens, sentences, documents
ALIGNMENT = 8  # bytes; every section starts at a multiple of it
COPY_CHUNK_BYTES = 1 << 20
COUNTED_TOKENS = 1 << 20  # at once, where tokens are counted
HELD_OUT = 1  # bit of document_flags
MAX_SENTENCE = 65_535  # tokens; lengths are uint16


class Sections(NamedTuple):
    """The arrays of one shard, in the order in which they lie in its file. T tokens, S sentences, D documents."""

    tokens: np.ndarray  # [T] uint16, or uint32 for vocabularies above 65,536 entries
    sentence_lengths: np.ndarray  # [S] uint16, tokens
    document_sentences: np.ndarray  # [D] uint32, sentences
    document_sources: np.ndarray  # [D] uint32, index into the sources of the manifest
    document_flags: np.ndarray  # [D] uint8, HELD_OUT
    continues: np.ndarray | None = None  # [ceil(T / 8)] uint8: bit i % 8 of byte i // 8: token i goes on with a word


def _section_dtypes(token_bytes: int) -> tuple[np.dtype, ...]:
    return tuple(np.dtype(kind) for kind in (f"<u{token_bytes}", "<u2", "<u4", "<u4", "u1", "u1"))


def shard_name(unit: int, piece: int = 0) -> str:
    """Return the file name of a shard: the unit of work it comes from and its place among the shards of that unit."""
    return f"shard-{unit:05d}-{piece:03d}.bin"


def write_shard(path: Path, sections: Sections, vocab_sha256: str, tokens_in: BinaryIO | None = None) -> None:
    """Write one shard, whole or not at all; its bytes are a function of the arguments. Tokens that lie in a file are
    copied from there, so that they need not be in memory: `sections.tokens` then maps that file."""
    token_bytes = sections.tokens.dtype.itemsize
    assert int(sections.sentence_lengths.sum(dtype=np.int64)) == len(sections.tokens), "sentence lengths miss tokens"
    assert int(sections.document_sentences.sum(dtype=np.int64)) == len(sections.sentence_lengths)
    counts = (len(sections.tokens), len(sections.sentence_lengths), len(sections.document_sentences))
    arrays = [array for array in sections if array is not None]
    version = FORMAT if sections.continues is None else FORMAT_WITH_WORDS
    header = HEADER.pack(MAGIC, version, token_bytes, bytes.fromhex(vocab_sha256), *counts)

    def chunks() -> Iterator[bytes | memoryview]:
        yield header
        for array, dtype in zip(arrays, _section_dtypes(token_bytes), strict=False):
            if tokens_in is not None and array is sections.tokens:
                tokens_in.seek(0)
                yield from iter(partial(tokens_in.read, COPY_CHUNK_BYTES), b"")
            else:
                yield np.ascontiguousarray(array, dtype).view(np.uint8).data
            yield bytes(-len(array) * dtype.itemsize % ALIGNMENT)

    write_whole(path, chunks())


def read_shard(path: Path, vocab_sha256: str) -> Sections:
    """Map one shard into memory; nothing is read until it is used.

    Raises
    ------
    InputError: where the file is missing, cut short, of another format, or made with another tokenizer.
    """
    try:
        raw = mapped.map_file(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); run {call('shard')} again to mend the store") from error
    head = bytes(raw[: HEADER.size])
    if len(head) < HEADER.size or head[:8] != MAGIC:
        raise InputError(f"{path} is not a shard of a token store; run {call('shard')} again to mend the store")
    fields = HEADER.unpack(head)
    _, version, token_bytes, digest, tokens, sentences, documents = fields
    check_format(path, version)
    if digest.hex() != vocab_sha256:
        raise InputError(f"{path} was made with tokenizer {digest.hex()[:12]}, not {vocab_sha256[:12]}")
    if token_bytes not in (2, 4) or HEADER.pack(*fields) != head:
        raise InputError(f"{path} has a damaged header; run {call('shard')} again to mend the store")
    dtypes = _section_dtypes(token_bytes)
    sizes = [n * d.itemsize for n, d in zip((tokens, sentences, documents, documents, documents), dtypes, strict=False)]
    sizes += [ceil_div(tokens, 8)] if version == FORMAT_WITH_WORDS else []
    starts = list(accumulate((size + -size % ALIGNMENT for size in sizes), initial=HEADER.size))
    if starts[-1] != len(raw):
        raise InputError(f"{path} has {len(raw)} bytes, its header says {starts[-1]}; run {call('shard')} again")
    spans = zip(starts[:-1], sizes, dtypes, strict=False)
    return Sections(*(raw[start : start + size].view(dtype) for start, size, dtype in spans))


def check_sums(path: Path, shard: Sections, sources: int) -> None:
    """What can be seen of a shard without its tokens: lengths that add up, sources and flags that there are.

    Raises
    ------
    InputError: naming the array that does not fit.
    """
    lengths, counts = shard.sentence_lengths, shard.document_sentences
    least = [int(array.min(initial=1)) for array in (lengths, counts)]
    sums = [int(array.sum(dtype=np.uint64)) for array in (lengths, counts)]  # of 2 and 4 bytes: no overflow
    wrong = [
        name
        for name, is_right in (
            ("sentence_lengths", least[0] and sums[0] == len(shard.tokens)),
            ("document_sentences", least[1] and sums[1] == len(lengths)),
            ("document_sources", int(shard.document_sources.max(initial=0)) < max(sources, 1)),
            ("document_flags", int(shard.document_flags.max(initial=0)) <= HELD_OUT),
        )
        if not is_right
    ]
    if wrong:
        raise InputError(f"{path} is damaged: its {', '.join(wrong)} cannot be; {mend()}")


class Shards(Sequence[Sections]):
    """Shards of a store, each mapped into memory and compared with its entry in the manifest when it is first used."""

    def __init__(self, folder: Path, manifest: StoreManifest, files: mapped.Files):
        self.entries: Sequence[ShardEntry] = manifest.shards
        self._folder, self._manifest, self._files = folder, manifest, files
        self._mapped: dict[str, Sections] = {}
        self.are_checked = False  # by whomever: then sums are believed
        # What fits into memory is soon there, the more so by reading ahead; of more, that would be read in vain.
        size = manifest.counts.tokens * token_dtype(manifest.vocab.size).itemsize
        self._reads_ahead = 2 * size <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Sections: ...
    @overload
    def __getitem__(self, index: slice) -> "Shards": ...
    def __getitem__(self, index: int | slice) -> "Sections | Shards":
        """Return a shard, or some of them.

        Raises
        ------
        InputError: it is damaged, or not what the manifest says.
        """
        if isinstance(index, slice):
            part = copy.copy(self)
            part.entries = self.entries[index]
            return part
        entry = self.entries[index]
        if entry.name not in self._mapped:
            self._mapped[entry.name] = self._map(entry)
        return self._mapped[entry.name]

    def _map(self, entry: ShardEntry) -> Sections:
        path, version = self._folder / entry.name, self._manifest.format
        shard = read_shard(path, self._manifest.vocab.sha256)
        size = self._files.watch(path).st_size  # watched from here on
        dtype = token_dtype(self._manifest.vocab.size)
        if (shard.continues is not None) != (version == FORMAT_WITH_WORDS) or shard.tokens.dtype != dtype:
            raise InputError(f"{path} is of another format or vocabulary size than manifest.json says; {mend()}")
        if not self.are_checked:
            check_sums(path, shard, len(self._manifest.sources))
        for name, found in {**_sizes_of(shard)._asdict(), "bytes": size}.items():
            if found != (said := getattr(entry, name)):
                raise InputError(f"{path} has {found:,} {name}, manifest.json says {said:,}")
        if not self._reads_ahead:
            mapped.advise_random(shard.tokens)
        return shard


class Sizes(NamedTuple):
    """What a shard holds."""

    documents: int
    sentences: int
    tokens: int


def _sizes_of(shard: Sections) -> Sizes:
    return Sizes(len(shard.document_sentences), len(shard.sentence_lengths), len(shard.tokens))


class _Tokens(dict[int, np.ndarray]):
    """The tokens of shards by index: after the first time as fast as a list."""

    def __init__(self, shards: Sequence[Sections]):
        self._shards = shards

    def __missing__(self, index: int) -> np.ndarray:
        self[index] = self._shards[index].tokens
        return self[index]


@dataclass(frozen=True)
class Store:
    """A finished store, memory-mapped."""

    folder: Path
    manifest: StoreManifest
    identity: str  # sha256 of manifest.json, which holds the checksum of everything else
    shards: Sequence[Sections]
    files: mapped.Files = field(default_factory=mapped.Files)  # those of the shards: noticed when one is cut short

    @classmethod
    def open(cls, folder: Path | str, vocab_sha256: str | None = None, *, most: int | None = None) -> "Store":
        """Open a store; with `vocab_sha256`, only if it was made with that tokenizer. The shards of one with more than
        `most` sentences are looked at when they are used, or by check_shards().

        Raises
        ------
        InputError: no such store, unfinished, damaged in its sizes, of another format, or of another tokenizer.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist; make a token store with {call('shard')}")
        manifest_path = folder / "manifest.json"
        if not manifest_path.is_file():
            raise InputError(f"{folder} has no manifest.json: not a token store, or {call('shard')} has not finished")
        manifest = read_manifest(folder)
        made_with = manifest.vocab.sha256
        if vocab_sha256 is not None and made_with != vocab_sha256:
            raise InputError(
                f"{folder} was made with tokenizer {made_with[:12]}, this run uses {vocab_sha256[:12]}; "
                "make the store again with this tokenizer, or train with the store's own"
            )
        files = mapped.Files()
        store = cls(folder, manifest, sha256_of(manifest_path), Shards(folder, manifest, files), files)
        if most is None or manifest.counts.sentences <= most:
            store.end_check(store.check_shards())
        store._check()
        return store

    @property
    def is_checked(self) -> bool:
        """Whether all shards were compared with the manifest, here or by other ranks."""
        return not isinstance(self.shards, Shards) or self.shards.are_checked

    def check_shards(self, part: int = 0, parts: int = 1) -> int:
        """Compare shards with the manifest, in a time that grows with sentences, not tokens; of several `parts` one.
        Returns the held-out documents in them.

        Raises
        ------
        InputError: naming what does not fit.
        """
        chosen = self.shards[part::parts]
        return sum(int((shard.document_flags & HELD_OUT).sum(dtype=np.int64)) for shard in chosen)

    def end_check(self, held_out_documents: int) -> None:
        """Compare what the parts of check_shards() have found in all shards with the manifest: then `is_checked`.

        Raises
        ------
        InputError: there are not as many.
        """
        self._check_count("held_out_documents", held_out_documents)
        if isinstance(self.shards, Shards):
            self.shards.are_checked = True

    def _check_count(self, name: str, found: int) -> None:
        if found != (said := getattr(self.manifest.counts, name)):
            raise InputError(
                f"{self.folder / 'manifest.json'} counts {said:,} {name}, the shards hold {found:,}; {mend()}"
            )

    def _check(self) -> None:
        """Compare the manifest with itself, and with the tokenizer."""
        for name in Sizes._fields:
            self._check_count(name, sum(getattr(entry, name) for entry in self.manifest.shards))
        vocab = self.folder / "vocab"
        if tokenizer_sha256(vocab) != self.vocab_sha256:
            raise InputError(f"{vocab} is not the tokenizer that the store was made with; put it back, or {mend()}")
        if (size := entry_count(vocab, self.vocab_sha256)) != self.vocab_size:
            raise InputError(f"{self.folder / 'manifest.json'} says {self.vocab_size:,} entries, {vocab} has {size:,}")

    @property
    def vocab_sha256(self) -> str:
        """Identity of the tokenizer that made the ids."""
        return self.manifest.vocab.sha256

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary; every id is below it."""
        return self.manifest.vocab.size

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return int(self.token_starts[-1])

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(each.documents for each in self.sizes)

    @property
    def sentences(self) -> int:
        """Sentences of all shards."""
        return sum(each.sentences for each in self.sizes)

    @cached_property
    def sizes(self) -> list[Sizes]:
        """Return what each shard holds, as the manifest says: no shard is looked at."""
        if not isinstance(self.shards, Shards):
            return [_sizes_of(shard) for shard in self.shards]
        return [Sizes(entry.documents, entry.sentences, entry.tokens) for entry in self.shards.entries]

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids by name: pad, unk, cls, sep, mask."""
        return self.manifest.vocab.special_ids

    @cached_property
    def continues(self) -> np.ndarray:
        """[V] bool: entries of the vocabulary that go on with the word before them; punctuation never does."""
        return continuation_token_ids(self.folder / "vocab", self.vocab_size, self.special_ids.values())

    @cached_property
    def token_starts(self) -> np.ndarray:
        """[shards + 1] int64: number of the first token of each shard, then of all tokens."""
        return np.cumsum([0, *(each.tokens for each in self.sizes)], dtype=np.int64)

    @cached_property
    def _tokens(self) -> _Tokens:
        return _Tokens(self.shards)

    def read_spans(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return tokens of many spans, end to end. starts [N] int64, lengths [N] int; a span lies within one
        document."""
        self.files.check()
        shards = np.searchsorted(self.token_starts, starts, side="right") - 1
        begins = starts - self.token_starts[shards]
        spans = zip(shards.tolist(), begins.tolist(), (begins + lengths).tolist(), strict=True)
        tokens_of = self._tokens
        found = [tokens_of[shard][begin:end] for shard, begin, end in spans]
        tokens = np.concatenate(found) if found else np.zeros(0, self.shards[0].tokens.dtype)
        if tokens.max(initial=0) >= self.vocab_size:
            bad = int(np.searchsorted(np.cumsum(lengths), tokens.argmax(), side="right"))
            raise self._beyond(self.manifest.shards[shards[bad]].name, int(tokens.max()))
        return tokens

    def sources_at(self, tokens: np.ndarray) -> np.ndarray:
        """Return the sources [N] int64, by index in the manifest, of the documents with these tokens [N] int64."""
        shards = np.searchsorted(self.token_starts, tokens, side="right") - 1
        found = np.empty(len(tokens), np.int64)
        for index in np.unique(shards):
            # Tokens before the end of each document of this shard: of the sentence that is its last one.
            shard, rows = self.shards[index], shards == index
            sentences = np.cumsum(shard.document_sentences, dtype=np.int64)
            ends = np.cumsum(shard.sentence_lengths, dtype=np.int64)[sentences - 1]
            document = np.searchsorted(ends, tokens[rows] - self.token_starts[index], side="right")
            found[rows] = shard.document_sources[document]
        return found

    def read_continues(self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return [T] bool: which tokens of many spans, whose ids `read_spans` gives, go on with the word before them:
        as the shards say where a segmenter was at work, otherwise as the vocabulary says."""
        if self.shards[0].continues is None:
            return self.continues[ids]
        # The place of each token in the store: spans of 2 and 3 tokens from 10 and 50 on are 10, 11, 50, 51, 52.
        places = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(len(ids))
        owner = np.searchsorted(self.token_starts, places, side="right") - 1
        found = np.empty(len(ids), bool)
        for index in np.unique(owner):
            rows = owner == index
            within, bits = places[rows] - self.token_starts[index], self.shards[index].continues
            assert bits is not None, "a store's shards are of one format"
            found[rows] = bits[within >> 3] >> (within & 7) & 1  # bit 3 of byte 1 is of token 11
        return found

    def token_uses(self) -> np.ndarray:
        """Return how often each entry of the vocabulary occurs [V] int64; reads all tokens.

        Raises
        ------
        FileChangedError: an id that the vocabulary has not.
        """
        uses = np.zeros(self.vocab_size, np.int64)
        for entry, shard in zip(self.manifest.shards, self.shards, strict=True):
            counts = np.bincount(shard.tokens, minlength=self.vocab_size)
            if len(counts) > self.vocab_size:
                raise self._beyond(entry.name, len(counts) - 1)
            uses += counts
        return uses

    def training_token_uses(self, most: int) -> np.ndarray:
        """Return how often each entry of the vocabulary occurs in documents that are trained on [V] int64. Of a store
        with more than `most` tokens only windows are read, at equal distances; the counts are scaled to all of it.

        Raises
        ------
        FileChangedError: an id that the vocabulary has not.
        """
        uses, every, window = np.zeros(self.vocab_size, np.int64), ceil_div(self.tokens, most), 0
        for entry, shard in zip(self.manifest.shards, self.shards, strict=True):
            sentences = np.cumsum(shard.document_sentences, dtype=np.int64)
            ends = np.cumsum(shard.sentence_lengths, dtype=np.int64)[sentences - 1]  # of documents, in tokens
            is_trained = shard.document_flags & HELD_OUT == 0
            for start in range(0, len(shard.tokens), COUNTED_TOKENS):
                window += 1
                if (window - 1) % every:
                    continue
                self.files.check()
                stop = min(start + COUNTED_TOKENS, len(shard.tokens))
                # Documents that end at 3, 7 and 9; the window from 4 to 8 holds 3 tokens of the second, 1 of the third.
                documents = slice(np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left") + 1)
                lengths = np.diff(np.minimum(ends[documents], stop), prepend=start)
                tokens = shard.tokens[start:stop][np.repeat(is_trained[documents], lengths)]
                counts = np.bincount(tokens, minlength=self.vocab_size)
                if len(counts) > self.vocab_size:
                    raise self._beyond(entry.name, len(counts) - 1)
                uses += counts
        return uses * every

    def _beyond(self, shard: str, token: int) -> mapped.FileChangedError:
        return mapped.FileChangedError(
            f"{self.folder / shard} is damaged: it holds token {token:,}, the vocabulary has {self.vocab_size:,} "
            f"entries; see which files are ({call('show', self.folder, '--verify')}) and {mend()}"
        )

    def verify(self, report: Callable[[str], None] = lambda line: None, part: int = 0, parts: int = 1) -> list[str]:
        """Read every byte and compare with the manifest's checksums. Return one line for each damaged file.

        `report` is told how far it is; of several `parts` of the shards, only one is read.
        """
        damaged, done = [], 0
        chosen = self.manifest.shards[part::parts]
        whole = sum((self.folder / entry.name).stat().st_size for entry in chosen)
        for entry in chosen:
            path = self.folder / entry.name
            found = sha256_of(path)
            if found != entry.sha256:
                damaged.append(f"{path}: sha256 {found[:12]}, manifest says {entry.sha256[:12]}")
            done += path.stat().st_size
            report(f"verified {path}: {done / 1e6:,.0f} of {whole / 1e6:,.0f} MB")
        found = tokenizer_sha256(self.folder / "vocab")
        if found != self.vocab_sha256:
            damaged.append(f"{self.folder / 'vocab'}: tokenizer {found[:12]}, manifest says {self.vocab_sha256[:12]}")
        return damaged
