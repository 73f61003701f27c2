"""Division that rounds up, of whole numbers and of arrays of them."""

from typing import TypeVar

import numpy as np

N = TypeVar("N", int, np.ndarray)


def ceil_div(dividend: N, divisor: int) -> N:
    """Return dividend / divisor, rounded up: ceil_div(7, 3) = 3."""
    return -(-dividend // divisor)
