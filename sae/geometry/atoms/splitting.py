"""Feature splitting: which atoms of a larger dictionary a smaller one's atom has become.

    parent(j)       = argmax_i cos(large_j, small_i)                                     every large atom has one parent
    split factor_i  = #{j: parent(j) = i}                                                its mean over parents with children is the split factor
    path            small <- middle <- large:  via_i = {j: parent(parent_middle(j)) = i},   direct_i = {j: parent_small(j) = i}
    consistency_i   = |via_i & direct_i| / |via_i | direct_i|                            Jaccard; 1 where splitting is a tree

Bricken et al. 2023 ("Towards Monosemanticity", section on feature splitting); the hierarchy by nearest atoms is that of O'Neill et al. 2024
(2408.00657). Every atom has a nearest atom, related or not: pairs below a cosine of `minimum` have no parent (-1), and the consistency is read
against that by way of dictionaries without relation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.atoms.null_dictionaries import NullKind, null_dictionary
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import BLOCK_ELEMENTS
from sae.geometry.similarity import nearest_atoms_to


@dataclass(frozen=True, eq=False)
class Splitting:
    """The parents of a larger dictionary's atoms in a smaller one."""

    parents: Int[Tensor, " n_large"]
    """The small atom that each large atom belongs to; -1 where no cosine reaches the minimum."""
    cosines: Float[Tensor, " n_large"]
    """Largest cosine of each large atom with a small one, in [-1, 1]."""
    counts: Int[Tensor, " n_small"]
    """Number of children of each small atom."""

    @property
    def split_factor(self) -> float:
        """Mean number of children of the small atoms that have any; nan where none has."""
        held = self.counts[self.counts > 0]
        return float(held.double().mean()) if len(held) else float("nan")

    @property
    def childless(self) -> float:
        """Share of small atoms without children."""
        return float((self.counts == 0).double().mean())

    @property
    def orphans(self) -> float:
        """Share of large atoms without a parent."""
        return float((self.parents < 0).double().mean())


@dataclass(frozen=True, eq=False)
class PathConsistency:
    """How far parents found in one step are those found in two."""

    jaccards: Float[Tensor, " n_small"]
    """Jaccard index of each small atom's descendants by the two ways, float64; nan where it has none by either."""
    mean: NullStatistic
    """Their mean, beside that by way of null dictionaries."""
    agreeing: float
    """Share of large atoms with a parent by both ways whose parents are the same."""


def splitting(
    small: Float[Tensor, "n_small d_in"],
    large: Float[Tensor, "n_large d_in"],
    *,
    minimum: float = -1.0,
    block_elements: int = BLOCK_ELEMENTS,
) -> Splitting:
    """The parent of every large atom: its nearest small atom, if their cosine is at least `minimum`.

    With minimum = -1 the counts sum to n_large. O(n_small n_large d) in blocks. Raises ConfigError for `minimum` outside [-1, 1], different
    widths, and an atom that is zero or not finite.
    """
    if not -1 <= minimum <= 1:
        raise ConfigError(f"minimum must be a cosine in [-1, 1], got {minimum} (splitting)")
    near = nearest_atoms_to(large, small, n_neighbours=1, n_bins=1, block_elements=block_elements)
    cosines, parents = near.cosines[:, 0], near.atom_ids[:, 0]
    parents = torch.where(cosines >= minimum, parents, -1)
    return Splitting(parents, cosines, torch.bincount(parents[parents >= 0], minlength=len(small)))


def composed(lower: Int[Tensor, " n_large"], upper: Int[Tensor, " n_middle"]) -> Int[Tensor, " n_large"]:
    """Parents of parents: upper[lower[j]], -1 where either is -1. Raises ConfigError for a parent outside the middle set."""
    if len(lower) and int(lower.max()) >= len(upper):
        raise ConfigError(f"lower must hold parents in -1..{len(upper) - 1}, got {int(lower.max())} (composed)")
    return torch.where(lower >= 0, upper[lower.clamp(min=0)], -1)


def path_consistency(
    small: Float[Tensor, "n_small d_in"],
    middle: Float[Tensor, "n_middle d_in"],
    large: Float[Tensor, "n_large d_in"],
    *,
    minimum: float = -1.0,
    null: NullKind = "covariance",
    n_null: int = 19,
    generator: torch.Generator,
) -> PathConsistency:
    """Whether small -> middle -> large is the hierarchy small -> large: Jaccard index of every small atom's descendants by both ways.

    The null puts null dictionaries in the middle (`null_dictionary`) and searches anew: what is near to what is near is itself a little near,
    also for directions without relation. Errors as `splitting`; ConfigError too where no large atom has a parent.
    """
    direct = splitting(small, large, minimum=minimum).parents
    via = _via(small, middle, large, minimum)
    jaccards = _jaccards(via, direct, len(small))
    if bool(jaccards.isnan().all()):
        raise ConfigError(f"some large atom must have a parent, none has a cosine of {minimum}; lower minimum (path_consistency)")
    draws = []
    for _ in range(n_null):
        drawn = _jaccards(_via(small, null_dictionary(middle, null, generator=generator), large, minimum), direct, len(small))
        draws.append(float(drawn.nanmean()) if not bool(drawn.isnan().all()) else 0.0)
    both = (via >= 0) & (direct >= 0)
    agreeing = float((via == direct)[both].double().mean()) if bool(both.any()) else float("nan")
    return PathConsistency(jaccards, compare(float(jaccards.nanmean()), draws), agreeing)


def _via(small: Tensor, middle: Tensor, large: Tensor, minimum: float) -> Tensor:
    lower, upper = splitting(middle, large, minimum=minimum).parents, splitting(small, middle, minimum=minimum).parents
    return composed(lower, upper)


def _jaccards(via: Tensor, direct: Tensor, n_small: int) -> Tensor:
    """|via_i & direct_i| / |via_i | direct_i| for every small atom; nan for an empty union."""
    same = via[(via == direct) & (via >= 0)]
    shared, n_via, n_direct = (torch.bincount(ids[ids >= 0], minlength=n_small).double() for ids in (same, via, direct))
    return shared / (n_via + n_direct - shared)
