"""Feature families: a general feature and the special ones that fire with it, from which features fire together.

    f_i, C_ij     rows (tokens or documents) on which i fires, on which i and j both do; n rows in all
    phi_ij        = (n C_ij - f_i f_j) / sqrt(f_i (n - f_i) f_j (n - f_j))                the correlation of two binary variables
    lift_ij       = n C_ij / (f_i f_j)                                                     1 for independent features
    p_ij          = P(Poisson(f_i f_j / n) >= C_ij)                                        chance of as many coincidences
    forest        = the spanning forest with the largest sum of weights; edges point from the feature that fires more to the other
    family        = a feature with more than `minimum_degree` edges out of it, and all that is reached from it
    block ratio R = mean of C_pi / min(f_p, f_i) over parent p and its children i  /  the same over pairs of children

The procedure is that of O'Neill et al. 2024 (2408.00657): find families, delete their parents, repeat; of two families that overlap (Jaccard)
keep the larger. Two rules for the edges:

    "association"   keep a pair where p_ij, Bonferroni-corrected over all pairs, is below `alpha`, and phi_ij > `minimum_phi`; weight phi
    "share"         the paper's: keep a pair where C_ij / (f_i + 1) or C_ij / (f_j + 1) exceeds .1 (.07 after the first pass); weight exp(larger)

The absolute cut of "share" is passed by chance as soon as a parent fires on more than a tenth of all rows, and families then leak into each
other; "association" asks for more coincidences than chance gives, however often the features fire. Departures in "share": the two directions
of a pair are combined by their maximum (the paper's code keeps whichever was written last), and neither quality scores nor a cut on density
decide beforehand which features take part: pass `eligible`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.atoms.correlation import code_moments

if TYPE_CHECKING:
    import scipy.sparse


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """How families are found; the module's text has the rules."""

    edges: Literal["association", "share"] = "association"
    """Which pairs may be edges, and what they weigh."""
    alpha: float = 0.01
    """"association": chance that any pair of independent features becomes an edge."""
    minimum_phi: float = 0.05
    """"association": smallest phi of an edge; with many rows chance alone excludes almost nothing."""
    share: float = 0.1
    """"share": smallest share of the rarer feature's rows that an edge needs, in the first pass."""
    later_share: float = 0.07
    """"share": the same in later passes."""
    n_passes: int = 3
    """Times the parents found are deleted and the forest is built anew, the first included."""
    minimum_degree: int = 2
    """A parent has more edges out of it than this."""
    minimum_children: int = 3
    """A family has more members besides its parent than this."""
    largest_overlap: float = 0.6
    """Jaccard index above which the smaller of two families is dropped."""

    def __post_init__(self) -> None:
        if self.edges not in ("association", "share"):
            raise ConfigError(f"edges must be 'association' or 'share', got {self.edges!r} (FamilyConfig)")
        for name in ("alpha", "share", "later_share", "largest_overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, got {getattr(self, name)} (FamilyConfig)")
        if not 0 <= self.minimum_phi < 1:
            raise ConfigError(f"minimum_phi must be at least 0 and below 1, got {self.minimum_phi} (FamilyConfig)")
        if self.n_passes < 1 or self.minimum_degree < 0 or self.minimum_children < 1:
            values = (self.n_passes, self.minimum_degree, self.minimum_children)
            raise ConfigError(f"n_passes, minimum_degree, minimum_children must be at least 1, 0, 1, got {values} (FamilyConfig)")


@dataclass(frozen=True, eq=False)
class CoFirings:
    """On how many rows features fire, and fire together."""

    n_rows: int
    """Number of rows: tokens or documents."""
    counts: Int[Tensor, " n_features"]
    """Rows on which each feature fires."""
    together: "scipy.sparse.csr_matrix"
    """Rows on which both fire, scipy CSR [n_features, n_features], symmetric; the diagonal holds `counts`."""


@dataclass(frozen=True)
class Family:
    """A parent and what is reached from it in the forest."""

    parent: int
    """The feature that fires most often."""
    children: tuple[int, ...]
    """All features reached from it, ascending; grandchildren included."""
    found_in: int
    """Number of the pass that found it, from 0."""


@dataclass(frozen=True, eq=False)
class Families:
    """The families, and the forest of the first pass."""

    families: tuple[Family, ...]
    """The families, larger ones first."""
    parents: Int[Tensor, " n_edges"]
    """The more frequent end of each edge of the first pass's forest."""
    children: Int[Tensor, " n_edges"]
    """The other end."""
    weights: Float[Tensor, " n_edges"]
    """Weight of each edge, float64: phi, or exp of the share."""


def co_firings(batches: Iterable[SparseCodes]) -> CoFirings:
    """Counts of the rows on which features are active (value > 0), alone and together, in one pass over batches of codes.

    Time n k^2. To count documents instead of tokens, give one row of codes per document. Raises ConfigError for no rows.
    """
    moments = code_moments((fired, fired) for fired in map(_fired, batches))
    counts = torch.from_numpy(np.rint(moments.sums_a.numpy()).astype(np.int64))
    return CoFirings(moments.n_tokens, counts, moments.products)


def _fired(codes: SparseCodes) -> SparseCodes:
    merged = codes.detach().merged()
    return SparseCodes.of_slots(merged.indices, ((merged.values > 0) & merged.active()).double(), merged.d_sae)


