"""Linear dimension: how many directions the covariance needs, over the whole cloud and within neighbourhoods.

    PCA at share s        smallest m with l_1 + ... + l_m >= s (l_1 + ... + l_d): the component that crosses s is counted
    Fukunaga-Olsen        number of l_i > alpha l_1                                    Fukunaga & Olsen 1971, IEEE Trans. Comput. C-20
    participation ratio   (sum l)^2 / sum l^2
    local PCA             Fukunaga-Olsen on the k nearest neighbours of a point and the point itself, averaged over points

A curved surface has as many linear dimensions as its bends; a small enough neighbourhood of it has few. With k neighbours no more than k are
seen, and k must be several times the dimension.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.dimension.intervals import random_part
from sae.geometry.dimension.neighbours import NearestNeighbours
from sae.geometry.spectrum import covariance_eigenvalues, participation_ratio


@dataclass(frozen=True, eq=False)
class LinearDimension:
    """Dimensions that the spectrum of the covariance alone gives."""

    pca_90: int
    """Components for 90 % of the variance."""
    pca_99: int
    """Components for 99 % of the variance."""
    participation_ratio: float
    """(sum l)^2 / sum l^2."""
    fukunaga_olsen: int
    """Eigenvalues above alpha times the largest."""
    eigenvalues: Float[Tensor, " d"]
    """Of the covariance, largest first, float64."""


@dataclass(frozen=True)
class LocalPca:
    """Fukunaga-Olsen within neighbourhoods."""

    value: float
    """Mean over the neighbourhoods."""
    sd: float
    """Standard deviation over the neighbourhoods, whose estimates share points where the neighbourhoods do."""
    k: int
    """Neighbours of each; an upper bound on the value."""
    n_anchors: int
    """Neighbourhoods looked at."""


def pca_dimension(eigenvalues: Float[Tensor, " d"], *, share: float) -> int:
    """Fewest leading eigenvalues whose sum is at least `share` of the total; the one that crosses is counted.

    Raises ConfigError unless 0 < share <= 1 and the eigenvalues are finite, not negative and not all 0.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share must be in (0, 1], got {share} (pca_dimension)")
    ordered = _ordered(eigenvalues, where="pca_dimension")
    reached = ordered.cumsum(dim=0) / ordered.sum() >= share * (1 - 1e-12)
    return int(reached.long().argmax()) + 1


def fukunaga_olsen(eigenvalues: Float[Tensor, " d"], *, alpha: float = 0.05) -> int:
    """Number of eigenvalues above `alpha` times the largest. Raises ConfigError unless 0 < alpha < 1, and as `pca_dimension`."""
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must be inside (0, 1), got {alpha} (fukunaga_olsen)")
    ordered = _ordered(eigenvalues, where="fukunaga_olsen")
    return int((ordered > alpha * ordered[0]).sum())


def linear_dimension(points: Float[Tensor, "n d"], *, alpha: float = 0.05) -> LinearDimension:
    """All linear dimensions of a cloud from one eigendecomposition. Time N d^2 + d^3. Raises ConfigError as `covariance_eigenvalues`."""
    values = covariance_eigenvalues(points)
    return LinearDimension(
        pca_90=pca_dimension(values, share=0.9),
        pca_99=pca_dimension(values, share=0.99),
        participation_ratio=participation_ratio(values),
        fukunaga_olsen=fukunaga_olsen(values, alpha=alpha),
        eigenvalues=values,
    )


def local_pca(neighbours: NearestNeighbours, *, generator: torch.Generator, k: int, alpha: float = 0.05, n_anchors: int = 500) -> LocalPca:
    """Fukunaga-Olsen of the k nearest neighbours of `n_anchors` random points (all, if there are fewer). Time n_anchors (k^2 d + k^3).

    Raises ConfigError for k outside 2..the neighbours found, n_anchors < 1, and alpha outside (0, 1).
    """
    n, found = neighbours.distances.shape
    if not 2 <= k <= found or n_anchors < 1 or not 0 < alpha < 1:
        raise ConfigError(
            f"k must be in 2..{found}, n_anchors at least 1, alpha inside (0, 1), got {k}, {n_anchors} and {alpha} (local_pca)"
        )
    points = neighbours.points
    anchors = random_part(n, min(n, n_anchors), generator, points.device).nonzero().flatten()
    counts = []
    for part in anchors.split(8):
        # Differences to the anchor keep the digits of small neighbourhoods; the anchor itself is the zero row.
        near = points[neighbours.ids[part, :k]].double() - points[part, None].double()
        near = torch.cat([near, near.new_zeros(len(part), 1, near.shape[2])], dim=1)
        near = near / near.abs().amax(dim=(1, 2), keepdim=True)
        near = near - near.mean(dim=1, keepdim=True)
        product = near @ near.mT if k < near.shape[2] else near.mT @ near
        values = torch.linalg.eigvalsh(product)
        counts.append((values > alpha * values[:, -1:]).sum(dim=1))
    each = torch.cat(counts).double()
    return LocalPca(value=each.mean().item(), sd=each.std().item() if len(each) > 1 else 0.0, k=k, n_anchors=len(each))


def _ordered(eigenvalues: Float[Tensor, " d"], *, where: str) -> Float[Tensor, " d"]:
    values = eigenvalues.detach().double().sort(descending=True).values
    if len(values) == 0 or not values.isfinite().all() or values[-1] < 0 or values[0] <= 0:
        raise ConfigError(f"eigenvalues must be finite, none negative and not all zero, got {values.tolist()[:8]} ({where})")
    return values
