"""The compiled loop of `sae.geometry.sparsity`: errors of leaving out the smallest terms of a sum, after each term."""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled


@compiled
def tail_norms(values: np.ndarray, order: np.ndarray, weights: np.ndarray, norms: np.ndarray) -> None:
    """norms[t, j] = |sum of the first j + 1 terms of token t, in the order given|; term i is values[t, i] * weights[i]."""
    n_tokens, m = values.shape
    d = weights.shape[1]
    total = np.empty(d, dtype=np.float64)
    for t in range(n_tokens):
        for c in range(d):
            total[c] = 0.0
        for j in range(m):
            i = order[t, j]
            value = values[t, i]
            square = 0.0
            for c in range(d):
                entry = total[c] + value * weights[i, c]
                total[c] = entry
                square += entry * entry
            norms[t, j] = np.sqrt(square)
