"""Is a class convex: do the shortest paths between its members stay inside it?

    score of class c = mean over pairs i != j of c with a path of the share of the points strictly between i and j, on the shortest path in the
    k-nearest-neighbour graph, that belong to c; 1 where i and j are neighbours and nothing lies between them

Tetkova, Brusch, Scheidt, Mager, Aagaard, Foldager, Alstrom & Hansen 2023, arXiv 2305.17154 (graph convexity). The score of shuffled labels is
about 1 - (1 - n_c / n) P(something lies between), not 0: it is reported with that null. Cost: one Dijkstra per source, n k log n each;
memory sources x n in blocks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.representations.stimuli import stimulus_orders
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks
from sae.geometry.topology.geodesics import neighbour_graph


@dataclass(frozen=True, eq=False)
class Convexity:
    """Graph convexity of the classes of a labelled cloud."""

    classes: Int[Tensor, " classes"]
    """Labels of the classes with at least two members, ascending."""
    scores: Float[Tensor, " classes"]
    """Score of each, in [0, 1]; NaN where no pair of the class has a path. float64."""
    mean: float
    """Mean of the scores over classes, NaN ones left out."""
    disconnected: float
    """Share of the pairs within classes that have no path; they do not count."""


def convexity(x: Float[Tensor, "n d"], labels: Int[Tensor, " m"], *, k: int = 10, block_elements: int = BLOCK_ELEMENTS) -> Convexity:
    """Graph convexity of each class on the Euclidean k-nearest-neighbour graph of x.

    Raises ConfigError for k outside 1..n-1, labels that are not one per row, NaN or Inf, no class with two members, and where no pair
    within a class has a path.
    """
    _require_labels(x, labels)
    return _convexity(neighbour_graph(x, k=k), labels, block_elements)


def compare_convexity(
    x: Float[Tensor, "n d"], labels: Int[Tensor, " m"], *, k: int = 10, n_null: int, generator: torch.Generator
) -> NullStatistic:
    """The mean score with what shuffled labels give on the same graph. Errors as `convexity`."""
    _require_labels(x, labels)
    graph = neighbour_graph(x, k=k)
    orders = stimulus_orders(len(x), n_null, generator=generator)
    draws = [_convexity(graph, labels[order.to(labels.device)], BLOCK_ELEMENTS).mean for order in orders]
    return compare(_convexity(graph, labels, BLOCK_ELEMENTS).mean, torch.tensor(draws, dtype=torch.float64))


def _require_labels(x: Tensor, labels: Tensor) -> None:
    require_points(x, minimum=3, argument="x", where="convexity")
    if len(labels) != len(x):
        raise ConfigError(f"labels must hold one label per row, got {len(labels)} for {len(x)} (convexity)")
    if (labels.unique(return_counts=True)[1] < 2).all():
        raise ConfigError("labels must have a class with at least two members, got none (convexity)")


def _convexity(graph: Any, labels: Tensor, block_elements: int) -> Convexity:
    classes, counts = labels.unique(return_counts=True)
    classes, counts = classes[counts >= 2], counts[counts >= 2]
    scores, missing = [], 0
    for label in classes:
        members = (labels == label).nonzero().flatten().cpu()
        total, n_pairs = 0.0, 0
        for block in row_blocks(len(members), graph.shape[0], block_elements, where="convexity"):
            shares, connected = _shares(graph, members[block], members)
            total, n_pairs = total + shares, n_pairs + connected
        missing += len(members) * (len(members) - 1) - n_pairs
        scores.append(total / n_pairs if n_pairs else float("nan"))
    found = torch.tensor(scores, dtype=torch.float64)
    if found.isnan().all():
        raise ConfigError("no two members of a class are connected in the neighbour graph: raise k (convexity)")
    return Convexity(
        classes=classes.cpu(),
        scores=found,
        mean=float(found[~found.isnan()].mean()),
        disconnected=missing / int((counts * (counts - 1)).sum()),
    )


def _shares(graph: Any, sources: Tensor, members: Tensor) -> tuple[float, int]:
    """(sum over pairs (source, other member) of the share inside, number of pairs with a path)."""
    from scipy.sparse.csgraph import dijkstra

    _, found = dijkstra(graph, directed=False, indices=sources.numpy(), return_predecessors=True)
    before = torch.from_numpy(found).long()  # negative: the source itself, or no path
    inside = torch.zeros(graph.shape[0], dtype=torch.bool)
    inside[members] = True
    current = before.gather(1, members.expand(len(sources), -1))
    connected = current >= 0
    between, within = torch.zeros_like(current), torch.zeros_like(current)
    while True:
        step = connected & (current != sources[:, None])
        if not step.any():
            break
        between += step
        within += step & inside[current.clamp(min=0)]
        current = torch.where(step, before.gather(1, current.clamp(min=0)), current)
    shares = torch.where(between > 0, within.double() / between.clamp(min=1), 1.0)
    return float(shares[connected].sum()), int(connected.sum())
