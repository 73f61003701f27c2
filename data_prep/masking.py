"""Masked language modelling: which tokens are hidden and by what. numpy, pure, keyed by sample.

BERT's rule (Devlin et al. 2019, section 3.1): of the tokens of a sample 15 % are to be predicted, [CLS] and [SEP]
never; of these 80 % become [MASK], 10 % a random token, 10 % stay. The count of a sample is exact, round(15 %) of its
length and at least 1, as in google-research/bert, so that a step knows how many tokens it predicts before it reads any.
"""

from typing import NamedTuple

import numpy as np

from data_prep.draws import below, draw, fraction

_CHOICE, _ACTION, _REPLACEMENT = range(3)
_POSITION_BITS = 16  # room for the position in a sample beside its score in one uint64


class Masking(NamedTuple):
    """How much is masked and what becomes of it."""

    rate: float = 0.15  # share of a sample's tokens that are predicted
    mask: float = 0.8  # share of these that become [MASK]
    random: float = 0.1  # share of these that become a random token; the rest stay as they are


def mask_counts(lengths: np.ndarray, specials: np.ndarray, rate: float) -> np.ndarray:
    """Tokens to predict in samples of `lengths` [N] tokens, of which `specials` [N] are [CLS] and [SEP]."""
    return np.minimum(np.maximum(np.rint(lengths * rate), 1), lengths - specials).astype(np.int64)


def mask_tokens(
    ids: np.ndarray,
    is_special: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    mask_id: int,
    vocab_size: int,
    masking: Masking = Masking(),  # noqa: B008 - immutable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corrupt samples that lie end to end.

    ids [T] int64, is_special [T] bool, lengths [N], keys [N] uint64 (one a sample).
    Returns the corrupted ids [T], the rows [M] to predict in ascending order, and their true ids [M].
    """
    stops = np.cumsum(lengths)
    starts = stops - lengths
    sample = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(ids)) - starts[sample]
    token_keys = draw(keys[sample], position)

    # The tokens with the smallest scores of a sample are masked. Sample, score and position share one integer, so that
    # one plain sort, several times faster than argsort, ranks all samples.
    sample_bits = max(int(len(lengths) - 1).bit_length(), 1)
    score = draw(token_keys, _CHOICE) >> np.uint64(sample_bits + _POSITION_BITS + 1)
    score |= is_special.astype(np.uint64) << np.uint64(63 - sample_bits - _POSITION_BITS)
    order = sample.astype(np.uint64) << np.uint64(64 - sample_bits) if len(lengths) > 1 else np.zeros(1, np.uint64)
    order = order | (score << np.uint64(_POSITION_BITS)) | position.astype(np.uint64)
    order.sort()
    specials = np.add.reduceat(is_special, starts, dtype=np.int64)
    chosen = position < mask_counts(lengths, specials, masking.rate)[sample]
    rows = (order[chosen] & np.uint64((1 << _POSITION_BITS) - 1)).astype(np.int64) + starts[sample[chosen]]
    rows.sort()

    labels = ids[rows]
    action = fraction(draw(token_keys[rows], _ACTION))
    replacement = below(draw(token_keys[rows], _REPLACEMENT), vocab_size)
    corrupted = ids.copy()
    corrupted[rows] = np.where(
        action < masking.mask, mask_id, np.where(action < masking.mask + masking.random, replacement, labels)
    )
    return corrupted, rows, labels
