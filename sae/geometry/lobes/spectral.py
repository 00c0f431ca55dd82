"""Lobes: spectral clusters of an affinity between latents.

    N = D^{-1/2} A D^{-1/2},  D = diag(A 1);      rows of D^{-1/2} V, V the eigenvectors of N with the largest eigenvalues, by k-means

Shi & Malik 2000, "Normalized cuts and image segmentation"; von Luxburg 2007 (arXiv 0711.0189). 1 - the eigenvalues of N are those of the
normalised Laplacian. Li et al. 2024 (arXiv 2410.19750) cluster the dense affinity; past some thousand latents only the strongest neighbours of
each are kept here (`neighbour_graph`), and the eigenvectors are found by Lanczos iterations from a seeded vector.
"""

from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.affinity import Affinity, affinity
from sae.geometry.coactivation import Coactivation, CoactivationNeighbours
from sae.geometry.pairs import atom_pairs
from sae.geometry.rows import unit_rows

if TYPE_CHECKING:
    import scipy.sparse

DENSE_NODES = 2048
"""Up to here all eigenvectors are computed; beyond, only those that are wanted."""
NO_LOBE = -1
"""Label of a latent that has no affinity with any other."""


@dataclass(frozen=True, eq=False)
class Lobes:
    """A partition of latents into lobes."""

    labels: Int[Tensor, " n_latents"]
    """Lobe of each latent, 0..n_lobes-1, the largest lobe first; -1 for a latent without affinity to any other."""
    n_lobes: int
    """Number of lobes asked for."""
    eigenvalues: Float[Tensor, " n_values"]
    """Smallest eigenvalues of the normalised Laplacian, ascending (float64), n_lobes + 1 where there are so many: 0 for each connected
    component, and a gap after the last that separates lobes."""

    @property
    def sizes(self) -> Int[Tensor, " n_lobes"]:
        """Latents of each lobe."""
        return self.labels[self.labels >= 0].bincount(minlength=self.n_lobes)


def dense_affinity(together: Coactivation, kind: Affinity) -> Float[Tensor, "n_latents n_latents"]:
    """The affinity of all pairs (float64), none negative: phi is given as phi + 1, as the paper does. For at most 16,384 latents."""
    counts = together.dense()
    values = affinity(kind, counts, together.firing[:, None], together.firing[None], together.n_units)
    return values + 1 if kind == "phi" else values


def neighbour_graph(
    ids: Int[Tensor, "n_latents n_neighbours"], weights: Float[Tensor, "n_latents n_neighbours"]
) -> "scipy.sparse.csr_matrix":
    """The symmetric graph of the pairs of which one counts the other among its neighbours, by the larger weight; weights <= 0 are left out.

    An id of -1 is no neighbour. Raises ConfigError for NaN or Inf among the weights, shapes that differ, and ids out of range.
    """
    from scipy.sparse import csr_matrix

    if ids.shape != weights.shape or not bool(weights.isfinite().all()):
        raise ConfigError(
            f"weights must be finite and have the shape of ids, {tuple(ids.shape)}, got {tuple(weights.shape)} (neighbour_graph)"
        )
    n = len(ids)
    if ids.numel() and (int(ids.max()) >= n or int(ids.min()) < -1):
        raise ConfigError(f"ids must be in -1..n_latents-1={n - 1}, got {int(ids.min())}..{int(ids.max())} (neighbour_graph)")
    rows = torch.arange(n)[:, None].expand_as(ids)
    kept = ((ids >= 0) & (weights > 0) & (ids != rows)).cpu()
    graph = csr_matrix((weights.cpu().double()[kept].numpy(), (rows[kept].numpy(), ids.cpu()[kept].numpy())), shape=(n, n))
    return graph.maximum(graph.T).tocsr()


def coactivation_graph(neighbours: CoactivationNeighbours) -> "scipy.sparse.csr_matrix":
    """`neighbour_graph` of the strongest affinities of every latent."""
    return neighbour_graph(neighbours.latent_ids.long(), neighbours.affinities)


