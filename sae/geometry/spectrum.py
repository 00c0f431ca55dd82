"""How many dimensions a cloud of points fills, from the eigenvalues l_1 >= ... >= l_d >= 0 of its covariance.

    participation ratio   (sum l)^2 / sum l^2
    effective rank        exp(-sum p ln p),  p = l / sum l  or  p = sqrt(l) / sum sqrt(l)        Roy & Vetterli 2007: singular values
    stable rank           sum l / max l = ||X||_F^2 / ||X||_2^2                                  Rudelson & Vershynin, arXiv math/0503442
    IsoScore              (PR - 1) / (d - 1)                                                     Rudman et al. 2022 (arXiv 2108.07344)

All four lie between 1 and the number of non-zero eigenvalues (IsoScore between 0 and 1), and do not change with the scale of the l.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks


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


def _shares(eigenvalues: Float[Tensor, " d"], *, where: str) -> Float[Tensor, " d"]:
    values = eigenvalues.detach().double()
    if not values.isfinite().all() or (values < 0).any() or not (values > 0).any():
        raise ConfigError(f"eigenvalues must be finite, none negative and not all zero, got {values.tolist()[:8]} ({where})")
    values = values / values.max()
    return values / values.sum()
