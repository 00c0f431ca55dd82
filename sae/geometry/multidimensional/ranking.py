"""Which clusters are irreducible features: separability and mixture index of their principal planes, ranked, beside what chance gives.

    score(C) = mean over the planes of components 1-2, 2-3, 3-4, 4-5 of (1 - M) S        Engels et al. 2024 (arXiv 2405.14860), section 4

A score is not zero without a feature: clusters of atoms that fire independently of each other reach 0.4 where they often fire together, and more
than a clean ring where they hardly do, because a bundle of rays from the origin is hard to separate; and the histogram's bias is large on few
tokens. Each cluster is therefore compared with nulls of its own, of the whole procedure from cluster to score, on no more tokens than it has:

    random atoms       as many atoms, each drawn among those that fire about as often as the one it stands for
    shuffled codes     the same atoms, each latent's code permuted over the tokens: the cluster's own firing rates and directions, no coincidence
                       beyond chance

The released code drops planes with M < 0.01 and divides the sum of a list that begins with a spurious zero; neither is done here.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from sae.geometry.nulls import NullStatistic, p_value

Null = Literal["random atoms", "shuffled codes"]


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


_Cluster = tuple[Any, Tensor, Tensor, RankingConfig]
"""Codes by column, atoms, which of them are the cluster, and how it is scored."""


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
    """(1 + #{null >= score}) / (1 + n_null) over the cluster's own null draws; NaN where it was not compared. Not corrected for the number of
    clusters. A draw without a score, for want of tokens, counts against significance."""
    null_scores: Float[Tensor, "n_clusters n_null"]
    """Scores of each cluster's null draws; NaN where it was not compared, or a draw has no score."""
    planes: PlaneScores
    """What the scores are made of."""

    def excess(self) -> Float[Tensor, " n_clusters"]:
        """Score less the mean of the cluster's own null scores: what singles out a feature where atoms that seldom fire together, a bundle of
        rays, have larger scores than a ring. NaN where it was not compared."""
        return self.scores - self.null_scores.nanmean(1)

    def standing(self) -> list[NullStatistic | None]:
        """Each cluster's score beside the mean and spread of its own draws; None where it was not compared.

        A few draws a cluster cannot give a small p-value, so those of all clusters decide together, each in the units of its own cluster:

            t = (score - m) / (s sqrt(1 + 1 / n)),        m, s and n of the cluster's draws, without the draw where it is one itself
            p = (1 + #{t of any draw of any cluster >= t}) / (1 + number of such draws)

        It holds where draws of different clusters differ in place and width and not in shape. A cluster with fewer than 3 draws that have a
        score is not compared, and a spread of 0 makes t infinite, or 0 at the mean.
        """
        there = self.null_scores.isfinite()
        n = there.sum(1, keepdim=True).double()
        x = self.null_scores.double().where(there, 0.0)
        mean = x.sum(1, keepdim=True) / n
        square = ((x - mean) ** 2 * there).sum(1, keepdim=True)
        # Without draw i:  m_i = m - (x_i - m) / (n - 1),   S_i = S - (x_i - m)^2 n / (n - 1).
        gap = (x - mean) * n / (n - 1)
        draws = _studentised(gap, square - (x - mean) ** 2 * n / (n - 1), n - 1)
        compared = (n.squeeze(1) >= 3) & self.scores.isfinite()
        pool = draws[compared][there[compared]]
        own = _studentised(self.scores.double()[:, None] - mean, square, n).squeeze(1)
        found: list[NullStatistic | None] = []
        for i in range(len(own)):
            if not compared[i]:
                found.append(None)
                continue
            above, below = (p_value(own[i : i + 1], pool[:, None], alternative=side).item() for side in ("greater", "less"))
            sd = (square[i] / (n[i] - 1)).clamp(min=0).sqrt().item()
            found.append(NullStatistic(self.scores[i].item(), mean[i].item(), sd, len(pool), above, below))
        return found


def _studentised(gap: Tensor, square: Tensor, n: Tensor) -> Tensor:
    """gap / (s sqrt(1 + 1/n)), s^2 = square / (n - 1); 0 for no gap, infinite for a gap without spread."""
    spread = (square.clamp(min=0) / (n - 1)).sqrt() * (1 + 1 / n).sqrt()
    return torch.where(gap == 0, 0.0, gap / spread)


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
    return _scored(lambda i: (columns, atoms, clusters[i], config), len(clusters))


def rank_clusters(
    codes: SparseCodes | SparseMatrix,
    atoms: Float[Tensor, "d_sae d_in"],
    clusters: Sequence[Int[Tensor, " _"]],
    *,
    null: Null,
    n_null: int,
    seed: int,
    n_compared: int | None = None,
    config: RankingConfig | None = None,
) -> Ranking:
    """The clusters by mean (1 - M) S, the best `n_compared` of them (None: all) beside `n_null` draws each, which take n_null times as long.

    Raises ConfigError for another `null`, n_null < 2, n_compared < 1, no cluster with a score, and as `plane_scores`.
    """
    config = config or RankingConfig()
    if null not in ("random atoms", "shuffled codes"):
        raise ConfigError(f"null must be 'random atoms' or 'shuffled codes', got {null!r} (rank_clusters)")
    if n_null < 2 or (n_compared is not None and n_compared < 1):
        raise ConfigError(f"n_null must be at least 2 and n_compared at least 1, got {n_null} and {n_compared} (rank_clusters)")
    columns = code_columns(codes)
    planes = plane_scores(columns, atoms, clusters, config=config)
    scores = planes.scores()
    order = scores.nan_to_num(-1.0).argsort(descending=True, stable=True)
    compared = [i for i in order.tolist() if not scores[i].isnan()][:n_compared]
    if not compared:
        raise ConfigError(f"no cluster is active on min_points={config.min_points} tokens: give more tokens or lower it (rank_clusters)")
    ranks = _firing_ranks(np.diff(columns.indptr))

    def draw(i: int) -> _Cluster:
        cluster = compared[i // n_null]
        members, random = clusters[cluster].cpu().numpy(), np.random.default_rng((seed, cluster, i % n_null))
        # Not more tokens than the cluster has: fewer would have more bias.
        own = replace(config, max_points=min(config.max_points, int(planes.n_active[cluster])))
        if null == "random atoms":
            return columns, atoms, torch.from_numpy(_like(members, ranks, random)), own
        return _shuffled(columns[:, members], random), atoms[torch.from_numpy(members).to(atoms.device)], torch.arange(len(members)), own

    null_scores = scores.new_full((len(clusters), n_null), torch.nan)
    null_scores[compared] = _scored(draw, len(compared) * n_null).scores().reshape(len(compared), n_null)
    p_values = torch.full_like(scores, torch.nan)
    for i in compared:
        p_values[i] = p_value(scores[i : i + 1], null_scores[i, :, None].nan_to_num(torch.inf), alternative="greater")[0]
    return Ranking(order=order, scores=scores, p_values=p_values, null_scores=null_scores, planes=planes)


def _shuffled(part: Any, random: np.random.Generator) -> Any:
    """The same values in every column, at rows drawn anew."""
    from scipy.sparse import csc_matrix

    rows = [random.choice(part.shape[0], size=count, replace=False) for count in np.diff(part.indptr)]
    shuffled = csc_matrix((part.data, np.concatenate(rows), part.indptr), shape=part.shape)
    shuffled.sort_indices()
    return shuffled


def _firing_ranks(counts: np.ndarray) -> np.ndarray:
    """The latents that fire, by how often."""
    order = np.argsort(counts, kind="stable")
    return order[counts[order] > 0]


def _like(members: np.ndarray, ranks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each member another latent among the 2 x 25 next to it by firing count, each at most once; ascending."""
    taken: set[int] = set()
    for member in members.tolist():
        at = int((ranks == member).argmax())  # one that never fires stands with the rarest
        nearby = [int(latent) for latent in ranks[max(0, at - 25) : at + 26] if int(latent) not in taken]
        taken.add(int(random.choice(nearby)) if nearby else member)
    return np.sort(np.array(list(taken)))


def _scored(cluster: Callable[[int], _Cluster], n: int) -> PlaneScores:
    with ThreadPoolExecutor(cluster(0)[3].workers) as pool:
        rows = list(pool.map(lambda i: _score(*cluster(i)), range(n)))
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
