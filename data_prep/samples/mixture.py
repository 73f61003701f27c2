"""The samples of an epoch in training order, over one store or several with weights.

stores, passes -> Mixture.epoch(e) -> Epoch.samples_at(positions) -> Samples

epoch       what --data says: of each store so many passes, a weight of 2.5 two and a half; the half that one epoch
            leaves is what the next one begins with
pass        once through a store, with pairs and masks of its own; build_index() of sample_index.py makes its samples,
            once per node: index_cache.py keeps them on disk for all ranks and for a run that continues
position    a sample's place in the epoch's order, which is shuffled
place       the same sample's place in the slices of passes that make the epoch, laid end to end
sample      its index within its pass

position -> feistel_permutation -> place -> (slice of a pass, sample) -> spans: where A and B lie in the store
"""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_prep.cli import InputError
from data_prep.samples.counter_rng import feistel_permutation, random_bits
from data_prep.samples.index_cache import cached
from data_prep.samples.sample_index import SAMPLE, VERSION, Objective, Sentences, build_index
from data_prep.store import HELD_OUT, Store

_EPOCH_ORDER, _PASS_ORDER = 2, 3  # what is drawn, as the last part of a key


class BuildAbandonedError(Exception):
    """Nobody waits for this any more."""


class Samples(NamedTuple):
    """Samples in training order, with what identifies each of them. N samples."""

    store: np.ndarray  # [N] int64, index of its store in the mixture
    key: np.ndarray  # [N] uint64, the sample's own key for draws (masks), a function of (seed, store, pass, sample)
    spans: np.ndarray  # [N] SAMPLE: where A and B lie, and the label

    @classmethod
    def concatenate(cls, parts: Sequence["Samples"]) -> "Samples":
        """Return the samples of all parts, one part after another."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def take(self, indices: np.ndarray | slice) -> "Samples":
        """Return some of the samples, in the order of `indices`."""
        return Samples(*(column[indices] for column in self))

    @property
    def size(self) -> int:
        """Number of samples, N."""
        return len(self.store)

    @property
    def has_b(self) -> np.ndarray:
        """[N] bool: samples of two segments."""
        return self.spans["b_length"] > 0

    @property
    def n_special(self) -> np.ndarray:
        """[N] int64: [CLS] and [SEP] of each, 3 with a B, else 2."""
        return np.where(self.has_b, 3, 2)

    @property
    def text_lengths(self) -> np.ndarray:
        """[N] int64: tokens of A and B of each."""
        return self.spans["a_length"].astype(np.int64) + self.spans["b_length"]

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64: tokens of each, [CLS] and [SEP] among them."""
        return self.text_lengths + self.n_special


class KnownLengths(Protocol):
    """Samples of which the lengths are known, at least. N samples."""

    @property
    def text_lengths(self) -> np.ndarray:
        """[N] int64: tokens of A and B of each."""

    @property
    def has_b(self) -> np.ndarray:
        """[N] bool: samples of two segments."""


class _PassSlice(NamedTuple):
    """The samples of one pass over one store that an epoch uses: positions [first, first + size) of its shuffle."""

    store: int
    pass_number: int
    first: int
    size: int
    spans: np.ndarray  # [all of the pass] SAMPLE


class Epoch(NamedTuple):
    """One epoch of a mixture: its samples stand at the positions 0 .. size - 1 in the order of training."""

    slices: tuple[_PassSlice, ...]
    size: int
    seed: int
    number: int

    def samples_at(self, positions: np.ndarray) -> Samples:
        """Return the samples at these positions [N] of the epoch's order."""
        size = len(positions)
        samples = Samples(np.empty(size, np.int64), np.empty(size, np.uint64), np.empty(size, SAMPLE))
        for rows, part, sample in self._found(positions):
            samples.store[rows] = part.store
            samples.key[rows] = random_bits(self.seed, part.store, part.pass_number, sample)
            samples.spans[rows] = part.spans[sample]
        return samples

    def length_codes_at(self, positions: np.ndarray) -> np.ndarray:
        """Return [N] int64 for each sample twice the tokens of A and B, and one more where there is a B."""
        codes = np.empty(len(positions), np.int64)
        for rows, part, sample in self._found(positions):
            b_length = part.spans["b_length"][sample].astype(np.int64)
            codes[rows] = 2 * (part.spans["a_length"][sample] + b_length) + (b_length > 0)
        return codes

    def _found(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, _PassSlice, np.ndarray]]:
        """Yield for each slice which of the positions [N], by index, are in it, and their samples."""
        # Position -> place in the slices, laid end to end -> sample of its pass: two shuffles, so that neither the
        # order of stores nor that of documents is seen.
        place = feistel_permutation(positions, self.size, int(random_bits(self.seed, self.number, _EPOCH_ORDER)[0]))
        ends = np.cumsum([part.size for part in self.slices])
        owner = np.searchsorted(ends, place, side="right")
        for index, part in enumerate(self.slices):
            rows = np.flatnonzero(owner == index)
            if len(rows):
                within = place[rows] - (ends[index] - part.size) + part.first
                shuffle = int(random_bits(self.seed, part.store, part.pass_number, _PASS_ORDER)[0])
                yield rows, part, feistel_permutation(within, len(part.spans), shuffle)


