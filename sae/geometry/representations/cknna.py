"""CKA between near neighbours only.

    CKNNA(K, L) = A(K, L) / sqrt(A(K, K) A(L, L)),   A(K, L) = sum_ij alpha(i, j) K~_ij L~_ij,
    alpha(i, j) = 1 where j is among the k nearest neighbours of i both in x and in y, j != i

Huh, Cheung, Wang & Isola 2024, arXiv 2405.07987, appendix. K~ is the U-centred kernel (Szekely & Rizzo 2014),

    K~_ij = K_ij - (r_i + r_j) / (m-2) + (1 . r) / ((m-1)(m-2)),   r the row sums of K without its diagonal,

so that at k = n - 1 the score is the unbiased CKA exactly; the paper subtracts the mean of row i only, which is not symmetric and has no such
limit. `variant="code"` is what the authors' program computes: the unbiased HSIC of the masked kernels alpha * K and alpha * L, whose first
term sums K_ij L_ji alpha_ij alpha_ji (pairs that are neighbours both ways) while its other terms take alpha as it is, without the 1e-6 in
their denominator. Its A(K, K) may be negative, and the score is then NaN; the other variant's is a sum of squares.

Chance is not zero: neighbours are pairs with a large kernel, in both. Over permutations of the stimuli the mean of the variant "paper" is exactly

    (sum of K~ over x's neighbours) (sum of L~ over y's neighbours) / (n (n-1)) / sqrt(A(K, K) A(L, L)),

a little under k / (n - 1), and 0 at k = n - 1.

Neighbours cost n^2 d, the rest n k d.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.representations.neighbours import Metric, nearest_neighbours, reordered, shared
from sae.geometry.representations.stimuli import RepresentationMeasure, require_same_stimuli, varying_rows
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks, unit_rows

Variant = Literal["paper", "code"]


@dataclass(frozen=True, eq=False)
class NeighbourKernel:
    """One representation's kernel at its own neighbours."""

    ids: Int[Tensor, "n k"]
    """Row numbers of the neighbours, ascending."""
    kernel: Float[Tensor, "n k"]
    """U-centred ("paper") or bare ("code") kernel at these pairs."""
    own: float
    """A(K, K)."""


@dataclass(frozen=True)
class Cknna(RepresentationMeasure):
    """Centred kernel nearest-neighbour alignment, linear kernel. 1 for equal inputs; by chance `cknna_mean`, not 0.

    Invariant to rotation and isotropic scale; to translation only with `metric="euclidean"` and variant "paper".
    """

    k: int = 10
    """Neighbours of each stimulus."""
    variant: Variant = "paper"
    """"paper" or "code"; see the head of the file."""
    metric: Metric = "cosine"
    """How neighbours are chosen. With "cosine" the kernel, too, is that of the unit rows, as the authors normalise."""
    block_elements: int = BLOCK_ELEMENTS
    """Largest number of products held at once."""

    def prepare(self, x: Float[Tensor, "n d"]) -> NeighbourKernel:
        """Neighbours, the kernel there, and A(K, K)."""
        if self.variant not in ("paper", "code"):
            raise ConfigError(f"variant must be 'paper' or 'code', got {self.variant!r} (Cknna)")
        rows = (
            unit_rows(x.double(), minimum=4, argument="a representation", where="Cknna") if self.metric == "cosine" else x.detach().double()
        )
        centred = varying_rows(rows, minimum=4, where="Cknna")
        ids = nearest_neighbours(x, k=self.k, metric=self.metric, block_elements=self.block_elements).sort(dim=1).values
        if self.variant == "code":
            kernel = self._at_neighbours(rows / rows.square().sum(dim=1).mean().sqrt(), ids)
            return NeighbourKernel(
                ids=ids, kernel=kernel, own=self._masked_hsic(ids, kernel, kernel, torch.ones_like(ids, dtype=torch.bool))
            )
        m, s = len(x), centred.square().sum(dim=1)
        kernel = self._at_neighbours(centred, ids) + (s[:, None] + s[ids]) / (m - 2) - s.sum() / ((m - 1) * (m - 2))
        return NeighbourKernel(ids=ids, kernel=kernel, own=float(kernel.square().sum()))

    def score(self, first: NeighbourKernel, second: NeighbourKernel, order: Int[Tensor, " n"] | None = None) -> float:
        """CKNNA, the stimuli of `second` taken in `order`; NaN where A(K, K) is not positive (variant "code" only)."""
        ids, kernel = reordered(second.ids, second.kernel, order)
        hits, places = shared(first.ids, ids)
        ours = first.kernel.gather(1, places)
        joint = float((ours * kernel * hits).sum()) if self.variant == "paper" else self._masked_hsic(ids, ours, kernel, hits)
        return joint / (first.own * second.own) ** 0.5 if first.own > 0 and second.own > 0 else float("nan")

    def _at_neighbours(self, rows: Tensor, ids: Tensor) -> Tensor:
        blocks = row_blocks(len(rows), ids.shape[1] * rows.shape[1], self.block_elements, where="Cknna")
        return torch.cat([torch.einsum("nd,nkd->nk", rows[block], rows[ids[block]]) for block in blocks])

    def _masked_hsic(self, ids: Tensor, first: Tensor, second: Tensor, mask: Tensor) -> float:
        """The unbiased HSIC estimator fed with the masked kernels, m (m - 3) times; `mask` marks the pairs (i, ids[i, :]) that count."""
        m = len(ids)
        rows = torch.arange(m, device=ids.device)[:, None].expand_as(ids)[mask]
        columns, ours, theirs = ids[mask], first[mask], second[mask]
        both_ways = torch.isin(rows * m + columns, columns * m + rows)
        zeros = ours.new_zeros(m)
        left = zeros.index_add(0, columns, ours)  # column sums of alpha K
        right = zeros.index_add(0, rows, theirs)  # row sums of alpha L
        totals = ours.sum() * theirs.sum() / ((m - 1) * (m - 2))
        return float((ours * theirs)[both_ways].sum() + totals - 2 * (left @ right) / (m - 2))


def cknna(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, k: int = 10, variant: Variant = "paper", metric: Metric = "cosine") -> float:
    """CKNNA of two representations, in [-1, 1] for the variant "paper"; float64.

    Raises ConfigError for fewer than 4 stimuli, k outside 1..n-1, another variant, NaN or Inf, equal rows, and a zero row under "cosine".
    """
    return Cknna(k=k, variant=variant, metric=metric)(x, y)


def cknna_mean(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, k: int = 10, metric: Metric = "cosine") -> float:
    """The exact mean of `cknna(x, P y, variant="paper")` over permutations P of the stimuli. Errors as `cknna`."""
    require_same_stimuli(x, y, where="cknna_mean")
    first, second = (Cknna(k=k, metric=metric).prepare(each) for each in (x, y))
    return float(first.kernel.sum() * second.kernel.sum()) / (len(x) * (len(x) - 1)) / (first.own * second.own) ** 0.5
