"""Which coordinates tell two classes apart: one score per column, and the k best.

    mean difference            m_j = mu+_j - mu-_j
    standardized difference    m_j / sd_j                                            sd over all rows
    pooled t                   m_j / (s_j sqrt(1/n+ + 1/n-)),   s_j^2 = (SS+_j + SS-_j) / (n - 2)
    F                          (pooled t)^2, the analysis of variance with two classes
    Welch t                    m_j / sqrt(v+_j / n+ + v-_j / n-)

Gurnee, Nanda, Pauly, Harvey, Troitskii and Bertsimas, "Finding Neurons in a Haystack", 2023, arXiv 2305.01610, section 3. The standardized
difference, pooled t and F order the columns alike; the mean difference depends on the columns' scales, and Welch's t does not assume
equal variances. Weights count rows: a row of weight 2 is a row given twice, a row of weight 0 is absent. Sums are float64. A sparse
matrix stays sparse.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

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
Ranking = Literal["mean_difference", "standardized_difference", "pooled_t", "f_statistic", "welch_t"]
COLUMNS_PER_BLOCK = 1024


class Moments(NamedTuple):
    """Weighted moments of the columns of a matrix."""

    total: float
    """Sum of the weights."""
    mean: Scores
    """Mean of each column."""
    variance: Scores
    """Mean squared deviation of each column (divided by the total); exactly 0 where it is only rounding."""


def moments(X: Matrix, weight: Float[np.ndarray, " n"]) -> Moments:
    """Mean and variance of each column with row weights, in two passes and float64. Raises ConfigError if the weights sum to 0."""
    total = float(weight.sum())
    if not total > 0:
        raise ConfigError(f"weights must have a positive sum, got {total} over {len(weight)} rows (moments)")
    mean, variance = _sparse_moments(X, weight, total) if sparse.issparse(X) else _dense_moments(X, weight, total)
    rounding = len(weight) * np.finfo(np.float64).eps * np.abs(mean)
    variance[variance <= rounding**2] = 0.0
    return Moments(total, mean, variance)


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


class _Classes(NamedTuple):
    """The two classes' moments, and the difference of their means."""

    positive: Moments
    negative: Moments
    difference: Scores


def _classes(X: Matrix, y: Labels, sample_weight: Float[np.ndarray, " n"] | None) -> _Classes:
    y = np.asarray(y)
    if not np.isin(y, (0, 1)).all():
        raise ConfigError(f"y must hold 0 and 1 only, got {np.unique(y)[:5].tolist()} (ranking)")
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    totals = [float(weight[y == label].sum()) for label in (0, 1)]
    if min(totals) <= 0:
        raise ConfigError(f"y must hold both classes, got total weight {totals[0]:g} of class 0 and {totals[1]:g} of class 1 (ranking)")
    positive, negative = moments(X, weight * (y == 1)), moments(X, weight * (y == 0))
    difference = positive.mean - negative.mean
    rounding = len(y) * np.finfo(np.float64).eps * (np.abs(positive.mean) + np.abs(negative.mean))
    return _Classes(positive, negative, np.where(np.abs(difference) <= rounding, 0.0, difference))


def _ratio(difference: Scores, scale: Scores) -> Scores:
    """difference / scale; 0 where the difference is 0, infinite where only the scale is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / scale)


def mean_difference(X: Matrix, y: Labels, sample_weight: Float[np.ndarray, " n"] | None = None) -> Scores:
    """mu+ - mu-, in the units of X."""
    return _classes(X, y, sample_weight).difference


def standardized_difference(X: Matrix, y: Labels, sample_weight: Float[np.ndarray, " n"] | None = None) -> Scores:
    """(mu+ - mu-) / sd, with the standard deviation over all rows: at most 1 / sqrt(p (1 - p)) at a class share p, 0 if constant."""
    positive, negative, difference = _classes(X, y, sample_weight)
    share = positive.total / (positive.total + negative.total)
    variance = share * positive.variance + (1 - share) * negative.variance + share * (1 - share) * difference**2
    return _ratio(difference, np.sqrt(variance))


def pooled_t(X: Matrix, y: Labels, sample_weight: Float[np.ndarray, " n"] | None = None) -> Scores:
    """Student's t with the pooled variance; 0 for a constant column, infinite for a column that is constant within classes only."""
    positive, negative, difference = _classes(X, y, sample_weight)
    squares = positive.total * positive.variance + negative.total * negative.variance
    freedom = _freedom(positive.total + negative.total - 2, "pooled_t")
    return _ratio(difference, np.sqrt(squares / freedom * (1 / positive.total + 1 / negative.total)))


def f_statistic(X: Matrix, y: Labels, sample_weight: Float[np.ndarray, " n"] | None = None) -> Scores:
    """F of the analysis of variance with two classes: the square of `pooled_t`."""
    return pooled_t(X, y, sample_weight) ** 2


def welch_t(X: Matrix, y: Labels, sample_weight: Float[np.ndarray, " n"] | None = None) -> Scores:
    """Welch's t, each class with its own variance; needs two rows of each class. 0 for a constant column."""
    positive, negative, difference = _classes(X, y, sample_weight)
    errors = [m.variance / _freedom(m.total - 1, "welch_t") for m in (positive, negative)]  # (n / (n - 1)) variance / n
    return _ratio(difference, np.sqrt(errors[0] + errors[1]))


def _freedom(value: float, where: str) -> float:
    if value <= 0:
        raise ConfigError(f"y must leave degrees of freedom for a variance, got {value:g} ({where})")
    return value


RANKINGS: dict[str, Callable[..., Scores]] = {
    "mean_difference": mean_difference,
    "standardized_difference": standardized_difference,
    "pooled_t": pooled_t,
    "f_statistic": f_statistic,
    "welch_t": welch_t,
}
assert tuple(RANKINGS) == get_args(Ranking)


def rank(X: Matrix, y: Labels, sample_weight: Float[np.ndarray, " n"] | None = None, *, ranking: str = "mean_difference") -> Scores:
    """The scores of every column under the named ranking. Raises ConfigError for an unknown name, or a y that is not 0 and 1, both."""
    if ranking not in RANKINGS:
        raise ConfigError(f"ranking must be one of {', '.join(RANKINGS)}, got {ranking!r} (rank)")
    return RANKINGS[ranking](X, y, sample_weight)


def random_scores(d: int, *, seed: int) -> Scores:
    """A control, not a method: the numbers 1..d in a seeded random order, so that the top k are k coordinates drawn without looking."""
    return np.random.default_rng(seed).permutation(d) + 1.0


def top_k(scores: Scores, k: int) -> Int[np.ndarray, " k"]:
    """The k columns with the largest |score|, best first; of equal scores the lowest index. ConfigError for k outside 1..d, for NaN."""
    if not 1 <= k <= len(scores):
        raise ConfigError(f"k must be in 1..d={len(scores)}, got {k} (top_k)")
    if np.isnan(scores).any():
        raise ConfigError(f"scores must not hold NaN, got {int(np.isnan(scores).sum())} of {len(scores)} (top_k)")
    return np.lexsort((np.arange(len(scores)), -np.abs(scores)))[:k]