def cosine_graph(atoms: Float[Tensor, "n_latents d_in"], *, n_neighbours: int = 30) -> "scipy.sparse.csr_matrix":
    """`neighbour_graph` of the nearest atoms by cosine, weights 1 - arccos(cos)/pi as in the paper; errors as `atom_pairs`."""
    pairs = atom_pairs(atoms, n_neighbours=n_neighbours, max_order=1)
    return neighbour_graph(pairs.atom_ids, 1 - pairs.cosines.double().arccos() / pi)


def cosine_affinity(atoms: Float[Tensor, "n_latents d_in"]) -> Float[Tensor, "n_latents n_latents"]:
    """1 - arccos(cos)/pi of all pairs (float64), the affinity by which the paper clusters atoms: 1/2 where they are orthogonal."""
    rows = unit_rows(atoms.double(), minimum=2, argument="atoms", where="cosine_affinity")
    return 1 - (rows @ rows.T).clamp(-1, 1).arccos() / pi


def spectral_lobes(values: Float[Tensor, "n_latents n_latents"], *, n_lobes: int, seed: int) -> Lobes:
    """Lobes from the affinities of all pairs. Time F^3 up to 2,048 latents, F^2 n_lobes a Lanczos step beyond.

    Raises ConfigError for affinities that are negative, not finite or not symmetric, and n_lobes outside 2..the number of latents that have
    an affinity with another.
    """
    if not bool(values.isfinite().all()) or bool((values < 0).any()) or not torch.allclose(values, values.T):
        raise ConfigError("affinities must be finite, symmetric and not negative; add 1 to a correlation (spectral_lobes)")
    return _lobes(values.detach().cpu().double().numpy(), n_lobes, seed)


def spectral_lobes_of_graph(graph: "scipy.sparse.csr_matrix", *, n_lobes: int, seed: int) -> Lobes:
    """Lobes from a symmetric graph of neighbours with positive weights; time in proportion to its edges. Errors as `spectral_lobes`."""
    if not np.isfinite(graph.data).all() or (graph.data < 0).any() or abs(graph - graph.T).sum() > 1e-9 * abs(graph).sum():
        raise ConfigError("weights must be finite, symmetric and not negative; see neighbour_graph (spectral_lobes_of_graph)")
    return _lobes(graph, n_lobes, seed)


def _lobes(values: object, n_lobes: int, seed: int) -> Lobes:
    from scipy.sparse import issparse

    sparse = issparse(values)
    others = values.copy()
    others.setdiag(0) if sparse else np.fill_diagonal(others, 0)
    connected = np.flatnonzero(np.asarray(others.sum(axis=1)).ravel() > 0)
    if not 2 <= n_lobes <= len(connected):
        raise ConfigError(
            f"n_lobes must be in 2..{len(connected)}, the latents that have an affinity with another, got {n_lobes} (spectral_lobes)"
        )
    part = values[connected][:, connected]
    scale = 1 / np.sqrt(np.asarray(part.sum(axis=1)).ravel())
    normalised = part.multiply(scale[:, None]).multiply(scale).tocsr() if sparse else scale[:, None] * part * scale
    eigenvalues, vectors = _largest(normalised, min(n_lobes + 1, len(connected)), seed)
    found = _kmeans(vectors[:, :n_lobes] * scale[:, None], n_lobes, seed)
    order = np.argsort(-np.bincount(found, minlength=n_lobes), kind="stable")
    labels = np.full(values.shape[0], NO_LOBE, np.int64)
    labels[connected] = np.argsort(order)[found]
    return Lobes(torch.from_numpy(labels), n_lobes, torch.from_numpy(1 - eigenvalues))


def _largest(normalised: object, n_vectors: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, descending, and their vectors, each with its largest entry positive."""
    from scipy.sparse import issparse
    from scipy.sparse.linalg import eigsh

    n = normalised.shape[0]
    if n <= DENSE_NODES or n_vectors > n // 4:
        dense = normalised.toarray() if issparse(normalised) else normalised
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        values, vectors = values[-n_vectors:], vectors[:, -n_vectors:]
    else:
        start = np.random.default_rng(seed).standard_normal(n)
        values, vectors = eigsh(normalised, k=n_vectors, which="LA", v0=start, tol=1e-6, ncv=min(n, 2 * n_vectors + 32))
    order = np.argsort(-values, kind="stable")
    values, vectors = values[order], vectors[:, order]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(n_vectors)])
    return values, vectors * signs


def _kmeans(rows: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(rows)
