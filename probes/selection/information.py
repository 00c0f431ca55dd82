"""Mutual information of one column at a time with the label: dependence of any shape, estimated from nearest neighbours.

    I(x_j; y) = psi(n) + psi(k) - <psi(n_class)> - <psi(m)>        y a class    (Ross 2014, PLoS ONE 9:e87357)
    I(x_j; y) = psi(n) + psi(k) - <psi(a + 1) + psi(b + 1)>        y a number   (Kraskov, Stoegbauer and Grassberger 2004, PRE 69:066138)

scikit-learn's estimators with k = 3 neighbours, in nats. Each column is estimated by itself with a seed of its own, so a score depends
neither on the other columns nor on whether the matrix is sparse, and only one column of a sparse matrix is dense at a time. It is the
slowest and, for shifts of a mean, the weakest ranking: a shift of .2 standard deviations in 2,000 rows, which every other ranking finds,
is found in a third of the columns.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from probes.selection.columns import Labels, Matrix, Scores, Weights
from sae.errors import ConfigError

NEIGHBOURS = 3


def mutual_information(X: Matrix, y: Labels, sample_weight: Weights | None = None, *, seed: int = 0) -> Scores:
    """I(x_j; y) in nats for the classes of y, of which there may be more than two; 0 for a constant column.

    `seed` draws the noise of relative size 1e-10 that breaks ties between distances. Raises ConfigError for weights that are not whole
    numbers: neighbours cannot be counted in fractions.
    """
    present = np.unique(y if sample_weight is None else y[sample_weight > 0])
    if len(present) < 2:
        raise ConfigError(f"y must hold at least two classes, got {present.tolist()} only (mutual_information)")
    return _by_column(mutual_info_classif, X, np.asarray(y).astype(np.int64), sample_weight, seed)


def mutual_information_number(X: Matrix, y: Float[np.ndarray, " n"], sample_weight: Weights | None = None, *, seed: int = 0) -> Scores:
    """As `mutual_information`, for a number y."""
    return _by_column(mutual_info_regression, X, np.asarray(y, dtype=np.float64), sample_weight, seed)


def _by_column(estimate: Any, X: Matrix, y: np.ndarray, sample_weight: np.ndarray | None, seed: int) -> np.ndarray:
    rows = np.arange(len(y)) if sample_weight is None else _repeated(sample_weight)
    if len(rows) <= NEIGHBOURS:
        raise ConfigError(f"y must have more than {NEIGHBOURS} rows for mutual information, got {len(rows)} (ranking)")
    columns = X.tocsc() if sparse.issparse(X) else X
    seeds = np.random.default_rng(seed).integers(2**31, size=X.shape[1])
    scores = np.zeros(X.shape[1])
    for j in range(X.shape[1]):
        column = columns[:, [j]]
        x = np.asarray(column.toarray() if sparse.issparse(column) else column, dtype=np.float64)[rows]
        if x.min() < x.max():
            scores[j] = estimate(x, y[rows], discrete_features=False, n_neighbors=NEIGHBOURS, random_state=int(seeds[j]))[0]
    return scores


def _repeated(sample_weight: np.ndarray) -> np.ndarray:
    """Row numbers, each as often as its weight says."""
    if not (sample_weight == np.round(sample_weight)).all():
        raise ConfigError(
            "sample_weight must be whole numbers for mutual information, which counts neighbours, "
            f"got {sample_weight[sample_weight != np.round(sample_weight)][0]:g}; leave the weights out or take another ranking"
        )
    return np.repeat(np.arange(len(sample_weight)), sample_weight.astype(np.int64))
