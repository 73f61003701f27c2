"""Where the output bias of a new model may begin: at what it would learn first, how frequent each token is.

    unigram_bias(stores, passes) -> [V] float32          exp(bias) is in proportion to the frequency of a target

A model with zeros there predicts every entry alike, a loss of ln(V), and its first hundreds of steps teach it this
bias and little else. With it the first loss is the entropy of single tokens.
"""

from collections.abc import Sequence

import numpy as np

from data_prep.store import Store

MOST_TOKENS = 200_000_000  # of a store that are counted, in a second or two; of a larger one, windows all over it
NEVER_TARGETS = ("pad", "cls", "sep", "mask")


def unigram_bias(stores: Sequence[Store], passes: Sequence[float]) -> np.ndarray:
    """Return the log frequency [V] float32 of each entry among the tokens that training asks for, less its mean.

    stores: of one vocabulary; passes: over each of them per epoch, which say how much it counts
    """
    # Each entry is met once more than it was, so that none is impossible: special tokens once.
    uses = np.zeros(stores[0].vocab_size)
    for store, weight in zip(stores, passes, strict=True):
        counts = store.training_token_uses(MOST_TOKENS)
        counts[[store.special_ids[name] for name in NEVER_TARGETS]] = 0
        uses += weight * (counts + 1)
    # Softmax ignores what all entries share, and without it the biases are small: in 16 bit a bias of 16 has steps of
    # 1/8, one of 2 steps of 1/64.
    logs = np.log(uses)
    return (logs - logs.mean()).astype(np.float32)
