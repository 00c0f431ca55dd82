"""Memory that is used again.

A fresh large array costs more than most work done on it: the system hands its pages out one by one as they are first touched, at about 2
GB/s where a copy runs at 30. `recycled` hands out arrays from blocks that earlier arrays have left.
"""

import math
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

SMALLEST_BYTES = 1 << 20
"""Smaller arrays come from the ordinary allocator."""
MAX_IDLE_BYTES = 4 << 30
"""Blocks that wait for use hold at most this much together; beyond it they go back to the system."""

_idle: dict[int, list[np.ndarray]] = defaultdict(list)


def recycled(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised CPU tensor. Its memory returns to the pool when the last tensor that uses it is gone."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < SMALLEST_BYTES:
        return torch.empty(shape, dtype=dtype)
    size = _rounded(n_bytes)
    try:
        block = _idle[size].pop()
    except IndexError:
        block = np.empty(size, np.uint8)
    lease = block[:n_bytes]
    weakref.finalize(lease, _give_back, size, block).atexit = False
    return torch.from_numpy(lease).view(dtype).view(shape)


def idle_bytes() -> int:
    """Bytes that wait for use."""
    return sum(size * len(blocks) for size, blocks in list(_idle.items()))


def _give_back(size: int, block: np.ndarray) -> None:
    if idle_bytes() + size <= MAX_IDLE_BYTES:
        _idle[size].append(block)


def _rounded(n_bytes: int) -> int:
    """The next of eight sizes per octave, so that arrays of nearly one size share blocks."""
    step = 1 << max(0, n_bytes.bit_length() - 4)
    return -(-n_bytes // step) * step
