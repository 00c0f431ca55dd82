"""Scores of a probe on documents it has not seen, each with an interval over documents and what shuffled labels give.

    folds:      documents are split, never rows; a document is on one side of every fold
    scores:     every row is predicted once, by the probe whose fold held it out; the threshold is the probe's own
    AUC         = sum_f U_f / sum_f n+_f n-_f        pairs are compared within a fold f only: decisions of different fits share no scale
    interval:   percentile bootstrap, documents drawn with replacement
    null:       the same protocol on shuffled labels, which stay together as they do within documents

The interval covers the choice of test documents, not the refitting (Davison & Hinkley, Bootstrap Methods and their Application, 1997,
chapter 5). Folds of a few dozen documents leave the null wide, which is why its spread is given.
Splitting rows instead of documents lets a probe recognise the document: with random labels per document it scores near 1.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

from probes.selection import Labels
from sae.errors import ConfigError, SaeError

Groups = Shaped[np.ndarray, "_"]
if TYPE_CHECKING:
    Features: TypeAlias = Any  # scipy has no static types
else:
    Features = Float[np.ndarray, "_ _"] | sparse.csr_matrix | sparse.csr_array
"""As `Matrix`, with the number of rows left to this module's own check."""
METRICS = ("accuracy", "balanced_accuracy", "f1", "auc", "mcc")
INTERVAL = (0.025, 0.975)
DRAWS_PER_BLOCK = 100


class Fold(NamedTuple):
    """Row numbers of one split."""

    train: Int[np.ndarray, " n_train"]
    """Rows to fit on."""
    test: Int[np.ndarray, " n_test"]
    """Rows to score on; their documents have no row in `train`."""


@dataclass(frozen=True)
class Estimate:
    """A score with its interval over documents, and its null."""

    value: float
    """The score on all held-out rows."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    null_mean: float | None
    """Mean of the same score on shuffled labels; None where no shuffle was asked for."""
    null_sd: float | None
    """Standard deviation over the shuffles; None for fewer than two."""


@dataclass(frozen=True)
class ProbeScore:
    """The scores of one probe on one matrix. Label 1 is the positive class."""

    accuracy: Estimate
    """Share of rows classified rightly."""
    balanced_accuracy: Estimate
    """Mean of the two classes' recalls; 1/2 by chance."""
    f1: Estimate
    """2 TP / (2 TP + FP + FN), 0 if there is none of these; a probe that always says 1 scores 2p / (1 + p) at a positive share p."""
    auc: Estimate
    """Probability that a positive row ranks above a negative one of the same fold, ties counting one half."""
    mcc: Estimate
    """Matthews correlation of label and prediction; 0 where either is constant."""
    n_train: int
    """Rows of the smallest training set."""
    n_test: int
    """Rows scored, over all folds."""
    n_groups: int
    """Documents scored."""
    positive_share: float
    """Share of the scored rows with label 1."""
    n_bootstrap: int
    """Draws behind each interval."""
    n_shuffles: int
    """Label shuffles behind each null."""


def group_folds(y: Labels, groups: Groups, *, n_folds: int = 5, seed: int = 0) -> list[Fold]:
    """`n_folds` folds that split documents and keep the class shares alike (scikit-learn's StratifiedGroupKFold, shuffled by `seed`).

    Raises ConfigError when a class is found in fewer than `n_folds` documents, or when a fold would lack a class.
    """
    _check_labels(y, groups)
    if n_folds < 2:
        raise ConfigError(f"n_folds must be at least 2, got {n_folds} (group_folds)")
    counts = [len(np.unique(groups[y == label])) for label in (0, 1)]
    if min(counts) < n_folds:
        raise ConfigError(
            f"groups must hold each class in at least n_folds={n_folds} groups, got {counts[0]} for class 0, {counts[1]} for class 1"
        )
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # it counts rows of a class, we have counted its documents
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = [Fold(train, test) for train, test in splitter.split(np.zeros((len(y), 1)), y, groups)]
    for fold in folds:
        _check_fold(fold, y, groups)
    return folds


def group_holdout(y: Labels, groups: Groups, *, test_share: float = 0.3, seed: int = 0) -> Fold:
    """One split with `test_share` of the documents held out (scikit-learn's GroupShuffleSplit). ConfigError if a side lacks a class."""
    _check_labels(y, groups)
    if not 0 < test_share < 1:
        raise ConfigError(f"test_share must be in (0, 1), got {test_share} (group_holdout)")
    if len(np.unique(groups)) < 2:
        raise ConfigError("groups must hold at least 2 different groups, got 1 (group_holdout)")
    splitter = GroupShuffleSplit(1, test_size=test_share, random_state=seed)
    fold = Fold(*next(splitter.split(np.zeros((len(y), 1)), y, groups)))
    _check_fold(fold, y, groups)
    return fold


