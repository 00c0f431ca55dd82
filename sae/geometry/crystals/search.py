"""Crystals among the atoms of a dictionary: quadruples (a, b, c, d) with b - a parallel to d - c.

    edges       every atom with its m nearest atoms by cosine, each pair once; u = (b - a) / |b - a|
    clusters    axial spherical k-means of the u in a random projection: u and -u are one axis (the two ways to name an edge)
    verified    within each cluster all pairs of edges without a common atom, exactly:
                cosine u.u',   loss |(b - a) - (d - c)| / mean(|b - a|, |d - c|)      0: parallelogram;  cosine 1, loss > 0: trapezoid
    skew        part of d - c across b - a, over the mean distance of c and d from the line through a and b: 0 for parallel lines apart, above 1 where
                the differences agree only because c is close to a and d to b
    chance      cos^2 ~ Beta(1/2, (D - 1)/2) for directions without relation, D = 1 / mean cos^2 over all pairs of edges; Benjamini-Hochberg over all
                pairs of edges that could have been compared

Definition: Li, Michaud, Baek, Engels, Sun & Tegmark 2024 (arXiv 2410.19750, section 3); F^2 differences are out of reach, hence the candidates.
Two differences that share an atom have cosine 1/2 at random and are never compared. The Beta law holds for directions of equal variance in D
dimensions; clustered atoms have heavier tails, so counts are to be set beside those of shuffled dictionaries (`compare_crystals`).
Time F^2 d for the neighbours, E K p per round of clustering, E^2 d / K for the verification, with E <= F m edges and K clusters.
"""

from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.crystals.chance import cosine_p_value, effective_dimension
from sae.geometry.crystals.clusters import BATCH, axial_clusters
from sae.geometry.nulls import NullStatistic, benjamini_hochberg, compare
from sae.geometry.rows import require_points, unit_rows
from sae.geometry.similarity import nearest_atoms

MOST_FOR_DIMENSION = 2**15
"""Edges that D is measured on, at most; evenly spaced among all."""
MOST_IN_CLUSTER = 4096
"""Edges of one cluster that are compared with each other; a larger cluster is cut, and the cut is counted."""


@dataclass(frozen=True, kw_only=True)
class CrystalConfig:
    """What counts as a crystal, and how hard to look."""

    n_neighbours: int = 20
    """Nearest atoms that each atom forms edges with."""
    min_neighbour_cosine: float = -1.0
    """Least cosine of the two atoms of an edge."""
    min_cosine: float = 0.8
    """Least cosine of the two differences, in (0, 1)."""
    max_loss: float = 0.5
    """Largest loss of a parallelogram; what is parallel with a larger loss is a trapezoid."""
    min_edge: float = 0.1
    """Least length of a difference, and least distance of c and d from the line through a and b, over the median length of differences; what is
    shorter joins near-copies."""
    max_skew: float = 0.5
    """Largest part of d - c across b - a over the mean distance of c and d from the line through a and b. Where c is merely close to a and d to b, it
    is above 1: near-copies, and four atoms on one line, are no crystal."""
    level: float = 0.05
    """False discovery rate of Benjamini-Hochberg, in (0, 1)."""
    n_rounds: int = 4
    """Mini-batch rounds of the clustering."""
    projection: int = 64
    """Coordinates of the random projection that edges are clustered in; no more than d."""
    edges_per_cluster: int = 400
    """Edges per cluster, on average; more find more, at a cost that grows with them."""


