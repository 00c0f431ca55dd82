"""Directions from the differences of contrast pairs, in which what the two texts share has cancelled.

    D_i = h(first_i) - h(second_i)
    PCA         v = first principal axis of D
    k-means     v = c_1 - c_0,  the two centres of D
    sign        +1 if the positive row of a pair has the greater projection more often

Zou et al., "Representation Engineering", 2023, arXiv 2310.01405, section 3.1 (linear artificial tomography). **The order within pairs must
vary**: D_i = +-(3v + noise) has its first axis along v, but with the positive row always first the mean difference is a constant, which
centring removes, and the axis found is a nuisance. Here half of the pairs, drawn at random, are swapped; the expected second moment over
swaps is the uncentred one, so `center=False` is the same reader without the draw. The paper defines the k-means reader; its code lacks it.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import eigh
from sklearn.cluster import KMeans
from sklearn.utils.validation import _check_y, check_consistent_length

from probes.directions.base import DirectionReader, MatchedPairs, dense, match_pairs
from sae.errors import ConfigError


def principal_axis(D: Float[np.ndarray, "n d"], *, center: bool = True) -> Float[np.ndarray, " d"]:
    """First principal axis of the rows, of length 1, its largest entry positive; 0 where rows do not vary. Costs min(n, d)^2 max(n, d).

    Without centring it is the axis through the origin with the greatest mean square projection.
    """
    D = np.asarray(D, dtype=np.float64)
    if center:
        mean = D.mean(axis=0)
        rounding = len(D) * np.finfo(np.float64).eps * np.abs(D).max(axis=0)
        D = D - mean
        D = np.where(np.abs(D).max(axis=0) <= rounding, 0.0, D)
    n, d = D.shape
    largest = np.abs(D).max()
    if largest == 0:
        return np.zeros(d)
    D = D / largest
    gram = D @ D.T if n < d else D.T @ D
    top = eigh(gram, subset_by_index=[len(gram) - 1, len(gram) - 1])[1][:, 0]
    axis = D.T @ top if n < d else top
    axis = axis / np.linalg.norm(axis)
    return axis * np.sign(axis[np.argmax(np.abs(axis))])


def pair_sign(v: Float[np.ndarray, " d"], D: Float[np.ndarray, "n d"]) -> int:
    """+1 if v . D_i > 0 for most differences positive - negative, else -1; a draw goes by the mean, and then to +1."""
    projection = D @ v
    votes = np.sign(projection).sum()
    return -1 if votes < 0 or (votes == 0 and projection.mean() < 0) else 1


class PairReader(DirectionReader):
    """What readers of differences share: which rows are pairs, and in what order.

    Without `pairs`, rows of the two classes are matched at random by `random_state`, as many as the smaller class has. That keeps what the
    texts share in the differences, so true pairs read better.
    """

    swap: bool

    @abstractmethod
    def _axis(self, D: np.ndarray) -> np.ndarray:
        """The direction of the differences D, in order as used, up to sign and length."""

    def fit(self, X: Any, y: Any, pairs: Any = None) -> "PairReader":
        """Find the direction. X [n, d]; y: two classes; pairs [n]: pair of each row, one row of each class, the earlier row being the first.

        Attributes beside the shared ones: `n_pairs_`, `first_share_`, the share of pairs whose positive row came first as used.
        Errors as `DirectionReader.fit`; ConfigError for pairs that are not one row of each class, or all in the same order where
        that hides the direction.
        """
        X, encoded = self._labelled(X, y)
        rng = np.random.default_rng(self._seed())
        matched = self._match(encoded, pairs, rng)
        values = dense(X)
        D = values[matched.positive] - values[matched.negative]
        order = self._order(matched, rng)
        self.n_pairs_, self.first_share_ = len(D), float((order > 0).mean())
        vector = self._axis(order[:, None] * D)
        self._settle(X, encoded, vector * pair_sign(vector, D))
        return self

    def _vector(self, X: Any, y: np.ndarray) -> np.ndarray:
        raise ConfigError(f"{type(self).__name__} reads pairs; call fit")

    def _match(self, y: np.ndarray, pairs: Any, rng: np.random.Generator) -> MatchedPairs:
        if pairs is None:
            positive, negative = (rng.permutation(np.flatnonzero(y == label)) for label in (1, 0))
            n = min(len(positive), len(negative))
            return MatchedPairs(positive[:n], negative[:n])
        pairs = np.asarray(_check_y(pairs))
        check_consistent_length(y, pairs)
        return match_pairs(y, np.unique(pairs, return_inverse=True)[1])

    def _order(self, matched: MatchedPairs, rng: np.random.Generator) -> Int[np.ndarray, " n_pairs"]:
        """+1 where the positive row counts as the first."""
        if not self.swap:
            return np.where(matched.positive < matched.negative, 1, -1)
        order = np.ones(len(matched.positive), dtype=np.int64)
        order[rng.permutation(len(order))[: len(order) // 2]] = -1
        return order

    def _check_order(self, remedy: str) -> None:
        if self.first_share_ in (0.0, 1.0) and self.n_pairs_ > 1:
            found = f"all {self.n_pairs_} pairs have their {'positive' if self.first_share_ else 'negative'} row first"
            raise ConfigError(
                f"the order within pairs must vary, {found}, so the direction cannot be seen; {remedy} ({type(self).__name__})"
            )


class PCADirection(PairReader):
    """The first principal axis of pair differences, turned to the labels (RepE's PCA reading vector).

    swap: swap half of the pairs, drawn by `random_state`; without it the order of the rows in X counts. center: subtract the mean
    difference before the axis is found. Without either, `center` must be off or the order mixed: ConfigError otherwise.
    """

    def __init__(self, swap=True, center=True, random_state=0):
        self.swap = swap
        self.center = center
        self.random_state = random_state

    def _axis(self, D: np.ndarray) -> np.ndarray:
        if self.center:
            self._check_order("set swap=True, or center=False")
            if len(D) < 2:
                raise ConfigError("X must hold at least 2 pairs for center=True, n_samples = 1 pair given; set center=False (PCADirection)")
        return principal_axis(D, center=self.center)


class KMeansDirection(PairReader):
    """The difference of the two k-means centres of pair differences, turned to the labels.

    swap: as in `PCADirection`; in one order the differences are one cloud, and its two halves are a nuisance. n_init: restarts.
    """

    def __init__(self, swap=True, n_init=10, random_state=0):
        self.swap = swap
        self.n_init = n_init
        self.random_state = random_state

    def _axis(self, D: np.ndarray) -> np.ndarray:
        self._check_order("set swap=True")
        if isinstance(self.n_init, bool) or not isinstance(self.n_init, (int, np.integer)) or self.n_init < 1:
            raise ConfigError(f"n_init must be an integer of at least 1, got {self.n_init!r} (KMeansDirection)")
        if len(np.unique(D, axis=0)) < 2:
            if len(D) > 1 or not D.any():
                raise ConfigError("X must hold pairs whose differences are not all 0, got one value for all (KMeansDirection)")
            return D[0]
        centres = KMeans(2, n_init=self.n_init, random_state=self._seed()).fit(D).cluster_centers_
        return centres[1] - centres[0]
