"""What comparisons of directions share: AUC with an interval over documents, shuffled labels that keep pairs, resampled documents, and the
cosine that chance gives.

    AUC         P(decision of a positive row > decision of a negative row) + P(equal) / 2
    E |cos|     of two independent uniform directions of R^d:  Gamma(d/2) / (sqrt(pi) Gamma((d + 1)/2)),  near sqrt(2 / (pi d))
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln

from probes.directions.base import LabelledRows
from probes.validation import Fold, group_holdout, shuffle_labels
from probes.validation.estimates import INTERVAL, document_draws
from probes.validation.loops import ranked_sums
from sae.errors import ConfigError

TRIES = 100


class Interval(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    """On all rows."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def expected_cosine(d: int) -> float:
    """Mean |cosine| of two independent uniformly random directions in d dimensions: 1 for d = 1, near sqrt(2 / (pi d)) for many."""
    return float(np.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / np.sqrt(np.pi))


def auc(decision: Float[np.ndarray, " n"], y: Int[np.ndarray, " n"]) -> float:
    """The AUC of a decision; NaN where a class is missing."""
    return float(_aucs(decision, y, np.zeros(len(y), np.int64), np.ones((1, 1), np.int32))[0])


def auc_interval(
    decision: Float[np.ndarray, " n"], y: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], *, n_bootstrap: int, seed: int
) -> Interval:
    """AUC with the percentile interval over documents drawn with replacement; draws that lose a class are left out."""
    documents, document = np.unique(groups, return_inverse=True)
    values = _aucs(decision, y, document, document_draws(len(documents), n_bootstrap, seed))
    low, high = np.nanquantile(values[1:], INTERVAL) if not np.isnan(values[1:]).all() else (values[0], values[0])
    return Interval(float(values[0]), float(low), float(high))


def _aucs(decision: np.ndarray, y: np.ndarray, document: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC under each row of `weights` [draws, documents]; NaN where a class has no weight."""
    order = np.argsort(-decision, kind="stable")
    tie_ends = np.r_[np.diff(decision[order]) != 0, True]
    last = np.arange(len(order)) == len(order) - 1
    labels = y[order].astype(np.int64)
    sums = ranked_sums(weights, document[order], labels, np.zeros_like(labels), tie_ends, last)
    return np.divide(sums[:, 4], sums[:, 5], out=np.full(len(sums), np.nan), where=sums[:, 5] > 0)


def shuffled(rows: LabelledRows, *, seed: int) -> LabelledRows:
    """The rows with labels that mean nothing. Pairs stay pairs: a document's pairs are all turned round, or none is.

    Without pairs, as `probes.validation.shuffle_labels`.
    """
    if rows.pairs is None:
        return replace(rows, y=shuffle_labels(rows.y, rows.groups, seed=seed))
    documents, inverse = np.unique(rows.groups, return_inverse=True)
    turned = np.random.default_rng(seed).integers(0, 2, len(documents))[inverse]
    return replace(rows, y=rows.y ^ turned)


def resampled(rows: LabelledRows, rng: np.random.Generator) -> LabelledRows:
    """As many documents drawn with replacement; a document drawn twice has its rows twice, and its pairs under new numbers.

    Draws without both classes are drawn again. Raises ConfigError when 100 draws in a row lack one.
    """
    documents, inverse = np.unique(rows.groups, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    for _ in range(TRIES):
        drawn = rng.integers(0, len(documents), len(documents))
        chosen = [members[i] for i in drawn]
        taken = np.concatenate(chosen)
        if len(np.unique(rows.y[taken])) == 2:
            copies = np.repeat(np.arange(len(drawn)), [len(part) for part in chosen])
            pairs = None
            if rows.pairs is not None:
                numbers = np.unique(rows.pairs, return_inverse=True)[1]
                pairs = numbers[taken] + len(rows) * copies
            return replace(rows, X=rows.X[taken], y=rows.y[taken], groups=copies, pairs=pairs)
    raise ConfigError(f"groups must hold both classes in most draws, {TRIES} draws of documents of {rows.name!r} lacked one; add documents")


def holdout(rows: LabelledRows, *, test_share: float, seed: int) -> Fold:
    """One split by document of a data set; the error says which set it was. Raises ConfigError if a side lacks a class."""
    if len(np.unique(rows.y)) < 2:
        raise ConfigError(
            f"data set {rows.name!r} cannot be split: it must have both classes, got only class {rows.y[:1].tolist()}; add rows"
        )
    try:
        return group_holdout(rows.y, rows.groups, test_share=test_share, seed=seed)
    except ConfigError as error:
        raise ConfigError(f"data set {rows.name!r} cannot be split: {error}; change seed or test_share, or add documents") from error


def summary(values: Any) -> tuple[float | None, float | None]:
    """Mean and standard deviation of null draws; None where there are too few."""
    values = np.asarray(values, dtype=np.float64)
    return (float(values.mean()) if len(values) else None, float(values.std(ddof=1)) if len(values) > 1 else None)
