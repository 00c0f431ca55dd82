"""The nuclear norm of a cross-covariance from few stimuli, hence shape distances without the upward bias of the plug-in.

S = E[x y^T], both with mean zero. For stimuli i_1 < ... < i_2p all different, E[ x_1.x_2 y_2.y_3 x_3.x_4 ... y_2p.y_1 ] = tr((S S^T)^p), so that

    W_p = average over all increasing i of that product = tr(G_p) / C(M, 2p),   G_p = (U(A) U(B))^(p-1) U(A) B,   A = X X^T, B = Y Y^T

(U keeps what is above the diagonal) is an unbiased estimate of the p-th moment of the eigenvalues of S S^T (Kong & Valiant 2017,
arXiv 1602.00061). A polynomial without constant term turns moments into the norm,

    ||S||_* = sum sqrt(lambda)  ~  sum_p gamma_p W_p,      |sqrt(t) - sum_p gamma_p t^p| <= e on [0, 1],

with gamma and e from the quadratic program min (2 - a) gamma' C gamma + a N^2 e^2, C the covariance of W, N = min(width): variance against
the bound N e of the bias (Pospisil, Larsen, Harvey & Williams 2023, arXiv 2310.05742). C comes from a delete-a-group jackknife here, not from
a bootstrap: resampled stimuli repeat, and a cycle through a repeated stimulus is biased. 2 p M^3 operations per evaluation and n x n products:
M is limited to 4096.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.representations.stimuli import require_same_stimuli
from sae.geometry.rows import BLOCK_ELEMENTS, require_points

GRID = 200
"""Points of [0, 1] on which the polynomial is compared with the square root."""


@dataclass(frozen=True, eq=False)
class NuclearNormEstimate:
    """||S||_* with what is known of its error."""

    value: float
    """The estimate, in the units of x times those of y."""
    standard_error: float
    """Square root of gamma' C gamma."""
    bias_bound: float
    """N e: the polynomial's largest error times the number of singular values; the bias is at most this (up to the scale's own error)."""
    plug_in: float
    """||X^T Y / M||_*, biased upwards."""
    coefficients: Float[Tensor, " p"]
    """gamma, for data scaled to a largest sample singular value of 1."""


def cross_covariance_moments(x: Float[Tensor, "m p"], y: Float[Tensor, "n q"], *, n_moments: int = 10) -> Float[Tensor, " moments"]:
    """W_1..W_n_moments, float64: unbiased for tr((S S^T)^p), S = E[x y^T]. Rows must be independent draws in arbitrary order.

    Rows are taken as they are: subtract the known mean first. Only increasing chains are averaged, so W_p for p > 1 depends on the order of the
    rows; W_1 does not. Raises ConfigError unless 1 <= n_moments <= M / 2 and M <= 4096, and for NaN or Inf.
    """
    where = "cross_covariance_moments"
    require_same_stimuli(x, y, where=where)
    for each in (x, y):
        require_points(each, minimum=2, argument="a representation", where=where)
    m = len(x)
    if m * m > BLOCK_ELEMENTS:
        raise ConfigError(
            f"x must have at most {int(BLOCK_ELEMENTS**0.5)} rows, got {m}; average over disjoint parts of that size ({where})"
        )
    if not 1 <= n_moments <= m // 2:
        raise ConfigError(f"n_moments must be in 1..M/2={m // 2}, got {n_moments}; p moments need 2 p different stimuli ({where})")
    left, right = x.detach().double(), y.detach().double()
    return _moments(left @ left.T, right @ right.T, n_moments)


