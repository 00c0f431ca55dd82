"""Distances along a cloud of points rather than across it.

    geodesic(i, j) = length of the shortest path from i to j over edges between near points

Edges join each point to its k nearest (either way), or all pairs up to a quantile of the distances. `geodesic_rdm` is the transform of Lin &
Kriegeskorte 2023, arXiv 2309.11028: edge lengths are the ranks of the dissimilarities scaled to [0, 1], and the path lengths are ranked again.
Points in different components have no path: they get the largest finite length, and are marked. Dijkstra from every point,
n (edges + n log n), and an n x n result: n <= 4096.

60 points on the unit circle, joined to their neighbours: antipodes are 60 sin(pi / 60) = 3.140 apart (chord: 2).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.representations.neighbours import Metric, nearest_neighbours
from sae.geometry.representations.rsa import Distance, rdm, square_form, upper_triangle
from sae.geometry.topology.transforms import rank_transform


@dataclass(frozen=True, eq=False)
class Geodesics:
    """Path lengths of the pairs i < j, in the order of `pdist`."""

    values: Float[Tensor, " pairs"]
    """Lengths; pairs without a path have the largest finite one. float64."""
    disconnected: Bool[Tensor, " pairs"]
    """Pairs without a path."""
    n_components: int
    """Connected components of the graph; 1 where every pair has a path."""


def geodesic_distances(
    values: Float[Tensor, " pairs"], *, k: int | None = None, quantile: float | None = None, most: float | None = None
) -> Geodesics:
    """Shortest paths over the edges of a vector of non-negative dissimilarities: each point's `k` nearest, or dissimilarities up to a
    `quantile` of them, or up to `most`. Exactly one of the three must be given. Edges of length 0 count.

    Raises ConfigError unless exactly one is given and in range (k in 1..n-1, quantile in (0, 1], most >= 0), for negative values, NaN or Inf,
    and where no edge is left.
    """
    where = "geodesic_distances"
    if (k is not None) + (quantile is not None) + (most is not None) != 1:
        raise ConfigError(f"exactly one of k, quantile and most must be given, got {k}, {quantile} and {most} ({where})")
    if len(values) < 3 or not values.isfinite().all() or (values < 0).any():
        raise ConfigError(f"values must hold at least 3 finite dissimilarities >= 0, got {len(values)} ({where})")
    matrix = square_form(values.detach().double())
    n = len(matrix)
    if k is not None:
        if not 1 <= k <= n - 1:
            raise ConfigError(f"k must be in 1..{n - 1}, got {k} ({where})")
        inside = matrix + torch.diag(torch.full((n,), torch.inf, dtype=torch.float64, device=matrix.device))
        kept = torch.zeros_like(matrix, dtype=torch.bool).scatter_(1, inside.topk(k, largest=False).indices, True)
        kept = kept | kept.T
    else:
        if (quantile is not None and not 0 < quantile <= 1) or (most is not None and most < 0):
            raise ConfigError(f"quantile must be in (0, 1] and most at least 0, got {quantile} and {most} ({where})")
        kept = matrix <= (_order_statistic(values, quantile) if quantile is not None else most)
    kept.fill_diagonal_(False)
    if not kept.any():
        raise ConfigError(f"most must leave an edge, got {most} below the smallest dissimilarity {float(values.min())} ({where})")
    lengths, n_components = _paths(matrix, kept)
    found = upper_triangle(lengths)
    disconnected = found.isinf()
    return Geodesics(
        values=torch.where(disconnected, found[~disconnected].max(), found), disconnected=disconnected, n_components=n_components
    )


def geodesic_rdm(values: Float[Tensor, " pairs"], *, k: int | None = None, quantile: float | None = None) -> Geodesics:
    """The geodesic transform of an RDM: ranks in [0, 1] as edge lengths, shortest paths, ranks in [0, 1] again.

    `quantile` is the share of the dissimilarities that become edges (the paper's 0.05), or give `k`. Errors as `geodesic_distances`, and where
    all paths are equally long.
    """
    if (k is None) == (quantile is None):
        raise ConfigError(f"exactly one of k and quantile must be given, got {k} and {quantile} (geodesic_rdm)")
    found = geodesic_distances(rank_transform(values), k=k, quantile=quantile)
    return Geodesics(values=rank_transform(found.values), disconnected=found.disconnected, n_components=found.n_components)


def cloud_geodesics(x: Float[Tensor, "n d"], *, k: int = 10, distance: Distance = "euclidean") -> Geodesics:
    """Geodesic distances of a cloud over its k-nearest-neighbour graph, edges as long as the distances. Errors as `rdm`."""
    return geodesic_distances(rdm(x, distance=distance), k=k)


def neighbour_graph(x: Float[Tensor, "n d"], *, k: int, metric: Metric = "euclidean") -> Any:
    """The symmetric k-nearest-neighbour graph as a scipy CSR matrix of Euclidean edge lengths; n k edges, no n x n matrix.

    Edges between equal rows are given the smallest positive float, since a graph algorithm may take a stored 0 for no edge.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    ids = nearest_neighbours(x, k=k, metric=metric)
    rows = x.detach().double()
    lengths = torch.stack([(rows - rows[ids[:, j]]).norm(dim=1) for j in range(k)], dim=1)
    n = len(x)
    starts = np.repeat(np.arange(n), k)
    weights = np.maximum(lengths.cpu().numpy().ravel(), np.finfo(float).tiny)
    graph = csr_matrix((weights, (starts, ids.cpu().numpy().ravel())), shape=(n, n))
    return graph.maximum(graph.T).tocsr()


def _paths(matrix: Tensor, kept: Tensor) -> tuple[Tensor, int]:
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components, shortest_path

    rows, columns = np.nonzero(kept.cpu().numpy())
    weights = matrix.cpu().numpy()[rows, columns]
    # A stored zero is an edge of length zero to the shortest paths, but conversions may drop it; the smallest float is safe and as short.
    graph = csr_matrix((np.maximum(weights, np.finfo(float).tiny), (rows, columns)), shape=matrix.shape)
    n_components, _ = connected_components(graph, directed=False)
    lengths = shortest_path(graph, method="D", directed=False)
    return torch.from_numpy(lengths).to(matrix.device), int(n_components)


def _order_statistic(values: Tensor, quantile: float) -> float:
    """The smallest value with at least `quantile` of all values at or below it."""
    place = max(1, -int(-quantile * len(values) // 1))
    return float(values.double().kthvalue(min(place, len(values))).values)
