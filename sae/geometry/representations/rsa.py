"""Representational similarity analysis: compare who is how far from whom.

    RDM(x)_ij = dissimilarity of stimuli i and j,    RSA = correlation of the upper triangles of RDM(x) and RDM(y)

Kriegeskorte, Mur & Bandettini 2008, Frontiers in Systems Neuroscience 2:4. Dissimilarities: 1 - Pearson over columns ("correlation"; changes
under a rotation of the columns, which moves their mean), 1 - cosine, Euclidean, and the cross-validated Mahalanobis distance of repeated
measurements (Walther et al. 2016, NeuroImage 137), which is unbiased: zero on average for equal stimuli, and may be negative.

RDMs are vectors of n (n - 1) / 2 in the order of `scipy.spatial.distance.pdist`; n is limited to 4096, one block: `sample_stimuli` draws some.
The null shuffles stimuli, rows and columns of one RDM together; shuffling its entries would break the dependence within rows.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.representations.stimuli import RepresentationMeasure
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, unit_rows

Distance = Literal["correlation", "cosine", "euclidean"]
Comparison = Literal["spearman", "pearson", "kendall", "cosine"]
MOST_STIMULI = int(BLOCK_ELEMENTS**0.5)


@dataclass(frozen=True)
class Rsa(RepresentationMeasure):
    """Correlation of the RDMs of two representations, in [-1, 1]. Memory n^2, n <= 4096.

    Invariant to isotropic scale; to rotation ("cosine", "euclidean"); to translation ("euclidean").
    """

    distance: Distance = "correlation"
    """Dissimilarity of two stimuli."""
    comparison: Comparison = "spearman"
    """How RDMs are compared; "kendall" is tau-b, n^2 log n per score."""

    def prepare(self, x: Float[Tensor, "n d"]) -> Tensor:
        """The RDM [n, n]: ranked and standardised ("spearman"), standardised ("pearson"), normalised ("cosine") or as it is ("kendall")."""
        vector = rdm(x, distance=self.distance)
        return square_form(vector if self.comparison == "kendall" else _standardised(vector, self.comparison))

    def score(self, first: Tensor, second: Tensor, order: Int[Tensor, " n"] | None = None) -> float:
        """The comparison, the stimuli of `second` taken in `order`."""
        other = second if order is None else second[order][:, order]
        if self.comparison != "kendall":
            return float((first * other).sum() / 2)
        return rdm_similarity(upper_triangle(first), upper_triangle(other), comparison="kendall")


def rdm(x: Float[Tensor, "n d"], *, distance: Distance = "correlation") -> Float[Tensor, " pairs"]:
    """Dissimilarities of the pairs i < j, float64: 1 - Pearson correlation, 1 - cosine, or Euclidean distance.

    Raises ConfigError for fewer than 3 or more than 4096 stimuli, another distance, NaN or Inf, and a row that is zero ("cosine") or
    constant over the columns ("correlation"), which has no direction.
    """
    if distance not in ("correlation", "cosine", "euclidean"):
        raise ConfigError(f"distance must be 'correlation', 'cosine' or 'euclidean', got {distance!r} (rdm)")
    _require_count(len(x))
    require_points(x, minimum=3, argument="a representation", where="rdm")
    rows = x.detach().double()
    if distance == "euclidean":
        return torch.nn.functional.pdist(rows - rows.mean(dim=0))
    if distance == "correlation":
        scale = rows.abs().amax(dim=1, keepdim=True)
        rows = rows - rows.mean(dim=1, keepdim=True)
        flat = (rows.abs().amax(dim=1, keepdim=True) <= 4 * torch.finfo(torch.float64).eps * scale).flatten()
        if flat.any():
            raise ConfigError(
                f"a representation must have no row that is constant over its columns, got {int(flat.sum())} of {len(x)}, first row "
                f"{int(flat.nonzero()[0])}; drop these stimuli or use distance='euclidean' (rdm)"
            )
    rows = unit_rows(rows, minimum=3, argument="a representation", where="rdm")
    return upper_triangle((1 - rows @ rows.T).clamp_(0, 2))


def crossvalidated_rdm(
    repeats: Float[Tensor, "repeats n d"], *, noise_covariance: Float[Tensor, "d d"] | None = None
) -> Float[Tensor, " pairs"]:
    """The cross-validated squared Mahalanobis distance ("crossnobis") of the pairs i < j, float64, per column:

        d_ij = 1/d mean_{a != b} (x_i^a - x_j^a) Sigma^-1 (x_i^b - x_j^b)^T      a, b independent measurements of the same stimuli

    Unbiased for the squared distance of the true patterns; negative values are noise. `noise_covariance` None is the identity. Raises
    ConfigError for fewer than 2 repeats, fewer than 2 or more than 4096 stimuli, NaN or Inf, and a covariance that is not positive definite.
    """
    n_repeats, n, d = repeats.shape
    if n_repeats < 2 or n < 2 or d < 1:
        raise ConfigError(
            f"repeats must hold at least 2 measurements of 2 stimuli in 1 column, got shape {tuple(repeats.shape)} (crossvalidated_rdm)"
        )
    _require_count(n)
    require_points(repeats.flatten(0, 1), minimum=4, argument="repeats", where="crossvalidated_rdm")
    patterns = repeats.detach().double()
    if noise_covariance is not None:
        factor, info = torch.linalg.cholesky_ex(noise_covariance.double())
        if int(info) != 0 or not noise_covariance.isfinite().all():
            raise ConfigError("noise_covariance must be positive definite; shrink it (residual_covariance) (crossvalidated_rdm)")
        patterns = torch.linalg.solve_triangular(factor, patterns.transpose(1, 2), upper=False).transpose(1, 2)
    patterns = patterns - patterns.mean(dim=1, keepdim=True)
    total = patterns.sum(dim=0)
    cross = total @ total.T - torch.einsum("rid,rjd->ij", patterns, patterns)  # sum over a != b of x_i^a . x_j^b
    own = cross.diagonal()
    return upper_triangle(own[:, None] + own - 2 * cross) / (d * n_repeats * (n_repeats - 1))


def residual_covariance(repeats: Float[Tensor, "repeats n d"], *, shrinkage: float = 0.0) -> Float[Tensor, "d d"]:
    """The pooled covariance of repeats around their stimulus means, with n (repeats - 1) degrees of freedom, pulled towards its diagonal:
    (1 - shrinkage) S + shrinkage diag(S); float64. Raises ConfigError unless shrinkage is in [0, 1] and there are 2 repeats or more.
    """
    n_repeats, n, _ = repeats.shape
    if n_repeats < 2 or not 0 <= shrinkage <= 1:
        raise ConfigError(f"shrinkage must be in [0, 1] and repeats at least 2, got {shrinkage} and {n_repeats} (residual_covariance)")
    residuals = (repeats.detach().double() - repeats.double().mean(dim=0)).flatten(0, 1)
    covariance = residuals.T @ residuals / (n * (n_repeats - 1))
    return (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().diag()


def rdm_similarity(first: Float[Tensor, " pairs"], second: Float[Tensor, " others"], *, comparison: Comparison = "spearman") -> float:
    """How alike two RDMs are: Spearman (ties share their mean rank), Pearson, Kendall's tau-b or cosine. Raises ConfigError for different
    lengths, another comparison, NaN or Inf, and an RDM without variation (zero, for "cosine").
    """
    if len(first) != len(second):
        raise ConfigError(f"both RDMs must hold the same pairs, got {len(first)} and {len(second)} (rdm_similarity)")
    if comparison == "kendall":
        from scipy.stats import kendalltau

        _standardised(first, "pearson"), _standardised(second, "pearson")  # the same refusals
        return float(kendalltau(first.double().cpu().numpy(), second.double().cpu().numpy()).statistic)
    return float(_standardised(first, comparison) @ _standardised(second, comparison))


def average_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks from 1, float64; equal values share the mean of their ranks."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def square_form(vector: Shaped[Tensor, " pairs"]) -> Shaped[Tensor, "n n"]:
    """The symmetric matrix with `vector` above its diagonal, row by row, and zeros on it. Raises ConfigError unless n (n - 1) / 2 long."""
    n = round((1 + (1 + 8 * len(vector)) ** 0.5) / 2)
    if n * (n - 1) // 2 != len(vector):
        raise ConfigError(f"an RDM must have n (n - 1) / 2 entries, got {len(vector)}; give the upper triangle (square_form)")
    _require_count(n)
    matrix = vector.new_zeros(n, n)
    rows, columns = torch.triu_indices(n, n, offset=1, device=vector.device)
    matrix[rows, columns] = vector
    return matrix + matrix.T


def upper_triangle(matrix: Shaped[Tensor, "n n"]) -> Shaped[Tensor, " pairs"]:
    """The entries i < j of a symmetric matrix, row by row."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return matrix[rows, columns]


