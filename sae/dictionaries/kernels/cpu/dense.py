"""The dense steps of AuxK: products at the machine's cheapest sufficient precision, and the k largest answers of each row kept in place."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.loops import compiled, kth_key
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.dictionaries.kernels.cpu.rough import available

BLOCK_ROWS = 128
"""Rows that a member of the team takes at a time."""


def keep_largest_(answers: Float[Tensor, "n m"], k: int) -> None:
    """ReLU, then every entry that is not among the k largest of its row set to 0, in place."""
    given = answers.detach().numpy()
    _each_block(lambda part: keep_rows(given[part], given[part].view(np.int32), min(k, given.shape[1])), len(given))


def product(a: Float[Tensor, "n m"], b: Float[Tensor, "m width"]) -> Float[Tensor, "n width"]:
    """a b; in bfloat16 where the CPU has it in hardware, with a relative error of about 2^-8 of |a_r||b_c|."""
    a, b = a.detach(), b.detach()
    low = "bfloat16" in available()
    result = recycled(len(a), b.shape[1])
    right = _bfloat16(b) if low else b

    def block(part: slice) -> None:
        if low:
            result[part] = a[part].bfloat16() @ right
        else:
            torch.mm(a[part], right, out=result[part])

    _each_block(block, len(a))
    return result


def _bfloat16(matrix: Tensor) -> Tensor:
    """The matrix rounded to bfloat16, in the same layout in memory."""
    rows = matrix if matrix.is_contiguous() else matrix.T.contiguous()
    low = recycled(*rows.shape, dtype=torch.bfloat16)

    def block(part: slice) -> None:
        low[part] = rows[part]

    _each_block(block, len(rows))
    return low if matrix.is_contiguous() else low.T


def _each_block(function, n: int) -> None:
    team.each(lambda b: function(slice(b * BLOCK_ROWS, (b + 1) * BLOCK_ROWS)), -(-n // BLOCK_ROWS))


@compiled
def keep_rows(answers: np.ndarray, bits: np.ndarray, k: int) -> None:
    """The loop of `keep_largest_`."""
    for r in range(len(answers)):
        keep_row(answers[r], bits[r], k)


@compiled
def keep_row(row: np.ndarray, keys: np.ndarray, k: int) -> None:
    """ReLU, then all but the k largest set to 0; `keys` is the memory of `row` as int32, whose order for values >= 0 is that of the floats.

    Of equal ones the first are kept.
    """
    m = len(row)
    n_positive = 0
    for c in range(m):
        row[c] = row[c] if row[c] > 0 else np.float32(0)
        n_positive += row[c] > 0
    if k >= n_positive:
        return
    threshold = kth_key(keys, m, k)
    n_above = 0
    for c in range(m):
        n_above += keys[c] >= threshold
    if n_above == k:
        for c in range(m):
            keys[c] = keys[c] if keys[c] >= threshold else 0
        return
    n_equal = k
    for c in range(m):
        n_equal -= keys[c] > threshold
    for c in range(m):
        if keys[c] == threshold and n_equal > 0:
            n_equal -= 1
        elif keys[c] <= threshold:
            keys[c] = 0
