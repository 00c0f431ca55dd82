"""A map of the atoms: two coordinates for every latent.

    PCA    u_i = W_i / |W_i|,  C = mean (u_i - m)(u_i - m)^T,  x_i = (u_i - m) . e_1,  y_i = (u_i - m) . e_2      e_1, e_2 leading eigenvectors
    UMAP   L. McInnes, J. Healy and J. Melville, 2018 (arXiv 1802.03426), cosine metric, seeded; needs `umap-learn`

Atoms of length zero lie at the origin and take no part. Signs are fixed: the largest entry of each eigenvector is positive.
"""

import importlib.util

import numpy as np
from jaxtyping import Float

from sae.errors import ConfigError

METHODS = ("pca", "umap")


def require_method(method: str) -> None:
    """Raises ConfigError for an unknown method of making a map, and for one whose package is not installed."""
    if method not in METHODS:
        raise ConfigError(f"map_method must be 'pca' or 'umap', got {method!r}")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise ConfigError("map_method 'umap' needs umap-learn: install sae-workbench[map], or use 'pca'")


def atom_map(atoms: Float[np.ndarray, "d_sae d_in"], *, method: str = "pca", seed: int = 0) -> tuple[Float[np.ndarray, "d_sae 2"], str]:
    """(coordinates, how they were made in words). Raises ConfigError for another `method`, or where umap-learn is not installed."""
    require_method(method)
    norms = np.linalg.norm(atoms, axis=1)
    alive = norms > 0
    unit = (atoms[alive] / norms[alive, None]).astype(np.float32)
    places = np.zeros((len(atoms), 2), np.float32)
    if len(unit) < 2 or atoms.shape[1] < 2:
        return places, "too few atoms for a map"
    if method == "umap":
        places[alive] = _umap(unit, seed)
        return places, f"UMAP of the unit atoms, cosine metric, seed {seed}"
    centred = unit - unit.mean(axis=0, dtype=np.float64).astype(np.float32)
    variances, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(unit))
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    places[alive] = centred @ axes.astype(np.float32)
    total = float(variances.sum())
    share = float(variances[-2:].sum()) / total if total > 0 else 0.0
    return places, f"PCA of the unit atoms: the plane holds {share:.1%} of their variance"


def _umap(unit: Float[np.ndarray, "n d_in"], seed: int) -> Float[np.ndarray, "n 2"]:
    import umap

    n_neighbors = min(15, len(unit) - 1)
    reducer = umap.UMAP(n_components=2, metric="cosine", n_neighbors=n_neighbors, random_state=seed, n_jobs=1, init="random")
    return np.asarray(reducer.fit_transform(unit), np.float32)