@dataclass(frozen=True, eq=False)
class Crystals:
    """Quadruples of atoms found, best first."""

    quadruples: Int[Tensor, "n 4"]
    """Rows (a, b, c, d) with b - a ~ d - c; each set of four atoms once, by its best pair of edges."""
    cosines: Float[Tensor, " n"]
    """Cosine of b - a and d - c, float64."""
    losses: Float[Tensor, " n"]
    """|(b - a) - (d - c)| over the mean length of the two."""
    p_values: Float[Tensor, " n"]
    """Two-sided, by the Beta law in `effective_dimension` dimensions."""
    q_values: Float[Tensor, " n"]
    """Benjamini-Hochberg over all `n_tests` pairs of edges."""
    is_parallelogram: Bool[Tensor, " n"]
    """Whether the loss is at most `max_loss`; otherwise a trapezoid."""
    n_edges: int
    """Differences formed."""
    n_tests: int
    """Pairs of edges without a common atom, compared or not: what the q-values correct for."""
    n_compared: int
    """Pairs of edges that shared a cluster and were compared."""
    n_cut: int
    """Edges left out of clusters above 4096."""
    effective_dimension: float
    """D: 1 / mean cos^2 of two edges."""


def find_crystals(atoms: Float[Tensor, "n_atoms d_in"], *, generator: torch.Generator, config: CrystalConfig = CrystalConfig()) -> Crystals:
    """Quadruples of atoms whose differences are parallel beyond chance: cosine, q-value and shape within the limits of `config`.

    Differences are of the atoms as given; neighbours by cosine. Every crystal returned is verified exactly, but the clustering may part the two
    edges of another: the count is a lower bound. Raises ConfigError for fewer than 4 atoms, a zero or non-finite atom, and settings out of range.
    """
    _require(atoms, config)
    x = atoms.detach().to(torch.promote_types(atoms.dtype, torch.float32))
    edges = _edges(x, config)
    pairs, lengths = edges.pairs, edges.lengths
    D = effective_dimension(edges.directions(torch.arange(0, len(pairs), ceil(len(pairs) / MOST_FOR_DIMENSION), device=x.device)))
    n_tests = _disjoint_pairs(pairs, len(x))
    found = _parallel(edges, generator, config)
    first, second, cosines = found.left, found.right, found.cosines.double()
    flipped = cosines < 0
    a, b = pairs[first].unbind(dim=1)
    c, d = pairs[second].unbind(dim=1)
    c, d = torch.where(flipped, d, c), torch.where(flipped, c, d)
    quadruples = torch.stack([a, b, c, d], dim=1)
    cosines = cosines.abs().clamp(max=1)
    size, other = lengths[first].double(), lengths[second].double()
    losses = (size.square() + other.square() - 2 * size * other * cosines).clamp(min=0).sqrt() / ((size + other) / 2)
    p = cosine_p_value(cosines, D)
    q = benjamini_hochberg(p, n_tests)
    kept = (q <= config.level) & (_skew(x, quadruples, edges.shortest) <= config.max_skew)
    order = _best_of_each(quadruples, losses, kept)
    return Crystals(
        quadruples=quadruples[order],
        cosines=cosines[order],
        losses=losses[order],
        p_values=p[order],
        q_values=q[order],
        is_parallelogram=losses[order] <= config.max_loss,
        n_edges=len(pairs),
        n_tests=n_tests,
        n_compared=found.n_compared,
        n_cut=found.n_cut,
        effective_dimension=D,
    )


def compare_crystals(
    atoms: Float[Tensor, "n_atoms d_in"], *, generator: torch.Generator, n_null: int = 9, config: CrystalConfig = CrystalConfig()
) -> NullStatistic:
    """The number of crystals found, beside that of `n_null` shuffled dictionaries searched in the same way.

    Each null dictionary permutes every principal coordinate over the atoms and flips signs at random, which keeps the spectrum and every marginal,
    and gives each atom its own norm back. Raises ConfigError as `find_crystals`, and for n_null < 2.
    """
    if n_null < 2:
        raise ConfigError(f"n_null must be at least 2, got {n_null} (compare_crystals)")
    value = len(find_crystals(atoms, generator=generator, config=config).quadruples)
    draws = [
        len(find_crystals(shuffled_atoms(atoms, generator=generator), generator=generator, config=config).quadruples) for _ in range(n_null)
    ]
    return compare(float(value), [float(draw) for draw in draws])


