"""What the linear probes share: a choice of columns, z-scores from the training rows, a fit on those, and its use.

z_j = (x_j - mean_j) / sd_j,      min_{v, c}  sum_i w_i log(1 + exp(-s_i (v . z_i + c))) + ||v||^2 / (2 C),      s_i = +1 or -1
coef_j = v_j / sd_j,   intercept = c - sum_j v_j mean_j / sd_j                     so that   decision = coef . x + intercept

and for a number t with z-score u:    min_v  sum_i w_i (u_i - v . z_i)^2 / (2 sum_i w_i) + alpha (l1_ratio |v|_1 + (1 - l1_ratio) |v|^2 / 2)
"""

import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.linear_model import LogisticRegression, enet_path
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


def check_count(name: str, value: Any, where: str) -> None:
    """Raises ConfigError unless `value` is a whole number of at least 1."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r} ({where})")


def dense_columns(X: Matrix, support: np.ndarray) -> Float[np.ndarray, "n k"]:
    """Some columns of a dense or sparse matrix, dense."""
    chosen = X[:, support]
    return chosen.toarray() if sparse.issparse(chosen) else chosen


class Logistic(NamedTuple):
    """A fitted linear rule in the units of its columns."""

    coef: Float[np.ndarray, " k"]
    """Change of the log-odds per unit of each column."""
    intercept: float
    """Log-odds at the origin."""
    n_iter: int
    """Steps the solver took."""


class Given(NamedTuple):
    """What a probe is fitted to, checked."""

    X: Any
    """Dense or csr matrix [n, d]."""
    y: np.ndarray
    """Labels as they were given."""
    encoded: Int[np.ndarray, " n"]
    """0 and 1."""
    weight: Float[np.ndarray, " n"]
    """Weight of each row."""

    def for_choice(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """What a choice of columns looks at."""
        return self.X, self.encoded, self.weight


def fit_logistic(
    X: Matrix,
    y: np.ndarray,
    sample_weight: Float[np.ndarray, " n"],
    *,
    C: float,
    class_weight: str | Mapping | None,
    start: Logistic | None = None,
) -> Logistic:
    """The L2-penalised logistic fit to z-scored columns, told in the columns' own units.

    A dense matrix is centred; a sparse one is scaled only, which gives the same rule because the intercept is not penalised.
    A constant column gets the coefficient 0. `start` is a fit to the first of the columns, where the solver begins.
    """
    z, mean, scale, constant = z_scores(X, sample_weight)
    solver = "newton-cholesky" if X.shape[1] <= NEWTON_COLUMNS else "lbfgs"
    model: Any = LogisticRegression(C=C, class_weight=class_weight, solver=solver, tol=TOLERANCE, max_iter=MAX_STEPS)
    if start is not None:
        n_start = len(start.coef)
        model.set_params(warm_start=True)
        model.coef_ = np.zeros((1, X.shape[1]))
        model.coef_[0, :n_start] = start.coef * scale[:n_start]
        model.intercept_ = np.array([start.intercept + start.coef @ mean[:n_start]])
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

    def _columns(self, X: Matrix, support: np.ndarray) -> Any:
        """Those columns of X, dense unless a subclass says otherwise."""
        return dense_columns(X, support)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LinearProbe":
        """Choose columns and fit. X: array-like or scipy sparse [n, d]; y: two classes of any kind, the greater label is the positive one.

        Raises ConfigError for parameters out of range, ValueError (as scikit-learn does) for X or y that cannot be used.
        """
        given = self._checked(X, y, sample_weight)
        self._fit_columns(given, self._choose(*given.for_choice()))
        return self

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> "Given":
        """What was given to `fit`, checked; sets `classes_`."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self._check_parameters()
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind != "binary":
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {kind}. For several classes, put the probe into "
                "sklearn.multiclass.OneVsRestClassifier."
            )
        self.classes_, encoded = np.unique(y, return_inverse=True)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if len(np.unique(encoded[weight > 0])) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        return Given(X, y, encoded, weight)

    def _fit_columns(self, given: "Given", choice: Choice, start: Logistic | None = None) -> Logistic:
        """Fit to the chosen columns and set the fitted attributes."""
        support, scores = choice
        columns = self._columns(given.X, support)
        fitted = fit_logistic(columns, given.y, given.weight, C=self.C, class_weight=self.class_weight, start=start)
        self.support_ = support
        if scores is not None:
            self.scores_ = scores
        self.coef_ = np.zeros((1, given.X.shape[1]))
        self.coef_[0, support] = fitted.coef
        self.intercept_ = np.array([fitted.intercept])
        self.n_iter_ = fitted.n_iter
        return fitted

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


