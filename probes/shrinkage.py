"""The share of the scaled identity in a shrunk covariance, from sums over rows.

    s = min(beta, delta) / delta,    delta = (|C|_F^2 - (tr C)^2 / d) / d,    beta = (mean_k |x_k|^4 - |C|_F^2) / (n d),    C = X^T X / n

Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", J. Multivariate Anal. 88 (2004), 365-411; equal to
`sklearn.covariance.ledoit_wolf_shrinkage`, without its matrices of squares: sum_ij (X2^T X2)_ij = sum_k |x_k|^4 and |X^T X|_F = |X X^T|_F
turn sums over coordinates into sums over rows.
"""

import numpy as np
from jaxtyping import Float


def ledoit_wolf_shrinkage(centred: Float[np.ndarray, "n d"]) -> float:
    """s in [0, 1] of rows that have mean 0, in O(n d min(n, d)); 0 where all is scaled identity."""
    return shrinkage_of(np.einsum("nd,nd->n", centred, centred), gram_matrix(centred), centred.shape[1])


def gram_matrix(centred: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m m"]:
    """X X^T or X^T X, the smaller of them."""
    n, d = centred.shape
    return centred @ centred.T if n <= d else centred.T @ centred


def shrinkage_of(squares: Float[np.ndarray, " n"], gram: Float[np.ndarray, "m m"], d: int) -> float:
    """The same from the squared lengths of the centred rows, their Gram matrix (of rows or of columns) and their width d."""
    n = len(squares)
    size = float(np.einsum("ij,ij->", gram, gram)) / n**2
    delta = size / d - (float(squares.sum()) / n / d) ** 2
    beta = (float(np.square(squares).mean()) - size) / (n * d)
    rounding = np.finfo(np.float64).eps * size / d
    return 0.0 if delta <= rounding or beta <= rounding else min(beta, delta) / delta