def shuffle_labels(y: Labels, groups: Groups, *, seed: int) -> Labels:
    """Labels without their meaning, but as alike within documents as before.

    Where every document has one label, documents exchange labels. Otherwise the documents' labels, laid end to end in one random order, are
    dealt to the rows of the documents in another: runs of equal labels survive, and so does each class's count.
    """
    _check_labels(y, groups)
    generator = np.random.default_rng(seed)
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    labels = y[first]
    if (labels[inverse] == y).all():
        return generator.permutation(labels)[inverse]
    rows = [np.argsort(generator.permutation(len(first))[inverse], kind="stable") for _ in range(2)]
    shuffled = np.empty_like(y)
    shuffled[rows[0]] = y[rows[1]]
    return shuffled


def evaluate_probe(
    estimator: Any,
    X: Features,
    y: Labels,
    groups: Groups,
    *,
    seed: int = 0,
    n_folds: int = 5,
    n_bootstrap: int = 1000,
    n_shuffles: int = 0,
    folds: Sequence[Fold] | None = None,
) -> ProbeScore:
    """The scores of clones of `estimator` on `X` by the protocol above; `y` holds 0 and 1, `groups` the document of each row.

    `folds` are made from `y`, `groups`, `n_folds` and `seed` unless given; shuffled labels get folds of their own, made the same way.
    Raises ConfigError for input that does not fit together or is not finite, SaeError for a fit that does not converge.
    """
    _check_labels(y, groups)
    if n_shuffles < 0:
        raise ConfigError(f"n_shuffles must be at least 0, got {n_shuffles} (evaluate_probe)")
    folds = list(folds) if folds is not None else group_folds(y, groups, n_folds=n_folds, seed=seed)
    nulls = null_splits(y, groups, folds, n_shuffles=n_shuffles, seed=seed)
    return evaluate_probes([estimator], X, y, groups, folds=folds, nulls=nulls, n_bootstrap=n_bootstrap, seed=seed)


class Split(NamedTuple):
    """Labels with their folds."""

    y: Labels
    """Labels, 0 and 1."""
    folds: list[Fold]
    """Splits of the rows by document."""


def null_splits(y: Labels, groups: Groups, folds: Sequence[Fold], *, n_shuffles: int, seed: int) -> list[Split]:
    """`n_shuffles` shuffles of the labels, each with as many folds as `folds`, made by `group_folds` from the shuffled labels.

    A single fold, a hold-out, is kept as it is.
    """
    shuffled = [shuffle_labels(y, groups, seed=seed + 1 + i) for i in range(n_shuffles)]
    single = len(folds) == 1
    return [Split(labels, list(folds) if single else group_folds(labels, groups, n_folds=len(folds), seed=seed)) for labels in shuffled]


def evaluate_probes(
    estimators: Sequence[Any],
    X: Features,
    y: Labels,
    groups: Groups,
    *,
    folds: Sequence[Fold],
    nulls: Sequence[Split],
    n_bootstrap: int,
    seed: int,
) -> ProbeScore:
    """As `evaluate_probe` with the splits made beforehand, so that many probes share them, and with the scores averaged over `estimators`:
    what one of them scores on average, as for random coordinates.
    """
    _check_labels(y, groups)
    _check_matrix(X, y)
    if not estimators or n_bootstrap < 1:
        raise ConfigError(f"estimators and n_bootstrap must be at least 1, got {len(estimators)} and {n_bootstrap} (evaluate_probes)")
    for fold in folds:
        _check_fold(fold, y, groups)
    tested = np.concatenate([fold.test for fold in folds])
    documents, inverse = np.unique(groups[tested], return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(documents), np.full(len(documents), 1 / len(documents)), size=n_bootstrap)
    weights = np.concatenate([np.ones((1, len(documents)), dtype=np.int64), draws])
    found = np.mean([_metrics(_predictions(estimator, X, y, folds), weights, inverse) for estimator in estimators], axis=0)
    null = np.empty((len(nulls), len(METRICS)))
    for i, split in enumerate(nulls):
        predictions = _predictions(estimators[i % len(estimators)], X, split.y, split.folds)
        null[i] = _metrics(predictions, np.ones((1, len(tested)), dtype=np.int64), np.arange(len(tested)))[0]
    return ProbeScore(
        **{name: _estimate(found[:, i], null[:, i]) for i, name in enumerate(METRICS)},
        n_train=min(len(fold.train) for fold in folds),
        n_test=len(tested),
        n_groups=len(documents),
        positive_share=float(np.mean(y[tested] == 1)),
        n_bootstrap=n_bootstrap,
        n_shuffles=len(nulls),
    )


class _Predictions(NamedTuple):
    """What the folds' probes said of the rows they had not seen, fold after fold."""

    truth: np.ndarray
    predicted: np.ndarray
    decision: np.ndarray
    fold: np.ndarray


