"""Scores from a fit of all columns together, which see what one column adds to the others. Columns are z-scored, classes are balanced.

    L1 logistic              |v_j| of the L1-penalised logistic fit at C = .1
    L1 path                  the penalty at which column j enters as the penalty falls
    adaptive thresholding    backward elimination: for k from large to small, S = top k of the scores, elastic net on S, scores = |v_S|
    linear SVM               |v_j| of the hinge loss with a ridge

Gurnee et al. 2023, arXiv 2305.01610, section 3 and appendix. Departures: columns are z-scored, fits are run to the optimum, and adaptive
thresholding, whose support for each k of its grid is theirs, also orders the columns in between and those eliminated, so that one ranking
serves every k.
"""

import numpy as np
from scipy import sparse
from sklearn.svm import SVC

from probes.selection.columns import Labels, Matrix, Scores, Weights, class_weights, z_scores
from probes.selection.differences import check_two_classes, standardized_difference
from probes.selection.penalised import Fitted, Rows, elastic_net_logistic, origin

L1_C = 0.1
SVM_C = 0.01
PATH_STEPS, PATH_END, PATH_COLUMNS = 60, 0.01, 256
"""Penalties of a path, the last as a share of the first, and the number of columns after which it stops."""
LARGEST_ROUND = 256
"""Columns that adaptive thresholding begins with, by the standardized difference."""


def _rows(X: Matrix, y: Labels, sample_weight: Weights | None) -> Rows:
    weight = check_two_classes(y, sample_weight)
    y = np.asarray(y).astype(np.int64)
    z = z_scores(X, weight).z
    return Rows(z.tocsc() if sparse.issparse(z) else z, y.astype(np.float64), class_weights(y, weight))


def l1_logistic(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """v of the L1-penalised logistic fit at C = .1: sum_i w_i loss_i + |v|_1 / C. Columns that share what they say share one coefficient."""
    rows = _rows(X, y, sample_weight)
    start = origin(rows)
    largest = np.abs(start.gradient).max(initial=0.0)
    penalties = np.geomspace(largest, 1 / L1_C, 8)[1:] if largest > 1 / L1_C else []
    for l1 in penalties:
        start = elastic_net_logistic(rows, l1=float(l1), l2=0.0, start=start)
    return start.coef


def l1_path(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """The penalty at which each column enters, as a share of the first one's: 1 for the column that enters first.

    Entries between two fits are interpolated on the line of the column's own gradient. A column that has not entered at the end of the
    path (1 % of the first penalty, or 256 columns) scores its gradient there, which is below every entry.
    """
    rows = _rows(X, y, sample_weight)
    before = origin(rows)
    largest = np.abs(before.gradient).max(initial=0.0)
    if largest == 0:
        return np.zeros(X.shape[1])
    hessian = _curvatures(rows)
    entry = np.zeros(X.shape[1])
    last = largest
    for l1 in largest * np.geomspace(1, PATH_END, PATH_STEPS)[1:]:
        after = elastic_net_logistic(rows, l1=l1, l2=0.0, start=before)
        new = (after.coef != 0) & (entry == 0)
        entry[new] = _crossing(before, after, hessian, float(last), float(l1))[new]
        before, last = after, l1
        if (entry > 0).sum() >= min(PATH_COLUMNS, X.shape[1]):
            break
    waiting = entry == 0
    entry[waiting] = np.minimum(np.abs(before.gradient[waiting]), last)
    return entry / largest


def _curvatures(rows: Rows) -> np.ndarray:
    """sum_i w_i (z_ij - mean_j)^2 / 4: the curvature of the loss along each column at balanced probabilities, the intercept left free."""
    squares = rows.z.multiply(rows.z) if sparse.issparse(rows.z) else rows.z**2
    return (squares.T @ rows.weight - (rows.z.T @ rows.weight) ** 2 / rows.weight.sum()) / 4


def _crossing(before: Fitted, after: Fitted, hessian: np.ndarray, high: float, low: float) -> np.ndarray:
    """The penalty between `high` and `low` at which the column's gradient without itself reaches it, on a straight line."""
    short = np.maximum(high - np.abs(before.gradient), 0.0)  # below the penalty before
    over = hessian * np.abs(after.coef)  # above the penalty after
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(short + over > 0, short / (short + over), 0.0)
    return high - share * (high - low)


def thresholding_grid(d: int) -> list[int]:
    """The numbers of columns that adaptive thresholding goes through, downwards: 256, 128, ..., 16, 12, 10, 8, 7, ..., 1, at most d."""
    grid = [256, 128, 64, 32, 16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1]
    return sorted({min(d, LARGEST_ROUND), *(k for k in grid if k <= d)}, reverse=True)


def adaptive_thresholding(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """d for the column that survives every elimination, down to 1 for the last; columns that never took part are ordered by their
    standardized difference. The elastic net for k has C = k / 20 and l1_ratio = exp(-k / 20), kept in .1 .. .9.
    """
    rows = _rows(X, y, sample_weight)
    d = X.shape[1]
    order = np.lexsort((np.arange(d), -np.abs(standardized_difference(X, y, sample_weight))))
    fit = origin(rows)
    for k in thresholding_grid(d):
        alive = np.sort(order[:k])
        within = Rows(rows.z[:, alive], rows.y, rows.weight)
        C, ratio = k / 20, float(np.clip(np.exp(-k / 20), 0.1, 0.9))
        start = Fitted(fit.coef[alive], fit.intercept, fit.gradient[alive])
        found = elastic_net_logistic(within, l1=ratio / C, l2=(1 - ratio) / C, start=start)
        fit = Fitted(np.zeros(d), found.intercept, np.zeros(d))
        fit.coef[alive], fit.gradient[alive] = found.coef, found.gradient
        order[:k] = order[:k][np.argsort(-np.abs(fit.coef[order[:k]]), kind="stable")]
    scores = np.empty(d)
    scores[order] = np.arange(d, 0, -1)
    return scores


def linear_svm(X: Matrix, y: Labels, sample_weight: Weights | None = None) -> Scores:
    """v of min sum_i w_i max(0, 1 - s_i (v . z_i + c)) + |v|^2 / (2 C) at C = .01, with a free intercept, by SMO (libsvm).

    Its time grows with the square of the rows: with tens of thousands of them, filter the columns or take another ranking.
    """
    rows = _rows(X, y, sample_weight)
    z = rows.z.tocsr() if sparse.issparse(rows.z) else rows.z
    model = SVC(kernel="linear", C=SVM_C, tol=1e-5, cache_size=500).fit(z, rows.y.astype(np.int64), sample_weight=rows.weight)
    coef = model.coef_
    return np.asarray(coef.toarray() if sparse.issparse(coef) else coef, dtype=np.float64)[0]
