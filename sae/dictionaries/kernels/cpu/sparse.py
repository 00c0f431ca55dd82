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
from sae.dictionaries.kernels.cpu.scan import dot

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
    starts, order = sorted_slots(v, i, d_sae)
    work = starts + np.arange(d_sae + 1)
    bounds = np.searchsorted(work, np.arange(0, work[-1] + BLOCK_SLOTS, BLOCK_SLOTS))
    bounds = np.unique(np.append(bounds[bounds < d_sae], d_sae))
    team.each(lambda b: add_slots(v.ravel(), order, starts, given, i.shape[1], bounds[b], bounds[b + 1], out), len(bounds) - 1)
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
    width = rows.shape[1]
    for r in range(n):
        y = out[r]
        y[:] = 0
        for s in range(k):
            v = values[r, s]
            if v != 0:
                row = rows[indices[r, s]]
                for c in range(width):
                    y[c] += v * row[c]


@compiled
def dot_rows(y: np.ndarray, indices: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """out[r,s] = y[r] . rows[indices[r,s]]."""
    n, k = indices.shape
    for r in range(n):
        for s in range(k):
            out[r, s] = dot(y[r], rows[indices[r, s]])


@compiled
def sorted_slots(values: np.ndarray, indices: np.ndarray, d_sae: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, order): the slots with a value other than 0, r k + s, by latent and then by row; those of j are
    order[starts[j]:starts[j+1]].
    """
    n, k = indices.shape
    starts = np.zeros(d_sae + 1, np.int64)
    for r in range(n):
        for s in range(k):
            starts[indices[r, s] + 1] += values[r, s] != 0
    for j in range(d_sae):
        starts[j + 1] += starts[j]
    order = np.empty(starts[d_sae], np.int32)
    free = starts.copy()
    for r in range(n):
        for s in range(k):
            if values[r, s] != 0:
                j = indices[r, s]
                order[free[j]] = r * k + s
                free[j] += 1
    return starts, order


@compiled
def add_slots(
    values: np.ndarray, order: np.ndarray, starts: np.ndarray, y: np.ndarray, k: int, first: int, last: int, out: np.ndarray
) -> None:
    """out[j] = sum of values[slot] y[slot // k] over the slots of j, for j in first..last-1."""
    width = y.shape[1]
    for j in range(first, last):
        total = out[j]
        total[:] = 0
        for place in range(starts[j], starts[j + 1]):
            slot = order[place]
            v, row = values[slot], y[slot // k]
            for c in range(width):
                total[c] += v * row[c]


@compiled
def add_values(values: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
    """out[indices[r,s]] += values[r,s]."""
    for r in range(indices.shape[0]):
        for s in range(indices.shape[1]):
            out[indices[r, s]] += values[r, s]
