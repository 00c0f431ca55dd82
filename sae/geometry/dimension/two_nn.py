"""Intrinsic dimension from the two nearest neighbours of every point.

    mu_i = r_2(i) / r_1(i),     P(mu > m) = m^-D                    Facco, d'Errico, Rodriguez & Laio 2017 (arXiv 1803.06992), TwoNN
    maximum likelihood          D = (N - 1) / sum ln mu_i           (unbiased for independent mu; sd about D / sqrt N)
    linear fit                  slope through the origin of -ln(1 - i/N) on ln mu_(i), the largest 10% of the mu left out

It assumes a density that is constant up to the second neighbour. In more than about 10 dimensions no affordable number of points is that
dense, and the estimate stays below the truth: 20-dimensional cubes of 2000 points give 15.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.dimension.intervals import Estimate, LogDistances, require_level, with_intervals
from sae.geometry.dimension.neighbours import BLOCK_ELEMENTS, nearest_neighbours

LOWER_BOUND_ABOVE = 10.0
"""Estimates above this are lower bounds at the numbers of points one can afford."""
FEWEST_POINTS = 20
"""Distinct points below which no estimate is given."""
HIGHEST_DIMENSION = 1e7
"""Estimates from here on mean ratios of 1 up to rounding: a regular grid, not a dimension."""
KEPT_NEIGHBOURS = 64
"""Neighbours kept per point, so that half of the points, drawn at random, hold two of them (all but once in 10^17)."""


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
    require_discard(discard, where="two_nn")
    require_level(level, n_resamples, where="two_nn")
    neighbours = nearest_neighbours(
        points, n_neighbours=KEPT_NEIGHBOURS, minimum=FEWEST_POINTS, block_elements=block_elements, where="two_nn"
    )
    ml, fit = with_intervals(
        neighbours,
        (1, 2),
        lambda logs: torch.stack(two_nn_estimates(logs, discard=discard)),
        generator=generator,
        n_resamples=n_resamples,
        level=level,
    )
    return IntrinsicDimension(
        ml=ml,
        fit=fit,
        n_points=len(neighbours.points),
        n_duplicates=neighbours.n_duplicates,
        level=level,
        n_resamples=n_resamples,
        is_lower_bound=max(ml.value, fit.value) > LOWER_BOUND_ABOVE,
    )


def require_discard(discard: float, *, where: str) -> None:
    """Raises ConfigError unless `discard` is inside (0, 1)."""
    if not 0 < discard < 1:
        raise ConfigError(f"discard must be inside (0, 1), got {discard} ({where})")


def two_nn_estimates(logs: LogDistances, *, discard: float = 0.1) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Maximum likelihood and linear fit from ln r_1 and ln r_2. Raises ConfigError where nearly all of them are equal (a regular grid)."""
    log_ratios = logs.at[2] - logs.at[1]
    n = len(log_ratios)
    n_kept = max(1, min(n - 1, int(n * (1 - discard))))
    x = log_ratios.sort().values[:n_kept]
    y = -torch.log1p(-torch.arange(1, n_kept + 1, device=x.device, dtype=x.dtype) / n)
    ml, fit = (n - 1) / log_ratios.sum(), (x * y).sum() / x.square().sum()
    if not (torch.stack([ml, fit]) < HIGHEST_DIMENSION).all():
        raise ConfigError(f"points must not lie on a regular grid, got r2 = r1 at nearly all of {n} points (two_nn)")
    return ml, fit
