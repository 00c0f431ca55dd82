"""Two classes: class 1 is the positive one.

    AUC       = sum_f U_f / sum_f n+_f n-_f          pairs are compared within a fold f only: decisions of different fits share no scale
    AP        = sum_f sum_{i in f, y_i = 1} P_f(s_i) / sum_f n+_f       P_f(s) = precision in fold f of saying 1 from decision s upwards
    precision = TP / (TP + FP),     recall = TP / (TP + FN),     F1 = 2 TP / (2 TP + FP + FN)
    MCC       = (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN))

What chance gives at a positive share p: AUC 1/2, AP p, balanced accuracy 1/2, MCC 0. A probe that always says 1 scores precision p, recall 1
and F1 = 2p / (1 + p), which is 2/3 at p = 1/2: F1 alone makes a probe that has learnt nothing look able. Precision is defined as 0 where 1 is never
said, F1 as 0 where TP + FP + FN = 0, MCC as 0 where label or prediction is constant. Draws of documents that lost a class leave AUC,
AP, recall and balanced accuracy undefined and are left out of their intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.problem import Features
from probes.validation.estimates import Estimate, Score, document_draws, estimates
from probes.validation.fits import HeldOut, check_folds, check_matrix, decisions, held_out, tie_ends
from probes.validation.loops import ranked_sums
from probes.validation.splits import Fold, Groups, Labels, Split, check_labels, group_folds, null_splits
from sae.errors import ConfigError

METRICS = ("accuracy", "balanced_accuracy", "f1", "auc", "mcc", "precision", "recall", "average_precision")


@dataclass(frozen=True)
class ProbeScore(Score):
    """The scores of one probe for two classes on one matrix. Label 1 is the positive class."""

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
    precision: Estimate
    """Share of the rows called positive that are; 0 where none is called so."""
    recall: Estimate
    """Share of the positive rows that are called so."""
    average_precision: Estimate
    """Mean over positive rows of the precision at their decision, within folds; the positive share by chance."""
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

    def note(self) -> str:
        """What a probe that has learnt nothing scores at this share of positive rows."""
        p = self.positive_share
        return (
            f"Positive share {p:.3f}. Always saying 1 gives F1 {2 * p / (1 + p):.3f}, precision and average precision {p:.3f}, AUC and "
            f"balanced accuracy 0.5, MCC 0; always the majority gives accuracy {max(p, 1 - p):.3f}."
        )


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
    """The scores of clones of `estimator` on `X`, for labels 0 and 1 (or False and True); `groups` holds the document of each row.

    `folds` are made from `y`, `groups`, `n_folds` and `seed` unless given; shuffled labels get folds of their own, made the same way.
    Raises ConfigError for input that does not fit together or is not finite, SaeError for a fit that does not converge.
    """
    y = _binary(y, groups)
    folds = list(folds) if folds is not None else group_folds(y, groups, n_folds=n_folds, seed=seed)
    nulls = null_splits(y, groups, folds, n_shuffles=n_shuffles, seed=seed)
    return evaluate_probes([estimator], X, y, groups, folds=folds, nulls=nulls, n_bootstrap=n_bootstrap, seed=seed)


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
    y = _binary(y, groups)
    check_matrix(X, y)
    if not estimators or n_bootstrap < 1:
        raise ConfigError(f"estimators and n_bootstrap must be at least 1, got {len(estimators)} and {n_bootstrap} (evaluate_probes)")
    check_folds(folds, y, groups)
    tested = np.concatenate([fold.test for fold in folds])
    documents, document = np.unique(groups[tested], return_inverse=True)
    weights = document_draws(len(documents), n_bootstrap, seed)
    found = np.mean([_metrics(held_out(estimator, X, y, folds, _ask), y, document, weights) for estimator in estimators], axis=0)
    once = np.ones((1, 1), np.int32)
    null = np.empty((len(nulls), len(METRICS)))
    for i, split in enumerate(nulls):
        answers = held_out(estimators[i % len(estimators)], X, split.y, split.folds, _ask)
        null[i] = _metrics(answers, split.y, np.zeros(len(answers.rows), np.int64), once)[0]
    return ProbeScore(
        **estimates(METRICS, found, null),
        n_train=min(len(fold.train) for fold in folds),
        n_test=len(tested),
        n_groups=len(documents),
        positive_share=float(np.mean(y[tested])),
        n_bootstrap=n_bootstrap,
        n_shuffles=len(nulls),
    )


def _binary(y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The labels as 0 and 1."""
    check_labels(y, groups)
    if y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
        raise ConfigError(
            f"y must hold 0 and 1 only, got {np.unique(y)[:5].tolist()}: say which class is positive with (labels == name).astype(int), "
            "or use evaluate_classifier (several classes) or evaluate_regressor (a number)"
        )
    return y.astype(np.int64)


def _ask(probe: Any, X: Any) -> np.ndarray:
    """Decision and prediction of each row."""
    return np.stack([decisions(probe, X), probe.predict(X) == 1], axis=1)


def _metrics(found: HeldOut, y: np.ndarray, document: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A row of METRICS per row of `weights` [draws, documents]; `document` gives each answer's column. NaN where undefined."""
    decision = found.answers[:, 0]
    order = np.lexsort((-decision, found.fold))
    truth, predicted = y[found.rows].astype(np.int64), found.answers[:, 1].astype(np.int64)
    fold_ends = np.r_[np.diff(found.fold) != 0, True]
    ends = tie_ends(found.fold, decision[order])
    sums = ranked_sums(weights, document[order], truth[order], predicted[order], ends, fold_ends)
    tn, fp, fn, tp, wins, pairs, precisions, positives = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = tp / (tp + fn)
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        columns = {
            "accuracy": (tp + tn) / (tp + tn + fp + fn),
            "balanced_accuracy": (recall + tn / (tn + fp)) / 2,
            "f1": np.where(tp + fp + fn == 0, 0.0, 2 * tp / (2 * tp + fp + fn)),
            "auc": wins / pairs,
            "mcc": np.where(product == 0, 0.0, (tp * tn - fp * fn) / np.sqrt(product)),
            "precision": np.where(tp + fp == 0, 0.0, tp / (tp + fp)),
            "recall": recall,
            "average_precision": precisions / positives,
        }
    return np.stack([columns[name] for name in METRICS], axis=1)
