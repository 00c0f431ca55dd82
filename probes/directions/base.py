"""A reader finds one unit vector v in activation space that points from the rows labelled 0 to the rows labelled 1.

    decision(x) = v . x + b,    ||v|| = 1,    b = -(v . mean_1 + v . mean_0) / 2  unless the reader says otherwise

Convention of pairs. Rows carry labels always. A contrast pair is two rows, one of each class, with the same number in `pairs`: readers of
differences take `fit(X, y, pairs=...)`, readers of labelled rows `fit(X, y)`. `contrast_pairs(positive, negative)` makes such rows of two
arrays. Splits, shuffles and resampling keep the two rows of a pair together.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from probes.problem import Features, FeatureSource, Problem
from sae.errors import ConfigError


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """A data set of activations: rows, labels 0 and 1, documents, and pairs where rows come in pairs. Raises ConfigError if they disagree."""

    name: str
    """What to call it in a table."""
    X: Features
    """Activations or codes [n, d]."""
    y: Int[np.ndarray, "_"]
    """Label of each row, 0 or 1."""
    groups: Int[np.ndarray, "_"]
    """Document of each row; splits keep these together."""
    pairs: Int[np.ndarray, "_"] | None = None
    """Pair of each row: every number belongs to one row of each class, both of one document. None where rows are not paired."""

    def __post_init__(self) -> None:
        where = f"data set {self.name!r}"
        for name in ("y", "groups", "pairs"):
            values = getattr(self, name)
            if values is not None and len(values) != self.X.shape[0]:
                raise ConfigError(f"{name} must have one entry per row of X, got {len(values)} for {self.X.shape[0]} rows ({where})")
        if not np.isin(self.y, (0, 1)).all():
            raise ConfigError(f"y must hold 0 and 1 only, got {np.unique(self.y)[:5].tolist()} ({where}); encode other labels first")
        if self.pairs is not None:
            found = match_pairs(self.y, self.pairs)
            split = np.flatnonzero(self.groups[found.positive] != self.groups[found.negative])
            if len(split):
                number = self.pairs[found.positive[split[0]]]
                raise ConfigError(f"both rows of a pair must have one group, pair {number} has two ({where}); give both the same group")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Int[np.ndarray, "_"]) -> "LabelledRows":
        """Those rows, in that order. Pairs must be taken whole."""
        pairs = None if self.pairs is None else self.pairs[rows]
        return replace(self, X=self.X[rows], y=self.y[rows], groups=self.groups[rows], pairs=pairs)


def labelled_rows(source: FeatureSource, name: str, problem: Problem) -> LabelledRows:
    """The rows of `problem` in the matrix `name` of `source`. Raises ConfigError for a problem that is not binary."""
    if problem.target != "binary":
        raise ConfigError(f"problem must have two classes, got {problem.target!r} ({problem.name!r}); a direction needs two")
    return LabelledRows(problem.name, source.read(name)[problem.rows], np.asarray(problem.y, dtype=np.int64), problem.groups)


def contrast_pairs(
    name: str,
    positive: Float[np.ndarray, "n_positive d_positive"],
    negative: Float[np.ndarray, "n_negative d_negative"],
    groups: Int[np.ndarray, " n_groups"] | None = None,
) -> LabelledRows:
    """Rows 2i and 2i + 1 are positive[i] (label 1) and negative[i] (label 0), of pair i; every pair is a document unless `groups` says more.

    Raises ConfigError for arrays of different shapes.
    """
    if positive.shape != negative.shape:
        raise ConfigError(f"positive and negative must have one shape, got {list(positive.shape)} and {list(negative.shape)} ({name!r})")
    n = len(positive)
    if groups is not None and len(groups) != n:
        raise ConfigError(f"groups must have one entry per pair, got {len(groups)} for {n} pairs ({name!r})")
    X = np.stack([positive, negative], axis=1).reshape(2 * n, -1)
    pairs = np.repeat(np.arange(n), 2)
    return LabelledRows(name, X, np.tile([1, 0], n), pairs if groups is None else np.repeat(groups, 2), pairs)


class MatchedPairs(NamedTuple):
    """The rows of each pair, in order of the pair's first row."""

    positive: Int[np.ndarray, " n_pairs"]
    """Row with label 1."""
    negative: Int[np.ndarray, " n_pairs"]
    """Row with label 0."""


