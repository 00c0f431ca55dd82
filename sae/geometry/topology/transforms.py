"""RDMs that keep who is near whom and forget how far the far ones are.

    x = (rank(d) - min) / (max - min)                     equal dissimilarities share their mean rank
    g_lu(d) = 0 where x <= Q_l,  1 where x >= Q_u,  (x - Q_l) / (Q_u - Q_l) between

with Q_l, Q_u the l- and u-quantiles of x (linear interpolation between order statistics): the geo-topological transform of Lin & Kriegeskorte
2023, arXiv 2309.11028. l = 0, u = 1 is the rank-RDM (geometry), l = u a step (topology: near or not), small u keeps local, large l global
structure. Quantiles are those of the one RDM; pooled over several, two scaled copies of an RDM would give different results.

    (1, 2, 3, 1.5, 2.5, 1.2), l = 0.2, u = 0.8  ->  (0, 2/3, 1, 1/3, 1, 0)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.representations.rsa import Comparison, Distance, average_ranks, rdm, rdm_similarity, square_form
from sae.geometry.representations.stimuli import RepresentationMeasure

Family = Literal["geometry", "topology", "local", "intermediate", "global"]


@dataclass(frozen=True, kw_only=True)
class RdmSummaryConfig:
    """Which distances of an RDM are told apart: those between two quantiles."""

    lower: float
    """l in [0, u]: the quantile up to which stimuli count as the same."""
    upper: float
    """u in [l, 1]: the quantile from which stimuli count as merely different."""

    def __post_init__(self) -> None:
        if not 0 <= self.lower <= self.upper <= 1:
            raise ConfigError(
                f"lower and upper must satisfy 0 <= lower <= upper <= 1, got {self.lower} and {self.upper} (RdmSummaryConfig)"
            )

    @property
    def sensitivity(self) -> float:
        """u - l: 1 is sensitive to all of geometry, 0 to topology alone."""
        return self.upper - self.lower


def geotopological_transform(values: Float[Tensor, " pairs"], *, lower: float = 0.2, upper: float = 0.8) -> Float[Tensor, " pairs"]:
    """g_lu of an RDM, in [0, 1], float64; depends on the order of the dissimilarities only.

    At l = u a dissimilarity is 1 where it exceeds the quantile, else 0. Raises ConfigError unless 0 <= lower <= upper <= 1, for fewer than
    3 pairs, NaN or Inf, and an RDM whose entries are all equal.
    """
    RdmSummaryConfig(lower=lower, upper=upper)
    x = rank_transform(values)
    low, high = (float(torch.quantile(x, q)) if len(x) <= 2**24 else _quantile(x, q) for q in (lower, upper))
    if high <= low:
        return (x > low).double()
    return ((x - low) / (high - low)).clamp(0, 1)


def sigmoid_transform(values: Float[Tensor, " pairs"], *, slope: float = 10.0, centre: float = 0.5) -> Float[Tensor, " pairs"]:
    """1 / (1 + exp(-slope (x - centre))) of the ranks x in [0, 1]: a soft threshold. Errors as `rank_transform`, and for slope <= 0."""
    if not 0 < slope < float("inf"):
        raise ConfigError(f"slope must be positive and finite, got {slope} (sigmoid_transform)")
    return torch.sigmoid(slope * (rank_transform(values) - centre))


def rank_transform(values: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Ranks scaled to [0, 1], float64; equal values share their mean rank. Raises ConfigError for fewer than 3 pairs, NaN or Inf, and where
    all are equal.
    """
    if len(values) < 3 or not values.isfinite().all():
        raise ConfigError(
            f"an RDM must hold at least 3 finite entries, got {len(values)}, {int((~values.isfinite()).sum())} of them not finite (rdms)"
        )
    ranks = average_ranks(values.detach())
    low, high = ranks.min(), ranks.max()
    if low == high:
        raise ConfigError(f"an RDM must vary over its pairs, got {len(values)} equal entries (rdms)")
    return (ranks - low) / (high - low)


