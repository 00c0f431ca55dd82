"""Spectral clusters of atoms, with the angular affinity.

    A_ij = 1 - arccos(cos_ij) / pi,  A_ii = 0,  D = diag(A 1);      U = the leading eigenvectors of N = D^-1/2 A D^-1/2
    clusters = k-means of the rows of D^-1/2 U                                         von Luxburg 2007 (arXiv 0711.0189); Shi & Malik 2000

Engels et al. 2024 (arXiv 2405.14860), section 4, on the atoms of GPT-2, without a seed. Orthogonal atoms have A = 1/2, so A is dense:
`dense_spectral_clusters` is the paper's. `spectral_clusters` keeps the edges to the nearest atoms only, and reaches 65,536 of them.

The eigenvectors come from subspace iteration with Chebyshev filters (Zhou et al. 2006, J. Comput. Phys. 219:172): products with a whole block
of vectors, no trouble with an eigenvalue 1 that is repeated once for each component of the graph, as Lanczos has with a single start.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.multidimensional.clusters import AtomClusters, clusters_of_labels
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks, unit_rows
from sae.geometry.similarity import nearest_atoms

_DEGREE, _N_ROUNDS, _TOLERANCE = 20, 12, 1e-4


@dataclass(frozen=True, eq=False)
class SpectralEmbedding:
    """Leading eigenvectors of a normalised affinity."""

    vectors: Float[Tensor, "n_atoms n_components"]
    """Orthonormal columns U, float64."""
    eigenvalues: Float[Tensor, " n_components"]
    """Descending, in [-1, 1]; 1 once for each component of the graph."""
    residual: float
    """Largest |N u - l u| over the columns: above 1e-4 where eigenvalues lie too close together for the iteration to part them."""
    degrees: Float[Tensor, " n_atoms"]
    """Row sums of the affinity."""


def spectral_clusters(
    atoms: Float[Tensor, "n_atoms d_in"],
    *,
    n_clusters: int,
    n_neighbours: int = 20,
    n_components: int | None = None,
    n_starts: int = 1,
    seed: int = 0,
    block_elements: int = BLOCK_ELEMENTS,
) -> AtomClusters:
    """Spectral clusters of the graph of nearest atoms, the angular affinity on its edges.

    An edge joins an atom to its `n_neighbours` nearest others. Departs from the paper by that, and by `n_components` eigenvectors (None: the
    smaller of n_clusters and 64) where it takes n_clusters. Time F^2 d_in for the neighbours, then F n_components (n_neighbours +
    n_components) per product and F n_clusters n_components per step of k-means, started `n_starts` times. Everything random comes from
    `seed`. Rows that coincide may leave fewer clusters than asked for.

    Raises ConfigError for no atoms, a zero or non-finite atom, n_clusters outside 1..F, n_components outside 1..n_clusters, n_neighbours
    outside 1..F-1 and n_starts < 1.
    """
    rows = unit_rows(atoms, minimum=1, argument="atoms", where="spectral_clusters")
    n_components = min(64, n_clusters) if n_components is None else n_components
    _check(len(rows), n_clusters, n_components, n_starts, where="spectral_clusters")
    if n_clusters == 1:
        return clusters_of_labels(torch.zeros(len(rows), dtype=torch.int64, device=atoms.device))
    embedding = sparse_embedding(rows, n_components=n_components, n_neighbours=n_neighbours, seed=seed, block_elements=block_elements)
    return _k_means(embedding, n_clusters, n_starts, seed)


def dense_spectral_clusters(
    atoms: Float[Tensor, "n_atoms d_in"], *, n_clusters: int, n_starts: int = 10, seed: int = 0, block_elements: int = BLOCK_ELEMENTS
) -> AtomClusters:
    """Spectral clusters with the dense angular affinity of the paper and as many eigenvectors as clusters.

    The affinity is kept while its F^2 entries fit in `block_elements`, and computed anew, block by block, for each of some hundred products
    above that: F^2 (d_in + n_clusters) each, so prefer `spectral_clusters` beyond ten thousand atoms. Errors as `spectral_clusters`.
    """
    rows = unit_rows(atoms, minimum=1, argument="atoms", where="dense_spectral_clusters")
    _check(len(rows), n_clusters, n_clusters, n_starts, where="dense_spectral_clusters")
    if n_clusters == 1:
        return clusters_of_labels(torch.zeros(len(rows), dtype=torch.int64, device=atoms.device))
    return _k_means(dense_embedding(rows, n_components=n_clusters, seed=seed, block_elements=block_elements), n_clusters, n_starts, seed)


def sparse_embedding(
    atoms: Float[Tensor, "n_atoms d_in"], *, n_components: int, n_neighbours: int, seed: int, block_elements: int = BLOCK_ELEMENTS
) -> SpectralEmbedding:
    """The leading eigenvectors of the normalised affinity of the graph of nearest atoms; see `spectral_clusters`."""
    import numpy as np
    from scipy.sparse import csr_matrix

    nearest = nearest_atoms(atoms, n_neighbours=n_neighbours, n_bins=1, block_elements=block_elements)
    n = len(atoms)
    weights = _angular(nearest.cosines.double().cpu())
    starts = np.arange(0, weights.numel() + 1, n_neighbours)
    one_way = csr_matrix((weights.numpy().ravel(), nearest.atom_ids.cpu().numpy().ravel(), starts), shape=(n, n))
    graph = one_way.maximum(one_way.T)
    degrees = torch.from_numpy(np.asarray(graph.sum(axis=1)).ravel())
    return _embed(lambda x: torch.from_numpy(graph @ x.numpy()), degrees, n_components, seed)


def dense_embedding(
    atoms: Float[Tensor, "n_atoms d_in"], *, n_components: int, seed: int, block_elements: int = BLOCK_ELEMENTS
) -> SpectralEmbedding:
    """The leading eigenvectors of the normalised dense angular affinity; see `dense_spectral_clusters`."""
    rows = unit_rows(atoms, minimum=1, argument="atoms", where="dense_embedding").double()
    blocks = list(row_blocks(len(rows), len(rows), block_elements, where="dense_embedding"))
    kept = _affinity(rows, blocks[0]) if len(blocks) == 1 else None

    def product(vectors: Float[Tensor, "n_atoms n_vectors"]) -> Float[Tensor, "n_atoms n_vectors"]:
        return torch.cat([(_affinity(rows, block) if kept is None else kept) @ vectors for block in blocks])

    degrees = product(rows.new_ones(len(rows), 1))[:, 0]
    return _embed(product, degrees, n_components, seed)


def _check(n_atoms: int, n_clusters: int, n_components: int, n_starts: int, *, where: str) -> None:
    if not 1 <= n_clusters <= n_atoms:
        raise ConfigError(f"n_clusters must be in 1..{n_atoms}, the number of atoms, got {n_clusters} ({where})")
    if not 1 <= n_components <= n_clusters:
        raise ConfigError(f"n_components must be in 1..n_clusters={n_clusters}, got {n_components} ({where})")
    if n_starts < 1:
        raise ConfigError(f"n_starts must be at least 1, got {n_starts} ({where})")


def _angular(cosines: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    return 1 - cosines.clamp(-1, 1).arccos() / torch.pi


def _affinity(rows: Float[Tensor, "n_atoms d_in"], block: slice) -> Float[Tensor, "rows n_atoms"]:
    affinity = _angular(rows[block] @ rows.T)
    affinity.diagonal(offset=block.start).fill_(0)
    return affinity


def _embed(product: Callable[[Tensor], Tensor], degrees: Float[Tensor, " n_atoms"], n_components: int, seed: int) -> SpectralEmbedding:
    """Rayleigh-Ritz in a block that Chebyshev polynomials turn towards the eigenvalues above its own least one."""
    root = degrees.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()[:, None]  # atoms at right angles or worse to all have no edges

    def normalised(x: Float[Tensor, "n_atoms n_vectors"]) -> Float[Tensor, "n_atoms n_vectors"]:
        return root * product(root * x)

    n = len(degrees)
    width = min(n, n_components + 8)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64).to(degrees.device)
    cut, values, residual = 0.0, x.new_zeros(width), torch.inf
    for _ in range(_N_ROUNDS):
        centre, half = (cut - 1) / 2, (cut + 1) / 2  # the interval [-1, cut] is damped
        before, now = x, (normalised(x) - centre * x) / half
        for _ in range(_DEGREE - 1):
            before, now = now, 2 * (normalised(now) - centre * now) / half - before
        x = torch.linalg.qr(now / now.norm(dim=0).clamp_min(1e-300)).Q
        image = normalised(x)
        values, turn = torch.linalg.eigh((x.T @ image + image.T @ x) / 2)
        x, image = x @ turn.flip(1), image @ turn.flip(1)
        values = values.flip(0)
        residual = (image - x * values)[:, :n_components].norm(dim=0).max().item()
        if residual <= _TOLERANCE or width == n:
            break
        cut = min(max(values[-1].item(), -0.9), 1 - 1e-6)
    return SpectralEmbedding(vectors=x[:, :n_components], eigenvalues=values[:n_components], residual=residual, degrees=degrees)


def _k_means(embedding: SpectralEmbedding, n_clusters: int, n_starts: int, seed: int) -> AtomClusters:
    points = embedding.vectors * embedding.degrees.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()[:, None]
    points = (points / points.norm(dim=0).clamp_min(1e-300).max() * len(points) ** 0.5).float()
    generator = torch.Generator().manual_seed(seed)
    best, labels = torch.inf, torch.zeros(len(points), dtype=torch.int64)
    for _ in range(n_starts):
        found, inertia = _lloyd(points, _spread_centres(points, n_clusters, generator))
        if inertia < best:
            best, labels = inertia, found
    return clusters_of_labels(labels)


def _spread_centres(points: Float[Tensor, "n d"], n_clusters: int, generator: torch.Generator) -> Float[Tensor, "n_clusters d"]:
    """k-means++ (Arthur & Vassilvitskii 2007): each centre drawn by squared distance from those before it, the best of 2 + ln k draws.

    O(n k d ln k) in products of matrices.
    """
    n_trials = 2 + int(math.log(n_clusters))
    squares = points.square().sum(1)
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    nearest = (points - points[chosen[0]]).square().sum(1)
    for _ in range(n_clusters - 1):
        cumulated = nearest.double().cumsum(0)
        drawn = torch.rand(n_trials, generator=generator, dtype=torch.float64).to(points.device) * cumulated[-1]
        trials = torch.searchsorted(cumulated, drawn, right=True).clamp(max=len(points) - 1)
        distances = (squares[:, None] + squares[trials] - 2 * points @ points[trials].T).clamp_min(0)
        distances = torch.minimum(distances, nearest[:, None])
        winner = int(distances.sum(0).argmin())
        nearest = distances[:, winner].contiguous()
        chosen.append(int(trials[winner]))
    return points[chosen]


def _lloyd(points: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> tuple[Tensor, float]:
    """(Labels, sum of squared distances to the own centre) at a fixed point, or after 40 steps. A centre that loses its points stays."""
    labels = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    inertia = torch.inf
    for _ in range(40):
        gains, nearest = [], []
        for block in row_blocks(len(points), len(centres), BLOCK_ELEMENTS, where="k-means"):
            gain, label = (points[block] @ centres.T - centres.square().sum(1) / 2).max(1)
            gains.append(gain)
            nearest.append(label)
        found = torch.cat(nearest)
        inertia = (points.square().sum(1).double() - 2 * torch.cat(gains).double()).sum().item()
        if torch.equal(found, labels):
            break
        labels = found
        counts = torch.bincount(labels, minlength=len(centres))[:, None]
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return labels, inertia
