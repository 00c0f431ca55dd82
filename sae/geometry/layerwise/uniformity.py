"""Alignment of pairs and uniformity of rows on the sphere.

    alignment     mean_i |x_i - y_i|^a                              a = 2                Wang & Isola 2020 (arXiv 2005.10242)
    uniformity    ln mean_{i<j} exp(-t |x_i - x_j|^2)               t = 2
    sphere        -2 t + ln 0F1(; d/2; t^2)                         uniformity of the uniform distribution on the sphere of R^d
    Wasserstein   -W_2,   W_2^2 = |m|^2 + 1 + tr S - 2 / sqrt(d) tr S^{1/2}             Fang et al. 2024 (arXiv 2403.00642)

All on rows of unit length. m and S are the mean and the covariance (divided by n) of the rows; W_2 is the distance of the Gaussian with m and S
from that with mean 0 and covariance I / d. The logarithm of a mean of exponentials hardly sees a collapse of dimensions (16 dimensions -3.51, half of
them collapsed -3.08); the Wasserstein distance does (0 and -0.765; a single point -sqrt 2).
"""

from math import lgamma, log

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.layerwise.contrast import require_pair
from sae.geometry.nulls import NullStatistic, compare, random_directions
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks, unit_rows


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, exponent: float = 2.0) -> float:
    """mean |x - y|^exponent over pairs of unit rows: 0 where the views agree, 2 for exponent 2 where they are orthogonal, at most 2^exponent.

    Raises ConfigError for views of different shapes, no rows, zero rows, NaN or Inf, and an exponent that is not positive.
    """
    left, right = _two(first, second, exponent)
    return (left - right).norm(dim=1).pow(exponent).mean().item()


def compare_alignment(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, exponent: float = 2.0, n_null: int, generator: torch.Generator
) -> NullStatistic:
    """`alignment` against the views paired at random; small values are the effect. Errors as `alignment`, and n_null < 2."""
    left, right = _two(first, second, exponent)

    def aligned(order: Tensor) -> float:
        return (left - right[order]).norm(dim=1).pow(exponent).mean().item()

    orders = (torch.randperm(len(left), generator=generator, device=generator.device).to(left.device) for _ in range(n_null))
    value = aligned(torch.arange(len(left), device=left.device))
    return compare(value, torch.tensor([aligned(order) for order in orders], dtype=torch.float64))