def summary_family(family: Family, *, n: int = 5) -> list[RdmSummaryConfig]:
    """`n` summaries of one kind, from their (l, u) triangle:

    "geometry" u - l from 1 down to 0.5, symmetric about the median; "topology" steps l = u spread over (0, 1); "local" l = 0 with u from 0.1 to
    0.5; "global" u = 1 with l from 0.5 to 0.9; "intermediate" width 0.3 centred from 0.3 to 0.7. The paper marks these regions of the
    triangle without exact bounds; these are ours. Raises ConfigError for n < 1 or another family.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n} (summary_family)")
    steps = [i / max(1, n - 1) for i in range(n)]
    if family == "geometry":
        bounds = [(0.25 * s, 1 - 0.25 * s) for s in steps]
    elif family == "topology":
        bounds = [((i + 1) / (n + 1), (i + 1) / (n + 1)) for i in range(n)]
    elif family == "local":
        bounds = [(0.0, 0.1 + 0.4 * s) for s in steps]
    elif family == "global":
        bounds = [(0.5 + 0.4 * s, 1.0) for s in steps]
    elif family == "intermediate":
        bounds = [(0.15 + 0.4 * s, 0.45 + 0.4 * s) for s in steps]
    else:
        raise ConfigError(f"family must be 'geometry', 'topology', 'local', 'intermediate' or 'global', got {family!r} (summary_family)")
    return [RdmSummaryConfig(lower=round(low, 12), upper=round(high, 12)) for low, high in bounds]


def summary_grid(n: int = 6) -> list[RdmSummaryConfig]:
    """All (l, u) with l <= u on `n` equally spaced quantiles of [0, 1], without the constant l = u = 0 or 1. Raises ConfigError for n < 2."""
    if n < 2:
        raise ConfigError(f"n must be at least 2, got {n} (summary_grid)")
    levels = [i / (n - 1) for i in range(n)]
    pairs = [(low, high) for i, low in enumerate(levels) for high in levels[i:] if not low == high in (0.0, 1.0)]
    return [RdmSummaryConfig(lower=low, upper=high) for low, high in pairs]


@dataclass(frozen=True)
class TopologicalRsa(RepresentationMeasure):
    """Correlation of the geo-topological RDMs of two representations (tRSA), in [-1, 1]. Memory n^2, n <= 4096. Invariances as `Rsa`."""

    lower: float = 0.2
    """l of the transform."""
    upper: float = 0.8
    """u of the transform."""
    distance: Distance = "euclidean"
    """Dissimilarity of two stimuli."""
    comparison: Comparison = "pearson"
    """How transformed RDMs are compared; not "kendall"."""

    def prepare(self, x: Float[Tensor, "n d"]) -> Tensor:
        """The transformed RDM [n, n], standardised so that a score is a dot product."""
        if self.comparison not in ("spearman", "pearson", "cosine"):
            raise ConfigError(f"comparison must be 'spearman', 'pearson' or 'cosine', got {self.comparison!r} (TopologicalRsa)")
        values = geotopological_transform(rdm(x, distance=self.distance), lower=self.lower, upper=self.upper)
        values = average_ranks(values) if self.comparison == "spearman" else values
        values = values if self.comparison == "cosine" else values - values.mean()
        return square_form(values / values.norm())

    def score(self, first: Tensor, second: Tensor, order: Int[Tensor, " n"] | None = None) -> float:
        """The comparison, the stimuli of `second` taken in `order`."""
        return float((first * (second if order is None else second[order][:, order])).sum() / 2)


def trsa_similarity(
    first: Float[Tensor, " pairs"], second: Float[Tensor, " others"], summary: RdmSummaryConfig, *, comparison: Comparison = "pearson"
) -> float:
    """How alike two RDMs are after the geo-topological transform. Errors as `geotopological_transform` and `rdm_similarity`."""
    transformed = (geotopological_transform(each, lower=summary.lower, upper=summary.upper) for each in (first, second))
    return rdm_similarity(*transformed, comparison=comparison)


def _quantile(x: Tensor, q: float) -> float:
    """As `torch.quantile`, which refuses more than 2^24 entries."""
    ordered, place = x.sort().values, q * (len(x) - 1)
    below = int(place)
    above = min(below + 1, len(x) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
