"""The samples of an epoch in training order, over one store or several with weights.

stores, passes -> Mixture.epoch(e) -> Epoch.samples_at(positions) -> Samples

epoch       what --data says: of each store so many passes, a weight of 2.5 two and a half; the half that one epoch
            leaves is what the next one begins with
pass        once through a store, with pairs and masks of its own; build_index() of sample_index.py makes its samples,
            once per node: index_cache.py keeps them on disk for all ranks and for a run that continues
position    a sample's place in the epoch's order, which is shuffled
place       the same sample's place in the slices of passes that make the epoch, laid end to end
sample      its index within its pass

Of stores of more than LARGE_SENTENCES together the index of an epoch would take too long, and too much memory. There

part        of a pass: some shards, drawn anew for each pass, with an index of their own; it stands in place of a pass
window      some parts of each store, which stand in place of an epoch; the windows of an epoch are numbered from 1

position -> feistel_permutation -> place -> (slice of a pass, sample) -> spans: where A and B lie in the store
"""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_prep.cli import InputError
from data_prep.rounding import ceil_div
from data_prep.samples.counter_rng import feistel_permutation, feistel_permutations, random_bits
from data_prep.samples.index_cache import KEPT_PASSES, WAITING, cached
from data_prep.samples.length_table import NodeRanks
from data_prep.samples.sample_index import SAMPLE, VERSION, Objective, Sentences, build_index
from data_prep.store import HELD_OUT, Store

LARGE_SENTENCES = 1 << 26  # of all stores, some 9 GB of text: to make their index takes 4 GB
WINDOW_SENTENCES = 1 << 25  # about, in a window
PART_SENTENCES = 1 << 22  # about, in a part of a pass: to make its index takes 270 MB and some seconds
KEPT_WINDOWS = 2  # whose indices stay on disk: the one before, and this one, while the next is made
_EPOCH_ORDER, _PASS_ORDER, _SHARD_ORDER = 2, 3, 4  # what is drawn, as the last part of a key


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

    @property
    def length_codes(self) -> np.ndarray:
        """[N] int64: twice the tokens of A and B of each, and one more where there is a B."""
        return 2 * self.text_lengths + self.has_b


class KnownLengths(Protocol):
    """Samples of which the lengths are known, at least. N samples."""

    @property
    def length_codes(self) -> np.ndarray:
        """[N], unsigned or int64: twice the tokens of A and B of each, and one more where there is a B."""


class _PassSlice(NamedTuple):
    """The samples of one pass over one store that an epoch uses: positions [first, first + size) of its shuffle."""

    store: int
    pass_number: int  # of passes in parts: of the part, counted over all passes
    first: int
    size: int
    spans: np.ndarray  # [all of the pass] SAMPLE


class Part(NamedTuple):
    """A pass over a store, or one of the parts of passes, counted over all of them."""

    store: int
    number: int
    parts: int  # in a pass; 1: it is a pass


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
            _as_bytes(samples.spans)[rows] = _as_bytes(part.spans).take(sample)
        return samples

    def length_codes_at(self, positions: np.ndarray) -> np.ndarray:
        """Return [N] int64 for each sample twice the tokens of A and B, and one more where there is a B."""
        codes = np.empty(len(positions), np.int64)
        for rows, part, sample in self._found(positions):
            spans = _as_bytes(part.spans).take(sample).view(SAMPLE)
            b_length = spans["b_length"].astype(np.int64)
            codes[rows] = 2 * (spans["a_length"] + b_length) + (b_length > 0)
        return codes

    def _found(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, _PassSlice, np.ndarray]]:
        """Yield for each slice which of the positions [N], by index, are in it, and their samples."""
        # Position -> place in the slices, laid end to end -> sample of its pass: two shuffles, so that neither the
        # order of stores nor that of documents is seen.
        place = feistel_permutation(positions, self.size, _shuffle_key(self.seed, self.number, _EPOCH_ORDER))
        ends = np.cumsum([part.size for part in self.slices])
        owner = np.searchsorted(ends, place, side="right")
        shift = np.array([part.first + part.size for part in self.slices]) - ends
        sample = feistel_permutations(
            place + shift[owner],
            owner,
            [len(part.spans) for part in self.slices],
            [_shuffle_key(self.seed, part.store, part.pass_number, _PASS_ORDER) for part in self.slices],
        )
        for index, part in enumerate(self.slices):
            rows = (owner == index).nonzero()[0]
            if len(rows):
                yield rows, part, sample[rows]


