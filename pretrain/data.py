"""The steps of a run: which samples each rank sees in each step, as padding-free tensors.

    load_steps(setup, position, device) -> StepData, ...    for ever; their micro-batches are made ahead by a thread

    stores, DataPosition -> SampleStream.take(n) -> train_steps(...) -> collate_splits(...) -> prefetch_steps(...)

A step takes the next samples of the stream; epochs follow one another without a gap. They are split over the
micro-batches of all ranks by length, so that every rank has as much to do; the union over ranks and micro-batches, and
with the losses normalised by the counts of the whole step also the gradient, do not depend on how a step is cut. Each
rank counts the whole step from the index alone, before a micro-batch of it is made; of these only a few are in memory
at a time, however large the step. A DataPosition is all that a resume needs, at any world size.

Where many ranks share a step, a rank looks up its own samples only; of the others it reads the lengths, which all ranks
of a node find together (length_table.py).
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from data_prep.samples.assemble import gather_tokens, split_by_length, word_continuations
from data_prep.samples.length_table import LengthTable, NodeRanks
from data_prep.samples.masking import Masking, mask_counts, mask_tokens
from data_prep.samples.mixture import Epoch, KnownLengths, Mixture, Samples
from data_prep.store import Store
from pretrain.attention import SeqLens
from pretrain.model import IGNORED, Batch
from pretrain.settings.phases import Phase
from pretrain.setup import Setup
from pretrain.state import DataPosition, StepCounts

Item = TypeVar("Item")
LOOKUP_SAMPLES = 1 << 14  # looked up at once: the shuffle is slow on small calls
COLLATE_TOKENS = 1 << 15  # of the samples that are made into batches at once; at least one batch
PREFETCH_MICRO_BATCHES = 4  # made in advance
MANY_RANKS = 16  # from which on a rank looks up its own samples only


class StepData(NamedTuple):
    """What one optimizer step sees."""

    counts: StepCounts  # over all ranks
    micro_batch_count: int  # of this rank
    micro_batches: Iterator[Batch]  # each made when it is asked for

    def pin_memory(self) -> "StepData":
        """Move micro-batches, as they are made, into memory from which a GPU can copy while the host goes on."""
        return self._replace(micro_batches=map(Batch.pin_memory, self.micro_batches))


class DrawnSamples(NamedTuple):
    """Samples that come next, of which only the lengths are known until some are taken. N samples."""

    spans: tuple[tuple[Epoch, int, int], ...]  # an epoch, a first position in it, and how many from there
    length_codes: np.ndarray  # [N] uint32, as Epoch.length_codes_at() has them

    def take(self, indices: np.ndarray) -> Samples:
        """Look up some of the samples, in the order of `indices`."""
        if len(self.spans) == 1:
            epoch, first, _ = self.spans[0]
            return epoch.samples_at(first + indices)
        # Samples 7, 2 and 5, of which 0 to 4 end an epoch: 2, then 7 and 5 are looked up, and put into their order.
        ends = np.cumsum([count for _, _, count in self.spans])
        owner = np.searchsorted(ends, indices, side="right")
        order = np.argsort(owner, kind="stable")
        found = [
            epoch.samples_at(first + indices[owner == index] - (ends[index] - count))
            for index, (epoch, first, count) in enumerate(self.spans)
        ]
        return Samples.concatenate(found).take(np.argsort(order))


class SampleStream:
    """Gives the samples of a mixture one after another, epoch after epoch."""

    def __init__(self, mixture: Mixture, position: DataPosition, node: NodeRanks = NodeRanks()):  # noqa: B008
        """`node`: the ranks that find lengths together, for `draw()`."""
        if mixture.windows > 1 and not position.sample and not position.window:
            position = position._replace(window=1)  # within an epoch, a version without windows has been here
        self.mixture, self.position, self._node = mixture, position, node
        self._epoch: Epoch = mixture.epoch(position.epoch, position.window)
        mixture.prefetch_epoch(*mixture.after(position.epoch, position.window))
        self._window: Samples | None = None
        self._window_start = 0
        self._lengths: LengthTable | None = None

    def take(self, count: int) -> Samples:
        """Return the next `count` samples; moves `position`."""
        parts = []
        while count:
            part = self._within_window(count)
            parts.append(part)
            count -= part.size
            self._move(part.size)
        return Samples.concatenate(parts)

    def draw(self, count: int) -> DrawnSamples:
        """Return the next `count` samples, none of which is looked up yet; moves `position`."""
        spans, codes = [], []
        while count:
            self._enter_epoch()
            epoch, first = self._epoch, self.position.sample
            size = min(count, epoch.size - first)
            spans.append((epoch, first, size))
            codes.append(self._length_table().read(first, first + size))
            count -= size
            self._move(size)
        return DrawnSamples(tuple(spans), np.concatenate(codes))

    def skip(self, count: int) -> None:
        """Pass over the next `count` samples."""
        for first in range(0, count, LOOKUP_SAMPLES):
            self.take(min(LOOKUP_SAMPLES, count - first))

    def _enter_epoch(self) -> None:
        """Go on to the next epoch, or window, where this one is at its end."""
        if self.position.sample >= self._epoch.size:
            epoch, window = self.mixture.after(self.position.epoch, self.position.window)
            self.position = self.position._replace(epoch=epoch, window=window, sample=0)
            self._epoch, self._window, self._lengths = self.mixture.epoch(epoch, window), None, None
            self.mixture.prefetch_epoch(*self.mixture.after(epoch, window))

    def _move(self, count: int) -> None:
        sample, in_phase = self.position.sample + count, self.position.samples_in_phase + count
        self.position = self.position._replace(sample=sample, samples_in_phase=in_phase)

    def _within_window(self, count: int) -> Samples:
        self._enter_epoch()
        sample = self.position.sample
        if self._window is None or sample - self._window_start >= self._window.size:
            stop = min(sample + LOOKUP_SAMPLES, self._epoch.size)
            self._window, self._window_start = self._epoch.samples_at(np.arange(sample, stop)), sample
        first = sample - self._window_start
        return self._window.take(slice(first, first + count))

    def _length_table(self) -> LengthTable:
        if self._lengths is None:
            epoch, settings = self._epoch, (*self.mixture.settings, self.position.window > 0)

            def find(first: int, stop: int) -> np.ndarray:
                return epoch.length_codes_at(np.arange(first, stop))

            self._lengths = LengthTable.of(settings, epoch.number, epoch.size, find, self._node)
        return self._lengths


def train_mixture(setup: Setup, phase: Phase) -> Mixture:
    """Return what a phase trains on."""
    config = setup.config
    return Mixture(
        setup.stores,
        setup.passes(phase),
        seq_len=phase.span.seq_len,
        objective=config.objective,
        seed=config.seed,
        node=NodeRanks.here(),
    )


def sample_stream(setup: Setup, position: DataPosition) -> SampleStream:
    """Return the samples from a position on, of the phase that it lies in."""
    return SampleStream(train_mixture(setup, setup.phases[position.phase]), position, NodeRanks.here())


def load_steps(setup: Setup, position: DataPosition, device: torch.device) -> Generator[StepData]:
    """Yield this rank's steps from a position on, for ever. Closing the generator ends its thread."""
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
    return prefetch_steps(steps, at_end=stream.mixture.abandon)


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
        draw = stream.draw if world >= MANY_RANKS else stream.take
        samples, masking = draw(batch_after(taken)), masking_after(taken)
        counts = count_step(samples, masking, stream.mixture.seq_len, stream.position)
        # Which samples are in each micro-batch, over all ranks; every `world`-th micro-batch is this rank's.
        splits = split_by_length(samples, counts.samples // micro_batch)[rank::world]
        batches = collate_splits(stream.mixture.stores, samples, splits, masking, stream.mixture.seq_len)
        yield StepData(counts, len(splits), batches)


def count_step(samples: KnownLengths, masking: Masking, seq_len: int, end: DataPosition) -> StepCounts:
    """Count what these samples hold, from the index alone; `end` is where the next step begins."""
    # Of each kind of sample, a length with a B or without, how many there are: hundreds of kinds, not 65,536 samples.
    counts = np.bincount(samples.length_codes)
    kinds = np.flatnonzero(counts)
    counts, has_b = counts[kinds], kinds & 1
    n_special = 2 + has_b
    lengths = (kinds >> 1) + n_special
    return StepCounts(
        samples=int(counts.sum()),
        masked=int(counts @ mask_counts(lengths, n_special, masking.rate)),
        pairs=int(counts @ has_b),
        tokens=int(counts @ lengths),
        slots=int(counts.sum()) * seq_len,
        attended=int(counts @ lengths**2),
        end=end,
    )


def order_by_length(samples: Samples) -> np.ndarray:
    """Return the order [N] in which samples stand in a batch: the longest first."""
    return np.argsort(-samples.text_lengths, kind="stable")


def collate(stores: tuple[Store, ...], samples: Samples, masking: Masking) -> Batch:
    """Read, assemble and mask samples; the longest first, so that attention meets equal lengths in one run."""
    samples = samples.take(order_by_length(samples))
    return _Collated.of(stores, samples, masking).batch(0, samples.size)


def collate_splits(
    stores: tuple[Store, ...], samples: Samples | DrawnSamples, splits: np.ndarray, masking: Masking, seq_len: int
) -> Iterator[Batch]:
    """Yield a batch for each row of `splits` [batches, batch size], indices of samples with the longest first.

    Small batches are made several at once, since a call of numpy takes as long for one sample as for ten.
    """
    size = splits.shape[1]
    at_once = max(1, COLLATE_TOKENS // (size * seq_len))
    for first in range(0, len(splits), at_once):
        collated = _Collated.of(stores, samples.take(splits[first : first + at_once].ravel()), masking)
        for start in range(0, len(collated.nsp_labels), size):
            yield collated.batch(start, start + size)


class _Collated(NamedTuple):
    """N samples end to end, of which batches are cut. T tokens, M masked; a row is a token of any sample.

    Two samples of 4 and 3 tokens, rows 2 and 5 masked:

        rows              0 1 2 3 | 4 5 6
        bounds          [ 0         4       7 ]
        positions         0 1 2 3 | 0 1 2
        head_rows         0   2   | 4 5
        head_bounds     [ 0         2       4 ]
        mlm_index             1   |   3           where masked rows stand among the head rows
    """

    input_ids: np.ndarray  # [T]
    token_types: np.ndarray  # [T]
    positions: np.ndarray  # [T], in the sample
    bounds: np.ndarray  # [N + 1], where samples begin, with their [CLS], and the last one ends
    head_rows: np.ndarray  # [M + N]: the heads look at [CLS], which is never masked, and at masked rows
    head_bounds: np.ndarray  # [N + 1], where the head rows of samples begin, with that of [CLS], and the last one's end
    mlm_index: np.ndarray  # [M]
    mlm_labels: np.ndarray  # [M]
    nsp_labels: np.ndarray  # [N]

    @classmethod
    def of(cls, stores: tuple[Store, ...], samples: Samples, masking: Masking) -> "_Collated":
        """Read, assemble and mask samples, in their order."""
        assembled = gather_tokens(stores, samples)
        masked = mask_tokens(
            assembled.ids,
            assembled.is_special,
            assembled.lengths,
            samples.key,
            mask_id=stores[0].special_ids["mask"],
            vocab_size=stores[0].vocab_size,
            masking=masking,
            continues=None if masking.unit == "token" else word_continuations(stores, samples, assembled),
        )
        bounds = np.concatenate([[0], np.cumsum(assembled.lengths)])
        cls_rows = bounds[:-1]
        masked_before = np.searchsorted(masked.rows, bounds)
        head_bounds = masked_before + np.arange(len(bounds))
        # Before a masked row there stand the masked rows before it, and the [CLS] of its sample and of all before it.
        cls_until = np.repeat(np.arange(1, len(bounds)), np.diff(masked_before))
        mlm_index = np.arange(len(masked.rows)) + cls_until
        head_rows = np.empty(head_bounds[-1], np.int64)
        head_rows[head_bounds[:-1]], head_rows[mlm_index] = cls_rows, masked.rows
        return cls(
            input_ids=masked.ids,
            token_types=assembled.token_types,
            positions=np.arange(bounds[-1]) - np.repeat(cls_rows, assembled.lengths),
            bounds=bounds,
            head_rows=head_rows,
            head_bounds=head_bounds,
            mlm_index=mlm_index,
            mlm_labels=masked.labels,
            nsp_labels=np.where(samples.has_b, samples.spans["label"].astype(np.int64), IGNORED),
        )

    def batch(self, first: int, stop: int) -> Batch:
        """Return the samples [first, stop) as a batch: its rows, and its head rows, are counted from 0 again."""
        bounds, head_bounds = self.bounds[first : stop + 1], self.head_bounds[first : stop + 1]
        rows, head = slice(bounds[0], bounds[-1]), slice(head_bounds[0], head_bounds[-1])
        masked = slice(head.start - first, head.stop - stop)  # before them as many [CLS] as samples
        bounds, head_bounds = bounds - rows.start, head_bounds - head.start
        return Batch(
            input_ids=torch.from_numpy(self.input_ids[rows]),
            token_types=torch.from_numpy(self.token_types[rows]),
            positions=torch.from_numpy(self.positions[rows]),
            head_rows=torch.from_numpy(self.head_rows[head] - rows.start),
            mlm_index=torch.from_numpy(self.mlm_index[masked] - head.start),
            cls_index=torch.from_numpy(head_bounds[:-1]),
            mlm_labels=torch.from_numpy(self.mlm_labels[masked]),
            nsp_labels=torch.from_numpy(self.nsp_labels[first:stop]),
            seqlens=SeqLens.from_bounds(bounds),
            head_seqlens=SeqLens.from_bounds(head_bounds),
        )


def prefetch_steps(
    steps: Iterator[StepData], *, ahead: int = PREFETCH_MICRO_BATCHES, at_end: Callable[[], None] = lambda: None
) -> Generator[StepData]:
    """Yield the same steps, whose micro-batches are made by a thread up to `ahead` in advance, those of the next step,
    too. A step's micro-batches are to be taken before the next step is. See `prefetch`."""

    def one_after_another() -> Iterator[Any]:
        for step in steps:
            yield step
            yield from step.micro_batches

    with closing(prefetch(one_after_another(), ahead=ahead, at_end=at_end)) as made:
        for step in made:
            micro_batches = islice(made, step.micro_batch_count)
            yield step._replace(micro_batches=micro_batches)
            deque(micro_batches, maxlen=0)  # what was not taken is no part of the next step


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
