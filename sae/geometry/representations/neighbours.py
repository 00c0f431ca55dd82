"""Who is near whom: overlap of nearest neighbours in two representations of the same stimuli.

    mutual k-NN   m = 1/n sum_i |N_x(i) & N_y(i)| / k                  Huh, Cheung, Wang & Isola 2024, arXiv 2405.07987 (k = 10)
    cycle k-NN    c = 1/n #{i : i in N_x(j) for some j in N_y(i)}      the same authors' code; not symmetric
    labels        o = 1/n sum_i #{j in N_x(i) : label j = label i} / k  Doimo, Glielmo, Ansuini & Laio 2020, arXiv 2007.03506

with N_x(i) the k nearest stimuli of i in x, i itself excluded. The mean of m over permutations of the stimuli is exactly k / (n - 1), whatever
x and y are; that of c is 1/n sum_i [1 - C(n-1-r_i, k) / C(n-1, k)], r_i the number of stimuli that count i among their neighbours in x.

The neighbours cost n^2 d, in blocks of rows; everything after them n k log k. Among stimuli at exactly the same distance the choice is arbitrary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.representations.stimuli import RepresentationMeasure, require_same_stimuli, stimulus_orders
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks, unit_rows

Metric = Literal["cosine", "inner", "euclidean"]


def nearest_neighbours(
    x: Float[Tensor, "n d"], *, k: int, metric: Metric = "cosine", block_elements: int = BLOCK_ELEMENTS
) -> Int[Tensor, "n k"]:
    """Row numbers of the `k` nearest other rows of each row, nearest first; largest cosine or inner product, or smallest distance.

    Raises ConfigError for k outside 1..n-1, another metric, NaN or Inf, and a zero row under "cosine".
    """
    where = "nearest_neighbours"
    if metric == "cosine":
        rows = unit_rows(x, minimum=2, argument="a representation", where=where)
    elif metric in ("inner", "euclidean"):
        require_points(x, minimum=2, argument="a representation", where=where)
        rows = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        rows = rows - rows.mean(dim=0) if metric == "euclidean" else rows
    else:
        raise ConfigError(f"metric must be 'cosine', 'inner' or 'euclidean', got {metric!r} ({where})")
    n = len(rows)
    if not 1 <= k <= n - 1:
        raise ConfigError(f"k must be in 1..{n - 1} for {n} stimuli, got {k}; take fewer neighbours or more stimuli ({where})")
    penalty = rows.square().sum(dim=1) / 2 if metric == "euclidean" else None
    ids = torch.empty(n, k, dtype=torch.int64, device=rows.device)
    for block in row_blocks(n, n, block_elements, where=where):
        closeness = rows[block] @ rows.T
        if penalty is not None:
            closeness -= penalty  # x_i.x_j - ||x_j||^2 / 2 falls with the distance to x_i
        closeness.diagonal(offset=block.start).fill_(-torch.inf)
        ids[block] = closeness.topk(k, dim=1).indices
    return ids


@dataclass(frozen=True, eq=False)
class NeighbourIds:
    """Neighbours of one representation's stimuli."""

    ids: Int[Tensor, "n k"]
    """Row numbers, ascending within a row."""


@dataclass(frozen=True)
class MutualNeighbours(RepresentationMeasure):
    """Mean fraction of shared neighbours, in [0, 1]; chance is exactly k / (n - 1).

    Cosine: invariant to rotation and scale. Euclidean: to translation, too.
    """

    k: int = 10
    """Neighbours of each stimulus."""
    metric: Metric = "cosine"
    """What near means: "cosine", "inner" (product) or "euclidean"."""
    block_elements: int = BLOCK_ELEMENTS
    """Largest number of products held at once."""

    def prepare(self, x: Float[Tensor, "n d"]) -> NeighbourIds:
        """Sorted neighbours."""
        return NeighbourIds(nearest_neighbours(x, k=self.k, metric=self.metric, block_elements=self.block_elements).sort(dim=1).values)

    def score(self, first: NeighbourIds, second: NeighbourIds, order: Int[Tensor, " n"] | None = None) -> float:
        """Mean overlap, the stimuli of `second` taken in `order`."""
        return float(shared(first.ids, reordered(second.ids, second.ids, order)[0])[0].double().mean())


@dataclass(frozen=True)
class CycleNeighbours(RepresentationMeasure):
    """Fraction of stimuli that are a neighbour in x of one of their own neighbours in y. Not symmetric."""

    k: int = 10
    """Neighbours of each stimulus."""
    metric: Metric = "cosine"
    """As for `MutualNeighbours`."""
    block_elements: int = BLOCK_ELEMENTS
    """Largest number of products held at once."""
    symmetric = False

    def prepare(self, x: Float[Tensor, "n d"]) -> NeighbourIds:
        """Sorted neighbours."""
        return MutualNeighbours(k=self.k, metric=self.metric, block_elements=self.block_elements).prepare(x)

    def score(self, first: NeighbourIds, second: NeighbourIds, order: Int[Tensor, " n"] | None = None) -> float:
        """Fraction that come back, the stimuli of `second` taken in `order`."""
        n, found = len(first.ids), 0
        there = reordered(second.ids, second.ids, order)[0]
        for block in row_blocks(n, self.k**2, self.block_elements, where="CycleNeighbours"):
            back = first.ids[there[block]].flatten(1)
            found += int((back == torch.arange(n, device=back.device)[block, None]).any(dim=1).sum())
        return found / n


