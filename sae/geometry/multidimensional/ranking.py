"""Which clusters are irreducible features: separability and mixture index of their principal planes, ranked, beside what chance gives.

    score(C) = mean over the planes of components 1-2, 2-3, 3-4, 4-5 of (1 - M) S        Engels et al. 2024 (arXiv 2405.14860), section 4

A score is not zero without a feature: clusters of atoms that fire independently of each other reach 0.4, because rays from the origin
are hard to separate. Two nulls of the whole procedure, from cluster to score, are given:

    random atoms       sets of as many atoms, drawn among those that fire
    shuffled codes     the same atoms, each latent's code permuted over the tokens: the cluster's own firing rates and directions, no coincidence
                       beyond chance

The released code drops planes with M < 0.01 and divides the sum of a list that begins with a spurious zero; neither is done here.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.multidimensional.mixture import PAPER as PAPER_MIXTURE
from sae.geometry.multidimensional.mixture import MixtureConfig, mixture_index
from sae.geometry.multidimensional.reconstruction import SparseMatrix, cluster_cloud, cluster_components, code_columns
from sae.geometry.multidimensional.separability import PAPER as PAPER_SEPARABILITY
from sae.geometry.multidimensional.separability import SeparabilityConfig, separability
from sae.geometry.nulls import p_value

Null = Literal["random atoms", "shuffled codes"]
_Cluster = tuple[Any, Tensor, Tensor]
"""Codes by column, atoms, and which of them are the cluster."""


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """How a cluster is scored."""

    n_planes: int = 4
    """Planes of consecutive principal components, from 1-2 on."""
    max_points: int = 5000
    """Tokens per cluster; of more, that many at equal distances."""
    min_points: int = 100
    """Clusters that are active on fewer tokens have no score: below that both measures are mostly bias."""
    min_variance: float = 1e-6
    """A plane counts if its second component has at least this share of the variance."""
    threshold: float = 0.0
    """A latent is active where its code exceeds this in magnitude, in the units of the codes."""
    workers: int = 1
    """Threads. The result does not depend on their number."""
    separability: SeparabilityConfig = PAPER_SEPARABILITY
    """Bins and angles."""
    mixture: MixtureConfig = PAPER_MIXTURE
    """Strip and directions."""

    def __post_init__(self) -> None:
        if self.n_planes < 1 or self.workers < 1 or self.min_points < 2 or self.max_points < self.min_points:
            raise ConfigError(
                "n_planes and workers must be at least 1, min_points at least 2 and max_points at least min_points, got "
                f"{self.n_planes}, {self.workers}, {self.min_points}, {self.max_points} (RankingConfig)"
            )
        if not 0 <= self.min_variance < 0.5:
            raise ConfigError(f"min_variance must be in [0, 0.5), got {self.min_variance} (RankingConfig)")


@dataclass(frozen=True, eq=False)
class PlaneScores:
    """Separability and mixture index of clusters, plane by plane; NaN where a cluster has no such plane."""

    separability: Float[Tensor, "n_clusters n_planes"]
    """S, in the units of the config's base (bits)."""
    mixture: Float[Tensor, "n_clusters n_planes"]
    """M, 0..1."""
    variance_shares: Float[Tensor, "n_clusters n_components"]
    """Share of the cluster's variance along each of its n_planes + 1 components."""
    n_active: Int[Tensor, " n_clusters"]
    """Tokens on which the cluster is active."""

    def scores(self) -> Float[Tensor, " n_clusters"]:
        """Mean of (1 - M) S over the planes that a cluster has; NaN for a cluster without any."""
        return ((1 - self.mixture) * self.separability).nanmean(1)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Clusters by their score, with p-values."""

    order: Int[Tensor, " n_clusters"]
    """Numbers of the clusters as they were given, best first; those without a score last."""
    scores: Float[Tensor, " n_clusters"]
    """Score of each cluster, in the order they were given; NaN without a score."""
    p_values: Float[Tensor, " n_clusters"]
    """(1 + #{null >= score}) / (1 + n_null) over all null scores together; NaN without a score. Not corrected for the number of clusters."""
    null_scores: Float[Tensor, " n_null"]
    """Scores of the null clusters."""
    planes: PlaneScores
    """What the scores are made of."""


def plane_scores(
    codes: SparseCodes | SparseMatrix,
    atoms: Float[Tensor, "d_sae d_in"],
    clusters: Sequence[Int[Tensor, " _"]],
    *,
    config: RankingConfig | None = None,
) -> PlaneScores:
    """S and M of the principal planes of each cluster's reconstruction. Per cluster and plane O(n_angles n) for n <= `max_points` tokens.

    Raises ConfigError for no clusters, and as `cluster_cloud`.
    """
    config = config or RankingConfig()
    if not len(clusters):
        raise ConfigError("clusters must hold at least one cluster, got none (plane_scores)")
    columns = code_columns(codes)
    return _scored(lambda i: (columns, atoms, clusters[i]), len(clusters), config)


def rank_clusters(
    codes: SparseCodes | SparseMatrix,
    atoms: Float[Tensor, "d_sae d_in"],
    clusters: Sequence[Int[Tensor, " _"]],
    *,
    null: Null,
    n_null: int,
    seed: int,
    config: RankingConfig | None = None,
) -> Ranking:
    """The clusters by mean (1 - M) S, beside `n_null` null clusters of the sizes of the given ones.

    Null cluster i stands for cluster i modulo the number of clusters with a score. n_null = len(clusters) doubles the time.
    Raises ConfigError for another `null`, n_null < 2, no cluster with a score, fewer firing latents than a cluster has atoms, and as
    `plane_scores`.
    """
    config = config or RankingConfig()
    if null not in ("random atoms", "shuffled codes"):
        raise ConfigError(f"null must be 'random atoms' or 'shuffled codes', got {null!r} (rank_clusters)")
    if n_null < 2:
        raise ConfigError(f"n_null must be at least 2, got {n_null} (rank_clusters)")
    columns = code_columns(codes)
    planes = plane_scores(columns, atoms, clusters, config=config)
    scores = planes.scores()
    scored = (~scores.isnan()).nonzero()[:, 0].tolist()
    if not scored:
        raise ConfigError(f"no cluster is active on min_points={config.min_points} tokens: give more tokens or lower it (rank_clusters)")
    draw = (_shuffled if null == "shuffled codes" else _random)(columns, atoms, clusters, scored, seed)
    null_scores = _scored(draw, n_null, config).scores()
    null_scores = null_scores[~null_scores.isnan()]
    if not len(null_scores):
        raise ConfigError(f"no null cluster is active on min_points={config.min_points} tokens: give more tokens (rank_clusters)")
    p_values = torch.full_like(scores, torch.nan)
    p_values[scored] = p_value(scores[scored], null_scores[:, None].expand(-1, len(scored)), alternative="greater")
    order = scores.nan_to_num(-1.0).argsort(descending=True, stable=True)
    return Ranking(order=order, scores=scores, p_values=p_values, null_scores=null_scores, planes=planes)


def _shuffled(columns: Any, atoms: Tensor, clusters: Sequence[Tensor], scored: list[int], seed: int) -> Callable[[int], _Cluster]:
    """A draw's own codes: those of the cluster, each latent's at tokens drawn anew."""

    def draw(i: int) -> _Cluster:
        from scipy.sparse import csc_matrix

        members = clusters[scored[i % len(scored)]]
        part = columns[:, members.cpu().numpy()]
        random = np.random.default_rng((seed, i))
        rows = [random.choice(part.shape[0], size=count, replace=False) for count in np.diff(part.indptr)]
        shuffled = csc_matrix((part.data, np.concatenate(rows), part.indptr), shape=part.shape)
        shuffled.sort_indices()
        return shuffled, atoms[members.to(atoms.device)], torch.arange(len(members))

    return draw


def _random(columns: Any, atoms: Tensor, clusters: Sequence[Tensor], scored: list[int], seed: int) -> Callable[[int], _Cluster]:
    """A draw's own members, among the latents that fire."""
    firing = np.flatnonzero(np.diff(columns.indptr))
    largest = max(len(clusters[i]) for i in scored)
    if largest > len(firing):
        raise ConfigError(f"a cluster of {largest} atoms needs as many latents that fire, got {len(firing)} (rank_clusters)")

    def draw(i: int) -> _Cluster:
        size = len(clusters[scored[i % len(scored)]])
        members = np.random.default_rng((seed, i)).choice(firing, size=size, replace=False)
        return columns, atoms, torch.from_numpy(np.sort(members))

    return draw


def _scored(cluster: Callable[[int], _Cluster], n: int, config: RankingConfig) -> PlaneScores:
    with ThreadPoolExecutor(config.workers) as pool:
        rows = list(pool.map(lambda i: _score(*cluster(i), config), range(n)))
    s, m, shares, n_active = zip(*rows, strict=True)
    s, m, shares = (torch.tensor(values, dtype=torch.float64) for values in (s, m, shares))
    return PlaneScores(s, m, shares, torch.tensor(n_active))


def _score(
    columns: Any, atoms: Float[Tensor, "d_sae d_in"], members: Int[Tensor, " _"], config: RankingConfig
) -> tuple[list[float], list[float], list[float], int]:
    s, m, n_planes = [torch.nan] * config.n_planes, [torch.nan] * config.n_planes, config.n_planes
    cloud = cluster_cloud(columns, atoms, members, threshold=config.threshold, max_rows=config.max_points)
    if cloud.n_active < config.min_points:
        return s, m, [torch.nan] * (n_planes + 1), cloud.n_active
    found = cluster_components(cloud, n_components=n_planes + 1)
    shares = found.variance_shares.tolist()
    for plane in range(min(n_planes, len(shares) - 1)):
        if shares[plane + 1] > config.min_variance:
            points = found.scores[:, plane : plane + 2]
            s[plane] = separability(points, config=config.separability).value
            m[plane] = mixture_index(points, config=config.mixture).value
    return s, m, shares + [0.0] * (n_planes + 1 - len(shares)), cloud.n_active
