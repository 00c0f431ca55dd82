"""Is the cloud lower-dimensional than its linear spectrum alone makes it?

    value    an estimate from neighbours on N points
    null     the same estimate on N points of N(0, C), C the covariance of the cloud: the same PCA dimensions, nothing nonlinear

Cheng, Doimo, Kervadec, Macocco, Yu, Laio & Baroni 2024 (arXiv 2410.01444) set nonlinear dimensions (TwoNN) beside linear ones (PCA at 99 %,
participation ratio) of language models' states. The two cannot be compared as they stand: at any affordable N a Gaussian of 300 linear
dimensions has a TwoNN estimate of some tens. The matched Gaussian has the bias of the estimator, of N and of the spectrum, so what lies below
it is structure: curvature, clusters, norms that vary more than a Gaussian's. Above it: a cloud more spread out than its Gaussian.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.dimension.gride import gride_estimates, gride_orders
from sae.geometry.dimension.intervals import log_distances, random_part
from sae.geometry.dimension.likelihood import log_sums, maximum_likelihood
from sae.geometry.dimension.linear import LinearDimension, linear_dimension
from sae.geometry.dimension.neighbours import distinct_rows, nearest_neighbours
from sae.geometry.dimension.two_nn import FEWEST_POINTS, LOWER_BOUND_ABOVE, two_nn_estimates
from sae.geometry.nulls import NullCurve, NullStatistic, compare, compare_curve
from sae.geometry.rows import require_points


@dataclass(frozen=True, eq=False)
class NonlinearComparison:
    """Dimensions from neighbours beside those of Gaussian clouds with the same covariance and number of points."""

    linear: LinearDimension
    """What the spectrum gives."""
    two_nn_ml: NullStatistic
    """TwoNN, maximum likelihood, against the matched Gaussian; `p_less` is the p-value of "lower than the spectrum alone gives"."""
    two_nn_fit: NullStatistic
    """TwoNN, linear fit, against the same."""
    maximum_likelihood: NullStatistic
    """Levina-Bickel (inverses averaged) against the same."""
    gride: NullCurve
    """GRIDE at every scale against the same."""
    first_orders: tuple[int, ...]
    """n1 of every scale of `gride`."""
    n_points: int
    """Distinct points used, of the cloud and of every Gaussian."""
    k: int
    """Neighbours of maximum likelihood."""
    is_lower_bound: bool
    """True when an estimate exceeds 10: it is biased downwards, and the null by about as much."""


def compare_nonlinear(
    points: Float[Tensor, "n d"],
    *,
    generator: torch.Generator,
    n_null: int = 19,
    k: int = 20,
    n_neighbours: int = 64,
    max_points: int = 5000,
) -> NonlinearComparison:
    """Nonlinear dimensions of the rows of `points` against `n_null` Gaussian clouds of their covariance and their number.

    More than `max_points` distinct rows are thinned at random to that many, for the value and the null alike: each null draw is a search for
    neighbours of its own, (n_null + 1) N^2 d flops in all. The covariance is that of the points used, so with few points per dimension the
    Gaussians' own sample spectra are steeper than the cloud's. Raises ConfigError for NaN or Inf, fewer than 20 distinct points, n_null < 2,
    k outside 2..n_neighbours, and `max_points` < 20.
    """
    if n_null < 2 or max_points < FEWEST_POINTS or not 2 <= k <= n_neighbours:
        got = f"got {n_null}, {max_points}, {k} and {n_neighbours}"
        raise ConfigError(
            f"n_null must be at least 2, max_points at least {FEWEST_POINTS}, k in 2..n_neighbours, {got} (compare_nonlinear)"
        )
    require_points(points, minimum=FEWEST_POINTS, argument="points", where="compare_nonlinear")
    cloud = points.detach().to(torch.promote_types(points.dtype, torch.float32))
    cloud = cloud[distinct_rows(cloud)]
    if len(cloud) > max_points:
        cloud = cloud[random_part(len(cloud), max_points, generator, cloud.device)]
    linear = linear_dimension(cloud)
    deviations = linear.eigenvalues[linear.eigenvalues > 0].sqrt()
    scales = gride_orders(min(n_neighbours, len(cloud) - 1))
    value = _estimates(cloud, scales, k, n_neighbours)
    draws = []
    for _ in range(n_null):
        normal = torch.randn(len(cloud), len(deviations), generator=generator, device=generator.device, dtype=torch.float32)
        draws.append(_estimates(normal.to(cloud.device) * deviations.float(), scales, k, n_neighbours))
    null = torch.stack(draws)
    first, second, third = (compare(value[i].item(), null[:, i]) for i in range(3))
    return NonlinearComparison(
        linear=linear,
        two_nn_ml=first,
        two_nn_fit=second,
        maximum_likelihood=third,
        gride=compare_curve(value[3:], null[:, 3:]),
        first_orders=scales,
        n_points=len(cloud),
        k=k,
        is_lower_bound=value.max().item() > LOWER_BOUND_ABOVE,
    )


def _estimates(cloud: Float[Tensor, "n d"], scales: tuple[int, ...], k: int, n_neighbours: int) -> Float[Tensor, " estimators"]:
    """TwoNN ML and fit, maximum likelihood, GRIDE at every scale; float64, on the CPU."""
    neighbours = nearest_neighbours(cloud, n_neighbours=n_neighbours, minimum=FEWEST_POINTS, where="compare_nonlinear")
    k = min(k, neighbours.distances.shape[1])
    orders = tuple(sorted({1, 2, *scales, *(2 * n1 for n1 in scales)}))
    logs = log_distances(neighbours, orders)
    mle = maximum_likelihood(log_sums(log_distances(neighbours, (k,))), k=k)
    return torch.cat([torch.stack([*two_nn_estimates(logs), mle]).cpu(), gride_estimates(logs, scales)])
