"""How many dimensions a cloud of points fills, from the eigenvalues l_1 >= ... >= l_d >= 0 of its covariance.

    participation ratio   (sum l)^2 / sum l^2
    effective rank        exp(-sum p ln p),  p = l / sum l  or  p = sqrt(l) / sum sqrt(l)        Roy & Vetterli 2007: singular values
    stable rank           sum l / max l = ||X||_F^2 / ||X||_2^2                                  Rudelson & Vershynin, arXiv math/0503442
    IsoScore              (PR - 1) / (d - 1)                                                     Rudman et al. 2022 (arXiv 2108.07344)

All four lie between 1 and the number of non-zero eigenvalues (IsoScore between 0 and 1), and do not change with the scale of the l.

n points of an isotropic Gaussian have unequal eigenvalues, the more so the larger d / n: those of a Wishart matrix. Every number here is therefore
to be read beside its value on `wishart_eigenvalues` of the same n and d, which `compare_with_isotropic` draws in d^2 operations each from the
bidiagonal form of the matrix (Dumitriu & Edelman 2002, arXiv math-ph/0206043): chi variables, no points.
"""

from collections.abc import Callable
from math import exp, inf
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks, unit_rows


def covariance_eigenvalues(
    points: Float[Tensor, "n d"], *, centred: bool = True, block_elements: int = BLOCK_ELEMENTS
) -> Float[Tensor, " d"]:
    """Eigenvalues of the covariance of the rows of `points`, largest first, in float64; d of them, padded with zeros where n < d.

    C = sum (x - m)(x - m)^T / (n - 1) with the mean m removed; with `centred=False` it is the second moment sum x x^T / n, whose
    eigenvalues for a matrix of codes Z are those of Z^T Z / n. The smaller of the d x d and n x n products is decomposed, the first summed
    over blocks of rows. What rounding leaves below max(n, d) eps l_1 is zero, so a rank-deficient cloud has exactly as many non-zero values
    as its rank. Raises ConfigError for fewer than 2 rows, NaN or Inf, and for points that do not vary at all.
    """
    require_points(points, minimum=2, argument="points", where="covariance_eigenvalues")
    n, d = points.shape
    points = points.detach()
    if (points == (points[0] if centred else 0)).all():
        raise ConfigError(f"points must vary, got {n} rows that are all {'equal' if centred else 'zero'} (covariance_eigenvalues)")
    mean = points.new_zeros(d, dtype=torch.float64)
    if centred:
        for block in row_blocks(n, d, block_elements, where="covariance_eigenvalues"):
            mean += points[block].double().sum(dim=0) / n
    if n < d:
        rows = points.double() - mean
        product = rows @ rows.T
    else:
        product = points.new_zeros(d, d, dtype=torch.float64)
        for block in row_blocks(n, d, block_elements, where="covariance_eigenvalues"):
            rows = points[block].double() - mean
            product += rows.T @ rows
    values = torch.linalg.eigvalsh(product).flip(0) / (n - 1 if centred else n)
    values = values.where(values > max(n, d) * torch.finfo(torch.float64).eps * values[0], 0)
    return torch.cat([values, values.new_zeros(d - len(values))])


def participation_ratio(eigenvalues: Float[Tensor, " d"]) -> float:
    """(sum l)^2 / sum l^2: k for k equal eigenvalues. Raises ConfigError for negative, non-finite or all-zero eigenvalues."""
    share = _shares(eigenvalues, where="participation_ratio")
    return (1 / share.square().sum()).item()


def isotropic_participation_ratio(n: int, d: int, *, centred: bool = True) -> float:
    """What the participation ratio of n isotropic Gaussian points in R^d is near: (m d + 2) / (m + d + 1), m = n - 1 (n if not centred).

    The ratio of the expectations E (tr C)^2 / E tr C^2 of a Wishart matrix with m degrees of freedom; below d at every finite n, so compare
    a measured ratio with this and not with d. Raises ConfigError unless m >= 1 and d >= 1.
    """
    freedom = n - 1 if centred else n
    if freedom < 1 or d < 1:
        raise ConfigError(f"n must be at least {2 if centred else 1} and d at least 1, got {n} and {d} (isotropic_participation_ratio)")
    return (freedom * d + 2) / (freedom + d + 1)


