"""The batches of a run: which samples each rank sees in each step, as padding-free tensors.

    stores, DataPosition -> SampleStream.take(n) -> feed(...) -> MicroBatch, MicroBatch, ... (made ahead by a thread)

A step takes the next samples of the stream; epochs follow one another without a gap. They are parted among the
micro-batches of all ranks by length (`split_by_length`), so that every rank has as much to do; the union over ranks and
micro-batches, and with the losses normalised by the counts of the whole step also the gradient, do not depend on how a
step is cut. Each rank counts the whole step from the index alone. A DataPosition is all that resume needs, at any
world size.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from data_prep.samples.assemble import gather_tokens, split_by_length, word_continuations
from data_prep.samples.masking import Masking, mask_counts, mask_tokens
from data_prep.samples.mixture import Epoch, Mixture, Samples
from data_prep.store import Store
from pretrain.attention import Layout
from pretrain.model import IGNORED, Batch
from pretrain.state import DataPosition, StepCounts

Item = TypeVar("Item")
WINDOW = 1 << 14  # samples looked up at once: the shuffle is slow on small calls
AHEAD = 4  # micro-batches made in advance


class MicroBatch(NamedTuple):
    """This rank's share of a step, one micro-batch of it."""

    batch: Batch
    step: StepCounts
    is_last: bool  # of its step

    def pin_memory(self) -> "MicroBatch":
        """Move into memory from which a GPU can copy while the host goes on."""
        return self._replace(batch=self.batch.pin_memory())


class SampleStream:
    """The samples of a mixture one after another, epoch after epoch."""

    def __init__(self, mixture: Mixture, position: DataPosition):
        self.mixture, self.position = mixture, position
        self._epoch: Epoch = mixture.epoch(position.epoch)
        mixture.prefetch_epoch(position.epoch + 1)
        self._window: Samples | None = None
        self._window_start = 0

    def take(self, count: int) -> Samples:
        """The next `count` samples; moves `position`."""
        parts = []
        while count:
            part = self._within_window(count)
            parts.append(part)
            count -= part.count
        return Samples.concatenate(parts)

    def skip(self, count: int) -> None:
        """Pass over the next `count` samples."""
        for first in range(0, count, WINDOW):
            self.take(min(WINDOW, count - first))

    def _within_window(self, count: int) -> Samples:
        epoch, sample, _, taken, _ = self.position
        if sample >= self._epoch.size:
            epoch, sample = epoch + 1, 0
            self._epoch, self._window = self.mixture.epoch(epoch), None
            self.mixture.prefetch_epoch(epoch + 1)
        if self._window is None or sample - self._window_start >= self._window.count:
            stop = min(sample + WINDOW, self._epoch.size)
            self._window, self._window_start = self._epoch.samples_at(np.arange(sample, stop)), sample
        first = sample - self._window_start
        part = self._window.take(slice(first, first + count))
        taken += part.count
        self.position = self.position._replace(epoch=epoch, sample=sample + part.count, samples_in_phase=taken)
        return part


def feed(
    stream: SampleStream, masking: Masking, batch_after: Callable[[int], int], micro_batch: int, rank: int, world: int
) -> Iterator[MicroBatch]:
    """This rank's micro-batches for ever. A step that begins after n samples of its phase has `batch_after(n)`, over
    all ranks; a multiple of micro_batch * world."""
    seq_len = stream.mixture.seq_len
    while True:
        samples = stream.take(batch_after(stream.position.samples_in_phase))
        counts = counts_of(samples, masking, seq_len, stream.position)
        splits = split_by_length(samples, counts.samples // micro_batch)
        *others, last = range(rank, len(splits), world)
        for number in (*others, last):
            share = samples.take(splits[number])
            yield MicroBatch(make_batch(stream.mixture.stores, share, masking), counts, number == last)


def counts_of(samples: Samples, masking: Masking, seq_len: int, end: DataPosition) -> StepCounts:
    """What these samples hold; read from the index alone."""
    lengths = samples.lengths
    masked = mask_counts(lengths, samples.n_special, masking.rate)
    return StepCounts(
        samples=len(lengths),
        masked=int(masked.sum()),
        pairs=int(samples.has_b.sum()),
        tokens=int(lengths.sum()),
        slots=len(lengths) * seq_len,
        attended=int((lengths**2).sum()),
        end=end,
    )


def longest_first(samples: Samples) -> np.ndarray:
    """The order [N] in which samples stand in a batch."""
    return np.argsort(-samples.text_lengths, kind="stable")


def make_batch(stores: tuple[Store, ...], samples: Samples, masking: Masking) -> Batch:
    """Read, assemble and mask samples; the longest first, so that attention meets equal lengths in one run."""
    order = longest_first(samples)
    samples = samples.take(order)
    assembled = gather_tokens(stores, samples)
    ids, token_types, is_special, lengths = assembled
    continues = None if masking.unit == "token" else word_continuations(stores, samples, assembled)
    input_ids, masked_rows, labels = mask_tokens(
        ids,
        is_special,
        lengths,
        samples.key,
        mask_id=stores[0].special_ids["mask"],
        vocab_size=stores[0].vocab_size,
        masking=masking,
        continues=continues,
    )
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    masked_before = np.searchsorted(masked_rows, cu_seqlens)
    kept_before = masked_before + np.arange(len(cu_seqlens))  # of each sample its [CLS] and its masked rows
    mlm_places = np.arange(len(masked_rows)) + np.repeat(np.arange(1, len(cu_seqlens)), np.diff(masked_before))
    kept_rows = np.empty(kept_before[-1], np.int64)
    kept_rows[kept_before[:-1]], kept_rows[mlm_places] = cu_seqlens[:-1], masked_rows
    positions = np.arange(len(ids)) - np.repeat(cu_seqlens[:-1], lengths)
    nsp_labels = np.where(samples.has_b, samples.spans["label"].astype(np.int64), IGNORED)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        token_types=torch.from_numpy(token_types),
        positions=torch.from_numpy(positions),
        kept_rows=torch.from_numpy(kept_rows),
        mlm_places=torch.from_numpy(mlm_places),
        cls_places=torch.from_numpy(kept_before[:-1]),
        mlm_labels=torch.from_numpy(labels),
        nsp_labels=torch.from_numpy(nsp_labels),
        layout=Layout.of(cu_seqlens),
        kept_layout=Layout.of(kept_before),
    )


def prefetch(items: Iterator[Item], ahead: int = AHEAD, at_end: Callable[[], None] = lambda: None) -> Iterator[Item]:
    """The same items, made by a thread up to `ahead` in advance. An error in the thread is raised here.

    Closing the result, or dropping it, calls `at_end`, which may hurry an item that is being made, and waits for the
    thread. No daemon: one that frees tensors while the interpreter ends takes the process down. It ends by itself when
    the main thread does.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if not _put(made, (item, None), stop):
                    return
        except BaseException as error:  # handed over, not handled
            _put(made, (None, error), stop)

    thread = threading.Thread(target=work, name="prefetch")
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        stop.set()
        at_end()
        with suppress(queue.Empty):  # room, so that the thread sees it at once
            while True:
                made.get_nowait()
        thread.join()


def _put(made: queue.Queue, entry: tuple, stop: threading.Event) -> bool:
    while not stop.is_set() and threading.main_thread().is_alive():
        try:
            made.put(entry, timeout=0.5)
        except queue.Full:
            continue
        return True
    return False
