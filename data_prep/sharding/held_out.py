"""Which documents are kept for evaluation: by a hash of their text, and in a small corpus a few more.

    digest_of(raw) < threshold(holdout)      as documents are read: the same document in every store
    Lowest(), .add(digest, row), .record()   of a shard in the making: the documents that come next
    hold_out_enough(...)                     at the end, where too few are below: the threshold rises

One document in a hundred is none of fifty, and a run without evaluation says nothing about itself. So the threshold
rises to the LEAST documents of lowest hash (a tenth of the corpus, two at least). That is a function of the corpus:
which worker met which document, and how often the work was stopped, makes no difference.
"""

import hashlib
from bisect import bisect
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import sha256_of
from data_prep.store import HELD_OUT, read_shard, write_shard

LEAST = 8  # documents kept for evaluation, where that is a tenth of the corpus at most
FEWEST = 10  # documents of a corpus of which two are kept


def digest_of(raw: bytes) -> int:
    """A document's hash, 64 bits: of its text, so that copies of it are on the same side in every store."""
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest())


def threshold(holdout: float) -> int:
    """Documents of a lower hash are held out."""
    return int(holdout * 2**64)


def least_of(documents: int) -> int:
    """How many documents of so many are to be held out at least."""
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

    def record(self) -> list[list[int]]:
        """[hash, number of the document], as JSON values."""
        return [[digest, row] for digest in self._digests for row in self._rows[digest]]


def hold_out_enough(
    store: Path, records: list[dict[str, Any]], base: dict[str, Any] | None, holdout: float, vocab_sha256: str
) -> int:
    """Hold out more of the documents of new shards where too few of all are, rewriting those shards; `records` get the
    new checksums. Returns how many more. To do it again, after a crash half-way, comes to the same.
    """
    made = [record for record in records if "shard" in record]
    documents = sum(record["shard"]["documents"] for record in made) + (base["counts"]["documents"] if base else 0)
    held_out = sum(record["counts"].get("held_out_documents", 0) for record in made)
    held_out += base["counts"]["held_out_documents"] if base else 0
    if not holdout or held_out >= least_of(documents):
        return 0
    before = held_out
    rows: dict[str, list[int]] = {}
    lowest = sorted((digest, record["shard"]["name"], row) for record in made for digest, row in record["lowest"])
    above = (entry for entry in lowest if entry[0] >= threshold(holdout))
    for _, copies in groupby(above, key=lambda entry: entry[0]):
        alike = list(copies)
        if held_out >= least_of(documents) or 2 * (held_out + len(alike)) > documents:
            break
        held_out += len(alike)
        for _, name, row in alike:
            rows.setdefault(name, []).append(row)
    for record in made:
        if chosen := rows.get(record["shard"]["name"]):
            path = store / record["shard"]["name"]
            sections = read_shard(path, vocab_sha256)
            flags = np.array(sections.document_flags)
            flags[chosen] |= HELD_OUT
            write_shard(path, sections._replace(document_flags=flags), vocab_sha256)
            record["shard"]["sha256"] = sha256_of(path)
    return held_out - before