def passes_by_temperature(weights: Sequence[float], tokens: Sequence[int], temperature: float) -> list[float]:
    """Return passes per epoch of stores: their shares are made more equal, an epoch stays as long.

    The share of a store, weight times tokens, goes to the power of `temperature`, as for the languages of multilingual
    BERT (0.7) and XLM-R (0.3; Conneau et al. 2020, section 3.1).
    """
    if temperature == 1:
        return list(weights)
    sizes = [weight * count for weight, count in zip(weights, tokens, strict=True)]
    powers = [size**temperature if size else 0.0 for size in sizes]  # a store that is left out stays out
    return [power / sum(powers) * sum(sizes) / count for power, count in zip(powers, tokens, strict=True)]


def fresh_epoch(epochs_begun: int, had: Mapping[str, float], have: Mapping[str, float]) -> int:
    """Return the first epoch behind every pass that `epochs_begun` epochs have begun, when passes per epoch change.

    `had`, `have`: passes per epoch of stores, by any name of theirs; without one of them, it begins anew. 2 epochs of
    2 passes have begun passes 0 to 3: with half a pass an epoch, epoch 8 is the first that begins with pass 4.
    """
    # Rounded, since 2 x 0.3 / 0.1 is a little more than 6.
    return max(
        (math.ceil(round(epochs_begun * had[name] / have[name], 6)) for name in have if have[name] and name in had),
        default=0,
    )


class Mixture:
    """Weighted stores as one stream of samples. Stores of one mixture share their tokenizer."""

    def __init__(
        self,
        stores: Sequence[Store],
        passes_per_epoch: Sequence[float],  # of each store
        *,
        seq_len: int,
        objective: Objective,
        seed: int,
        held_out: bool = False,
    ):
        self.stores, self.passes_per_epoch = tuple(stores), tuple(passes_per_epoch)
        self.seq_len, self.objective, self.seed, self.held_out = seq_len, objective, seed, held_out
        self._passes: dict[tuple[int, int], np.ndarray] = {}  # by store and pass
        self._ahead: threading.Thread | None = None
        self._abandoned = threading.Event()
        flags = np.concatenate([shard.document_flags for store in stores for shard in store.shards])
        if not ((flags & HELD_OUT > 0) == held_out).any():
            kind = "held-out" if held_out else "training"
            raise InputError(f"{', '.join(str(store.folder) for store in self.stores)}: no {kind} text")

    @property
    def settings(self) -> tuple[Any, ...]:
        """All that the samples of its epochs depend on, but for the number of the epoch."""
        stores = tuple(
            (store.identity, passes) for store, passes in zip(self.stores, self.passes_per_epoch, strict=True)
        )
        return (stores, self.held_out, self.seq_len, self.objective, self.seed, VERSION)

    def epoch(self, number: int) -> Epoch:
        """Return the index of epoch `number` = 0, 1, ...

        Raises
        ------
        InputError: where nsp has only one document.
        """
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None
        # Weight 2.5: epoch 0 has passes 0, 1 and the first half of 2, epoch 1 its second half, 3 and 4.
        slices = []
        for store, passes in enumerate(self.passes_per_epoch):
            begin, end = number * passes, (number + 1) * passes
            for pass_number in range(int(begin), math.ceil(end)):
                spans = self._spans(store, pass_number)
                first = round(max(begin - pass_number, 0) * len(spans))
                last = round(min(end - pass_number, 1) * len(spans))
                slices.append(_PassSlice(store, pass_number, first, last - first, spans))
        # The next epoch may begin with what is left of a pass; older passes never come back.
        self._passes = {key: self._passes[key] for key in {(part.store, part.pass_number) for part in slices}}
        return Epoch(tuple(slices), sum(part.size for part in slices), self.seed, number)

    def prefetch_epoch(self, number: int) -> None:
        """Begin to make what `epoch(number)` will need, in a thread."""
        if self._ahead is None:
            self._ahead = threading.Thread(target=self._build_passes, args=(number,), name="index")
            self._ahead.start()

    def abandon(self) -> None:
        """No more epochs are needed: what is being built is given up."""
        self._abandoned.set()
        if self._ahead is not None:
            self._ahead.join()

    def _build_passes(self, number: int) -> None:
        with suppress(BuildAbandonedError):
            for store, passes in enumerate(self.passes_per_epoch):
                for pass_number in range(int(number * passes), math.ceil((number + 1) * passes)):
                    self._spans(store, pass_number)

    def _check_wanted(self) -> None:
        """Called again and again by what takes long: a thread must not outlive the program's end for it."""
        if self._abandoned.is_set() or not threading.main_thread().is_alive():
            raise BuildAbandonedError

    def _spans(self, store: int, pass_number: int) -> np.ndarray:
        """Return the samples of a pass over a store, from memory, the cache on disk, or made now."""
        key = (store, pass_number)
        if key not in self._passes:
            settings = (self.held_out, self.seq_len, self.objective, self.seed, VERSION)
            self._passes[key] = cached(
                (self.stores[store].identity, *settings),
                pass_number,
                lambda: build_index(
                    Sentences.of(self.stores[store], self.held_out),
                    seq_len=self.seq_len,
                    objective=self.objective,
                    seed=self.seed,
                    pass_number=pass_number,
                    check_wanted=self._check_wanted,
                ),
                self._check_wanted,
            )
        return self._passes[key]
