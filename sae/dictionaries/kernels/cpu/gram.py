"""Atoms in eight bits, their products with signals and with each other, and how far those can be from the truth.

    R   a fixed rotation of the inputs drawn at random, block by block of 64:  (R x) . (R d) = x . d
    R d_j = s_j q_j + e_j,    R x = s_x p + f,     q, p integers in -127..127, s the largest entry over 127
    x . d_j  ~  s_x s_j (p . q_j)                                                                      (error  x . e_j + f . d_j)
    d_i . d_j  ~  G_ij = s_i s_j (q_i . q_j), kept as integers in units of 1 / 32000                   (error  d_i . e_j + e_i . d_j)

A CPU multiplies integers four times as fast as floats. A pursuit from x keeps c_j = x . d_j less sum a_t G[j_t, j]. With c_0 and G both from
these integers, after its steps c_j is off by e_j . r + d_j . (f + sum a_t e_{j_t}): what is rounded in d_j counts for the residual r only.
With an exact G it is off by e_j . x + d_j . f. The entries of e and f are taken as independent and uniform in +- s / 2, hence sub-Gaussian
with variance s^2 / 12 (the rotation spreads an outlying input over 64, and makes this hold for any x and D not chosen with R in hand):

    sigma_j^2 = (s_j^2 |r|^2 + s_x^2 + sum a_t^2 s_{j_t}^2) / 12      with G from these integers;      (s_j^2 |x|^2 + s_x^2) / 12  with an exact G

and an error beyond 8 sigma_j has probability at most 2 exp(-32) < 3e-14; one among 10^4 atoms, < 3e-10. That is a probability, not a
proof: `pursuit` decides nothing from these products alone, and checks the bound on every atom whose correlation it computes exactly.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int8, Int16, Shaped
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.lanes import LANES, mirror_square
from sae.dictionaries.kernels.cpu.loops import compiled_finite
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.dictionaries.kernels.cpu.rough import available

UNITS = 32_000
"""Gram entries are integers in units of one over this: norms up to 1.01 do not overflow 16 bits."""
ROTATED = 64
"""Inputs that are rotated together."""
ROW_TILE, COLUMN_TILE = 256, 1024
"""Shape of one product of the Gram matrix: its result stays in the cache until it is written in place twice, once mirrored."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """Rotated rows in eight bits."""

    integers: Int8[Tensor, "m d_padded"]
    """q, with d_in padded by zeros to a multiple of 64."""
    scales: Float32[Tensor, "m"]
    """s: the rotated row is about s q."""


def multiplies_integers() -> bool:
    """Whether the CPU multiplies eight-bit integers in hardware; otherwise float32 is as fast."""
    return "int8" in available()


def quantised(rows: Float32[Tensor, "m d_in"]) -> Quantised:
    """Every row rotated and rounded to eight bits, on the team."""
    m, d_in = rows.shape
    d_padded = -(-d_in // ROTATED) * ROTATED
    result = Quantised(recycled(m, d_padded, dtype=torch.int8), torch.empty(m))
    size = 512

    def block(number: int) -> None:
        part = slice(number * size, min((number + 1) * size, m))
        quantise_(rows[part], result.integers[part], result.scales[part])

    team.each(block, -(-m // size))
    return result


def quantise_(rows: Float32[Tensor, "m d_in"], integers: Int8[Tensor, "m d_padded"], scales: Float32[Tensor, "m"]) -> None:
    """As `quantised`, into the given tensors and in the calling thread."""
    padded = rows if rows.shape[1] == integers.shape[1] else torch.nn.functional.pad(rows, (0, integers.shape[1] - rows.shape[1]))
    rotated = recycled(integers.numel() // ROTATED, ROTATED)
    torch.mm(padded.reshape(-1, ROTATED), _ROTATION, out=rotated)
    _round_(rotated.view(integers.shape).numpy(), integers.numpy(), scales.numpy())


def gram(atoms: Float32[Tensor, "d_sae d_in"]) -> Int16[Tensor, "d_sae d_sae"]:
    """D D^T in units of 1 / 32000, from float32 products: to give to `pursue` where one dictionary encodes many batches."""
    return gram_of(atoms)


def gram_of(atoms: Quantised | Float32[Tensor, "d_sae d_in"]) -> Int16[Tensor, "d_sae d_sae"]:
    """D D^T in units of 1 / 32000; only tiles on and below the diagonal are multiplied out."""
    rows, scales = (atoms.integers, atoms.scales) if isinstance(atoms, Quantised) else (atoms, torch.ones(len(atoms)))
    d_sae = len(rows)
    result = recycled(d_sae, d_sae, dtype=torch.int16)
    tiles = [
        (top, left, min(left + COLUMN_TILE, d_sae, top + ROW_TILE))
        for top in range(0, d_sae, ROW_TILE)
        for left in range(0, min(top + ROW_TILE, d_sae), COLUMN_TILE)
    ]

    def tile(number: int) -> None:
        top, left, right = tiles[number]
        product = products(rows[top : top + ROW_TILE], rows[left:right])
        _write_tile_(product.numpy(), scales.numpy(), result.numpy(), top, left)

    team.each(tile, len(tiles))
    return result


def products(a: Shaped[Tensor, "m d"], b: Shaped[Tensor, "w d"]) -> Shaped[Tensor, "m w"]:
    """a b^T in recycled memory: int32 for eight-bit integers, float32 for floats."""
    if a.dtype == torch.int8:
        return torch._int_mm(a, b.T, out=recycled(len(a), len(b), dtype=torch.int32))
    return torch.mm(a, b.T, out=recycled(len(a), len(b)))


def _rotation() -> Tensor:
    draw = torch.randn(ROTATED, ROTATED, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(draw).Q.float()


_ROTATION = _rotation()


@compiled_finite
def _round_(rows, integers, scales):
    for i in range(rows.shape[0]):
        row = rows[i]
        largest = np.float32(0)
        for e in range(row.size):
            largest = max(largest, abs(row[e]))
        scale = largest / np.float32(127)
        inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
        for e in range(row.size):
            integers[i, e] = np.int8(np.int32(np.rint(row[e] * inverse)))
        scales[i] = scale


@compiled_finite
def _write_tile_(product, scales, result, top, left):
    """result[top + i, left + j] = result[left + j, top + i] = product[i, j] in units; every 16 rows are turned round while in the cache."""
    m, width = product.shape
    d_sae, flat = result.shape[1], result.reshape(-1)
    across, limit = scales[left : left + width], np.float32(32_767)
    for first in range(0, m, LANES):
        n_rows = min(LANES, m - first)
        for i in range(first, first + n_rows):
            factor, row, entries = scales[top + i] * np.float32(UNITS), result[top + i, left : left + width], product[i]
            for j in range(width):
                value = np.float32(entries[j]) * (factor * across[j])
                row[j] = np.int16(np.int32(np.rint(min(max(value, -limit), limit))))
        turned = width // LANES * LANES if n_rows == LANES else 0
        for j in range(0, turned, LANES):
            mirror_square(flat, d_sae, top + first, left + j)
        for j in range(turned, width):
            for i in range(first, first + n_rows):
                result[left + j, top + i] = result[top + i, left + j]
