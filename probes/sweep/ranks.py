"""Scores of every column for many fits at once: the classes' sums of all of them are two matrix products.

    S = P X,  Q = P X^2         P [fits, n]: 1 where a row is a training row of the class        mean = S / n,   var = Q / n - mean^2

for each class, with X shifted by its overall mean so that little cancels; where much does all the same (columns that are constant over
the training rows), the variance is taken again in two passes. The rankings are those of `probes.selection`, which say where they are from.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse

from probes.problem import Features
from probes.selection import moments, rank
from probes.sweep.plan import Fit

COLUMNS_PER_BLOCK = 512
CANCELLED = 1e-8
"""A variance below this share of the mean square around the overall mean is taken again."""


class ClassMoments(NamedTuple):
    """Of each class of each fit's training rows: their number [fits, 1], mean and variance of every column [fits, d]."""

    n: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def _difference(positive: ClassMoments, negative: ClassMoments) -> np.ndarray:
    difference = positive.mean - negative.mean
    rounding = (positive.n + negative.n) * np.finfo(np.float64).eps * (np.abs(positive.mean) + np.abs(negative.mean))
    return np.where(np.abs(difference) <= rounding, 0.0, difference)


def _standardised(positive: ClassMoments, negative: ClassMoments) -> np.ndarray:
    share = positive.n / (positive.n + negative.n)
    difference = _difference(positive, negative)
    variance = share * positive.variance + (1 - share) * negative.variance + share * (1 - share) * difference**2
    return _ratio(difference, np.sqrt(variance))


def _pooled_t(positive: ClassMoments, negative: ClassMoments) -> np.ndarray:
    squares = positive.n * positive.variance + negative.n * negative.variance
    error = squares / (positive.n + negative.n - 2) * (1 / positive.n + 1 / negative.n)
    return _ratio(_difference(positive, negative), np.sqrt(error))


def _welch_t(positive: ClassMoments, negative: ClassMoments) -> np.ndarray:
    errors = positive.variance / (positive.n - 1) + negative.variance / (negative.n - 1)
    return _ratio(_difference(positive, negative), np.sqrt(errors))


def _ratio(difference: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """difference / spread; 0 where the difference is 0, infinite where only the spread is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / spread)


FROM_MOMENTS: dict[str, Callable[[ClassMoments, ClassMoments], np.ndarray]] = {
    "mean_difference": _difference,
    "standardized_difference": _standardised,
    "pooled_t": _pooled_t,
    "f_statistic": lambda positive, negative: _pooled_t(positive, negative) ** 2,
    "welch_t": _welch_t,
}
"""Rankings that need no more than the classes' moments; the others are computed fit by fit."""


def scores(X: Features, fits: Sequence[Fit], rankings: Sequence[str], *, seed: int) -> dict[str, Float[np.ndarray, "fits d"]]:
    """The scores of every column under every ranking, for the training rows and labels of every fit. X: dense or csr [n, d]."""
    closed = [name for name in rankings if name in FROM_MOMENTS]
    found: dict[str, np.ndarray] = {}
    if closed:
        classes = class_moments(X, fits, variances=any(name != "mean_difference" for name in closed))
        found = {name: FROM_MOMENTS[name](*classes) for name in closed}
        if any((each.n < 2).any() for each in classes):
            closed = [name for name in closed if name in ("mean_difference", "standardized_difference")]
    for name in rankings:
        if name not in closed:
            found[name] = np.stack([rank(X[fit.train], fit.y[fit.train], ranking=name, seed=seed) for fit in fits])
    return found


def class_moments(X: Features, fits: Sequence[Fit], *, variances: bool) -> tuple[ClassMoments, ClassMoments]:
    """(positive, negative) class; without `variances`, those are 0."""
    indicator = np.zeros((2, len(fits), X.shape[0]))
    for i, fit in enumerate(fits):
        indicator[1 - fit.y[fit.train], i, fit.train] = 1.0
    indicator = indicator.reshape(2 * len(fits), -1)
    n = indicator.sum(1, keepdims=True)
    mean, variance = np.empty((len(n), X.shape[1])), np.zeros((len(n), X.shape[1]))
    cancelled = np.zeros(mean.shape, dtype=bool)
    if sparse.issparse(X):
        wide = X.astype(np.float64)
        mean[:] = (wide.T @ indicator.T).T / n
        if variances:
            squares = (wide.power(2).T @ indicator.T).T / n
            variance[:] = squares - mean**2
            cancelled = variance <= CANCELLED * squares
    else:
        for start in range(0, X.shape[1], COLUMNS_PER_BLOCK):
            block = slice(start, start + COLUMNS_PER_BLOCK)
            x = X[:, block].astype(np.float64)
            shift = x.mean(0)
            x -= shift
            shifted = indicator @ x / n
            mean[:, block] = shifted + shift
            if variances:
                around = np.mean(x * x, axis=0)
                variance[:, block] = indicator @ np.square(x, out=x) / n - shifted**2
                cancelled[:, block] = variance[:, block] <= CANCELLED * around
    for i in np.flatnonzero(cancelled.any(1)):
        columns, rows = np.flatnonzero(cancelled[i]), np.flatnonzero(indicator[i])
        mean[i, columns], variance[i, columns] = moments(X[rows][:, columns], np.ones(len(rows)))[1:]
    parts = [array.reshape(2, len(fits), -1) for array in (n, mean, variance)]
    return ClassMoments(*(part[0] for part in parts)), ClassMoments(*(part[1] for part in parts))