def _predictions(estimator: Any, X: Features, y: Labels, folds: Sequence[Fold]) -> _Predictions:
    parts = []
    for number, fold in enumerate(folds):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                probe: Any = clone(estimator)
                probe.fit(X[fold.train], y[fold.train])
            except ConvergenceWarning as warning:
                raise SaeError(
                    f"{type(estimator).__name__} did not converge on fold {number} ({len(fold.train)} rows): {warning}"
                ) from warning
        test = X[fold.test]
        decision = probe.decision_function(test) if hasattr(probe, "decision_function") else probe.predict_proba(test)[:, 1]
        parts.append((y[fold.test] == 1, probe.predict(test) == 1, np.asarray(decision), np.full(len(fold.test), number)))
    return _Predictions(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _metrics(found: _Predictions, weights: np.ndarray, document: np.ndarray) -> Float[np.ndarray, "draws metrics"]:
    """A row of METRICS per row of `weights` [draws, documents]; `document` gives each prediction's column. NaN where undefined."""
    blocks = range(0, len(weights), DRAWS_PER_BLOCK)
    return np.concatenate(
        [_metrics_of_block(found, weights[start : start + DRAWS_PER_BLOCK][:, document].astype(np.float64)) for start in blocks]
    )


def _metrics_of_block(found: _Predictions, weights: np.ndarray) -> np.ndarray:
    truth, predicted = found.truth, found.predicted
    tp, fn, fp, tn = (weights @ cell for cell in (truth & predicted, truth & ~predicted, ~truth & predicted, ~truth & ~predicted))
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = (tp / (tp + fn) + tn / (tn + fp)) / 2
        f1 = np.where(tp + fp + fn == 0, 0.0, 2 * tp / (2 * tp + fp + fn))
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        mcc = np.where(product == 0, 0.0, (tp * tn - fp * fn) / np.sqrt(product))
        wins, pairs = (sum(parts) for parts in zip(*(_pairs(found, weights, fold) for fold in range(int(found.fold[-1]) + 1)), strict=True))
        return np.stack([(tp + tn) / weights.sum(1), balanced, f1, wins / pairs, mcc], axis=1)


def _pairs(found: _Predictions, weights: np.ndarray, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Weighted number of (positive, negative) pairs of one fold in the right order, ties counting one half, and of all its pairs."""
    rows = np.flatnonzero(found.fold == fold)
    rows = rows[np.argsort(found.decision[rows], kind="stable")]
    starts = np.flatnonzero(np.r_[True, np.diff(found.decision[rows]) != 0])
    w, truth = weights[:, rows], found.truth[rows]
    positive, negative = np.add.reduceat(w * truth, starts, axis=1), np.add.reduceat(w * ~truth, starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    return (positive * (below + negative / 2)).sum(1), positive.sum(1) * negative.sum(1)


def _estimate(values: np.ndarray, null: np.ndarray) -> Estimate:
    """The first of `values` with the interval of the rest (draws that lost a class are left out)."""
    low, high = np.nanquantile(values[1:], INTERVAL) if not np.isnan(values[1:]).all() else (values[0], values[0])
    return Estimate(
        value=float(values[0]),
        low=float(low),
        high=float(high),
        null_mean=float(null.mean()) if len(null) else None,
        null_sd=float(null.std(ddof=1)) if len(null) > 1 else None,
    )


def _check_labels(y: Labels, groups: Groups) -> None:
    if len(y) != len(groups):
        raise ConfigError(f"groups must have one entry per label, got {len(groups)} for {len(y)}")
    if not np.isin(y, (0, 1)).all():
        raise ConfigError(f"y must hold 0 and 1 only, got {np.unique(y)[:5].tolist()}")


def _check_matrix(X: Features, y: Labels) -> None:
    if X.shape[0] != len(y):
        raise ConfigError(f"X must have one row per label, got {X.shape[0]} rows for {len(y)} labels")
    values = X.data if sparse.issparse(X) else X
    if not np.isfinite(values).all():
        raise ConfigError(f"X must be finite, got {int((~np.isfinite(values)).sum())} entries that are not")


def _check_fold(fold: Fold, y: Labels, groups: Groups) -> None:
    shared = np.intersect1d(groups[fold.train], groups[fold.test])
    if len(shared):
        raise ConfigError(f"folds must not share groups between train and test, got {len(shared)} shared, e.g. {shared[0]!r}")
    for side, rows in zip(fold._fields, fold, strict=True):
        counts = [int((y[rows] == label).sum()) for label in (0, 1)]
        if min(counts) == 0:
            raise ConfigError(
                f"every fold must hold both classes on both sides, got {counts[0]} of class 0 and {counts[1]} of class 1 in {side}"
            )
