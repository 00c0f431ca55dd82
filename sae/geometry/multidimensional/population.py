"""What the two measures are for clouds whose distribution is known: the values that estimates tend to.

    Gaussian, any direction        M = erf(e / sqrt 2)
    uniform circle                 M = arccos(2 m - 1) / pi,      (1 - e^2) m^2 - 2 m + 1 - e^2 / 2 = 0
    uniform square, along an axis  M = 1 - m,                     (1 - e^2) m^2 - 2 m + 1 - e^2 / 3 = 0
    points of equal weight         M = the fullest strip of the points themselves

In the second and third the best strip is the one that touches the edge of the support from inside: m + e sqrt(s^2 + m^2) = 1.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError


def gaussian_mixture_index(epsilon: float) -> float:
    """M of a Gaussian, the same in every direction: erf(eps / sqrt 2), 0.0797 at eps = 0.1. Raises ConfigError outside (0, 1)."""
    _check(epsilon, where="gaussian_mixture_index")
    return math.erf(epsilon / math.sqrt(2))


def circle_mixture_index(epsilon: float) -> float:
    """M of the uniform distribution on a circle: 0.21866 at eps = 0.1. Raises ConfigError outside (0, 1)."""
    _check(epsilon, where="circle_mixture_index")
    return math.acos(2 * _touching(epsilon, 1 / 2) - 1) / math.pi


def square_axis_mixture_index(epsilon: float) -> float:
    """The largest share that a strip along an axis holds of the uniform distribution on a square: 0.1064 at eps = 0.1. Raises
    ConfigError outside (0, 1).
    """
    _check(epsilon, where="square_axis_mixture_index")
    return 1 - _touching(epsilon, 1 / 3)


def regular_polygon(n: int, *, radius: float = 1.0) -> Float[Tensor, "n 2"]:
    """The corners of a regular n-gon about the origin, float64, in order. Raises ConfigError for n < 1 and a radius that is not positive."""
    if n < 1 or not radius > 0:
        raise ConfigError(f"n must be at least 1 and radius above 0, got {n} and {radius} (regular_polygon)")
    angles = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return radius * torch.stack([angles.cos(), angles.sin()], 1)


def _check(epsilon: float, *, where: str) -> None:
    if not 0 < epsilon < 1:
        raise ConfigError(f"epsilon must be in (0, 1), got {epsilon} ({where})")


def _touching(epsilon: float, mean_square: float) -> float:
    """The m in (0, 1) with m + eps sqrt(mean_square + m^2) = 1."""
    a, c = 1 - epsilon**2, 1 - epsilon**2 * mean_square
    return (1 - math.sqrt(1 - a * c)) / a
