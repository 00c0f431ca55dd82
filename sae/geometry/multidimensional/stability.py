"""Whether a cluster is there whatever the settings: its best match among the clusters of each other partition.

J(A, B) = |A & B| / |A | B|,      best = max over the clusters B of a partition
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.multidimensional.clusters import AtomClusters
from sae.geometry.nulls import NullStatistic, compare


def best_jaccard(members: Int[Tensor, " n_members"], clusters: AtomClusters) -> float:
    """The largest Jaccard index of the set `members` with a cluster of the partition, in (0, 1]; 1 where it is one of them.

    Raises ConfigError for no members, an atom named twice, or one outside 0..n_atoms-1.
    """
    _check_members(members, clusters, where="best_jaccard")
    return _best(members[None], clusters)[0].item()


def stability(members: Int[Tensor, " n_members"], partitions: Sequence[AtomClusters]) -> Float[Tensor, " n_partitions"]:
    """`best_jaccard` with each partition (of `graph_sweep`, of other seeds, ...), float64. Errors as `best_jaccard`."""
    return torch.tensor([best_jaccard(members, each) for each in partitions], dtype=torch.float64)


def compare_best_jaccard(
    members: Int[Tensor, " n_members"], clusters: AtomClusters, *, n_null: int, generator: torch.Generator
) -> NullStatistic:
    """`best_jaccard` beside that of random sets of as many atoms. Small sets match singletons well: a pair and one of its two have 1/2.

    Errors as `best_jaccard`, and for n_null < 2.
    """
    _check_members(members, clusters, where="compare_best_jaccard")
    n_atoms = len(clusters.labels)
    sets = [torch.randperm(n_atoms, generator=generator, device=generator.device)[: len(members)] for _ in range(max(n_null, 1))]
    draws = _best(torch.stack(sets).to(clusters.labels.device), clusters)
    return compare(_best(members[None], clusters)[0].item(), draws[:n_null])


def _check_members(members: Int[Tensor, " n_members"], clusters: AtomClusters, *, where: str) -> None:
    n_atoms = len(clusters.labels)
    if len(members) < 1 or len(members.unique()) < len(members) or members.min() < 0 or members.max() >= n_atoms:
        raise ConfigError(f"members must name atoms of 0..{n_atoms - 1}, each once and at least one, got {members.tolist()[:10]} ({where})")


def _best(sets: Int[Tensor, "n_sets n_members"], clusters: AtomClusters) -> Float[Tensor, " n_sets"]:
    labels = clusters.labels[sets].sort(dim=1).values
    shared = (labels[:, :, None] == labels[:, None, :]).sum(2)  # for each member, how many members share its cluster
    union = sets.shape[1] + clusters.sizes[labels] - shared
    return (shared.double() / union).amax(1)
