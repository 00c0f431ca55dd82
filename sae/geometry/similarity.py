"""Nearest atoms by cosine, the histogram of all cosines in the same pass, and what random directions give.

The largest of M cosines between a fixed direction and independent uniform directions of R^d has an exact law: (1 + cos) / 2 is
Beta((d - 1)/2, (d - 1)/2), so

    P(max <= c) = I_{(1 + c)/2}((d - 1)/2, (d - 1)/2)^M          I the regularised incomplete beta function

(a coordinate of a uniform point on the sphere; Cai, Fan & Jiang 2013, arXiv 1306.0256, "Distributions of angles in random packing on
spheres"). The usual sqrt(2 ln M / d) lies about 11% above it at the sizes of dictionaries.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.pairs import bin_edges, walk
from sae.geometry.rows import BLOCK_ELEMENTS, unit_rows


class Neighbours(NamedTuple):
    """Nearest atoms of each row, nearest first, and the histogram of every cosine that was compared."""

    cosines: Float[Tensor, "n n_neighbours"]
    """Signed cosines, descending; float32, or float64 for float64 input."""
    atom_ids: Int[Tensor, "n n_neighbours"]
    """Row numbers of the neighbours in `atoms`."""
    histogram: Int[Tensor, " n_bins"]
    """Number of (row, atom) pairs per bin. Within one dictionary a row is not compared with itself, and each pair counts in both orders."""
    bin_edges: Float[Tensor, " n_bins+1"]
    """Edges of the bins, equally spaced over [-1, 1], float64; a bin holds its lower edge, the last one both."""


def nearest_atoms(
    atoms: Float[Tensor, "n_atoms d_in"], *, n_neighbours: int, n_bins: int = 200, block_elements: int = BLOCK_ELEMENTS
) -> Neighbours:
    """For every atom, the `n_neighbours` other atoms with the largest signed cosine.

    Atoms are normalised first. The F^2 cosines are never stored; time F^2 d / 2 multiply-adds on a CPU (`sae.geometry.pairs`, which yields the
    Babel function in the same pass). Raises ConfigError for
    fewer than 2 atoms, a zero or non-finite atom, `n_neighbours` outside 1..F-1, and n_bins < 1.
    """
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="nearest_atoms")
    return _nearest(rows, rows, n_neighbours, n_bins, block_elements, same=True)


def nearest_atoms_to(
    queries: Float[Tensor, "n d_in"],
    atoms: Float[Tensor, "n_atoms d_in"],
    *,
    n_neighbours: int,
    n_bins: int = 200,
    block_elements: int = BLOCK_ELEMENTS,
) -> Neighbours:
    """For every row of `queries` (another dictionary, probe directions, ...), the `n_neighbours` atoms with the largest signed cosine.

    Both are normalised first; a query that is itself an atom finds itself. Errors as `nearest_atoms`, with 1..F for `n_neighbours`.
    """
    where = "nearest_atoms_to"
    left = unit_rows(queries, minimum=1, argument="queries", where=where)
    right = unit_rows(atoms, minimum=1, argument="atoms", where=where)
    dtype = torch.promote_types(left.dtype, right.dtype)
    return _nearest(left.to(dtype), right.to(dtype), n_neighbours, n_bins, block_elements, same=False)


def _nearest(
    left: Float[Tensor, "n d_in"],
    right: Float[Tensor, "n_atoms d_in"],
    n_neighbours: int,
    n_bins: int,
    block_elements: int,
    *,
    same: bool,
) -> Neighbours:
    where = "nearest_atoms" if same else "nearest_atoms_to"
    most = len(right) - same
    if not 1 <= n_neighbours <= most:
        raise ConfigError(f"n_neighbours must be in 1..{most} for {len(right)} atoms, got {n_neighbours} ({where})")
    if n_bins < 1:
        raise ConfigError(f"n_bins must be at least 1, got {n_bins} ({where})")
    others = None if same else right
    lists = walk(left, others, n_neighbours=n_neighbours, max_order=0, n_bins=n_bins, block_elements=block_elements, where=where)
    return Neighbours(cosines=lists.cosines, atom_ids=lists.atom_ids, histogram=lists.histogram, bin_edges=bin_edges(n_bins, left))


def max_cosine_null(n_atoms: int, d_in: int, *, n_null: int, generator: torch.Generator) -> Float[Tensor, " n_null"]:
    """`n_null` exact draws (float64, CPU) of the largest cosine between a fixed direction and `n_atoms` independent uniform directions.

    Inverse transform of the law above: no vectors are drawn. Within a dictionary of F atoms a row has F - 1 others. Give the draws to
    `compare`. Raises ConfigError unless n_atoms >= 1, d_in >= 2 and n_null >= 1.

        nearest = nearest_atoms(W_dec, n_neighbours=1).cosines[7, 0].item()
        compare(nearest, max_cosine_null(len(W_dec) - 1, W_dec.shape[1], n_null=999, generator=generator))
    """
    _require_sizes(n_atoms, d_in, where="max_cosine_null")
    if n_null < 1:
        raise ConfigError(f"n_null must be at least 1, got {n_null} (max_cosine_null)")
    uniform = torch.rand(n_null, dtype=torch.float64, generator=generator, device=generator.device).cpu().numpy()
    # The upper tail of one cosine that U leaves for the largest of n_atoms: 1 - U^(1/n_atoms), kept accurate when it is tiny.
    tail = -np.expm1(np.log1p(-uniform) / n_atoms)
    half = (d_in - 1) / 2
    return torch.from_numpy(2 * special.betainccinv(half, half, tail) - 1)


def max_cosine_p_value(cosines: Float[Tensor, " n"], n_atoms: int, d_in: int) -> Float[Tensor, " n"]:
    """P(largest of `n_atoms` independent uniform directions of R^d_in has a cosine >= c with a fixed one), exact, for each c; float64.

    One p-value per row, not corrected for the number of rows. Raises ConfigError unless n_atoms >= 1 and d_in >= 2, and for a cosine
    outside [-1, 1] or NaN.
    """
    _require_sizes(n_atoms, d_in, where="max_cosine_p_value")
    values = cosines.detach().double().cpu().numpy()
    if not (np.abs(values) <= 1).all():
        raise ConfigError(f"cosines must be in -1..1, got {values[~(np.abs(values) <= 1)][0]} (max_cosine_p_value)")
    half = (d_in - 1) / 2
    tail = special.betaincc(half, half, (1 + values) / 2)
    with np.errstate(divide="ignore"):  # tail = 1 at c = -1: log 0, and p = 1
        p = -np.expm1(n_atoms * np.log1p(-tail))
    return torch.from_numpy(p).to(cosines.device)


def _require_sizes(n_atoms: int, d_in: int, *, where: str) -> None:
    if n_atoms < 1 or d_in < 2:
        raise ConfigError(f"n_atoms must be at least 1 and d_in at least 2, got {n_atoms} and {d_in} ({where})")