def _two(first: Tensor, second: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    if not 0 < exponent < torch.inf:
        raise ConfigError(f"exponent must be positive, got {exponent} (alignment)")
    require_pair(first, second, minimum=1, where="alignment")
    left = unit_rows(first.double(), minimum=1, argument="first", where="alignment")
    return left, unit_rows(second.double(), minimum=1, argument="second", where="alignment")


def uniformity(points: Float[Tensor, "n d"], *, scale: float = 2.0, block_elements: int = BLOCK_ELEMENTS) -> float:
    """ln mean exp(-t |x - y|^2) over all pairs of different rows, each of unit length; t = `scale`. Between -4 t and 0.

    Time n^2 d, memory a few times `block_elements`; for many rows see `sampled_uniformity`.
    Raises ConfigError for fewer than 2 rows, zero rows, NaN or Inf, and a scale that is not positive.
    """
    rows = _rows(points, scale)
    parts = []
    for block in row_blocks(len(rows), len(rows), block_elements, where="uniformity"):
        exponents = 2 * scale * (rows[block] @ rows.T).clamp(-1, 1)
        exponents.diagonal(offset=block.start).fill_(-torch.inf)
        parts.append(torch.logsumexp(exponents.flatten(), dim=0))
    n = len(rows)
    return (torch.logsumexp(torch.stack(parts), dim=0) - log(n * (n - 1)) - 2 * scale).item()


def sampled_uniformity(points: Float[Tensor, "n d"], *, scale: float = 2.0, n_pairs: int = 10**6, generator: torch.Generator) -> float:
    """`uniformity` over `n_pairs` random pairs of different rows. Time n_pairs d. Errors as `uniformity`, and n_pairs < 1."""
    rows = _rows(points, scale)
    if n_pairs < 1:
        raise ConfigError(f"n_pairs must be at least 1, got {n_pairs} (sampled_uniformity)")
    n, device = len(rows), generator.device
    first = torch.randint(n, (n_pairs,), generator=generator, device=device).to(rows.device)
    second = (first + torch.randint(1, n, (n_pairs,), generator=generator, device=device).to(rows.device)) % n
    blocks = row_blocks(n_pairs, rows.shape[1], BLOCK_ELEMENTS, where="sampled_uniformity")
    parts = [torch.logsumexp(2 * scale * (rows[first[b]] * rows[second[b]]).sum(dim=1).clamp(-1, 1), dim=0) for b in blocks]
    return (torch.logsumexp(torch.stack(parts), dim=0) - log(n_pairs) - 2 * scale).item()


def compare_uniformity(points: Float[Tensor, "n d"], *, scale: float = 2.0, n_null: int, generator: torch.Generator) -> NullStatistic:
    """`uniformity` against as many independent uniform directions, whose mean is near `sphere_uniformity`; large values are the effect.

    Errors as `uniformity`, and n_null < 2.
    """
    value = uniformity(points, scale=scale)
    draws = [uniformity(random_directions(len(points), points.double(), generator=generator), scale=scale) for _ in range(n_null)]
    return compare(value, torch.tensor(draws, dtype=torch.float64))


def sphere_uniformity(d: int, *, scale: float = 2.0) -> float:
    """Uniformity of the uniform distribution on the unit sphere of R^d: -2 t + ln 0F1(; d/2; t^2), the series summed in logarithms.

    Raises ConfigError for d < 1 and a scale that is not positive.
    """
    if d < 1 or not 0 < scale < torch.inf:
        raise ConfigError(f"d must be at least 1 and scale positive, got {d} and {scale} (sphere_uniformity)")
    half = d / 2
    k = torch.arange(int(4 * scale) + 64, dtype=torch.float64)  # from k > 1.5 t on each term is less than half of the one before
    terms = 2 * k * log(scale) - torch.lgamma(half + k) + lgamma(half) - torch.lgamma(k + 1)
    return torch.logsumexp(terms, dim=0).item() - 2 * scale


def wasserstein_uniformity(points: Float[Tensor, "n d"]) -> float:
    """-W_2 between the Gaussian of the unit rows' mean and covariance and that of the uniform sphere: 0 is uniform, -sqrt 2 a single point.

    Time n d min(n, d). Raises ConfigError for no rows, zero rows, NaN or Inf.
    """
    rows = unit_rows(points.double(), minimum=1, argument="points", where="wasserstein_uniformity")
    n, d = rows.shape
    mean = rows.mean(dim=0)
    centred = rows - mean
    values = torch.linalg.eigvalsh(centred @ centred.T if n < d else centred.T @ centred) / n
    values = values.where(values > max(n, d) * torch.finfo(torch.float64).eps * values[-1], 0)
    squared = mean.square().sum() + 1 + values.sum() - 2 / d**0.5 * values.sqrt().sum()
    return -squared.clamp(min=0).sqrt().item()


def compare_wasserstein_uniformity(points: Float[Tensor, "n d"], *, n_null: int, generator: torch.Generator) -> NullStatistic:
    """`wasserstein_uniformity` against as many independent uniform directions; small values are the effect. Errors as the measure's."""
    value = wasserstein_uniformity(points)
    draws = [wasserstein_uniformity(random_directions(len(points), points.double(), generator=generator)) for _ in range(n_null)]
    return compare(value, torch.tensor(draws, dtype=torch.float64))


def _rows(points: Tensor, scale: float) -> Tensor:
    if not 0 < scale < torch.inf:
        raise ConfigError(f"scale must be positive, got {scale} (uniformity)")
    return unit_rows(points.double(), minimum=2, argument="points", where="uniformity")
