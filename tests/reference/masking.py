"""Masking one token at a time, with the draws of data_prep/samples/masking.py: BERT's (Devlin et al. 2019,
section 3.1), by whole words, and by runs of words (SpanBERT's, MacBERT's)."""

import numpy as np

from data_prep.samples.counter_rng import fold_in

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
LENGTHS = {1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1}  # of MacBERT's n-grams
ENDS = {  # the chance that a run of so many words has no further one
    "span": lambda size: 1.0 if size == 10 else 0.26,
    "ngram": lambda size: LENGTHS[size] / sum(share for length, share in LENGTHS.items() if length >= size),
}


def _more(key: int, part: int) -> int:
    return int(fold_in(np.array([key], np.uint64), part)[0])


def _chance(bits: int) -> float:
    return (bits >> 11) * 2.0**-53


def units_of(ids: list[int], is_special: list[bool], key: int, unit: str, continues: list[bool]) -> list[list[int]]:
    """Positions that are chosen together."""
    words: list[list[int]] = []
    for position in range(len(ids)):
        if is_special[position]:
            words.append([])  # a border
        elif unit != "token" and continues[position] and words[-1]:
            words[-1].append(position)
        else:
            words.append([position])
    if unit not in ENDS:
        return [word for word in words if word]
    runs: list[list[int]] = []
    size = 0  # words in the last run; 0: a new one begins
    for word in words:
        if not word:
            size = 0
            continue
        if size:
            runs[-1] += word
        else:
            runs.append(list(word))
        size += 1
        if _chance(_more(_more(key, word[0]), 2)) < ENDS[unit](size):
            size = 0
    return runs


def masked_sample(
    ids: list[int],
    is_special: list[bool],
    key: int,
    mask_id: int,
    vocab_size: int,
    rate: float,
    unit: str = "token",
    continues: list[bool] = [],  # noqa: B006
) -> tuple[list[int], list[int]]:
    """The corrupted ids and the positions to predict."""
    units = units_of(ids, is_special, key, unit, continues)
    count = min(max(round(len(ids) * rate), 1), len(ids) - sum(is_special))
    drawn = [position for members in sorted(units, key=lambda members: _more(key, members[0])) for position in members]
    begins = {position: members[0] for members in units for position in members}
    chosen = sorted(drawn[:count])
    corrupted = list(ids)
    for position in chosen:
        bits = _more(_more(key, position), 0)
        action = _chance(_more(_more(key, begins[position]), 1) if unit in ENDS else bits)
        if action < MASK_SHARE:
            corrupted[position] = mask_id
        elif action < MASK_SHARE + RANDOM_SHARE:
            corrupted[position] = (bits & 0xFFFFFFFF) * vocab_size >> 32
    return corrupted, chosen
