"""Is it a circle or a cone, and are its points in the order they should be?

Unit vectors a_1, ..., a_n on a great circle, evenly spaced, have mean pairwise cosine -1/(n - 1). Atoms of one concept have cosines of 0.5 to
0.6: their ring is not about the origin but about an axis m, a_k = c m + s (cos t_k u + sin t_k v), with

    c^2 = (mean cos + 1/(n-1)) / (1 + 1/(n-1)) = |mean of a_k|^2

an identity for any unit vectors, since n^2 |mean|^2 = n + n (n - 1) mean cos. Random directions have c^2 = 1/n on average, a great circle 0.

The order of points around their centre is compared with that of the classes by the resultant length

    R = max over +- of | (1/n) sum_k exp(i (phi_k -+ 2 pi k / n)) |          Fisher, Statistical Analysis of Circular Data (1993), section 6.3

which is 1 for the right order, evenly spaced, whatever the start and the sense, and near 1 / sqrt(n) for a random one.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare, random_directions
from sae.geometry.rows import require_points, unit_rows


@dataclass(frozen=True, eq=False)
class Cone:
    """How a set of directions is spread about its axis."""

    mean_cosine: float
    """Mean cosine over the pairs, in [-1/(n-1), 1]."""
    axis_share: float
    """c^2: the share of each direction's square along the axis, on average; 0 for a circle about the origin, 1 for equal directions."""
    axis: Float[Tensor, " d"]
    """The unit axis, float64; zeros for a circle about the origin, which has none."""
    plane_share: float
    """Share of what is left after the axis (the centred variance) in its two main directions; 1 for a ring, 0 for equal directions."""
    balance: float
    """Ratio of the second to the first of those two; 1 for a round ring, near 0 for a line or an arc."""
    angles: Float[Tensor, " n"]
    """Angle of each direction in that plane, radians in (-pi, pi]."""


def polygon_loop(n: int, *, radius: float = 1.0) -> tuple[float, float]:
    """(birth, death) of the H1 class of a regular n-gon: 2 r sin(pi/n) and 2 r sin(pi ceil(n/3)/n); at n = 3 they are equal, and it has none.

    Adamaszek & Adams 2017 (arXiv 1503.03669). Raises ConfigError for n < 3 and a radius that is not positive.
    """
    if n < 3 or not radius > 0:
        raise ConfigError(f"n must be at least 3 and radius above 0, got {n} and {radius} (polygon_loop)")
    return 2 * radius * math.sin(math.pi / n), 2 * radius * math.sin(math.pi * math.ceil(n / 3) / n)


def cone_of(atoms: Float[Tensor, "n d"]) -> Cone:
    """The cone on which directions lie; rows are normalised first. Raises ConfigError for fewer than 2 rows, a zero row, NaN or Inf."""
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="cone_of").double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    n = len(rows)
    mean = rows.mean(0)
    share = min(1.0, mean.square().sum().item())
    left, lengths, _ = torch.linalg.svd(rows - mean, full_matrices=False)
    squares = lengths.square()
    degenerate = squares.sum() <= n * (16 * torch.finfo(torch.float64).eps) ** 2
    plane = torch.cat([left * lengths, rows.new_zeros(n, 2)], 1)[:, :2]
    length = mean.norm()
    has_axis = length > 1e-7  # float32 atoms of an exact circle leave less
    return Cone(
        mean_cosine=(n * share - 1) / (n - 1),
        axis_share=share,
        axis=mean / length if has_axis else torch.zeros_like(mean),
        plane_share=0.0 if degenerate else (squares[:2].sum() / squares.sum()).item(),
        balance=0.0 if degenerate or len(squares) < 2 else (squares[1] / squares[0]).item(),
        angles=torch.atan2(plane[:, 1], plane[:, 0]),
    )


def compare_axis_share(atoms: Float[Tensor, "n d"], *, n_null: int, generator: torch.Generator) -> NullStatistic:
    """`cone_of(atoms).axis_share` beside that of as many uniform random directions, whose mean is 1/n.

    `p_greater` is the p-value of "a cone", `p_less` of "balanced about the origin, as a circle is". Errors as `cone_of`, and for n_null < 2.
    """
    found = cone_of(atoms).axis_share
    draws = [
        random_directions(len(atoms), atoms.double(), generator=generator).mean(0).square().sum().item() for _ in range(max(n_null, 0))
    ]
    return compare(found, draws)


def order_resultant(angles: Float[Tensor, " n"]) -> float:
    """R of n angles (radians) that belong to positions 0, ..., n-1 around a circle, in 0..1. Raises ConfigError for n < 3, NaN or Inf."""
    require_points(angles[:, None], minimum=3, argument="angles", where="order_resultant")
    return _resultants(angles.double()[None])[0].item()


def compare_order(points: Float[Tensor, "n d"], *, n_null: int, generator: torch.Generator) -> NullStatistic:
    """R of the points, row k the k-th class around the circle, in the plane of their two main components, beside all orders being as likely.

    The plane is found without the order, so orders are exchanged in it. n points have (n - 1)! / 2 orders that differ in R: 360 for days, so no
    p-value is much below 1/360 there. Raises ConfigError for fewer than 4 points (any three are in order), NaN or Inf, points on a line or
    equal, and n_null < 2.
    """
    require_points(points, minimum=4, argument="points", where="compare_order")
    rows = points.detach().double()
    left, lengths, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    if len(lengths) < 2 or not lengths[1] > 1e-12 * rows.norm():
        raise ConfigError("points must not lie on a line: there is no plane to order them in (compare_order)")
    angles = torch.atan2(left[:, 1] * lengths[1], left[:, 0] * lengths[0])
    orders = class_orders(len(points), n_null=n_null, generator=generator).to(angles.device)
    return compare(_resultants(angles[None])[0].item(), _resultants(angles[orders]))


def class_orders(n: int, *, n_null: int, generator: torch.Generator) -> Tensor:
    """`n_null` random orders [n_null, n] of n classes, int64. Raises ConfigError for n_null < 2."""
    if n_null < 2:
        raise ConfigError(f"n_null must be at least 2, got {n_null} (class_orders)")
    return torch.stack([torch.randperm(n, generator=generator, device=generator.device) for _ in range(n_null)])


def _resultants(angles: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """R of each row."""
    n = angles.shape[1]
    targets = torch.arange(n, dtype=torch.float64, device=angles.device) * (2 * math.pi / n)
    forward, backward = angles - targets, angles + targets
    lengths = [torch.hypot(each.cos().mean(1), each.sin().mean(1)) for each in (forward, backward)]
    return torch.maximum(*lengths)
