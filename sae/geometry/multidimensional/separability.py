"""Separability: how much the two coordinates of a planar feature tell about each other, at the rotation where they tell the least.

    S(f) = min_theta I(a_theta; b_theta),      (a_theta, b_theta) = R(theta) f          Engels et al. 2024 (arXiv 2405.14860), section 3

A feature that is a product of two one-dimensional ones has S = 0 at its axes; a circle has none. I is the exact plug-in information of
a histogram, without a constant inside the logarithm. It is biased upwards by about

    (nonempty cells - nonempty rows - nonempty columns + 1) / (2 N)   nats                             Miller & Madow 1955

so that independent Gaussians have S = 0.2 bits at N = 4096 and 40 x 40 bins: compare a value with its null, which has the same bias.
Angles run over [0, pi/2), the period of S. The released code lets them run over [0, 2 pi] and, in one of its scripts, divides the points by
their mean square rather than by its root, which makes S depend on the scale; neither is done here.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.multidimensional.sweeps import separability_curve
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import require_points


@dataclass(frozen=True, kw_only=True)
class SeparabilityConfig:
    """The histogram and the angles; the defaults are those of the paper's text, with a quarter turn in place of four of them."""

    bins: int = 40
    """Bins per coordinate."""
    box: float = 3.0
    """Bins span [-box, box] in units of a coordinate's root mean square, and what lies outside counts in the outermost; 0: bins span the
    range of the turned data."""
    n_angles: int = 250
    """Angles of the sweep, equally spaced."""
    turn: float = math.pi / 2
    """End of the sweep, radians."""
    closed: bool = False
    """Whether the end of the sweep is one of the angles."""
    base: float = 2.0
    """Base of the logarithm: 2 for bits, as the paper reports, e for nats."""

    def __post_init__(self) -> None:
        if self.bins < 1 or self.n_angles < 1:
            raise ConfigError(f"bins and n_angles must be at least 1, got {self.bins} and {self.n_angles} (SeparabilityConfig)")
        if not (0 <= self.box < math.inf and 0 < self.turn < math.inf):
            raise ConfigError(f"box must be at least 0 and turn above 0, got {self.box} and {self.turn} (SeparabilityConfig)")
        if not 1 < self.base < math.inf:
            raise ConfigError(f"base must be above 1 (2 for bits, math.e for nats), got {self.base} (SeparabilityConfig)")

    @classmethod
    def cluster_script(cls) -> "SeparabilityConfig":
        """The settings with which the paper ranked clusters: 10 bins over the range of the data, 100 angles over [0, 2 pi] inclusive."""
        return cls(bins=10, box=0.0, n_angles=100, turn=2 * math.pi, closed=True)

    def angles(self) -> Float[Tensor, " n_angles"]:
        """The angles, radians, float64."""
        n_points = self.n_angles if self.closed else self.n_angles + 1
        return torch.linspace(0, self.turn, n_points, dtype=torch.float64)[: self.n_angles]


@dataclass(frozen=True)
class Separability:
    """The least information between the coordinates of a planar cloud."""

    value: float
    """Plug-in information at the best angle, in the units of the config's base; 0 where the coordinates are independent at some angle."""
    corrected: float
    """The same angle's information less its Miller-Madow bias; may be slightly negative."""
    angle: float
    """The rotation at which the information is least, radians."""
    n_points: int
    """Number of points."""


PAPER = SeparabilityConfig()
"""40 x 40 bins over [-3, 3]^2, 250 angles of [0, pi/2), bits."""


def separability(points: Float[Tensor, "n 2"], *, config: SeparabilityConfig = PAPER) -> Separability:
    """S of a cloud in the plane, over the angles of `config`. O(n_angles (n + bins^2)).

    Points are centred and divided by sqrt(mean |x|^2 / 2), so S does not change with translations and scale, nor, up to the grid of angles,
    with rotations and reflections. Points on a line have S = 0 (up to the grid). Raises ConfigError for fewer than 2 points, another number
    of columns than 2, NaN or Inf, and points that do not vary.
    """
    cloud = _standard(points, where="separability")
    return _of_standard(cloud, config)


def compare_separability(
    points: Float[Tensor, "n 2"], *, n_null: int, generator: torch.Generator, config: SeparabilityConfig = PAPER
) -> NullStatistic:
    """`separability(points).value` beside that of clouds whose coordinates are independent by construction.

    A null cloud has the points' own principal coordinates, the second of them permuted; it goes through the same bins and the same minimum
    over angles. `p_greater` is the p-value of "the plane is not separable". Errors as `separability`, and for n_null < 2.
    """
    cloud = _standard(points, where="compare_separability")
    axes = torch.linalg.eigh(cloud.T @ cloud).eigenvectors.flip(1)
    principal = cloud @ axes
    draws = []
    for _ in range(n_null):
        order = torch.randperm(len(cloud), generator=generator, device=generator.device).to(cloud.device)
        draws.append(_of_standard(torch.stack([principal[:, 0], principal[order, 1]], 1), config).value)
    return compare(_of_standard(cloud, config).value, draws)


def _standard(points: Float[Tensor, "n d"], *, where: str) -> Float[Tensor, "n d"]:
    """Centred, with a mean square of 1 per coordinate; float64."""
    require_points(points, minimum=2, argument="points", where=where)
    cloud = points.detach().double()
    cloud = cloud / cloud.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    cloud = cloud - cloud.mean(0)
    square = cloud.square().mean()
    if square <= (16 * torch.finfo(torch.float64).eps) ** 2:
        raise ConfigError(f"points must vary, got {len(points)} rows that are all equal; drop this cloud ({where})")
    return cloud / square.sqrt()


def _of_standard(cloud: Float[Tensor, "n 2"], config: SeparabilityConfig) -> Separability:
    angles = config.angles().to(cloud.device)
    information, excess = separability_curve(cloud, angles, bins=config.bins, box=config.box)
    at = int(information.argmin())
    unit = math.log(config.base)
    value = max(0.0, information[at].item()) / unit
    bias = excess[at].item() / (2 * len(cloud)) / unit
    return Separability(value=value, corrected=value - bias, angle=angles[at].item(), n_points=len(cloud))
