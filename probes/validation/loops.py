"""The sums behind scores that go by rank, for every draw of documents at once: one pass over the sorted rows per draw.

A draw gives row i the weight w_i: how often its document was drawn.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled


@compiled
def ranked_sums(
    weights: np.ndarray, document: np.ndarray, truth: np.ndarray, predicted: np.ndarray, tie_ends: np.ndarray, fold_ends: np.ndarray
) -> np.ndarray:
    """[draws, 8] for rows sorted by fold, and within a fold from the highest decision to the lowest.

    Columns: weight of true negatives, false positives, false negatives, true positives; pairs of one fold in the right order, ties counting
    one half; all pairs; sum over positives of the precision at their decision; positives. weights [draws, documents]; the others have one
    entry per row: its document, label, prediction, whether it is the last of equal decisions, and whether it is the last of its fold.
    """
    sums = np.zeros((len(weights), 8))
    for draw in range(len(weights)):
        above_positive, above_negative, tied_positive, tied_negative = 0, 0, 0, 0
        for i in range(len(document)):
            w = np.int64(weights[draw, document[i]])
            sums[draw, 2 * truth[i] + predicted[i]] += w
            if truth[i]:
                tied_positive += w
            else:
                tied_negative += w
            if tie_ends[i]:
                sums[draw, 4] += tied_negative * (above_positive + 0.5 * tied_positive)
                above_positive += tied_positive
                above_negative += tied_negative
                if tied_positive:
                    sums[draw, 6] += tied_positive * (above_positive / (above_positive + above_negative))
                tied_positive, tied_negative = 0, 0
            if fold_ends[i]:
                sums[draw, 5] += float(above_positive) * above_negative
                sums[draw, 7] += above_positive
                above_positive, above_negative = 0, 0
    return sums


@compiled
def weighted_ranks(weight: np.ndarray, order: np.ndarray, tie_ends: np.ndarray, ranks: np.ndarray) -> None:
    """ranks[row] = weight below + half the weight of equals, for rows taken in `order`, of which `tie_ends` marks the last of equals."""
    below, tied, start = 0.0, 0.0, 0
    for i in range(len(order)):
        tied += weight[order[i]]
        if tie_ends[i]:
            for j in range(start, i + 1):
                ranks[order[j]] = below + 0.5 * tied
            below, tied, start = below + tied, 0.0, i + 1


@compiled
def rank_correlations(
    weights: np.ndarray, document: np.ndarray, orders: np.ndarray, tie_ends: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """[draws, 2]: sum over folds of weight times Spearman's correlation, and the weight of the folds where the label varies.

    orders, tie_ends [2, rows]: the rows of each fold by label, and by prediction; fold f has rows starts[f]..starts[f + 1]. A fold where
    the prediction is constant counts with the correlation 0.
    """
    n = len(document)
    sums, ranks, weight = np.zeros((len(weights), 2)), np.empty((2, n)), np.empty(n)
    for draw in range(len(weights)):
        for i in range(n):
            weight[i] = weights[draw, document[i]]
        for fold in range(len(starts) - 1):
            rows = slice(starts[fold], starts[fold + 1])
            for side in range(2):
                weighted_ranks(weight, orders[side, rows], tie_ends[side, rows], ranks[side])
            total = 0.0
            for i in range(starts[fold], starts[fold + 1]):
                total += weight[i]
            xx, yy, xy = 0.0, 0.0, 0.0
            for i in range(starts[fold], starts[fold + 1]):
                x, y = ranks[0, i] - total / 2, ranks[1, i] - total / 2
                xx, yy, xy = xx + weight[i] * x * x, yy + weight[i] * y * y, xy + weight[i] * x * y
            if xx > 0:
                sums[draw, 1] += total
                if yy > 0:
                    sums[draw, 0] += total * xy / np.sqrt(xx * yy)
    return sums
