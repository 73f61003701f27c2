"""One shard in the making: documents go in, arrays of a shard come out.

    builder = ShardBuilder(splitter("en"), encoder, holdout=0.01, words=None)
    builder.add(source, document, raw)          # for each document
    builder.sections()                          # -> store.Sections, to be written by store.write_shard

Documents wait until there is a megabyte of them: what splits and encodes takes 20 ms a megabyte and must not be called
for each of ten thousand documents. Memory: that megabyte, and about 2 bytes a token of the shard.
"""

import hashlib
from array import array
from collections import Counter
from itertools import chain

import numpy as np

from data_prep.store import HELD_OUT, MAX_SENTENCE, Sections
from data_prep.text.corpus import Document
from data_prep.text.sentences import Splitter
from data_prep.tokens.encode import Encoder
from data_prep.tokens.words import WordBorders

BATCH = 1 << 20  # bytes of text split and encoded at once


class ShardBuilder:
    """Collects the documents of one shard."""

    def __init__(self, split: Splitter, encoder: Encoder, holdout: float, words: WordBorders | None = None):
        self.split, self.encoder, self.words = split, encoder, words
        self.threshold = int(holdout * 2**64)
        self.counts: Counter[str] = Counter()
        self._tokens = bytearray()
        self._continues: list[np.ndarray] = [np.zeros(0, bool)]
        self._sentence_lengths = array("H")
        self._documents: list[tuple[int, int, int]] = []  # sentences, source, flags
        self._waiting: list[tuple[int, int, bool, Document]] = []  # source, bytes, held out
        self._waiting_bytes = self._reported = 0

    def add(self, source: int, document: Document, raw: bytes) -> None:
        """Add a document: its source's number, itself, its text in UTF-8."""
        # By its text, so that a document is held out in every store, whatever else is in the corpus.
        held_out = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest()) < self.threshold
        self._waiting.append((source, len(raw), held_out, document))
        self._waiting_bytes += len(raw)
        if self._waiting_bytes >= BATCH:
            self._encode()

    def _encode(self) -> None:
        documents = [document for *_, document in self._waiting]
        split = iter(self.split([document.text for document in documents if not document.lines]))
        parts = [document.text.split("\n") if document.lines else next(split) for document in documents]
        sentences = list(chain.from_iterable(parts))
        encoded = self.encoder.encode(sentences)
        self._tokens += encoded.ids.data
        if self.words is not None:
            self._continues.append(self.words.continuing(sentences, encoded))
        lengths, counts = self._cut(encoded.lengths, np.array([len(part) for part in parts]))
        self._sentence_lengths.frombytes(lengths.astype(np.uint16).tobytes())
        for (source, size, held_out, _), count in zip(self._waiting, counts.tolist(), strict=True):
            if not count:
                self.counts["empty_documents"] += 1
                continue
            self._documents.append((count, source, HELD_OUT if held_out else 0))
            self.counts["held_out_documents"] += held_out
            self.counts["text_bytes"] += size
        self._waiting, self._waiting_bytes = [], 0

    def _cut(self, lengths: np.ndarray, sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Leave out sentences without tokens and cut those too long for the store. lengths [S], sentences [D] of each
        document; returns both anew."""
        parts = -(-lengths // MAX_SENTENCE)
        before = np.concatenate([[0], np.cumsum(parts)])
        ends = np.cumsum(sentences)
        documents = before[ends] - before[ends - sentences]
        if (parts > 1).any():
            self.counts["cut_sentences"] += int((parts[parts > 1] - 1).sum())
            owner = np.repeat(np.arange(len(lengths)), parts)
            place = np.arange(len(owner)) - before[owner]
            return np.minimum(lengths[owner] - place * MAX_SENTENCE, MAX_SENTENCE), documents
        return lengths[lengths > 0], documents

    def take_tokens(self) -> int:
        """Tokens encoded since the last call."""
        new = len(self._tokens) - self._reported
        self._reported = len(self._tokens)
        return new // self.encoder.dtype.itemsize

    def sections(self) -> Sections:
        """All that was added, as the arrays of a shard."""
        if self._waiting:
            self._encode()
        tokens = np.frombuffer(self._tokens, self.encoder.dtype)
        self.counts["unknown"] = int(np.count_nonzero(tokens == self.encoder.special_ids["unk"]))
        documents = np.array(self._documents, np.uint32).reshape(-1, 3)
        lengths = np.frombuffer(self._sentence_lengths, np.uint16)
        flags = documents[:, 2].astype(np.uint8)
        words = np.packbits(np.concatenate(self._continues), bitorder="little") if self.words is not None else None
        return Sections(tokens, lengths, documents[:, 0], documents[:, 1], flags, words)
