"""Samples as token ids, end to end without padding, and parted among ranks.

indices = split_by_length(samples, count)       # which samples each rank, or micro-batch, takes
assembled = gather_tokens(stores, samples)     # [CLS] A [SEP] B [SEP] [CLS] A [SEP] ...
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_prep.samples.mixture import KnownLengths, Samples
from data_prep.store import Store


class Assembled(NamedTuple):
    """N samples as token ids, end to end. T tokens."""

    ids: np.ndarray  # [T] int64
    token_types: np.ndarray  # [T] int64: 1 in B and its [SEP], else 0
    is_special: np.ndarray  # [T] bool: [CLS] and [SEP]
    lengths: np.ndarray  # [N] int64, tokens of each sample


def split_by_length(samples: KnownLengths, count: int) -> np.ndarray:
    """Return indices of samples [count, N / count] so that each split has as many tokens as the others, nearly: the
    longest sample goes to the first split, the next one to the second, and after the last split back again.
    In each split the longest stands first."""
    # Lengths 9, 8, 7, 6, 5, 4 among two: 9 | 8, then 6 | 7, then 5 | 4.
    lengths = samples.length_codes >> 1
    shortness = lengths.max(initial=0) - lengths
    is_short = shortness.max(initial=0) < 1 << 16
    if is_short and len(lengths) <= 1 << 16:
        # One number for a sample, its shortness and then its index: 32 bits are what numpy sorts fastest.
        numbers = shortness.astype(np.uint32) << 16 | np.arange(len(lengths), dtype=np.uint32)
        numbers.sort()
        order = (numbers & 0xFFFF).astype(np.int64)
    else:
        # Of 16 bits it sorts by digits, which takes twice as long; of more, ten times.
        order = np.argsort(shortness.astype(np.uint16) if is_short else shortness, kind="stable")
    rounds = order.reshape(-1, count)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T


def gather_tokens(stores: tuple[Store, ...], samples: Samples) -> Assembled:
    """Return samples as [CLS] A [SEP] B [SEP], or [CLS] A [SEP] where there is no B, end to end."""
    lengths = samples.lengths
    stops = np.cumsum(lengths)
    starts = stops - lengths
    a_stops = starts + 1 + samples.spans["a_length"]
    # Special tokens first; what is -1 still is of A or B.
    special = stores[0].special_ids
    ids = np.full(int(stops[-1]), -1, np.int64)
    ids[starts] = special["cls"]
    ids[a_stops] = special["sep"]
    ids[stops - 1] = special["sep"]
    is_special = ids >= 0
    for store, rows, begins, sizes in _spans_by_store(stores, samples, is_special):
        ids[rows] = store.read_spans(begins, sizes)
    # Zeros for [CLS] A [SEP], ones for B [SEP]; no ones without a B.
    ones = stops - a_stops - 1
    token_types = np.repeat(np.tile([0, 1], len(ones)), np.array([lengths - ones, ones]).T.ravel())
    return Assembled(ids, token_types, is_special, lengths)


def word_continuations(stores: tuple[Store, ...], samples: Samples, assembled: Assembled) -> np.ndarray:
    """Return [T] bool: which tokens of assembled samples go on with the word of the token before them."""
    if all(store.shards[0].continues is None for store in stores):  # stores of a mixture have one vocabulary
        return stores[0].continues[assembled.ids]
    found = np.zeros(len(assembled.ids), bool)
    for store, rows, starts, sizes in _spans_by_store(stores, samples, assembled.is_special):
        found[rows] = store.read_continues(assembled.ids[rows], starts, sizes)
    return found


def _spans_by_store(
    stores: tuple[Store, ...], samples: Samples, is_special: np.ndarray
) -> Iterator[tuple[Store, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield each store that is drawn from, which rows [T] bool are its tokens, and its spans: starts, lengths."""
    spans = samples.spans
    starts = np.array([spans["a_start"], spans["b_start"]]).T  # [N, 2]
    sizes = np.array([spans["a_length"], spans["b_length"]], np.int64).T
    for index in np.flatnonzero(np.bincount(samples.store)):
        is_drawn = samples.store == index
        is_span = is_drawn[:, None] & (sizes > 0)
        yield stores[index], np.repeat(is_drawn, samples.lengths) & ~is_special, starts[is_span], sizes[is_span]
