"""How many atoms two dictionaries share: nearest cosines, one-to-one pairs, and what dictionaries without relation give.

    MMCS(A -> B)     = mean_i max_j cos(a_i, b_j)                         one direction; atoms of B may be used again
    optimal pairs    : max over one-to-one m of sum_i cos(a_i, b_{m(i)})
    mutual nearest   : j = argmax_j' cos(a_i, b_j') and i = argmax_i' cos(a_i', b_j)
    joined cosine    = (cos(decoder_i, decoder_j) + cos(encoder_i, encoder_j)) / 2
    shared at tau    : optimal pairs of the joined cosine in which the decoders' and the encoders' cosine both exceed tau

MMCS is that of Sharkey, Braun & Millidge 2022 ("Taking features out of superposition with sparse autoencoders") and Huben et al. 2023
(2309.08600); the shared latents those of Paulo & Belrose 2025 (2501.16615). MMCS of unrelated dictionaries is far from 0, and a dictionary has
no share of "its own" atoms in it, so both directions and a null of the same search are always part of the answer.

Cosines are signed. One pass over F_A F_B cosines costs F_A F_B d, in blocks; memory is a few times `block_elements`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.atoms.assignment import Pairs, best_pairs, best_pairs_of_nearest, mutual_pairs
from sae.geometry.atoms.null_dictionaries import NullKind, null_dictionary
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import BLOCK_ELEMENTS, unit_rows
from sae.geometry.similarity import nearest_atoms_to

LARGEST_DENSE = 4096
"""Dictionaries whose smaller one has at most this many atoms are paired over all cosines at once."""
Method = Literal["optimal", "mutual"]
"""How one-to-one pairs are found."""


@dataclass(frozen=True, eq=False)
class BestCosines:
    """The nearest atom of B of every atom of A."""

    cosines: Float[Tensor, " n_a"]
    """Largest cosine of each atom of A, in [-1, 1]."""
    atom_ids: Int[Tensor, " n_a"]
    """The atom of B that has it."""
    histogram: Int[Tensor, " n_bins"]
    """Atoms of A per bin of their largest cosine."""
    bin_edges: Float[Tensor, " n_bins+1"]
    """Edges of the bins, equally spaced over [-1, 1], float64."""

    @property
    def mean(self) -> float:
        """MMCS(A -> B)."""
        return float(self.cosines.double().mean())

    @property
    def n_distinct(self) -> int:
        """Number of different atoms of B that are some atom's nearest."""
        return len(self.atom_ids.unique())

    def share_above(self, threshold: float) -> float:
        """Share of A's atoms whose largest cosine exceeds `threshold`."""
        return float((self.cosines > threshold).double().mean())


@dataclass(frozen=True)
class MatchComparison:
    """How well two dictionaries match, each number with what null dictionaries in place of the second give in the same search."""

    forward: NullStatistic
    """MMCS(A -> B)."""
    backward: NullStatistic
    """MMCS(B -> A)."""
    paired: NullStatistic
    """Mean cosine of the one-to-one pairs."""
    shares: tuple[NullStatistic, ...]
    """For every threshold, the pairs above it over the size of the smaller dictionary."""
    thresholds: tuple[float, ...]
    """The thresholds."""
    n_pairs: int
    """Number of pairs: the smaller size for optimal ones, fewer for mutual ones."""


def best_cosines(
    atoms_a: Float[Tensor, "n_a d_in"], atoms_b: Float[Tensor, "n_b d_in"], *, n_bins: int = 100, block_elements: int = BLOCK_ELEMENTS
) -> BestCosines:
    """The nearest atom of B of every atom of A, by signed cosine. Not symmetric. Errors as `nearest_atoms_to`."""
    near = nearest_atoms_to(atoms_a, atoms_b, n_neighbours=1, n_bins=n_bins, block_elements=block_elements)
    cosines = near.cosines[:, 0]
    histogram = cosines.float().histc(n_bins, min=-1, max=1).long()
    return BestCosines(cosines, near.atom_ids[:, 0], histogram, near.bin_edges)


