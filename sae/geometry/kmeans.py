"""Spherical k-means: directions in clusters around unit centres, fast enough for a whole dictionary.

    maximise (1/n) sum_i <x_i, c_{l(i)}>,    |x_i| = |c_j| = 1:     l(i) = argmax_j <x_i, c_j>,   c_j = sum_{l(i) = j} x_i / |...|

Dhillon & Modha 2001, "Concept decompositions for large sparse text data using clustering". Both steps raise the objective, which therefore
converges. Centres start as k-means++ does, with 1 - cos as the squared distance (Arthur & Vassilvitskii 2007), among a sample of the rows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks, unit_rows

SAMPLE_PER_CLUSTER = 4
"""Rows per cluster among which the first centres are drawn."""


@dataclass(frozen=True, eq=False)
class SphericalClusters:
    """A partition of directions."""

    labels: Int[Tensor, " n"]
    """Cluster of each row, 0..n_clusters-1; none is empty."""
    centres: Float[Tensor, "n_clusters d"]
    """Unit centres."""
    cosines: Float[Tensor, " n"]
    """Cosine of each row with its centre."""
    objectives: Float[Tensor, " n_iterations"]
    """Mean of those cosines after each assignment (float64); not falling, except where an empty cluster was given a new centre."""


def spherical_kmeans(
    points: Float[Tensor, "n d"],
    *,
    n_clusters: int,
    generator: torch.Generator,
    n_iterations: int = 20,
    tolerance: float = 1e-4,
    block_elements: int = BLOCK_ELEMENTS,
) -> SphericalClusters:
    """Clusters of the directions of `points`; stops when the mean cosine rises by less than `tolerance`, or after `n_iterations`.

    A cluster that loses its last row is moved to the row that is furthest from its own centre. Time n_iterations n n_clusters d, memory a few
    times `block_elements`. The same generator gives the same clusters. Raises ConfigError for zero or non-finite rows, n_clusters outside
    1..n and n_iterations < 1.
    """
    rows = unit_rows(points, minimum=1, argument="points", where="spherical_kmeans")
    if not 1 <= n_clusters <= len(rows):
        raise ConfigError(f"n_clusters must be in 1..n={len(rows)}, got {n_clusters} (spherical_kmeans)")
    if n_iterations < 1:
        raise ConfigError(f"n_iterations must be at least 1, got {n_iterations} (spherical_kmeans)")
    centres, objectives = _first_centres(rows, n_clusters, generator), []
    for _ in range(n_iterations):
        cosines, labels = _assign(rows, centres, block_elements)
        labels = _fill_empty(labels, cosines, n_clusters)
        objectives.append(cosines.double().mean().item())
        centres = _means(rows, labels, centres)
        if len(objectives) > 1 and abs(objectives[-1] - objectives[-2]) < tolerance:
            break
    return SphericalClusters(labels, centres, (rows * centres[labels]).sum(dim=1), torch.tensor(objectives, dtype=torch.float64))


def _first_centres(rows: Float[Tensor, "n d"], n_clusters: int, generator: torch.Generator) -> Float[Tensor, "n_clusters d"]:
    n_sampled = min(len(rows), SAMPLE_PER_CLUSTER * n_clusters)
    order = torch.randperm(len(rows), generator=generator, device=generator.device).to(rows.device)
    sample = rows[order[:n_sampled]]
    distance = sample.new_full((n_sampled,), 2.0)
    chosen = torch.empty(n_clusters, dtype=torch.int64)
    draws = torch.rand(n_clusters, generator=generator, dtype=torch.float64, device=generator.device).tolist()
    for number in range(n_clusters):
        total = distance.double().cumsum(dim=0)
        place = int(torch.searchsorted(total, draws[number] * total[-1], right=True).clamp(max=n_sampled - 1))
        chosen[number] = place
        distance = torch.minimum(distance, (1 - sample @ sample[place]).clamp(min=0))
        distance[place] = 0
        if not bool((distance > 0).any()):  # as many different rows as there are have been taken
            distance = torch.ones_like(distance)
    return sample[chosen]


def _assign(
    rows: Float[Tensor, "n d"], centres: Float[Tensor, "n_clusters d"], block_elements: int
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    cosines, labels = rows.new_empty(len(rows)), torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for block in row_blocks(len(rows), len(centres), block_elements, where="spherical_kmeans"):
        cosines[block], labels[block] = (rows[block] @ centres.T).max(dim=1)
    return cosines, labels


def _fill_empty(labels: Int[Tensor, " n"], cosines: Float[Tensor, " n"], n_clusters: int) -> Int[Tensor, " n"]:
    """Every empty cluster takes the row furthest from its centre among the rows of clusters that can spare one."""
    sizes = labels.bincount(minlength=n_clusters)
    empty = (sizes == 0).nonzero().flatten().tolist()
    if not empty:
        return labels
    labels, places = labels.clone(), iter(cosines.argsort().tolist())
    for cluster in empty:
        place = next(p for p in places if sizes[labels[p]] > 1)
        sizes[labels[place]] -= 1
        labels[place] = cluster
        sizes[cluster] = 1
    return labels


def _means(rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"], before: Float[Tensor, "n_clusters d"]) -> Float[Tensor, "n_clusters d"]:
    """Unit mean directions; a cluster whose rows cancel keeps its centre."""
    sums = torch.zeros_like(before).index_add_(0, labels, rows)
    norms = sums.norm(dim=1, keepdim=True)
    return torch.where(norms > 1e-6, sums / norms.clamp(min=1e-6), before)
