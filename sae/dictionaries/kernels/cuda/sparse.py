"""Products with sparse codes.

    weighted_rows      y[r] = sum_s v[r,s] W[i[r,s]]                            one program per row and block of columns
    row_dots           v[r,s] = y[r] . W[i[r,s]]                                one program per row and block of slots
    decode_error       residual = target - z W and its row_dots                 one program per row; the gathered rows are read once:
                       residual[c] needs column c of them only, and the dots are sums over the columns
    weighted_rows_t    dW[j] = sum over (r,s) with i[r,s] = j of v[r,s] y[r]    the slots sorted by latent, then one program per latent and
                       block of columns adds its own in order, so the sum has one value

Slots with value 0 are not read, except by the dots, which are wanted there too.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.kernels.cuda.launch import block, launch, warps

SHORT_KEYS = 1 << 15
"""Latents are sorted as 16-bit numbers in dictionaries narrower than this; that takes half the passes."""
MOST_SLOTS_AT_ONCE = 512
"""Up to this many slots a row's gathered block of rows stays in registers between the decoding and the dots."""


@triton.jit
@no_type_check
def _weighted_rows(values, indices, rows, y, k, width, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    inside = columns < width
    total = tl.zeros((BLOCK_K, BLOCK_W), tl.float32)
    for start in range(0, k, BLOCK_K):
        slots = start + tl.arange(0, BLOCK_K)
        v = tl.load(values + row * k + slots, mask=slots < k, other=0.0)
        i = tl.load(indices + row * k + slots, mask=slots < k, other=0).to(tl.int64)
        wanted = (v != 0)[:, None] & inside[None, :]
        total += v[:, None] * tl.load(rows + i[:, None] * width + columns[None, :], mask=wanted, other=0.0)
    tl.store(y + row * width + columns, tl.sum(total, 0), mask=inside)


@triton.jit
@no_type_check
def _row_dots(y, indices, rows, dots, k, width, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    used = slots < k
    i = tl.load(indices + row * k + slots, mask=used, other=0).to(tl.int64)
    total = tl.zeros((BLOCK_K, BLOCK_W), tl.float32)
    for start in range(0, width, BLOCK_W):
        columns = start + tl.arange(0, BLOCK_W)
        inside = columns < width
        y_block = tl.load(y + row * width + columns, mask=inside, other=0.0)
        wanted = used[:, None] & inside[None, :]
        total += y_block[None, :] * tl.load(rows + i[:, None] * width + columns[None, :], mask=wanted, other=0.0)
    tl.store(dots + row * k + slots, tl.sum(total, 1), mask=used)


@triton.jit
@no_type_check
def _decode_error(values, indices, rows, target, residual, dots, k, width, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, BLOCK_K)
    used = slots < k
    v = tl.load(values + row * k + slots, mask=used, other=0.0)
    i = tl.load(indices + row * k + slots, mask=used, other=0).to(tl.int64)
    total = tl.zeros((BLOCK_K, BLOCK_W), tl.float32)
    for start in range(0, width, BLOCK_W):
        columns = start + tl.arange(0, BLOCK_W)
        inside = columns < width
        w = tl.load(rows + i[:, None] * width + columns[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        left = tl.load(target + row * width + columns, mask=inside, other=0.0) - tl.sum(v[:, None] * w, 0)
        tl.store(residual + row * width + columns, left, mask=inside)
        total += w * left[None, :]
    tl.store(dots + row * k + slots, tl.sum(total, 1), mask=used)


@triton.jit
@no_type_check
def _segment_sums(
    y, values, order, starts, sums, k, width, WEIGHTED: tl.constexpr, ADD: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    inside = columns < width
    first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
    total = tl.zeros((BLOCK_S, BLOCK_W), tl.float32)
    for start in range(first, last, BLOCK_S):
        places = start + tl.arange(0, BLOCK_S)
        used = places < last
        slots = tl.load(order + places, mask=used, other=0).to(tl.int32)
        source = (slots // k).to(tl.int64)
        part = tl.load(y + source[:, None] * width + columns[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        if WEIGHTED:
            part *= tl.load(values + slots, mask=used, other=0.0)[:, None]
        total += part
    result = tl.sum(total, 0)
    if ADD:
        result += tl.load(sums + latent * width + columns, mask=inside, other=0.0)
    tl.store(sums + latent * width + columns, result, mask=inside)


def weighted_rows(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]
) -> Float[Tensor, "n width"]:
    """y[r] = sum_s values[r,s] rows[indices[r,s]]."""
    (n, k), width = values.shape, rows.shape[1]
    y = rows.new_empty(n, width)
    BLOCK_K, BLOCK_W = block(k, most=16), block(width, most=128)
    launch(
        _weighted_rows, (n, triton.cdiv(width, BLOCK_W)), values.contiguous(), indices.contiguous(), rows, y, k, width,
        BLOCK_K=BLOCK_K, BLOCK_W=BLOCK_W,
    )  # fmt: skip
    return y


def row_dots(y: Float[Tensor, "n width"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]) -> Float[Tensor, "n k"]:
    """v[r,s] = y[r] . rows[indices[r,s]]."""
    (n, k), width = indices.shape, rows.shape[1]
    dots = rows.new_empty(n, k)
    BLOCK_K, BLOCK_W = block(k, most=16), block(width, most=128)
    launch(
        _row_dots, (n, triton.cdiv(k, BLOCK_K)), y.contiguous(), indices.contiguous(), rows, dots, k, width,
        BLOCK_K=BLOCK_K, BLOCK_W=BLOCK_W,
    )  # fmt: skip
    return dots


def decode_error(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"], target: Float[Tensor, "n width"]
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n k"]]:
    """(residual, dots): residual = target - z rows, dots = row_dots(residual, indices, rows)."""
    (n, k), width = values.shape, rows.shape[1]
    if k > MOST_SLOTS_AT_ONCE:
        residual = target - weighted_rows(values, indices, rows)
        return residual, row_dots(residual, indices, rows)
    residual, dots = torch.empty_like(target, memory_format=torch.contiguous_format), rows.new_empty(n, k)
    BLOCK_K = block(k, most=MOST_SLOTS_AT_ONCE)
    BLOCK_W = block(width, most=min(128, max(32, 4096 // BLOCK_K)))
    launch(
        _decode_error, (n,), values.contiguous(), indices.contiguous(), rows, target.contiguous(), residual, dots, k, width,
        BLOCK_K=BLOCK_K, BLOCK_W=BLOCK_W, n_warps=warps(BLOCK_K * BLOCK_W, per_thread=32),
    )  # fmt: skip
    return residual, dots


def weighted_rows_t(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], y: Float[Tensor, "n width"], d_sae: int
) -> Float[Tensor, "d_sae width"]:
    """dW[j] = sum of values[r,s] y[r] over the slots (r,s) that hold latent j; 0 for latents in no slot."""
    sums = y.new_empty(d_sae, y.shape[1])
    segment_sums_(sums, y.contiguous(), values.contiguous(), indices, k=values.shape[1])
    return sums


def scattered_sum(values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], d_sae: int) -> Float[Tensor, "d_sae"]:
    """b[j] = sum of values[r,s] over the slots that hold latent j; unlike `index_add_` the same bits every time."""
    sums = values.new_empty(d_sae, 1)
    segment_sums_(sums, values.reshape(-1, 1), values, indices, k=1, weighted=False)
    return sums.view(d_sae)


def segment_sums_(
    sums: Float[Tensor, "d_sae width"], y: Float[Tensor, "m width"], values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"],
    *, k: int, weighted: bool = True, add: bool = False,
) -> None:  # fmt: skip
    """sums[j] = sum of y[slot // k], times values[slot] if `weighted`, over the slots with latent j and a value that is not 0.

    Slots are numbered n k in all, row by row. With `add` the sums are added to what is there.
    """
    d_sae, width = sums.shape
    # Slots with value 0 go to a segment of their own, which nobody reads.
    keys = torch.where(values != 0, indices, d_sae).view(-1).to(torch.int16 if d_sae < SHORT_KEYS else torch.int32)
    keys, order = keys.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(d_sae + 1, device=keys.device, dtype=keys.dtype), out_int32=True)
    BLOCK_W = block(width, most=128)
    launch(
        _segment_sums, (d_sae, triton.cdiv(width, BLOCK_W)), y, values, order, starts, sums, k, width,
        WEIGHTED=weighted, ADD=add, BLOCK_S=32, BLOCK_W=BLOCK_W,
    )  # fmt: skip
