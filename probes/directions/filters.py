"""Does one unit hold a concept, or only a combination? Units (channels, neurons, latents) against a mask over tokens or pixels.

    single        M_k = 1[a_k > T_k],  T_k the 1 - tau quantile of unit k;      k maximises IoU = |M_k and M| / |M_k or M| on training rows
    combination   p = sigmoid(sum_k w_k a_k),   loss  -sum alpha M log p + (1 - alpha)(1 - M) log(1 - p),   alpha = 1 - mean M
    F subset      the F units with the greatest |w_k| sd_k, fitted anew

Fong & Vedaldi, "Net2Vec", CVPR 2018, arXiv 1801.03454, section 3. The loss is convex: it is brought to its minimum with a small L2 penalty
in units of each column's spread, where the paper's code stops after 30 epochs. Weights are compared per standard deviation, so that the
scale of a unit does not decide. As tau bounds the IoU of a unit by min(tau, p) / max(tau, p) for a mask of share p, several may be tried.
IoU is that of the whole set of rows, and is given on rows of other documents than those fitted to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from probes.directions.base import DirectionReader, LabelledRows
from probes.figures import colour, control_line, new_figure
from probes.results import Result, Table
from probes.selection import moments
from probes.validation import shuffle_labels
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TOLERANCE, MAX_STEPS = 1e-7, 5000
UNITS_PER_BLOCK = 256


def iou(truth: Shaped[np.ndarray, " n"], predicted: Shaped[np.ndarray, " n"]) -> float:
    """|truth and predicted| / |truth or predicted| of two masks; 0 where both are empty."""
    truth, predicted = truth.astype(bool), predicted.astype(bool)
    either = int((truth | predicted).sum())
    return int((truth & predicted).sum()) / either if either else 0.0


class SingleFilter(DirectionReader):
    """The one unit whose thresholded activation overlaps the mask most. `direction_` is its axis, `decision_function` is a_k - T_k.

    shares: values of tau to try, in (0, 1). Attributes beside the shared ones: `unit_`, `share_`, `threshold_`, `iou_` on the rows of fit,
    `ious_` [d], the best of each unit over `shares`. Of equal units the first wins. Of sparse X a few columns at a time are made dense.
    """

    reads_sparse = True

    def __init__(self, shares=(0.005,)):
        self.shares = shares

    def fit(self, X: Any, y: Any) -> "SingleFilter":
        """Find the unit. X: activations [n, units]; y: the mask. Errors as `DirectionReader.fit`."""
        shares = [float(share) for share in self.shares]
        if not shares or not all(0 < share < 1 for share in shares):
            raise ConfigError(f"shares must hold numbers in (0, 1), got {self.shares!r} (SingleFilter)")
        X, encoded = self._labelled(X, y)
        columns = X.tocsc() if sparse.issparse(X) else X
        thresholds, found = np.empty((2, len(shares), X.shape[1]))
        for start in range(0, X.shape[1], UNITS_PER_BLOCK):
            block = slice(start, start + UNITS_PER_BLOCK)
            acts = columns[:, block].toarray() if sparse.issparse(X) else columns[:, block]
            thresholds[:, block] = np.quantile(acts, [1 - share for share in shares], axis=0)
            found[:, block] = [self._ious(acts, encoded, threshold) for threshold in thresholds[:, block]]
        self.ious_ = found.max(axis=0)
        self.unit_ = int(self.ious_.argmax())
        number = int(found[:, self.unit_].argmax())
        self.share_, self.iou_ = shares[number], float(self.ious_[self.unit_])
        self.threshold_ = float(thresholds[number, self.unit_])
        vector = np.zeros(X.shape[1])
        vector[self.unit_] = 1
        self._settle(X, encoded, vector, -self.threshold_)
        return self

    def _ious(self, X: np.ndarray, y: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        masks = (threshold < X).astype(np.float64)
        both = y @ masks
        return both / (y.sum() + masks.sum(axis=0) - both)

    def _vector(self, X: Any, y: np.ndarray) -> np.ndarray:
        raise ConfigError("SingleFilter has a threshold of its own; call fit")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # one unit, active on a share of the rows that is given
        return tags


class FilterCombination(DirectionReader):
    """The weighted sum of units that draws the mask, by the class-balanced loss. Sparse X stays sparse.

    n_filters: how many units (None: all); chosen by |w_k| sd_k of the fit to all, then fitted anew. C: inverse strength of the penalty, in units
    of each column's standard deviation. fit_intercept: the paper's combination has no bias (False), so its mask is empty where all units
    are silent, and p > 1/2 is w . a > 0; True adds one. Attributes beside the shared ones: `weights_` [d], 0 for units not chosen;
    `filters_`, the chosen units, heaviest first.
    """

    reads_sparse = True

    def __init__(self, n_filters=None, C=100.0, fit_intercept=False):
        self.n_filters = n_filters
        self.C = C
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any) -> "FilterCombination":
        """Fit the weights. X: activations [n, units]; y: the mask. Errors as `DirectionReader.fit`."""
        X, encoded = self._labelled(X, y)
        k, d = self.n_filters, X.shape[1]
        if k is not None and (isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= d):
            raise ConfigError(f"n_filters must be a whole number in 1..d={d}, or None for all, got {k!r} (FilterCombination)")
        if not (isinstance(self.C, (int, float)) and self.C > 0):
            raise ConfigError(f"C must be a positive number, got {self.C!r} (FilterCombination)")
        spread = np.sqrt(moments(X, np.ones(len(encoded))).variance)
        weights, intercept = self._weights(X, encoded, spread, np.arange(d))
        if k is not None:
            weights, intercept = self._weights(X, encoded, spread, order_by_weight(weights * spread)[:k])
        self.weights_ = weights
        self.filters_ = order_by_weight(weights * spread)[: d if k is None else k]
        self._settle(X, encoded, weights, intercept)
        return self

    def _weights(self, X: Any, y: np.ndarray, spread: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, float]:
        scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)[chosen]
        columns = X[:, chosen].astype(np.float64)
        columns = columns.multiply(scale).tocsr() if hasattr(columns, "multiply") else columns * scale
        model: Any = LogisticRegression(
            C=self.C, class_weight="balanced", fit_intercept=self.fit_intercept, tol=TOLERANCE, max_iter=MAX_STEPS
        ).fit(columns, y)
        self.n_iter_ = int(np.max(model.n_iter_))
        weights = np.zeros(X.shape[1])
        weights[chosen] = model.coef_[0] * scale
        return weights, float(model.intercept_[0]) if self.fit_intercept else 0.0

    def _vector(self, X: Any, y: np.ndarray) -> np.ndarray:
        raise ConfigError("FilterCombination has a threshold of its own; call fit")


def order_by_weight(weights: Float[np.ndarray, " d"]) -> Int[np.ndarray, " d"]:
    """Units by |weight|, heaviest first; of equal ones the first."""
    return np.lexsort((np.arange(len(weights)), -np.abs(weights)))


@dataclass(frozen=True, eq=False)
class FilterCurve(Result):
    """IoU on validation rows against the number of units combined."""

    name: str
    """The concept."""
    counts: tuple[int, ...]
    """Numbers of units combined; the last is all of them."""
    combined: tuple[float, ...]
    """IoU on validation rows of each number."""
    fitted: tuple[float, ...]
    """IoU on training rows of each number."""
    null: Float[np.ndarray, "n_null n_counts"]
    """IoU on validation rows of fits to shuffled masks."""
    unit: int
    """The best single unit, chosen on training rows."""
    single_fitted: float
    """Its IoU on training rows."""
    single: float
    """Its IoU on validation rows."""
    single_null: Float[np.ndarray, " n_null"]
    """IoU on validation rows of the best unit for shuffled masks."""
    mask_share: float
    """Share of the validation rows in the mask: IoU of a mask that is everywhere."""

    def table(self) -> Table:
        rows = [(f"unit {self.unit}", 1, self.single_fitted, self.single, *_null(self.single_null))]
        for i, count in enumerate(self.counts):
            rows.append((f"combination of {count}", count, self.fitted[i], self.combined[i], *_null(self.null[:, i])))
        rows.append(("everywhere", 0, None, self.mask_share, None, None))
        note = "Units, thresholds and weights come from training rows only. Null: the same on masks shuffled by document. Everywhere: a mask of all rows."
        return Table(
            f"Mask of {self.name!r} from units", ("mask", "units", "IoU train", "IoU validation", "null", "null sd"), tuple(rows), note
        )

    def figure(self) -> "Figure":
        import plotly.graph_objects as go

        figure = new_figure(f"Mask of {self.name!r} from units", "units combined", "IoU on validation rows")
        figure.add_trace(go.Scatter(x=self.counts, y=self.combined, mode="lines+markers", name="combination", line={"color": colour(0)}))
        figure.add_trace(
            go.Scatter(x=[1], y=[self.single], mode="markers", name=f"unit {self.unit}", marker={"color": colour(1), "size": 10})
        )
        if len(self.null):
            figure.add_trace(go.Scatter(x=self.counts, y=self.null.mean(0), mode="lines", name="shuffled masks", line=control_line()))
        ends = [min(self.counts), max(self.counts)]
        figure.add_trace(go.Scatter(x=ends, y=[self.mask_share] * 2, mode="lines", name="everywhere", line=control_line(dash="dot")))
        figure.update_xaxes(type="log", tickvals=self.counts, ticktext=[str(count) for count in self.counts])
        figure.update_yaxes(range=[0, 1.02])
        return figure


def _null(values: np.ndarray) -> tuple[float | None, float | None]:
    return (float(values.mean()) if len(values) else None, float(values.std(ddof=1)) if len(values) > 1 else None)


def filter_curve(
    train: LabelledRows,
    validation: LabelledRows,
    *,
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    single: SingleFilter | None = None,
    combination: FilterCombination | None = None,
    n_shuffles: int = 5,
    seed: int = 0,
) -> FilterCurve:
    """IoU of the best single unit and of combinations of F units, all chosen on `train` and reported on `validation`, each with its null.

    Counts above the number of units are left out; all units always come last. Raises ConfigError for rows of different widths, for documents
    on both sides, and as the estimators do.
    """
    d = train.X.shape[1]
    if validation.X.shape[1] != d:
        raise ConfigError(f"validation must have the {d} columns of train, got {validation.X.shape[1]} (filter_curve)")
    shared = np.intersect1d(train.groups, validation.groups)
    if len(shared):
        raise ConfigError(f"train and validation must not share groups, got {len(shared)} shared, e.g. {shared[0]}; split by document")
    if not counts or min(counts) < 1 or n_shuffles < 0:
        raise ConfigError(f"counts must be at least 1 and n_shuffles at least 0, got {list(counts)} and {n_shuffles} (filter_curve)")
    sizes = tuple(sorted({count for count in counts if count < d} | {d}))
    unit, all_units = single or SingleFilter(), combination or FilterCombination()

    def overlaps(y: np.ndarray) -> tuple[SingleFilter, np.ndarray, np.ndarray]:
        """The single unit for a training mask, and IoU on training and validation rows of it and of each size."""
        fits = [clone(unit).fit(train.X, y), *(clone(all_units).set_params(n_filters=None if k == d else k).fit(train.X, y) for k in sizes)]
        on_train = np.array([iou(y, fit.predict(train.X)) for fit in fits])
        return fits[0], on_train, np.array([iou(validation.y, fit.predict(validation.X)) for fit in fits])

    best, on_train, on_validation = overlaps(train.y)
    null = np.array([overlaps(shuffle_labels(train.y, train.groups, seed=seed + i))[2] for i in range(n_shuffles)])
    null = null.reshape(n_shuffles, 1 + len(sizes))
    return FilterCurve(
        name=train.name,
        counts=sizes,
        combined=tuple(on_validation[1:].tolist()),
        fitted=tuple(on_train[1:].tolist()),
        null=null[:, 1:],
        unit=best.unit_,
        single_fitted=float(on_train[0]),
        single=float(on_validation[0]),
        single_null=null[:, 0],
        mask_share=float(validation.y.mean()),
    )
