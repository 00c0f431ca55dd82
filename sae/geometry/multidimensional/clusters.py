"""Clusters of atoms: the candidates for features of more than one dimension.

    keep the edges to the top-k nearest atoms with cos > T, take connected components

Engels et al. 2024 (arXiv 2405.14860), section 4: graph clusters of the atoms of Mistral 7B, spectral clusters (`spectral`) of those of GPT-2.
Their text prunes edges by T alone (`top_k=None` here), their code keeps the 2 nearest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks, unit_rows
from sae.geometry.similarity import nearest_atoms


@dataclass(frozen=True, eq=False)
class AtomClusters:
    """A partition of atoms, the largest cluster first; clusters of one size are in the order of their first atoms."""

    labels: Int[Tensor, " n_atoms"]
    """Cluster of each atom, 0..n_clusters-1."""
    sizes: Int[Tensor, " n_clusters"]
    """Number of atoms of each cluster, descending."""

    @property
    def n_clusters(self) -> int:
        """Number of clusters, singletons included."""
        return len(self.sizes)

    def members(self, cluster: int) -> Int[Tensor, " n_members"]:
        """The atoms of one cluster, ascending. Raises ConfigError for a cluster that is not there."""
        if not 0 <= cluster < self.n_clusters:
            raise ConfigError(f"cluster must be in 0..{self.n_clusters - 1}, got {cluster} (AtomClusters.members)")
        return (self.labels == cluster).nonzero()[:, 0]

    def all_members(self, *, minimum: int = 1, maximum: int | None = None) -> list[Int[Tensor, " n_members"]]:
        """The atoms of every cluster of `minimum` to `maximum` atoms (the paper keeps 2 to 999), in the order of the clusters."""
        parts = self.labels.argsort(stable=True).split(self.sizes.tolist())
        return [part for part in parts if minimum <= len(part) <= (len(self.labels) if maximum is None else maximum)]


def clusters_of_labels(labels: Int[Tensor, " n_atoms"]) -> AtomClusters:
    """The partition that gives equal `labels` to the atoms of a cluster, renumbered. Raises ConfigError for no atoms."""
    if len(labels) == 0:
        raise ConfigError("labels must hold at least 1 atom, got 0 (clusters_of_labels)")
    found = np.unique(labels.detach().cpu().numpy(), return_inverse=True)[1]
    sizes = np.bincount(found)
    first = np.full(len(sizes), len(found))
    np.minimum.at(first, found, np.arange(len(found)))
    order = np.lexsort((first, -sizes))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return AtomClusters(labels=torch.from_numpy(rank[found]).to(labels.device), sizes=torch.from_numpy(sizes[order]).to(labels.device))


def graph_clusters(
    atoms: Float[Tensor, "n_atoms d_in"], *, top_k: int | None = 2, min_cosine: float = 0.5, block_elements: int = BLOCK_ELEMENTS
) -> AtomClusters:
    """Connected components of the graph whose edges join an atom to its `top_k` nearest others with a signed cosine above `min_cosine`.

    An edge needs one end that counts the other among its nearest. `top_k=None` keeps every edge above `min_cosine`. Time F^2 d_in; memory
    a few times `block_elements`, and F top_k edges. A single atom is one cluster. Raises ConfigError for no atoms, a zero or non-finite
    atom, `top_k` outside 1..F-1 and `min_cosine` outside -1..1.
    """
    _check_cosine(min_cosine, where="graph_clusters")
    rows = unit_rows(atoms, minimum=1, argument="atoms", where="graph_clusters")
    if len(rows) == 1:
        return clusters_of_labels(torch.zeros(1, dtype=torch.int64, device=atoms.device))
    if top_k is None:
        return _components_above(rows, min_cosine, block_elements)
    nearest = nearest_atoms(rows, n_neighbours=top_k, n_bins=1, block_elements=block_elements)
    return _components_of_nearest(nearest.cosines, nearest.atom_ids, top_k, min_cosine)


def graph_sweep(
    atoms: Float[Tensor, "n_atoms d_in"],
    *,
    top_ks: Sequence[int] = (2, 3, 4),
    min_cosines: Sequence[float],
    block_elements: int = BLOCK_ELEMENTS,
) -> list[list[AtomClusters]]:
    """`graph_clusters` at every setting, [top_k][min_cosine], from one search for neighbours. Errors as `graph_clusters`, and for none."""
    if not len(top_ks) or not len(min_cosines):
        raise ConfigError("top_ks and min_cosines must hold at least one value each (graph_sweep)")
    if min(top_ks) < 1:
        raise ConfigError(f"top_ks must be at least 1, got {min(top_ks)} (graph_sweep)")
    for value in min_cosines:
        _check_cosine(value, where="graph_sweep")
    nearest = nearest_atoms(atoms, n_neighbours=max(top_ks), n_bins=1, block_elements=block_elements)
    return [[_components_of_nearest(nearest.cosines, nearest.atom_ids, k, value) for value in min_cosines] for k in top_ks]


def _check_cosine(min_cosine: float, *, where: str) -> None:
    if not -1 <= min_cosine <= 1:
        raise ConfigError(f"min_cosine must be in -1..1, got {min_cosine} ({where})")


def _components_of_nearest(
    cosines: Float[Tensor, "n_atoms n_neighbours"], atom_ids: Int[Tensor, "n_atoms n_neighbours"], top_k: int, min_cosine: float
) -> AtomClusters:
    kept = cosines[:, :top_k] > min_cosine
    heads = kept.nonzero()[:, 0]
    labels = _join(np.arange(len(kept)), heads.cpu().numpy(), atom_ids[:, :top_k][kept].cpu().numpy())
    return clusters_of_labels(torch.from_numpy(labels).to(cosines.device))


def _components_above(rows: Float[Tensor, "n d_in"], min_cosine: float, block_elements: int) -> AtomClusters:
    """Every pair is looked at once, the edges of one block at a time, and what they join is merged before the next block."""
    labels = np.arange(len(rows))
    for block in row_blocks(len(rows), len(rows), block_elements, where="graph_clusters"):
        above = ((rows[block] @ rows[block.start :].T).clamp_(-1, 1) > min_cosine).triu(diagonal=1)
        heads, tails = above.nonzero().T.cpu().numpy() + block.start
        labels = _join(labels, heads, tails)
    return clusters_of_labels(torch.from_numpy(labels).to(rows.device))


def _join(labels: np.ndarray, heads: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """New labels, in which the labels of both ends of every edge are one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = (labels[heads], labels[tails])
    n = int(labels.max()) + 1
    merged = connected_components(coo_matrix((np.ones(len(heads), dtype=np.int8), ends), shape=(n, n)), directed=False)[1]
    return merged[labels]
