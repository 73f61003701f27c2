"""Masked language modelling: which tokens are hidden and by what. numpy, pure, keyed by sample.

BERT's rule (Devlin et al. 2019, section 3.1): of the tokens of a sample 15 % are to be predicted, [CLS] and [SEP]
never; of these 80 % become [MASK], 10 % a random token, 10 % stay. The count of a sample is exact, round(15 %) of its
length and at least 1, as in google-research/bert, so that a step knows how many tokens it predicts before it reads any.

`Masking.unit` says what is chosen together:

    token   every token by itself
    word    whole words: a word's pieces are hidden together (Cui et al. 2019)
    span    runs of whole words, 3.8 on average and at most 10 (SpanBERT: Joshi et al. 2020)
    ngram   runs of 1 to 4 whole words, in the proportion 4 : 3 : 2 : 1 (MacBERT: Cui et al. 2020; with [MASK], not with
            MacBERT's similar words)

Here the words of a sample are parted into runs beforehand and runs are drawn, so that none overlap; one draw of
80/10/10 serves a run. Units are drawn in a random order until the count of the sample is reached; the last one is cut
where it is reached, so that of the words of a sample at most one is hidden in part. tests/reference/masking.py has the
same rules for one sample at a time.
"""

from typing import Literal, NamedTuple

import numpy as np

from data_prep.samples.counter_rng import fold_in, uniform

_POSITION_BITS = 16  # for the position in a sample, below its score, in one uint64
_ACTION, _RUN_ACTION, _RUN_END = range(3)  # what is drawn for a token, as the last part of a key
MaskUnit = Literal["token", "word", "span", "ngram"]
# The chance that a run ends after its first word, after its second, ... if it did not end before. It never falls.
_RUN_ENDS: dict[MaskUnit, tuple[float, ...]] = {
    "span": (0.26,) * 9 + (1.0,),  # 3.8 words on average
    "ngram": (4 / 10, 3 / 6, 2 / 3, 1.0),
}


class Masking(NamedTuple):
    """How much is masked and what becomes of it."""

    rate: float = 0.15  # share of a sample's tokens that are predicted
    mask: float = 0.8  # share of these that become [MASK]
    random: float = 0.1  # share of these that become a random token; the rest stay as they are
    unit: MaskUnit = "token"  # what is chosen together; all but token need `continues`


class Masked(NamedTuple):
    """Corrupted samples, end to end. T tokens, M of them to predict."""

    ids: np.ndarray  # [T] int64
    rows: np.ndarray  # [M] int64, ascending: which tokens are to be predicted
    labels: np.ndarray  # [M] int64, their true ids


def mask_counts(lengths: np.ndarray, specials: np.ndarray, rate: float) -> np.ndarray:
    """Return how many tokens to predict in samples of `lengths` [N] tokens, `specials` [N] of them [CLS] and [SEP]."""
    return np.minimum(np.maximum(np.rint(lengths * rate), 1), lengths - specials).astype(np.int64)


def mask_tokens(
    ids: np.ndarray,
    is_special: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    *,
    mask_id: int,
    vocab_size: int,
    masking: Masking = Masking(),  # noqa: B008 - immutable
    continues: np.ndarray | None = None,
) -> Masked:
    """Corrupt samples that lie end to end.

    ids [T] int64, is_special [T] bool, lengths [N], keys [N] uint64 (one per sample), continues [T] bool: tokens that
    go on with the word of the token before them (assemble.word_continuations).
    """
    # A key of its own for every token, so that a sample is masked alike in any company.
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(ids)) - np.repeat(starts, lengths)
    token_keys = fold_in(np.repeat(keys, lengths), position)
    unit = None if masking.unit == "token" else _unit_rows(is_special, token_keys, masking.unit, continues)

    # A token's score is its key, or that of the token with which its unit begins: units are hidden together.
    counts = mask_counts(lengths, np.add.reduceat(is_special, starts, dtype=np.int64), masking.rate)
    rows = _smallest(token_keys if unit is None else token_keys[unit], is_special, position, lengths, counts)
    rows.sort()

    # Of one draw the highest 53 bits are the chance of 80/10/10, the lowest 32 the random token.
    labels = ids[rows]
    bits = fold_in(token_keys[rows], _ACTION)
    chance = uniform(bits if unit is None or masking.unit == "word" else fold_in(token_keys[unit[rows]], _RUN_ACTION))
    random_ids = ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(vocab_size) >> np.uint64(32)).astype(np.int64)
    corrupted = ids.copy()
    corrupted[rows] = np.where(
        chance < masking.mask, mask_id, np.where(chance < masking.mask + masking.random, random_ids, labels)
    )
    return Masked(corrupted, rows, labels)


