"""The steps of a run: which samples each rank sees in each step, as padding-free tensors.

    load_steps(setup, position, device) -> StepData, StepData, ...     made ahead by a thread, for ever

    stores, DataPosition -> SampleStream.take(n) -> train_steps(...) -> collate(...) -> prefetch(...)

A step takes the next samples of the stream; epochs follow one another without a gap. They are split over the
micro-batches of all ranks by length, so that every rank has as much to do; the union over ranks and micro-batches, and
with the losses normalised by the counts of the whole step also the gradient, do not depend on how a step is cut. Each
rank counts the whole step from the index alone. A DataPosition is all that a resume needs, at any world size.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from data_prep.rounding import ceil_div
from data_prep.samples.assemble import gather_tokens, split_by_length, word_continuations
from data_prep.samples.masking import Masking, mask_counts, mask_tokens
from data_prep.samples.mixture import Epoch, Mixture, Samples
from data_prep.store import Store
from pretrain.attention import SeqLens
from pretrain.model import IGNORED, Batch
from pretrain.settings.phases import Phase
from pretrain.setup import Setup
from pretrain.state import DataPosition, StepCounts

Item = TypeVar("Item")
LOOKUP_SAMPLES = 1 << 14  # looked up at once: the shuffle is slow on small calls
PREFETCH_MICRO_BATCHES = 4  # made in advance, and at least one step


class StepData(NamedTuple):
    """What one optimizer step sees."""

    counts: StepCounts  # over all ranks
    micro_batches: list[Batch]  # of this rank

    def pin_memory(self) -> "StepData":
        """Move into memory from which a GPU can copy while the host goes on."""
        return self._replace(micro_batches=[batch.pin_memory() for batch in self.micro_batches])


class SampleStream:
    """Gives the samples of a mixture one after another, epoch after epoch."""

    def __init__(self, mixture: Mixture, position: DataPosition):
        self.mixture, self.position = mixture, position
        self._epoch: Epoch = mixture.epoch(position.epoch)
        mixture.prefetch_epoch(position.epoch + 1)
        self._window: Samples | None = None
        self._window_start = 0

    def take(self, count: int) -> Samples:
        """Return the next `count` samples; moves `position`."""
        parts = []
        while count:
            part = self._within_window(count)
            parts.append(part)
            count -= part.size
        return Samples.concatenate(parts)

    def skip(self, count: int) -> None:
        """Pass over the next `count` samples."""
        for first in range(0, count, LOOKUP_SAMPLES):
            self.take(min(LOOKUP_SAMPLES, count - first))

    def _within_window(self, count: int) -> Samples:
        epoch, sample = self.position.epoch, self.position.sample
        if sample >= self._epoch.size:
            epoch, sample = epoch + 1, 0
            self._epoch, self._window = self.mixture.epoch(epoch), None
            self.mixture.prefetch_epoch(epoch + 1)
        if self._window is None or sample - self._window_start >= self._window.size:
            stop = min(sample + LOOKUP_SAMPLES, self._epoch.size)
            self._window, self._window_start = self._epoch.samples_at(np.arange(sample, stop)), sample
        first = sample - self._window_start
        part = self._window.take(slice(first, first + count))
        self.position = self.position._replace(
            epoch=epoch, sample=sample + part.size, samples_in_phase=self.position.samples_in_phase + part.size
        )
        return part


def train_mixture(setup: Setup, phase: Phase) -> Mixture:
    """Return what a phase trains on."""
    config = setup.config
    return Mixture(
        setup.stores, setup.passes(phase), seq_len=phase.span.seq_len, objective=config.objective, seed=config.seed
    )


def sample_stream(setup: Setup, position: DataPosition) -> SampleStream:
    """Return the samples from a position on, of the phase that it lies in."""
    return SampleStream(train_mixture(setup, setup.phases[position.phase]), position)


def load_steps(setup: Setup, position: DataPosition, device: torch.device) -> Generator[StepData]:
    """Yield this rank's steps from a position on, made ahead, for ever. Closing the generator ends its thread."""
    phase, stream = setup.phases[position.phase], sample_stream(setup, position)
    steps = train_steps(
        stream,
        masking_after=lambda taken: setup.config.masking(phase.mask_rate_after(taken)),
        batch_after=phase.batch_after,
        micro_batch=phase.micro_batch,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
    )
    if device.type == "cuda":
        steps = map(StepData.pin_memory, steps)
    ahead = ceil_div(PREFETCH_MICRO_BATCHES, phase.accumulation)
    return prefetch(steps, ahead=ahead, at_end=stream.mixture.abandon)