def shuffled_atoms(atoms: Float[Tensor, "n_atoms d_in"], *, generator: torch.Generator) -> Float[Tensor, "n_atoms d_in"]:
    """A dictionary without relations between atoms: every coordinate in the atoms' principal axes is permuted over the atoms on its own, with random
    signs about the mean, and rows are scaled to the norms they had. Raises ConfigError for fewer than 2 atoms, NaN or Inf.
    """
    require_points(atoms, minimum=2, argument="atoms", where="shuffled_atoms")
    x = atoms.detach().to(torch.promote_types(atoms.dtype, torch.float32))
    mean = x.mean(dim=0)
    axes = torch.linalg.eigh(((x - mean).T @ (x - mean)).double()).eigenvectors.to(x)
    z = (x - mean) @ axes
    keys = torch.rand(z.shape, generator=generator, device=generator.device).to(z.device)
    signs = torch.randint(2, z.shape, generator=generator, device=generator.device).to(z) * 2 - 1
    rows = (z.gather(0, keys.argsort(dim=0)) * signs) @ axes.T + mean
    return rows * (x.norm(dim=1) / rows.norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny))[:, None]


@dataclass(frozen=True, eq=False)
class _Edges:
    """Pairs of atoms and the lengths of their differences; the differences are formed when asked for, never all at once."""

    x: Tensor
    pairs: Tensor
    lengths: Tensor
    shortest: float

    def directions(self, rows: Int[Tensor, " m"]) -> Float[Tensor, "m d_in"]:
        """Unit differences of some pairs."""
        a, b = self.pairs[rows].unbind(dim=1)
        return (self.x[b] - self.x[a]) / self.lengths[rows, None]

    def projected(self, size: int, generator: torch.Generator) -> Float[Tensor, "edges p"]:
        """All unit differences, in a Gaussian random projection to `size` coordinates where that is fewer."""
        d = self.x.shape[1]
        if size >= d:
            return self.directions(torch.arange(len(self.pairs), device=self.x.device))
        z = self.x @ torch.randn(d, size, generator=generator, device=generator.device).to(self.x)
        return torch.nn.functional.normalize(z[self.pairs[:, 1]] - z[self.pairs[:, 0]], dim=1)


@dataclass(frozen=True, eq=False)
class _Parallel:
    """Pairs of edges whose |cosine| is large enough."""

    left: Tensor
    right: Tensor
    cosines: Tensor
    n_compared: int
    n_cut: int


def _require(atoms: Tensor, config: CrystalConfig) -> None:
    where = "find_crystals"
    require_points(atoms, minimum=4, argument="atoms", where=where)
    if not 0 < config.min_cosine < 1 or not 0 < config.level < 1:
        raise ConfigError(f"min_cosine and level must be inside (0, 1), got {config.min_cosine} and {config.level} ({where})")
    counts = config.n_neighbours, config.n_rounds, config.projection, config.edges_per_cluster
    if min(counts) < 1:
        raise ConfigError(f"n_neighbours, n_rounds, projection and edges_per_cluster must be at least 1, got {counts} ({where})")
    if min(config.max_loss, config.min_edge, config.max_skew) < 0:
        got = f"{config.max_loss}, {config.min_edge} and {config.max_skew}"
        raise ConfigError(f"max_loss, min_edge and max_skew must not be negative, got {got} ({where})")
    unit_rows(atoms, minimum=4, argument="atoms", where=where)


