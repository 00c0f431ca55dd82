"""Persistent homology of small clouds: which pieces and which loops there are, and over which range of distances.

    The Vietoris-Rips complex at r joins points at distance <= r, and fills triangles all of whose edges are there. H0 counts its pieces, H1
    its loops that no triangles fill. Each class is born at one r and dies at another; persistence = death - birth.

    H0    births are 0, deaths are the lengths of the edges of the minimum spanning tree
    H1    the coboundaries of the other edges, reduced modulo 2 from the longest to the shortest; an edge pairs with the first triangle left

Edelsbrunner & Harer, Computational Topology (2010), chapter VII; the cohomology algorithm, its clearing and its shortcut for edges that die at
birth are those of Bauer 2021 (arXiv 1908.02518). An edge with a third point nearer to both its ends than they are to each other bounds
a triangle at once and has no persistence, so only the edges of the relative neighbourhood graph are reduced: some hundreds.
All lengths up to the smallest radius that one point covers the cloud with are kept; beyond it the complex is a cone and has no loop.

A regular n-gon on the unit circle has one loop, from 2 sin(pi/n) to 2 sin(pi ceil(n/3)/n) (Adamaszek & Adams 2017, arXiv 1503.03669).
"""

import importlib.util
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import require_points

MAX_POINTS = 500
"""The largest cloud: n^2 / 2 edges, and a bit for each of n^3 / 2 triangles."""
_ROUNDING = 1e-12
"""Lengths that are equal in exact arithmetic differ by less than this share of the cloud's radius; it makes no loop."""


@dataclass(frozen=True, eq=False)
class Persistence:
    """Classes of the Vietoris-Rips filtration of a cloud."""

    pieces: Float[Tensor, " n_pieces"]
    """Deaths of the n - 1 H0 classes that die, descending, float64; all are born at 0."""
    loops: Float[Tensor, "n_loops 2"]
    """Birth and death of the H1 classes with death > birth, the most persistent first, float64."""

    def lifetimes(self) -> Float[Tensor, " n_loops"]:
        """death - birth of the loops, descending."""
        return self.loops[:, 1] - self.loops[:, 0]


