"""All estimators of intrinsic dimension of one cloud, from one search for neighbours.

The search is N^2 d flops; everything else reads its distances: TwoNN, GRIDE at every scale, maximum likelihood and their intervals from random
halves, local dimensions, neighbourhoods for local PCA, radii of the correlation integral. Every number comes with N and with its scale; above
about 10 it is a lower bound, because no affordable N is dense in so many dimensions.
"""

from dataclasses import dataclass
from math import exp

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.dimension.correlation import CorrelationDimension, correlation_dimension
from sae.geometry.dimension.gride import GrideCurve, gride_estimates, gride_orders, plateau
from sae.geometry.dimension.intervals import Estimate, LogDistances, log_distances, log_distances_within, random_part, with_intervals
from sae.geometry.dimension.likelihood import LocalDimension, local_dimension, log_sums, maximum_likelihood, unbiased_mean
from sae.geometry.dimension.linear import LinearDimension, LocalPca, linear_dimension, local_pca
from sae.geometry.dimension.neighbours import NearestNeighbours, nearest_neighbours
from sae.geometry.dimension.two_nn import FEWEST_POINTS, LOWER_BOUND_ABOVE, require_discard, two_nn_estimates

MOST_QUARTERS = 20
"""Random quarters behind the last point of the decimation curve."""


@dataclass(frozen=True, kw_only=True)
class DimensionConfig:
    """What the battery looks at."""

    n_neighbours: int = 128
    """Neighbours found per point; GRIDE reaches neighbour n_neighbours / 4, so that halves of the points still hold it."""
    k: int = 20
    """Neighbours of the maximum-likelihood estimates."""
    correlation_k: tuple[int, int] = (10, 20)
    """Neighbours whose median distances are the two radii of CorrInt."""
    alpha: float = 0.05
    """Share of the largest eigenvalue that Fukunaga-Olsen counts from, in (0, 1)."""
    discard: float = 0.1
    """Share of largest ratios that TwoNN's fit leaves out."""
    n_resamples: int = 100
    """Random halves behind the intervals and the decimation curve."""
    level: float = 0.95
    """Coverage that the intervals aim at."""
    n_references: int = 1024
    """Points that the correlation integral counts pairs from."""
    n_anchors: int = 256
    """Neighbourhoods of local PCA."""


@dataclass(frozen=True)
class Decimated:
    """TwoNN on random parts of the points: the same cloud at a larger scale."""

    n_points: int
    """Points in each part."""
    ml: float
    """Maximum likelihood, mean over the parts."""
    fit: float
    """Linear fit, mean over the parts."""
    radius: float
    """Geometric mean distance to the second neighbour within the parts, in the units of the points."""


@dataclass(frozen=True, eq=False)
class DimensionBattery:
    """Every estimate of one cloud's dimension, and what it rests on."""

    n_points: int
    """Distinct points."""
    n_duplicates: int
    """Rows left out because they equal an earlier one."""
    width: int
    """Coordinates of a point."""
    is_lower_bound: bool
    """True when an estimate from neighbours exceeds 10: read these as "at least"."""
    two_nn_ml: Estimate
    """TwoNN, maximum likelihood."""
    two_nn_fit: Estimate
    """TwoNN, linear fit."""
    gride: GrideCurve
    """GRIDE over scales, with its plateau."""
    maximum_likelihood: Estimate
    """Levina-Bickel from k neighbours, inverses averaged (MacKay & Ghahramani)."""
    unbiased_mean: Estimate
    """Levina-Bickel, mean of the unbiased estimates of the points."""
    correlation: CorrelationDimension
    """CorrInt and the correlation integral."""
    local_pca: LocalPca
    """Fukunaga-Olsen within neighbourhoods."""
    linear: LinearDimension
    """What the spectrum of the covariance gives, distinct points only."""
    local: LocalDimension
    """A dimension for every point."""
    decimation: tuple[Decimated, ...]
    """TwoNN at N, N/2 and N/4 points."""
    radius: float
    """Geometric mean distance to the k-th neighbour: the scale of maximum likelihood, in the units of the points."""
    row_ids: Tensor
    """Row of the cloud as given that each distinct point, and each local dimension, belongs to."""
    config: DimensionConfig
    """What was asked for."""


def battery(points: Float[Tensor, "n d"], *, generator: torch.Generator, config: DimensionConfig = DimensionConfig()) -> DimensionBattery:
    """All estimators of the intrinsic dimension of the rows of `points`, from one pass over their neighbours.

    Time N^2 d for the pass; memory 44 N n_neighbours bytes beside a float64 copy of the points. Raises ConfigError for NaN or Inf, fewer than 20
    distinct points, a regular grid, and settings that the cloud is too small for.
    """
    neighbours = nearest_neighbours(points, n_neighbours=config.n_neighbours, minimum=FEWEST_POINTS, where="battery")
    return battery_of(neighbours, generator=generator, config=config)


