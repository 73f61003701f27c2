"""One shard in the making: documents go in, arrays of a shard come out.

    builder = ShardBuilder(folder, split=splitter("en"), encoder=encoder, holdout=0.01, words=None)
    builder.add(source, document, raw)          # for each document
    builder.write(path, vocab_sha256)           # -> what the shard holds

Documents wait until there is a megabyte of them: what splits and encodes takes 20 ms a megabyte and must not be called
for each of ten thousand documents. Tokens wait in a file without a name in `folder`, so that memory does not grow with
the shard: that megabyte, 2 bytes a sentence, 12 a document.
"""

import tempfile
from array import array
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np

from data_prep.rounding import ceil_div
from data_prep.sharding.held_out import Lowest, digest_of, threshold
from data_prep.store import HELD_OUT, MAX_SENTENCE, Sections, write_shard
from data_prep.text.corpus import Document
from data_prep.text.sentences import Splitter
from data_prep.tokens.encode import Encoder
from data_prep.tokens.unknown import characters_of
from data_prep.tokens.word_borders import WordBorders

BATCH_BYTES = 1 << 20  # of text that are split and encoded at once


class ShardBuilder:
    """Collects the documents of one shard."""

    def __init__(
        self, folder: Path, *, split: Splitter, encoder: Encoder, holdout: float, words: WordBorders | None = None
    ):
        self.split, self.encoder, self.words = split, encoder, words
        self.threshold, self.lowest = threshold(holdout), Lowest()
        self.counts: Counter[str] = Counter()
        self._tokens = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._token_count = 0
        self._continues: list[np.ndarray] = [np.zeros(0, bool)]
        self._sentence_lengths = array("H")
        self._documents = array("I")  # sentences, source, flags of each
        self._pending: list[tuple[int, int, int, Document]] = []  # source, bytes, hash
        self._pending_bytes = self._reported = 0

    def add(self, source: int, document: Document, raw: bytes) -> None:
        """Add a document: the index of its source in the store, itself, its text in UTF-8."""
        self._pending.append((source, len(raw), digest_of(raw), document))
        self._pending_bytes += len(raw)
        if self._pending_bytes >= BATCH_BYTES:
            self._encode()

    def _encode(self) -> None:
        """Split and encode what is pending, and note what becomes of it."""
        documents = [document for *_, document in self._pending]
        # All texts are split by one call, those of lines by their lines; the sentences of all are encoded by one call.
        split = iter(self.split([document.text for document in documents if not document.lines]))
        parts = [document.text.split("\n") if document.lines else next(split) for document in documents]
        sentences = list(chain.from_iterable(parts))
        encoded = self.encoder.encode(sentences)
        self._tokens.write(encoded.ids.data)
        self._token_count += len(encoded.ids)
        self.counts["unknown"] += int(np.count_nonzero(encoded.ids == self.encoder.special_ids["unk"]))
        self.counts["characters"] += characters_of(document.text for document in documents)
        self.counts["unknown_characters"] += self.encoder.unknown_characters.count(sentences, encoded)
        if self.words is not None:
            self._continues.append(self.words.continuations(sentences, encoded))
        lengths, counts = self._cut(encoded.lengths, np.array([len(part) for part in parts]))
        self._sentence_lengths.frombytes(lengths.astype(np.uint16).tobytes())
        for (source, size, digest, _), count in zip(self._pending, counts.tolist(), strict=True):
            if not count:
                self.counts["empty_documents"] += 1
                continue
            is_held_out = digest < self.threshold
            self.lowest.add(digest, len(self._documents) // 3)
            self._documents.extend((count, source, HELD_OUT if is_held_out else 0))
            self.counts["held_out_documents"] += is_held_out
            self.counts["text_bytes"] += size
        self._pending, self._pending_bytes = [], 0

    def _cut(self, lengths: np.ndarray, sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Leave out sentences without tokens and cut those too long for the store. lengths [S], sentences [D] of each
        document; returns both anew."""
        # Two documents of 2 and 1 sentences of 5, 0 and 70,000 tokens: parts 1, 0, 2; of each document 1 and 2.
        parts = ceil_div(lengths, MAX_SENTENCE)
        before = np.concatenate([[0], np.cumsum(parts)])
        ends = np.cumsum(sentences)
        documents = before[ends] - before[ends - sentences]
        if (parts > 1).any():
            self.counts["cut_sentences"] += int((parts[parts > 1] - 1).sum())
            owner = np.repeat(np.arange(len(lengths)), parts)
            place = np.arange(len(owner)) - before[owner]
            return np.minimum(lengths[owner] - place * MAX_SENTENCE, MAX_SENTENCE), documents
        return lengths[lengths > 0], documents

    def new_tokens(self) -> int:
        """Return how many tokens were encoded since the last call."""
        new = self._token_count - self._reported
        self._reported = self._token_count
        return new

    def write(self, path: Path, vocab_sha256: str) -> Sections:
        """Write all that was added as a shard; returns what it holds."""
        if self._pending:
            self._encode()
        self._tokens.flush()
        dtype = self.encoder.dtype
        tokens = np.memmap(self._tokens, dtype, "r") if self._token_count else np.zeros(0, dtype)
        documents = np.frombuffer(self._documents, np.uint32).reshape(-1, 3)
        lengths = np.frombuffer(self._sentence_lengths, np.uint16)
        flags = documents[:, 2].astype(np.uint8)
        words = np.packbits(np.concatenate(self._continues), bitorder="little") if self.words is not None else None
        sections = Sections(tokens, lengths, documents[:, 0], documents[:, 1], flags, words)
        write_shard(path, sections, vocab_sha256, self._tokens)
        self._tokens.close()
        return sections
