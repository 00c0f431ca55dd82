"""Pre-activations in the cheapest precision the machine has, with a bound on how far they are off.

    p = x . w + b,        |rough - p| <= t[r,j] = slack[r] spread[j]

int8       x' = x / c and w' = c w, which leaves x . w as it is, with c_i = sqrt(rms x_i / rms w_i): coordinates that are large in x or in
           w then share the range evenly. Rows are rounded to multiples of s = max|.| / 127. With e the rounding errors,
           rough - x . w = - e_x . w' - x' . e_w + e_x . e_w. Each error lies within s / 2 of 0; taken as independent with mean 0, the sum
           of the 2 d_in terms exceeds t with probability at most 2 exp(-2 t^2 / (s_x^2 |w'|^2 + s_w^2 |x'|^2)) (Hoeffding 1963). This bound
           is a PROBABILITY, at most 1e-9 per pre-activation (far less for errors uniform in their interval, whose variance is a third of
           what Hoeffding's bound allows), and rests on the independence of rounding errors.
           With any rho > 0: s_x^2 |w'|^2 + s_w^2 |x'|^2 <= (s_x^2 + rho^2 |x'|^2) max(|w'|, s_w / rho)^2, slack and spread squared.
bfloat16   unit roundoff u = 2^-8: |e| <= (2 u + u^2) |x||w| from the operands and u |p| from the result. A PROOF.
float32    t = 0: what is computed is taken, as in any float32 product.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.loops import compiled
from sae.dictionaries.kernels.cpu.memory import recycled

Precision = Literal["int8", "bfloat16", "float32"]
FAILURE = 1e-9
"""Probability that an int8 pre-activation is off by more than its bound."""
BLOCK_LATENTS = 256
"""Latents rounded together."""
SAMPLE = 512
"""Rows from which the scale of each coordinate is estimated; any estimate gives a valid bound, a good one a tight bound."""


@dataclass(frozen=True)
class Rough:
    """Rows of a weight matrix in one precision."""

    precision: Precision
    """What they are held in."""
    rows: Tensor
    """[d_sae, d_in] in that precision."""
    balance: Tensor
    """c [d_in] of int8; empty otherwise."""
    scale: Tensor
    """s_w [d_sae] of int8; 1 otherwise."""
    spread: Tensor
    """Of the module's text [d_sae]."""
    rho: float
    """Of the module's text."""

    def product(self, x: "RoughInput", latents: slice, buffer: Tensor) -> Tensor:
        """x rows[latents]^T as int32 or float32 [m, n_latents], in `buffer`, which has at least that many four-byte entries."""
        rows = self.rows[latents]
        shape = len(x.rows), len(rows)
        out = buffer[: shape[0] * shape[1]]
        if self.precision == "int8":
            return torch._int_mm(x.rows, rows.T, out=out.view(torch.int32).view(shape))
        out = out.view(torch.float32).view(shape)
        if self.precision == "bfloat16":
            return out.copy_(x.rows @ rows.T)
        return torch.mm(x.rows, rows.T, out=out)


@dataclass(frozen=True)
class RoughInput:
    """A block of inputs in the same precision."""

    rows: Tensor
    """[m, d_in] in that precision."""
    scale: np.ndarray
    """s_x [m] of int8; 1 otherwise."""
    slack: np.ndarray
    """Of the module's text [m]."""


@cache
def available() -> tuple[Precision, ...]:
    """The precisions this CPU multiplies fast, cheapest first; float32 always."""
    found: list[Precision] = ["float32"]
    if _supports("_is_avx512_bf16_supported"):
        found.insert(0, "bfloat16")
    if _supports("_is_vnni_supported") and _multiplies_int8():
        found.insert(0, "int8")
    return tuple(found)


def _supports(name: str) -> bool:
    # Private names of torch: a version without them has no fast path here.
    return bool(getattr(torch.cpu, name, lambda: False)())


def _multiplies_int8() -> bool:
    """Whether torch._int_mm, a private function, is there and right."""
    if not hasattr(torch, "_int_mm"):
        return False
    a, b = (torch.arange(m * 65).mul(37).remainder(255).sub(127).to(torch.int8).view(m, 65) for m in (33, 50))
    return torch.equal(torch._int_mm(a, b.T), (a.int() @ b.int().T))


