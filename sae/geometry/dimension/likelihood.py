"""Maximum likelihood from the k nearest neighbours of a point, for the cloud and point by point.

    S_i = sum_{j < k} ln(r_k(i) / r_j(i)),    S_i ~ Gamma(k - 1, rate D) where the density is constant up to r_k
    point          (k - 1) / S_i  (Levina & Bickel 2005, NIPS 17);  (k - 2) / S_i has mean D
    cloud          inverse: N (k - 1) / sum S_i   (MacKay & Ghahramani 2005, average the inverses);   mean: the average of (k - 2) / S_i

The first is the maximum of the likelihood of all points together; the second is unbiased, and one tight group can carry it away.
"""

from dataclasses import dataclass
from math import sqrt

from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.dimension.intervals import LogDistances, log_distances
from sae.geometry.dimension.neighbours import NearestNeighbours


@dataclass(frozen=True, eq=False)
class LocalDimension:
    """A dimension for every point, and whether they differ by more than chance."""

    values: Float[Tensor, " n"]
    """(k - 2) / S_i of every distinct point; infinite where all k distances are equal."""
    k: int
    """Neighbours that each rests on."""
    spread: float
    """Standard deviation of S_i over its mean."""
    expected_spread: float
    """1 / sqrt(k - 1): what one dimension everywhere and a locally constant density give. `spread` well above it: the dimension, or the density
    within the neighbourhoods, differs from place to place. Neighbouring points share neighbours, so this is no test."""


def log_sums(logs: LogDistances) -> Float[Tensor, " n"]:
    """S_i of every point, from the k nearest."""
    return (logs.k - 1) * logs.at[logs.k] - logs.sum_below


def maximum_likelihood(sums: Float[Tensor, " n"], *, k: int) -> Float[Tensor, ""]:
    """N (k - 1) / sum S_i. Raises ConfigError for k < 2 and where every S_i is 0 (all k distances equal)."""
    _require_k(k, 2, where="maximum_likelihood")
    if not (sums > 0).any():
        raise ConfigError(f"points must not all have {k} neighbours at one distance, got no varying distance (maximum_likelihood)")
    return len(sums) * (k - 1) / sums.sum()


def unbiased_mean(sums: Float[Tensor, " n"], *, k: int) -> Float[Tensor, ""]:
    """Mean of (k - 2) / S_i; infinite where some S_i is 0. Raises ConfigError for k < 3."""
    _require_k(k, 3, where="unbiased_mean")
    return ((k - 2) / sums).mean()


def local_dimension(neighbours: NearestNeighbours, *, k: int) -> LocalDimension:
    """(k - 2) / S_i of every point; each has a relative standard deviation of 1 / sqrt(k - 3) (k > 3).

    Raises ConfigError for k outside 3..the neighbours found.
    """
    _require_k(k, 3, where="local_dimension")
    sums = log_sums(log_distances(neighbours, (k,)))
    spread = (sums.std() / sums.mean()).item() if len(sums) > 1 and sums.mean() > 0 else 0.0
    return LocalDimension(values=(k - 2) / sums, k=k, spread=spread, expected_spread=1 / sqrt(k - 1))


def _require_k(k: int, least: int, *, where: str) -> None:
    if k < least:
        raise ConfigError(f"k must be at least {least}, got {k} ({where})")