def effective_rank(eigenvalues: Float[Tensor, " d"], *, of: Literal["eigenvalues", "singular"]) -> float:
    """exp(-sum p ln p). `eigenvalues` are those of the covariance in either case: of="eigenvalues" takes p = l / sum l, of="singular" takes
    the singular values s = sqrt(l) of the data, p = s / sum s, as Roy & Vetterli 2007 define it; the second is never the smaller.

    Zero eigenvalues count as 0 ln 0 = 0. Raises ConfigError for another `of`, and for negative, non-finite or all-zero eigenvalues.
    """
    if of not in ("eigenvalues", "singular"):
        raise ConfigError(f"of must be 'eigenvalues' or 'singular', got {of!r} (effective_rank)")
    share = _shares(eigenvalues, where="effective_rank")
    if of == "singular":
        share = share.sqrt() / share.sqrt().sum()
    return torch.special.entr(share).sum().exp().item()


def stable_rank(eigenvalues: Float[Tensor, " d"]) -> float:
    """sum l / max l = ||X||_F^2 / ||X||_2^2. Raises ConfigError for negative, non-finite or all-zero eigenvalues."""
    return (1 / _shares(eigenvalues, where="stable_rank").max()).item()


def isoscore(eigenvalues: Float[Tensor, " d"]) -> float:
    """(PR - 1) / (d - 1): 0 on a line, 1 where every direction has the same variance. d is the number of eigenvalues given, zeros included.

    This is the IsoScore of Rudman et al. 2022 (arXiv 2108.07344): with s = sqrt(d) l / ||l|| their score is ((sum s)^2 - d) / (d (d - 1)),
    and (sum s)^2 = d PR. Raises ConfigError for d < 2, and for negative, non-finite or all-zero eigenvalues.
    """
    if len(eigenvalues) < 2:
        raise ConfigError(f"eigenvalues must be at least 2, got {len(eigenvalues)} (isoscore)")
    return (participation_ratio(eigenvalues) - 1) / (len(eigenvalues) - 1)


def unbiased_participation_ratio(eigenvalues: Float[Tensor, " d"], n: int, *, centred: bool = True) -> float:
    """The participation ratio of the covariance that n Gaussian points were drawn from: numerator and denominator without bias.

    With m = n - 1 degrees of freedom (n if not centred), a = (sum l)^2 and b = sum l^2 of the sample covariance,

        tr S^2 ~ m (m b - a) / ((m - 1) (m + 2)),        (tr S)^2 ~ a - 2 tr S^2 / m

    from the moments of a Wishart matrix. Not bounded by d; inf where the estimate of tr S^2 is not positive: too few points to say.
    Raises ConfigError for m < 2, and for negative, non-finite or all-zero eigenvalues.
    """
    share = _shares(eigenvalues, where="unbiased_participation_ratio")
    m = n - 1 if centred else n
    if m < 2:
        raise ConfigError(f"n must be at least {3 if centred else 2}, got {n} (unbiased_participation_ratio)")
    squares = share.square().sum().item()
    of_square = m * (m * squares - 1) / ((m - 1) * (m + 2))
    return (1 - 2 * of_square / m) / of_square if of_square > 0 else inf


def isotropic_effective_rank(n: int, d: int, *, centred: bool = True) -> float:
    """What `effective_rank(of="eigenvalues")` of n isotropic Gaussian points in R^d is near: r exp(-c / 2), r = min(m, d), c = r / max(m, d).

    m = n - 1 (n if not centred). The entropy of the Marchenko-Pastur law, the limit of large m and d at a fixed ratio; 1% too high at 100 x 200,
    3% at 20 x 40. Raises ConfigError unless m >= 1 and d >= 1.
    """
    freedom = n - 1 if centred else n
    if freedom < 1 or d < 1:
        raise ConfigError(f"n must be at least {2 if centred else 1} and d at least 1, got {n} and {d} (isotropic_effective_rank)")
    return min(freedom, d) * exp(-min(freedom, d) / max(freedom, d) / 2)


