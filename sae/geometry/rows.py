"""Rows as unit vectors, and products of many rows in blocks.

A dictionary of F atoms has F^2 cosines: 65,536 atoms would need 17 GB. Every measure over pairs therefore walks the matrix in blocks of
rows and keeps only what it reduces to. Reductions run in float32, or in the input's own dtype where that is wider.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError

BLOCK_ELEMENTS = 2**24
"""Default size of one block of pairwise values; also the largest count that float32 holds exactly."""


def require_points(matrix: Float[Tensor, "n d"], *, minimum: int, argument: str, where: str) -> None:
    """Raises ConfigError unless `matrix` has at least `minimum` rows, at least one column and only finite entries."""
    n_rows, n_columns = matrix.shape
    if n_rows < minimum or n_columns < 1:
        raise ConfigError(f"{argument} must have at least {minimum} rows and 1 column, got shape ({n_rows}, {n_columns}) ({where})")
    bad = ~matrix.isfinite().all(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ConfigError(f"{argument} must be finite, got NaN or Inf in {int(bad.sum())} of {n_rows} rows, first in row {first} ({where})")


def unit_rows(matrix: Float[Tensor, "n d"], *, minimum: int, argument: str, where: str) -> Float[Tensor, "n d"]:
    """Rows of `matrix` scaled to Euclidean norm 1, detached, in float32 or the input's wider dtype.

    Each row is divided by its largest entry first, so that no norm over- or underflows.
    Raises ConfigError for too few rows, NaN or Inf, and for a zero row, which has no direction.
    """
    require_points(matrix, minimum=minimum, argument=argument, where=where)
    rows = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    largest = rows.abs().amax(dim=1, keepdim=True)
    zero = largest.flatten() == 0
    if zero.any():
        first = int(zero.nonzero()[0])
        raise ConfigError(f"{argument} must have no zero row, got {int(zero.sum())} of {len(rows)}, first row {first} ({where})")
    rows = rows / largest
    return rows / rows.norm(dim=1, keepdim=True)


def row_blocks(n_rows: int, row_elements: int, block_elements: int, *, where: str) -> Iterator[slice]:
    """Consecutive slices of `n_rows` rows, each of at most `block_elements // row_elements` rows and at least one.

    Raises ConfigError unless `block_elements` is in 1..2**24.
    """
    if not 1 <= block_elements <= BLOCK_ELEMENTS:
        raise ConfigError(f"block_elements must be in 1..{BLOCK_ELEMENTS}, got {block_elements} ({where})")
    step = max(1, block_elements // max(1, row_elements))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
