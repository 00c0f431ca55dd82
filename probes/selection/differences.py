"""Scores in closed form: how far the classes' means are apart, and how far a column and a number go together.

    mean difference            m_j = mu+_j - mu-_j
    standardized difference    m_j / sd_j                                            sd over all rows
    pooled t                   m_j / (s_j sqrt(1/n+ + 1/n-)),   s_j^2 = (SS+_j + SS-_j) / (n - 2)
    F                          [sum_c n_c (mu_cj - mu_j)^2 / (C - 1)] / [sum_c SS_cj / (n - C)]      = (pooled t)^2 for C = 2 classes
    Welch t                    m_j / sqrt(v+_j / n+ + v-_j / n-)
    correlation                r_j = cov(x_j, y) / (sd x_j sd y)                     for a number y
    regression F               (n - 2) r_j^2 / (1 - r_j^2)

The standardized difference, pooled t and F order the columns alike; the mean difference depends on the columns' scales, and Welch's t does
not assume equal variances. A sparse matrix stays sparse.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse

from probes.selection.columns import Labels, Matrix, Moments, Scores, Weights, moments
from sae.errors import ConfigError


class _Classes(NamedTuple):
    """The two classes' moments, and the difference of their means."""

    positive: Moments
    negative: Moments
    difference: Scores


def check_two_classes(y: Labels, sample_weight: Weights | None) -> Weights:
    """The row weights, ones where none were given. Raises ConfigError unless y holds 0 and 1, both with some weight."""
    if not np.isin(y, (0, 1)).all():
        found = np.unique(y)[:5].tolist()
        raise ConfigError(f"y must hold 0 and 1 only, got {found} (ranking); of more classes rank one against the rest, or by f_statistic")
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    totals = [float(weight[y == label].sum()) for label in (0, 1)]
    if min(totals) <= 0:
        raise ConfigError(f"y must hold both classes, got total weight {totals[0]:g} of class 0 and {totals[1]:g} of class 1 (ranking)")
    return weight


def _classes(X: Matrix, y: Labels, sample_weight: Weights | None) -> _Classes:
    y = np.asarray(y)
    weight = check_two_classes(y, sample_weight)
    positive, negative = moments(X, weight * (y == 1)), moments(X, weight * (y == 0))
    difference = positive.mean - negative.mean
    rounding = len(y) * np.finfo(np.float64).eps * (np.abs(positive.mean) + np.abs(negative.mean))
    return _Classes(positive, negative, np.where(np.abs(difference) <= rounding, 0.0, difference))


def _ratio(difference: Scores, scale: Scores) -> Scores:
    """difference / scale; 0 where the difference is 0, infinite where only the scale is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / scale)


def mean_difference(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """mu+ - mu-, in the units of X."""
    return _classes(X, y, sample_weight).difference


def standardized_difference(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """(mu+ - mu-) / sd, with the standard deviation over all rows: at most 1 / sqrt(p (1 - p)) at a class share p, 0 if constant."""
    positive, negative, difference = _classes(X, y, sample_weight)
    share = positive.total / (positive.total + negative.total)
    variance = share * positive.variance + (1 - share) * negative.variance + share * (1 - share) * difference**2
    return _ratio(difference, np.sqrt(variance))


def pooled_t(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """Student's t with the pooled variance; 0 for a constant column, infinite for a column that is constant within classes only."""
    positive, negative, difference = _classes(X, y, sample_weight)
    squares = positive.total * positive.variance + negative.total * negative.variance
    freedom = _freedom(positive.total + negative.total - 2, "pooled_t")
    return _ratio(difference, np.sqrt(squares / freedom * (1 / positive.total + 1 / negative.total)))


def f_statistic(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """F of the one-way analysis of variance over the classes of y, of which there may be more than two; for two, `pooled_t` squared.

    A class without weight does not count. Raises ConfigError for fewer than two classes, or no more rows than classes.
    """
    y = np.asarray(y)
    if np.isin(y, (0, 1)).all():
        return pooled_t(X, y, sample_weight) ** 2
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    present = np.unique(y[weight > 0])
    if len(present) < 2:
        raise ConfigError(f"y must hold at least two classes, got {present.tolist()} (f_statistic)")
    each = [moments(X, weight * (y == label)) for label in present]
    total = sum(m.total for m in each)
    freedom = _freedom(total - len(present), "f_statistic")
    middle = sum(m.total * m.mean for m in each) / total
    deviations = [m.mean - middle for m in each]
    rounding = len(y) * np.finfo(np.float64).eps * np.max([np.abs(m.mean) for m in each], axis=0)
    between = sum(m.total * np.where(np.abs(by) <= rounding, 0.0, by) ** 2 for m, by in zip(each, deviations, strict=True))
    within = sum(m.total * m.variance for m in each)
    return _ratio(np.asarray(between / (len(present) - 1)), np.asarray(within / freedom))


def welch_t(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """Welch's t, each class with its own variance; needs two rows of each class. 0 for a constant column."""
    positive, negative, difference = _classes(X, y, sample_weight)
    errors = [m.variance / _freedom(m.total - 1, "welch_t") for m in (positive, negative)]  # (n / (n - 1)) variance / n
    return _ratio(difference, np.sqrt(errors[0] + errors[1]))


def correlation(X: Matrix, y: Float[np.ndarray, " n"], sample_weight: Weights | None = None) -> Scores:
    """Pearson's correlation of each column with the number y; 0 for a constant column. Raises ConfigError for a constant y."""
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    total, mean, variance = moments(X, weight)
    y = np.asarray(y, dtype=np.float64)
    centred = y - weight @ y / total
    spread = float(weight @ centred**2 / total)
    if spread <= (len(y) * np.finfo(np.float64).eps * np.abs(y).max()) ** 2:
        raise ConfigError(f"y must not be constant, got {y[0]:g} in all {len(y)} rows (correlation)")
    covariance = _cross(X, weight * centred, mean) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance == 0, 0.0, np.clip(covariance / np.sqrt(variance * spread), -1, 1))


def _cross(X: Matrix, weighted: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """sum_i weighted_i (x_ij - mean_j) of each column, in float64."""
    if sparse.issparse(X):
        values = X.data.astype(np.float64) * np.repeat(weighted, np.diff(X.indptr))
        return np.bincount(X.indices, values, X.shape[1]) - weighted.sum() * mean
    blocks: Any = np.array_split(np.arange(X.shape[1]), max(1, X.shape[1] // 1024))
    return np.concatenate([weighted @ (X[:, block].astype(np.float64) - mean[block]) for block in blocks])


def regression_f(X: Matrix, y: Float[np.ndarray, " n"], sample_weight: Weights | None = None) -> Scores:
    """(n - 2) r^2 / (1 - r^2), the F of a straight line through each column; the order is that of |r|. Infinite for r = 1 or -1."""
    square = correlation(X, y, sample_weight) ** 2
    total = float(len(y) if sample_weight is None else np.sum(sample_weight))
    freedom = _freedom(total - 2, "regression_f")
    return _ratio(square, (1 - square) / freedom)


def _freedom(value: float, where: str) -> float:
    if value <= 0:
        raise ConfigError(f"y must leave degrees of freedom for a variance, got {value:g} ({where}); give more rows or another ranking")
    return value
