"""The samples of an epoch in training order, over one store or several with weights.

    stores, weights -> Mixture.epoch(e) -> Epoch.look_up(positions): the samples of an epoch in training order
    samples         -> assemble(...) -> [CLS] A [SEP] B [SEP] as token ids, end to end without padding

Weights are passes: a store of weight 2.5 enters an epoch two and a half times, each pass with pairs and masks of its
own; the half that one epoch leaves is what the next one begins with. A pass is index.py's `build`, made once a node:
index_cache.py keeps it on disk for all ranks and for a run that continues.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from data_prep.cli import InputError
from data_prep.samples.draws import draw, permute
from data_prep.samples.index import SAMPLE, VERSION, Objective, Sentences, build
from data_prep.samples.index_cache import cached
from data_prep.store import HELD_OUT, Store

_ORDER, _STORE = 2, 3  # what is drawn, as the last part of a key


class Abandoned(Exception):  # noqa: N818
    """Nobody waits for this any more."""


class Picked(NamedTuple):
    """Samples in training order, with what identifies each of them. N samples."""

    store: np.ndarray  # [N] int64, which store of the mixture
    key: np.ndarray  # [N] uint64, the sample's own key for draws (masks), a function of (seed, store, pass, number)
    samples: np.ndarray  # [N] SAMPLE


class _Part(NamedTuple):
    """The samples of one pass over one store that an epoch uses: positions [first, first + size) of its shuffle."""

    store: int
    pass_number: int
    first: int
    size: int
    samples: np.ndarray


class Epoch(NamedTuple):
    """One epoch of a mixture: its samples are numbered 0 .. size - 1 in the order in which they are trained on."""

    parts: tuple[_Part, ...]
    size: int
    seed: int
    number: int

    def look_up(self, positions: np.ndarray) -> Picked:
        """The samples at these positions [N] of the epoch's order."""
        place = permute(positions, self.size, int(draw(self.seed, self.number, _ORDER)[0]))
        picked = Picked(np.empty(len(place), np.int64), np.empty(len(place), np.uint64), np.empty(len(place), SAMPLE))
        bounds = np.cumsum([part.size for part in self.parts])
        owner = np.searchsorted(bounds, place, side="right")
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(owner == number)
            if not len(rows):
                continue
            within = place[rows] - (bounds[number] - part.size) + part.first
            shuffle = int(draw(self.seed, part.store, part.pass_number, _STORE)[0])
            sample = permute(within, len(part.samples), shuffle)
            picked.store[rows] = part.store
            picked.key[rows] = draw(self.seed, part.store, part.pass_number, sample)
            picked.samples[rows] = part.samples[sample]
        return picked


def smoothed(weights: Sequence[float], tokens: Sequence[int], temperature: float) -> list[float]:
    """Passes an epoch of stores: their shares are made more equal, an epoch stays as long.

    The share of a store, weight times tokens, goes to the power of `temperature`, as for the languages of multilingual
    BERT (0.7) and XLM-R (0.3; Conneau et al. 2020, section 3.1).
    """
    if temperature == 1:
        return list(weights)
    sizes = [weight * count for weight, count in zip(weights, tokens, strict=True)]
    powers = [size**temperature for size in sizes]
    return [power / sum(powers) * sum(sizes) / count for power, count in zip(powers, tokens, strict=True)]


