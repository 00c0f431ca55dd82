"""Clusters of a dictionary's atoms: how many there are beyond chance, and whether clusters fire as features of more than one dimension."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.batteries.drawing import histogram
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, HeatMap, Series
from sae.geometry.atoms import null_dictionary
from sae.geometry.multidimensional import (
    AtomClusters,
    ClusterView,
    MixtureConfig,
    Ranking,
    RankingConfig,
    SeparabilityConfig,
    cluster_cloud,
    cluster_view,
    code_columns,
    graph_clusters,
    plane,
    rank_clusters,
    spectral_clusters,
)
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.topology import compare_loops, cone_of

SMALLEST = 3
"""Atoms of the smallest cluster that counts."""
POOLS = 999
"""Sets of null clusters whose mean scores the mean score is compared with."""


@dataclass(frozen=True, kw_only=True)
class ClustersConfig:
    """Settings of `clusters`."""

    top_k: int = 2
    """Nearest atoms that an atom may be joined to."""
    min_cosine: float = 0.5
    """Cosine that an edge needs."""
    n_null: int = 59
    """Null dictionaries."""


def clusters(inputs: Inputs, config: ClustersConfig) -> Outcome:
    """Connected components of the graph of nearest atoms, beside those of dictionaries with the same covariance."""
    atoms = inputs.atoms()
    generator = inputs.generator("clusters")
    settings = {"top_k": config.top_k, "min_cosine": config.min_cosine}
    found = graph_clusters(atoms, **settings)
    draws = [graph_clusters(null_dictionary(atoms, "covariance", generator=generator), **settings) for _ in range(config.n_null)]
    note = f"{len(atoms):,} atoms; clusters of {SMALLEST} or more: {int((found.sizes >= SMALLEST).sum()):,}"
    values = {q.name: q for q in CLUSTERS_QUANTITIES}
    numbers = (
        of_null(values["share of atoms in clusters"], compare(_clustered(found), [_clustered(each) for each in draws]), note=note),
        of_null(values["largest cluster"], compare(float(found.sizes[0]), [float(each.sizes[0]) for each in draws])),
    )
    return Outcome(numbers, (_sizes_figure(found, draws[0]),))


def _clustered(found: AtomClusters) -> float:
    return float(found.sizes[found.sizes >= SMALLEST].sum() / found.sizes.sum())


def _sizes_figure(found: AtomClusters, draw: AtomClusters) -> Figure:
    """Number of clusters by size, up to powers of two."""
    top = max(2, int(found.sizes[0]).bit_length(), int(draw.sizes[0]).bit_length())
    edges = [2.0**i for i in range(top + 1)]
    series = []
    for name, each, null in (("null dictionary", draw, True), ("atoms", found, False)):
        counts = torch.histogram(each.sizes.double(), torch.tensor(edges, dtype=torch.float64)).hist
        series.append(Series(name, tuple(edges), tuple(counts.tolist()), mark="bars", role="null" if null else "result"))
    return Figure(
        "Sizes of clusters", Axis("atoms in a cluster", scale="log"), Axis("clusters", scale="log"), tuple(series[::-1]),
        caption="Bins from a power of two to the next; the first bin is atoms that stand alone.",
    )  # fmt: skip


COVARIANCE = "Gaussian atoms with the covariance of the dictionary's"
CLUSTERS_QUANTITIES = (
    Quantity(
        "share of atoms in clusters",
        f"Atoms in groups of {SMALLEST} or more near ones: candidates for features of several dimensions, or for one feature split in parts.",
        "Engels et al. 2024, arXiv 2405.14860, graph of nearest neighbours",
        alternative="greater",
        null=COVARIANCE,
    ),
    Quantity(
        "largest cluster",
        "Atoms in the largest group; one that holds most atoms says that the cosine asked for is too low to part groups.",
        "as above",
        "atoms",
        "greater",
        COVARIANCE,
    ),
)
CLUSTERS = Measure(
    name="clusters",
    title="Clusters of atoms",
    text="Groups of atoms that are joined by near neighbours.",
    needs=("dictionary",),
    quantities=CLUSTERS_QUANTITIES,
    compute=clusters,
    config=ClustersConfig(),
    quick=ClustersConfig(),
)


@dataclass(frozen=True, kw_only=True)
class MultidimensionalConfig:
    """Settings of `multidimensional`."""

    n_tokens: int = 100_000
    """Tokens, whole rows of the store drawn at random."""
    atoms_per_cluster: int = 24
    """Atoms of a spectral cluster on average: the paper's 1000 clusters of 24,576 atoms."""
    largest: int = 100
    """Atoms of the largest cluster that is scored."""
    n_clusters: int = 60
    """Clusters scored at most, the most active ones."""
    n_points: int = 800
    """Tokens that a cluster is scored on."""
    n_angles: int = 180
    """Directions of the mixture index."""
    n_null: int = 20
    """Null clusters for each cluster: codes shuffled over the tokens, latent by latent."""
    n_shown: int = 3
    """Clusters shown, the best ones."""
    n_loops: int = 99
    """Gaussian clouds that the loop of a shown cluster is compared with."""


