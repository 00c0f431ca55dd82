"""Correlation dimension: how the number of close pairs grows with their distance.

    C(r) = share of pairs closer than r,    D(r) = d ln C / d ln r                                Grassberger & Procaccia 1983, Physica D 9
    CorrInt    ln(C(r2) / C(r1)) / ln(r2 / r1),  r1, r2 = medians of the distances to neighbours k1 = 10 and k2 = 20   (scikit-dimension's)

Pairs are counted from reference points to all points: all of them, or a random sample where there are many. C is a U-statistic; with the
radii given and g_i the share of points within r of point i, its influence function is 2 (g_i - C), which gives the standard error
(Hoeffding 1948): variance of ln(C2 / C1) = Var(g_i(r2) / C2 - g_i(r1) / C1) (1 / M + 3 / N) for M references among N points. The radii are
medians of the same points and follow their density, which makes the true deviation smaller: by a quarter on uniform squares.
"""

from dataclasses import dataclass
from math import log, sqrt
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.dimension.neighbours import BLOCK_ELEMENTS, NearestNeighbours
from sae.geometry.rows import row_blocks

N_RADII = 17


@dataclass(frozen=True, eq=False)
class CorrelationDimension:
    """CorrInt, and the slope of the correlation integral at every scale."""

    value: float
    """Slope between the two radii of CorrInt."""
    low: float
    """Lower end of its interval (normal, radii taken as given)."""
    high: float
    """Upper end."""
    radii: tuple[float, float]
    """The two radii, in the units of the points."""
    k: tuple[int, int]
    """The orders of the neighbours that they are median distances of."""
    scales: Float[Tensor, " radii"]
    """Radii from the median distance to the nearest neighbour to the median distance of two points, at equal ratios."""
    shares: Float[Tensor, " radii"]
    """C(r) at `scales`, in [0, 1]."""
    slopes: Float[Tensor, " radii-1"]
    """D between consecutive scales; NaN where no pair is closer."""
    n_references: int
    """Points that pairs were counted from."""


def correlation_dimension(
    neighbours: NearestNeighbours,
    *,
    generator: torch.Generator,
    k1: int = 10,
    k2: int = 20,
    n_references: int = 1024,
    level: float = 0.95,
    block_elements: int = BLOCK_ELEMENTS,
) -> CorrelationDimension:
    """CorrInt and the correlation integral of a cloud whose neighbours are known. Time n_references N d, in float64.

    Raises ConfigError unless 1 <= k1 < k2 <= the neighbours found, n_references >= 2, 0 < level < 1, and the two radii differ.
    """
    n, found = neighbours.distances.shape
    if not 1 <= k1 < k2 <= found or n_references < 2 or not 0 < level < 1:
        raise ConfigError(
            f"1 <= k1 < k2 <= {found} neighbours, n_references >= 2 and level inside (0, 1) are needed, got {k1}, {k2}, {n_references} and {level}; "
            "find more neighbours or take smaller orders (correlation_dimension)"
        )
    r1, r2 = (_median(neighbours.distances[:, k - 1]) for k in (k1, k2))
    if not r1 < r2:
        raise ConfigError(f"the median distances to neighbours {k1} and {k2} must differ, got {r1} twice (correlation_dimension)")
    rows = torch.arange(n)
    if n_references < n:
        rows = torch.randperm(n, generator=generator, device=generator.device)[:n_references].cpu().sort().values
    rows = rows.to(neighbours.points.device)
    middle = _median_distance(neighbours.points, rows)
    scales = torch.logspace(log(neighbours.distances[:, 0].median().item()), log(middle), N_RADII, base=torch.e, dtype=torch.float64)
    counts = close_pairs(neighbours, rows, torch.cat([torch.tensor([r1, r2], dtype=torch.float64), scales]), block_elements).double()
    shares = counts.mean(dim=0) / (n - 1)
    value = (log(shares[1]) - log(shares[0])) / log(r2 / r1)
    influence = counts[:, 1] / counts[:, 1].mean() - counts[:, 0] / counts[:, 0].mean()
    half = NormalDist().inv_cdf((1 + level) / 2) * influence.std().item() * sqrt(1 / len(rows) + 3 / n) / log(r2 / r1)
    curve = shares[2:].cpu()
    return CorrelationDimension(
        value=value,
        low=max(0.0, value - half),
        high=value + half,
        radii=(r1, r2),
        k=(k1, k2),
        scales=scales,
        shares=curve,
        slopes=_slopes(curve, scales),
        n_references=len(rows),
    )


def close_pairs(
    neighbours: NearestNeighbours, rows: Int[Tensor, " m"], radii: Float[Tensor, " radii"], block_elements: int = BLOCK_ELEMENTS
) -> Int[Tensor, "m radii"]:
    """Number of other points closer than each radius to each of some points.

    From the distances found where they reach that far, otherwise from a product in float64.
    """
    points = neighbours.points.double()
    centred = points - points.mean(dim=0)
    norms = centred.square().sum(dim=1)
    radii = radii.to(points)
    counts = torch.empty(len(rows), len(radii), dtype=torch.int64, device=points.device)
    for block in row_blocks(len(rows), len(points), block_elements, where="correlation_dimension"):
        own = rows[block]
        squares = norms[own, None] + norms - 2 * (centred[own] @ centred.T)
        squares[torch.arange(len(own)), own] = torch.inf
        for position, r in enumerate(radii.tolist()):
            counts[block, position] = (squares < r * r).sum(dim=1)
    known = neighbours.distances[rows]
    near = (known[:, :, None] < radii).sum(dim=1)
    return torch.where(radii <= known[:, -1:], near, counts)


def _median(values: Float[Tensor, " n"]) -> float:
    ordered = values.sort().values
    return ((ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2).item()


def _median_distance(points: Float[Tensor, "n d"], rows: Int[Tensor, " m"]) -> float:
    """Median distance between (at most 512 of) the reference points."""
    some = points[rows[:: max(1, len(rows) // 512)]].double()
    return _median(torch.pdist(some))


def _slopes(shares: Float[Tensor, " radii"], scales: Float[Tensor, " radii"]) -> Float[Tensor, " radii-1"]:
    logs = shares.log()
    slopes = logs.diff() / scales.log().diff()
    return slopes.where(shares[:-1] > 0, torch.nan)
