"""Several classes: one rule that says which.

    macro F1           = mean_c 2 TP_c / (2 TP_c + FP_c + FN_c)
    balanced accuracy  = mean_c TP_c / (TP_c + FN_c)                    chance: 1 / number of classes
    macro AUC          = mean_c AUC_c of the decision for c, class c against all others, within folds (chance: 1/2)

A class that is neither found nor predicted rightly has F1 0. Draws of documents that lost a class are left out of the intervals of all but
accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.problem import Features
from probes.validation.estimates import Estimate, Score, by_document, document_draws, estimates
from probes.validation.fits import HeldOut, check_folds, check_matrix, decisions, held_out, tie_ends
from probes.validation.loops import ranked_sums
from probes.validation.splits import Fold, Groups, Labels, Split, check_classes, check_labels, group_folds, is_number, null_splits
from sae.errors import ConfigError

CLASS_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc")


@dataclass(frozen=True)
class ClassScore(Score):
    """The scores of one probe for several classes on one matrix."""

    accuracy: Estimate
    """Share of rows classified rightly."""
    balanced_accuracy: Estimate
    """Mean of the classes' recalls; 1 / number of classes by chance."""
    macro_f1: Estimate
    """Mean of the classes' F1, each class against all others."""
    macro_auc: Estimate
    """Mean of the classes' AUC, each class against all others within folds; 1/2 by chance."""
    classes: tuple[str, ...]
    """The classes, in the order of `confusion`."""
    confusion: tuple[tuple[int, ...], ...]
    """Scored rows: of each class (rows), how many were called each class (columns)."""
    n_train: int
    """Rows of the smallest training set."""
    n_test: int
    """Rows scored, over all folds."""
    n_groups: int
    """Documents scored."""
    n_bootstrap: int
    """Draws behind each interval."""
    n_shuffles: int
    """Label shuffles behind each null."""

    def note(self) -> str:
        """What chance gives with these classes."""
        shares = np.sum(self.confusion, axis=1) / self.n_test
        most = int(np.argmax(shares))
        listed = ", ".join(f"{name} {share:.3f}" for name, share in zip(self.classes, shares, strict=True))
        return (
            f"Shares: {listed}. Always saying {self.classes[most]} gives accuracy {shares[most]:.3f}, balanced accuracy "
            f"{1 / len(shares):.3f}, macro F1 {2 * shares[most] / (1 + shares[most]) / len(shares):.3f}, macro AUC 0.5."
        )


def evaluate_classifier(
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
    nulls: Sequence[Split] | None = None,
) -> ClassScore:
    """The scores of clones of `estimator` on `X` for labels of two classes or more, of any kind; `groups` holds the document of each row.

    `folds` and `nulls` are made as `group_folds` and `null_splits` make them unless given. The estimator has `decision_function` or
    `predict_proba` with a column per class, as scikit-learn's have. Raises ConfigError for input that does not fit together, is not
    finite, or has one class only; SaeError for a fit that does not converge.
    """
    check_labels(y, groups)
    if is_number(y):
        raise ConfigError("y must hold classes, got numbers of floating point: use evaluate_regressor, or integers for classes")
    classes = check_classes(y, "evaluate_classifier")
    check_matrix(X, y)
    folds = list(folds) if folds is not None else group_folds(y, groups, n_folds=n_folds, seed=seed)
    check_folds(folds, y, groups)
    nulls = nulls if nulls is not None else null_splits(y, groups, folds, n_shuffles=n_shuffles, seed=seed)

    def ask(probe: Any, X: Any) -> np.ndarray:
        decision = decisions(probe, X)
        decision = np.stack([-decision, decision], axis=1) if decision.ndim == 1 else decision
        return np.column_stack([decision, np.searchsorted(classes, probe.predict(X))])

    tested = np.concatenate([fold.test for fold in folds])
    documents, document = np.unique(groups[tested], return_inverse=True)
    numbers = np.searchsorted(classes, y)
    answers = held_out(estimator, X, y, folds, ask)
    found = _metrics(answers, numbers, document, document_draws(len(documents), n_bootstrap, seed))
    once = np.ones((1, 1), np.int32)
    null = np.empty((len(nulls), len(CLASS_METRICS)))
    for i, split in enumerate(nulls):
        shuffled = held_out(estimator, X, split.y, split.folds, ask)
        null[i] = _metrics(shuffled, np.searchsorted(classes, split.y), np.zeros(len(shuffled.rows), np.int64), once)[0]
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (numbers[tested], answers.answers[:, -1].astype(np.int64)), 1)
    return ClassScore(
        **estimates(CLASS_METRICS, found, null),
        classes=tuple(str(label) for label in classes.tolist()),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        n_train=min(len(fold.train) for fold in folds),
        n_test=len(tested),
        n_groups=len(documents),
        n_bootstrap=n_bootstrap,
        n_shuffles=len(nulls),
    )


def _metrics(found: HeldOut, y: np.ndarray, document: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A row of CLASS_METRICS per row of `weights`; `y` holds class numbers, the answers a decision per class and then the class said."""
    n_classes = found.answers.shape[1] - 1
    truth, said = y[found.rows], found.answers[:, -1].astype(np.int64)
    label = np.arange(n_classes)
    cells = [truth[:, None] == label, said[:, None] == label, (truth[:, None] == label) & (said[:, None] == label)]
    true, called, right = np.split(by_document(weights, document, np.concatenate(cells, axis=1).astype(np.float64)), 3, axis=1)
    aucs = np.stack([_auc(found, truth == c, found.answers[:, c], document, weights) for c in label], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(true == 0, np.nan, 2 * right / (true + called))
        return np.stack([right.sum(1) / true.sum(1), (right / true).mean(1), f1.mean(1), aucs.mean(1)], axis=1)


def _auc(found: HeldOut, truth: np.ndarray, decision: np.ndarray, document: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.lexsort((-decision, found.fold))
    positive = truth[order].astype(np.int64)
    fold_ends = np.r_[np.diff(found.fold) != 0, True]
    sums = ranked_sums(weights, document[order], positive, positive, tie_ends(found.fold, decision[order]), fold_ends)
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 4] / sums[:, 5]