def battery_of(
    neighbours: NearestNeighbours, *, generator: torch.Generator, config: DimensionConfig = DimensionConfig()
) -> DimensionBattery:
    """The same from neighbours that are known already. Raises ConfigError unless k and the radii of CorrInt fit into half of them."""
    n, found = neighbours.distances.shape
    require_discard(config.discard, where="battery")
    if found < n - 1 and not 3 <= config.k <= found // 3:
        raise ConfigError(f"k must be in 3..{found // 3}, a third of the {found} neighbours found, got {config.k} (battery)")
    k = min(config.k, n // 2 - 1)
    scales = gride_orders(min(found, n - 2))
    two_nn, curve, (mle, unbiased), log_radius = _with_intervals(neighbours, scales, k, generator, config)
    logs = log_distances(neighbours, (k,))
    return DimensionBattery(
        n_points=n,
        n_duplicates=neighbours.n_duplicates,
        width=neighbours.points.shape[1],
        is_lower_bound=max(each.value for each in (*two_nn, *curve.estimates, mle, unbiased)) > LOWER_BOUND_ABOVE,
        two_nn_ml=two_nn[0],
        two_nn_fit=two_nn[1],
        gride=curve,
        maximum_likelihood=mle,
        unbiased_mean=unbiased,
        correlation=correlation_dimension(
            neighbours,
            generator=generator,
            k1=min(config.correlation_k[0], found - 1),
            k2=min(config.correlation_k[1], found),
            n_references=config.n_references,
            level=config.level,
        ),
        local_pca=local_pca(neighbours, generator=generator, k=found, alpha=config.alpha, n_anchors=config.n_anchors),
        linear=linear_dimension(neighbours.points, alpha=config.alpha),
        local=local_dimension(neighbours, k=max(3, k)),
        decimation=_decimation(neighbours, two_nn, log_radius, generator, config),
        radius=logs.at[k].mean().exp().item(),
        row_ids=neighbours.row_ids,
        config=config,
    )


def _with_intervals(
    neighbours: NearestNeighbours, scales: tuple[int, ...], k: int, generator: torch.Generator, config: DimensionConfig
) -> tuple[list[Estimate], GrideCurve, list[Estimate], Estimate]:
    """TwoNN, GRIDE, maximum likelihood and the mean of ln r_2, all on the same halves."""
    orders = tuple(sorted({1, 2, k, *scales, *(2 * n1 for n1 in scales)}))

    def estimators(logs: LogDistances) -> Float[Tensor, " estimators"]:
        sums = log_sums(logs)
        first = torch.stack([*two_nn_estimates(logs, discard=config.discard), logs.at[2].mean()])
        last = torch.stack([maximum_likelihood(sums, k=k), unbiased_mean(sums, k=k)])
        return torch.cat([first.cpu(), last.cpu(), gride_estimates(logs, scales)])

    found = with_intervals(
        neighbours, orders, estimators, k=k, generator=generator, n_resamples=config.n_resamples, level=config.level
    )  # fmt: skip
    logs = log_distances(neighbours, orders)
    curve = GrideCurve(
        first_orders=scales,
        estimates=tuple(found[5:]),
        radii=tuple(logs.at[2 * n1].mean().exp().item() for n1 in scales),
        plateau=plateau(scales, tuple(found[5:])),
    )
    return found[:2], curve, found[3:5], found[2]


def _decimation(
    neighbours: NearestNeighbours, two_nn: list[Estimate], log_radius: Estimate, generator: torch.Generator, config: DimensionConfig
) -> tuple[Decimated, ...]:
    """N and N/2 are known from the intervals; N/4 from as many random quarters, 20 at most."""
    n, logs = len(neighbours.points), neighbours.distances.log()
    quarters = []
    for _ in range(min(config.n_resamples, MOST_QUARTERS)):
        kept = random_part(n, n // 4, generator, neighbours.points.device)
        within = log_distances_within(kept, neighbours, (1, 2), logs=logs)
        quarters.append(torch.stack([*two_nn_estimates(within, discard=config.discard), within.at[2].mean()]))
    of_quarters = torch.stack(quarters).mean(dim=0).tolist()
    rows = (
        (n, [each.value for each in (*two_nn, log_radius)]),
        (n // 2, [each.at_half for each in (*two_nn, log_radius)]),
        (n // 4, of_quarters),
    )
    return tuple(Decimated(n_points=size, ml=ml, fit=fit, radius=exp(radius)) for size, (ml, fit, radius) in rows)