def mutual_neighbours(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, k: int = 10, metric: Metric = "cosine") -> float:
    """Mean fraction of the k nearest neighbours that x and y share; k / (n - 1) by chance. Errors as `nearest_neighbours`.

    For Platonic scores pass each layer through `clamp_outliers`, and take the largest over layers with `compare_layers`.
    """
    return MutualNeighbours(k=k, metric=metric)(x, y)


def cycle_neighbours(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, k: int = 10, metric: Metric = "cosine") -> float:
    """Fraction of stimuli i with i among the x-neighbours of some y-neighbour of i. Errors as `nearest_neighbours`."""
    return CycleNeighbours(k=k, metric=metric)(x, y)


def neighbour_overlaps(
    x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, k: int = 10, metric: Metric = "euclidean"
) -> Float[Tensor, " n"]:
    """For each stimulus, the fraction of its k neighbours that x and y share: `mutual_neighbours` before the mean; float64."""
    require_same_stimuli(x, y, where="neighbour_overlaps")
    measure = MutualNeighbours(k=k, metric=metric)
    return shared(measure.prepare(x).ids, measure.prepare(y).ids)[0].double().mean(dim=1)


def label_overlap(x: Float[Tensor, "n d"], labels: Int[Tensor, " m"], *, k: int = 10, metric: Metric = "euclidean") -> float:
    """Mean fraction of the k neighbours that carry the stimulus's own label. Errors as `nearest_neighbours`, and unless n labels."""
    return float(_same_label(_label_neighbours(x, labels, k, metric), labels))


def compare_label_overlap(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " m"],
    *,
    k: int = 10,
    metric: Metric = "euclidean",
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """`label_overlap` with what shuffled labels give; their mean is sum_c n_c (n_c - 1) / (n (n - 1)) for classes of n_c stimuli."""
    ids = _label_neighbours(x, labels, k, metric)
    orders = stimulus_orders(len(x), n_null, generator=generator)
    draws = [_same_label(ids, labels[order.to(labels.device)]) for order in orders]
    return compare(_same_label(ids, labels), torch.tensor(draws, dtype=torch.float64))


def mutual_neighbours_mean(n: int, k: int) -> float:
    """k / (n - 1): the exact mean of the mutual k-NN overlap over permutations of n stimuli."""
    if not 1 <= k <= n - 1:
        raise ConfigError(f"k must be in 1..n-1={n - 1}, got {k} (mutual_neighbours_mean)")
    return k / (n - 1)


def cycle_neighbours_mean(x: Float[Tensor, "n d"], *, k: int = 10, metric: Metric = "cosine") -> float:
    """The exact mean of the cycle k-NN score of x with any y over permutations of the stimuli (equation above). Depends on x alone."""
    n = len(x)
    received = nearest_neighbours(x, k=k, metric=metric).flatten().bincount(minlength=n).double()
    steps = torch.arange(k, dtype=torch.float64, device=received.device)
    # C(n-1-r, k) / C(n-1, k) as a product over the k draws, 0 where fewer than k are left.
    missed = ((n - 1 - received[:, None] - steps).clamp(min=0) / (n - 1 - steps)).prod(dim=1)
    return float((1 - missed).mean())


def clamp_outliers(x: Float[Tensor, "n d"], *, quantile: float = 0.95) -> Float[Tensor, "n d"]:
    """x with entries clamped to +-c, c the mean over stimuli of the `quantile` of |x_i| (Huh et al. 2024): massive activations lose their grip.

    Raises ConfigError unless 0 < quantile <= 1.
    """
    if not 0 < quantile <= 1:
        raise ConfigError(f"quantile must be in (0, 1], got {quantile} (clamp_outliers)")
    require_points(x, minimum=1, argument="a representation", where="clamp_outliers")
    rows = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    bound = float(rows.abs().quantile(quantile, dim=1).mean())
    return rows.clamp(-bound, bound)


def shared(first: Int[Tensor, "n k"], second: Int[Tensor, "n k"]) -> tuple[Tensor, Tensor]:
    """(hits, places) [n, k]: whether each entry of `second` is in the same row of `first`, and where. Rows ascend."""
    places = torch.searchsorted(first, second.contiguous()).clamp_(max=first.shape[1] - 1)
    return first.gather(1, places) == second, places


def reordered(ids: Int[Tensor, "n k"], values: Shaped[Tensor, "n k"], order: Int[Tensor, " n"] | None) -> tuple[Tensor, Tensor]:
    """Neighbours (ascending) and a value of each pair after the stimuli were taken in `order`: row j is then the old row order[j]."""
    if order is None:
        return ids, values
    new = torch.empty_like(order)
    new[order] = torch.arange(len(order), device=order.device)
    names, places = new[ids[order]].sort(dim=1)
    return names, values[order].gather(1, places)


def _label_neighbours(x: Tensor, labels: Tensor, k: int, metric: Metric) -> Tensor:
    if len(labels) != len(x):
        raise ConfigError(f"labels must hold one label per stimulus, got {len(labels)} for {len(x)} (label_overlap)")
    return nearest_neighbours(x, k=k, metric=metric)


def _same_label(ids: Tensor, labels: Tensor) -> float:
    return float((labels[ids] == labels[:, None]).double().mean())
