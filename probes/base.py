"""What the linear probes share: a choice of columns, z-scores from the training rows, a logistic fit, and its use.

z_j = (x_j - mean_j) / sd_j,      min_{v, c}  sum_i w_i log(1 + exp(-s_i (v . z_i + c))) + ||v||^2 / (2 C),      s_i = +1 or -1
coef_j = v_j / sd_j,   intercept = c - sum_j v_j mean_j / sd_j                     so that   decision = coef . x + intercept
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from probes.selection import Matrix, z_scores
from sae.errors import ConfigError

NEWTON_COLUMNS = 1024
"""Up to this many columns the fit is by Newton's method, above by L-BFGS; the minimum is the same."""
TOLERANCE, MAX_STEPS = 1e-8, 2000


class Choice(NamedTuple):
    """The columns a probe reads."""

    support: Int[np.ndarray, " k"]
    """Column numbers, best first."""
    scores: Float[np.ndarray, " d"] | None
    """Score of every column, None where nothing was ranked."""


class Logistic(NamedTuple):
    """A fitted linear rule in the units of its columns."""

    coef: Float[np.ndarray, " k"]
    """Change of the log-odds per unit of each column."""
    intercept: float
    """Log-odds at the origin."""
    n_iter: int
    """Steps the solver took."""


def fit_logistic(
    X: Matrix, y: np.ndarray, sample_weight: Float[np.ndarray, " n"], *, C: float, class_weight: str | Mapping | None
) -> Logistic:
    """The L2-penalised logistic fit to z-scored columns, told in the columns' own units.

    A dense matrix is centred; a sparse one is scaled only, which gives the same rule because the intercept is not penalised.
    A constant column gets the coefficient 0.
    """
    z, mean, scale, constant = z_scores(X, sample_weight)
    solver = "newton-cholesky" if X.shape[1] <= NEWTON_COLUMNS else "lbfgs"
    model: Any = LogisticRegression(C=C, class_weight=class_weight, solver=solver, tol=TOLERANCE, max_iter=MAX_STEPS)
    model.fit(z, y, sample_weight=sample_weight)
    coef = np.where(constant, 0.0, model.coef_[0] / scale)
    return Logistic(coef, float(model.intercept_[0] - coef @ mean), int(np.max(model.n_iter_)))


class LinearProbe(ClassifierMixin, BaseEstimator, ABC):
    """A linear rule for two classes on chosen columns. Subclasses say which columns; choice and scaling see the rows given to `fit` only.

    Attributes after `fit`: `classes_`, `support_` (columns, best first), `coef_` [1, d] in the units of X and 0 off the support,
    `intercept_` [1], `scores_` [d] (absent where nothing was ranked), `n_features_in_`, `n_iter_`.
    """

    C: float
    class_weight: str | Mapping[Any, float] | None

    @abstractmethod
    def _choose(self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
        """The columns to read; y holds 0 and 1."""

    @abstractmethod
    def _columns(self, X: Matrix, support: np.ndarray) -> Any:
        """Those columns of X."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LinearProbe":
        """Choose columns and fit. X: array-like or scipy sparse [n, d]; y: two classes of any kind, the greater label is the positive one.

        Raises ConfigError for parameters out of range, ValueError (as scikit-learn does) for X or y that cannot be used.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self._check_parameters()
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind != "binary":
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        classes, encoded = np.unique(y, return_inverse=True)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if len(np.unique(encoded[weight > 0])) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        support, scores = self._choose(X, encoded, weight)
        fitted = fit_logistic(self._columns(X, support), y, weight, C=self.C, class_weight=self.class_weight)
        self.classes_ = classes
        self.support_ = support
        if scores is not None:
            self.scores_ = scores
        self.coef_ = np.zeros((1, X.shape[1]))
        self.coef_[0, support] = fitted.coef
        self.intercept_ = np.array([fitted.intercept])
        self.n_iter_ = fitted.n_iter
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """coef . x + intercept: the log-odds of the positive class."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        return np.asarray(X[:, self.support_] @ self.coef_[0, self.support_] + self.intercept_[0], dtype=np.float64)

    def predict(self, X: Any) -> np.ndarray:
        """The class with the greater probability."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(int)]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n 2"]:
        """Probability of each class, in the order of `classes_`."""
        positive = expit(self.decision_function(X))
        return np.stack([1 - positive, positive], axis=1)

    def _check_parameters(self) -> None:
        if not (isinstance(self.C, (int, float)) and self.C > 0):
            raise ConfigError(f"C must be a positive number, got {self.C!r} ({type(self).__name__})")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.sparse = True
        return tags
