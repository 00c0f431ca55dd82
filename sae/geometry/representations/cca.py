"""Canonical correlations.

Centre x and y, X = U_x S_x V_x^T, Y = U_y S_y V_y^T: the canonical correlations are

    rho_1 >= rho_2 >= ... = singular values of U_x^T U_y                             Bjorck & Golub 1973

SVCCA (Raghu, Gilmer, Yosinski & Sohl-Dickstein 2017, arXiv 1706.05806) keeps the first columns of U_x and U_y: the fewest whose squared
singular values reach a *fraction* of their sum (0.99), and averages rho. Comparing the fraction with 0.99 of the total, as one published
program does, keeps a single component. PWCCA (Morcos, Raghu & Bengio 2018, arXiv 1806.05759) weights rho_i by how much of X the canonical
variate h_i = U_x a_i accounts for.

All of it is exact linear algebra, and all of it overfits: for independent data with k columns each the mean of rho is about

    (8 / 3 pi) sqrt(k / n),       0.08 at k = 10, n = 1024, 0.27 at k = 100, n = 1000,

(singular values of a k x k matrix of entries of variance 1/n follow the quarter-circle law on [0, 2 sqrt(k/n)], whose mean is 8/(3 pi) sqrt(k/n)).
Once the columns kept in both exceed n - 1 together, some rho are 1 for any data; that is an error here.
"""

from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.representations.stimuli import RepresentationMeasure, require_same_stimuli, varying_rows


@dataclass(frozen=True, eq=False)
class Components:
    """Left singular vectors of one centred representation."""

    basis: Float[Tensor, "n r"]
    """Orthonormal columns, by falling singular value."""
    values: Float[Tensor, " r"]
    """Singular values of the centred rows, scaled so that the mean squared row is 1."""
    directions: Float[Tensor, "d r"]
    """Right singular vectors."""


@dataclass(frozen=True)
class Svcca(RepresentationMeasure):
    """Mean canonical correlation of the leading principal components, in [0, 1].

    Invariant to rotation, scale and translation. `fraction=1` is the mean canonical correlation of everything (CCA), which is invariant to
    every invertible linear map.
    """

    fraction: float = 0.99
    """Variance to keep, in (0, 1]: the fewest components that reach it. Unused where `n_components` is given."""
    n_components: int | None = None
    """Keep exactly this many components of each representation."""

    def prepare(self, x: Float[Tensor, "n d"]) -> Components:
        """The kept components. Raises ConfigError where the representation has fewer than `n_components` of them."""
        found = components(x)
        n_kept = kept_components(found.values, fraction=self.fraction) if self.n_components is None else self.n_components
        if not 1 <= n_kept <= len(found.values):
            raise ConfigError(f"n_components must be in 1..{len(found.values)}, the rank of this representation, got {n_kept} (Svcca)")
        return Components(basis=found.basis[:, :n_kept], values=found.values[:n_kept], directions=found.directions[:, :n_kept])

    def score(self, first: Components, second: Components, order: Int[Tensor, " n"] | None = None) -> float:
        """Mean of min(k_x, k_y) canonical correlations, the stimuli of `second` taken in `order`."""
        return float(_correlations(first, second, order).mean())


def components(x: Float[Tensor, "n d"]) -> Components:
    """The singular value decomposition of the centred rows, without singular values at rounding level (float32's, unless x is float64).

    Raises ConfigError for fewer than 3 stimuli, NaN or Inf, and equal rows.
    """
    rows = varying_rows(x, minimum=3, where="components")
    u, s, vh = torch.linalg.svd(rows, full_matrices=False)
    precision = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    rank = int((s > max(rows.shape) * precision * s[0]).sum())
    return Components(basis=u[:, :rank], values=s[:rank], directions=vh[:rank].T)


