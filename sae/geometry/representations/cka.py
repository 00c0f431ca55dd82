"""Centred kernel alignment.

    CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))                 Kornblith, Norouzi, Lee & Hinton 2019, arXiv 1905.00414

The biased HSIC tr(K H L H) of two independent Gaussians with p and q columns is not zero: CKA is about

    sqrt(p q) / n / sqrt((1 + p/n) (1 + q/n)),

0.5 at p = q = n and 0.83 at p = q = 1000, n = 200. The default is therefore the unbiased estimator (Song, Smola, Gretton, Bedo & Borgwardt 2012,
JMLR 13, equation 5), which for a linear kernel of rows whose mean is zero, with s_i = ||x_i||^2 and t_i = ||y_i||^2, is

    HSIC_u = [ ||X^T Y||_F^2 - m/(m-2) sum_i s_i t_i + (sum_i s_i)(sum_i t_i) / ((m-1)(m-2)) ] / (m (m-3)).

||X^T Y||_F^2 costs n p q and no n x n matrix; rows wider than their number are turned into n columns first. HSIC_u is the inner product of the
two U-centred kernels (Szekely & Rizzo 2014, Annals of Statistics 42): HSIC_u(K, K) >= 0 and |CKA| <= 1 hold for it exactly. It is zero only for
a kernel that is a_i + a_j off its diagonal (all rows equal, or all but one), which is an error here. CKA itself may be negative.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.representations.stimuli import RepresentationMeasure, centred_rows, narrowed, require_same_stimuli, varying_rows
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks

Estimator = Literal["unbiased", "biased"]
MINIMUM_STIMULI = {"unbiased": 4, "biased": 2}


@dataclass(frozen=True, eq=False)
class PreparedKernel:
    """One representation, ready for CKA with another."""

    rows: Float[Tensor, "n d"]
    """Centred rows, mean square 1."""
    squares: Float[Tensor, " n"]
    """Squared norms of the rows."""
    sums: Float[Tensor, " n"]
    """Sums of the rows of the kernel without its diagonal."""
    gamma: float
    """1 / (2 sigma^2) of an RBF kernel, 0 for the linear kernel."""
    self_hsic: float
    """HSIC of the kernel with itself."""


@dataclass(frozen=True)
class Cka(RepresentationMeasure):
    """Linear CKA. Invariant to rotation, isotropic scale and translation of either side; not to other invertible linear maps."""

    estimator: Estimator = "unbiased"
    """"unbiased" (mean zero for independent representations) or "biased" (Kornblith et al.)."""
    block_elements: int = BLOCK_ELEMENTS
    """Largest number of entries of a product held at once."""

    def prepare(self, x: Float[Tensor, "n d"]) -> PreparedKernel:
        """Centred rows in r = min(n, d) columns, and HSIC(K, K), in n d r. A score then costs n r_x r_y."""
        rows = narrowed(varying_rows(x, minimum=_minimum(self.estimator), where="Cka"))
        squares = rows.square().sum(dim=1)
        own = _linear_hsic(rows, rows, squares, squares, self)
        return PreparedKernel(rows=rows, squares=squares, sums=-squares, gamma=0.0, self_hsic=_positive(own, 1.0, "Cka"))

    def score(self, first: PreparedKernel, second: PreparedKernel, order: Int[Tensor, " n"] | None = None) -> float:
        """CKA, the rows of `second` taken in `order`."""
        other, squares = (second.rows, second.squares) if order is None else (second.rows[order], second.squares[order])
        return _linear_hsic(first.rows, other, first.squares, squares, self) / (first.self_hsic * second.self_hsic) ** 0.5


@dataclass(frozen=True)
class RbfCka(RepresentationMeasure):
    """CKA with Gaussian kernels exp(-||x_i - x_j||^2 / (2 sigma^2)); sigma = bandwidth x the median distance of each representation.

    Tends to linear CKA as the bandwidth grows (Alvarez 2021, arXiv 2112.09305). O(n^2 (p + q)) time, in blocks.
    """

    bandwidth: float = 1.0
    """sigma in units of the median distance."""
    estimator: Estimator = "unbiased"
    """As for `Cka`."""
    block_elements: int = BLOCK_ELEMENTS
    """Largest number of kernel entries held at once."""

    def prepare(self, x: Float[Tensor, "n d"]) -> PreparedKernel:
        """Row sums of the kernel and HSIC(K, K)."""
        if not 0 < self.bandwidth < float("inf"):
            raise ConfigError(f"bandwidth must be positive and finite, got {self.bandwidth} (RbfCka)")
        rows = varying_rows(x, minimum=_minimum(self.estimator), where="RbfCka")
        squares = rows.square().sum(dim=1)
        sigma = self.bandwidth * _median_distance(rows, squares, self.block_elements)
        if sigma <= 1e-8 * float(squares.max()) ** 0.5:
            raise ConfigError(
                "a representation must have a median distance above 0, got 0: most rows are equal; remove duplicates (RbfCka)"
            )
        bare = PreparedKernel(rows=rows, squares=squares, sums=squares, gamma=0.5 / sigma**2, self_hsic=1.0)
        sums, power = [], 0.0
        for block in row_blocks(len(x), len(x), self.block_elements, where="RbfCka"):
            entries = _rbf_block(bare, block)
            sums.append(entries.sum(dim=1))
            power += float(entries.square().sum()) / len(x) ** 2
        kernel = replace(bare, sums=torch.cat(sums))
        return replace(kernel, self_hsic=_positive(self._hsic(kernel, kernel, None), power, "RbfCka"))

    def score(self, first: PreparedKernel, second: PreparedKernel, order: Int[Tensor, " n"] | None = None) -> float:
        """CKA, the rows of `second` taken in `order`."""
        return self._hsic(first, second, order) / (first.self_hsic * second.self_hsic) ** 0.5

    def _hsic(self, first: PreparedKernel, second: PreparedKernel, order: Int[Tensor, " n"] | None) -> float:
        n = len(first.rows)
        order = torch.arange(n, device=first.rows.device) if order is None else order
        other = replace(second, rows=second.rows[order], squares=second.squares[order], sums=second.sums[order])
        blocks = row_blocks(n, n, self.block_elements, where="RbfCka")
        product = sum(float((_rbf_block(first, block) * _rbf_block(other, block)).sum()) for block in blocks)
        return _hsic(product, float(first.sums @ other.sums), float(first.sums.sum() * other.sums.sum()), n, self.estimator)


def cka(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, estimator: Estimator = "unbiased") -> float:
    """Linear CKA of two representations, in [-1, 1] (unbiased) or [0, 1] (biased); computed in float64.

    Chance: `compare_representations(Cka(), x, y, ...)`. Raises ConfigError for fewer than 4 stimuli (biased: 2), different numbers of rows,
    NaN or Inf, and a representation whose rows are all, or all but one, equal.
    """
    return Cka(estimator=estimator)(x, y)


def rbf_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, bandwidth: float = 1.0, estimator: Estimator = "unbiased") -> float:
    """CKA with Gaussian kernels, sigma = bandwidth x median distance; see `RbfCka`. Errors as `cka`."""
    return RbfCka(bandwidth=bandwidth, estimator=estimator)(x, y)


def minibatch_cka(batches: Iterable[tuple[Tensor, Tensor]], *, estimator: Estimator = "unbiased") -> float:
    """Linear CKA from minibatches (x [m, p], y [m, q]): the three HSIC terms are averaged over batches, then divided.

    With the unbiased estimator each term is unbiased whatever the batch size (Nguyen, Raghu & Kornblith 2021, arXiv 2010.15327); averaging
    ratios instead is not. Each batch counts once. Raises ConfigError for no batch, and as `cka` for each.
    """
    measure, minimum = Cka(estimator=estimator), _minimum(estimator)
    terms = []
    for x, y in batches:
        require_same_stimuli(x, y, where="minibatch_cka")
        left, right = (narrowed(centred_rows(each, minimum=minimum, where="minibatch_cka")) for each in (x, y))
        s, t = left.square().sum(dim=1), right.square().sum(dim=1)
        pairs = ((left, right, s, t), (left, left, s, s), (right, right, t, t))
        terms.append([_linear_hsic(*pair, measure) for pair in pairs])
    if not terms:
        raise ConfigError("batches must hold at least 1 batch, got 0 (minibatch_cka)")
    cross, first, second = torch.tensor(terms, dtype=torch.float64).mean(dim=0).tolist()
    if min(first, second) <= 0:
        raise ConfigError(f"both representations must vary, got mean HSIC(K, K) = {first:.1e} and {second:.1e} (minibatch_cka)")
    return cross / (first * second) ** 0.5


def independent_cka_mean(n: int, p: int, q: int) -> float:
    """About the mean of the biased linear CKA of independent standard Gaussians [n, p] and [n, q]: sqrt(pq)/n / sqrt((1+p/n)(1+q/n)).

    From E tr(S_x S_y) = p q / n and E tr(S_x^2) = p (1 + p/n) of sample covariances. The unbiased estimator has mean about 0.
    """
    if min(n, p, q) < 1:
        raise ConfigError(f"n, p and q must be at least 1, got {n}, {p} and {q} (independent_cka_mean)")
    return (p * q) ** 0.5 / n / ((1 + p / n) * (1 + q / n)) ** 0.5


def _minimum(estimator: str) -> int:
    if estimator not in MINIMUM_STIMULI:
        raise ConfigError(f"estimator must be 'unbiased' or 'biased', got {estimator!r} (cka)")
    return MINIMUM_STIMULI[estimator]


def _positive(own: float, power: float, where: str) -> float:
    """HSIC(K, K), refused where it is rounding beside the mean square of the kernel's entries, which is at most about `power`."""
    if own <= 1e-13 * power:
        raise ConfigError(
            f"a representation must have two or more stimuli that differ from the rest, got HSIC(K, K) = {own:.1e}; remove this layer ({where})"
        )
    return own


