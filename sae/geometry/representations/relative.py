"""Relative representations: each stimulus described by its similarity to a few anchors.

    r(x)_j = cos(x, a_j)                                Moschella et al. 2022, arXiv 2209.15430

Two encoders that differ by a rotation and a scale have the same relative representations of the same anchors (a translation breaks it: centre
first), so what was learned on one works on the other. Other similarities are invariant to other maps; the product space stacks or averages
several (Cannistraci et al. 2023, arXiv 2310.01211).

Anchors are rows, chosen once and used in both spaces ("parallel anchors").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.representations.neighbours import nearest_neighbours, shared
from sae.geometry.representations.stimuli import require_same_stimuli, stimulus_orders
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks, unit_rows

Similarity = Literal["cosine", "euclidean", "manhattan", "chebyshev"]
ORDERS = {"euclidean": 2.0, "manhattan": 1.0, "chebyshev": float("inf")}


def relative_representation(
    x: Float[Tensor, "n d"], anchors: Float[Tensor, "n_anchors w"], *, similarity: Similarity = "cosine"
) -> Float[Tensor, "n n_anchors"]:
    """Similarity of every row to every anchor: cosine, or minus the L2, L1 or L-infinity distance over the mean distance of the anchors.

    Cosine is invariant to rotation and scale, "euclidean" to rotation, translation and scale, the others to translation, scale and a
    permutation or sign change of columns. float32 or wider. Raises ConfigError for different widths, no row or no anchor, NaN or Inf, a zero
    row ("cosine"), and fewer than 2 different anchors (the others).
    """
    where = "relative_representation"
    if similarity != "cosine" and similarity not in ORDERS:
        raise ConfigError(f"similarity must be 'cosine', 'euclidean', 'manhattan' or 'chebyshev', got {similarity!r} ({where})")
    if x.shape[1] != anchors.shape[1]:
        raise ConfigError(
            f"anchors must have the width of x, {x.shape[1]}, got {anchors.shape[1]}; take them from the same space ({where})"
        )
    if similarity == "cosine":
        rows = unit_rows(x, minimum=1, argument="x", where=where)
        return rows @ unit_rows(anchors, minimum=1, argument="anchors", where=where).to(rows.dtype).T
    require_points(x, minimum=1, argument="x", where=where)
    require_points(anchors, minimum=2, argument="anchors", where=where)
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, others, order = x.detach().to(dtype), anchors.detach().to(dtype), ORDERS[similarity]
    scale = torch.cdist(others, others, p=order, compute_mode="donot_use_mm_for_euclid_dist").sum() / (len(others) * (len(others) - 1))
    if scale == 0:
        raise ConfigError(f"anchors must not all be equal, got {len(anchors)} equal rows ({where})")
    return -torch.cdist(rows, others, p=order, compute_mode="donot_use_mm_for_euclid_dist") / scale


def relative_product(
    x: Float[Tensor, "n d"],
    anchors: Float[Tensor, "n_anchors w"],
    *,
    similarities: Sequence[Similarity] = ("cosine", "euclidean"),
    combine: Literal["concatenate", "mean"] = "concatenate",
) -> Float[Tensor, "n width"]:
    """Several relative representations side by side, or averaged after each was scaled to mean 0 and variance 1.

    Raises ConfigError for no similarity or another way to combine, and as `relative_representation`.
    """
    if not similarities or combine not in ("concatenate", "mean"):
        raise ConfigError(
            f"similarities must not be empty and combine be 'concatenate' or 'mean', got {similarities!r}, {combine!r} (relative_product)"
        )
    parts = [relative_representation(x, anchors, similarity=similarity) for similarity in similarities]
    if combine == "concatenate":
        return torch.cat(parts, dim=1)
    return torch.stack([(part - part.mean()) / part.std().clamp(min=torch.finfo(part.dtype).tiny) for part in parts]).mean(dim=0)


def choose_anchors(
    x: Float[Tensor, "n d"], n_anchors: int, *, method: Literal["random", "kmeans", "farthest"] = "random", generator: torch.Generator
) -> Int[Tensor, " n_anchors"]:
    """Row numbers of `n_anchors` different anchors: uniform; the rows nearest to k-means centres; or farthest-point (each next one is the
    row farthest from those chosen, from a random start). Use the same numbers in every space.

    Raises ConfigError unless 1 <= n_anchors <= n, for another method, NaN or Inf, and fewer different rows than anchors ("farthest").
    """
    require_points(x, minimum=1, argument="x", where="choose_anchors")
    if not 1 <= n_anchors <= len(x):
        raise ConfigError(f"n_anchors must be in 1..{len(x)}, got {n_anchors} (choose_anchors)")
    if method == "random":
        return torch.randperm(len(x), generator=generator, device=generator.device)[:n_anchors].to(x.device)
    rows = x.detach().double()
    rows = rows - rows.mean(dim=0)
    if method == "farthest":
        return _farthest(rows, n_anchors, generator)
    if method != "kmeans":
        raise ConfigError(f"method must be 'random', 'kmeans' or 'farthest', got {method!r} (choose_anchors)")
    from sklearn.cluster import KMeans

    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    centres = KMeans(n_anchors, n_init=1, random_state=seed).fit(rows.cpu().numpy()).cluster_centers_
    distances = torch.cdist(torch.from_numpy(centres).to(rows), rows)
    chosen: list[int] = []
    for near in distances.argsort(dim=1).tolist():
        chosen.append(next(row for row in near if row not in chosen))
    return torch.tensor(chosen, device=x.device)


@dataclass(frozen=True)
class RelativeLikeness:
    """How alike two relative representations of the same stimuli and anchors are."""

    cosine: float
    """Mean over stimuli of the cosine of their two relative vectors."""
    jaccard: float
    """Mean over stimuli of |N & N'| / |N | N'| of their k nearest neighbours (cosine) in the two."""
    reciprocal_rank: float
    """Mean of 1 / rank of stimulus i of the second among the neighbours of stimulus i of the first; by chance about ln(n) / n."""


def relative_likeness(first: Float[Tensor, "n a"], second: Float[Tensor, "m a"], *, k: int = 10) -> RelativeLikeness:
    """Cosine, neighbourhood Jaccard and mean reciprocal rank of two relative representations. Raises ConfigError as `nearest_neighbours`."""
    where = "relative_likeness"
    require_same_stimuli(first, second, where=where)
    a, b = (unit_rows(each, minimum=2, argument="a relative representation", where=where).double() for each in (first, second))
    ids = [nearest_neighbours(each, k=k).sort(dim=1).values for each in (a, b)]
    overlap = shared(ids[0], ids[1])[0].sum(dim=1).double()
    own, ranks = (a * b).sum(dim=1), []
    for block in row_blocks(len(a), len(a), BLOCK_ELEMENTS, where=where):
        closer = a[block] @ b.T > own[block, None] + 1e-12
        ranks.append(1 + closer.sum(dim=1))
    return RelativeLikeness(
        cosine=float(own.mean()),
        jaccard=float((overlap / (2 * k - overlap)).mean()),
        reciprocal_rank=float((1 / torch.cat(ranks).double()).mean()),
    )


@dataclass(frozen=True)
class Stitching:
    """A linear classifier trained on one space and used on another."""

    agreement: float
    """Fraction of test stimuli on which its answers in the two spaces are the same."""
    own_accuracy: float
    """Its accuracy on test stimuli of the space it was trained on."""
    stitched_accuracy: float
    """Its accuracy on the same stimuli in the other space, never seen in training."""
    majority: float
    """Accuracy of always answering the commonest class of the test stimuli."""


def zero_shot_stitching(
    first: Float[Tensor, "n w"],
    second: Float[Tensor, "m v"],
    labels: Int[Tensor, " labels"],
    *,
    train: Int[Tensor, " t"],
    ridge: float = 1e-3,
) -> Stitching:
    """Train on rows `train` of `first`, test on the other rows of both. Spaces of relative representations stitch, absolute ones do not.

    The classifier is ridge regression onto one-hot labels, columns standardised by the training rows, penalty `ridge` x t. Raises
    ConfigError for different shapes, labels that are not one per row or of a single class in training, no test row, and ridge <= 0.
    """
    truth, (own, stitched) = _answers(first, second, labels, train, ridge)
    return Stitching(
        agreement=float((own == stitched).double().mean()),
        own_accuracy=float((own == truth).double().mean()),
        stitched_accuracy=float((stitched == truth).double().mean()),
        majority=float(truth.bincount().max() / len(truth)),
    )


def compare_stitching(
    first: Float[Tensor, "n w"],
    second: Float[Tensor, "m v"],
    labels: Int[Tensor, " labels"],
    *,
    train: Int[Tensor, " t"],
    ridge: float = 1e-3,
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """`stitched_accuracy` with what it is when the columns of `second` (its anchors) are shuffled: shared structure that is not anchored."""
    value = zero_shot_stitching(first, second, labels, train=train, ridge=ridge).stitched_accuracy
    orders = stimulus_orders(second.shape[1], n_null, generator=generator)
    shuffled = (second[:, order.to(second.device)] for order in orders)
    draws = [zero_shot_stitching(first, each, labels, train=train, ridge=ridge).stitched_accuracy for each in shuffled]
    return compare(value, torch.tensor(draws, dtype=torch.float64))


def _farthest(rows: Tensor, n_anchors: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(rows), (), generator=generator, device=generator.device))]
    distances = (rows - rows[chosen[0]]).square().sum(dim=1)
    while len(chosen) < n_anchors:
        if distances.max() == 0:
            raise ConfigError(f"x must have {n_anchors} different rows, got {len(chosen)}; ask for fewer anchors (choose_anchors)")
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, (rows - rows[chosen[-1]]).square().sum(dim=1))
    return torch.tensor(chosen, device=rows.device)


def _answers(first: Tensor, second: Tensor, labels: Tensor, train: Tensor, ridge: float) -> tuple[Tensor, list[Tensor]]:
    where = "zero_shot_stitching"
    require_same_stimuli(first, second, where=where)
    for each in (first, second):
        require_points(each, minimum=2, argument="a representation", where=where)
    if first.shape[1] != second.shape[1] or len(labels) != len(first):
        shapes = f"{tuple(first.shape)}, {tuple(second.shape)} and {len(labels)}"
        raise ConfigError(f"both spaces must have the same width and labels one entry per row, got {shapes} ({where})")
    test = torch.ones(len(first), dtype=torch.bool, device=first.device)
    test[train] = False
    classes, targets = torch.unique(labels, return_inverse=True)
    if ridge <= 0 or not test.any() or len(torch.unique(targets[train])) < 2:
        raise ConfigError(
            f"ridge must be positive, and train leave a test row and hold 2 classes; got ridge {ridge}, {len(train)} of {len(first)} rows ({where})"
        )
    x = first.detach().double()
    mean, scale = x[train].mean(dim=0), x[train].std(dim=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    design = (x[train] - mean) / scale
    one_hot = torch.nn.functional.one_hot(targets[train], len(classes)).double()
    gram = design.T @ design + ridge * len(train) * torch.eye(design.shape[1], dtype=torch.float64, device=x.device)
    weights = torch.linalg.solve(gram, design.T @ (one_hot - one_hot.mean(dim=0)))
    answers = [(((each.double()[test] - mean) / scale) @ weights + one_hot.mean(dim=0)).argmax(dim=1) for each in (x, second.detach())]
    return targets[test], answers