class LinearRegressor(RegressorMixin, BaseEstimator, ABC):
    """A linear predictor of a number from chosen columns. Subclasses say which columns; choice and scaling see the rows given to `fit` only.

    Attributes after `fit`: `support_` (columns, best first), `coef_` [d] in the units of y and X and 0 off the support, `intercept_`,
    `scores_` [d] (absent where nothing was ranked), `n_features_in_`.
    """

    alpha: float
    l1_ratio: float = 0.0

    @abstractmethod
    def _choose(self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
        """The columns to read."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LinearRegressor":
        """Choose columns and fit. X: array-like or scipy sparse [n, d]; y: numbers. A constant y is predicted as that constant.

        Raises ConfigError for parameters out of range, ValueError (as scikit-learn does) for X or y that cannot be used.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        self._check_parameters()
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        mean = float(weight @ y / weight.sum())
        spread = float(np.sqrt(weight @ (y - mean) ** 2 / weight.sum()))
        self.coef_ = np.zeros(X.shape[1])
        self.intercept_ = mean
        if spread <= len(y) * np.finfo(np.float64).eps * abs(mean):
            self.support_ = np.arange(0)
            return self
        support, scores = self._choose(X, y, weight)
        z, column_mean, scale, _ = z_scores(dense_columns(X, support), weight)
        fitted = fit_elastic_net(z, (y - mean) / spread, weight, alpha=self.alpha, l1_ratio=self.l1_ratio)
        self.support_ = support
        if scores is not None:
            self.scores_ = scores
        self.coef_[support] = spread * fitted / scale
        self.intercept_ = mean - float(self.coef_[support] @ column_mean)
        return self

    def predict(self, X: Any) -> Float[np.ndarray, " n"]:
        """coef . x + intercept."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        return np.asarray(X[:, self.support_] @ self.coef_[self.support_] + self.intercept_, dtype=np.float64)

    def _check_parameters(self) -> None:
        name = type(self).__name__
        if not (isinstance(self.alpha, numbers.Real) and self.alpha > 0):
            raise ConfigError(f"alpha must be a positive number, got {self.alpha!r} ({name})")
        if not (isinstance(self.l1_ratio, numbers.Real) and 0 <= self.l1_ratio <= 1):
            raise ConfigError(f"l1_ratio must be in [0, 1], got {self.l1_ratio!r} ({name})")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def fit_elastic_net(
    z: Float[np.ndarray, "n k"], u: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"], *, alpha: float, l1_ratio: float
) -> Float[np.ndarray, " k"]:
    """v of the equation at the top of the file, for z-scores of columns and target; a constant column, all 0, gets 0."""
    root = np.sqrt(weight / weight.sum())
    x, target = root[:, None] * z, root * u
    gram, linear = x.T @ x, x.T @ target
    if l1_ratio == 0:
        return np.linalg.solve(gram + alpha * np.eye(len(gram)), linear)
    path = enet_path(
        x,
        target,
        alphas=np.array([alpha / len(x)]),  # it divides the squares by the number of rows, we by the weights
        l1_ratio=l1_ratio,
        precompute=gram,
        Xy=linear,
        tol=1e-12,
        max_iter=100_000,
    )
    return path[1][:, 0]
