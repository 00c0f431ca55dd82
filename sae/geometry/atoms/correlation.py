"""Which latents of two dictionaries answer to the same tokens: Pearson correlations of sparse codes, and pairs by them.

    r_ij = (sum_t a_ti b_tj / n - m_i m_j) / (s_i s_j),     m, s: mean and standard deviation over the n tokens, zeros included

The tokens have to be the same, nothing else: the dictionaries may belong to different layers, widths or models, which is why Lan et al. 2024
(2410.06981) pair latents this way. Sums and products are added up batch by batch; the products are those of sparse matrices, so no array of
F_A F_B numbers is made while codes come in, and rows of r are only written out a block at a time.

    semi-matching   every latent takes its best partner, used or not (what the paper does)
    matching        every latent of the smaller dictionary takes one of its own (Hungarian method)
    gap             mean r of the first minus mean r of the second: how far the latents of one are several for one of the other

Departures from the paper's code: the standard deviation and the covariance have the same denominator; a latent that is constant (dead) has no
correlation, is flagged and never paired, where adding 1e-8 gave it one; a latent that is wanted by several goes to the pairing with the
largest sum and not to the first in the list.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.atoms.assignment import LARGEST_WHOLE, Pairs, best_pairs, best_pairs_of_nearest, mutual_pairs
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks

if TYPE_CHECKING:
    import scipy.sparse

Method = Literal["optimal", "mutual"]
"""How one-to-one pairs are found."""


@dataclass(frozen=True, eq=False)
class CodeMoments:
    """Sums over tokens of the codes of two dictionaries, and of their products; float64."""

    n_tokens: int
    """Number of tokens."""
    sums_a: Float[Tensor, " f_a"]
    """sum_t a_ti."""
    sums_b: Float[Tensor, " f_b"]
    """sum_t b_tj."""
    deviations_a: Float[Tensor, " f_a"]
    """Standard deviation of each latent of A (n in the denominator); exactly 0 for a dead one."""
    deviations_b: Float[Tensor, " f_b"]
    """Standard deviation of each latent of B."""
    products: "scipy.sparse.csr_matrix"
    """sum_t a_ti b_tj, scipy CSR [f_a, f_b]."""

    @property
    def dead_a(self) -> Bool[Tensor, " f_a"]:
        """Latents of A without a correlation: never active, or the same on every token."""
        return self.deviations_a == 0

    @property
    def dead_b(self) -> Bool[Tensor, " f_b"]:
        """Latents of B without a correlation."""
        return self.deviations_b == 0

    def swapped(self) -> "CodeMoments":
        """The same sums with A and B exchanged."""
        return CodeMoments(self.n_tokens, self.sums_b, self.sums_a, self.deviations_b, self.deviations_a, self.products.T.tocsr())

    def block(self, rows: Int[Tensor, " rows"] | slice) -> Float[Tensor, "rows f_b"]:
        """r of the chosen latents of A with all of B, float64, within rounding of [-1, 1]; 0 where either is dead."""
        index = rows.numpy() if isinstance(rows, Tensor) else rows
        mean_a, mean_b = self.sums_a[rows] / self.n_tokens, self.sums_b / self.n_tokens
        covariance = torch.from_numpy(self.products[index].toarray()) / self.n_tokens - mean_a[:, None] * mean_b
        scale = self.deviations_a[rows][:, None] * self.deviations_b
        return torch.where(scale > 0, covariance / scale, 0.0).clamp_(-1, 1)


@dataclass(frozen=True, eq=False)
class BestCorrelations:
    """The best partner of every latent of A among the latents of B (semi-matching)."""

    correlations: Float[Tensor, " f_a"]
    """Largest correlation of each latent, float64; 0 for a dead one."""
    latents: Int[Tensor, " f_a"]
    """The latent of B that has it; -1 for a dead one."""

    @property
    def mean(self) -> float:
        """Mean over the latents that are not dead; nan without any."""
        alive = self.latents >= 0
        return float(self.correlations[alive].mean()) if bool(alive.any()) else float("nan")


def code_moments(batches: Iterable[tuple[SparseCodes, SparseCodes]]) -> CodeMoments:
    """Sums of the codes of two dictionaries over batches of the same tokens; exact, in one pass.

    Time is about n k_A k_B. The products take 12 bytes for every pair of latents that was ever active together. Raises ConfigError for no
    rows at all, batches whose two codes differ in rows, dictionaries that change size, and codes that are not finite.
    """
    totals: _Totals | None = None
    for codes_a, codes_b in batches:
        if len(codes_a) != len(codes_b):
            raise ConfigError(f"both codes of a batch must have the same tokens, got {len(codes_a)} and {len(codes_b)} rows (code_moments)")
        totals = totals or _Totals(codes_a.d_sae, codes_b.d_sae)
        totals.add_(codes_a, codes_b)
    if totals is None or not totals.n:
        raise ConfigError("batches must hold at least one row of codes, got none (code_moments)")
    return totals.moments()


class _Totals:
    """Running sums. Products of batches are added together when those waiting are as many as those already added."""

    def __init__(self, f_a: int, f_b: int):
        self.n, self.sizes = 0, (f_a, f_b)
        self.sums = [np.zeros(f) for f in (f_a, f_b)]
        self.squares = [np.zeros(f) for f in (f_a, f_b)]
        self.products: Any = None
        self.waiting: list[Any] = []

    def add_(self, *codes: SparseCodes) -> None:
        if tuple(each.d_sae for each in codes) != self.sizes:
            raise ConfigError(f"all batches must be over {self.sizes} latents, got {[each.d_sae for each in codes]} (code_moments)")
        matrices = [each.csr().astype(np.float64) for each in codes]
        for i, matrix in enumerate(matrices):
            if not np.isfinite(matrix.data).all():
                raise ConfigError("codes must be finite, got NaN or Inf (code_moments)")
            self.sums[i] += np.asarray(matrix.sum(axis=0)).ravel()
            self.squares[i] += np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()
        self.n += len(codes[0])
        self.waiting.append((matrices[0].T.tocsr() @ matrices[1]).tocsr())
        if self.products is None or sum(each.nnz for each in self.waiting) >= self.products.nnz:
            self._merge_()

    def _merge_(self) -> None:
        parts = self.waiting if self.products is None else [self.products, *self.waiting]
        while len(parts) > 1:  # in pairs: each entry is copied log2(parts) times
            parts = [parts[i] + parts[i + 1] if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
        self.products, self.waiting = parts[0], []

    def moments(self) -> CodeMoments:
        if self.waiting:
            self._merge_()
        deviations = []
        for sums, squares in zip(self.sums, self.squares, strict=True):
            variance = squares / self.n - (sums / self.n) ** 2
            # What rounding leaves of a constant's variance is not variance.
            variance[variance <= 16 * np.finfo(np.float64).eps * squares / self.n] = 0.0
            deviations.append(torch.from_numpy(np.sqrt(variance)))
        return CodeMoments(self.n, *(torch.from_numpy(each) for each in self.sums), *deviations, self.products)


def best_correlations(moments: CodeMoments, *, block_elements: int = BLOCK_ELEMENTS) -> BestCorrelations:
    """The best partner in B of every latent of A, many to one, as the paper pairs them; `moments.swapped()` gives the other direction."""
    values, ids = _nearest(moments, torch.arange(len(moments.sums_a)), torch.arange(len(moments.sums_b)), 1, block_elements)
    found = ~moments.dead_a & ~moments.dead_b[ids[:, 0]]
    return BestCorrelations(torch.where(found, values[:, 0], 0.0), torch.where(found, ids[:, 0], -1))


def latent_pairs(
    moments: CodeMoments,
    *,
    method: Method = "optimal",
    minimum: float = -1.0,
    n_candidates: int = 32,
    block_elements: int = BLOCK_ELEMENTS,
) -> Pairs:
    """One-to-one pairs of latents by the correlation of their codes; dead latents are left out, and pairs with r <= `minimum`.

    `n_rows` and `n_columns` of the result count all latents, so that a share is one of all. "optimal" is the Hungarian method up to 2048
    living latents in the smaller dictionary and the sparse assignment above; "mutual" each other's best. Raises ConfigError for another method.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method must be one of {list(get_args(Method))}, got {method!r} (latent_pairs)")
    alive_a, alive_b = (~moments.dead_a).nonzero()[:, 0], (~moments.dead_b).nonzero()[:, 0]
    sizes = (len(moments.sums_a), len(moments.sums_b))
    if not len(alive_a) or not len(alive_b):
        none = torch.zeros(0, dtype=torch.long)
        return Pairs(none, none, torch.zeros(0, dtype=torch.float64), *sizes, 0.0)
    if method == "mutual":
        forward, back = (best_correlations(each, block_elements=block_elements) for each in (moments, moments.swapped()))
        return _above(mutual_pairs(forward.latents, back.latents, forward.correlations), minimum)
    if len(alive_a) > len(alive_b):
        pairs = latent_pairs(moments.swapped(), minimum=minimum, n_candidates=n_candidates, block_elements=block_elements)
        return pairs.swapped()
    if len(alive_a) <= LARGEST_WHOLE:
        found = best_pairs(moments.block(alive_a)[:, alive_b])
    else:

        def nearest(rows: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
            return _nearest(moments, alive_a[rows], alive_b[columns], k, block_elements)

        found = best_pairs_of_nearest(nearest, n_rows=len(alive_a), n_columns=len(alive_b), n_candidates=n_candidates)
    return _above(Pairs(alive_a[found.rows], alive_b[found.columns], found.similarities, *sizes, found.bound), minimum)


@dataclass(frozen=True)
class MatchingGap:
    """Semi-matching beside matching, over the living latents of the smaller dictionary."""

    semi_matching: float
    """Mean correlation of every latent with its best partner."""
    matching: float
    """Mean correlation of the one-to-one pairs."""
    gap: float
    """Their difference, at least 0 up to rounding: large where several latents share one partner."""
    n_distinct: int
    """Number of different partners in the semi-matching."""


def matching_gap(moments: CodeMoments) -> MatchingGap:
    """How much a one-to-one pairing loses against best partners that may be used again (Li et al. 2015, 1511.07543, section 3).

    nan for dictionaries without living latents.
    """
    smaller = moments if int((~moments.dead_a).sum()) <= int((~moments.dead_b).sum()) else moments.swapped()
    semi, pairs = best_correlations(smaller), latent_pairs(smaller)
    return MatchingGap(semi.mean, pairs.mean, semi.mean - pairs.mean, len(semi.latents[semi.latents >= 0].unique()))


def _nearest(moments: CodeMoments, rows: Tensor, columns: Tensor, k: int, block_elements: int) -> tuple[Tensor, Tensor]:
    """The k largest correlations of each of the rows with the columns, falling, and their positions in `columns`; dead ones come last."""
    values, ids = torch.empty(len(rows), k, dtype=torch.float64), torch.empty(len(rows), k, dtype=torch.long)
    dead = moments.dead_b[columns]
    for part in row_blocks(len(rows), len(moments.sums_b), block_elements, where="latent correlations"):
        block = moments.block(rows[part])[:, columns]
        block[:, dead] = -2.0
        values[part], ids[part] = block.topk(k, dim=1)
    return values, ids


def _above(pairs: Pairs, minimum: float) -> Pairs:
    return pairs.chosen(pairs.similarities > minimum) if minimum > -1 else pairs
