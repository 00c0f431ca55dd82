"""How far a dictionary is from orthogonal: mutual coherence, the Babel function, and Babel on co-active atoms.

    mu       = max_{i != j} |<w_i, w_j>|                         rows w_i of W of unit norm
    mu_1(r)  = max_i max_{|S| = r, i not in S} sum_{j in S} |<w_i, w_j>|,      mu_1(1) = mu,  mu_1(r) <= r mu
    mu      >= sqrt((F - d) / (d (F - 1)))                       Welch 1974, "Lower bounds on the maximum cross correlation of signals"

Tropp 2004, "Greed is good: algorithmic results for sparse approximation": mu_1(k - 1) + mu_1(k) < 1 makes orthogonal matching pursuit
recover every k-sparse signal. Costa et al. 2025 (arXiv 2506.03093) apply mu_1 to the atoms that one input selects and average over inputs.
"""

from math import sqrt
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullCurve, NullStatistic, compare, compare_curve, random_directions
from sae.geometry.pairs import LONGEST_LIST, walk
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks, unit_rows


class CoactivatedBabel(NamedTuple):
    """Babel function of the atoms that are active together, averaged over samples."""

    values: Float[Tensor, " max_order"]
    """Mean of mu_1(r), r = 1..max_order, over the samples with more than r active latents (float64); each r averages other samples."""
    n_samples: Int[Tensor, " max_order"]
    """Number of samples behind each mean; never zero."""


def welch_bound(n_atoms: int, d_in: int) -> float:
    """Smallest mutual coherence that `n_atoms` unit vectors in R^`d_in` can have: sqrt((F - d) / (d (F - 1))), and 0 where F <= d.

    Raises ConfigError unless n_atoms >= 2 and d_in >= 1.
    """
    if n_atoms < 2 or d_in < 1:
        raise ConfigError(f"n_atoms must be at least 2 and d_in at least 1, got {n_atoms} and {d_in} (welch_bound)")
    return sqrt(max(0, n_atoms - d_in) / (d_in * (n_atoms - 1)))


def babel(atoms: Float[Tensor, "n_atoms d_in"], *, max_order: int, block_elements: int = BLOCK_ELEMENTS) -> Float[Tensor, " max_order"]:
    """mu_1(1), ..., mu_1(max_order): the largest over atoms of the sum of an atom's r largest absolute cosines with others (float64).

    Atoms are normalised first. Time F^2 d / 2 multiply-adds on a CPU up to order 128 (memory F max_order), F^2 d beyond and elsewhere
    (memory a few times `block_elements`). `atom_pairs` gives the same curve and the neighbours in one pass.
    Raises ConfigError for fewer than 2 atoms, a zero or non-finite atom, and `max_order` outside 1..F-1.
    """
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="babel")
    if not 1 <= max_order < len(rows):
        raise ConfigError(f"max_order must be in 1..n_atoms-1={len(rows) - 1}, got {max_order} (babel)")
    if max_order <= LONGEST_LIST:
        lists = walk(rows, None, n_neighbours=0, max_order=max_order, n_bins=0, block_elements=block_elements, where="babel")
        return lists.largest.double().cumsum(dim=1).amax(dim=0)
    highest = torch.zeros(max_order, dtype=torch.float64, device=rows.device)
    for block in row_blocks(len(rows), len(rows), block_elements, where="babel"):
        cosines = (rows[block] @ rows.T).abs_().clamp_(max=1)
        cosines.diagonal(offset=block.start).fill_(-1)
        highest = torch.maximum(highest, cosines.topk(max_order, dim=1).values.double().cumsum(dim=1).amax(dim=0))
    return highest


def mutual_coherence(atoms: Float[Tensor, "n_atoms d_in"], *, block_elements: int = BLOCK_ELEMENTS) -> float:
    """mu: the largest absolute cosine between two different atoms, mu_1(1). Errors as `babel`."""
    return babel(atoms, max_order=1, block_elements=block_elements).item()


def guaranteed_sparsity(babel_values: Float[Tensor, " max_order"]) -> int:
    """Largest k <= max_order with mu_1(k - 1) + mu_1(k) < 1 (Tropp 2004); 0 if none.

    Up to this k orthogonal matching pursuit recovers every k-sparse signal. A result equal to max_order is only a lower bound.
    """
    values = babel_values.double()
    sums = values + torch.cat([values.new_zeros(1), values[:-1]])
    return int((sums < 1).long().cumprod(dim=0).sum())