def _edges(x: Float[Tensor, "n_atoms d_in"], config: CrystalConfig) -> _Edges:
    """Every pair of an atom and one of its nearest, once, the lower number first; without near-copies."""
    near = nearest_atoms(x, n_neighbours=min(config.n_neighbours, len(x) - 1))
    own = torch.arange(len(x), device=x.device)[:, None].expand_as(near.atom_ids)
    close = near.cosines >= config.min_neighbour_cosine
    ends = torch.stack([own[close], near.atom_ids[close]], dim=1).sort(dim=1).values
    keys = torch.unique(ends[:, 0] * len(x) + ends[:, 1])
    pairs = torch.stack([keys // len(x), keys % len(x)], dim=1)
    parts = [(x[part[:, 1]] - x[part[:, 0]]).norm(dim=1) for part in pairs.split(BATCH)]
    lengths = torch.cat(parts) if parts else x.new_empty(0)
    positive = lengths[lengths > 0]
    shortest = config.min_edge * positive.median().item() if len(positive) else 0.0
    long = (lengths > 0) & (lengths >= shortest)
    if long.sum() < 2:
        raise ConfigError(
            f"atoms must form at least 2 differences that are not 0, got {int(long.sum())} of {len(pairs)} pairs with a cosine of at least "
            f"min_neighbour_cosine={config.min_neighbour_cosine}; lower it, or remove repeated atoms (find_crystals)"
        )
    return _Edges(x, pairs[long], lengths[long], shortest)


def _disjoint_pairs(pairs: Int[Tensor, "edges 2"], n_atoms: int) -> int:
    """Pairs of edges without a common atom: all pairs less those that meet in an atom (edges are distinct, so two share at most one)."""
    degrees = torch.bincount(pairs.flatten(), minlength=n_atoms)
    return len(pairs) * (len(pairs) - 1) // 2 - int((degrees * (degrees - 1) // 2).sum())


def _parallel(edges: _Edges, generator: torch.Generator, config: CrystalConfig) -> _Parallel:
    pairs, n_clusters = edges.pairs, ceil(len(edges.pairs) / config.edges_per_cluster)
    cluster = axial_clusters(edges.projected(config.projection, generator), n_clusters, generator=generator, n_rounds=config.n_rounds)
    order = cluster.argsort(stable=True)
    sizes = torch.bincount(cluster, minlength=n_clusters).tolist()
    left, right, values, n_compared, n_cut = [], [], [], 0, 0
    for members in order.split(sizes):
        n_cut += max(0, len(members) - MOST_IN_CLUSTER)
        members = members[:MOST_IN_CLUSTER]
        own, ends = edges.directions(members), pairs[members]
        cosines = own @ own.T
        apart = torch.ones(len(members), len(members), dtype=torch.bool, device=own.device).triu(1)
        for i in range(2):
            for j in range(2):
                apart &= ends[:, None, i] != ends[None, :, j]
        n_compared += int(apart.sum())
        a, b = ((cosines.abs() >= config.min_cosine) & apart).nonzero().unbind(dim=1)
        left.append(members[a])
        right.append(members[b])
        values.append((own[a].double() * own[b].double()).sum(dim=1))
    return _Parallel(torch.cat(left), torch.cat(right), torch.cat(values), n_compared, n_cut)


def _skew(x: Float[Tensor, "n_atoms d_in"], quadruples: Int[Tensor, "n 4"], shortest: float) -> Float[Tensor, " n"]:
    """Of the module's text; infinite where c and d are closer than `shortest` to the line, or the four atoms lie on one line."""
    found = []
    for part in quadruples.split(BATCH):
        a, b, c, d = x[part].double().unbind(dim=1)
        along = torch.nn.functional.normalize(b - a, dim=1, eps=1e-300)
        off_c, off_d = (side - (side * along).sum(dim=1, keepdim=True) * along for side in (c - a, d - a))
        distance = (off_c.norm(dim=1) + off_d.norm(dim=1)) / 2
        flat = (distance < shortest) | (distance < 1e-4 * (b - a).norm(dim=1))
        found.append(((off_d - off_c).norm(dim=1) / distance).masked_fill(flat, torch.inf))
    return torch.cat(found) if found else x.new_empty(0, dtype=torch.float64)


def _best_of_each(quadruples: Int[Tensor, "n 4"], losses: Float[Tensor, " n"], kept: Bool[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Rows to keep, by increasing loss: of every set of four atoms the pair of edges with the least loss."""
    rows = kept.nonzero().flatten()
    rows = rows[losses[rows].argsort(stable=True)]
    if len(rows) == 0:
        return rows
    _, group = torch.unique(quadruples[rows].sort(dim=1).values, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(rows), dtype=torch.int64, device=rows.device)
    first = first.scatter_reduce(0, group, torch.arange(len(rows), device=rows.device), reduce="amin")
    return rows[first.sort().values]