def train_steps(
    stream: SampleStream,
    *,
    masking_after: Callable[[int], Masking],
    batch_after: Callable[[int], int],
    micro_batch: int,
    rank: int,
    world: int,
) -> Iterator[StepData]:
    """Yield this rank's steps for ever.

    A step that begins after n samples of its phase has `batch_after(n)` samples over all ranks, a multiple of
    micro_batch * world, which are masked as `masking_after(n)` says.
    """
    while True:
        taken = stream.position.samples_in_phase
        samples, masking = stream.take(batch_after(taken)), masking_after(taken)
        counts = count_step(samples, masking, stream.mixture.seq_len, stream.position)
        # Which samples are in each micro-batch, over all ranks; every `world`-th micro-batch is this rank's.
        splits = split_by_length(samples, counts.samples // micro_batch)
        shares = [samples.take(indices) for indices in splits[rank::world]]
        yield StepData(counts, [collate(stream.mixture.stores, share, masking) for share in shares])


def count_step(samples: Samples, masking: Masking, seq_len: int, end: DataPosition) -> StepCounts:
    """Count what these samples hold, from the index alone; `end` is where the next step begins."""
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


def order_by_length(samples: Samples) -> np.ndarray:
    """Return the order [N] in which samples stand in a batch: the longest first."""
    return np.argsort(-samples.text_lengths, kind="stable")


def collate(stores: tuple[Store, ...], samples: Samples, masking: Masking) -> Batch:
    """Read, assemble and mask samples; the longest first, so that attention meets equal lengths in one run."""
    samples = samples.take(order_by_length(samples))
    assembled = gather_tokens(stores, samples)
    ids, _, is_special, lengths = assembled
    input_ids, masked_rows, labels = mask_tokens(
        ids,
        is_special,
        lengths,
        samples.key,
        mask_id=stores[0].special_ids["mask"],
        vocab_size=stores[0].vocab_size,
        masking=masking,
        continues=None if masking.unit == "token" else word_continuations(stores, samples, assembled),
    )
    # Samples lie end to end; a row is a token of any of them. Two samples of 4 and 3 tokens, rows 2 and 5 masked:
    #     rows                  0 1 2 3 | 4 5 6
    #     cu_seqlens  [0, 4, 7]: where samples begin, and the last one ends; a sample begins with its [CLS]
    #     positions             0 1 2 3 | 0 1 2
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    cls_rows = cu_seqlens[:-1]
    positions = np.arange(len(ids)) - np.repeat(cls_rows, lengths)
    # The heads look at masked rows and at [CLS], which is never masked: the last layer computes these rows only.
    #     is_head_row           1 0 1 0 | 1 1 0
    #     head_rows   [0, 2, 4, 5]
    is_head_row = np.zeros(len(ids), bool)
    is_head_row[cls_rows] = is_head_row[masked_rows] = True
    head_rows = np.flatnonzero(is_head_row)
    # Where a head row stands among the head rows: cls_index [0, 2], mlm_index [1, 3], head_cu_seqlens [0, 2, 4].
    index_of_row = np.cumsum(is_head_row) - 1
    cls_index, mlm_index = index_of_row[cls_rows], index_of_row[masked_rows]
    head_cu_seqlens = np.append(cls_index, len(head_rows))
    nsp_labels = np.where(samples.has_b, samples.spans["label"].astype(np.int64), IGNORED)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        token_types=torch.from_numpy(assembled.token_types),
        positions=torch.from_numpy(positions),
        head_rows=torch.from_numpy(head_rows),
        mlm_index=torch.from_numpy(mlm_index),
        cls_index=torch.from_numpy(cls_index),
        mlm_labels=torch.from_numpy(labels),
        nsp_labels=torch.from_numpy(nsp_labels),
        seqlens=SeqLens.from_bounds(cu_seqlens),
        head_seqlens=SeqLens.from_bounds(head_cu_seqlens),
    )


def prefetch(items: Iterator[Item], *, ahead: int = 1, at_end: Callable[[], None] = lambda: None) -> Generator[Item]:
    """Yield the same items, made by a thread up to `ahead` in advance. An error in the thread is raised here.

    Closing the result, or dropping it, calls `at_end`, which may hurry an item that is being made, and waits for the
    thread. No daemon: one that frees tensors while the interpreter ends takes the process down. It ends by itself when
    the main thread does.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if not _put_unless_stopped(made, (item, None), stop):
                    return
        except BaseException as error:  # handed over, not handled
            _put_unless_stopped(made, (None, error), stop)

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


def _put_unless_stopped(made: queue.Queue, entry: tuple, stop: threading.Event) -> bool:
    while not stop.is_set() and threading.main_thread().is_alive():
        try:
            made.put(entry, timeout=0.5)
        except queue.Full:
            continue
        return True
    return False
