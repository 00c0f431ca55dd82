"""k-sparse probes: choose k coordinates by a score, then fit a logistic rule on those alone.

    min_{S, v, c}  loss(y, X_S v + c),   |S| = k           split in two:   S = top k of |score|,   then v, c

Gurnee et al., "Finding Neurons in a Haystack", 2023, arXiv 2305.01610, section 3. Departures: the chosen columns are z-scored (theirs are
not by default), and the logistic fit is run to convergence.
"""

import numbers

import numpy as np
from scipy import sparse

from probes.base import Choice, LinearProbe
from probes.selection import RANKINGS, Matrix, random_scores, rank, top_k
from sae.errors import ConfigError


class KSparseProbe(LinearProbe):
    """A binary classifier on the k columns that a ranking puts first. The ranking is part of `fit`: cross-validation repeats it per fold.

    k: number of columns; a matrix with fewer uses them all. ranking: a name of `probes.selection.RANKINGS`, or "random", the control that
    draws k columns without looking and needs an integer `random_state`. C: inverse strength of the L2 penalty on z-scored columns.
    class_weight: as in scikit-learn; it changes the fit, not the ranking.

        probe = KSparseProbe(k=4).fit(X_train, y_train)
        probe.support_, probe.coef_[0, probe.support_], probe.decision_function(X_test)
    """

    def __init__(self, k=16, ranking="mean_difference", C=1.0, class_weight="balanced", random_state=None):
        # Stored as given: scikit-learn judges parameters in fit.
        self.k = k
        self.ranking = ranking
        self.C = C
        self.class_weight = class_weight
        self.random_state = random_state

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not isinstance(self.k, numbers.Integral) or isinstance(self.k, bool) or self.k < 1:
            raise ConfigError(f"k must be a whole number of at least 1, got {self.k!r} (KSparseProbe)")
        if self.ranking not in (*RANKINGS, "random"):
            raise ConfigError(f"ranking must be one of {', '.join(RANKINGS)}, random, got {self.ranking!r} (KSparseProbe)")
        if self.ranking == "random" and not isinstance(self.random_state, numbers.Integral):
            raise ConfigError(f"random_state must be an integer when ranking='random', got {self.random_state!r} (KSparseProbe)")

    def _choose(self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
        d = X.shape[1]
        scores = (
            random_scores(d, seed=int(self.random_state or 0))
            if self.ranking == "random"
            else rank(X, y, sample_weight, ranking=self.ranking)
        )
        return Choice(top_k(scores, min(int(self.k), d)), scores)

    def _columns(self, X: Matrix, support: np.ndarray) -> np.ndarray:
        chosen = X[:, support]
        return chosen.toarray() if sparse.issparse(chosen) else chosen
