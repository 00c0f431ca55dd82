"""Directions from labelled rows: where the means differ, where they differ against the spread, where a logistic fit points, and at random.

    mean difference    v ~ mu_1 - mu_0
    discriminant       v ~ Sigma^-1 (mu_1 - mu_0),     Sigma the shrunk covariance within classes
    logistic           v ~ coefficients of the L2-penalised logistic fit to z-scored columns, in the columns' own units
    random             v ~ N(0, I), turned to the labels: the control

The mean difference is the maximum-likelihood discriminant if the noise is isotropic; where a few coordinates carry most of the variance,
as in residual streams, the discriminant divides them out (Fisher, "The use of multiple measurements in taxonomic problems", 1936).
"""

from typing import Any

import numpy as np
from scipy.sparse import issparse

from probes.base import Logistic, fit_logistic
from probes.directions.base import DirectionReader
from probes.directions.discriminant import discriminant, within_covariance
from probes.newton import fit_nested
from probes.selection import mean_difference
from sae.errors import ConfigError


class MeanDifferenceDirection(DirectionReader):
    """The difference of the class means; for pairs, the mean of their differences. Sparse X stays sparse. RepE calls it cluster mean."""

    reads_sparse = True

    def _vector(self, X: Any, y: np.ndarray) -> np.ndarray:
        return mean_difference(X, y)


class LDADirection(DirectionReader):
    """Fisher's discriminant with the covariance within classes shrunk, in closed form; costs min(n, d)^2 max(n, d), no d x d matrix if d > n.

    shrinkage: "auto" is the share of Ledoit & Wolf (2004) per class, in z-scored columns, as scikit-learn's LinearDiscriminantAnalysis(solver=
    "lsqr", shrinkage="auto") has it, of which this is the direction; a number in [0, 1] mixes each class's covariance with its mean variance
    times the identity. Classes count equally in the threshold. A column that is constant within a class has scale 1 there. Where the shrunk
    covariance is singular, the direction is the limit of vanishing shrinkage: the part of the mean difference with no spread within classes.
    """

    def __init__(self, shrinkage="auto"):
        self.shrinkage = shrinkage

    def _vector(self, X: Any, y: np.ndarray) -> np.ndarray:
        s = self.shrinkage
        if s != "auto" and (isinstance(s, (bool, str)) or not isinstance(s, (int, float)) or not 0 <= s <= 1):
            raise ConfigError(f"shrinkage must be 'auto' or a number in [0, 1], got {s!r} (LDADirection)")
        if len(X) < 3:
            raise ValueError(f"n_samples={len(X)} rows leave no spread within classes; LDADirection needs at least 3")
        X = X.astype(np.float64)
        return discriminant(within_covariance(X, y, shrinkage=s), mean_difference(X, y))


class LogisticDirection(DirectionReader):
    """The normal of the logistic probe's plane (`probes.linear.DenseProbe`), with its threshold. Sparse X stays sparse.

    C: inverse strength of the L2 penalty on z-scored columns. class_weight: as in scikit-learn.
    """

    reads_sparse = True

    def __init__(self, C=1.0, class_weight="balanced"):
        self.C = C
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> "LogisticDirection":
        """Fit the probe and take its normal. Errors as `DirectionReader.fit`."""
        if not (isinstance(self.C, (int, float)) and self.C > 0):
            raise ConfigError(f"C must be a positive number, got {self.C!r} (LogisticDirection)")
        X, encoded = self._labelled(X, y)
        fitted = self._fit_rule(X, encoded)
        self.n_iter_ = fitted.n_iter
        self._settle(X, encoded, fitted.coef, fitted.intercept)
        return self

    def _vector(self, X: Any, y: np.ndarray) -> np.ndarray:
        return self._fit_rule(X, y).coef

    def _fit_rule(self, X: Any, y: np.ndarray) -> Logistic:
        """One minimum, two ways: the quick one reads dense columns only."""
        if issparse(X):
            return fit_logistic(X, y, np.ones(len(y)), C=self.C, class_weight=self._class_weight())
        columns = np.ascontiguousarray(X.T, dtype=np.float64)
        return fit_nested(columns, y, ks=[len(columns)], C=self.C, class_weight=self._class_weight())[0]

    def _class_weight(self) -> Any:
        """Weights by 0 and 1, for labels of any kind."""
        if not hasattr(self.class_weight, "items"):
            return self.class_weight
        return {i: self.class_weight[label] for i, label in enumerate(self.classes_) if label in self.class_weight}


class RandomDirection(DirectionReader):
    """A control, not a method: a uniformly random direction, of which only the sign and the threshold look at the labels."""

    reads_sparse = True

    def __init__(self, random_state=0):
        self.random_state = random_state

    def _vector(self, X: Any, y: np.ndarray) -> np.ndarray:
        vector = np.random.default_rng(self._seed()).normal(size=X.shape[1])
        projection = np.asarray(X @ vector)
        return vector if projection[y == 1].mean() >= projection[y == 0].mean() else -vector
