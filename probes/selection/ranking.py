"""The rankings by name, a filter before a slow one, and the k best of a score."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from probes.selection.columns import Labels, Matrix, Scores, Weights
from probes.selection.differences import (
    correlation,
    f_statistic,
    mean_difference,
    pooled_t,
    regression_f,
    standardized_difference,
    welch_t,
)
from probes.selection.fitted import adaptive_thresholding, l1_logistic, l1_path, linear_svm
from probes.selection.information import mutual_information, mutual_information_number
from sae.errors import ConfigError

Ranking = Literal[
    "mean_difference",
    "standardized_difference",
    "pooled_t",
    "f_statistic",
    "welch_t",
    "mutual_information",
    "l1_logistic",
    "l1_path",
    "adaptive_thresholding",
    "linear_svm",
]
NumberRanking = Literal["correlation", "regression_f", "mutual_information"]
RANKINGS: dict[str, Callable[..., Scores]] = {
    "mean_difference": mean_difference,
    "standardized_difference": standardized_difference,
    "pooled_t": pooled_t,
    "f_statistic": f_statistic,
    "welch_t": welch_t,
    "mutual_information": mutual_information,
    "l1_logistic": l1_logistic,
    "l1_path": l1_path,
    "adaptive_thresholding": adaptive_thresholding,
    "linear_svm": linear_svm,
}
"""Rankings for two classes; `f_statistic` and `mutual_information` also take more."""
NUMBER_RANKINGS: dict[str, Callable[..., Scores]] = {
    "correlation": correlation,
    "regression_f": regression_f,
    "mutual_information": mutual_information_number,
}
"""Rankings for a number to predict."""
SEEDED = ("mutual_information",)
"""Rankings that draw; the others have nothing random in them."""
MANY_CLASSES = ("f_statistic", "mutual_information")
"""Rankings that take any number of classes."""
assert tuple(RANKINGS) == get_args(Ranking)
assert tuple(NUMBER_RANKINGS) == get_args(NumberRanking)


def rank(
    X: Matrix,
    y: Labels,
    sample_weight: Weights | None = None,
    *,
    ranking: str = "mean_difference",
    seed: int = 0,
    filter_size: int | None = None,
) -> Scores:
    """The scores of every column under the named ranking.

    filter_size: rank only that many columns, those with the largest |mean difference| (with more than two classes: F); the others score 0
    and come after all of these. It makes the slow rankings affordable for tens of thousands of columns, and keeps the mean difference's
    blind spots. seed: for the rankings in `SEEDED`.

    Raises ConfigError for an unknown name, a filter below 1, or a y that is not 0 and 1, both.
    """
    score = _named(ranking, RANKINGS, "rank")
    first = mean_difference if np.isin(y, (0, 1)).all() else f_statistic
    return _filtered(score, first, X, y, sample_weight, filter_size, {"seed": seed} if ranking in SEEDED else {})


def rank_number(
    X: Matrix,
    y: Float[np.ndarray, " n"],
    sample_weight: Weights | None = None,
    *,
    ranking: str = "correlation",
    seed: int = 0,
    filter_size: int | None = None,
) -> Scores:
    """As `rank` for a number y, under a name of `NUMBER_RANKINGS`; the filter is by correlation."""
    score = _named(ranking, NUMBER_RANKINGS, "rank_number")
    return _filtered(score, correlation, X, y, sample_weight, filter_size, {"seed": seed} if ranking in SEEDED else {})


def _named(ranking: str, known: dict[str, Callable[..., Scores]], where: str) -> Callable[..., Scores]:
    if ranking not in known:
        raise ConfigError(f"ranking must be one of {', '.join(known)}, got {ranking!r} ({where})")
    return known[ranking]


def _filtered(
    score: Callable[..., Scores],
    first: Callable[..., Scores],
    X: Matrix,
    y: np.ndarray,
    sample_weight: np.ndarray | None,
    filter_size: int | None,
    options: dict[str, int],
) -> np.ndarray:
    if filter_size is None or filter_size >= X.shape[1]:
        return score(X, y, sample_weight, **options)
    if filter_size < 1:
        raise ConfigError(f"filter_size must be at least 1, or None for no filter, got {filter_size} (rank)")
    kept = np.sort(top_k(first(X, y, sample_weight), filter_size))
    found = score(X[:, kept], y, sample_weight, **options)
    scores = np.zeros(X.shape[1])
    scores[kept] = np.where(found == 0, np.finfo(np.float64).tiny, found)  # before every column that was filtered out
    return scores


def random_scores(d: int, *, seed: int) -> Scores:
    """A control, not a method: the numbers 1..d in a seeded random order, so that the top k are k coordinates drawn without looking."""
    return np.random.default_rng(seed).permutation(d) + 1.0


def top_k(scores: Scores, k: int) -> Int[np.ndarray, " k"]:
    """The k columns with the largest |score|, best first; of equal scores the lowest index. ConfigError for k outside 1..d, for NaN."""
    if not 1 <= k <= len(scores):
        raise ConfigError(f"k must be in 1..d={len(scores)}, got {k} (top_k)")
    if np.isnan(scores).any():
        raise ConfigError(f"scores must not hold NaN, got {int(np.isnan(scores).sum())} of {len(scores)} (top_k)")
    return np.lexsort((np.arange(len(scores)), -np.abs(scores)))[:k]
