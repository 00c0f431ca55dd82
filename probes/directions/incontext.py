"""In-context vectors: what turns the texts on one side of a few demonstrations into those on the other, at every layer at once.

    D_i = h(positive_i) - h(negative_i),   h: last-token states of all layers, end to end
    V   = p + mean(D),                      p: first principal axis of D, of length 1, with p . mean(D) >= 0
    x'  = ||x|| unit( unit(x) + strength (1 + max(0, -cos(x, v))) unit(v) )          at each layer, v that layer's part of V

Liu, Ye, Xing and Zou, "In-context Vectors", 2023, arXiv 2311.06668, section 3. The axis has no sign of its own, so it is given the mean's;
then V . mean(D) > 0. The axis has length 1 and the mean the units of the activations: where these are large the mean decides V.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from probes.directions.base import dense, unit
from probes.directions.paired import PairReader, principal_axis
from sae.errors import ConfigError


class InContextVector(PairReader):
    """The vector of demonstrations, positive - negative in every pair (their order is not swapped: the mean is half of the method).

    n_layers: layers laid end to end in a row of X, so that d is n_layers times the width of a layer. random_state: matches rows where no
    pairs are given. Attributes beside the shared ones: `vector_` [d], in the units of X; `vectors_` [n_layers, d / n_layers], the same by
    layer. `direction_` is `vector_` of length 1.
    """

    swap = False

    def __init__(self, n_layers=1, random_state=0):
        self.n_layers = n_layers
        self.random_state = random_state

    def fit(self, X: Any, y: Any, pairs: Any = None) -> "InContextVector":
        """Find the vector; X [n, n_layers * width], y and pairs as in `PairReader.fit`. ConfigError for a width that is no multiple."""
        X, encoded = self._labelled(X, y)
        n_layers, d = self.n_layers, X.shape[1]
        if isinstance(n_layers, bool) or not isinstance(n_layers, (int, np.integer)) or n_layers < 1 or d % n_layers:
            raise ConfigError(f"n_layers must be a whole number that divides the {d} columns of X, got {n_layers!r} (InContextVector)")
        matched = self._match(encoded, pairs, np.random.default_rng(self._seed()))
        values = dense(X)
        D = values[matched.positive] - values[matched.negative]
        self.n_pairs_, self.first_share_ = len(D), float((matched.positive < matched.negative).mean())
        self.vector_ = self._axis(D)
        self.vectors_ = self.vector_.reshape(n_layers, -1)
        self._settle(X, encoded, self.vector_)
        return self

    def _axis(self, D: np.ndarray) -> np.ndarray:
        mean, axis = D.mean(axis=0), principal_axis(D)
        return mean + (axis if axis @ mean >= 0 else -axis)


def combine_vectors(vectors: Sequence[Float[np.ndarray, " d"]], strengths: Sequence[float | int]) -> Float[np.ndarray, " d"]:
    """sum_i strength_i v_i: several in-context vectors as one. Raises ConfigError for none, or lengths that differ."""
    if not vectors or len(vectors) != len(strengths):
        raise ConfigError(f"vectors and strengths must be as many, and at least 1, got {len(vectors)} and {len(strengths)}")
    return np.sum([strength * vector for vector, strength in zip(vectors, strengths, strict=True)], axis=0)


def norm_keeping_update(
    x: Float[np.ndarray, "*rows d"], vector: Float[np.ndarray, " d"], *, strength: float | int = 0.1
) -> Float[np.ndarray, "*rows d"]:
    """x' as above: every row turned towards `vector` and as long as before, in the dtype of x.

    strength 0 gives x itself; cos(x', vector) does not fall as strength grows; rows that point away are turned up to twice as hard. A zero
    row, and one that the sum would cancel exactly, stay as they are. Raises ConfigError for a negative strength or a zero vector.
    """
    if not 0 <= strength < np.inf:
        raise ConfigError(f"strength must be at least 0 and finite, got {strength}; turn the vector round instead (norm_keeping_update)")
    v = unit(vector, where="norm_keeping_update")
    if strength == 0:
        return x.copy()
    values = x.astype(np.float64)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    u = np.divide(values, length, out=np.zeros_like(values), where=length > 0)
    turned = u + strength * (1 + np.maximum(0, -(u @ v)))[..., None] * v
    size = np.linalg.norm(turned, axis=-1, keepdims=True)
    moved = np.divide(length * turned, size, out=values.copy(), where=(size > 0) & (length > 0))
    return moved.astype(x.dtype)
