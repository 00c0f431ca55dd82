"""The epsilon-mixture index: the largest share of points that one strip holds, relative to the spread about the strip.

    M_eps(f) = max_{v, c} P( |v.f + c| < eps sqrt(E[(v.f + c)^2]) )                     Engels et al. 2024 (arXiv 2405.14860), section 3

A mixture of a point mass (or of a line) and something else has a large M. For a fixed direction the maximum over c is exact: with
q = v.f - mean, s^2 = mean q^2 and the strip centred at m, point i is inside if and only if

    (1 - e^2) m^2 - 2 q_i m + q_i^2 - e^2 s^2 < 0      m in ( q_i -+ e sqrt(q_i^2 + (1 - e^2) s^2) ) / (1 - e^2)

so M(v) is the largest number of overlapping intervals: O(N) once the q_i are in order. In the plane the directions of a grid over [0, pi) and
of a finer one about its best are all tried. The paper's code climbs a smoothed objective by gradient instead, which stops well below
the maximum and depends on the scale; an M that is too small makes a score (1 - M) S too large.

M does not change with an invertible affine map, so the points are whitened first: the grid of directions is uniform where the cloud is round.
Selecting the best direction biases M upwards: independent Gaussians, whose every direction has erf(eps / sqrt 2) = 0.0797, give
0.094 at N = 4096. `compare_mixture` draws exactly that.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.multidimensional.sweeps import overlap_sweep
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import require_points


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The strip and the search over directions."""

    epsilon: float = 0.1
    """Half-width of the strip, as a share of the root mean square of v.f + c; in (0, 1)."""
    n_angles: int = 720
    """Directions of the grid over half a turn."""
    n_refined: int = 201
    """Directions of the finer grid, over one cell either side of the best; 0: none."""
    n_restarts: int = 8
    """More than two dimensions: starting directions, principal axes first and then random ones."""
    n_sweeps: int = 12
    """More than two dimensions: planes tried from each start; in each the whole half turn is swept."""
    seed: int = 0
    """Seed of the random directions and planes; unused in one and two dimensions."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ConfigError(f"epsilon must be in (0, 1), got {self.epsilon} (MixtureConfig)")
        if self.n_angles < 1 or self.n_restarts < 1 or self.n_sweeps < 1 or self.n_refined < 0:
            raise ConfigError(
                "n_angles, n_restarts and n_sweeps must be at least 1 and n_refined at least 0, "
                f"got {self.n_angles}, {self.n_restarts}, {self.n_sweeps}, {self.n_refined} (MixtureConfig)"
            )


@dataclass(frozen=True, eq=False)
class Mixture:
    """The fullest strip."""

    value: float
    """Share of the points inside, 0..1: exact for its direction, and the largest of the directions tried."""
    direction: Float[Tensor, " d"]
    """Unit normal v of the strip, float64."""
    offset: float
    """A c for which |v.f + c| < eps sqrt(E[(v.f + c)^2]) holds for `value` of the points."""
    n_points: int
    """Number of points."""


PAPER = MixtureConfig()
"""eps = 0.1, 720 directions and 201 finer ones."""


def mixture_index(points: Float[Tensor, "n d"], *, config: MixtureConfig = PAPER) -> Mixture:
    """M_eps of a cloud, with the strip that attains it; a lower bound on the maximum over all directions, close to it in the plane.

    O(n_angles N + N^2) for d <= 2, that times n_restarts n_sweeps above. Points in a subspace are treated within it: those on a line as
    one-dimensional. Raises ConfigError for fewer than 2 points, NaN or Inf, and points that do not vary.
    """
    cloud, back = _whitened(points, where="mixture_index")
    count, direction = _fullest(cloud, config)
    normal = back @ direction
    normal = normal / normal.norm()
    value, offset = _strip(points.detach().double() @ normal, config.epsilon)
    return Mixture(value=max(count, value) / len(points), direction=normal, offset=offset, n_points=len(points))


def compare_mixture(
    points: Float[Tensor, "n d"], *, n_null: int, generator: torch.Generator, config: MixtureConfig = PAPER
) -> NullStatistic:
    """`mixture_index(points).value` beside Gaussian clouds of as many points and dimensions, through the same search.

    The index is affine invariant, so standard Gaussians stand for those with the covariance of the data. `p_greater` is the p-value of "more
    of a mixture than a Gaussian", `p_less` of "less". Errors as `mixture_index`, and for n_null < 2.
    """
    cloud, _ = _whitened(points, where="compare_mixture")
    draws = gaussian_mixture_draws(len(cloud), cloud.shape[1], n_null=n_null, generator=generator, config=config)
    return compare(_fullest(cloud, config)[0] / len(cloud), draws)


def gaussian_mixture_draws(
    n_points: int, d: int, *, n_null: int, generator: torch.Generator, config: MixtureConfig = PAPER
) -> Float[Tensor, " n_null"]:
    """`n_null` draws (float64) of the index of `n_points` standard Gaussian points in R^d: one set serves all clouds of that size.

    Raises ConfigError unless n_points >= 2, d >= 1 and n_null >= 1.
    """
    if n_points < 2 or d < 1 or n_null < 1:
        raise ConfigError(f"n_points must be at least 2, d and n_null at least 1, got {n_points}, {d}, {n_null} (gaussian_mixture_draws)")
    draws = []
    for _ in range(n_null):
        cloud = torch.randn(n_points, d, generator=generator, dtype=torch.float64, device=generator.device)
        draws.append(_fullest(_whitened(cloud, where="gaussian_mixture_draws")[0], config)[0] / n_points)
    return torch.tensor(draws, dtype=torch.float64)


def _whitened(points: Float[Tensor, "n d"], *, where: str) -> tuple[Float[Tensor, "n rank"], Float[Tensor, "d rank"]]:
    """(Centred points of identity covariance, map): column v of the whitened space is the normal map @ v of the original one."""
    require_points(points, minimum=2, argument="points", where=where)
    cloud = points.detach().double()
    size = cloud.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    cloud = cloud / size
    cloud = cloud - cloud.mean(0)
    _, lengths, axes = torch.linalg.svd(cloud, full_matrices=False)
    # What rounding leaves of a coordinate that is not there is below n eps of the largest entry, which is at most 1.
    varies = lengths > max(cloud.shape) * torch.finfo(torch.float64).eps * max(1.0, lengths[0].item())
    if not varies.any():
        raise ConfigError(f"points must vary, got {len(points)} rows that are all equal; drop this cloud ({where})")
    stretch = axes[varies].T * (math.sqrt(len(cloud)) / lengths[varies])
    return cloud @ stretch, stretch


def _fullest(cloud: Float[Tensor, "n d"], config: MixtureConfig) -> tuple[int, Float[Tensor, " d"]]:
    """(Number of points, normal) of the fullest strip of a whitened cloud."""
    d = cloud.shape[1]
    if d == 1:
        plane = torch.cat([cloud, torch.zeros_like(cloud)], 1)
        count, _ = overlap_sweep(plane, cloud.new_zeros(1), epsilon=config.epsilon)
        return count, cloud.new_ones(1)
    if d == 2:
        count, angle = _fullest_angle(cloud, config)
        return count, cloud.new_tensor([math.cos(angle), math.sin(angle)])
    return _climb(cloud, config)


def _fullest_angle(plane: Float[Tensor, "n 2"], config: MixtureConfig) -> tuple[int, float]:
    cell = math.pi / config.n_angles
    angles = torch.arange(config.n_angles, dtype=torch.float64, device=plane.device) * cell
    count, at = overlap_sweep(plane, angles, epsilon=config.epsilon)
    angle = angles[at].item()
    if config.n_refined:
        finer = angle + torch.linspace(-cell, cell, config.n_refined, dtype=torch.float64, device=plane.device)
        found, at = overlap_sweep(plane, finer, epsilon=config.epsilon)
        if found > count:
            count, angle = found, finer[at].item()
    return count, angle


def _climb(cloud: Float[Tensor, "n d"], config: MixtureConfig) -> tuple[int, Float[Tensor, " d"]]:
    """From each start, sweeps of the plane of the best direction so far and a random one orthogonal to it."""
    d = cloud.shape[1]
    generator = torch.Generator().manual_seed(config.seed)
    n_random = max(0, config.n_restarts - d)
    starts = torch.cat([torch.eye(d, dtype=torch.float64)[: config.n_restarts], torch.randn(n_random, d, generator=generator).double()])
    best, best_direction = 0, cloud.new_zeros(d)
    for start in starts.to(cloud.device):
        direction = start / start.norm()
        count = 0
        for _ in range(config.n_sweeps):
            other = torch.randn(d, generator=generator, dtype=torch.float64).to(cloud.device)
            other = other - (other @ direction) * direction
            other = other / other.norm()
            found, angle = _fullest_angle(cloud @ torch.stack([direction, other], 1), config)
            if found > count:
                count = found
                direction = math.cos(angle) * direction + math.sin(angle) * other
                direction = direction / direction.norm()
        if count > best:
            best, best_direction = count, direction
    return best, best_direction


def _strip(projections: Float[Tensor, " n"], epsilon: float) -> tuple[int, float]:
    """(Number of points in the fullest strip of this direction, its c)."""
    mean = projections.mean()
    q = (projections - mean).sort().values
    half = epsilon * (q.square() + (1 - epsilon**2) * q.square().mean()).sqrt()
    low, high = q - half, q + half
    overlap = torch.arange(1, len(q) + 1, device=q.device) - torch.searchsorted(high, low, right=True)
    first = int(overlap.argmax())
    # The intervals that overlap are open: between the last start and the next end there is room for a centre.
    nearest_end = high[high > low[first]].min()
    following = low[low > low[first]]
    inside = torch.minimum(nearest_end, following.min()) if len(following) else nearest_end
    centre = (low[first] + inside) / 2 / (1 - epsilon**2)
    return int(overlap.max()), -(centre + mean).item()
