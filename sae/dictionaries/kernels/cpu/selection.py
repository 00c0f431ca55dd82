"""top: the k largest of x R^T + b per row, without ever holding the pre-activations.

A tile of rough pre-activations (int8 or bfloat16 where the CPU multiplies it fast) stays in the cache between the product and the scan that
picks candidates; the candidates' exact float32 values decide. A row whose candidates do not fit its buffer, because the bound is too coarse
for it, is done again in the next finer precision; float32 takes any row.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.loops import arrays
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.dictionaries.kernels.cpu.rough import Precision, Rough, available, rough_input, rough_rows
from sae.dictionaries.kernels.cpu.scan import OVERFLOW, scan, settle
from sae.dictionaries.kernels.reference import Slots

MAX_BLOCK_ROWS, TILE_LATENTS = 512, 1024
"""Inputs and latents of one tile, at most."""
MIN_ROWS, MIN_WIDTH = 64, 16
"""Fewer inputs do not repay rounding the weights, narrower ones leave nothing to save; torch._int_mm is wrong for width 1."""


def top(x: Float[Tensor, "n d_in"], rows: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"], k: int, signed: bool) -> Slots:
    """The k largest of x rows^T + bias per row by falling value, negative ones set to 0; with `signed` by falling |value|.

    Slots of value 0 hold latents that are distinct within the row, but otherwise arbitrary.
    """
    rough_pays = len(x) >= MIN_ROWS and x.shape[1] >= MIN_WIDTH and 16 * k <= len(rows)
    with team.gathered():
        return top_in(available() if rough_pays else ("float32",), x, rows, bias, k, signed)


def top_in(
    precisions: tuple[Precision, ...],
    x: Float[Tensor, "n d_in"],
    rows: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, "d_sae"],
    k: int,
    signed: bool,
) -> Slots:
    """`top`, looking first in the first of `precisions`; the last must be float32."""
    x, rows, bias = (tensor.detach().contiguous() for tensor in (x, rows, bias))
    slots = Slots(torch.empty(len(x), k), torch.empty(len(x), k, dtype=torch.long))
    left = _select(precisions[0], x, rows, bias, signed, slots)
    if len(left):
        finer = precisions[1:] if len(left) >= MIN_ROWS else precisions[-1:]
        rest = top_in(finer, x[left], rows, bias, k, signed)
        slots.values[left], slots.indices[left] = rest
    return slots


def _select(precision: Precision, x: Tensor, rows: Tensor, bias: Tensor, signed: bool, slots: Slots) -> Tensor:
    """Fill the slots of every row that the precision suffices for; the numbers of the others."""
    n, d_sae, k = len(x), len(rows), slots.values.shape[1]
    rough = _rounded(precision, x, rows)
    capacity = min(4 * k + 128, d_sae)
    overflowed = torch.zeros(n, dtype=torch.bool)
    n_rows = min(MAX_BLOCK_ROWS, 16 * (n // (32 * team.size()) + 1))  # two blocks or more for each member

    def block(b: int) -> None:
        part = slice(b * n_rows, (b + 1) * n_rows)
        done = Slots(slots.values[part], slots.indices[part])
        overflowed[part] = _select_block(rough, x[part], rows, bias, signed, done, capacity)

    team.each(block, -(-n // n_rows))
    return overflowed.nonzero().view(-1)


_kept: list[tuple[tuple, Tensor, Rough]] = []


def _rounded(precision: Precision, x: Tensor, rows: Tensor) -> Rough:
    """`rough_rows`, or what it last gave for the same rows, unchanged since: encoding many batches rounds the weights once.

    torch counts the changes of a tensor; whoever changes one behind its back must say so (`torch.autograd.graph.increment_version`). The rows
    are kept alive, so that no other tensor can have their address.
    """
    if rows.is_inference():  # torch does not count the changes of these
        return rough_rows(rows, x, precision)
    key = (precision, rows.data_ptr(), rows._version, rows.shape)
    if _kept and _kept[-1][0] == key:
        return _kept[-1][2]
    _kept.clear()  # first, so that its memory can be used again
    rough = rough_rows(rows, x, precision)
    _kept.append((key, rows, rough))
    return rough


def _select_block(rough: Rough, x: Tensor, rows: Tensor, bias: Tensor, signed: bool, slots: Slots, capacity: int) -> Tensor:
    n, d_sae, k = len(x), len(rows), slots.values.shape[1]
    given = rough_input(x, rough)
    buffer = recycled(n * min(TILE_LATENTS, d_sae), dtype=torch.int32)
    counts = torch.zeros(n, dtype=torch.int32)
    floors = torch.full((n,), -1.0 if signed else 0.0)
    upper, lower, latents = recycled(n, capacity), recycled(n, capacity), recycled(n, capacity, dtype=torch.int32)
    candidates = arrays(floors, counts, upper, lower, latents)
    scale, spread, offset = arrays(rough.scale, rough.spread, bias)
    for first in range(0, d_sae, TILE_LATENTS):
        tile = rough.product(given, slice(first, first + TILE_LATENTS), buffer)
        scan(tile.numpy(), first, given.scale, given.slack, scale, spread, offset, signed, k, *candidates)
    settle(*arrays(x, rows, bias), signed, k, *arrays(counts, upper, latents, *slots))
    return counts == OVERFLOW
