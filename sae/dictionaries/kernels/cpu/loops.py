"""How the loops of this folder are compiled, and the k-th largest of a row.

Floats are ranked through integer keys that order like them: the 32 bits b of a float, with the lower 31 flipped where b is negative.
Comparing integers, every loop here ends on any input, NaN included.
"""

import inspect
from typing import Any

import numba
import numpy as np
from torch import Tensor

_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}


def compiled(function: Any) -> Any:
    """Compiled once and kept on disk; the interpreter's lock is released, sums may be reordered, x / 0 is infinite (a check for it would
    keep a loop from being vectorised), NaN keeps its meaning.
    """
    # A type checker that wraps every function of a package must not come between a loop and its compiler.
    return numba.njit(inspect.unwrap(function), **_OPTIONS, fastmath={"reassoc", "contract", "nsz", "arcp", "afn"})


def compiled_finite(function: Any) -> Any:
    """The same for loops that are vectorised only if NaN may be ignored."""
    return numba.njit(inspect.unwrap(function), **_OPTIONS, fastmath=True)


LOWEST_KEY = np.int32(-(2**31))
"""Not above any key."""


def arrays(*tensors: Tensor) -> list[Any]:
    """The tensors' memory as numpy arrays, copied only where it is not contiguous."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@compiled
def order_keys(values: np.ndarray, n: int, keys: np.ndarray) -> int:
    """keys[i] orders like values[i], for the first n entries; `values` is float32 seen as int32.

    Further keys are set to the lowest there is, up to a multiple of 64, which is returned: loops over that many have no remainder to do
    one by one. `keys` must have room for them.
    """
    for i in range(n):
        bits = values[i]
        keys[i] = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
    padded = (n + 63) & ~63
    for i in range(n, padded):
        keys[i] = LOWEST_KEY
    return padded


@compiled
def kth_key(keys: np.ndarray, n: int, k: int) -> np.int32:
    """A key T such that at least k of the first n keys are >= T and fewer than k are > T, or exactly k are >= T; k in 1..n.

    Bisection between the smallest and the largest key; counting the keys above the middle is a vector loop.
    """
    low = high = keys[0]
    for i in range(n):
        low = min(low, keys[i])
        high = max(high, keys[i])
    # At least k keys are >= low; fewer than k are > high.
    while low < high:
        middle = np.int32((np.int64(low) + np.int64(high) + 1) >> 1)
        count = np.int32(0)
        for i in range(n):
            count = np.int32(count + np.int32(keys[i] >= middle))  # numba would add in 64 bits
        if count == k:
            return middle
        if count > k:
            low = middle
        else:
            high = np.int32(middle - 1)
    return low