def nuclear_norm_estimate(
    x: Float[Tensor, "m p"], y: Float[Tensor, "n q"], *, n_moments: int = 10, bias_weight: float = 1.0, n_groups: int = 20
) -> NuclearNormEstimate:
    """||E[x y^T]||_* of mean-zero rows; `bias_weight` is a, in (0, 2): larger buys less bias for more variance.

    Raises ConfigError as `cross_covariance_moments` (of the stimuli that remain when a group is left out), for bias_weight outside (0, 2),
    n_groups outside 2..M, and a product X^T Y that is zero.
    """
    if not 0 < bias_weight < 2:
        raise ConfigError(f"bias_weight must be in (0, 2), got {bias_weight} (nuclear_norm_estimate)")
    m = len(x)
    if not 2 <= n_groups <= m:
        raise ConfigError(f"n_groups must be in 2..M={m}, got {n_groups} (nuclear_norm_estimate)")
    if n_moments > (m - -(-m // n_groups)) // 2:
        raise ConfigError(
            f"n_moments must be at most half the stimuli left without one group of {n_groups}, got {n_moments} of {m} (nuclear_norm_estimate)"
        )
    cross_covariance_moments(x, y, n_moments=1)  # its refusals
    left, right = x.detach().double(), y.detach().double()
    singular = torch.linalg.svdvals(left.T @ right / m)
    if singular[0] == 0:
        raise ConfigError("x and y must not be orthogonal in every column, got X^T Y = 0 (nuclear_norm_estimate)")
    a, b = left @ left.T / singular[0], right @ right.T / singular[0]
    moments = _moments(a, b, n_moments)
    groups = torch.arange(m, device=x.device) % n_groups
    without = [_moments(a[kept][:, kept], b[kept][:, kept], n_moments) for kept in (groups != group for group in range(n_groups))]
    spread = torch.stack(without) - torch.stack(without).mean(dim=0)
    covariance = (n_groups - 1) / n_groups * spread.T @ spread
    width = min(x.shape[1], y.shape[1])
    gamma, error = square_root_polynomial(covariance, width=width, bias_weight=bias_weight)
    scale = float(singular[0])
    return NuclearNormEstimate(
        value=scale * float(gamma @ moments),
        standard_error=scale * float(gamma @ covariance @ gamma) ** 0.5,
        bias_bound=scale * width * error,
        plug_in=float(singular.sum()),
        coefficients=gamma,
    )


def shape_similarity_estimate(x: Float[Tensor, "m p"], y: Float[Tensor, "n q"], *, n_moments: int = 10, bias_weight: float = 1.0) -> float:
    """cos theta = ||S||_* / sqrt(E||x||^2 E||y||^2) of mean-zero rows, with the nuclear norm from its moments. Errors as `nuclear_norm_estimate`."""
    found = nuclear_norm_estimate(x, y, n_moments=n_moments, bias_weight=bias_weight)
    return found.value / float(x.double().square().sum(dim=1).mean() * y.double().square().sum(dim=1).mean()) ** 0.5


def square_root_polynomial(covariance: Float[Tensor, "p p"], *, width: int, bias_weight: float) -> tuple[Float[Tensor, " p"], float]:
    """(gamma, e): the quadratic program above, on `GRID` points that crowd towards 0, where the square root is steep.

    In z = (L^T gamma sqrt(2 - a), N e sqrt(a)), C = L L^T, it asks for the shortest z in a polyhedron, which is a non-negative least squares
    problem (Lawson & Hanson 1974, chapter 23). Raises ConfigError where that has no solution.
    """
    import numpy as np
    from scipy.optimize import nnls

    n_moments = len(covariance)
    c = covariance.double().cpu().numpy()
    deviations = np.sqrt(np.maximum(c.diagonal(), 1e-13))  # below that, variance no longer matters beside the bias
    correlation = c / np.outer(deviations, deviations)
    correlation = correlation + np.diag(1 - correlation.diagonal() + 1e-9)
    # gamma = (D^-1 R^-T) z, D the standard deviations, R R^T their correlation: moments of very unequal variance stay on one scale.
    back = np.linalg.inv(np.linalg.cholesky(correlation)).T / deviations[:, None] / (2 - bias_weight) ** 0.5
    roots = np.linspace(0, 1, GRID)
    fitted = roots[:, None] ** (2 * np.arange(1, n_moments + 1)) @ back
    slack = np.full((GRID, 1), 1 / (width * bias_weight**0.5))
    constraints = np.vstack([np.hstack([fitted, slack]), np.hstack([-fitted, slack])])  # constraints @ z >= bounds
    bounds = np.concatenate([roots, -roots])
    system, target = np.vstack([constraints.T, bounds]), np.append(np.zeros(n_moments + 1), 1.0)
    weights, _ = nnls(system, target, maxiter=100 * GRID)
    residual = system @ weights - target
    if abs(residual[-1]) < 1e-14:
        raise ConfigError(
            f"n_moments must be small enough for the quadratic program, got {n_moments}; ask for fewer (square_root_polynomial)"
        )
    gamma = back @ (-residual[:-2] / residual[-1])
    worst = float(np.abs(roots - roots[:, None] ** (2 * np.arange(1, n_moments + 1)) @ gamma).max())
    return torch.from_numpy(gamma).to(covariance.device), worst


def _moments(a: Tensor, b: Tensor, n_moments: int) -> Tensor:
    """tr(G_p) / C(M, 2p), with A / M and B / M so that nothing overflows: M^2p / C(M, 2p) = (2p)! prod_j M / (M - j)."""
    m = len(a)
    a, b = a / m, b / m
    upper_a, upper_b = a.triu(1), b.triu(1)
    chain, ratio, found = upper_a, 1.0, []
    for p in range(1, n_moments + 1):
        for j in (2 * p - 2, 2 * p - 1):
            ratio *= (j + 1) * m / (m - j)
        found.append(ratio * (chain * b.T).sum())
        if p < n_moments:
            chain = chain @ upper_b @ upper_a
    return torch.stack(found)
