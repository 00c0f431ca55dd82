"""Atoms as a frame: how many dimensions each has to itself, how much the others disturb it, and how far the whole is from tight.

    G = W^T W                                         [d, d], rows w_i of W not necessarily of unit norm
    D_i = |w_i|^2 / sum_j <w^_i, w_j>^2 = |w_i|^4 / (w_i^T G w_i)           w^_i = w_i / |w_i|
    interference_i = sum_{j != i} <w^_i, w_j>^2 = |w_i|^2 (1 / D_i - 1)
    D* = d / |W|_F^2                                  dimensions per feature
    FP = sum_ij <w_i, w_j>^2 = |G|_F^2  >=  (sum_i |w_i|^2)^2 / min(F, d)   frame potential

Elhage et al. 2022 (arXiv 2209.10652), "Toy Models of Superposition", for D, interference and D*; Benedetto & Fickus 2003, "Finite normalized
tight frames", for the potential: unit vectors reach F^2 / d exactly where they are a tight frame, A = B for the frame bounds A |x|^2 <=
sum_i <w_i, x>^2 <= B |x|^2, the smallest and the largest eigenvalue of G. sum_i D_i is at most the rank of W, with equality where the atoms
are tight on what they span: orthogonal atoms 1, digon 1/2, triangle 2/3, tetrahedron 3/4, pentagon 2/5, tight square antiprism 3/8.

D_i needs G and not the F^2 products: time F d min(F, d), not F^2 d. (The paper's code writes out W W^T.)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.coherence import null_directions
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks


@dataclass(frozen=True, eq=False)
class Frame:
    """A dictionary as a frame of R^d."""

    dimensionality: Float[Tensor, " n_atoms"]
    """D_i in 0..1 (float64); 0 for an atom of length zero, which represents nothing."""
    interference: Float[Tensor, " n_atoms"]
    """sum_{j != i} <w^_i, w_j>^2 (float64), in units of squared length; 0 for an atom of length zero."""
    rank: int
    """Dimensions that the atoms span, eigenvalues of G below max(F, d) eps of the largest not counted: the bound of sum_i D_i."""
    lower_bound: float
    """A: smallest eigenvalue of G, 0 where the atoms do not span R^d."""
    upper_bound: float
    """B: largest eigenvalue of G."""
    potential: float
    """FP."""
    potential_bound: float
    """The smallest potential that as many atoms of this total squared length have: (sum |w_i|^2)^2 / min(F, d); F^2 / d for unit atoms."""
    dimensions_per_feature: float
    """D* = d / |W|_F^2; d / F for unit atoms."""

    @property
    def total_dimensionality(self) -> float:
        """sum_i D_i, at most `rank`."""
        return self.dimensionality.sum().item()

    @property
    def tightness(self) -> float:
        """Smallest possible over actual potential, in 0..1; 1 for a tight frame of R^d (or, where F < d, for orthogonal atoms of one length)."""
        return self.potential_bound / self.potential


def frame(atoms: Float[Tensor, "n_atoms d_in"], *, block_elements: int = BLOCK_ELEMENTS) -> Frame:
    """The atoms as a frame; lengths count. See the fields. In float64, atoms divided by the largest norm first.

    Time F d min(F, d). Raises ConfigError for no atoms, NaN or Inf, and for atoms that are all zero.
    """
    require_points(atoms, minimum=1, argument="atoms", where="frame")
    n_atoms, d_in = atoms.shape
    scale = atoms.detach().abs().amax().double()
    if scale == 0:
        raise ConfigError(f"atoms must not all be zero, got {n_atoms} zero rows; leave out the atoms that have died (frame)")
    squares, disturbed, eigenvalues = _moments(atoms.detach(), scale, block_elements)
    total = squares.sum().item()
    potential = eigenvalues.square().sum().item()
    rank = int((eigenvalues > max(n_atoms, d_in) * torch.finfo(torch.float64).eps * eigenvalues.max()).sum())
    alive = squares > 0
    dimensionality = torch.where(alive, squares.square() / disturbed.where(alive, torch.ones_like(squares)), 0)
    interference = torch.where(alive, (disturbed / squares.where(alive, torch.ones_like(squares)) - squares).clamp(min=0), 0)
    unit = scale.item() ** 2
    return Frame(
        dimensionality=dimensionality.clamp(max=1),
        interference=interference * unit,
        rank=rank,
        lower_bound=eigenvalues.min().clamp(min=0).item() * unit if rank == d_in else 0.0,
        upper_bound=eigenvalues.max().item() * unit,
        potential=potential * unit**2,
        potential_bound=(total * unit) ** 2 / min(n_atoms, d_in),
        dimensions_per_feature=d_in / (total * unit),
    )


def _moments(
    atoms: Float[Tensor, "n_atoms d_in"], scale: Float[Tensor, ""], block_elements: int
) -> tuple[Float[Tensor, " n_atoms"], Float[Tensor, " n_atoms"], Float[Tensor, " smaller"]]:
    """(|w_i|^2, sum_j <w_i, w_j>^2, eigenvalues of the smaller of W^T W and W W^T), of the atoms divided by `scale`."""
    n_atoms, d_in = atoms.shape
    if n_atoms < d_in:
        rows = atoms.double() / scale
        product = rows @ rows.T
        return product.diagonal().clone(), product.square().sum(dim=1), torch.linalg.eigvalsh(product)
    product = atoms.new_zeros(d_in, d_in, dtype=torch.float64)
    squares, disturbed = (atoms.new_empty(n_atoms, dtype=torch.float64) for _ in range(2))
    blocks = list(row_blocks(n_atoms, d_in, block_elements, where="frame"))
    for block in blocks:
        rows = atoms[block].double() / scale
        product += rows.T @ rows
        squares[block] = rows.square().sum(dim=1)
    for block in blocks:
        rows = atoms[block].double() / scale
        disturbed[block] = (rows @ product * rows).sum(dim=1)
    return squares, disturbed, torch.linalg.eigvalsh(product)


def feature_dimensionality(atoms: Float[Tensor, "n_atoms d_in"]) -> Float[Tensor, " n_atoms"]:
    """D_i of every atom; see `frame`, also for the errors."""
    return frame(atoms).dimensionality


def compare_dimensionality(
    atoms: Float[Tensor, "n_atoms d_in"],
    *,
    n_null: int,
    generator: torch.Generator,
    null: Literal["directions", "covariance"] = "directions",
) -> NullStatistic:
    """sum_i D_i against atoms of the same lengths in random directions; see `null_directions` for the two nulls. n_null + 1 times `frame`.

    Below its null: the atoms crowd into fewer dimensions than chance would. Errors as `frame`, and n_null < 2.
    """
    return _compare(atoms, lambda w: frame(w).total_dimensionality, n_null, generator, null)


def compare_frame_potential(
    atoms: Float[Tensor, "n_atoms d_in"],
    *,
    n_null: int,
    generator: torch.Generator,
    null: Literal["directions", "covariance"] = "directions",
) -> NullStatistic:
    """Frame potential over its bound (1 for a tight frame, larger otherwise) against atoms of the same lengths in random directions.

    Errors as `frame`, and n_null < 2.
    """
    return _compare(atoms, lambda w: 1 / frame(w).tightness, n_null, generator, null)


def _compare(atoms: Tensor, statistic, n_null: int, generator: torch.Generator, null: str) -> NullStatistic:
    value = statistic(atoms)
    lengths = atoms.detach().double().norm(dim=1, keepdim=True)
    alive = lengths.flatten() > 0
    draws = []
    for _ in range(n_null):
        drawn = torch.zeros_like(atoms, dtype=torch.promote_types(atoms.dtype, torch.float32))
        drawn[alive] = (null_directions(atoms[alive], null=null, generator=generator) * lengths[alive]).to(drawn.dtype)
        draws.append(statistic(drawn))
    return compare(value, torch.tensor(draws, dtype=torch.float64))