def multidimensional(inputs: Inputs, config: MultidimensionalConfig) -> Outcome:
    """Clusters by how irreducible their planes are, and views of the best."""
    sample = inputs.codes(config.n_tokens)
    atoms = inputs.chosen("dictionary").W_dec.detach().float()
    chosen, note = _candidates(sample.codes, atoms, config, inputs.seed)
    settings = RankingConfig(
        max_points=config.n_points,
        workers=2,
        min_points=min(100, config.n_points),
        mixture=MixtureConfig(n_angles=config.n_angles, n_refined=51),
        separability=SeparabilityConfig(n_angles=90),
    )
    ranking = rank_clusters(sample.codes, atoms, chosen, null="shuffled codes", n_null=config.n_null, seed=inputs.seed, config=settings)
    standing = ranking.standing()
    scored = torch.tensor([each is not None for each in standing])
    n = int(scored.sum())
    if not n:
        raise ConfigError(
            f"clusters must be active on at least {settings.min_points} of {len(sample.codes):,} tokens, none is: take more tokens"
        )
    q = {quantity.name: quantity for quantity in MULTIDIMENSIONAL_QUANTITIES}
    draws = ranking.null_scores[scored]
    generator = inputs.generator("a null draw of each cluster")
    picks = torch.multinomial(draws.isfinite().double(), POOLS, replacement=True, generator=generator)
    numbers = [
        of_null(
            q["mean score of clusters"],
            compare(ranking.scores[scored].mean().item(), draws.gather(1, picks).mean(dim=0)),
            note=f"{n} clusters; {note}",
        )
    ]
    figures: list[Figure | HeatMap] = [_excess_figure(standing, draws)]
    columns = code_columns(sample.codes)
    best = sorted((i for i in range(len(standing)) if scored[i]), key=lambda i: (standing[i].p_greater, -standing[i].value))
    for rank, place in enumerate(best[: config.n_shown]):
        view = cluster_view(cluster_cloud(columns, atoms, chosen[place], max_rows=config.n_points))
        more, shown = _best(inputs, ranking, place, rank, n, chosen[place], atoms, view, standing[place], config)
        numbers += more
        figures += shown
    return Outcome(tuple(numbers), tuple(figures))