def families(firings: CoFirings, config: FamilyConfig = FamilyConfig(), *, eligible: Bool[Tensor, " n_features"] | None = None) -> Families:
    """The families among the features that fire (and are `eligible`); see the module's text.

    Time and memory grow with the number of pairs that fire together. Raises ConfigError for counts that do not fit.
    """
    counts = firings.counts.cpu().numpy().astype(np.float64)
    n = len(counts)
    if firings.together.shape != (n, n) or (eligible is not None and len(eligible) != n):
        raise ConfigError(f"together and eligible must be over the {n} features of counts, got {firings.together.shape} (families)")
    taking_part = counts > 0
    if eligible is not None:
        taking_part &= eligible.cpu().numpy()
    pairs = _pairs(firings, counts)
    found: list[Family] = []
    first: tuple[Any, ...] | None = None
    for index in range(config.n_passes):
        edges = _forest(*_edges(pairs, counts, taking_part, firings.n_rows, config, index), counts)
        first = first or edges
        made = _of_forest(edges[0], edges[1], config, index)
        found += made
        if not made:
            break
        taking_part[[family.parent for family in made]] = False
    kept = _without_overlap(found, config.largest_overlap)
    assert first is not None
    return Families(tuple(kept), *(torch.from_numpy(each) for each in first))


def block_ratio(firings: CoFirings, family: Family, *, diagonal: bool = False) -> float:
    """R of one family: well above 1 where children fire with the parent more than with each other.

    With `diagonal` every child also counts as a pair with itself, as in the paper's code, which draws R towards 1. nan for a single child
    without the diagonal; infinite where children never fire together.
    """
    members = np.array(family.children)
    counts = firings.counts.cpu().numpy().astype(np.float64)
    with_parent = firings.together[[family.parent]][:, members].toarray()[0] / np.minimum(counts[family.parent], counts[members])
    among = firings.together[members][:, members].toarray() / np.minimum.outer(counts[members], counts[members])
    chosen = np.ones_like(among, dtype=bool) if diagonal else ~np.eye(len(members), dtype=bool)
    if not chosen.any():
        return float("nan")
    below = among[chosen].mean()
    return float(with_parent.mean() / below) if below > 0 else float("inf")


def phi_and_lift(
    together: Float[Tensor, " n_pairs"], counts_i: Float[Tensor, " n_pairs"], counts_j: Float[Tensor, " n_pairs"], n_rows: int
) -> tuple[Float[Tensor, " n_pairs"], Float[Tensor, " n_pairs"]]:
    """phi and lift of pairs of features from their counts, float64; 0 and nan where a count is 0, phi 0 where a feature always fires."""
    c, i, j = together.double(), counts_i.double(), counts_j.double()
    spread = (i * (n_rows - i) * j * (n_rows - j)).sqrt()
    return torch.where(spread > 0, (n_rows * c - i * j) / spread, 0.0), n_rows * c / (i * j)


def _pairs(firings: CoFirings, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i < j and C_ij of every pair that fires together, so that the two orders of a pair are one edge."""
    import scipy.sparse

    upper = scipy.sparse.triu(firings.together, k=1).tocoo()
    return upper.row.astype(np.int64), upper.col.astype(np.int64), upper.data.astype(np.float64)


def _edges(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray], counts: np.ndarray, alive: np.ndarray, n_rows: int, config: FamilyConfig, index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from scipy.special import pdtrc

    i, j, together = pairs
    keep = alive[i] & alive[j] & (together > 0)
    i, j, together = i[keep], j[keep], together[keep]
    if config.edges == "share":
        weight = together / (np.minimum(counts[i], counts[j]) + 1)
        above = weight > (config.share if index == 0 else config.later_share)
        return i[above], j[above], np.exp(weight[above])
    tensors = [torch.from_numpy(each) for each in (together, counts[i], counts[j])]
    phi = phi_and_lift(*tensors, n_rows)[0].numpy()
    n_alive = int(alive.sum())
    chance = pdtrc(together - 1, counts[i] * counts[j] / n_rows) * (n_alive * (n_alive - 1) / 2)
    above = (chance < config.alpha) & (phi > config.minimum_phi)
    return i[above], j[above], phi[above]


def _forest(i: np.ndarray, j: np.ndarray, weight: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(more frequent end, other end, weight) of the edges of the maximum spanning forest; of equal counts the lower number comes first."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    if not len(i):
        return i, j, weight
    cost = 1 + weight.max() - weight  # positive: an explicit zero would not be an edge
    tree = minimum_spanning_tree(csr_matrix((cost, (i, j)), shape=(len(counts), len(counts)))).tocoo()
    a, b = tree.row.astype(np.int64), tree.col.astype(np.int64)
    forwards = (counts[a] > counts[b]) | ((counts[a] == counts[b]) & (a < b))
    return np.where(forwards, a, b), np.where(forwards, b, a), 1 + weight.max() - tree.data


def _of_forest(parents: np.ndarray, children: np.ndarray, config: FamilyConfig, index: int) -> list[Family]:
    below: dict[int, list[int]] = {}
    for parent, child in zip(parents.tolist(), children.tolist(), strict=True):
        below.setdefault(parent, []).append(child)
    found = []
    for parent in sorted(below):
        if len(below[parent]) <= config.minimum_degree:
            continue
        reached, waiting = set(below[parent]), list(below[parent])
        while waiting:
            new = set(below.get(waiting.pop(), ())) - reached
            reached |= new
            waiting += new
        if len(reached) > config.minimum_children:
            found.append(Family(parent, tuple(sorted(reached)), index))
    return found


def _without_overlap(found: list[Family], largest: float) -> list[Family]:
    """Larger families first, earlier passes before later ones; a family that overlaps too much with one kept is dropped."""
    kept: list[tuple[Family, set[int]]] = []
    for family in sorted(found, key=lambda each: (-len(each.children), each.found_in, each.parent)):
        members = {family.parent, *family.children}
        if all(len(members & other) <= largest * len(members | other) for _, other in kept):
            kept.append((family, members))
    return [family for family, _ in kept]