def kept_components(values: Float[Tensor, " r"], *, fraction: float = 0.99) -> int:
    """The fewest leading singular values whose squares reach `fraction` of the sum of all squares. Raises ConfigError unless in (0, 1]."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must be in (0, 1], got {fraction} (kept_components)")
    squares = values.double().square()
    cumulative = squares.cumsum(0) / squares.sum()
    return min(int((cumulative < fraction - 1e-12).sum()) + 1, len(values))


def canonical_correlations(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> Float[Tensor, " r"]:
    """All canonical correlations, descending; float64, in [0, 1]; as many as the smaller of the two ranks.

    Invariant to any invertible linear map of either side. Raises ConfigError where the ranks of x and y add up to more than n - 1, when
    some correlation is 1 for any data: reduce both with `Svcca(n_components=...)`, or take more stimuli.
    """
    require_same_stimuli(x, y, where="canonical_correlations")
    return _correlations(components(x), components(y), None)


def svcca(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, fraction: float = 0.99, n_components: int | None = None) -> float:
    """Mean canonical correlation of the components that hold `fraction` of the variance, or of `n_components` each. See `Svcca`.

    Chance: `compare_representations(Svcca(...), x, y, ...)`; about `independent_svcca_mean(n, k)`. Raises ConfigError as
    `canonical_correlations`.
    """
    return Svcca(fraction=fraction, n_components=n_components)(x, y)


def pwcca(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, weights: Literal["absolute", "variance"] = "absolute") -> float:
    """Canonical correlations weighted by what their variates account for in x; not symmetric.

    "absolute": sum_i alpha_i rho_i / sum_i alpha_i with alpha_i = sum_j |<h_i, X_:j>| over the columns of x, as published. It depends on
    the basis of x's columns, and where two correlations are equal h_i, hence the weight, is not unique (the value is then still between
    them, but arbitrary if others differ). "variance": alpha_i = ||X^T h_i||^2, invariant to rotation and always well defined.
    There the directions of x beyond the rank of y count with rho = 0; "absolute" leaves them out, as published. Raises ConfigError as `canonical_correlations`.
    """
    require_same_stimuli(x, y, where="pwcca")
    if weights not in ("absolute", "variance"):
        raise ConfigError(f"weights must be 'absolute' or 'variance', got {weights!r} (pwcca)")
    first, second = components(x), components(y)
    _require_room(first, second)
    left, rho, _ = torch.linalg.svd(first.basis.T @ second.basis, full_matrices=weights == "variance")
    # <h_i, X_:j> = (U a_i)^T U S V^T, a row of a^T S V^T.
    projections = left.T @ (first.values[:, None] * first.directions.T)
    alpha = projections.abs().sum(dim=1) if weights == "absolute" else projections.square().sum(dim=1)
    padded = torch.zeros_like(alpha)
    padded[: len(rho)] = rho.clamp(max=1)
    return float((alpha * padded).sum() / alpha.sum())


def independent_svcca_mean(n: int, k: int) -> float:
    """(8 / 3 pi) sqrt(k / n): about the mean canonical correlation of two independent representations with k components each, for k << n."""
    if not 1 <= k < n:
        raise ConfigError(f"k must be in 1..n-1={n - 1}, got {k} (independent_svcca_mean)")
    return 8 / (3 * pi) * (k / n) ** 0.5


def _correlations(first: Components, second: Components, order: Tensor | None) -> Tensor:
    _require_room(first, second)
    basis = second.basis if order is None else second.basis[order]
    return torch.linalg.svdvals(first.basis.T @ basis).clamp(max=1)


def _require_room(first: Components, second: Components) -> None:
    n, k, m = len(first.basis), first.basis.shape[1], second.basis.shape[1]
    if k + m > n - 1:
        raise ConfigError(
            f"components of x and y must number at most n - 1 = {n - 1} together, got {k} + {m}: {k + m - n + 1} or more correlations would be 1 "
            "for any data; keep fewer with Svcca(n_components=...), or take more stimuli (cca)"
        )