def _candidates(
    codes: SparseCodes, atoms: Float[Tensor, "n d"], config: MultidimensionalConfig, seed: int
) -> tuple[list[Int[Tensor, " _"]], str]:
    """Clusters of latents that fire, the most active first."""
    firing = torch.bincount(codes.indices[codes.active()].long(), minlength=codes.d_sae)
    alive = (firing > 0).nonzero().flatten()
    if len(alive) < SMALLEST:
        raise ConfigError(f"dictionary must have at least {SMALLEST} latents that fire, got {len(alive)}")
    n_clusters = max(1, len(alive) // config.atoms_per_cluster)
    n_neighbours = min(20, len(alive) - 1)
    parts = spectral_clusters(atoms[alive], n_clusters=n_clusters, n_neighbours=n_neighbours, seed=seed)
    found = parts.all_members(minimum=SMALLEST, maximum=config.largest)
    if not found:
        raise ConfigError(f"atoms must form a spectral cluster of {SMALLEST} to {config.largest}, got none")
    found = sorted((alive[members] for members in found), key=lambda members: -int(firing[members].sum()))
    note = f"{len(codes):,} tokens" + (f"; the {config.n_clusters} most active of {len(found)}" if len(found) > config.n_clusters else "")
    return found[: config.n_clusters], note


def _best(
    inputs: Inputs,
    ranking: Ranking,
    place: int,
    rank: int,
    n: int,
    members: Int[Tensor, " _"],
    atoms: Float[Tensor, "n d"],
    view: ClusterView,
    standing: NullStatistic,
    config: MultidimensionalConfig,
) -> tuple[list[Number], list[Figure | HeatMap]]:
    q = {quantity.name: quantity for quantity in MULTIDIMENSIONAL_QUANTITIES}
    subject = f"cluster {rank + 1}: {', '.join(str(int(i)) for i in members[:6])}{' …' if len(members) > 6 else ''}"
    scores = (1 - ranking.planes.mixture[place]) * ranking.planes.separability[place]
    best = int(scores.nan_to_num(nan=-1).argmax())
    s, m = ranking.planes.separability[place, best].item(), ranking.planes.mixture[place, best].item()
    active = f"{len(members)} atoms, active on {int(ranking.planes.n_active[place]):,} tokens"
    numbers = [of_null(q["score of a cluster"], standing, subject=subject, tries=n, note=f"{active}; best of {n}")]
    points = plane(view.components, best + 1)
    loops = compare_loops(points, n_null=config.n_loops, generator=inputs.generator(f"loops {place}"), max_points=200)
    numbers.append(
        of_null(q["loop of a cluster"], loops.lifetime, subject=subject, tries=n, note=f"plane of components {best + 1} and {best + 2}")
    )
    cone = cone_of(atoms[members])
    ring = f"axis {cone.axis_share:.0%}, plane {cone.plane_share:.0%}, balance {cone.balance:.2f}"
    numbers.append(Number("share along the axis", cone.axis_share, subject, note=f"of what is left: plane {cone.plane_share:.0%}"))
    figures: list[Figure | HeatMap] = [_plane_figure(points, best, subject, s, m, loops.lifetime.value, ring)]
    if len(members) <= 24:
        figures.append(_cosines_map(view, members, subject))
    return numbers, figures


def _plane_figure(points: Float[Tensor, "n 2"], best: int, subject: str, s: float, m: float, loop: float, ring: str) -> Figure:
    shown = points[:: max(1, len(points) // 600)]
    return Figure(
        f"Plane of {subject.split(':')[0]}",
        Axis(f"component {best + 1}"),
        Axis(f"component {best + 2}"),
        (Series("tokens", tuple(shown[:, 0].tolist()), tuple(shown[:, 1].tolist()), mark="points"),),
        caption=f"Separability {s:.2f} bits, mixture index {m:.2f}, loop {loop:.2f} median distances; atoms: {ring}. "
        "A circle has high separability, a mixture index near 0.2 and one long loop.",
        equal=True,
    )


def _cosines_map(view: ClusterView, members: Int[Tensor, " _"], subject: str) -> HeatMap:
    names = tuple(str(int(members[leaf])) for leaf in view.leaves)
    low = min(0.0, float(view.cosines.min()))
    return HeatMap(
        f"Cosines of {subject.split(':')[0]}", Axis("latent", names=names), Axis("latent", names=names),
        tuple(tuple(row) for row in view.cosines.tolist()), "cosine", low, 1.0,
        "In the order of their angle in the plane of the centred atoms: a ring is a band that wraps around.",
    )  # fmt: skip


def _excess_figure(standing: Sequence[NullStatistic | None], draws: Float[Tensor, "n n_null"]) -> Figure:
    own = torch.tensor([each.value - each.null_mean for each in standing if each is not None], dtype=torch.float64)
    chance = (draws - draws.nanmean(dim=1, keepdim=True)).flatten().double()
    chance = chance[chance.isfinite()]
    low, high = min(float(own.min()), float(chance.min())), max(float(own.max()), float(chance.max()))
    edges = torch.linspace(low - 1e-9, high + 1e-3 * (high - low) + 1e-9, 31, dtype=torch.float64)
    return Figure(
        "Scores of clusters beyond their own nulls",
        Axis("score less the mean score of the cluster's shuffled codes", "bits"),
        Axis("share of clusters"),
        (histogram("clusters", own, edges), histogram("shuffled codes", chance, edges, null=True)),
        caption="A score is the mean over planes of (1 - mixture) x separability. Irreducible features lie right of the dashed outline.",
    )


SHUFFLED = "the same clusters with every latent's code shuffled over the tokens"
MULTIDIMENSIONAL_QUANTITIES = (
    Quantity(
        "mean score of clusters",
        "Whether clusters are irreducible features more than chance makes them: separability times one minus the mixture index, over all clusters.",
        "Engels et al. 2024, arXiv 2405.14860",
        "bits",
        "greater",
        SHUFFLED,
    ),
    Quantity(
        "score of a cluster",
        "The same for one of the clusters furthest above their own nulls; its p-value counts how many were searched.",
        "Engels et al. 2024, arXiv 2405.14860",
        "bits",
        "greater",
        f"{SHUFFLED}; the draws of all clusters, each in the spread of its own, give p",
    ),
    Quantity(
        "loop of a cluster",
        "Range of distances over which the cloud has one hole, in median distances: a circle has a long one.",
        "persistent homology, H1 of the Vietoris-Rips filtration",
        "median distances",
        "greater",
        "Gaussian clouds of the same covariance",
    ),
    Quantity(
        "share along the axis",
        "Whether the atoms lie on a circle (0) or on a cone about a common direction (towards 1): on a cone intensity and angle mix.",
        "Engels et al. 2024; own definition: 1 - share of the centred unit atoms",
    ),
)
MULTIDIMENSIONAL = Measure(
    name="multidimensional",
    title="Features of several dimensions",
    text=(
        "Clusters of atoms as features: what a cluster adds to the reconstruction, its principal planes, and whether these can be taken apart into "
        "independent coordinates (low separability) or into parts that are never there together (high mixture index)."
    ),
    needs=("dictionary", "store"),
    quantities=MULTIDIMENSIONAL_QUANTITIES,
    compute=multidimensional,
    config=MultidimensionalConfig(),
    version=2,
    quick=MultidimensionalConfig(n_tokens=20_000, n_clusters=24, n_points=300, n_angles=90, n_null=10, n_loops=39),
)
