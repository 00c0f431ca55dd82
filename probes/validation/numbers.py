"""A number to predict.

    R2        = 1 - sum_i (y_i - yhat_i)^2 / sum_i (y_i - ybar)^2         ybar: mean of the scored labels; at most 1, no lower bound
    Spearman  = sum_f n_f rho_f / sum_f n_f                               rho_f: correlation of the ranks within fold f, ties at their middle
    MAE       = mean_i |y_i - yhat_i|                                     in the units of y

Saying the mean of the training labels always gives R2 slightly below 0 and Spearman 0: a constant prediction is defined to have rank
correlation 0. Ranks are compared within folds because the folds' means differ, and differ against the labels they held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from probes.problem import Features
from probes.validation.estimates import Estimate, Score, by_document, document_draws, estimates
from probes.validation.fits import HeldOut, check_folds, check_matrix, held_out, tie_ends
from probes.validation.loops import rank_correlations
from probes.validation.splits import Fold, Groups, Labels, Split, check_labels, group_folds, null_splits
from sae.errors import ConfigError

NUMBER_METRICS = ("r2", "spearman", "mae")


@dataclass(frozen=True)
class NumberScore(Score):
    """The scores of one probe for a number on one matrix."""

    r2: Estimate
    """1 - squared error / squared deviation from the mean; 0 is what the mean of the labels gives."""
    spearman: Estimate
    """Correlation of the ranks of label and prediction within folds; 0 where the prediction is constant."""
    mae: Estimate
    """Mean absolute error, in the units of y."""
    label_sd: float
    """Standard deviation of the scored labels, in the units of y."""
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
    in_units: ClassVar[tuple[str, ...]] = ("mae",)

    def note(self) -> str:
        """What a constant answer gives."""
        return f"Saying the mean always gives R2 0 or slightly less and Spearman 0; the labels' standard deviation is {self.label_sd:.4g}."


def evaluate_regressor(
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
) -> NumberScore:
    """The scores of clones of the regressor `estimator` on `X`; `y` holds numbers, `groups` the document of each row.

    `folds` and `nulls` are made as `group_folds` and `null_splits` make them for numbers unless given. Raises ConfigError for input that
    does not fit together or is not finite and for labels that are all equal, SaeError for a fit that does not converge.
    """
    if y.dtype.kind not in "biuf":
        raise ConfigError(f"y must hold numbers, got {np.unique(y)[:5].tolist()}: use evaluate_classifier for classes")
    y = y.astype(np.float64)
    check_labels(y, groups)
    check_matrix(X, y)
    if y.min() == y.max():
        raise ConfigError(f"y must vary, got {y[0]:g} on all {len(y)} rows (evaluate_regressor)")
    folds = list(folds) if folds is not None else group_folds(y, groups, n_folds=n_folds, seed=seed)
    check_folds(folds, y, groups)
    nulls = nulls if nulls is not None else null_splits(y, groups, folds, n_shuffles=n_shuffles, seed=seed)
    tested = np.concatenate([fold.test for fold in folds])
    documents, document = np.unique(groups[tested], return_inverse=True)
    found = _metrics(held_out(estimator, X, y, folds, _ask), y, document, document_draws(len(documents), n_bootstrap, seed))
    once = np.ones((1, 1), np.int32)
    null = np.empty((len(nulls), len(NUMBER_METRICS)))
    for i, split in enumerate(nulls):
        answers = held_out(estimator, X, split.y, split.folds, _ask)
        null[i] = _metrics(answers, split.y, np.zeros(len(answers.rows), np.int64), once)[0]
    return NumberScore(
        **estimates(NUMBER_METRICS, found, null),
        label_sd=float(y[tested].std()),
        n_train=min(len(fold.train) for fold in folds),
        n_test=len(tested),
        n_groups=len(documents),
        n_bootstrap=n_bootstrap,
        n_shuffles=len(nulls),
    )


def _ask(probe: Any, X: Any) -> np.ndarray:
    return np.asarray(probe.predict(X)).reshape(X.shape[0], -1)[:, 0]


def _metrics(found: HeldOut, y: np.ndarray, document: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A row of NUMBER_METRICS per row of `weights`; NaN where every label drawn is the same."""
    truth, said = y[found.rows], found.answers
    centre = truth.mean()
    error, deviation = truth - said, truth - centre
    moments = np.stack([np.ones(len(truth)), np.abs(error), error**2, deviation, deviation**2], axis=1)
    total, absolute, squared, first, second = by_document(weights, document, moments).T
    orders = np.stack([np.lexsort((value, found.fold)) for value in (truth, said)])
    ends = np.stack([tie_ends(found.fold, value[order]) for value, order in zip((truth, said), orders, strict=True)])
    starts = np.r_[0, np.flatnonzero(np.diff(found.fold)) + 1, len(truth)]
    ranks = rank_correlations(weights, document, orders, ends, starts)
    varied = second - first**2 / total
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(varied > 1e-12 * second, 1 - squared / varied, np.nan)
        return np.stack([r2, ranks[:, 0] / ranks[:, 1], absolute / total], axis=1)
