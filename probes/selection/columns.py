"""The columns of a matrix, dense or sparse: their moments with row weights, their z-scores, and the types that say so.

    mean_j = sum_i w_i x_ij / sum_i w_i,      var_j = sum_i w_i (x_ij - mean_j)^2 / sum_i w_i,      z_ij = (x_ij - mean_j) / sd_j

Weights count rows: a row of weight 2 is a row given twice, a row of weight 0 is absent. Sums are float64. A sparse matrix stays sparse: its
z-scores are scaled and not centred, which a rule with a free intercept cannot tell from centred ones.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from sae.errors import ConfigError

if TYPE_CHECKING:
    Matrix: TypeAlias = Any  # scipy has no static types
else:
    Matrix = Float[np.ndarray, "n d"] | sparse.csr_matrix | sparse.csr_array
Labels = Int[np.ndarray, " n"] | Bool[np.ndarray, " n"]
Scores = Float[np.ndarray, " d"]
Weights = Float[np.ndarray, " n"]
COLUMNS_PER_BLOCK = 1024


class Moments(NamedTuple):
    """Weighted moments of the columns of a matrix."""

    total: float
    """Sum of the weights."""
    mean: Scores
    """Mean of each column."""
    variance: Scores
    """Mean squared deviation of each column (divided by the total); exactly 0 where it is only rounding."""


class ZScores(NamedTuple):
    """The columns in units of their standard deviations."""

    z: Any
    """float64 [n, d]: dense and centred, or a sparse csr matrix that is scaled only. A constant column is 0."""
    mean: Scores
    """What was subtracted: the means, or zeros for a sparse matrix."""
    scale: Scores
    """What was divided by; 1 for a constant column."""
    constant: Bool[np.ndarray, " d"]
    """Columns without variance."""


def moments(X: Matrix, weight: Weights) -> Moments:
    """Mean and variance of each column with row weights, in two passes and float64. Raises ConfigError if the weights sum to 0."""
    total = float(weight.sum())
    if not total > 0:
        raise ConfigError(f"weights must have a positive sum, got {total} over {len(weight)} rows (moments)")
    mean, variance = _sparse_moments(X, weight, total) if sparse.issparse(X) else _dense_moments(X, weight, total)
    rounding = len(weight) * np.finfo(np.float64).eps * np.abs(mean)
    variance[variance <= rounding**2] = 0.0
    return Moments(total, mean, variance)


def z_scores(X: Matrix, weight: Weights) -> ZScores:
    """The columns of X as z-scores of the weighted rows. Raises ConfigError if the weights sum to 0."""
    _, mean, variance = moments(X, weight)
    constant = variance == 0
    scale = np.sqrt(np.where(constant, 1.0, variance))
    if sparse.issparse(X):
        z = X.astype(np.float64).multiply(np.where(constant, 0.0, 1 / scale)).tocsr()
        return ZScores(z, np.zeros_like(mean), scale, constant)
    return ZScores(np.where(constant, 0.0, (X.astype(np.float64) - mean) / scale), mean, scale, constant)


def class_weights(y: Labels, sample_weight: Weights) -> Weights:
    """Row weights under which both of two classes (0 and 1) have half of the total: w_i n / (2 n_class)."""
    total = [float(sample_weight[y == label].sum()) for label in (0, 1)]
    return sample_weight * sum(total) / (2 * np.where(y == 1, total[1], total[0]))


def _dense_moments(X: Matrix, weight: np.ndarray, total: float) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = np.empty(X.shape[1]), np.empty(X.shape[1])
    for start in range(0, X.shape[1], COLUMNS_PER_BLOCK):
        block = slice(start, start + COLUMNS_PER_BLOCK)
        x = X[:, block].astype(np.float64)
        mean[block] = weight @ x / total
        variance[block] = weight @ (x - mean[block]) ** 2 / total
    return mean, variance


def _sparse_moments(X: Matrix, weight: np.ndarray, total: float) -> tuple[np.ndarray, np.ndarray]:
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()
    d = X.shape[1]
    row_weight = np.repeat(weight, np.diff(X.indptr))
    values = X.data.astype(np.float64)
    mean = np.bincount(X.indices, row_weight * values, d) / total
    stored = np.bincount(X.indices, row_weight, d)
    squares = np.bincount(X.indices, row_weight * (values - mean[X.indices]) ** 2, d)
    return mean, (squares + np.maximum(total - stored, 0.0) * mean**2) / total