def _smallest(
    scores: np.ndarray, is_special: np.ndarray, position: np.ndarray, lengths: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return rows of the `counts` [N] tokens of each sample with the smallest scores, in no particular order.

    Sample, score and position share one integer, so that one plain sort ranks all samples; and only tokens that can be
    among the smallest are sorted: those below a limit that hardly any sample needs to exceed. A sample that does is
    sorted whole.
    """
    # Of 128 tokens 19 are wanted, 15 %: scores are uniform, so about 19 of them are below .15 (and hardly ever fewer
    # than 19 below .15 + 3 sqrt(.15 / 128) = .25).
    share = counts / lengths
    limit = np.minimum(share + 3 * np.sqrt(share / lengths), 1 - 2.0**-53) * 2.0**64
    below = scores < np.repeat(limit.astype(np.uint64), lengths)
    below &= ~is_special
    starts = np.cumsum(lengths) - lengths
    candidates = np.add.reduceat(below, starts, dtype=np.int64)
    if (too_few := candidates < counts).any():
        below |= np.repeat(too_few, lengths) & ~is_special
        candidates = np.add.reduceat(below, starts, dtype=np.int64)
    found = np.flatnonzero(below)

    # A word for each candidate, so that sorting words sorts by sample, then by score, then by position:
    #
    #     | sample | highest bits of the score | position |
    #       s bits   64 - s - 16 bits            16 bits      s: as many as the number of samples needs
    #
    # The bits of the score that do not fit decide nothing: equal scores are ranked by position.
    sample_bits = max(int(len(counts) - 1).bit_length(), 1)
    words = scores[found]
    words >>= np.uint64(sample_bits + _POSITION_BITS)
    words <<= np.uint64(_POSITION_BITS)
    words |= position[found].view(np.uint64)
    words |= np.repeat(np.arange(len(counts), dtype=np.uint64) << np.uint64(64 - sample_bits), candidates)
    words.sort()
    # The first `counts` words of each sample are chosen. Of 5 and 6 candidates 2 and 3: words 0, 1 | 5, 6, 7.
    skipped = (np.cumsum(candidates) - candidates) - (np.cumsum(counts) - counts)
    chosen = words[np.arange(counts.sum()) + np.repeat(skipped, counts)]
    return (chosen & np.uint64((1 << _POSITION_BITS) - 1)).view(np.int64) + np.repeat(starts, counts)


def _unit_rows(
    is_special: np.ndarray, token_keys: np.ndarray, unit: MaskUnit, continues: np.ndarray | None
) -> np.ndarray:
    """Return [T] int64: the row of the token with which each token's word or run begins."""
    if continues is None:
        raise ValueError(f"masking by {unit} needs to know which tokens continue a word")
    # A word begins with a token that goes on with none, and behind a special token.
    begins = ~continues | is_special
    begins[1:] |= is_special[:-1]
    begins[0] = True
    if unit in _RUN_ENDS:
        words = np.flatnonzero(begins)
        chances = uniform(fold_in(token_keys[words], _RUN_END))
        begins = np.zeros_like(begins)
        begins[words[_run_begins(chances, is_special[words], _RUN_ENDS[unit])]] = True
    # begins 1 0 0 1 0 -> rows 0 0 0 3 0 -> the highest so far, 0 0 0 3 3.
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))


def _run_begins(chances: np.ndarray, is_special: np.ndarray, ends: tuple[float, ...]) -> np.ndarray:
    """Return [W] bool: which words begin a run. A run ends after its word number k where the word's chance is below
    ends[k].

    Where it is below the smallest of them, a run ends whatever came before: between such words all stretches are walked
    along at once.
    """
    begins = is_special.copy()
    begins[1:] |= is_special[:-1] | (chances[:-1] < ends[0])
    begins[0] = True
    first = np.flatnonzero(begins)
    stop = np.append(first[1:], len(begins)) - 1  # the last word of each stretch
    limits = np.array(ends)
    size = np.full(len(first), np.argmax(limits > ends[0]))  # words of the run so far; none ends at an earlier word
    at = first + size
    while len(at := at[left := at < stop]):
        stop, size = stop[left], size[left]
        is_end = chances[at] < limits[size]
        at = at + 1
        begins[at[is_end]] = True
        size = np.where(is_end, 0, size + 1)
    return begins