def mmcs(atoms_a: Float[Tensor, "n_a d_in"], atoms_b: Float[Tensor, "n_b d_in"], *, block_elements: int = BLOCK_ELEMENTS) -> float:
    """MMCS(A -> B) = mean over the atoms of A of the largest cosine with an atom of B, in [-1, 1]; see `compare_matching` for its null."""
    return best_cosines(atoms_a, atoms_b, n_bins=1, block_elements=block_elements).mean


def atom_pairs(
    atoms_a: Float[Tensor, "n_a d_in"],
    atoms_b: Float[Tensor, "n_b d_b"],
    *,
    method: Method = "optimal",
    n_candidates: int = 32,
    block_elements: int = BLOCK_ELEMENTS,
) -> Pairs:
    """One-to-one pairs of the atoms of two dictionaries by signed cosine; rows are atoms of A.

    "optimal" exhausts the smaller dictionary with the largest sum of cosines: the Hungarian method up to 4096 atoms in the smaller one, above
    it the sparse assignment over the `n_candidates` nearest atoms of each (`assignment.best_pairs_of_nearest`: `Pairs.shortfall` bounds how
    far the mean cosine can be from the optimum, 0 where they agree). "mutual" keeps the pairs that are each other's nearest, O(F^2 d) and no
    search. Raises ConfigError for another method, different widths, and an atom that is zero or not finite.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method must be one of {list(get_args(Method))}, got {method!r} (atom_pairs)")
    a, b = _both(atoms_a, atoms_b, "atom_pairs")
    if method == "mutual":
        forward, back = (nearest_atoms_to(x, y, n_neighbours=1, n_bins=1, block_elements=block_elements) for x, y in ((a, b), (b, a)))
        return mutual_pairs(forward.atom_ids[:, 0], back.atom_ids[:, 0], forward.cosines[:, 0])
    if len(a) > len(b):
        return atom_pairs(b, a, n_candidates=n_candidates, block_elements=block_elements).swapped()
    if len(a) <= LARGEST_DENSE:
        return best_pairs((a @ b.T).clamp_(-1, 1))

    def nearest(rows: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
        found = nearest_atoms_to(a[rows], b[columns], n_neighbours=k, n_bins=1, block_elements=block_elements)
        return found.cosines, found.atom_ids

    return best_pairs_of_nearest(nearest, n_rows=len(a), n_columns=len(b), n_candidates=n_candidates)


def joined_rows(decoders: Float[Tensor, "n d_in"], encoders: Float[Tensor, "m d_enc"]) -> Float[Tensor, "n 2*d_in"]:
    """Unit rows [decoder, encoder] / sqrt(2) of every latent: the cosine of two such rows is the joined cosine of the module's text.

    `encoders` holds one row per latent, W_enc transposed. Raises ConfigError for different sizes, and a row that is zero or not finite.
    """
    if decoders.shape != encoders.shape:
        raise ConfigError(
            f"encoders must have the shape of decoders {list(decoders.shape)}, one row per latent (W_enc.T), got {list(encoders.shape)} "
            "(joined_rows)"
        )
    parts = [
        unit_rows(each, minimum=1, argument=name, where="joined_rows") for name, each in (("decoders", decoders), ("encoders", encoders))
    ]
    return torch.cat(parts, dim=1) / 2**0.5


@dataclass(frozen=True, eq=False)
class SharedLatents:
    """Which latents two dictionaries share by decoder and encoder."""

    pairs: Pairs
    """The pairs by the joined cosine."""
    decoder_cosines: Float[Tensor, " n_pairs"]
    """Cosine of each pair's decoders, float64."""
    encoder_cosines: Float[Tensor, " n_pairs"]
    """Cosine of each pair's encoders, float64."""

    def share(self, threshold: float = 0.7) -> float:
        """Pairs in which both cosines exceed `threshold`, over the size of the smaller dictionary."""
        both = (self.decoder_cosines > threshold) & (self.encoder_cosines > threshold)
        return int(both.sum()) / min(self.pairs.n_rows, self.pairs.n_columns)


