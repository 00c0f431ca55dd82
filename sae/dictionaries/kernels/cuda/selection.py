"""Selections: the k largest pre-activations of each row, and AuxK's in place.

`top` looks twice. A bfloat16 product on tensor cores gives every pre-activation roughly, and the maximum of each group of latents in the same
pass; the k + N_SPARE roughly largest (group maxima ranked first, then the members of the best groups) get their exact float32 values, of
which the k largest are kept. Rounding x and w to bfloat16 (unit roundoff u = 2^-9) moves x . w by at most (2u + u^2) |x| |w|. With `lowest`
the smallest rough value of a candidate, every other latent is therefore below

    lowest + (2u + u^2 + d_in 2^-22) |x| max |w| + 2^-22 (|lowest| + max |bias|)

where the terms in 2^-22 cover float32 sums in any order. Rows whose last kept value does not exceed that are computed again in float32.
"""

import math
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cuda.launch import block, float32_products, launch, warps
from sae.dictionaries.kernels.cuda.sparse import row_dots
from sae.dictionaries.kernels.reference import Slots

N_SPARE = 24
"""Candidates beyond k of the first look."""
BLOCK_BYTES = 1 << 27
"""Pre-activations held at once, in bytes."""
TILE_ROWS, TILE_LATENTS, TILE_WIDTH = 64, 128, 64
"""Tile of the rough product, and how much of d_in it takes in at once."""
LARGEST_GROUP = 64


@dataclass(frozen=True, eq=False)
class RoughRows:
    """What the first look needs to know of an encoder's rows and biases."""

    rows: Float[Tensor, "d_sae padded"]
    """The rows in bfloat16, filled up with zeros to a multiple of TILE_WIDTH."""
    largest_norm: Float[Tensor, ""]
    """max |w|."""
    largest_bias: Float[Tensor, ""]
    """max |bias|."""


