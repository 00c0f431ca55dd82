"""Is a class convex: do the shortest paths between its members stay inside it?

    score of class c = mean over pairs i != j of c with a path of the share of the points strictly between i and j, on the shortest path in the
    k-nearest-neighbour graph, that belong to c; 1 where i and j are neighbours and nothing lies between them

Tetkova, Brusch, Scheidt, Mager, Aagaard, Foldager, Alstrom & Hansen 2023, arXiv 2305.17154 (graph convexity). The score of shuffled labels is
about 1 - (1 - n_c / n) P(something lies between), not 0: it is reported with that null. Cost: one Dijkstra per
point, n k log n each, once for all labellings; then n^2 x path length per labelling, in blocks of sources.
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
    return _convexities(neighbour_graph(x, k=k), labels[None], block_elements)[0]


def compare_convexity(
    x: Float[Tensor, "n d"], labels: Int[Tensor, " m"], *, k: int = 10, n_null: int, generator: torch.Generator
) -> NullStatistic:
    """The mean score with what shuffled labels give on the same graph. Errors as `convexity`."""
    _require_labels(x, labels)
    orders = stimulus_orders(len(x), n_null, generator=generator)
    shuffled = [labels[order.to(labels.device)] for order in orders]
    found = _convexities(neighbour_graph(x, k=k), torch.stack([labels, *shuffled]), BLOCK_ELEMENTS)
    return compare(found[0].mean, torch.tensor([each.mean for each in found[1:]], dtype=torch.float64))


def _require_labels(x: Tensor, labels: Tensor) -> None:
    require_points(x, minimum=3, argument="x", where="convexity")
    if len(labels) != len(x):
        raise ConfigError(f"labels must hold one label per row, got {len(labels)} for {len(x)} (convexity)")
    if (labels.unique(return_counts=True)[1] < 2).all():
        raise ConfigError("labels must have a class with at least two members, got none (convexity)")


def _convexities(graph: Any, labellings: Tensor, block_elements: int) -> list[Convexity]:
    """The convexity of each row of `labellings` on one graph: the paths are found once."""
    from scipy.sparse.csgraph import dijkstra

    n = graph.shape[0]
    classes, targets = torch.unique(labellings.cpu(), return_inverse=True)
    totals = torch.zeros(len(labellings), len(classes), dtype=torch.float64)
    connected, members = torch.zeros_like(totals), torch.stack([each.bincount(minlength=len(classes)) for each in targets])
    for block in row_blocks(n, 64 * n, block_elements, where="convexity"):
        sources = torch.arange(n)[block]
        _, before = dijkstra(graph, directed=False, indices=sources.numpy(), return_predecessors=True)
        paths = _interiors(torch.from_numpy(before).long(), sources)
        for row, labels in enumerate(targets):
            own = labels[sources][:, None]
            pairs = ((labels == own) & paths.connected).nonzero(as_tuple=True)
            inside = sum(((labels[at[pairs]] == own[pairs[0], 0]) & step[pairs]).double() for at, step in paths.steps)
            between = paths.between[pairs].double()
            shares = torch.where(between > 0, inside / between.clamp(min=1), 1.0)
            totals[row].index_add_(0, own[pairs[0], 0], shares)
            connected[row].index_add_(0, own[pairs[0], 0], torch.ones_like(shares))
    return [_summary(classes, *each) for each in zip(totals, connected, members, strict=True)]


@dataclass(frozen=True, eq=False)
class _Paths:
    """Shortest paths from a block of sources to every point, walked back from their ends."""

    steps: list[tuple[Tensor, Tensor]]
    """(point reached, whether it lies strictly between), [sources, n] each, after 1, 2, ... steps."""
    between: Tensor
    """Number of points strictly between."""
    connected: Tensor
    """Whether there is a path, the one of length 0 apart."""


def _interiors(before: Tensor, sources: Tensor) -> _Paths:
    connected = before >= 0  # negative: the source itself, or no path
    current, between, steps = before.clamp(min=0), torch.zeros_like(before), []
    while True:
        step = connected & (current != sources[:, None])
        if not step.any():
            # One entry at least, so that a sum over steps is a tensor.
            return _Paths(steps=steps or [(current, step)], between=between, connected=connected)
        steps.append((current, step))
        between = between + step
        current = torch.where(step, before.gather(1, current).clamp(min=0), current)


def _summary(classes: Tensor, totals: Tensor, connected: Tensor, members: Tensor) -> Convexity:
    counted = members >= 2
    scores = torch.where(connected > 0, totals / connected.clamp(min=1), float("nan"))[counted]
    if scores.isnan().all():
        raise ConfigError("no two members of a class are connected in the neighbour graph: raise k (convexity)")
    pairs = (members * (members - 1)).sum()
    return Convexity(
        classes=classes[counted],
        scores=scores,
        mean=float(scores[~scores.isnan()].mean()),
        disconnected=1 - float(connected.sum() / pairs),
    )
