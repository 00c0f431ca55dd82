"""The k nearest neighbours of every point, exact: one pass that all estimators of dimension share.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y          one matrix product finds the candidates, float64 differences of the candidates decide

The product loses the digits of distances far below the norms, and float32 loses them sooner. Every rough value therefore comes with a bound
on its error (|error of x.y| <= (d + 4) 2^-24 |x||y|; Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), and
whatever may be among the k nearest within that bound has its distance computed again from the differences. Rows where the bound decides too
little are done in float64, and where even that is too coarse by differences to all points. The product of a tile serves its rows and its
columns: N^2 d flops instead of 2 N^2 d.
"""

import importlib.util
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import require_points, row_blocks

BLOCK_ELEMENTS = 2**22
TILE_ROWS = 1024
"""Rows and columns of one tile of the product."""
COMPILED_FROM = 512
"""Points from which on the compiled search is used."""


@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """The nearest neighbours of every distinct point of a cloud, nearest first."""

    points: Float[Tensor, "n d"]
    """The distinct points in their first order, float32 or float64 as given (narrower types as float32)."""
    distances: Float[Tensor, "n k"]
    """Euclidean distances, ascending, float64."""
    ids: Int[Tensor, "n k"]
    """Rows of `points` that the neighbours are; of equal distances the lower row number comes first."""
    row_ids: Int[Tensor, " n"]
    """Row of the cloud as given that each distinct point is; the first of equal ones."""
    n_duplicates: int
    """Rows left out because they equal an earlier one."""


def nearest_neighbours(
    points: Float[Tensor, "n d"],
    *,
    n_neighbours: int,
    minimum: int = 3,
    block_elements: int = BLOCK_ELEMENTS,
    where: str = "nearest_neighbours",
) -> NearestNeighbours:
    """The `n_neighbours` nearest other points of every distinct row of `points`, by Euclidean distance in float64 (fewer if there are fewer).

    Equal rows are merged first. Time N^2 d flops (2 N^2 d without numba or off the CPU); memory 44 N `n_neighbours` bytes and a few times
    `block_elements`, never N^2. Raises ConfigError for NaN or Inf, `n_neighbours` < 1, fewer than `minimum` distinct points, and distinct
    points whose distance is 0 in float64. `where` names the caller in errors.
    """
    if n_neighbours < 1:
        raise ConfigError(f"n_neighbours must be at least 1, got {n_neighbours} ({where})")
    require_points(points, minimum=1, argument="points", where=where)
    given = points.detach().to(torch.promote_types(points.dtype, torch.float32))
    row_ids = distinct_rows(given)
    distinct = given[row_ids].contiguous()
    n = len(distinct)
    if n < max(2, minimum):
        raise ConfigError(f"points must hold at least {max(2, minimum)} distinct rows, got {n} among {len(points)} ({where})")
    k = min(n_neighbours, n - 1)
    centred = distinct.double() - distinct.double().mean(dim=0)
    scale = torch.ldexp(torch.ones((), dtype=torch.float64), torch.frexp(centred.abs().max().cpu()).exponent).item()
    centred /= scale
    if n >= COMPILED_FROM and distinct.device.type == "cpu" and importlib.util.find_spec("numba") is not None:
        from sae.geometry.dimension.tiles import search

        distances, ids, undecided = search(distinct, centred, scale, k)
    else:
        distances = centred.new_empty(n, k)
        ids = torch.empty(n, k, dtype=torch.int64, device=distinct.device)
        undecided = torch.arange(n, device=distinct.device)
    for block in row_blocks(len(undecided), max(n, k * distinct.shape[1]), block_elements, where=where):
        rows = undecided[block]
        distances[rows], ids[rows] = _by_products(centred, rows, k)
        distances[rows] *= scale
    if (distances[:, 0] == 0).any():
        raise ConfigError(f"points must be further apart than float64 resolves, got distinct rows at distance 0 ({where})")
    return NearestNeighbours(points=distinct, distances=distances, ids=ids, row_ids=row_ids, n_duplicates=len(points) - n)


def distinct_rows(points: Shaped[Tensor, "n d"]) -> Int[Tensor, " distinct"]:
    """Row numbers of the first of every group of equal rows, ascending; 0 and -0 are equal. Time N d + N log N.

    Rows are sorted by a 64-bit sum of their bits times random odd numbers; rows with equal sums are compared.
    """
    n, d = points.shape
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}[points.dtype]
    factors = torch.randint(-(2**62), 2**62, (d,), generator=torch.Generator().manual_seed(0)).to(points.device) * 2 + 1
    sums = torch.empty(n, dtype=torch.int64, device=points.device)
    for block in row_blocks(n, d, BLOCK_ELEMENTS, where="distinct_rows"):
        sums[block] = ((points[block] + 0.0).view(bits).long() * factors).sum(dim=1)
    ordered, order = sums.sort(stable=True)
    repeats = (ordered[1:] == ordered[:-1]).nonzero().flatten()
    same = (points[order[repeats]] == points[order[repeats + 1]]).all(dim=1)
    if not same.all():  # two different rows with one sum: compare whole rows
        _, groups = torch.unique(points, dim=0, return_inverse=True)
        ordered, order = groups.sort(stable=True)
        repeats = (ordered[1:] == ordered[:-1]).nonzero().flatten()
    first = torch.ones(n, dtype=torch.bool, device=points.device)
    first[order[repeats + 1]] = False
    return first.nonzero().flatten()


def _by_products(centred: Float[Tensor, "n d"], rows: Int[Tensor, " m"], k: int) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The k nearest of some rows from one float64 product; all differences where that product's error may have picked wrong candidates."""
    d, own = centred.shape[1], centred[rows]
    norms = centred.square().sum(dim=1)
    doubtful = 1000 * d * torch.finfo(torch.float64).eps * norms.max()
    squares = norms[rows, None] + norms - 2 * (own @ centred.T)
    squares[torch.arange(len(rows), device=rows.device), rows] = torch.inf
    found = squares.topk(k, dim=1, largest=False)
    nearest, picked = found.values, found.indices.sort(dim=1).values
    exact = (centred[picked] - own[:, None]).norm(dim=2)
    for i in (nearest[:, -1] < doubtful).nonzero().flatten().tolist():
        row = (centred - own[i]).norm(dim=1)
        row[rows[i]] = torch.inf
        exact[i], picked[i] = row.topk(k, largest=False)
    exact, order = exact.sort(dim=1, stable=True)
    return exact, picked.gather(1, order)
