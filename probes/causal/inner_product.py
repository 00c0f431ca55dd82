"""The causal inner product: the one in which concepts that vary freely of one another are orthogonal.

    <a, b>_C = a Cov(gamma)^{-1} b^T,     Cov over the rows gamma of the unembedding, each token counted once
    S = Cov^{1/2} (symmetric),    g = (gamma - mean) S^{-1},    l = lambda S,      so that   lambda . gamma = l . g,   cov(g) = I

Park, Choe, Veitch, "The Linear Representation Hypothesis and the Geometry of Large Language Models", ICML 2024 (arXiv 2311.03658),
sections 3 and 4. A direction of the unembedding and the direction of contexts that raises its concept alone are the same vector in these
coordinates: lambda_W = gamma_W Cov^{-1} (Riesz). It belongs to the last readout: a direction of another layer has no such inner product.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from sae.errors import ConfigError

SINGULAR = 1e-10
"""Eigenvalues of the covariance below this share of the largest are zeros up to rounding."""
BLOCK = 4096


class CausalInnerProduct(TransformerMixin, BaseEstimator):
    """Whitening by the covariance of an unembedding, and the inner product that it makes.

    `ridge` None takes the covariance as it is, and `fit` raises ConfigError where it has no inverse; a number adds that share of its mean
    eigenvalue to the diagonal: Cov + ridge tr(Cov)/d I.

    Attributes after `fit`: `location_` [d], the mean row; `covariance_`, `sqrt_` S, `inverse_sqrt_` and `precision_` Cov^{-1}, all [d, d]
    float64; `eigenvalues_` [d], ascending; `condition_number_`; `n_features_in_`.

    >>> causal = CausalInnerProduct().fit(unembedding.rows)
    >>> g = causal.transform(unembedding.rows)
    >>> causal.cosine(differences, other_differences)
    """

    def __init__(self, *, ridge: Any = None) -> None:
        self.ridge = ridge

    def fit(self, X: Any, y: Any = None) -> "CausalInnerProduct":
        """Whiten by the rows of X [n_tokens, d], in float64 whatever X is in.

        Raises ConfigError for a covariance without an inverse, ValueError (as scikit-learn does) for an X that cannot be used.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        if self.ridge is not None and not (isinstance(self.ridge, (int, float)) and 0 <= self.ridge < np.inf):
            raise ConfigError(f"ridge must be None or a number of at least 0, got {self.ridge!r} (CausalInnerProduct)")
        self.location_ = X.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((X.shape[1], X.shape[1]))
        for rows in _blocks(X):
            centred = rows - self.location_
            covariance += centred.T @ centred
        covariance /= len(X)
        if self.ridge:
            covariance[np.diag_indices_from(covariance)] += self.ridge * np.trace(covariance) / len(covariance)
        eigenvalues, vectors = np.linalg.eigh(covariance)
        _require_invertible(eigenvalues, len(X), self.ridge)
        self.covariance_, self.eigenvalues_ = covariance, eigenvalues
        self.sqrt_ = _symmetric(vectors, np.sqrt(eigenvalues))
        self.inverse_sqrt_ = _symmetric(vectors, 1 / np.sqrt(eigenvalues))
        self.precision_ = _symmetric(vectors, 1 / eigenvalues)
        self.condition_number_ = float(eigenvalues[-1] / eigenvalues[0])
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n d"]:
        """g = (gamma - mean) S^{-1} of rows of the unembedding. Differences of rows have no mean to subtract: see `whiten`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        out = np.empty(X.shape)
        for rows, into in zip(_blocks(X), _blocks(out), strict=True):
            into[:] = (rows - self.location_) @ self.inverse_sqrt_
        return out

    def inverse_transform(self, X: Any) -> Float[np.ndarray, "n d"]:
        """gamma = g S + mean."""
        return self._wide(X) @ self.sqrt_ + self.location_

    def whiten(self, directions: Any) -> Float[np.ndarray, "n d"]:
        """directions S^{-1}: differences and directions of the unembedding in the common coordinates."""
        return self._wide(directions) @ self.inverse_sqrt_

    def whiten_contexts(self, contexts: Any) -> Float[np.ndarray, "n d"]:
        """l = lambda S: vectors that the unembedding is multiplied with (after the final norm) in the common coordinates."""
        return self._wide(contexts) @ self.sqrt_

    def unwhiten(self, directions: Any) -> Float[np.ndarray, "n d"]:
        """directions S: the inverse of `whiten`."""
        return self._wide(directions) @ self.sqrt_

    def unwhiten_contexts(self, contexts: Any) -> Float[np.ndarray, "n d"]:
        """lambda = l S^{-1}: the inverse of `whiten_contexts`; what to add to a context for a step in the common coordinates."""
        return self._wide(contexts) @ self.inverse_sqrt_

    def dual(self, directions: Any) -> Float[np.ndarray, "n d"]:
        """lambda_W = gamma_W Cov^{-1}: what to add to a context to change a concept and none that is orthogonal to it."""
        return self._wide(directions) @ self.precision_

    def primal(self, contexts: Any) -> Float[np.ndarray, "n d"]:
        """gamma_W = lambda_W Cov: the inverse of `dual`."""
        return self._wide(contexts) @ self.covariance_

    def inner(self, a: Any, b: Any) -> Float[np.ndarray, "n m"]:
        """<a_i, b_j>_C of every row of `a` [n, d] with every row of `b` [m, d], both directions of the unembedding."""
        return self._wide(a) @ self.precision_ @ self._wide(b).T

    def cosine(self, a: Any, b: Any) -> Float[np.ndarray, "n m"]:
        """The cosines under this inner product. Raises ConfigError for a row of zeros."""
        return cosines(self.whiten(a), self.whiten(b))

    def _wide(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, check_array(X, dtype=np.float64), reset=False)

    @property
    def _n_features_out(self) -> int:
        return len(self.location_)


def cosines(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Euclidean cosines of every row of `a` with every row of `b`. Raises ConfigError for a row of zeros, which has no direction."""
    lengths = [np.linalg.norm(rows, axis=1) for rows in (a, b)]
    for name, length in zip("ab", lengths, strict=True):
        if not length.all():
            raise ConfigError(f"{name} must have no row of zeros, row {np.flatnonzero(length == 0)[0]} is one (cosines)")
    return (a / lengths[0][:, None]) @ (b / lengths[1][:, None]).T


def _symmetric(vectors: np.ndarray, eigenvalues: np.ndarray) -> np.ndarray:
    return (vectors * eigenvalues) @ vectors.T


def _blocks(X: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(X), BLOCK):
        yield X[start : start + BLOCK]


def _require_invertible(eigenvalues: np.ndarray, n: int, ridge: float | None) -> None:
    """Raise ConfigError, with what may have caused it, when some eigenvalue is zero up to rounding."""
    n_zero = int((eigenvalues <= SINGULAR * eigenvalues[-1]).sum())
    if n_zero or eigenvalues[-1] <= 0:
        reason = (
            f"only {n} rows (1 sample short or more)" if n <= len(eigenvalues) else "columns that are constant or repeat others, or padding"
        )
        raise ConfigError(
            f"X must have a covariance with an inverse, got {n_zero} of {len(eigenvalues)} eigenvalues that are zero ({reason}), ridge={ridge}; "
            "leave out padded columns and copies of rows (probes.unembedding does), or give ridge=1e-3, say (CausalInnerProduct)"
        )
