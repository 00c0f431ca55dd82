"""How fine-tuning moved the concepts of a model: one shift per concept, measured on the same samples before and after.

    c_k       centre k of k-means on the activations before;   S_k = {i: c_k is nearest to h_i}, the greatest activation 1 / (1 + dist)
    delta_k   = mean over S_k of (h'_i - h_i)                  h', c': after fine-tuning
    m         one to one, maximises  sum_k cos(c_k + strength delta_k, c'_m(k))        (Hungarian matching)
    recovery  cos(c_k + strength delta_k, c'_m(k)) - cos(c_k, c'_m(k))
    consistency  mean over S_k of cos(h'_i - h_i, delta_k);    1 / sqrt(|S_k|) if the shifts of single samples have nothing in common

Khayatan et al., "Analyzing Fine-tuning Representation Shift for Multimodal LLMs Steering alignment", 2025, arXiv 2501.03012.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_array, check_is_fitted

from probes.figures import CONTROL, colour, new_figure
from probes.results import Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def cosines(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Cosine of every row of `a` with every row of `b`; 0 where one of them is zero."""
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    units = [np.divide(x, n, out=np.zeros_like(x, dtype=np.float64), where=n > 0) for x, n in zip((a, b), lengths, strict=True)]
    return units[0] @ units[1].T


class ConceptShift(BaseEstimator):
    """Concepts before and after, the shift of each, and which became which.

    n_concepts: centres of k-means on either side. strength: how much of the shift is added before matching. n_init: restarts.
    Attributes after `fit`: `concepts_`, `tuned_concepts_`, `shifts_` [n_concepts, d]; `directions_`, the shifts at length 1; `labels_`,
    `tuned_labels_` [n], concept of each sample; `assignment_` [n_concepts], the tuned concept m(k); `n_features_in_`.
    """

    def __init__(self, n_concepts=20, strength=1.0, n_init=10, random_state=0):
        self.n_concepts = n_concepts
        self.strength = strength
        self.n_init = n_init
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "ConceptShift":
        """X: activations before [n, d]; y: activations of the same samples after [n, d].

        Raises ConfigError for shapes that differ or more concepts than different samples, ValueError for NaN.
        """
        X, y = (check_array(a, dtype=np.float64, input_name=name) for a, name in ((X, "X"), (y, "y")))
        if X.shape != y.shape:
            raise ConfigError(f"X and y must have one shape, the same samples before and after, got {list(X.shape)} and {list(y.shape)}")
        for name in ("n_concepts", "n_init"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r} (ConceptShift)")
        for name, a in (("X", X), ("y", y)):
            different = len(np.unique(a, axis=0))
            if self.n_concepts > different:
                raise ConfigError(
                    f"n_concepts must be at most {different}, the different rows of {name}, got {self.n_concepts} (ConceptShift)"
                )
        before, after = (KMeans(self.n_concepts, n_init=self.n_init, random_state=self.random_state).fit(a) for a in (X, y))
        self.n_features_in_ = X.shape[1]
        self.concepts_, self.labels_ = before.cluster_centers_, before.labels_
        self.tuned_concepts_, self.tuned_labels_ = after.cluster_centers_, after.labels_
        self.shifts_ = mean_by_label(y - X, self.labels_, self.n_concepts)
        lengths = np.linalg.norm(self.shifts_, axis=1, keepdims=True)
        self.directions_ = np.divide(self.shifts_, lengths, out=np.zeros_like(self.shifts_), where=lengths > 0)
        self.assignment_ = match(self.concepts_ + self.strength * self.shifts_, self.tuned_concepts_)
        return self

    def predict(self, X: Any) -> Int[np.ndarray, " n"]:
        """The concept, before fine-tuning, that each row activates most."""
        check_is_fitted(self)
        X = check_array(X, dtype=np.float64)
        if X.shape[1] != self.n_features_in_:
            raise ConfigError(f"X must have {self.n_features_in_} columns, as in fit, got {X.shape[1]} (ConceptShift)")
        return ((X**2).sum(1)[:, None] - 2 * X @ self.concepts_.T + (self.concepts_**2).sum(1)).argmin(1)

    def transform(self, X: Any) -> Float[np.ndarray, "n d"]:
        """X moved by the shift of each row's concept: an estimate of the activations after fine-tuning."""
        X = check_array(X, dtype=np.float64)
        return X + self.strength * self.shifts_[self.predict(X)]


def mean_by_label(rows: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], n_labels: int) -> Float[np.ndarray, "n_labels d"]:
    """Mean of the rows of every label; each must have one."""
    total = np.zeros((n_labels, rows.shape[1]))
    np.add.at(total, labels, rows)
    return total / np.bincount(labels, minlength=n_labels)[:, None]


def match(a: Float[np.ndarray, "k d"], b: Float[np.ndarray, "k d"]) -> Int[np.ndarray, " k"]:
    """For each row of `a` the row of `b` it is matched to, one to one, with the greatest sum of cosines."""
    return np.asarray(linear_sum_assignment(cosines(a, b), maximize=True)[1])


