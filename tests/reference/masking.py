"""BERT's masking (Devlin et al. 2019, section 3.1), one token at a time, with the draws of data_prep/masking.py."""

from data_prep.draws import below, draw, fraction

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1


def masked_sample(
    ids: list[int], is_special: list[bool], key: int, mask_id: int, vocab_size: int, rate: float
) -> tuple[list[int], list[int]]:
    """The corrupted ids and the positions to predict."""
    candidates = [position for position, special in enumerate(is_special) if not special]
    count = min(max(round(len(ids) * rate), 1), len(candidates))
    scores = {position: int(draw(int(draw(key, position)[0]), 0)[0]) for position in candidates}
    chosen = sorted(sorted(candidates, key=lambda position: scores[position])[:count])
    corrupted = list(ids)
    for position in chosen:
        token_key = int(draw(key, position)[0])
        action = float(fraction(draw(token_key, 1))[0])
        if action < MASK_SHARE:
            corrupted[position] = mask_id
        elif action < MASK_SHARE + RANDOM_SHARE:
            corrupted[position] = int(below(draw(token_key, 2), vocab_size)[0])
    return corrupted, chosen