def rough_rows(rows: Float[Tensor, "d_sae d_in"], x: Float[Tensor, "n d_in"], precision: Precision) -> Rough:
    """`rows` in a precision, prepared for products with the rows of x."""
    d_sae = len(rows)
    one, none = torch.ones(d_sae), torch.empty(0)
    if precision == "float32":
        return Rough(precision, rows, none, one, torch.zeros(d_sae), 0.0)
    low = recycled(*rows.shape, dtype=torch.int8 if precision == "int8" else torch.bfloat16)
    norm, scale = torch.empty(d_sae), torch.empty(d_sae)
    balance = _balance(rows, x) if precision == "int8" else none

    def block(b: int) -> None:
        part = slice(b * BLOCK_LATENTS, (b + 1) * BLOCK_LATENTS)
        if precision == "int8":
            round_rows(rows[part].numpy(), balance.numpy(), low[part].numpy(), scale[part].numpy(), norm[part].numpy())
        else:
            low[part] = rows[part]
            torch.linalg.vector_norm(rows[part], dim=1, out=norm[part])

    team.each(block, -(-d_sae // BLOCK_LATENTS))
    if precision == "bfloat16":
        return Rough(precision, low, none, one, norm, 0.0)
    total = float(norm.sum())
    rho = float(scale.sum()) / total if total > 0 else 1.0
    return Rough(precision, low, balance, scale, torch.maximum(norm, scale / rho) if rho > 0 else norm, rho)


def rough_input(x: Float[Tensor, "m d_in"], rough: Rough) -> RoughInput:
    """A block of inputs in the precision of `rough`, with its part of the bound."""
    m, d_in = x.shape
    scale, norm = np.ones(m, np.float32), np.empty(m, np.float32)
    if rough.precision == "float32":
        return RoughInput(x, scale, np.zeros(m, np.float32))
    if rough.precision == "bfloat16":
        u = 2.0**-8
        norm = torch.linalg.vector_norm(x, dim=1).numpy()
        return RoughInput(x.bfloat16(), scale, norm * np.float32(3 * u + 4 * u * u + d_in * 2.0**-23))
    low = torch.empty(m, d_in, dtype=torch.int8)
    round_rows(x.numpy(), rough.balance.reciprocal().numpy(), low.numpy(), scale, norm)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite bound sends the row to float32
        slack = math.sqrt(math.log(2 / FAILURE) / 2) * np.hypot(scale, rough.rho * norm) + 2.0**-20 * norm
    return RoughInput(low, scale, slack.astype(np.float32))


def _balance(rows: Tensor, x: Tensor) -> Tensor:
    x_rms, w_rms = (m[:: max(1, len(m) // SAMPLE)].square().mean(0).sqrt() for m in (x, rows))
    usable = (x_rms > 0) & (w_rms > 0)
    ratio = torch.where(usable, x_rms / w_rms, 1.0).clamp(1e-6, 1e6)
    return ratio.sqrt()


@compiled
def round_rows(rows: np.ndarray, factor: np.ndarray, low: np.ndarray, scale: np.ndarray, norm: np.ndarray) -> None:
    """low = round(rows factor / scale) with scale = max |rows factor| / 127 per row; norm = |rows factor|."""
    d_in = rows.shape[1]
    product, largest = np.empty(d_in, np.float32), np.empty(1, np.float32)
    for r in range(len(rows)):
        row, out = rows[r], low[r]
        squares = np.float32(0)
        for i in range(d_in):
            p = row[i] * factor[i]
            product[i] = p
            squares += p * p
        # The bits of floats >= 0 order like them, and the largest of integers is a vector loop.
        bits, size = product.view(np.int32), np.int32(0)
        for i in range(d_in):
            size = max(size, bits[i] & np.int32(0x7FFFFFFF))
        largest.view(np.int32)[0] = size
        inverse = np.float32(127) / largest[0] if largest[0] > 0 else np.float32(0)
        for i in range(d_in):
            out[i] = np.int8(np.rint(product[i] * inverse))
        scale[r], norm[r] = largest[0] / np.float32(127), np.sqrt(squares)
