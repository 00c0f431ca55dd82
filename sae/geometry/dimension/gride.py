"""Intrinsic dimension from ratios of further neighbours, as a function of scale.

    mu_i = r_(n2)(i) / r_(n1)(i),    density of mu  D (mu^D - 1)^(n2 - n1 - 1) / (mu^((n2 - 1) D + 1) B(n2 - n1, n1))
    ln L(D) = N ln D - N ln B(n2 - n1, n1) + (n2 - n1 - 1) sum ln(mu^D - 1) - ((n2 - 1) D + 1) sum ln mu,    n2 = 2 n1

Denti, Doimo, Laio & Mira 2022 (arXiv 2104.13832), GRIDE. The maximum at n1 = 1 is N / sum ln mu: TwoNN up to its factor (N - 1) / N against
bias. n1 = 1, 2, 4, ... look at larger and larger balls of the same cloud, without leaving points out: a dimension that does not depend on n1
is a dimension; noise raises it at small scales, curvature and edges lower it at large ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.dimension.intervals import Estimate, LogDistances
from sae.geometry.dimension.two_nn import HIGHEST_DIMENSION

PLATEAU_SCALES = 3
"""Consecutive scales that a plateau spans at least."""
FLAT = 0.05
"""Largest relative difference of two scales of a plateau."""


@dataclass(frozen=True)
class Plateau:
    """The flattest run of scales."""

    value: float
    """Mean dimension over the run."""
    first: int
    """n1 of its first scale."""
    last: int
    """n1 of its last scale."""
    spread: float
    """(largest - smallest) / mean over the run."""
    is_flat: bool
    """Whether `spread` is at most 5 %, or no more than the intervals of its scales allow. Otherwise there is no plateau: read the whole curve."""


@dataclass(frozen=True)
class GrideCurve:
    """GRIDE at a sequence of scales."""

    first_orders: tuple[int, ...]
    """n1 of every scale; n2 = 2 n1."""
    estimates: tuple[Estimate, ...]
    """Dimension at every scale, with its interval."""
    radii: tuple[float, ...]
    """Mean distance to neighbour n2: the scale in the units of the points."""
    plateau: Plateau
    """Where the curve is flattest."""


def gride(log_ratios: Float[Tensor, " n"], *, first_order: int, start: float | None = None) -> float:
    """The D that maximises ln L for n1 = `first_order`, n2 = 2 n1, from ln mu of every point, by Newton's method to about 1e-10.

    d ln L / dD falls and is convex, so Newton's steps from the left of its zero never pass it; a step that would leave the positive numbers
    is cut. `start` is a first guess. Raises ConfigError for n1 < 1, negative logarithms, and where no maximum below 10^7 exists (a grid).
    """
    L = log_ratios.detach().double()
    n, middle = len(L), first_order - 1
    if first_order < 1 or n < 1 or (L < 0).any():
        raise ConfigError(f"first_order must be at least 1 and log_ratios not negative and not empty, got {first_order} and {n} (gride)")
    total = L.sum().item()
    D = start or n / max(total * (2 * first_order - 1), 1e-300)
    for _ in range(200):
        if not D < HIGHEST_DIMENSION:
            raise ConfigError(
                f"points must not lie on a regular grid, got r_{2 * first_order} = r_{first_order} at nearly all points (gride)"
            )
        slope, curvature = n / D - (2 * first_order - 1) * total, -n / D**2
        if middle:
            rising = -torch.expm1(-D * L)  # 1 - mu^-D
            positive = L > 0
            safe = rising.where(positive, 1.0)
            slope += middle * (L / safe).where(positive, 1 / D).sum().item()
            curvature -= middle * (L.square() * (1 - rising) / safe.square()).where(positive, 1 / D**2).sum().item()
        step = -slope / curvature
        D_next = max(D + step, D / 10)
        if abs(D_next - D) <= 1e-6 * D:  # what is left is of the order of the square
            return D_next
        D = D_next
    raise AssertionError("Newton's method on a convex function did not converge")


def gride_orders(n_neighbours: int) -> tuple[int, ...]:
    """n1 = 1, 2, 4, ... as far as halves of the points still hold 2 n1 of `n_neighbours` neighbours: 2 n1 <= n_neighbours / 4, at least 1."""
    orders = [1]
    while 4 * orders[-1] <= n_neighbours // 4:
        orders.append(2 * orders[-1])
    return tuple(orders)


def gride_estimates(logs: LogDistances, first_orders: tuple[int, ...]) -> Float[Tensor, " scales"]:
    """`gride` at every scale, on the CPU; each starts from the last."""
    found: list[float] = []
    for n1 in first_orders:
        found.append(gride(logs.at[2 * n1] - logs.at[n1], first_order=n1, start=found[-1] if found else None))
    return torch.tensor(found, dtype=torch.float64)


def plateau(first_orders: tuple[int, ...], estimates: tuple[Estimate, ...]) -> Plateau:
    """The run of 3 consecutive scales (all, if there are fewer) with the least relative spread, extended while it stays flat."""
    values = [estimate.value for estimate in estimates]
    width = min(PLATEAU_SCALES, len(values))

    def spread(a: int, b: int) -> float:
        run = values[a:b]
        return (max(run) - min(run)) / (sum(run) / len(run))

    a = min(range(len(values) - width + 1), key=lambda start: spread(start, start + width))
    b = a + width
    while b < len(values) and spread(a, b + 1) <= FLAT:
        b += 1
    while a > 0 and spread(a - 1, b) <= FLAT:
        a -= 1
    run = estimates[a:b]
    overlap = min(estimate.high for estimate in run) >= max(estimate.low for estimate in run)
    return Plateau(
        value=sum(values[a:b]) / (b - a),
        first=first_orders[a],
        last=first_orders[b - 1],
        spread=spread(a, b),
        is_flat=spread(a, b) <= FLAT or overlap,
    )
