"""k-sparse probes: choose k coordinates by a score, then fit a linear rule on those alone.

    min_{S, v, c}  loss(y, X_S v + c),   |S| = k           split in two:   S = top k of |score|,   then v, c

Gurnee et al., "Finding Neurons in a Haystack", 2023, arXiv 2305.01610, section 3. Departures: the chosen columns are z-scored (theirs are
not by default), and the fit is run to convergence. `probes.optimal` does not split the problem.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone

from probes.base import Choice, LinearProbe, LinearRegressor, check_count
from probes.selection import NUMBER_RANKINGS, RANKINGS, Matrix, random_scores, rank, rank_number, top_k
from sae.errors import ConfigError


class KSparseProbe(LinearProbe):
    """A binary classifier on the k columns that a ranking puts first. The ranking is part of `fit`: cross-validation repeats it per fold.

    k: number of columns; a matrix with fewer uses them all. ranking: a name of `probes.selection.RANKINGS`, or "random", the control that
    draws k columns without looking and needs an integer `random_state`, which is also the seed of "mutual_information" (None is 0).
    C: inverse strength of the L2 penalty on z-scored columns. class_weight: as in scikit-learn; it changes the fit, not the ranking.
    filter_size: rank only the columns with the largest |mean difference|, None for all. For more than two classes put it into
    scikit-learn's `OneVsRestClassifier`: each class then has columns of its own.

        probe = KSparseProbe(k=4).fit(X_train, y_train)
        probe.support_, probe.coef_[0, probe.support_], probe.decision_function(X_test)
    """

    def __init__(self, k=16, ranking="mean_difference", C=1.0, class_weight="balanced", random_state=None, filter_size=None):
        # Stored as given: scikit-learn judges parameters in fit.
        self.k = k
        self.ranking = ranking
        self.C = C
        self.class_weight = class_weight
        self.random_state = random_state
        self.filter_size = filter_size

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_ranking(self, tuple(RANKINGS))

    def _choose(self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
        return _choose(self, rank, X, y, sample_weight)


class KSparseRegressor(LinearRegressor):
    """A linear predictor of a number from the k columns that a ranking puts first.

    k, random_state, filter_size: as in `KSparseProbe`; ranking: a name of `probes.selection.NUMBER_RANKINGS`, or "random". alpha, l1_ratio:
    the elastic net on z-scored columns and target, alpha (l1_ratio |v|_1 + (1 - l1_ratio) |v|^2 / 2); l1_ratio = 0 is ridge regression.
    """

    def __init__(self, k=16, ranking="correlation", alpha=1e-3, l1_ratio=0.0, random_state=None, filter_size=None):
        self.k = k
        self.ranking = ranking
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.random_state = random_state
        self.filter_size = filter_size

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_ranking(self, tuple(NUMBER_RANKINGS))

    def _choose(self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
        return _choose(self, rank_number, X, y, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = self.ranking == "random"
        return tags


def fit_path(probe: KSparseProbe, X: Any, y: Any, ks: Sequence[int], sample_weight: Any = None) -> dict[int, KSparseProbe]:
    """A fitted copy of `probe` for every k, from one ranking: supports are nested, and each fit starts where the smaller one ended.

    They are the probes that fitting each k by itself gives. Raises what `fit` raises, and ConfigError for no k.
    """
    if not len(ks):
        raise ConfigError("ks must hold at least one number of columns, got none (fit_path)")
    widest: KSparseProbe = clone(probe).set_params(k=max(ks))
    choice = widest._choose(*widest._checked(X, y, sample_weight).for_choice())
    fitted: dict[int, KSparseProbe] = {}
    start = None
    for k in sorted(set(ks)):
        fitted[k] = clone(probe).set_params(k=k)
        given = fitted[k]._checked(X, y, sample_weight)
        start = fitted[k]._fit_columns(given, Choice(choice.support[:k], choice.scores), start)
    return fitted


def _check_ranking(probe: Any, known: tuple[str, ...]) -> None:
    name = type(probe).__name__
    check_count("k", probe.k, name)
    if probe.filter_size is not None:
        check_count("filter_size", probe.filter_size, name)
    if probe.ranking not in (*known, "random"):
        raise ConfigError(f"ranking must be one of {', '.join(known)}, random, got {probe.ranking!r} ({name})")
    if probe.ranking == "random" and not isinstance(probe.random_state, numbers.Integral):
        raise ConfigError(f"random_state must be an integer when ranking='random', got {probe.random_state!r} ({name})")
    if not (probe.random_state is None or isinstance(probe.random_state, numbers.Integral)):
        raise ConfigError(f"random_state must be an integer or None, got {probe.random_state!r} ({name})")


def _choose(probe: Any, ranked_by: Callable[..., np.ndarray], X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
    d, seed = X.shape[1], int(probe.random_state or 0)
    if probe.ranking == "random":
        scores = random_scores(d, seed=seed)
    else:
        scores = ranked_by(X, y, sample_weight, ranking=probe.ranking, seed=seed, filter_size=probe.filter_size)
    return Choice(top_k(scores, min(int(probe.k), d)), scores)