@lru_cache(maxsize=256)
def _shuffle_key(*key: int) -> int:
    """Return the key of a shuffle, asked for again and again."""
    return int(random_bits(*key)[0])


def _as_bytes(spans: np.ndarray) -> np.ndarray:
    """Return SAMPLEs [N] as items without fields, of which numpy copies many in a tenth of the time."""
    return spans.view(f"V{SAMPLE.itemsize}")


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
        node: NodeRanks = NodeRanks(),  # noqa: B008 - immutable
    ):
        """`node`: the ranks that make the parts of a window together."""
        self.stores, self.passes_per_epoch = tuple(stores), tuple(passes_per_epoch)
        self.seq_len, self.objective, self.seed, self.held_out = seq_len, objective, seed, held_out
        self._node = node
        sentences = [store.sentences for store in self.stores]
        # What is held out is a small part of any store, and the same few samples of it are taken again and again.
        is_large = sum(sentences) > LARGE_SENTENCES and not held_out
        weighted = sum(passes * count for passes, count in zip(self.passes_per_epoch, sentences, strict=True))
        self.windows = max(1, math.ceil(weighted / WINDOW_SENTENCES)) if is_large else 1  # in an epoch
        self._parts = [
            min(len(store.shards), ceil_div(count, PART_SENTENCES)) if is_large else 1
            for store, count in zip(self.stores, sentences, strict=True)
        ]
        self._passes: dict[Part, np.ndarray] = {}
        self._ahead: threading.Thread | None = None
        self._abandoned = threading.Event()
        shards = (shard for store in stores for shard in store.shards)
        if not any(((shard.document_flags & HELD_OUT > 0) == held_out).any() for shard in shards):
            kind = "held-out" if held_out else "training"
            raise InputError(f"{', '.join(str(store.folder) for store in self.stores)}: no {kind} text")

    @property
    def settings(self) -> tuple[Any, ...]:
        """All that the samples of its epochs depend on, but for the number of the epoch."""
        stores = tuple(
            (store.identity, passes) for store, passes in zip(self.stores, self.passes_per_epoch, strict=True)
        )
        return (stores, self.held_out, self.seq_len, self.objective, self.seed, VERSION)

    def epoch(self, number: int, window: int = 0) -> Epoch:
        """Return the index of epoch `number` = 0, 1, ..., or of one of its windows, 1 to `windows`.

        Raises
        ------
        InputError: where nsp has only one document.
        """
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None
        needed = self._needed(number, window)
        self._make_together(needed)
        slices = []
        for part, begin, end in needed:
            spans = self._spans(part)
            first, last = round(begin * len(spans)), round(end * len(spans))
            slices.append(_PassSlice(part.store, part.number, first, last - first, spans))
        # The next epoch may begin with what is left of a pass; older passes never come back.
        self._passes = {part: self._passes[part] for part, _, _ in needed}
        index = number * self.windows + window - 1 if window else number
        return Epoch(tuple(slices), sum(part.size for part in slices), self.seed, index)

    def after(self, number: int, window: int = 0) -> tuple[int, int]:
        """Return the epoch and window that follow. A run of an older version ends its epoch without windows."""
        if self.windows == 1:
            return number + 1, 0
        return (number, window + 1) if 0 < window < self.windows else (number + 1, 1)

    def prefetch_epoch(self, number: int, window: int = 0) -> None:
        """Begin to make what `epoch(number, window)` will need, in a thread."""
        if self._ahead is None:
            self._ahead = threading.Thread(target=self._make_ahead, args=(number, window), name="index")
            self._ahead.start()

    def _needed(self, number: int, window: int) -> list[tuple[Part, float, float]]:
        """Return which passes, or parts of them, an epoch or a window needs, each with the shares of its samples where
        they begin and end there."""
        found = []
        windows, index = (self.windows, number * self.windows + window - 1) if window else (1, number)
        for store, passes in enumerate(self.passes_per_epoch):
            # Weight 2.5: epoch 0 has passes 0, 1 and the first half of 2, epoch 1 its second half, 3 and 4.
            # In 8 parts and 4 windows, the first window has parts 0 to 4 of pass 0, the second 5 to 7, and 0, 1 of 1.
            parts = self._parts[store] if window else 1
            begin, end = index * (passes * parts / windows), (index + 1) * (passes * parts / windows)
            found += [
                (Part(store, part, parts), max(begin - part, 0.0), min(end - part, 1.0))
                for part in range(int(begin), math.ceil(end))
            ]
        return found

    def abandon(self) -> None:
        """No more epochs are needed: what is being built is given up."""
        self._abandoned.set()
        if self._ahead is not None:
            self._ahead.join()

    def _make_ahead(self, number: int, window: int) -> None:
        with suppress(BuildAbandonedError):
            needed = self._needed(number, window)
            self._make_together(needed)
            for part, _, _ in needed:
                self._spans(part)

    def _make_together(self, needed: Sequence[tuple[Part, float, float]]) -> None:
        """Make parts that nobody makes, each rank of the node beginning with another one; what others make is left."""
        if self._node.count > 1 and len(needed) > 1:
            begin = self._node.index * len(needed) // self._node.count
            for part, _, _ in (*needed[begin:], *needed[:begin]):
                self._spans(part, waits=False)

    def _check_wanted(self) -> None:
        """Called again and again by what takes long: a thread must not outlive the program's end for it."""
        if self._abandoned.is_set() or not threading.main_thread().is_alive():
            raise BuildAbandonedError

    def _spans(self, part: Part, *, waits: bool = True) -> np.ndarray:
        """Return the samples of a pass over a store, or a part of one, from memory, the cache on disk, or made now.
        Unless it `waits`, WAITING where another process makes them."""
        if part in self._passes:
            return self._passes[part]
        store, settings = self.stores[part.store], (self.held_out, self.seq_len, self.objective, self.seed, VERSION)
        in_window = ceil_div(math.ceil(self.passes_per_epoch[part.store] * part.parts), self.windows) + 1
        made = cached(
            (store.identity, *settings) if part.parts == 1 else (store.identity, *settings, part.store, part.parts),
            part.number,
            lambda: build_index(
                Sentences.of(store, self.held_out, self._shards_of(part)),
                seq_len=self.seq_len,
                objective=self.objective,
                seed=self.seed,
                pass_number=part.number,
                check_wanted=self._check_wanted,
            ),
            self._check_wanted,
            kept=KEPT_PASSES if part.parts == 1 else KEPT_WINDOWS * in_window,
            waits=waits,
        )
        if made is not WAITING:
            self._passes[part] = made
        return made

    def _shards_of(self, part: Part) -> list[int] | None:
        """Return the shards of a part, by index; None for all."""
        if part.parts == 1:
            return None
        # 10 shards in 4 parts: of those in a random order the first 2, the next 3, 2 and 3.
        count, (pass_number, number) = len(self.stores[part.store].shards), divmod(part.number, part.parts)
        key = _shuffle_key(self.seed, part.store, pass_number, _SHARD_ORDER)
        order = feistel_permutation(np.arange(count), count, key)
        return sorted(order[number * count // part.parts : (number + 1) * count // part.parts].tolist())