def sample_stimuli(n: int, n_kept: int, *, generator: torch.Generator) -> Int[Tensor, " kept"]:
    """min(n, n_kept) different row numbers, ascending, uniform; give the same ones to both representations. CPU or the generator's device."""
    if n < 1 or n_kept < 1:
        raise ConfigError(f"n and n_kept must be at least 1, got {n} and {n_kept} (sample_stimuli)")
    return torch.randperm(n, generator=generator, device=generator.device)[:n_kept].sort().values


def _require_count(n: int) -> None:
    if n > MOST_STIMULI:
        raise ConfigError(f"an RDM has n^2 / 2 entries: n must be at most {MOST_STIMULI}, got {n}; draw some with sample_stimuli (rdm)")


def _standardised(vector: Tensor, comparison: str) -> Tensor:
    """Scaled to norm 1 so that the comparison is a dot product; centred and ranked where it asks for it."""
    if comparison not in ("spearman", "pearson", "cosine"):
        raise ConfigError(f"comparison must be 'spearman', 'pearson', 'kendall' or 'cosine', got {comparison!r} (rsa)")
    if not vector.isfinite().all():
        raise ConfigError("an RDM must be finite, got NaN or Inf; replace distances between disconnected stimuli first (rsa)")
    values = average_ranks(vector) if comparison == "spearman" else vector.detach().double()
    scale = values.abs().max() if len(values) else values.new_zeros(())
    if comparison != "cosine":
        values = values - values.mean()
    if len(values) == 0 or values.abs().max() <= 1e-14 * scale or scale == 0:
        raise ConfigError(f"an RDM must vary over its pairs, got {len(vector)} equal entries; use other stimuli (rsa)")
    return values / values.norm()
