"""Two views of every prompt: can a view be told by the other?

    InfoNCE     L = -mean_i ln( e^{s(i, i')/t} / sum_{j != i} e^{s(i, j)/t} )        i over both views, j over all 2N - 1 other vectors
    bound       I(view; view') >= ln N - L                                            van den Oord, Li & Vinyals 2018 (arXiv 1807.03748)

s is the cosine (rows of unit length) and t the temperature: the NT-Xent loss of Chen et al. 2020 (arXiv 2002.05709), by which Skean et al. 2025
(arXiv 2502.02013) measure layers with vectors that are not of unit length (`rows="raw"` here). Low is good: 0 where the pairs stand alone,
ln(2N - 1) where all vectors are equal.

    LiDAR       exp(-sum p ln p),  p = l / sum l,   l the eigenvalues of S_w^{-1/2} S_b S_w^{-1/2}
                S_b = mean_c (m_c - m)(m_c - m)^T      S_w = mean_{c,q} (x_cq - m_c)(x_cq - m_c)^T + ridge I

Thilak et al. 2023 (arXiv 2312.04000): the number of directions in which prompts differ by more than their views do.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.layerwise.preparation import Preparation, prepared, require_preparation
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks


@dataclass(frozen=True)
class InfoNCE:
    """How well pairs can be told, and the mutual information that this proves."""

    loss: float
    """L in nats; 0 where every pair stands alone, ln(2N - 1) where all vectors are equal, larger where pairs are further apart than the rest."""
    information_bound: float
    """ln N - L in nats: a lower bound on the mutual information of the two views, at most ln N; below 0 it says nothing."""
    n_pairs: int
    """N."""


def info_nce(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    temperature: float = 0.1,
    rows: Preparation = "unit",
    block_elements: int = BLOCK_ELEMENTS,
) -> InfoNCE:
    """L of two views, row i of `first` and row i of `second` being of one prompt; the negatives are the 2N - 2 vectors of other prompts.

    `rows` is what is done to the rows of both views together. Time n^2 d, memory a few times `block_elements`.
    Raises ConfigError for fewer than 2 pairs, views of different shapes, NaN or Inf, a temperature that is not positive, another `rows`.
    """
    positives, spread = _terms(first, second, temperature, rows, block_elements)
    return _info_nce(float(spread) - positives.mean().item(), len(first))


def compare_info_nce(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    temperature: float = 0.1,
    rows: Preparation = "unit",
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """The loss of `info_nce` against the views paired at random; small values are the effect. The denominators do not depend on the
    pairing, so a draw costs N d. Errors as `info_nce`, and n_null < 2.
    """
    positives, spread = _terms(first, second, temperature, rows, BLOCK_ELEMENTS)
    left, right = _two(first, second, rows)
    draws = []
    for _ in range(n_null):
        order = torch.randperm(len(first), generator=generator, device=generator.device).to(first.device)
        draws.append(float(spread) - ((left * right[order]).sum(dim=1) / temperature).mean().item())
    return compare(float(spread) - positives.mean().item(), torch.tensor(draws, dtype=torch.float64))


def _info_nce(loss: float, n: int) -> InfoNCE:
    return InfoNCE(loss=loss, information_bound=torch.tensor(float(n)).double().log().item() - loss, n_pairs=n)


def _two(first: Tensor, second: Tensor, rows: Preparation) -> tuple[Tensor, Tensor]:
    left, right = prepared(torch.cat([first.double(), second.double()]), rows).split(len(first))
    return left, right


def _terms(
    first: Tensor, second: Tensor, temperature: float, rows: Preparation, block_elements: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, ""]]:
    """s(i, i')/t of the pairs, and the mean over all 2N vectors of ln sum_{j != i} e^{s/t}."""
    where = "info_nce"
    require_pair(first, second, minimum=2, where=where)
    require_preparation(rows, where=where)
    if not 0 < temperature < torch.inf:
        raise ConfigError(f"temperature must be positive, got {temperature} ({where})")
    left, right = _two(first, second, rows)
    both = torch.cat([left, right])
    total = both.new_zeros(())
    for block in row_blocks(len(both), len(both), block_elements, where=where):
        similarities = both[block] @ both.T / temperature
        similarities.diagonal(offset=block.start).fill_(-torch.inf)
        total = total + torch.logsumexp(similarities, dim=1).sum()
    return (left * right).sum(dim=1) / temperature, total / len(both)


def require_pair(first: Tensor, second: Tensor, *, minimum: int, where: str) -> None:
    """Raises ConfigError unless both are finite, of one shape, with at least `minimum` rows."""
    require_points(first, minimum=minimum, argument="first", where=where)
    require_points(second, minimum=minimum, argument="second", where=where)
    if first.shape != second.shape:
        raise ConfigError(f"first and second must have one shape, got {tuple(first.shape)} and {tuple(second.shape)} ({where})")


def lidar(views: Float[Tensor, "n q d"], *, ridge: float = 1e-4) -> float:
    """LiDAR of n prompts with q views each: between 1 and d. The ridge has the unit of the squared coordinates.

    Zero eigenvalues count as 0 ln 0 = 0, where the paper adds 1e-8 to each p. Time n q d^2 + d^3.
    Raises ConfigError unless n > d (fewer prompts than dimensions cannot fill them), q >= 2, ridge > 0 and all values are finite; and for
    prompts whose means are all equal.
    """
    _require_views(views, ridge)
    wide = views.detach().double()
    means = wide.mean(dim=1)
    within = (wide - means[:, None]).flatten(0, 1)
    between = means - means.mean(dim=0)
    return _lidar(between.T @ between / len(means), within.T @ within / len(within), ridge)


def _lidar(between: Float[Tensor, "d d"], within: Float[Tensor, "d d"], ridge: float) -> float:
    lower = torch.linalg.cholesky(within + ridge * torch.eye(len(within), dtype=torch.float64, device=within.device))
    half = torch.linalg.solve_triangular(lower, between, upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(lower, half.mT, upper=False))
    if not values[-1] > 0:
        raise ConfigError("views must differ between prompts, got prompts with equal means (lidar)")
    share = values.clamp(min=0) / values.clamp(min=0).sum()
    return torch.special.entr(share).sum().exp().item()


def _require_views(views: Tensor, ridge: float) -> None:
    n, q, d = views.shape
    if q < 2 or n <= d:
        need = "at least 2 views of more prompts than dimensions (project to fewer dimensions, or take more prompts)"
        raise ConfigError(f"views must hold {need}, got shape ({n}, {q}, {d}) (lidar)")
    if not 0 < ridge < torch.inf:
        raise ConfigError(f"ridge must be positive, got {ridge} (lidar)")
    require_points(views.flatten(0, 1), minimum=2, argument="views", where="lidar")


def compare_lidar(views: Float[Tensor, "n q d"], *, ridge: float = 1e-4, n_null: int, generator: torch.Generator) -> NullStatistic:
    """`lidar` against the same vectors dealt to the prompts at random. Errors as `lidar`, and n_null < 2."""
    value = lidar(views, ridge=ridge)
    rows = views.flatten(0, 1)
    orders = (torch.randperm(len(rows), generator=generator, device=generator.device).to(rows.device) for _ in range(n_null))
    draws = [lidar(rows[order].unflatten(0, views.shape[:2]), ridge=ridge) for order in orders]
    return compare(value, torch.tensor(draws, dtype=torch.float64))