@triton.jit
@no_type_check
def _rough_scores(
    x, rows, bias, scores, maxima, n, padded, d_sae, n_groups,
    SIGNED: tl.constexpr, GROUP: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_LATENTS: tl.constexpr, TILE_WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    latent = tl.program_id(1).to(tl.int64) * TILE_LATENTS + tl.arange(0, TILE_LATENTS)
    width = tl.arange(0, TILE_WIDTH)
    x_tile = x + row[:, None] * padded + width[None, :]
    rows_tile = rows + latent[None, :] * padded + width[:, None]
    total = tl.zeros((TILE_ROWS, TILE_LATENTS), tl.float32)
    for start in range(0, padded, TILE_WIDTH):
        left = tl.load(x_tile + start, mask=(row < n)[:, None], other=0.0)
        right = tl.load(rows_tile + start, mask=(latent < d_sae)[None, :], other=0.0)
        total = tl.dot(left, right, total)
    total += tl.load(bias + latent, mask=latent < d_sae, other=0.0)[None, :]
    if SIGNED:
        total = tl.abs(total)
    total = tl.where((latent < d_sae)[None, :], total, float("-inf"))
    wanted = (row < n)[:, None] & (latent < n_groups * GROUP)[None, :]
    tl.store(scores + row[:, None] * (n_groups * GROUP) + latent[None, :], total, mask=wanted)
    group = tl.program_id(1) * (TILE_LATENTS // GROUP) + tl.arange(0, TILE_LATENTS // GROUP)
    best = tl.max(tl.reshape(total, (TILE_ROWS, TILE_LATENTS // GROUP, GROUP)), 2)
    tl.store(maxima + row[:, None] * n_groups + group[None, :], best, mask=(row < n)[:, None] & (group < n_groups)[None, :])


@triton.jit
@no_type_check
def _keep_largest(answers, k, m, BLOCK: tl.constexpr):
    """The bits of a float that is not negative order as the float does: the k-th largest is found bit by bit, then the row is cut there."""
    row = answers + tl.program_id(0).to(tl.int64) * m
    kth = 0
    for bit in range(31):
        trial = kth | (1 << (30 - bit))
        count = 0
        for start in range(0, m, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            bits = tl.load(row + columns, mask=columns < m, other=0.0).to(tl.int32, bitcast=True)
            count += tl.sum((bits >= trial).to(tl.int32), 0)
        kth = tl.where(count >= k, trial, kth)
    count = 0
    for start in range(0, m, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        bits = tl.load(row + columns, mask=columns < m, other=0.0).to(tl.int32, bitcast=True)
        count += tl.sum((bits > kth).to(tl.int32), 0)
    n_equal = k - count
    for start in range(0, m, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        entries = tl.load(row + columns, mask=columns < m, other=0.0)
        bits = entries.to(tl.int32, bitcast=True)
        equal = (bits == kth).to(tl.int32)
        kept = (bits > kth) | ((equal > 0) & (tl.cumsum(equal, 0) <= n_equal))
        tl.store(row + columns, tl.where(kept, entries, 0.0), mask=columns < m)
        n_equal -= tl.sum(equal, 0)


def top(x: Float[Tensor, "n d_in"], rows: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"], k: int, signed: bool) -> Slots:
    """The k largest of x rows^T + bias per row by falling value, negative ones set to 0; with `signed` by falling |value|."""
    return largest(x, rows, bias, k, signed, rough(rows, bias) if looks_twice(x, len(rows), k) else None)


def looks_twice(x: Float[Tensor, "n d_in"], d_sae: int, k: int) -> bool:
    """Whether `top` looks roughly first: where the device multiplies bfloat16 in hardware and the product is what takes the time."""
    in_hardware = x.device.type != "cuda" or torch.cuda.get_device_capability(x.device) >= (8, 0)
    return in_hardware and len(x) >= 32 and 16 * (k + N_SPARE) <= d_sae


def rough(rows: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"]) -> RoughRows:
    """The encoder as the first look sees it."""
    return RoughRows(_bfloat16(rows), torch.linalg.vector_norm(rows, dim=1).max(), bias.abs().max())


def largest(
    x: Float[Tensor, "n d_in"], rows: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"], k: int, signed: bool,
    rough_rows: RoughRows | None,
) -> Slots:  # fmt: skip
    """`top`, looking roughly first if `rough_rows` is given."""
    n, d_sae = len(x), len(rows)
    values, indices = x.new_empty(n, k), torch.empty(n, k, dtype=torch.long, device=x.device)
    unproved = torch.ones(n, dtype=torch.bool, device=x.device)
    n_rows = max(1, BLOCK_BYTES // (d_sae * x.element_size()))
    if rough_rows is not None:
        for start in range(0, n, n_rows):
            part = slice(start, start + n_rows)
            _two_looks(x[part], rows, bias, k, signed, rough_rows, Slots(values[part], indices[part]), unproved[part])
        unproved = unproved.nonzero().view(-1)
    else:
        unproved = torch.arange(n, device=x.device)
    for chosen in unproved.split(n_rows) if len(unproved) else ():
        with float32_products():
            pre_acts = torch.addmm(bias, x[chosen], rows.T)
        picked = (pre_acts.abs() if signed else pre_acts).topk(k).indices
        values[chosen], indices[chosen] = pre_acts.gather(1, picked), picked
    return Slots(values if signed else values.relu_(), indices)


def _two_looks(x: Tensor, rows: Tensor, bias: Tensor, k: int, signed: bool, rough_rows: RoughRows, slots: Slots, unproved: Tensor) -> None:
    """Fill the slots and `unproved` [n] in place: whether a row may miss one of its k largest."""
    scores, maxima, group = _first_look(x, bias, k + N_SPARE, signed, rough_rows)
    best = maxima.topk(k + N_SPARE, sorted=False).indices
    members = (best[:, :, None] * group + torch.arange(group, device=x.device)).flatten(1)
    candidates = scores.gather(1, members).topk(k + N_SPARE)
    indices = members.gather(1, candidates.indices)
    exact = _second_look(x, rows, bias, indices, signed)
    kept = (exact.abs() if signed else exact).topk(k)
    slots.values.copy_(exact.gather(1, kept.indices))
    slots.indices.copy_(indices.gather(1, kept.indices))
    lowest = candidates.values[:, -1]
    share = 2.0**-8 + 2.0**-18 + x.shape[1] * 2.0**-22
    bound = lowest + 2.0**-22 * (lowest.abs() + rough_rows.largest_bias)
    bound += share * rough_rows.largest_norm * torch.linalg.vector_norm(x, dim=1)
    # Written so that NaN is unproved. Below 0 nothing can be missed: what is not kept has value 0.
    unproved.copy_(~((kept.values[:, -1] > bound) | (bound <= 0)))


def _first_look(x: Tensor, bias: Tensor, n_candidates: int, signed: bool, rough_rows: RoughRows) -> tuple[Tensor, Tensor, int]:
    """(rough scores [n, n_groups group], their maxima [n, n_groups], group), groups of neighbouring latents."""
    n, (d_sae, padded) = len(x), rough_rows.rows.shape
    group = min(1 << round(math.log2(math.sqrt(d_sae / n_candidates))), LARGEST_GROUP)
    n_groups = triton.cdiv(d_sae, group)
    scores, maxima = x.new_empty(n, n_groups * group), x.new_empty(n, n_groups)
    launch(
        _rough_scores, (triton.cdiv(n, TILE_ROWS), triton.cdiv(d_sae, TILE_LATENTS)),
        _bfloat16(x), rough_rows.rows, bias, scores, maxima, n, padded, d_sae, n_groups,
        SIGNED=signed, GROUP=group, TILE_ROWS=TILE_ROWS, TILE_LATENTS=TILE_LATENTS, TILE_WIDTH=TILE_WIDTH,
    )  # fmt: skip
    return scores, maxima, group


def _second_look(x: Tensor, rows: Tensor, bias: Tensor, indices: Tensor, signed: bool) -> Tensor:
    """The exact pre-activations [n, n_candidates] of the candidates. Fillers of the last group, which are candidates only where too few
    pre-activations are above -inf, become the last latent in `indices`, with a value that is never kept before another.
    """
    filler = indices >= len(rows)
    indices.clamp_(max=len(rows) - 1)
    return (row_dots(x, indices, rows) + bias[indices]).masked_fill_(filler, 0.0 if signed else -math.inf)


def _bfloat16(rows: Tensor) -> Tensor:
    """The rows in bfloat16, filled up with zeros to whole tiles, so that every row starts where memory is read fast."""
    n, width = rows.shape
    padded = rows.new_zeros(n, triton.cdiv(width, TILE_WIDTH) * TILE_WIDTH, dtype=torch.bfloat16)
    padded[:, :width] = rows
    return padded


def keep_largest_(answers: Float[Tensor, "n m"], k: int) -> None:
    """ReLU, then every entry that is not among the k largest of its row set to 0, in place; of equal ones the first are kept."""
    n, m = answers.shape
    BLOCK = block(m, most=8192)
    launch(_keep_largest, (n,), answers, k, m, BLOCK=BLOCK, n_warps=warps(BLOCK, per_thread=8))