def match_pairs(y: Int[np.ndarray, " n"], pairs: Int[np.ndarray, " n"]) -> MatchedPairs:
    """The two rows of every pair. Raises ConfigError for a pair that is not one row of each class."""
    numbers, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    counts = np.stack([np.bincount(inverse[y == label], minlength=len(numbers)) for label in (0, 1)], axis=1)
    wrong = np.flatnonzero((counts != 1).any(axis=1))
    if len(wrong):
        found = f"pair {numbers[wrong[0]]} has {counts[wrong[0]][0]} rows of class 0 and {counts[wrong[0]][1]} of class 1"
        raise ConfigError(f"every pair must be one row of each class, {found}, and {len(wrong) - 1} more pairs are wrong")
    rows = np.empty((len(numbers), 2), dtype=np.int64)
    rows[inverse, y] = np.arange(len(y))
    rows = rows[np.argsort(first)]
    return MatchedPairs(rows[:, 1], rows[:, 0])


def unit(vector: Float[np.ndarray, " d"], *, where: str) -> Float[np.ndarray, " d"]:
    """vector / ||vector|| in float64. Raises ConfigError for a vector that is zero or not finite."""
    vector = np.asarray(vector, dtype=np.float64)
    largest = np.abs(vector).max() if len(vector) else 0.0
    if not (largest > 0 and np.isfinite(largest)):
        reason = "nothing in X tells the classes apart (constant columns, or equal means)"
        raise ConfigError(f"a direction must have a length that is positive and finite, got {largest:g}: {reason} ({where})")
    vector = vector / largest
    return vector / np.linalg.norm(vector)


class DirectionReader(ClassifierMixin, BaseEstimator, ABC):
    """A unit vector from labelled rows. Labels may be of any kind; the greater one is positive, and the direction points to it.

    Attributes after `fit`: `direction_` [d] of length 1, `intercept_` (b above), `classes_`, `n_features_in_`.
    """

    reads_sparse = False
    """Whether scipy sparse X is taken, and never made dense."""

    @abstractmethod
    def _vector(self, X: Any, y: np.ndarray) -> np.ndarray:
        """A vector along the direction, of any length; y holds 0 and 1."""

    def fit(self, X: Any, y: Any) -> "DirectionReader":
        """Find the direction. X: array-like [n, d] (scipy sparse where the reader takes it); y: two classes.

        Raises ConfigError for parameters out of range or rows without a direction, ValueError (as scikit-learn does) for X or y that
        cannot be used: NaN, one class, more than two.
        """
        X, encoded = self._labelled(X, y)
        self._settle(X, encoded, self._vector(X, encoded))
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """direction_ . x + intercept_: the projection in the units of X, moved so that 0 is the threshold of `predict`."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=self._formats(), dtype=[np.float64, np.float32], reset=False)
        return np.asarray(X @ self.direction_ + self.intercept_, dtype=np.float64)

    def predict(self, X: Any) -> np.ndarray:
        """The positive class where the decision is above 0."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(int)]

    def _formats(self) -> Any:
        return "csr" if self.reads_sparse else False

    def _labelled(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """X as validated, y as 0 and 1; sets `classes_`."""
        X, y = validate_data(self, X, y, accept_sparse=self._formats(), dtype=[np.float64, np.float32])
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind != "binary":
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        classes, encoded = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        self.classes_ = classes
        return X, encoded

    def _settle(self, X: Any, y: np.ndarray, vector: np.ndarray, intercept: float | None = None) -> None:
        """Set the fitted attributes; the threshold is half-way between the classes' mean projections unless given for `vector` itself."""
        self.direction_ = unit(vector, where=type(self).__name__)
        if intercept is not None:
            self.intercept_ = float(intercept / np.linalg.norm(vector))
            return
        projection = np.asarray(X @ self.direction_, dtype=np.float64)
        self.intercept_ = -float(projection[y == 1].mean() + projection[y == 0].mean()) / 2

    def _seed(self) -> int:
        seed = getattr(self, "random_state", 0)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ConfigError(f"random_state must be an integer of at least 0, got {seed!r} ({type(self).__name__})")
        return int(seed)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.sparse = self.reads_sparse
        return tags


def fit_reader(reader: Any, rows: LabelledRows) -> Any:
    """`reader` fitted in place to the rows, with their pairs where it takes pairs. Raises ConfigError if it then has no `direction_`."""
    if rows.pairs is not None and has_fit_parameter(reader, "pairs"):
        reader.fit(rows.X, rows.y, pairs=rows.pairs)
    else:
        reader.fit(rows.X, rows.y)
    if not hasattr(reader, "direction_"):
        raise ConfigError(
            f"a reader must have direction_ after fit, {type(reader).__name__} has none; use the readers of probes.directions"
        )
    return reader


def dense(X: Any) -> Float[np.ndarray, "_ _"]:
    """X in float64. Raises ConfigError for a sparse matrix."""
    if sparse.issparse(X):
        raise ConfigError(f"X must be dense here, got a sparse matrix of shape {list(X.shape)}; pass X.toarray() if it fits")
    return np.asarray(X, dtype=np.float64)
