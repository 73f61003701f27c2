"""Random numbers as pure functions of what is drawn, never of who draws it or when.

    draw(seed, epoch, sample, position)     the same 64 bits on any rank, with any number of workers, after any restart
    permute(positions, size, key)           a shuffle that is evaluated where it is needed; nothing is stored

Every function takes and returns arrays: one call draws for a whole batch. The hash is the finaliser of SplitMix64
(Steele, Lea and Flood 2014), chained over the parts of the key; the shuffle is a four-round Feistel network with cycle
walking (Black and Rogaway 2002).
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 4


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of 64 bits; overwrites x."""
    x += _GOLDEN
    x ^= x >> np.uint64(30)
    x *= _MIX_1
    x ^= x >> np.uint64(27)
    x *= _MIX_2
    x ^= x >> np.uint64(31)
    return x


def draw(*key: int | np.ndarray) -> np.ndarray:
    """64 random bits, uint64, for every element of the broadcast key."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state ^ np.asarray(part).astype(np.uint64))
    return state


def draw_more(state: np.ndarray, part: int | np.ndarray) -> np.ndarray:
    """`draw(*key, part)`, where `state` is `draw(*key)`: one more part of a key, at the cost of one hash."""
    return _mix(state ^ np.asarray(part).astype(np.uint64))


def fraction(bits: np.ndarray) -> np.ndarray:
    """Bits as float64, uniform in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def below(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Bits as int64, uniform in [0, bound); the bias is bound / 2**64."""
    return (bits % np.asarray(bound).astype(np.uint64)).astype(np.int64)


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """Element of a pseudo-random permutation of range(size) at each position. int64 in, int64 out.

    Costs about 100 ns an element in bulk; a call on few elements costs its overhead, so ask for thousands at once.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [int(draw(key, number)[0]) for number in range(_ROUNDS)]

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> shift, x & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ np.uint64(round_key)) & mask)
        return (left << shift) | right

    out = encrypt(np.asarray(positions).astype(np.uint64))
    while len(outside := np.flatnonzero(out >= np.uint64(size))):
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)