def shared_latents(
    decoders_a: Float[Tensor, "n_a d_in"],
    encoders_a: Float[Tensor, "n_a d_in"],
    decoders_b: Float[Tensor, "n_b d_in"],
    encoders_b: Float[Tensor, "n_b d_in"],
    *,
    n_candidates: int = 32,
) -> SharedLatents:
    """Latents paired by the mean of their decoders' and encoders' cosines, with both cosines (Paulo & Belrose 2025, 2501.16615).

    Encoders are rows, W_enc transposed. A tied dictionary has encoder = decoder, and then this is `atom_pairs`. Chance: `compare_matching` of
    the two `joined_rows`. Errors as `joined_rows`.
    """
    pairs = atom_pairs(joined_rows(decoders_a, encoders_a), joined_rows(decoders_b, encoders_b), n_candidates=n_candidates)
    cosines = []
    for name, a, b in (("decoders", decoders_a, decoders_b), ("encoders", encoders_a, encoders_b)):
        left, right = (unit_rows(each.double(), minimum=1, argument=name, where="shared_latents").cpu() for each in (a, b))
        cosines.append((left[pairs.rows] * right[pairs.columns]).sum(dim=1))
    return SharedLatents(pairs, *cosines)


def compare_matching(
    atoms_a: Float[Tensor, "n_a d_in"],
    atoms_b: Float[Tensor, "n_b d_b"],
    *,
    null: NullKind = "covariance",
    method: Method = "optimal",
    thresholds: Sequence[float] = (0.7, 0.9),
    n_null: int = 19,
    generator: torch.Generator,
) -> MatchComparison:
    """MMCS in both directions, mean cosine and shares of the pairs, each beside null dictionaries put in place of B and matched anew.

    `null` says what the null keeps of B (`null_dictionary`): "covariance" its anisotropy, the default, since directions that all data share
    raise every cosine; "reflected" that and all cosines within B. Each draw costs what the value costs. Errors as `atom_pairs`.

        compare_matching(first.W_dec, second.W_dec, generator=torch.Generator().manual_seed(0)).shares[0]
    """
    a, b = _both(atoms_a, atoms_b, "compare_matching")
    value, n_pairs = _scores(a, b, method, thresholds)
    draws = torch.tensor([_scores(a, null_dictionary(b, null, generator=generator), method, thresholds)[0] for _ in range(n_null)])
    compared = [compare(value[i], draws[:, i]) for i in range(len(value))] if n_null else []
    if not compared:
        raise ConfigError(f"n_null must be at least 2, got {n_null} (compare_matching)")
    return MatchComparison(*compared[:3], tuple(compared[3:]), tuple(thresholds), n_pairs)


def _scores(a: Tensor, b: Tensor, method: Method, thresholds: Sequence[float]) -> tuple[list[float], int]:
    pairs = atom_pairs(a, b, method=method)
    shares = [pairs.share_above(threshold) for threshold in thresholds]
    return [mmcs(a, b), mmcs(b, a), pairs.mean if len(pairs.rows) else 0.0, *shares], len(pairs.rows)


def _both(atoms_a: Tensor, atoms_b: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Both as unit rows of one dtype."""
    if atoms_a.shape[1] != atoms_b.shape[1]:
        raise ConfigError(
            f"atoms_b must have the width of atoms_a, {atoms_a.shape[1]}, got {atoms_b.shape[1]}; dictionaries of different spaces are compared "
            f"by the correlation of their codes, see sae.geometry.atoms.correlation ({where})"
        )
    a = unit_rows(atoms_a, minimum=1, argument="atoms_a", where=where)
    b = unit_rows(atoms_b, minimum=1, argument="atoms_b", where=where)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)
