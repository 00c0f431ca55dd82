"""Intrinsic dimension from the two nearest neighbours of every point.

    mu_i = r_2(i) / r_1(i),     P(mu > m) = m^-D                    Facco, d'Errico, Rodriguez & Laio 2017 (arXiv 1803.06992), TwoNN
    maximum likelihood          D = (N - 1) / sum ln mu_i           (unbiased for independent mu; sd about D / sqrt N)
    linear fit                  slope through the origin of -ln(1 - i/N) on ln mu_(i), the largest 10% of the mu left out

It assumes a density that is constant up to the second neighbour. In more than about 10 dimensions no affordable number of points is that
dense, and the estimate stays below the truth: 20-dimensional cubes of 2000 points give 15.
"""

from math import sqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import require_points, row_blocks

LOWER_BOUND_ABOVE = 10.0
"""Estimates above this are lower bounds at the numbers of points one can afford."""
FEWEST_POINTS = 20
"""Distinct points below which no estimate is given."""
HIGHEST_DIMENSION = 1e7
"""Estimates from here on mean ratios of 1 up to rounding: a regular grid, not a dimension."""
KEPT_NEIGHBOURS = 64
"""Neighbours kept per point, so that half of the points, drawn at random, hold two of them (all but once in 10^17)."""
BLOCK_ELEMENTS = 2**22


class Estimate(NamedTuple):
    """One estimator's dimension, with its interval and its value at half the number of points."""

    value: float
    """Dimension from all distinct points."""
    low: float
    """Lower end of the interval; sampling error only, no allowance for the bias of the estimator."""
    high: float
    """Upper end of the interval."""
    at_half: float
    """Mean over random halves of the points. Well below `value`: the estimate still grows with the number of points."""


class IntrinsicDimension(NamedTuple):
    """TwoNN estimates of one cloud of points, and what they rest on."""

    ml: Estimate
    """Maximum likelihood; uses every ratio."""
    fit: Estimate
    """Linear fit; leaves out the largest ratios, which outliers make."""
    n_points: int
    """Number of distinct points used."""
    n_duplicates: int
    """Points left out because they equal another one."""
    level: float
    """Coverage that the intervals aim at."""
    n_resamples: int
    """Number of random halves behind the intervals."""
    is_lower_bound: bool
    """True when either estimate exceeds 10: read it as "at least"."""


def two_nn(
    points: Float[Tensor, "n d"],
    *,
    generator: torch.Generator,
    discard: float = 0.1,
    level: float = 0.95,
    n_resamples: int = 200,
    block_elements: int = BLOCK_ELEMENTS,
) -> IntrinsicDimension:
    """Intrinsic dimension of the rows of `points` by TwoNN (Facco et al. 2017), both estimators, with intervals.

    Equal rows are merged first: a zero distance has no ratio. Distances are float64. The interval comes from random halves of the points,
    without replacement, because a bootstrap would create duplicates: a half of m points deviates from the mean of the halves as the whole
    deviates from the truth, up to sqrt(m / (N - m)). Time N^2 d, once; memory 64 N and a few times `block_elements`.

    `discard` is the share of largest ratios that the fit leaves out. Raises ConfigError for NaN or Inf, fewer than 20 distinct points,
    ratios that are all 1 (a regular grid), and `discard`, `level` or `n_resamples` out of range.
    """
    if not 0 < discard < 1 or not 0 < level < 1 or n_resamples < 2:
        got = f"got {discard}, {level} and {n_resamples}"
        raise ConfigError(f"discard and level must be inside (0, 1) and n_resamples at least 2, {got} (two_nn)")
    require_points(points, minimum=1, argument="points", where="two_nn")
    distinct = torch.unique(points.detach().double(), dim=0)
    n = len(distinct)
    if n < FEWEST_POINTS:
        raise ConfigError(f"points must hold at least {FEWEST_POINTS} distinct rows, got {n} among {len(points)} (two_nn)")
    distances, neighbour_ids = _nearest_distances(distinct, min(KEPT_NEIGHBOURS, n - 1), block_elements)
    if (distances[:, 0] == 0).any():
        raise ConfigError("points must be further apart than float64 resolves, got distinct rows at distance 0 (two_nn)")

    whole = _estimates(torch.log(distances[:, 1] / distances[:, 0]), discard)
    if not (whole < HIGHEST_DIMENSION).all():
        raise ConfigError(f"points must not lie on a regular grid, got r2 = r1 at nearly all of {n} points (two_nn)")
    n_half = n // 2
    halves = []
    for _ in range(n_resamples):
        order = torch.randperm(n, generator=generator, device=generator.device).to(distinct.device)
        kept = torch.zeros(n, dtype=torch.bool, device=distinct.device)
        kept[order[:n_half]] = True
        halves.append(_estimates(_log_ratios_within(kept, distances, neighbour_ids), discard))
    ml, fit = _intervals(whole, torch.stack(halves), shrink=sqrt(n_half / (n - n_half)), level=level)
    return IntrinsicDimension(
        ml=ml,
        fit=fit,
        n_points=n,
        n_duplicates=len(points) - n,
        level=level,
        n_resamples=n_resamples,
        is_lower_bound=max(ml.value, fit.value) > LOWER_BOUND_ABOVE,
    )


