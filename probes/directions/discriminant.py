"""Fisher's discriminant with a shrunk covariance, told by a low-rank factor and a diagonal so that no d x d matrix is formed for d > n.

    Sigma_k = (1 - s_k) S_k + s_k T_k,     S_k = C_k' C_k / n_k,     C_k the rows of class k less their mean
    Sigma   = sum_k (n_k / n) Sigma_k = F'F + diag(t)
    w       = Sigma^-1 b = t^-1/2 (I + G'G)^-1 t^-1/2 b,    G = F t^-1/2,     (I + G'G)^-1 c = c - G' (I + G G')^-1 G c

T_k is the diagonal of S_k in the automatic case (the scaled identity of Ledoit & Wolf in z-scored columns), else mean variance times I.
Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate Analysis 88 (2004), with

    s = min(beta, delta) / delta,   beta = (mean_i ||z_i||^4 - ||S||^2) / (n d),   delta = ||S||^2 / d - (tr S / d)^2,   ||S|| = ||Z Z'|| / n
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_factor, cho_solve

from probes.shrinkage import ledoit_wolf_shrinkage

NEGLIGIBLE = 1e-7
"""A part of the mean difference smaller than this share of it is taken for rounding."""


class Within(NamedTuple):
    """The covariance within classes, factor' factor + diag(diagonal)."""

    factor: Float[np.ndarray, "n d"]
    """Weighted deviations of the rows from their class mean."""
    diagonal: Float[np.ndarray, " d"]
    """What shrinkage adds to the variance of each column; all positive, or all 0."""


def within_covariance(X: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], *, shrinkage: float | int | Literal["auto"]) -> Within:
    """The covariance within classes with its shrinkage, classes weighted by their share of the rows; y holds 0 and 1."""
    n, d = X.shape
    factors, diagonal = [], np.zeros(d)
    for label in (0, 1):
        rows = X[y == label]
        mean = rows.mean(axis=0)
        deviation = rows - mean
        variance = (deviation**2).mean(axis=0)
        scale = np.ones(d)
        if shrinkage == "auto":
            rounding = len(rows) * np.finfo(np.float64).eps * np.abs(mean)
            scale = np.sqrt(np.where(variance > rounding**2, variance, 1.0))
            share = ledoit_wolf_shrinkage(deviation / scale)
        else:
            share = float(shrinkage)
        prior = len(rows) / n
        diagonal += prior * share * float((variance / scale**2).mean()) * scale**2
        factors.append(np.sqrt(prior * (1 - share) / len(rows)) * deviation)
    return Within(np.concatenate(factors), diagonal)


def discriminant(within: Within, difference: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Sigma^-1 difference. Where Sigma is singular: the limit, up to length, of (Sigma + e I)^-1 difference as e goes to 0."""
    factor, diagonal = within
    if not diagonal.min() > 0:
        return _limit(factor, difference)
    root = np.sqrt(diagonal)
    g, c = factor / root, difference / root
    n, d = g.shape
    if n < d:
        return (c - g.T @ cho_solve(cho_factor(np.eye(n) + g @ g.T), g @ c)) / root
    return cho_solve(cho_factor(np.eye(d) + g.T @ g), c) / root


def _limit(factor: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """(F'F)^-1 b, or the part of b outside the rows of F where there is one."""
    _, singular, basis = np.linalg.svd(factor, full_matrices=False)
    kept = singular > singular.max(initial=0.0) * max(factor.shape) * np.finfo(np.float64).eps
    singular, basis = singular[kept], basis[kept]
    inside = basis @ difference
    outside = difference - basis.T @ inside
    outside -= basis.T @ (basis @ outside)
    if np.linalg.norm(outside) > NEGLIGIBLE * np.linalg.norm(difference):
        return outside
    return basis.T @ (inside / singular**2)