def persistence(points: Float[Tensor, "n d"]) -> Persistence:
    """H0 and H1 of the Vietoris-Rips filtration of the rows of `points`, by Euclidean distance.

    About n^3 steps: 0.1 s at n = 400. Points that coincide are pieces that die at 0. Lengths scale with the points. Raises ConfigError for
    fewer than 2 points, NaN or Inf, and more than 500 points: take `farthest_points` of them first.
    """
    require_points(points, minimum=2, argument="points", where="persistence")
    _check_size(len(points), argument="points", where="persistence")
    rows = points.detach().double()
    rows = rows - rows.mean(0)
    return _persistence(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").cpu())


def persistence_of_distances(distances: Float[Tensor, "n columns"]) -> Persistence:
    """The same from the distances themselves, of any metric (or dissimilarity).

    Raises ConfigError for fewer than 2 points, more than 500, NaN or Inf, negative entries, and a matrix that is
    not symmetric or not 0 on the diagonal, to 1e-6 of its largest entry.
    """
    where = "persistence_of_distances"
    if distances.shape[0] != distances.shape[1]:
        raise ConfigError(f"distances must be square, got shape {tuple(distances.shape)} ({where})")
    require_points(distances, minimum=2, argument="distances", where=where)
    _check_size(len(distances), argument="distances", where=where)
    table = distances.detach().double().cpu()
    tolerance = 1e-6 * table.abs().max()
    if (table < 0).any() or (table.diagonal() > tolerance).any() or ((table - table.T).abs() > tolerance).any():
        raise ConfigError(f"distances must be symmetric, not negative and 0 on the diagonal ({where})")
    table = table.triu(1)
    return _persistence(table + table.T)


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _check_size(n: int, *, argument: str, where: str) -> None:
    if n > MAX_POINTS:
        raise ConfigError(f"{argument} must have at most {MAX_POINTS} rows, got {n}: take farthest_points of them first ({where})")


def _persistence(table: Float[Tensor, "n n"]) -> Persistence:
    n = len(table)
    radius = table.amax(1).min()
    heads, tails = torch.triu_indices(n, n, offset=1)
    lengths, order = table[heads, tails].sort(stable=True)
    kept = int((lengths <= radius).sum())
    heads, tails, lengths = heads[order[:kept]], tails[order[:kept]], lengths[:kept]
    rank = torch.full((n, n), -1, dtype=torch.int32)
    rank[heads, tails] = rank[tails, heads] = torch.arange(kept, dtype=torch.int32)
    joins = _spanning_edges(heads.numpy(), tails.numpy(), n)
    lune = _lune_vertices(rank, heads, tails)
    loop_edges = ((lune < 0) & ~joins).nonzero()[:, 0].flip(0)
    deaths = _deaths(rank, heads, tails, lune, loop_edges)
    born, died = lengths[loop_edges[deaths >= 0]], lengths[deaths[deaths >= 0]]
    loops = torch.stack([born, died], 1)[died - born > _ROUNDING * radius]
    loops = loops[(loops[:, 1] - loops[:, 0]).argsort(descending=True, stable=True)]
    return Persistence(pieces=lengths[joins].flip(0), loops=loops)


def _spanning_edges(heads: np.ndarray, tails: np.ndarray, n: int) -> Tensor:
    """Which edges, in their order, join two pieces (Kruskal)."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    joins = torch.zeros(len(heads), dtype=torch.bool)
    missing = n - 1
    for e, (i, j) in enumerate(zip(heads.tolist(), tails.tolist(), strict=True)):
        a, b = root(i), root(j)
        if a != b:
            parent[a] = b
            joins[e] = True
            missing -= 1
            if not missing:
                break
    return joins


def _lune_vertices(rank: Int[Tensor, "n n"], heads: Int[Tensor, " edges"], tails: Int[Tensor, " edges"]) -> Int[Tensor, " edges"]:
    out = torch.empty(len(heads), dtype=torch.int32)
    if _has_numba():
        from sae.geometry.topology import persistence_loops

        persistence_loops.lune_vertices(rank.numpy(), heads.numpy(), tails.numpy(), out.numpy())
        return out
    numbers = torch.arange(len(heads), dtype=torch.int32)
    for part in numbers.long().split(4096):
        sides = torch.stack([rank[heads[part]], rank[tails[part]]])
        inside = ((sides >= 0) & (sides < numbers[part][:, None])).all(0)
        out[part] = torch.where(inside.any(1), inside.int().argmax(1), -1).int()
    return out


def _deaths(
    rank: Int[Tensor, "n n"],
    heads: Int[Tensor, " edges"],
    tails: Int[Tensor, " edges"],
    lune: Int[Tensor, " edges"],
    columns: Int[Tensor, " columns"],
) -> Int[Tensor, " columns"]:
    """For each edge of `columns`, the last edge of the triangle that kills its class; -1 for none."""
    deaths = torch.empty(len(columns), dtype=torch.int64)
    if _has_numba():
        from sae.geometry.topology import persistence_loops

        persistence_loops.reduce_columns(rank.numpy(), heads.numpy(), tails.numpy(), lune.numpy(), columns.numpy(), deaths.numpy())
        return deaths
    n = len(rank)
    owners: dict[int, set[int]] = {}
    for c, column in enumerate(columns.tolist()):
        triangles, edges = _coboundary(rank, heads[column], tails[column]), {column}
        deaths[c] = -1
        while triangles:
            pivot = min(triangles)
            edge = pivot // n
            added = owners.get(pivot) or ({edge} if int(lune[edge]) == pivot - edge * n else None)
            if added is None:
                deaths[c], owners[pivot] = edge, edges
                break
            edges = edges ^ added
            for each in added:
                triangles ^= _coboundary(rank, heads[each], tails[each])
    return deaths


def _coboundary(rank: Int[Tensor, "n n"], head: Tensor, tail: Tensor) -> set[int]:
    """The triangles over an edge, as last edge times n plus the vertex opposite to it."""
    n = len(rank)
    sides = torch.stack([rank[head, tail].expand(n), rank[head], rank[tail]]).long()
    whole = ((sides >= 0).all(0)).nonzero()[:, 0]
    opposite = torch.stack([torch.arange(n), tail.expand(n), head.expand(n)])
    last, which = sides[:, whole].max(0)
    return set((last * n + opposite[which, whole]).tolist())
