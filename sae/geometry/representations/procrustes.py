"""Procrustes distances between shapes: how far apart two representations are once one may be turned.

    d(X, Y)^2 = min_Q ||X - Y Q||_F^2 = ||X||^2 + ||Y||^2 - 2 ||X^T Y||_*        Q with orthonormal columns or rows, || ||_* the nuclear norm
    cos theta = ||X^T Y||_* / (||X|| ||Y||)

of centred X [n, p], Y [n, q] (Schonemann 1966; Williams, Kunz, Kornblith & Linderman 2021, arXiv 2110.14739). Both d and theta are metrics. Columns
of zeros change nothing, so unequal widths need no padding. Partial whitening replaces X by

    X Z,  Z = (1 - alpha) Sigma^-1/2 + alpha I,      alpha = 1: Procrustes, alpha = 0: CCA,

with Sigma scaled to a mean eigenvalue of 1 first (so that Z does not depend on the units; the paper leaves the scale to the user) and the
result scaled back to the variance of X. Replacing Q by a permutation compares neurons rather than spaces.

From n stimuli the nuclear norm is biased upwards: cos theta of independent Gaussians of width p is about (8 / 3 pi) sqrt(p / n) for p << n.
`HeldOutProcrustes` fits Q on some stimuli and scores the others, `moments` estimates the norm without that bias.
"""

from dataclasses import dataclass
from math import acos, pi
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.representations.stimuli import RepresentationMeasure, centred_rows, narrowed, require_same_stimuli, varying_rows

Kind = Literal["angular", "euclidean"]


@dataclass(frozen=True)
class ProcrustesSimilarity(RepresentationMeasure):
    """cos theta, in [0, 1]. Invariant to rotation, scale and translation (alpha = 0: to every invertible linear map)."""

    alpha: float = 1.0
    """1 compares shapes, 0 whitens them first (mean canonical correlation, up to unequal ranks); in [0, 1]."""

    def prepare(self, x: Float[Tensor, "n d"]) -> Tensor:
        """Partially whitened rows in min(n, d) columns, of norm 1."""
        rows = _whitened(varying_rows(x, minimum=2, where="ProcrustesSimilarity"), self.alpha, x.dtype)
        return rows / rows.norm()

    def score(self, first: Tensor, second: Tensor, order: Int[Tensor, " n"] | None = None) -> float:
        """cos theta, the rows of `second` taken in `order`."""
        return min(1.0, float(torch.linalg.svdvals(first.T @ (second if order is None else second[order])).sum()))


@dataclass(frozen=True)
class PermutationSimilarity(RepresentationMeasure):
    """cos theta with a permutation of columns in place of Q; the narrower side is filled up with zeros. O(max(p, q)^3).

    Invariant to scale, translation and a permutation of columns; not to rotation.
    """

    def prepare(self, x: Float[Tensor, "n d"]) -> Tensor:
        """Centred rows of norm 1."""
        rows = varying_rows(x, minimum=2, where="PermutationSimilarity")
        return rows / rows.norm()

    def score(self, first: Tensor, second: Tensor, order: Int[Tensor, " n"] | None = None) -> float:
        """cos theta, the rows of `second` taken in `order`."""
        return _assignment(first.T @ (second if order is None else second[order]))[0]


@dataclass(frozen=True)
class HeldOutProcrustes(RepresentationMeasure):
    """Mean over folds of <X, Y Q> / (||X|| ||Y||) on one fold, Q and the means from the others. About 0 for independent representations.

    Negative values are chance. Where the training stimuli do not determine Q (fewer than columns), Q is zero.
    """

    n_folds: int = 5
    """Folds; the stimuli are dealt to them at random, the same way for every pair of representations."""
    seed: int = 0
    """Of the deal."""

    def prepare(self, x: Float[Tensor, "n d"]) -> Tensor:
        """Centred rows in min(n, d) columns."""
        if not 2 <= self.n_folds <= len(x) // 2:
            raise ConfigError(f"n_folds must be in 2..n/2={len(x) // 2}, got {self.n_folds}; take more stimuli (HeldOutProcrustes)")
        rows = varying_rows(x, minimum=4, where="HeldOutProcrustes")
        return narrowed(rows)

    def score(self, first: Tensor, second: Tensor, order: Int[Tensor, " n"] | None = None) -> float:
        """Held-out cosine, the rows of `second` taken in `order`."""
        other = second if order is None else second[order]
        deal = torch.randperm(len(first), generator=torch.Generator().manual_seed(self.seed)).to(first.device) % self.n_folds
        found = []
        for fold in range(self.n_folds):
            train = deal != fold
            alignment = _fit(first[train], other[train])
            found.append(alignment.score(first[~train], other[~train]))
        return sum(found) / len(found)