@dataclass(frozen=True, eq=False)
class ConceptShiftReport(Result):
    """What fine-tuning did to each concept."""

    n_samples: Int[np.ndarray, " k"]
    """Samples of each concept."""
    assignment: Int[np.ndarray, " k"]
    """Tuned concept matched to each concept moved by its shift."""
    shift: Float[np.ndarray, " k"]
    """Length of the shift, in lengths of the concept's centre."""
    cosine: Float[np.ndarray, " k"]
    """Cosine of the moved concept with its tuned one."""
    cosine_unmoved: Float[np.ndarray, " k"]
    """Cosine of the concept itself with the same tuned one."""
    cosine_null: Float[np.ndarray, " k"]
    """The same as `cosine` with the shifts of other samples: samples paired at random, mean over shuffles."""
    consistency: Float[np.ndarray, " k"]
    """Mean cosine of single samples' shifts with the concept's."""
    overlap: Float[np.ndarray, " k"]
    """Samples of both the concept and its tuned one, as a share of the samples of either."""

    @property
    def recovery(self) -> Float[np.ndarray, " k"]:
        """What the shift adds to the cosine."""
        return self.cosine - self.cosine_unmoved

    def table(self) -> Table:
        columns = (
            "concept",
            "samples",
            "tuned",
            "shift / centre",
            "cosine",
            "cosine unmoved",
            "recovery",
            "cosine null",
            "consistency",
            "null",
            "overlap",
        )
        rows = zip(
            range(len(self.cosine)), self.n_samples.tolist(), self.assignment.tolist(), self.shift.tolist(), self.cosine.tolist(),
            self.cosine_unmoved.tolist(), self.recovery.tolist(), self.cosine_null.tolist(), self.consistency.tolist(),
            (1 / np.sqrt(self.n_samples)).tolist(), self.overlap.tolist(), strict=True,
        )  # fmt: skip
        note = (
            "Cosine: the concept moved by its shift, with the tuned concept it is matched to. Its null pairs samples at random. Consistency is "
            "1 / sqrt(samples) where the shifts of single samples have nothing in common."
        )
        return Table("Shift of concepts by fine-tuning", columns, tuple(rows), note)

    def figure(self) -> "Figure":
        import plotly.graph_objects as go

        figure = new_figure("Concepts moved by their shift", "consistency of the shift", "cosine with the tuned concept")
        hover = [f"concept {k} → {m}, {n} samples" for k, (m, n) in enumerate(zip(self.assignment, self.n_samples, strict=True))]
        for name, values, style in (
            ("unmoved", self.cosine_unmoved, {"color": CONTROL, "symbol": "circle-open"}),
            ("samples paired at random", self.cosine_null, {"color": CONTROL, "symbol": "x-thin-open"}),
            ("moved", self.cosine, {"size": 9, "color": colour(0)}),
        ):
            figure.add_trace(go.Scatter(x=self.consistency, y=values, mode="markers", name=name, marker=style, text=hover))
        return figure


def concept_shift_report(
    fitted: ConceptShift, X: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], *, n_shuffles: int = 10, seed: int = 0
) -> ConceptShiftReport:
    """The shift of every concept with its controls; X and y as they were given to `fitted.fit`."""
    check_is_fitted(fitted)
    if X.shape != y.shape or len(X) != len(fitted.labels_):
        raise ConfigError(f"X and y must be the {len(fitted.labels_)} samples of fit, got {list(X.shape)} and {list(y.shape)}")
    labels, k = fitted.labels_, len(fitted.concepts_)
    shifts = np.asarray(y, dtype=np.float64) - X
    moved = fitted.concepts_ + fitted.strength * fitted.shifts_
    target = fitted.tuned_concepts_[fitted.assignment_]
    rng = np.random.default_rng(seed)
    null = np.zeros((max(n_shuffles, 1), k))
    for i in range(n_shuffles):
        others = mean_by_label(np.asarray(y, dtype=np.float64)[rng.permutation(len(y))] - X, labels, k)
        null[i] = _aligned(*_best(fitted.concepts_ + fitted.strength * others, fitted.tuned_concepts_))
    single = np.array([_aligned(shifts[labels == i], np.tile(fitted.shifts_[i], ((labels == i).sum(), 1))).mean() for i in range(k)])
    after = [fitted.tuned_labels_ == m for m in fitted.assignment_]
    both = np.array([((labels == i) & after[i]).sum() / ((labels == i) | after[i]).sum() for i in range(k)])
    lengths = np.linalg.norm(fitted.concepts_, axis=1)
    return ConceptShiftReport(
        n_samples=np.bincount(labels, minlength=k),
        assignment=np.asarray(fitted.assignment_),
        shift=np.linalg.norm(fitted.shifts_, axis=1) / np.where(lengths > 0, lengths, np.nan),
        cosine=_aligned(moved, target),
        cosine_unmoved=_aligned(fitted.concepts_, target),
        cosine_null=null.mean(axis=0) if n_shuffles else np.full(k, np.nan),
        consistency=single,
        overlap=both,
    )


def _best(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`a`, and the rows of `b` matched to it."""
    return a, b[match(a, b)]


def _aligned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of row i of `a` with row i of `b`; 0 where one is zero."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide(np.einsum("ij,ij->i", a, b), lengths, out=np.zeros(len(a)), where=lengths > 0)