def coactivated_babel(
    atoms: Float[Tensor, "n_atoms d_in"],
    indices: Int[Tensor, "n k_max"],
    counts: Int[Tensor, " n"],
    *,
    max_order: int,
    block_elements: int = BLOCK_ELEMENTS,
) -> CoactivatedBabel:
    """Mean over samples of the Babel function of each sample's active atoms (Costa et al. 2025, arXiv 2506.03093).

    Row t uses the latents `indices[t, :counts[t]]`; slots beyond are ignored. mu_1(r) needs r + 1 atoms, so order r averages the samples
    with `counts > r` and says how many those were. Raises ConfigError for bad atoms, latents out of range or named twice in a row (merge
    codes first), counts outside 0..k_max, and `max_order` outside 1..max(counts)-1.
    """
    where = "coactivated_babel"
    rows = unit_rows(atoms, minimum=2, argument="atoms", where=where)
    indices, counts = indices.to(rows.device).long(), counts.to(rows.device).long()
    _require_supports(indices, counts, n_atoms=len(rows), max_order=max_order)
    n_slots = indices.shape[1]
    slots = torch.arange(n_slots, device=rows.device)
    itself = torch.eye(n_slots, dtype=torch.bool, device=rows.device)
    total = torch.zeros(max_order, dtype=torch.float64, device=rows.device)
    n_samples = torch.zeros(max_order, dtype=torch.int64, device=rows.device)
    for block in row_blocks(len(indices), n_slots * max(n_slots, rows.shape[1]), block_elements, where=where):
        empty = slots >= counts[block, None]
        chosen = rows[indices[block].masked_fill(empty, 0)]
        cosines = (chosen @ chosen.mT).abs_().clamp_(max=1)
        cosines.masked_fill_(empty[:, :, None] | empty[:, None, :] | itself, -torch.inf)
        curves = cosines.topk(max_order, dim=2).values.double().cumsum(dim=2).amax(dim=1)
        defined = curves.isfinite()
        total += curves.masked_fill(~defined, 0).sum(dim=0)
        n_samples += defined.sum(dim=0)
    return CoactivatedBabel(values=total / n_samples, n_samples=n_samples)


def _require_supports(indices: Int[Tensor, "n k_max"], counts: Int[Tensor, " n"], *, n_atoms: int, max_order: int) -> None:
    where = "coactivated_babel"
    n, n_slots = indices.shape
    if n == 0 or counts.min() < 0 or counts.max() > n_slots:
        raise ConfigError(f"counts must hold at least one row, each in 0..k_max={n_slots}, got {counts.tolist()[:8]} ({where})")
    largest = int(counts.max())
    if not 1 <= max_order < largest:
        raise ConfigError(f"max_order must be in 1..max(counts)-1={largest - 1}, got {max_order} ({where})")
    slots = torch.arange(n_slots, device=indices.device)
    used = slots < counts[:, None]
    outside = used & ((indices < 0) | (indices >= n_atoms))
    if outside.any():
        raise ConfigError(f"indices must be in 0..n_atoms-1={n_atoms - 1}, got {int(indices[outside][0])} ({where})")
    twice = indices.where(used, -1 - slots).sort(dim=1).values.diff(dim=1).eq(0).any(dim=1)
    if twice.any():
        first = int(twice.nonzero()[0])
        raise ConfigError(f"indices must name a latent once per row, got a repeat in row {first}: merge codes first ({where})")


def compare_coherence(atoms: Float[Tensor, "n_atoms d_in"], *, n_null: int, generator: torch.Generator) -> NullStatistic:
    """Mutual coherence against dictionaries of as many independent uniform directions; costs n_null + 1 passes.

    Errors as `babel`, and n_null < 2.
    """
    value = mutual_coherence(atoms)
    return compare(value, [mutual_coherence(random_directions(len(atoms), atoms, generator=generator)) for _ in range(n_null)])


def compare_babel(atoms: Float[Tensor, "n_atoms d_in"], *, max_order: int, n_null: int, generator: torch.Generator) -> NullCurve:
    """Babel function against dictionaries of as many independent uniform directions; costs n_null + 1 passes.

    Errors as `babel`, and n_null < 2.
    """
    values = babel(atoms, max_order=max_order)
    draws = [babel(random_directions(len(atoms), atoms, generator=generator), max_order=max_order) for _ in range(n_null)]
    return compare_curve(values, draws)


def compare_coactivated_babel(
    atoms: Float[Tensor, "n_atoms d_in"],
    indices: Int[Tensor, "n k_max"],
    counts: Int[Tensor, " n"],
    *,
    max_order: int,
    null: Literal["directions", "permutation"],
    n_null: int,
    generator: torch.Generator,
) -> NullCurve:
    """Co-activated Babel function against one of two nulls; the supports stay as they are.

    "directions": the atoms are replaced by independent uniform directions. "permutation": the atoms are dealt to the latents at random,
    which asks whether atoms that fire together are closer, or further apart, than atoms of this dictionary in general.
    Errors as `coactivated_babel`; also another `null`, and n_null < 2.
    """
    if null not in ("directions", "permutation"):
        raise ConfigError(f"null must be 'directions' or 'permutation', got {null!r} (compare_coactivated_babel)")
    values = coactivated_babel(atoms, indices, counts, max_order=max_order).values
    draws = []
    for _ in range(n_null):
        if null == "directions":
            other = random_directions(len(atoms), atoms, generator=generator)
        else:
            other = atoms[torch.randperm(len(atoms), generator=generator, device=generator.device).to(atoms.device)]
        draws.append(coactivated_babel(other, indices, counts, max_order=max_order).values)
    return compare_curve(values, draws)
