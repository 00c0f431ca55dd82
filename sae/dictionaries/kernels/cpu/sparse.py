"""Products of codes with dense rows, for codes held as k slots (value v, latent i) per row; a slot with value 0 costs nothing.

weighted_rows      y[r] = sum_s v[r,s] W[i[r,s]]
row_dots           y[r] . W[i[r,s]]
decode_error       residual = target - weighted_rows, and its row_dots while the k rows are still in the cache
weighted_rows_t    dW[j] = sum over (r,s) with i[r,s] = j of v[r,s] y[r], from the slots sorted by latent (a counting sort)
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.loops import arrays, compiled
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.dictionaries.kernels.cpu.rows import add_weighted, dots

BLOCK_ROWS = 64
"""Rows that a member of the team takes at a time."""
BLOCK_SLOTS = 2048
"""Slots, counting one more per latent, that a member of the team takes at a time in `weighted_rows_t`."""


def weighted_rows(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]
) -> Float[Tensor, "n width"]:
    """y[r] = sum_s values[r,s] rows[indices[r,s]]."""
    y = recycled(len(values), rows.shape[1])
    v, i, w, out = arrays(values, indices, rows, y)
    _each_block(lambda part: add_rows(v[part], i[part], w, out[part]), len(values))
    return y


def row_dots(y: Float[Tensor, "n width"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]) -> Float[Tensor, "n k"]:
    """y[r] . rows[indices[r,s]]."""
    dots = torch.empty(indices.shape)
    given, i, w, out = arrays(y, indices, rows, dots)
    _each_block(lambda part: dot_rows(given[part], i[part], w, out[part]), len(indices))
    return dots


def decode_error(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"], target: Float[Tensor, "n width"]
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n k"]]:
    """(residual, dots): residual = target - z rows, dots = row_dots(residual, indices, rows)."""
    residual, dots = recycled(*target.shape), torch.empty(indices.shape)
    v, i, w, wanted, left, out = arrays(values, indices, rows, target, residual, dots)

    def block(part: slice) -> None:
        add_rows(v[part], i[part], w, left[part])
        np.subtract(wanted[part], left[part], out=left[part])
        dot_rows(left[part], i[part], w, out[part])

    _each_block(block, len(values))
    return residual, dots


def weighted_rows_t(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], y: Float[Tensor, "n width"], d_sae: int
) -> Float[Tensor, "d_sae width"]:
    """dW[j] = sum of values[r,s] y[r] over the slots (r,s) that hold latent j; latents in no slot get exact 0."""
    dW = recycled(d_sae, y.shape[1])
    v, i, given, out = arrays(values, indices, y, dW)
    starts, of_row, weights = sorted_slots(v, i, d_sae)
    work = starts + np.arange(d_sae + 1)
    bounds = np.searchsorted(work, np.arange(0, work[-1] + BLOCK_SLOTS, BLOCK_SLOTS))
    bounds = np.unique(np.append(bounds[bounds < d_sae], d_sae))
    team.each(lambda b: add_slots(weights, of_row, starts, given, bounds[b], bounds[b + 1], out), len(bounds) - 1)
    return dW


def scattered_sum(values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], d_sae: int) -> Float[Tensor, "d_sae"]:
    """b[j] = sum of values[r,s] over the slots that hold latent j."""
    b = torch.zeros(d_sae)
    add_values(*arrays(values, indices, b))
    return b


def _each_block(function, n: int) -> None:
    team.each(lambda b: function(slice(b * BLOCK_ROWS, (b + 1) * BLOCK_ROWS)), -(-n // BLOCK_ROWS))


@compiled
def add_rows(values: np.ndarray, indices: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """out[r] = sum_s values[r,s] rows[indices[r,s]]."""
    n, k = values.shape
    weights, numbers = np.empty(k, np.float32), np.empty(k, np.int64)
    for r in range(n):
        n_active = 0
        for s in range(k):
            weights[n_active], numbers[n_active] = values[r, s], indices[r, s]
            n_active += values[r, s] != 0
        out[r] = 0
        add_weighted(weights, rows, numbers, n_active, out[r])


@compiled
def dot_rows(y: np.ndarray, indices: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """out[r,s] = y[r] . rows[indices[r,s]]."""
    for r in range(len(y)):
        dots(y[r], rows, indices[r], 0, indices.shape[1], out[r])


@compiled
def sorted_slots(values: np.ndarray, indices: np.ndarray, d_sae: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, rows, weights): the slots with a value other than 0, by latent and then by row; those of j are at starts[j]..starts[j+1]-1."""
    n, k = indices.shape
    starts = np.zeros(d_sae + 2, np.int64)
    for r in range(n):
        for s in range(k):
            starts[indices[r, s] + 2] += values[r, s] != 0
    for j in range(d_sae):
        starts[j + 2] += starts[j + 1]
    total = starts[d_sae + 1]
    of_row, weights = np.empty(total, np.int32), np.empty(total, np.float32)
    for r in range(n):
        for s in range(k):
            if values[r, s] != 0:
                place = starts[indices[r, s] + 1]
                of_row[place], weights[place] = r, values[r, s]
                starts[indices[r, s] + 1] = place + 1
    return starts[: d_sae + 1], of_row, weights


@compiled
def add_slots(weights: np.ndarray, of_row: np.ndarray, starts: np.ndarray, y: np.ndarray, first: int, last: int, out: np.ndarray) -> None:
    """out[j] = sum of weights[place] y[of_row[place]] over the places of j, for j in first..last-1."""
    for j in range(first, last):
        begin, end = starts[j], starts[j + 1]
        out[j] = 0
        add_weighted(weights[begin:end], y, of_row[begin:end], end - begin, out[j])


@compiled
def add_values(values: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """out[indices[r,s]] += values[r,s]."""
    for r in range(indices.shape[0]):
        for s in range(indices.shape[1]):
            out[indices[r, s]] += values[r, s]
