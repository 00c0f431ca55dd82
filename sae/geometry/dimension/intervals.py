"""Intervals for statistics of nearest neighbours, from random halves of the points without replacement.

    interval = value - quantiles of (half - mean of halves) sqrt(m / (N - m)),    m = floor(N / 2)          Shao & Wu 1989, delete-d jackknife

The bootstrap of Efron draws with replacement: a share 1 - 1/e of the points then has a twin at distance 0, every ratio of distances is about
those twins, and resampling no longer imitates sampling (Bickel, Goetze & van Zwet 1997 on m out of n without replacement; for matching on
nearest neighbours Abadie & Imbens 2008 prove that it fails). A half has no twins, only a lower density: its bias is another one, so halves
are centred on their own mean, and that mean is reported (`at_half`). Neighbours within a half come from the neighbours found once among all
points.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.dimension.neighbours import NearestNeighbours


class Estimate(NamedTuple):
    """One estimator's dimension, with its interval and its value at half the number of points."""

    value: float
    """Dimension from all distinct points."""
    low: float
    """Lower end of the interval; sampling error only, no allowance for the bias of the estimator."""
    high: float
    """Upper end of the interval."""
    at_half: float
    """Mean over random halves of the points. Well below `value`: the estimate still grows with the number of points."""


@dataclass(frozen=True, eq=False)
class LogDistances:
    """What the estimators need of a cloud: logarithms of the distances to neighbours of a few orders."""

    at: dict[int, Float[Tensor, " m"]]
    """ln r_j of every point, by order j."""
    sum_below: Float[Tensor, " m"]
    """ln r_1 + ... + ln r_(k-1) of every point."""
    k: int
    """The order that the sum stops before; one of `at`."""


def log_distances(neighbours: NearestNeighbours, orders: tuple[int, ...], *, k: int | None = None) -> LogDistances:
    """ln r_j of all points for the orders j, and the sum below order k (the largest, unless given).

    Raises ConfigError for an order outside those of `neighbours`, and for k not among the orders.
    """
    orders, k = _require_orders(neighbours, orders, k)
    logs = neighbours.distances[:, : orders[-1]].log()
    return LogDistances(at={j: logs[:, j - 1].contiguous() for j in orders}, sum_below=logs[:, : k - 1].sum(dim=1), k=k)


def _require_orders(neighbours: NearestNeighbours, orders: tuple[int, ...], k: int | None) -> tuple[tuple[int, ...], int]:
    found = neighbours.distances.shape[1]
    if not orders or min(orders) < 1 or max(orders) > found or (k is not None and k not in orders):
        got = f"{orders} and k={k}"
        raise ConfigError(
            f"orders must be in 1..{found}, the neighbours that were found, and hold k, got {got}; ask for more (log_distances)"
        )
    return tuple(sorted(set(orders))), max(orders) if k is None else k


def log_distances_within(
    kept: Bool[Tensor, " n"],
    neighbours: NearestNeighbours,
    orders: tuple[int, ...],
    *,
    k: int | None = None,
    logs: Float[Tensor, "n found"] | None = None,
) -> LogDistances:
    """ln r_j of the kept points among the kept points. Points with too few kept neighbours among those found are left out.

    With K neighbours found and a share s kept, their number is binomial around s K: keep `orders` below s K - 6 sqrt(s (1 - s) K). `logs` are the
    logarithms of the distances, where they are known already. Raises ConfigError as `log_distances`.
    """
    orders, k = _require_orders(neighbours, orders, k)
    logs = neighbours.distances.log() if logs is None else logs
    if importlib.util.find_spec("numba") is not None and kept.device.type == "cpu":
        from sae.geometry.dimension.subset_loops import walk

        rows = kept.nonzero().flatten()
        found = torch.empty(len(orders) + 1, len(rows), dtype=torch.float64)
        walk(kept.numpy(), rows.numpy(), logs.numpy(), neighbours.ids.numpy(), torch.tensor(orders).numpy(), k, found.numpy())
        enough = found[-1].isfinite()
        found = found if enough.all() else found[:, enough]
    else:
        found = _walk(kept, logs, neighbours.ids, orders, k)
    return LogDistances(at=dict(zip(orders, found[:-1], strict=True)), sum_below=found[-1], k=k)


def _walk(kept: Tensor, logs: Tensor, ids: Tensor, orders: tuple[int, ...], k: int) -> Float[Tensor, "orders_and_sum m"]:
    inside = kept[ids[kept]]
    rank = inside.long().cumsum(dim=1)
    enough = rank[:, -1] >= orders[-1]
    inside, rank, own = inside[enough], rank[enough], logs[kept][enough]
    rows = [own.gather(1, (rank == j).long().argmax(dim=1, keepdim=True)).flatten() for j in orders]
    return torch.stack([*rows, (own * (inside & (rank < k))).sum(dim=1)])


def random_part(n: int, size: int, generator: torch.Generator, device: torch.device) -> Bool[Tensor, " n"]:
    """A mask of `size` of n points, drawn without replacement."""
    kept = torch.zeros(n, dtype=torch.bool, device=device)
    kept[torch.randperm(n, generator=generator, device=generator.device)[:size].to(device)] = True
    return kept


def with_intervals(
    neighbours: NearestNeighbours,
    orders: tuple[int, ...],
    estimators: Callable[[LogDistances], Float[Tensor, " estimators"]],
    *,
    k: int | None = None,
    generator: torch.Generator,
    n_resamples: int,
    level: float,
) -> list[Estimate]:
    """Every component of `estimators`, a function of log distances of `orders` (and their sum below k), with its interval of coverage `level`."""
    require_level(level, n_resamples, where="with_intervals")
    n, logs = len(neighbours.points), neighbours.distances.log()
    whole = estimators(log_distances(neighbours, orders, k=k))
    parts = (random_part(n, n // 2, generator, logs.device) for _ in range(n_resamples))
    halves = torch.stack([estimators(log_distances_within(kept, neighbours, orders, k=k, logs=logs)) for kept in parts])
    return intervals(whole, halves, shrink=sqrt((n // 2) / (n - n // 2)), level=level)


def require_level(level: float, n_resamples: int, *, where: str) -> None:
    """Raises ConfigError unless `level` is inside (0, 1) and `n_resamples` at least 2."""
    if not 0 < level < 1 or n_resamples < 2:
        raise ConfigError(f"level must be inside (0, 1) and n_resamples at least 2, got {level} and {n_resamples} ({where})")


def intervals(
    whole: Float[Tensor, " estimators"], halves: Float[Tensor, "n_resamples estimators"], *, shrink: float, level: float
) -> list[Estimate]:
    """value - quantiles of the centred and rescaled deviations of the halves; dimensions, so never below 0."""
    centre = halves.mean(dim=0)
    deviations = (halves - centre) * shrink
    tails = halves.new_tensor([(1 + level) / 2, (1 - level) / 2])
    ends = whole - deviations.quantile(tails, dim=0)
    columns = torch.stack([whole, ends[0].clamp(min=0), ends[1], centre], dim=1)
    return [Estimate(*row) for row in columns.tolist()]
