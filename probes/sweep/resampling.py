"""The sums behind a probe's scores for all draws of documents at once: the rows are gone through once, each for every draw together.

A draw gives row i the weight w_i: how often its document was drawn. What a row does depends on its label and on whether its decision equals
the next one's, not on the draw, so the loop over draws has no branch and compiles to vector instructions.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.validation import METRICS
from sae.dictionaries.kernels.cpu.loops import compiled

DRAWS_PER_BLOCK = 256
"""Draws whose running sums are in the first-level cache together."""


@compiled
def _add(total: np.ndarray, weight: np.ndarray) -> None:
    for b in range(len(total)):
        total[b] += weight[b]


@compiled
def _positive(above: np.ndarray, weight: np.ndarray, precision: np.ndarray) -> None:
    """A positive row whose decision no other has. above [2, draws]: weight of the rows above, by label."""
    for b in range(len(weight)):
        above[1, b] += weight[b]
        called = above[0, b] + above[1, b]
        precision[b] += weight[b] * above[1, b] / (called if called > 0 else 1.0)


@compiled
def _negative(above: np.ndarray, weight: np.ndarray, wins: np.ndarray) -> None:
    """A negative row whose decision no other has: it loses to all positive ones above."""
    for b in range(len(weight)):
        wins[b] += weight[b] * above[1, b]
        above[0, b] += weight[b]


@compiled
def _close_ties(above: np.ndarray, tied: np.ndarray, wins: np.ndarray, precision: np.ndarray) -> None:
    """Rows of equal decisions are over: the negative ones lose to all positive ones above and draw with those tied. [2, draws]: by label."""
    for b in range(len(wins)):
        wins[b] += tied[0, b] * (above[1, b] + 0.5 * tied[1, b])
        above[0, b] += tied[0, b]
        above[1, b] += tied[1, b]
        called = above[0, b] + above[1, b]
        precision[b] += tied[1, b] * above[1, b] / (called if called > 0 else 1.0)
        tied[0, b] = 0.0
        tied[1, b] = 0.0


@compiled
def _close_fold(above: np.ndarray, pairs: np.ndarray) -> None:
    for b in range(len(pairs)):
        pairs[b] += above[0, b] * above[1, b]
        above[0, b] = 0.0
        above[1, b] = 0.0


@compiled
def _ranked_sums(
    weights: np.ndarray, document: np.ndarray, cell: np.ndarray, tie_ends: np.ndarray, fold_ends: np.ndarray, sums: np.ndarray
) -> None:
    """weights [documents, draws]; sums [7, draws]: weight of rows by 2 * label + prediction, then wins, pairs, precisions."""
    n_draws = weights.shape[1]
    for start in range(0, n_draws, DRAWS_PER_BLOCK):
        stop = min(start + DRAWS_PER_BLOCK, n_draws)
        above, tied, n_tied = np.zeros((2, stop - start)), np.zeros((2, stop - start)), 0
        for i in range(len(document)):
            weight = weights[document[i], start:stop]
            _add(sums[cell[i], start:stop], weight)
            if n_tied == 0 and tie_ends[i]:
                if cell[i] >= 2:
                    _positive(above, weight, sums[6, start:stop])
                else:
                    _negative(above, weight, sums[4, start:stop])
            else:
                _add(tied[cell[i] // 2], weight)
                n_tied += 1
                if tie_ends[i]:
                    _close_ties(above, tied, sums[4, start:stop], sums[6, start:stop])
                    n_tied = 0
            if fold_ends[i]:
                _close_fold(above, sums[5, start:stop])


def resampled_metrics(
    fold: Int[np.ndarray, " n"],
    decision: Float[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    document: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "documents draws"],
) -> Float[np.ndarray, "draws metrics"]:
    """A row of `METRICS` per draw, as `probes.validation` defines them; 1 is said where the decision is positive. NaN where undefined.

    fold: the fold of every row, ascending. weights: how often every draw has every document.
    """
    order = np.lexsort((-decision, fold))
    ranked, said = fold[order], (decision > 0)[order]
    fold_ends = np.r_[np.diff(ranked) != 0, True]
    tie_ends = fold_ends | np.r_[np.diff(decision[order]) != 0, True]
    sums = np.zeros((7, weights.shape[1]))
    cell = 2 * truth[order].astype(np.int64) + said
    _ranked_sums(weights, document[order], cell, tie_ends, fold_ends, sums)
    tn, fp, fn, tp, wins, pairs, precisions = sums
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
            "average_precision": precisions / (tp + fn),
        }
    return np.stack([columns[name] for name in METRICS], axis=1)
