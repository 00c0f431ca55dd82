"""revive: AuxK and its gradient in one go, in bfloat16 where the CPU has it in hardware.

    a = x E^T + b,    kept = the k largest positive entries of each row of a,    e_hat = kept D,    error = sum |residual - e_hat|^2
    dD = -2 kept^T (residual - e_hat),    da = -2 (residual - e_hat) D^T where kept > 0,    dE = da^T x,    db = sum of the rows of da

x and residual are held fixed. A block of rows goes through the three products of the first line and da while it is in the cache; the two
products that sum over rows follow, block of latents by block of latents. In bfloat16 each factor is rounded (unit roundoff 2^-8) and sums
are kept in float32: errors of a gradient are about 3e-3 of its size.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.dense import keep_row
from sae.dictionaries.kernels.cpu.loops import arrays, compiled
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.dictionaries.kernels.cpu.rough import available
from sae.dictionaries.kernels.reference import Revival

BLOCK_ROWS, BLOCK_LATENTS = 256, 128
"""Rows, and latents, that a member of the team takes at a time."""


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
    (offset,) = arrays(bias)

    def block_of_rows(b: int) -> None:
        part = slice(b * BLOCK_ROWS, (b + 1) * BLOCK_ROWS)
        x_low[part] = x[part]
        torch.mm(x_low[part], enc.T, out=pulls[part])
        keep_answers(_bits(pulls[part]), offset, min(k, m), _bits(kept[part]))
        errors[b] = leave(*arrays(residual[part]), _bits(kept[part] @ dec), _bits(rest_low[part]))
        torch.mm(rest_low[part], dec.T, out=pulls[part])
        mask_pulls(_bits(kept[part]), _bits(pulls[part]), bias_sums[b])

    team.each(block_of_rows, n_blocks)
    grad_enc, grad_dec = recycled(m, d_in), recycled(m, d_out)

    def block_of_latents(b: int) -> None:
        part = slice(b * BLOCK_LATENTS, (b + 1) * BLOCK_LATENTS)
        torch.mul(pulls[:, part].T @ x_low, -2.0, out=grad_enc[part])
        torch.mul(kept[:, part].T @ rest_low, -2.0, out=grad_dec[part])

    team.each(block_of_latents, -(-m // BLOCK_LATENTS))
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
def keep_answers(answers: np.ndarray, bias: np.ndarray, k: int, kept: np.ndarray) -> None:
    """kept = the k largest positive entries of each row of answers + bias, 0 elsewhere."""
    n, m = answers.shape
    row = np.empty(m, np.float32)
    for r in range(n):
        widen(answers[r], row)
        for c in range(m):
            row[c] += bias[c]
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