def _hsic(product: float, sums: float, totals: float, m: int, estimator: str) -> float:
    """From sum_{i != j} K_ij L_ij, r_K . r_L and (1 . r_K)(1 . r_L), r the row sums without the diagonal, which does not count or is zero."""
    if estimator == "unbiased":
        return (product - 2 * sums / (m - 2) + totals / ((m - 1) * (m - 2))) / (m * (m - 3))
    return (product - 2 * sums / m + totals / m**2) / (m - 1) ** 2


def _linear_hsic(x: Tensor, y: Tensor, s: Tensor, t: Tensor, measure: Cka) -> float:
    product, diagonal = _cross_norm(x, y, measure.block_elements), float(s @ t)
    if measure.estimator == "biased":
        return product / (len(x) - 1) ** 2
    # The row sums without the diagonal are -s and -t: the rows have mean zero.
    return _hsic(product - diagonal, diagonal, float(s.sum() * t.sum()), len(x), "unbiased")


def _cross_norm(x: Tensor, y: Tensor, block_elements: int) -> float:
    """||X^T Y||_F^2, in blocks of columns."""
    blocks = row_blocks(x.shape[1], y.shape[1], block_elements, where="cka")
    return sum(float((x[:, block].T @ y).square().sum()) for block in blocks)


def _rbf_block(kernel: PreparedKernel, block: slice) -> Tensor:
    """exp(-gamma d_ij^2) - 1 of a block of rows: HSIC does not see the constant, and small gammas keep their digits. The diagonal is 0."""
    return torch.expm1(-kernel.gamma * _squared_distances(kernel.rows, kernel.squares, block))


def _squared_distances(rows: Tensor, squares: Tensor, block: slice) -> Tensor:
    distances = (squares[block, None] + squares - 2 * rows[block] @ rows.T).clamp_(min=0)
    distances.diagonal(offset=block.start).fill_(0)
    return distances


def _median_distance(rows: Tensor, squares: Tensor, block_elements: int) -> float:
    """The median over ordered pairs i != j to a relative 1e-9, by three passes of histograms; no list of distances is kept."""
    n, bins = len(rows), 1024
    low, high = 0.0, float(2 * squares.max().sqrt())
    rank = n + (n * (n - 1)) // 2  # the n zeros of the diagonal come first
    for _ in range(3):
        below, counts = 0, torch.zeros(bins, dtype=torch.float64, device=rows.device)
        for block in row_blocks(n, n, block_elements, where="RbfCka"):
            distances = _squared_distances(rows, squares, block).sqrt_()
            below += int((distances < low).sum())
            counts += distances.histc(bins, min=low, max=high)
        index = min(int(torch.searchsorted(below + counts.cumsum(0), float(rank))), bins - 1)
        width = (high - low) / bins
        low, high = low + index * width, low + (index + 1) * width
    return (low + high) / 2
