"""Which documents are kept for evaluation: by a hash of their text, and in a small corpus a few more.

    digest_of(raw) < threshold(holdout)      as documents are read: the same document in every store
    Lowest(), .add(digest, row), .to_json()   of a shard in the making: the documents that come next
    hold_out_enough(...)                     at the end, where too few are below: the threshold rises

One document in a hundred is none of fifty, and a run without evaluation says nothing about itself. So the threshold
rises to the LEAST documents of lowest hash (a tenth of the corpus, two at least). That is a function of the corpus:
which worker met which document, and how often the work was stopped, makes no difference.
"""

import hashlib
from bisect import bisect
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.files import sha256_of
from data_prep.sharding.records import ShardRecord
from data_prep.store import HELD_OUT, read_shard, write_shard
from data_prep.store_manifest import Counts

LEAST = 8  # documents kept for evaluation, where that is a tenth of the corpus at most
FEWEST = 10  # documents of a corpus of which two are kept


def digest_of(raw: bytes) -> int:
    """Return a document's hash, 64 bits: of its text, so that copies of it are on the same side in every store."""
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest())


def threshold(holdout: float) -> int:
    """Return the hash below which documents are held out."""
    return int(holdout * 2**64)


def least_of(documents: int) -> int:
    """Return how many documents of so many are to be held out at least."""
    return 0 if documents < FEWEST else min(max(documents // 10, 2), LEAST)


class Lowest:
    """The documents with the LEAST lowest hashes of a shard, all copies of each."""

    def __init__(self) -> None:
        self._digests: list[int] = []  # ascending, of the documents kept
        self._rows: dict[int, list[int]] = {}

    def add(self, digest: int, row: int) -> None:
        """Note document number `row` of the shard, if its hash is low enough."""
        if digest not in self._rows:
            if len(self._digests) == LEAST:
                if digest > self._digests[-1]:
                    return
                del self._rows[self._digests.pop()]
            self._digests.insert(bisect(self._digests, digest), digest)
            self._rows[digest] = []
        self._rows[digest].append(row)

    def to_json(self) -> list[list[int]]:
        """Return [hash, index of the document], as JSON values."""
        return [[digest, row] for digest in self._digests for row in self._rows[digest]]


class HeldOutMore(NamedTuple):
    """Shards after more of their documents are held out."""

    records: list[ShardRecord]
    more: int  # documents


def hold_out_enough(
    store: Path, records: list[ShardRecord], base: Counts, *, holdout: float, vocab_sha256: str
) -> HeldOutMore:
    """Hold out more of the documents of new shards where too few of all are, rewriting those shards: their records get
    the new checksums. `base` counts what the store had before. To do it again, after a crash half-way, comes to the
    same.
    """
    documents = base.documents + sum(record.shard.documents for record in records)
    held_out = before = base.held_out_documents + sum(record.counts.get("held_out_documents", 0) for record in records)
    if not holdout or held_out >= least_of(documents):
        return HeldOutMore(records, 0)
    # Up the hashes above the threshold, all copies of a text at once, until there are enough.
    rows: dict[str, list[int]] = {}  # documents to be held out, by shard
    lowest = sorted((digest, record.shard.name, row) for record in records for digest, row in record.lowest)
    above = (entry for entry in lowest if entry[0] >= threshold(holdout))
    for _, copies in groupby(above, key=lambda entry: entry[0]):
        alike = list(copies)
        if held_out >= least_of(documents) or 2 * (held_out + len(alike)) > documents:
            break
        held_out += len(alike)
        for _, name, row in alike:
            rows.setdefault(name, []).append(row)
    rewritten = [
        _with_held_out(store, record, chosen, vocab_sha256) if (chosen := rows.get(record.shard.name)) else record
        for record in records
    ]
    return HeldOutMore(rewritten, held_out - before)


def _with_held_out(store: Path, record: ShardRecord, rows: list[int], vocab_sha256: str) -> ShardRecord:
    path = store / record.shard.name
    sections = read_shard(path, vocab_sha256)
    flags = np.array(sections.document_flags)
    flags[rows] |= HELD_OUT
    write_shard(path, sections._replace(document_flags=flags), vocab_sha256)
    return record._replace(shard=replace(record.shard, sha256=sha256_of(path)))