@dataclass(frozen=True, eq=False)
class Alignment:
    """A rotation of y onto x."""

    rotation: Float[Tensor, "q p"]
    """Q: x - x_mean is about (y - y_mean) Q. Orthonormal columns or rows where the stimuli determine it, zero elsewhere."""
    x_mean: Float[Tensor, " p"]
    """Mean of the rows of x it was fitted on."""
    y_mean: Float[Tensor, " q"]
    """Mean of the rows of y."""

    def apply(self, y: Float[Tensor, "n q"]) -> Float[Tensor, "n p"]:
        """Rows of y in x's space, float64."""
        return (y.double() - self.y_mean) @ self.rotation + self.x_mean

    def score(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
        """<X, Y Q> / (||X|| ||Y||) of new stimuli, both minus the fitted means; 0 where either is zero."""
        left, right = x.double() - self.x_mean, (y.double() - self.y_mean) @ self.rotation
        norms = float(left.norm() * (y.double() - self.y_mean).norm())
        return float((left * right).sum()) / norms if norms > 0 else 0.0


def procrustes_similarity(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, alpha: float = 1.0) -> float:
    """cos theta in [0, 1]; chance is not 0: see `compare_representations(ProcrustesSimilarity(), ...)`, `independent_procrustes_mean`."""
    return ProcrustesSimilarity(alpha=alpha)(x, y)


def shape_distance(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, kind: Kind = "angular", alpha: float = 1.0) -> float:
    """The metric theta in [0, pi/2] ("angular") or d ("euclidean", in the units of x, summed over stimuli) of the centred representations.

    Raises ConfigError for fewer than 2 stimuli, different numbers of rows, NaN or Inf, alpha outside [0, 1], another kind, equal rows.
    """
    cosine = procrustes_similarity(x, y, alpha=alpha)
    return _distance(cosine, x, y, kind)


def permutation_distance(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, kind: Kind = "angular") -> float:
    """The same distances with a permutation of columns in place of the rotation ("angular" is then in [0, pi]). Errors as `shape_distance`."""
    return _distance(PermutationSimilarity()(x, y), x, y, kind)


def procrustes_alignment(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> Alignment:
    """The Q that minimises ||X - Y Q||_F of the centred rows; apply it to new stimuli with `Alignment.apply`. Errors as `shape_distance`."""
    require_same_stimuli(x, y, where="procrustes_alignment")
    varying_rows(x, minimum=2, where="procrustes_alignment")
    varying_rows(y, minimum=2, where="procrustes_alignment")
    return _fit(x.detach().double(), y.detach().double())


def permutation_alignment(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> Int[Tensor, " p"]:
    """For each column of x the column of y it is matched with, -1 for none (where y is narrower). Errors as `shape_distance`."""
    require_same_stimuli(x, y, where="permutation_alignment")
    measure = PermutationSimilarity()
    return _assignment(measure.prepare(x).T @ measure.prepare(y))[1]


def independent_procrustes_mean(n: int, p: int) -> float:
    """(8 / 3 pi) sqrt(p / n): about the mean of cos theta of two independent standard Gaussians [n, p], for p << n (0.19 at 50 and 1000)."""
    if not 1 <= p < n:
        raise ConfigError(f"p must be in 1..n-1={n - 1}, got {p} (independent_procrustes_mean)")
    return 8 / (3 * pi) * (p / n) ** 0.5


def _whitened(rows: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    """Rows U diag(f) with f the singular values pulled towards their root mean square; the rotation V^T that is left out changes nothing."""
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must be in [0, 1], got {alpha} (procrustes)")
    if alpha == 1 and rows.shape[1] <= len(rows):
        return rows
    u, s, _ = torch.linalg.svd(rows, full_matrices=False)
    rank = int((s > max(rows.shape) * torch.finfo(torch.promote_types(dtype, torch.float32)).eps * s[0]).sum())
    u, s = u[:, :rank], s[:rank]
    factors = (1 - alpha) + alpha * s / s.square().mean().sqrt()
    return u * (factors * s.norm() / factors.norm())


def _fit(x: Tensor, y: Tensor) -> Alignment:
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    u, s, vh = torch.linalg.svd((y - y_mean).T @ (x - x_mean), full_matrices=False)
    kept = s > max(x.shape[1], y.shape[1]) * torch.finfo(s.dtype).eps * s[0]
    return Alignment(rotation=u[:, kept] @ vh[kept], x_mean=x_mean, y_mean=y_mean)


def _assignment(product: Tensor) -> tuple[float, Tensor]:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(product.cpu().numpy(), maximize=True)
    matched = torch.full((len(product),), -1, dtype=torch.int64, device=product.device)
    matched[torch.from_numpy(rows)] = torch.from_numpy(columns).to(product.device)
    return float(product[torch.from_numpy(rows), torch.from_numpy(columns)].sum()), matched


def _distance(cosine: float, x: Tensor, y: Tensor, kind: str) -> float:
    if kind == "angular":
        return acos(max(-1.0, min(1.0, cosine)))
    if kind != "euclidean":
        raise ConfigError(f"kind must be 'angular' or 'euclidean', got {kind!r} (shape_distance)")
    first, second = (float(centred_rows(each, minimum=2, where="shape_distance").norm()) for each in (x, y))
    return max(0.0, first**2 + second**2 - 2 * cosine * first * second) ** 0.5
