"""One pass over a parameter: its gradient's projection, its norm, its Adam step with unit rows; and the plain dense product."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cuda.launch import block, launch, warps

FLAT_BLOCK = 1024
"""Entries per program where rows do not matter."""


@triton.jit
@no_type_check
def _project(grad, atoms, squares, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    g = tl.load(grad + row * width + columns, mask=inside, other=0.0)
    d = tl.load(atoms + row * width + columns, mask=inside, other=0.0)
    g -= tl.sum(g * d, 0) * d
    tl.store(grad + row * width + columns, g, mask=inside)
    tl.store(squares + row, tl.sum(g * g, 0))


@triton.jit
@no_type_check
def _adam(
    parameter, grad, exp_avg, exp_avg_sq, n_entries, width, scale, new_1, new_2, correction_2, rate, epsilon, tiny,
    UNIT_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * width + columns
    inside = (columns < width) & (place < n_entries)
    g = tl.load(grad + place, mask=inside, other=0.0) * scale
    m = tl.load(exp_avg + place, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + place, mask=inside, other=0.0)
    m += new_1 * (g - m)
    v += new_2 * (g * g - v)
    p = tl.load(parameter + place, mask=inside, other=0.0)
    p -= rate * tl.div_rn(m, tl.sqrt_rn(tl.div_rn(v, correction_2)) + epsilon)
    if UNIT_ROWS:
        p = tl.div_rn(p, tl.maximum(tl.sqrt_rn(tl.sum(p * p, 0)), tiny))
    tl.store(parameter + place, p, mask=inside)
    tl.store(exp_avg + place, m, mask=inside)
    tl.store(exp_avg_sq + place, v, mask=inside)


def product(a: Float[Tensor, "n m"], b: Float[Tensor, "m width"]) -> Float[Tensor, "n width"]:
    """a b, in the precision that the program has set for float32 products; AuxK allows 2e-3."""
    return a @ b


def project_(grad: Float[Tensor, "m width"], atoms: Float[Tensor, "m width"]) -> float:
    """g_i <- g_i - (g_i . d_i) d_i for unit atoms d_i, in place; returns the sum of squares of the result."""
    m, width = grad.shape
    squares = grad.new_empty(m)
    BLOCK = block(width, most=1 << 20)
    launch(_project, (m,), grad, atoms, squares, width, BLOCK=BLOCK, n_warps=warps(BLOCK, per_thread=8))
    return float(squares.sum(dtype=torch.float64))


def sum_squares(grad: Float[Tensor, "*shape"]) -> float:
    """Sum of the squares of all entries."""
    return float(torch.linalg.vector_norm(grad, dtype=torch.float64)) ** 2


def adam_(
    parameter: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, rate: float, betas: tuple[float, float], epsilon: float,
    step: int, scale: float, unit_rows: bool,
) -> None:  # fmt: skip
    """One step of Adam on the gradient scale * grad, in place; `step` counts from 1. With `unit_rows` rows are then given norm 1.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   p <- p - rate (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + epsilon)
    (Kingma & Ba 2015, 1412.6980 algorithm 1).
    """
    width = parameter.shape[-1] if unit_rows else FLAT_BLOCK
    BLOCK = block(width, most=1 << 20)
    launch(
        _adam, (triton.cdiv(parameter.numel(), width),), parameter, grad, exp_avg, exp_avg_sq, parameter.numel(), width,
        float(scale), 1 - betas[0], 1 - betas[1], 1 - betas[1] ** step, rate / (1 - betas[0] ** step), float(epsilon),
        torch.finfo(parameter.dtype).tiny, UNIT_ROWS=unit_rows, BLOCK=BLOCK, n_warps=warps(BLOCK, per_thread=8),
    )  # fmt: skip