class Mixture:
    """Weighted stores as one stream of samples. Stores of one mixture share their tokenizer."""

    def __init__(
        self,
        stores: Sequence[Store],
        weights: Sequence[float],  # passes an epoch
        seq_len: int,
        objective: Objective,
        seed: int,
        held_out: bool = False,
    ):
        self.stores, self.weights = tuple(stores), tuple(weights)
        self.seq_len, self.objective, self.seed, self.held_out = seq_len, objective, seed, held_out
        self._passes: dict[tuple[int, int], np.ndarray] = {}
        self._ahead: threading.Thread | None = None
        self._abandoned = threading.Event()
        flags = np.concatenate([shard.document_flags for store in stores for shard in store.shards])
        if not ((flags & HELD_OUT > 0) == held_out).any():
            kind = "held-out" if held_out else "training"
            raise InputError(f"{', '.join(str(store.folder) for store in self.stores)}: no {kind} text")

    def epoch(self, number: int) -> Epoch:
        """The index of epoch `number` = 0, 1, ...

        Raises
        ------
        InputError: where nsp has only one document.
        """
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None
        parts = []
        for store, weight in enumerate(self.weights):
            begin, end = number * weight, (number + 1) * weight
            for pass_number in range(int(begin), math.ceil(end)):
                samples = self._samples(store, pass_number)
                first = round(max(begin - pass_number, 0) * len(samples))
                last = round(min(end - pass_number, 1) * len(samples))
                parts.append(_Part(store, pass_number, first, last - first, samples))
        # The next epoch may begin with what is left of a pass; older passes never come back.
        self._passes = {key: self._passes[key] for key in {(part.store, part.pass_number) for part in parts}}
        return Epoch(tuple(parts), sum(part.size for part in parts), self.seed, number)

    def build_ahead(self, number: int) -> None:
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
        with suppress(Abandoned):
            for store, weight in enumerate(self.weights):
                for pass_number in range(int(number * weight), math.ceil((number + 1) * weight)):
                    self._samples(store, pass_number)

    def _go_on(self) -> None:
        """Called again and again by what takes long: a thread must not outlive the program's end for it."""
        if self._abandoned.is_set() or not threading.main_thread().is_alive():
            raise Abandoned

    def _samples(self, store: int, pass_number: int) -> np.ndarray:
        key = (store, pass_number)
        if key not in self._passes:
            settings = (self.held_out, self.seq_len, self.objective, self.seed, VERSION)
            self._passes[key] = cached(
                (self.stores[store].identity, *settings),
                pass_number,
                lambda: build(
                    Sentences.of(self.stores[store], self.held_out),
                    self.seq_len,
                    self.objective,
                    self.seed,
                    pass_number,
                    self._go_on,
                ),
                self._go_on,
            )
        return self._passes[key]


def deal(picked: Picked, count: int) -> np.ndarray:
    """Numbers of samples [count, N / count] of equal hands, each with as many tokens as the others, nearly: the longest
    sample to the first hand, the next one to the second, and after the last hand back again."""
    lengths = picked.samples["a_length"].astype(np.int64) + picked.samples["b_length"]
    rounds = np.argsort(-lengths, kind="stable").reshape(-1, count)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T


def assemble(stores: tuple[Store, ...], picked: Picked) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Token ids of samples: [CLS] A [SEP] B [SEP], or [CLS] A [SEP] where there is no B, end to end.

    Returns ids [T] int64, token types [T] int64 (1 in B and its [SEP]), is_special [T] bool, lengths [N] int64.
    """
    a, b = picked.samples["a_length"].astype(np.int64), picked.samples["b_length"].astype(np.int64)
    lengths = a + b + np.where(b > 0, 3, 2)
    stops = np.cumsum(lengths)
    starts = stops - lengths
    special = stores[0].special_ids
    ids = np.full(int(stops[-1]), -1, np.int64)
    ids[starts] = special["cls"]
    ids[starts + a + 1] = special["sep"]
    ids[stops - 1] = special["sep"]
    is_special = ids >= 0

    for store, places, begins, sizes in _spans(stores, picked, is_special):
        ids[places] = store.read_spans(begins, sizes)

    in_b = np.zeros(len(ids) + 1, np.int64)
    in_b[starts + a + 2] += 1
    in_b[stops] -= 1
    return ids, np.cumsum(in_b[:-1]), is_special, lengths


def continuing(stores: tuple[Store, ...], picked: Picked, ids: np.ndarray, is_special: np.ndarray) -> np.ndarray:
    """[T] bool: which tokens of assembled samples go on with the word before them."""
    if all(store.shards[0].continues is None for store in stores):  # stores of a mixture have one vocabulary
        return stores[0].continues[ids]
    found = np.zeros(len(ids), bool)
    for store, places, starts, sizes in _spans(stores, picked, is_special):
        found[places] = store.read_continues(ids[places], starts, sizes)
    return found


def _spans(
    stores: tuple[Store, ...], picked: Picked, is_special: np.ndarray
) -> Iterator[tuple[Store, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each store that is drawn from: where its tokens lie among the assembled, and its spans: starts and lengths."""
    starts = np.stack([picked.samples["a_start"], picked.samples["b_start"]], 1)
    sizes = np.stack([picked.samples["a_length"], picked.samples["b_length"]], 1).astype(np.int64)
    body = np.flatnonzero(~is_special)
    owner = np.repeat(picked.store, sizes.sum(1))
    for number in np.unique(picked.store):
        rows = picked.store == number
        yield stores[number], body[owner == number], starts[rows].ravel(), sizes[rows].ravel()
