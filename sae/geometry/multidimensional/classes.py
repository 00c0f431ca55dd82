"""Do ordered classes (days, months) lie on a circle? Class means, a map to the circle tested on classes it has not seen, orders exchanged.

    held out    a ridge map from class means to (cos, sin) 2 pi k / m, fitted without class c, predicts the angle of c;
                mean over c of cos(predicted - true)                                         1 for a circle, about 0 for no order
    circle      correlation over pairs of the distance of two class means with |sin(pi (j - k) / m)|, the chord
    line        the same with |j - k|: an order that does not close
    plane       resultant length R of the angles in the plane of the two main components of the means (`topology.circles`)

Each goes with the same number for other orders of the classes: the search, the plane and the bias of leaving one out (which is negative)
are in both. Engels et al. 2024 (arXiv 2405.14860), section 5, fit their probe on all classes; held-out classes are what tells an ordered
circle from classes that are merely far apart, which any d_in > m fits exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import require_points
from sae.geometry.topology.circles import class_orders

STATISTICS = ("held out", "circle", "line", "plane")
"""The columns of `CircleOfClasses.null_draws`."""


@dataclass(frozen=True, eq=False)
class CircleOfClasses:
    """How far the means of m ordered classes lie on a circle in their order; p-values are those of `p_greater`."""

    held_out: NullStatistic
    """Mean cosine between the predicted and the true angle of each class, by maps that did not see it; -1..1."""
    circle: NullStatistic
    """Correlation of the distances of class means with the chords of the circle, -1..1."""
    line: NullStatistic
    """Correlation of the same distances with the distance along a line, -1..1; above `circle` where the order does not close."""
    plane: NullStatistic
    """R in the plane of the two main components of the means, 0..1."""
    closure: float
    """Distance of the last class from the first, over the mean distance of neighbours in the order: 1 for a circle, m - 1 for a line."""
    plane_share: float
    """Share of the variance of the class means in that plane, 0..1."""
    predicted_angles: Float[Tensor, " m"]
    """Held-out angle of each class, radians in (-pi, pi]."""
    null_draws: Float[Tensor, "n_null 4"]
    """The four statistics for each exchanged order, in the order of `STATISTICS`."""


def circle_of_classes(
    points: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, n_classes: int, n_null: int, seed: int, ridge: float = 1.0
) -> CircleOfClasses:
    """The four statistics of points of classes 0, ..., n_classes - 1, in the order they should have around the circle.

    `ridge` is the penalty of the map in units of the mean square length of the centred class means. The exchanged orders depend on
    `seed`, `n_null` and `n_classes` alone, so results of several layers belong together: see `strongest`. m classes have (m - 1)! / 2 circular
    orders: 360 of 7, so p-values do not go far below 0.003 there. Classes of unequal contexts differ by their contexts too: balance them.

    Raises ConfigError for n_classes < 4, a class without points, labels outside 0..n_classes-1, NaN or Inf, class means that are all equal,
    a ridge that is not positive, and n_null < 2.
    """
    means = class_means(points, labels, n_classes=n_classes)
    if n_classes < 4:
        raise ConfigError(f"n_classes must be at least 4, got {n_classes}: three classes are in order in any order (circle_of_classes)")
    if not ridge > 0:
        raise ConfigError(f"ridge must be above 0, got {ridge} (circle_of_classes)")
    centred = means - means.mean(0)
    if not centred.norm() > 1e-12 * means.norm():
        raise ConfigError("class means must differ, got classes that are all equal (circle_of_classes)")
    identity = torch.arange(n_classes, device=means.device)[None]
    generator = torch.Generator().manual_seed(seed)
    orders = class_orders(n_classes, n_null=n_null, generator=generator).to(means.device)
    smoother = _held_out_smoother(means, ridge)
    left, lengths, _ = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.cat([left * lengths, means.new_zeros(n_classes, 1)], 1)[:, :2]
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    value, draws = (_statistics(each, smoother, distances, plane) for each in (identity, orders))
    predicted = smoother @ _circle(n_classes).to(means)
    following = distances.roll(-1, dims=1).diagonal()
    return CircleOfClasses(
        **{name.replace(" ", "_"): compare(value[0, i].item(), draws[:, i]) for i, name in enumerate(STATISTICS)},
        closure=(following[-1] / following[:-1].mean()).item() if following[:-1].sum() > 0 else math.inf,
        plane_share=(lengths[:2].square().sum() / lengths.square().sum()).item(),
        predicted_angles=torch.atan2(predicted[:, 1], predicted[:, 0]),
        null_draws=draws,
    )


def class_means(points: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, n_classes: int) -> Float[Tensor, "n_classes d"]:
    """The mean of each class, float64. Raises ConfigError for a class without points, labels outside 0..n_classes-1, NaN or Inf."""
    require_points(points, minimum=1, argument="points", where="class_means")
    if n_classes < 1 or labels.min() < 0 or labels.max() >= n_classes:
        raise ConfigError(f"labels must be in 0..n_classes-1={n_classes - 1}, got {labels.min()}..{labels.max()} (class_means)")
    counts = torch.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        raise ConfigError(f"every class must have points, got none of class {int((counts == 0).nonzero()[0])} (class_means)")
    sums = points.new_zeros(n_classes, points.shape[1], dtype=torch.float64)
    return sums.index_add_(0, labels, points.detach().double()) / counts[:, None]


def strongest(results: Sequence[CircleOfClasses], *, statistic: str) -> tuple[int, NullStatistic]:
    """(Which of the results has the largest `statistic`, that value beside the largest over the same results for each exchanged order).

    For a search over layers or sites: the null searches too. Raises ConfigError for no results, results with other seeds, n_null or numbers
    of classes than each other, as far as their shapes tell, and a name that is not in `STATISTICS`.
    """
    if statistic not in STATISTICS:
        raise ConfigError(f"statistic must be one of {STATISTICS}, got {statistic!r} (strongest)")
    if not results or len({(each.null_draws.shape, each.predicted_angles.shape) for each in results}) > 1:
        raise ConfigError("results must hold at least one, all with the same n_null and number of classes (strongest)")
    column = STATISTICS.index(statistic)
    values = torch.tensor([getattr(each, statistic.replace(" ", "_")).value for each in results], dtype=torch.float64)
    draws = torch.stack([each.null_draws[:, column] for each in results]).amax(0)
    best = int(values.argmax())
    return best, compare(values[best].item(), draws)


def _circle(n_classes: int) -> Float[Tensor, "n_classes 2"]:
    angles = torch.arange(n_classes, dtype=torch.float64) * (2 * math.pi / n_classes)
    return torch.stack([angles.cos(), angles.sin()], 1)


def _held_out_smoother(means: Float[Tensor, "m d"], ridge: float) -> Float[Tensor, "m m"]:
    """Row c maps the targets of the classes to the prediction for class c by the ridge map without c; its diagonal is 0."""
    n_classes = len(means)
    smoother = means.new_zeros(n_classes, n_classes)
    for c in range(n_classes):
        seen = [k for k in range(n_classes) if k != c]
        centre = means[seen].mean(0)
        known = means[seen] - centre
        gram = known @ known.T
        penalty = ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        penalised = gram + penalty * torch.eye(n_classes - 1, dtype=gram.dtype, device=gram.device)
        smoother[c, seen] = torch.linalg.solve(penalised, known @ (means[c] - centre))
    return smoother


def _statistics(
    orders: Int[Tensor, "rows m"], smoother: Float[Tensor, "m m"], distances: Float[Tensor, "m m"], plane: Float[Tensor, "m 2"]
) -> Float[Tensor, "rows 4"]:
    """The four statistics with class k at position orders[row, k]."""
    m = orders.shape[1]
    targets = _circle(m).to(smoother)[orders]
    predicted = smoother @ targets
    held_out = torch.nn.functional.cosine_similarity(predicted, targets, dim=2, eps=1e-300).mean(1)
    heads, tails = torch.triu_indices(m, m, offset=1)
    apart = (orders[:, heads] - orders[:, tails]).abs().double()
    chords = (math.pi * apart / m).sin()
    phase = torch.view_as_complex(plane.contiguous())
    phase = phase / phase.abs().clamp_min(1e-300)
    turns = torch.view_as_complex(targets.contiguous())
    resultants = torch.maximum((phase * turns.conj()).mean(1).abs(), (phase * turns).mean(1).abs())
    pairs = distances[heads, tails]
    return torch.stack([held_out, _correlation(chords, pairs), _correlation(apart, pairs), resultants], 1)


def _correlation(rows: Float[Tensor, "rows pairs"], pairs: Float[Tensor, " pairs"]) -> Float[Tensor, " rows"]:
    """Pearson's; 0 where the distances are all equal, as those of orthogonal classes are."""
    centred = pairs - pairs.mean()
    if centred.norm() <= 1e-9 * pairs.norm():
        return rows.new_zeros(len(rows))
    rows = rows - rows.mean(1, keepdim=True)
    return (rows @ centred) / (rows.norm(dim=1) * centred.norm())
