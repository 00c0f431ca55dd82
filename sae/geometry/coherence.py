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
    block_elements: int = BLOCK_ELEMENTS // 4,
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


def class_babel(
    atoms: Float[Tensor, "n_atoms d_in"],
    indices: Int[Tensor, "n k_max"],
    counts: Int[Tensor, " n"],
    labels: Int[Tensor, " n"],
    *,
    max_order: int,
    min_share: float = 0.0,
) -> Float[Tensor, "n_classes max_order"]:
    """The local Babel function of each class c = 0..max(labels): mu_1(r) of the atoms that fire for it (float64); NaN where it has r or fewer.

    An atom belongs to a class if it fires in more than `min_share` of the class's rows, and at least once. A dictionary may be coherent as a
    whole and incoherent among the atoms that one kind of input needs, which is when pursuit still finds them. Errors as `babel` for the
    atoms; also labels below 0 or not one a row, latents out of range, max_order < 1, and min_share outside [0, 1).
    """
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="class_babel")
    if len(labels) != len(indices) or len(counts) != len(indices) or len(labels) == 0 or int(labels.min()) < 0:
        raise ConfigError(f"labels must be one number >= 0 for each of the {len(indices)} rows, got {len(labels)} (class_babel)")
    if not 0 <= min_share < 1 or max_order < 1:
        raise ConfigError(f"min_share must be in [0, 1) and max_order at least 1, got {min_share} and {max_order} (class_babel)")
    used = torch.arange(indices.shape[1], device=indices.device) < counts[:, None]
    if bool((used & ((indices < 0) | (indices >= len(rows)))).any()):
        raise ConfigError(f"indices must be in 0..n_atoms-1={len(rows) - 1}; the codes must be of this dictionary (class_babel)")
    curves = torch.full((int(labels.max()) + 1, max_order), torch.nan, dtype=torch.float64, device=rows.device)
    for c in labels.unique().tolist():
        of_class = labels == c
        fired = indices[of_class][used[of_class]].long().bincount(minlength=len(rows))
        members = rows[(fired > min_share * int(of_class.sum())).to(rows.device)]
        order = min(max_order, len(members) - 1)
        if order >= 1:
            curves[c, :order] = babel(members, max_order=order)
    return curves


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


def null_directions(
    atoms: Float[Tensor, "n_atoms d_in"], *, null: Literal["directions", "covariance"], generator: torch.Generator
) -> Float[Tensor, "n_atoms d_in"]:
    """As many unit rows without the structure of `atoms`, in float32 or wider.

    "directions": independent and uniform. "covariance": Gaussian with the mean and the covariance of the unit atoms, then normalised, so that
    the dictionary's common direction and its flat axes stay; what is left to find are atoms that are near one another for another reason.
    Raises ConfigError for another `null`, a zero or non-finite atom, and fewer than 2 atoms.
    """
    if null not in ("directions", "covariance"):
        raise ConfigError(f"null must be 'directions' or 'covariance', got {null!r} (null_directions)")
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="null_directions")
    if null == "directions":
        return random_directions(len(rows), rows, generator=generator)
    mean = rows.double().mean(dim=0)
    second = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in row_blocks(len(rows), rows.shape[1], BLOCK_ELEMENTS, where="null_directions"):
        second += rows[block].double().T @ rows[block].double()
    values, axes = torch.linalg.eigh(second / len(rows) - mean[:, None] * mean)
    root = ((axes * values.clamp(min=0).sqrt()) @ axes.T).to(rows.dtype)
    normal = torch.randn(len(rows), rows.shape[1], generator=generator, dtype=rows.dtype, device=generator.device).to(rows.device)
    drawn = mean.to(rows.dtype) + normal @ root
    return drawn / drawn.norm(dim=1, keepdim=True)


def compare_coherence(
    atoms: Float[Tensor, "n_atoms d_in"],
    *,
    n_null: int,
    generator: torch.Generator,
    null: Literal["directions", "covariance"] = "directions",
) -> NullStatistic:
    """Mutual coherence against dictionaries without structure; see `null_directions` for the two nulls. n_null + 1 passes.

    Errors as `babel` and `null_directions`, and n_null < 2.
    """
    value = mutual_coherence(atoms)
    draws = [mutual_coherence(null_directions(atoms, null=null, generator=generator)) for _ in range(n_null)]
    return compare(value, torch.tensor(draws, dtype=torch.float64))


def compare_babel(
    atoms: Float[Tensor, "n_atoms d_in"],
    *,
    max_order: int,
    n_null: int,
    generator: torch.Generator,
    null: Literal["directions", "covariance"] = "directions",
) -> NullCurve:
    """Babel function against dictionaries without structure; see `null_directions` for the two nulls. n_null + 1 passes.

    Errors as `babel` and `null_directions`, and n_null < 2.
    """
    values = babel(atoms, max_order=max_order)
    draws = [babel(null_directions(atoms, null=null, generator=generator), max_order=max_order) for _ in range(n_null)]
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