def wishart_eigenvalues(n: int, d: int, *, generator: torch.Generator, centred: bool = True) -> Float[Tensor, " d"]:
    """One exact draw of `covariance_eigenvalues` of n standard normal points in R^d: largest first, float64, CPU, zeros where n < d.

    Time d^2. Raises ConfigError for fewer than 2 points (1 if not centred) and d < 1.
    """
    import numpy as np
    from scipy.linalg import eigh_tridiagonal

    freedom = n - 1 if centred else n
    if freedom < 1 or d < 1:
        raise ConfigError(f"n must be at least {2 if centred else 1} and d at least 1, got {n} and {d} (wishart_eigenvalues)")
    small, large = min(freedom, d), max(freedom, d)
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
    diagonal = random.chisquare(large - np.arange(small))
    below = random.chisquare(np.arange(small - 1, 0, -1)) if small > 1 else np.empty(0)
    values = eigh_tridiagonal(diagonal + np.concatenate([[0.0], below]), np.sqrt(diagonal[:-1] * below), eigvals_only=True)
    found = torch.zeros(d, dtype=torch.float64)
    found[:small] = torch.from_numpy(np.asarray(values)[::-1].copy()).clamp(min=0) / (freedom if centred else n)
    return found


def compare_with_isotropic(
    eigenvalues: Float[Tensor, " d"],
    statistic: Callable[[Float[Tensor, " d"]], float],
    *,
    n: int,
    centred: bool = True,
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """`statistic` of the eigenvalues of n points against its values on as many isotropic Gaussian points of the same width.

    The null eigenvalues have mean 1 (`wishart_eigenvalues`) and are scaled to the sum of the data's, so that the statistic may depend on it.
    Raises ConfigError for n < 2, n_null < 2, and what `statistic` raises.

        compare_with_isotropic(covariance_eigenvalues(x), participation_ratio, n=len(x), n_null=99, generator=generator)
    """
    value, total = statistic(eigenvalues), eigenvalues.double().sum().item()
    draws = []
    for _ in range(n_null):
        null = wishart_eigenvalues(n, len(eigenvalues), generator=generator, centred=centred)
        draws.append(statistic(null * (total / null.sum())))
    return compare(value, torch.tensor(draws, dtype=torch.float64))


def numerical_rank(eigenvalues: Float[Tensor, " d"], *, relative: float | None = None) -> int:
    """Number of eigenvalues above `relative` times the largest; None means d times the rounding of float64.

    Singular values are square roots: a relative tolerance t of theirs is t^2 here. Raises ConfigError for `relative` outside [0, 1), and for
    negative, non-finite or all-zero eigenvalues.
    """
    tolerance = len(eigenvalues) * torch.finfo(torch.float64).eps if relative is None else relative
    if not 0 <= tolerance < 1:
        raise ConfigError(f"relative must be in [0, 1), got {relative} (numerical_rank)")
    share = _shares(eigenvalues, where="numerical_rank")
    return int((share > tolerance * share.max()).sum())


def top_variance_share(eigenvalues: Float[Tensor, " d"], k: int) -> float:
    """The share of the k largest eigenvalues in their sum. Raises ConfigError for k outside 1..d, and for bad eigenvalues as the others."""
    if not 1 <= k <= len(eigenvalues):
        raise ConfigError(f"k must be in 1..{len(eigenvalues)}, got {k} (top_variance_share)")
    return min(1.0, _shares(eigenvalues, where="top_variance_share").topk(k).values.sum().item())


def isoscore_star(points: Float[Tensor, "n d"], reference: Float[Tensor, "d d"], *, shrinkage: float) -> float:
    """IsoScore of the covariance drawn towards a reference: the eigenvalues are those of (1 - z) C + z C_0, z = `shrinkage`.

    Rudman & Eickhoff 2024 (arXiv 2305.19358), for few points, whose own covariance C is singular; C_0 is a covariance of many points.
    z = 0 is `isoscore`. Raises ConfigError for fewer than 2 points, d < 2, NaN or Inf, z outside [0, 1], and a reference that is not
    symmetric with eigenvalues of at least 0.
    """
    where = "isoscore_star"
    require_points(points, minimum=2, argument="points", where=where)
    if not 0 <= shrinkage <= 1:
        raise ConfigError(f"shrinkage must be in [0, 1], got {shrinkage} ({where})")
    target = reference.detach().double()
    if not target.isfinite().all() or not torch.allclose(target, target.T, rtol=1e-4, atol=1e-6 * target.abs().max().item()):
        raise ConfigError(f"reference must be a finite symmetric matrix, such as a covariance ({where})")
    centred = points.detach().double() - points.detach().double().mean(dim=0)
    mixed = (1 - shrinkage) * (centred.T @ centred) / (len(points) - 1) + shrinkage * target
    values = torch.linalg.eigvalsh(mixed)
    dust = len(values) * torch.finfo(torch.float32).eps * values.abs().max()
    return isoscore(values.where((values > 0) | (values < -dust), 0))


def rank_me(points: Float[Tensor, "n d"]) -> float:
    """RankMe: exp(-sum p ln p) with p = s / sum s + 1e-7 over the min(n, d) singular values s of the rows, which are not centred.

    Garrido et al. 2023 (arXiv 2210.02885). The added 1e-7 is theirs, so a line has rank slightly above 1. Errors as `covariance_eigenvalues`.
    """
    values = covariance_eigenvalues(points, centred=False)[: min(points.shape)].sqrt()
    return torch.special.entr(values / values.sum() + 1e-7).sum().exp().item()


def average_cosine(points: Float[Tensor, "n d"]) -> float:
    """Mean cosine over pairs of different rows: (|sum u|^2 - n) / (n (n - 1)) of the unit rows u. Time n d.

    0 in the mean for independent directions, with standard deviation sqrt(2 / (d n (n - 1))).
    Raises ConfigError for fewer than 2 rows, a zero row, NaN or Inf.
    """
    rows = unit_rows(points.double(), minimum=2, argument="points", where="average_cosine")
    n = len(rows)
    return ((rows.sum(dim=0).square().sum() - n) / (n * (n - 1))).item()


def partition_score(points: Float[Tensor, "n d"]) -> float:
    """min Z / max Z of Z(c) = sum_i exp(c.x_i) over the unit eigenvectors c of X^T X, in (0, 1]: near 1 where no direction is preferred.

    Mu & Viswanath 2018 (arXiv 1702.01417). An eigenvector has no sign, so both signs are tried. Depends on the scale of the points, and is a
    property of the points alone only where no eigenvalue is repeated. Raises ConfigError for no rows, NaN or Inf.
    """
    require_points(points, minimum=1, argument="points", where="partition_score")
    wide = points.detach().double()
    axes = torch.linalg.eigh(wide.T @ wide).eigenvectors
    coordinates = wide @ axes
    partition = torch.logsumexp(torch.cat([coordinates, -coordinates], dim=1), dim=0)
    return (partition.min() - partition.max()).exp().item()


def _shares(eigenvalues: Float[Tensor, " d"], *, where: str) -> Float[Tensor, " d"]:
    values = eigenvalues.detach().double()
    if not values.isfinite().all() or (values < 0).any() or not (values > 0).any():
        raise ConfigError(f"eigenvalues must be finite, none negative and not all zero, got {values.tolist()[:8]} ({where})")
    values = values / values.max()
    return values / values.sum()
