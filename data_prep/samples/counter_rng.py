"""A counter-based generator: random numbers as pure functions of what is drawn, never of who draws it or when.

    random_bits(seed, epoch, sample, position)   the same 64 bits on any rank, with any number of workers, any restart
    fold_in(bits, part)                          random_bits(..., part), where bits are random_bits(...)
    feistel_permutation(positions, size, key)    a shuffle that is evaluated where it is needed; nothing is stored

Every function takes and returns arrays: one call draws for a whole batch. The hash is the finaliser of SplitMix64
(Steele, Lea and Flood 2014), chained over the parts of the key; the shuffle is a four-round Feistel network with cycle
walking (Black and Rogaway 2002).
"""

from functools import lru_cache

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 4
FEW = 32  # elements that are shuffled one by one: a dozen calls of numpy take longer


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser, a bijection of 64 bits; overwrites x."""
    x += _GOLDEN
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= _MIX_1
    x ^= np.right_shift(x, np.uint64(27), out=shifted)
    x *= _MIX_2
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x


def random_bits(*key: int | np.ndarray) -> np.ndarray:
    """Return 64 random bits, uint64, for every element of the broadcast key."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state ^ np.asarray(part).astype(np.uint64))
    return state


def fold_in(bits: np.ndarray, part: int | np.ndarray) -> np.ndarray:
    """Return `random_bits(*key, part)`, where `bits` are `random_bits(*key)`, at the cost of one hash."""
    return _mix(bits ^ np.asarray(part).astype(np.uint64))


def uniform(bits: np.ndarray) -> np.ndarray:
    """Return bits as float64, uniform in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def randint(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Return bits as int64, uniform in [0, bound); the bias is bound / 2**64."""
    return (bits % np.asarray(bound).astype(np.uint64)).astype(np.int64)


def feistel_permutation(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """Return the element of a pseudo-random permutation of range(size) at each position. int64 in, int64 out.

    Costs about 20 ns per element in bulk; a call on few elements costs its overhead, so ask for many at once.
    """
    # Of range(1000): a number has 10 bits, the network swaps halves of 5.
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    rounds, mask = _round_tables(key, half), (1 << half) - 1

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for table in rounds:
            left ^= table.take(right)
            left, right = right, left
        left <<= half
        left |= right
        return left

    def walk(x: int) -> int:
        while x >= size:
            left, right = x >> half, x & mask
            for table in rounds:
                left, right = right, left ^ table.item(right)
            x = left << half | right
        return x

    # That permutes range(1024). What falls on 1000 and above goes round once more: its cycle comes back below.
    out = encrypt(np.asarray(positions, np.int64))
    outside = (out >= size).nonzero()[0]
    while len(outside) > FEW:
        out[outside] = again = encrypt(out[outside])
        outside = outside[again >= size]
    for index in outside.tolist():
        out[index] = walk(out.item(index))
    return out


@lru_cache(maxsize=32)
def _round_tables(key: int, half: int) -> tuple[np.ndarray, ...]:
    """Return [2 ** half] int64 for each round: what it does to one half of a number, for each value of the other half.

    Few enough to be drawn once: for a billion elements 32,768 a round.
    """
    values, mask = np.arange(1 << half, dtype=np.uint64), np.uint64((1 << half) - 1)
    return tuple((_mix(values ^ random_bits(key, index)) & mask).view(np.int64) for index in range(_ROUNDS))