def _estimates(log_ratios: Float[Tensor, " n"], discard: float) -> Float[Tensor, " 2"]:
    """Maximum likelihood and linear fit from ln mu."""
    n = len(log_ratios)
    n_kept = max(1, min(n - 1, int(n * (1 - discard))))
    x = log_ratios.sort().values[:n_kept]
    y = -torch.log1p(-torch.arange(1, n_kept + 1, device=x.device, dtype=x.dtype) / n)
    return torch.stack([(n - 1) / log_ratios.sum(), (x * y).sum() / x.square().sum()])


def _intervals(
    whole: Float[Tensor, " estimators"], halves: Float[Tensor, "n_resamples estimators"], *, shrink: float, level: float
) -> list[Estimate]:
    """value - quantiles of the centred and rescaled deviations of the halves."""
    centre = halves.mean(dim=0)
    deviations = (halves - centre) * shrink
    tails = halves.new_tensor([(1 + level) / 2, (1 - level) / 2])
    ends = whole - deviations.quantile(tails, dim=0)
    columns = torch.stack([whole, ends[0].clamp(min=0), ends[1], centre], dim=1)
    return [Estimate(*row) for row in columns.tolist()]


def _log_ratios_within(kept: Bool[Tensor, " n"], distances: Float[Tensor, "n k"], neighbour_ids: Int[Tensor, "n k"]) -> Float[Tensor, " m"]:
    """ln(r2 / r1) of the kept points among the kept points, from the neighbours found once among all."""
    rank = kept[neighbour_ids[kept]].long().cumsum(dim=1)
    assert (rank[:, -1] >= 2).all(), "a point has fewer than 2 of its nearest neighbours in the half"
    first, second = ((rank == r).long().argmax(dim=1, keepdim=True) for r in (1, 2))
    own = distances[kept]
    return torch.log(own.gather(1, second) / own.gather(1, first)).flatten()


def _nearest_distances(
    points: Float[Tensor, "n d"], n_neighbours: int, block_elements: int
) -> tuple[Float[Tensor, "n n_neighbours"], Int[Tensor, "n n_neighbours"]]:
    """Distances to, and row numbers of, the nearest other points, nearest first.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y finds the candidates with one matrix product; their distances are then computed from the differences,
    because the product loses all digits of a distance far below the norms. Rows where it may even have picked wrong candidates, with a last
    distance not far above its rounding error, are done again by differences against all points.
    """
    n, d = points.shape
    centred = points - points.mean(dim=0)
    scale = centred.abs().max()
    centred = centred / scale
    norms = centred.square().sum(dim=1)
    doubtful = 1000 * d * torch.finfo(torch.float64).eps * norms.max()
    distances = points.new_empty(n, n_neighbours)
    ids = torch.empty(n, n_neighbours, dtype=torch.int64, device=points.device)
    for block in row_blocks(n, max(n, n_neighbours * d), block_elements, where="two_nn"):
        squares = norms[block, None] + norms - 2 * (centred[block] @ centred.T)
        squares.diagonal(offset=block.start).fill_(torch.inf)
        candidates = squares.topk(n_neighbours, dim=1, largest=False)
        nearest, picked = candidates.values, candidates.indices
        exact = (centred[picked] - centred[block, None]).norm(dim=2)
        for i in (nearest[:, -1] < doubtful).nonzero().flatten().tolist():
            row = (centred - centred[block.start + i]).norm(dim=1)
            row[block.start + i] = torch.inf
            exact[i], picked[i] = row.topk(n_neighbours, largest=False)
        exact, order = exact.sort(dim=1)
        distances[block] = exact * scale
        ids[block] = picked.gather(1, order)
    return distances, ids
