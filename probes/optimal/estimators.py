"""Probes on the best k columns there are, found by `probes.optimal.search` and proven where time allows."""

import math
import numbers
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from probes.base import Choice, LinearProbe, LinearRegressor, check_count
from probes.optimal.losses import Hinge, Squares
from probes.optimal.search import BestSubset, Search, SearchConfig
from probes.selection import (
    Labels,
    Matrix,
    class_weights,
    correlation,
    l1_path,
    mean_difference,
    standardized_difference,
    top_k,
    z_scores,
)
from probes.selection.differences import check_two_classes
from sae.errors import ConfigError


def best_subset(
    X: Matrix, y: Labels, sample_weight: Float[np.ndarray, " n"] | None = None, *, k: int, config: SearchConfig | None = None
) -> BestSubset:
    """The k columns with the smallest weighted hinge loss and ridge, for labels 0 and 1; `sample_weight` includes the classes' weights.

    Starts from the top k by mean difference, standardized difference and L1 path. A sparse matrix is made dense in the columns that pass
    the filter. Raises ConfigError for k outside 1..d (after the filter), and for labels that are not 0 and 1, both.

        found = best_subset(X, y, k=2)
        found.support, found.proven, found.gap
    """
    config = config or SearchConfig()
    weight = check_two_classes(y, sample_weight)
    kept, z = _searched(X, mean_difference(X, y, weight), weight, config)
    _check_k(k, len(kept))
    rows = weight > 0
    z, y, weight = z[rows], np.asarray(y)[rows].astype(np.float64), weight[rows]
    search = Search(Hinge(z, y, weight, _gamma(config, weight)), k, config)
    labels = y.astype(np.int64)
    search.run([top_k(score(z, labels, weight), k) for score in (mean_difference, standardized_difference, l1_path)])
    return search.result(kept)


def best_subset_number(
    X: Matrix,
    y: Float[np.ndarray, " n"],
    sample_weight: Float[np.ndarray, " n"] | None = None,
    *,
    k: int,
    config: SearchConfig | None = None,
) -> BestSubset:
    """As `best_subset` for a number y and half the mean squared error with a ridge; y is z-scored too."""
    config = config or SearchConfig()
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    scores = correlation(X, y, weight)
    kept, z = _searched(X, scores, weight, config)
    _check_k(k, len(kept))
    target = y - weight @ y / weight.sum()
    target = target / np.sqrt(weight @ target**2 / weight.sum())
    search = Search(Squares(z, target, weight, _gamma(config, weight)), k, config)
    search.run([top_k(scores[kept], k)])
    return search.result(kept)


def _searched(X: Matrix, scores: np.ndarray, weight: np.ndarray, config: SearchConfig) -> tuple[np.ndarray, np.ndarray]:
    """The columns that pass the filter, and their z-scores, dense."""
    kept = np.sort(top_k(scores, min(len(scores), config.filter_size or len(scores))))
    columns = X[:, kept]
    return kept, z_scores(columns.toarray() if sparse.issparse(columns) else columns, weight).z


def _gamma(config: SearchConfig, weight: np.ndarray) -> float:
    return config.gamma if config.gamma is not None else 1 / math.sqrt(weight.sum())


def _check_k(k: int, searched: int) -> None:
    if not 1 <= k <= searched:
        raise ConfigError(f"k must be in 1..{searched}, the number of columns searched, got {k} (best subset); raise filter_size")


def _search_config(probe: Any, k: int, d: int) -> SearchConfig:
    """The estimator's parameters; the filter lets at least k columns through."""
    filter_size = probe.filter_size if probe.filter_size is None else min(d, max(int(probe.filter_size), k))
    return SearchConfig(gamma=probe.gamma, filter_size=filter_size, time_limit=probe.time_limit, tolerance=probe.tolerance)


def _check_search(probe: Any) -> None:
    name = type(probe).__name__
    check_count("k", probe.k, name)
    if probe.filter_size is not None:
        check_count("filter_size", probe.filter_size, name)
    for parameter in ("gamma", "time_limit", "tolerance"):
        value = getattr(probe, parameter)
        if not (parameter == "gamma" and value is None) and (not isinstance(value, numbers.Real) or not value > 0):
            raise ConfigError(f"{parameter} must be a positive number, got {value!r} ({name})")


class OptimalSparseProbe(LinearProbe):
    """A binary classifier on the best k columns by hinge loss and ridge, refitted by logistic regression on those columns.

    k: number of columns; a matrix with fewer uses them all. gamma, filter_size, time_limit (s), tolerance: of the search, see
    `SearchConfig`. C, class_weight: of the logistic fit; the class weights serve the search too. After `fit`, `search_` has the
    objective, the bound and whether the support is proven; where time ran out, the support may depend on the machine's speed.

    Greedy rankings miss columns that help only together: x0 = signal + noise and x1 = noise, whose difference separates the classes
    though x1 alone says nothing.
    """

    def __init__(self, k=2, gamma=None, filter_size=50, time_limit=60.0, tolerance=1e-4, C=1.0, class_weight="balanced"):
        self.k = k
        self.gamma = gamma
        self.filter_size = filter_size
        self.time_limit = time_limit
        self.tolerance = tolerance
        self.C = C
        self.class_weight = class_weight

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_search(self)

    def _choose(self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
        k = min(int(self.k), X.shape[1])
        if self.class_weight == "balanced":
            weight = class_weights(y, sample_weight)
        else:
            given = self.class_weight or {}
            weight = sample_weight * np.array([float(given.get(label, 1.0)) for label in self.classes_.tolist()])[y]
        self.search_ = best_subset(X, y, weight, k=k, config=_search_config(self, k, X.shape[1]))
        return Choice(self.search_.support, None)


class OptimalSparseRegressor(LinearRegressor):
    """A linear predictor of a number on the best k columns by squared error and ridge, refitted by least squares with the ridge `alpha`.

    Parameters and attributes as in `OptimalSparseProbe`; alpha as in `probes.sparse.KSparseRegressor`.
    """

    def __init__(self, k=2, gamma=None, filter_size=50, time_limit=60.0, tolerance=1e-4, alpha=1e-3):
        self.k = k
        self.gamma = gamma
        self.filter_size = filter_size
        self.time_limit = time_limit
        self.tolerance = tolerance
        self.alpha = alpha

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_search(self)

    def _choose(self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
        k = min(int(self.k), X.shape[1])
        self.search_ = best_subset_number(X, y, sample_weight, k=k, config=_search_config(self, k, X.shape[1]))
        return Choice(self.search_.support, None)
