"""revive: AuxK and its gradient in one go, in bfloat16 where the CPU has it in hardware.

    a = x E^T + b,    kept = the k largest positive entries of each row of a,    e_hat = kept D,    error = sum |residual - e_hat|^2
    dD = -2 kept^T (residual - e_hat),    da = -2 (residual - e_hat) D^T where kept > 0,    dE = da^T x,    db = sum of the rows of da

x and residual are held fixed. A block of rows goes through the three products of the first line and da while it is in the cache; the two
products that sum over rows follow, block of latents by block of latents.

In bfloat16 each factor is rounded (unit roundoff 2^-8) and sums are kept in float32: about 3e-3 of a gradient's size. Which answers are kept
would follow the rounding too, and cost far more than that: answers within 3 * 2^-8 |x||E_j| / sqrt(d_in), some seven standard deviations of
their error, of the least kept one (or of 0) are computed again in float32 before the choice.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.dense import keep_row
from sae.dictionaries.kernels.cpu.loops import arrays, compiled, kth_key
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.dictionaries.kernels.cpu.rough import available
from sae.dictionaries.kernels.cpu.rows import dot, dots
from sae.dictionaries.kernels.cpu.vectors import LANES, list_above
from sae.dictionaries.kernels.reference import Revival

BLOCK_ROWS, BLOCK_LATENTS = 256, 192
"""Rows, and at most so many latents, that a member of the team takes at a time."""


def revive(
    x: Float[Tensor, "n d_in"],
    residual: Float[Tensor, "n d_out"],
    rows_enc: Float[Tensor, "m d_in"],
    bias: Float[Tensor, "m"],
    rows_dec: Float[Tensor, "m d_out"],
    k: int,
) -> Revival:
    """How badly the k strongest answers of m latents explain `residual`, and the gradient of that; see the module's text."""
    low = torch.bfloat16 if "bfloat16" in available() else torch.float32
    (n, d_in), (m, d_out) = x.shape, rows_dec.shape
    x_low, rest_low = recycled(n, d_in, dtype=low), recycled(n, d_out, dtype=low)
    kept, pulls = recycled(n, m, dtype=low), recycled(n, m, dtype=low)
    with team.gathered():
        enc, dec = rows_enc.detach().to(low), rows_dec.detach().to(low)
    n_blocks = -(-n // BLOCK_ROWS)
    errors, bias_sums = np.zeros(n_blocks), np.zeros((n_blocks, m), np.float32)
    reach = torch.linalg.vector_norm(rows_enc.detach(), dim=1) * (3 * 2.0**-8 / d_in**0.5 if low == torch.bfloat16 else 0.0)
    given, encoder, offset, near = arrays(x, rows_enc, bias, reach)

    def block_of_rows(b: int) -> None:
        part = slice(b * BLOCK_ROWS, (b + 1) * BLOCK_ROWS)
        x_low[part] = x[part]
        torch.mm(x_low[part], enc.T, out=pulls[part])
        keep_answers(_bits(pulls[part]), given[part], encoder, offset, near, min(k, m), _bits(kept[part]))
        errors[b] = leave(*arrays(residual[part]), _bits(kept[part] @ dec), _bits(rest_low[part]))
        torch.mm(rest_low[part], dec.T, out=pulls[part])
        mask_pulls(_bits(kept[part]), _bits(pulls[part]), bias_sums[b])

    team.each(block_of_rows, n_blocks)
    grad_enc, grad_dec = recycled(m, d_in), recycled(m, d_out)

    # Every member gets as many blocks as the others: one block more for one of two would double the time of a small m.
    n_shares = team.size() * -(-m // (BLOCK_LATENTS * team.size()))
    size = -(-m // n_shares)

    def block_of_latents(b: int) -> None:
        part = slice(b * size, (b + 1) * size)
        torch.mul(pulls[:, part].T @ x_low, -2.0, out=grad_enc[part])
        torch.mul(kept[:, part].T @ rest_low, -2.0, out=grad_dec[part])

    team.each(block_of_latents, -(-m // size))
    return Revival(float(errors.sum()), grad_enc, torch.from_numpy(bias_sums.sum(0) * np.float32(-2)), grad_dec)


def _bits(matrix: Tensor) -> np.ndarray:
    """The memory of a bfloat16 matrix as int16, which numpy knows; a float32 matrix itself."""
    return matrix.view(torch.int16).numpy() if matrix.dtype == torch.bfloat16 else matrix.numpy()


@compiled
def widen(row: np.ndarray, out: np.ndarray) -> None:
    """out = row in float32; int16 entries are the bits of bfloat16."""
    if row.itemsize == 2:
        bits = out.view(np.int32)
        for c in range(len(row)):
            bits[c] = np.int32(row[c]) << np.int32(16)
    else:
        for c in range(len(row)):
            out[c] = row[c]


@compiled
def narrow(row: np.ndarray, out: np.ndarray) -> None:
    """out = row in bfloat16, to the nearest and of two equally near the even one, where `out` is int16; else a copy."""
    if out.itemsize == 2:
        bits = row.view(np.int32)
        for c in range(len(row)):
            out[c] = np.int16((bits[c] + np.int32(0x7FFF) + ((bits[c] >> np.int32(16)) & np.int32(1))) >> np.int32(16))
    else:
        for c in range(len(row)):
            out[c] = row[c]


@compiled
def keep_answers(
    answers: np.ndarray, x: np.ndarray, rows: np.ndarray, bias: np.ndarray, reach: np.ndarray, k: int, kept: np.ndarray
) -> None:
    """kept = the k largest positive entries of each row of answers + bias, 0 elsewhere; entries within |x| reach of the choice are first
    replaced by x . rows + bias.
    """
    n, m = answers.shape
    row, positive, least = np.empty(m, np.float32), np.empty(m, np.float32), np.zeros(1, np.float32)
    below, ones, none = np.empty((1, m), np.float32), np.ones(m, np.float32), np.zeros(m, np.float32)
    close, exact = np.empty(m + LANES, np.int32), np.empty(m, np.float32)
    vectors = m // LANES * LANES
    for r in range(n):
        widen(answers[r], row)
        for c in range(m):
            row[c] += bias[c]
            positive[c] = row[c] if row[c] > 0 else np.float32(0)
        least.view(np.int32)[0] = kth_key(positive.view(np.int32), m, k) if k < m else 0
        size, n_close = np.sqrt(dot(x[r], x[r])), 0
        for c in range(m):
            below[0, c] = -abs(row[c] - least[0])
        for c in range(0, vectors, LANES):  # where size reach > |row - least|
            n_close = list_above(below, ones, none, reach, 0, c, np.float32(1), size, np.float32(0), np.int32(-1), close, n_close)
        for c in range(vectors, m):
            close[n_close] = c
            n_close += below[0, c] + size * reach[c] > 0
        dots(x[r], rows, close, 0, n_close, exact)
        for i in range(n_close):
            row[close[i]] = exact[i] + bias[close[i]]
        keep_row(row, row.view(np.int32), k)
        narrow(row, kept[r])


@compiled
def leave(residual: np.ndarray, explained: np.ndarray, rest: np.ndarray) -> float:
    """rest = residual - explained; the sum of squares before rounding."""
    n, d_out = residual.shape
    row, total = np.empty(d_out, np.float32), 0.0
    for r in range(n):
        widen(explained[r], row)
        squares = np.float32(0)
        for c in range(d_out):
            left = residual[r, c] - row[c]
            row[c] = left
            squares += left * left
        narrow(row, rest[r])
        total += squares
    return total


@compiled
def mask_pulls(kept: np.ndarray, pulls: np.ndarray, sums: np.ndarray) -> None:
    """Set pulls to 0 where kept is 0, and add its rows to `sums`."""
    n, m = kept.shape
    row = np.empty(m, np.float32)
    for r in range(n):
        for c in range(m):
            pulls[r, c] = pulls[r, c] if kept[r, c] != 0 else 0
        widen(pulls[r], row)
        for c in range(m):
            sums[c] += row[c]
