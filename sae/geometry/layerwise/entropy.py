"""Matrix-based (Renyi) entropy: how evenly a representation uses its directions.

    S_a(Z) = 1 / (1 - a) ln sum_i p_i^a,     p_i = l_i / sum l,     l_i the eigenvalues of K = Z Z^T
    S_1(Z) = -sum_i p_i ln p_i               (von Neumann),      S_0 = ln rank,      S_inf = -ln max p

Giraldo, Rao & Principe 2015 (arXiv 1211.2459). Skean et al. 2025 (arXiv 2502.02013): the *prompt entropy* of a layer is that of the tokens of
one prompt, the *dataset entropy* that of one pooled vector per prompt. Kim et al. 2023 (arXiv 2304.01434): the von Neumann entropy of rows of
unit length. Z Z^T and Z^T Z have the same eigenvalues but for zeros, so the smaller one is decomposed. Nothing is clamped: K has negative
entries (50 points on a circle have entropy ln 2 = 0.693; with the negative entries set to 0, as the paper's code does, it would be 1.647).
"""

from collections.abc import Callable
from math import inf, log
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.layerwise.preparation import MatchedGaussian, Preparation, padded, prepared, require_preparation, require_prompts
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import require_points

Normalisation = Literal["none", "max", "rows", "columns", "product"]
"""What an entropy is divided by: 1, min(ln n, ln d), ln n, ln d, or ln n ln d (the last is not a share of anything; published code has it)."""
RELATIVE_ZERO = 1e-12
"""Eigenvalues up to this fraction of the largest are rounding."""
BLOCK_ELEMENTS = 2**24
"""Values of one batch of prompts in float64."""


def renyi_entropy(eigenvalues: Float[Tensor, "*batch m"], *, alpha: float = 1.0) -> Float[Tensor, "*batch"]:
    """S_a of each row of eigenvalues, in nats, float64. alpha = 0 and inf are the limits; near 1 no digits are lost.

    Eigenvalues up to 1e-12 of a row's largest, and negative ones, are zero; a row of zeros has no entropy: nan. Raises ConfigError for
    alpha below 0 or NaN, and NaN or Inf among the eigenvalues.
    """
    if not alpha >= 0:
        raise ConfigError(f"alpha must be at least 0 (1: von Neumann, inf: min-entropy), got {alpha} (renyi_entropy)")
    values = eigenvalues.detach().double()
    if not values.isfinite().all():
        raise ConfigError("eigenvalues must be finite, got NaN or Inf (renyi_entropy)")
    largest = values.amax(dim=-1, keepdim=True)
    kept = (values > RELATIVE_ZERO * largest) & (values > 0)
    share = values.where(kept, 0)
    share = share / share.sum(dim=-1, keepdim=True)  # 0 / 0 = nan where nothing is kept
    if alpha == 1:
        return torch.special.entr(share).sum(dim=-1)
    if alpha == inf:
        return -share.amax(dim=-1).log()
    logs = share.log().masked_fill(~kept, -inf)
    if abs(alpha - 1) > 0.5:
        power = torch.logsumexp(alpha * logs if alpha > 0 else logs.masked_fill(kept, 0), dim=-1) / (1 - alpha)
    else:  # sum p^a = 1 + sum p (p^(a-1) - 1): the 1 is what would cost the digits
        excess = share * torch.expm1((alpha - 1) * logs.masked_fill(~kept, 0))
        power = torch.log1p(excess.sum(dim=-1)) / (1 - alpha)
    return power.masked_fill(~kept.any(dim=-1), torch.nan)


def matrix_entropy(
    points: Float[Tensor, "n d"], *, alpha: float = 1.0, rows: Preparation = "raw", normalisation: Normalisation = "none"
) -> float:
    """S_a of the rows of `points`; with one pooled vector per prompt, the dataset entropy. In nats, or as `normalisation` says.

    `rows` says what is done first; the definition is "raw". The paper's code takes "centred-unit" and normalisation "max". nan where
    nothing is left to measure: one row after centring, zeros only, a normalisation by ln 1. Time n d min(n, d).
    Raises ConfigError for no rows, NaN or Inf, and another `rows`, `normalisation` or alpha.
    """
    require_preparation(rows, where="matrix_entropy")
    require_points(points, minimum=1, argument="points", where="matrix_entropy")
    n, d = points.shape
    values = prepared(points, rows)
    scale = values.abs().max()
    values = values / scale.where(scale > 0, 1)  # squares neither over- nor underflow
    product = values @ values.T if n < d else values.T @ values
    entropy = renyi_entropy(torch.linalg.eigvalsh(product), alpha=alpha).item()
    return entropy / _unit_of(torch.tensor([n]), d, normalisation).item()


def von_neumann_entropy(points: Float[Tensor, "n d"]) -> float:
    """-sum p ln p of the eigenvalues of Z^T Z / n, the rows of Z being those of `points` at length 1, not centred; nats, at most ln min(n, d).

    Kim et al. 2023 (arXiv 2304.01434). Errors as `matrix_entropy`.
    """
    return matrix_entropy(points, rows="unit")


def prompt_entropies(
    tokens: Float[Tensor, "tokens d"],
    lengths: Int[Tensor, " prompts"],
    *,
    alpha: float = 1.0,
    rows: Preparation = "raw",
    normalisation: Normalisation = "none",
    block_elements: int = BLOCK_ELEMENTS,
) -> Float[Tensor, " prompts"]:
    """S_a of the tokens of every prompt, float64; `tokens` are those of all prompts one after the other, `lengths` says how many are whose.

    Prompts of similar length are decomposed together. Errors and nan as `matrix_entropy`; also lengths that do not add up to the tokens.
    """
    require_preparation(rows, where="prompt_entropies")
    require_prompts(tokens, lengths, where="prompt_entropies")
    d, lengths = tokens.shape[1], lengths.cpu().long()
    starts = lengths.cumsum(0) - lengths
    found = torch.empty(len(lengths), dtype=torch.float64)
    order = lengths.argsort(stable=True)
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last - first + 1) * int(lengths[order[last]]) * (d + int(lengths[order[last]])) <= block_elements:
            last += 1
        chosen = order[first:last]
        places = torch.cat([torch.arange(int(starts[i]), int(starts[i] + lengths[i])) for i in chosen.tolist()])
        found[chosen] = _batch_entropies(tokens[places.to(tokens.device)], lengths[chosen], alpha, rows).cpu()
        first = last
    return (found / _unit_of(lengths, d, normalisation)).to(tokens.device)


def _batch_entropies(tokens: Tensor, lengths: Tensor, alpha: float, rows: Preparation) -> Float[Tensor, " prompts"]:
    values, _ = padded(tokens, lengths, rows)
    scale = values.abs().amax(dim=(1, 2), keepdim=True)
    values = values / scale.where(scale > 0, 1)
    product = values @ values.mT if values.shape[1] < values.shape[2] else values.mT @ values
    return renyi_entropy(torch.linalg.eigvalsh(product), alpha=alpha)


def _unit_of(n: Int[Tensor, " prompts"], d: int, normalisation: Normalisation) -> Float[Tensor, " prompts"]:
    if normalisation not in get_args(Normalisation):
        allowed = ", ".join(map(repr, get_args(Normalisation)))
        raise ConfigError(f"normalisation must be one of {allowed}, got {normalisation!r} (matrix entropy)")
    rows, columns = n.double().log(), torch.full(n.shape, log(d), dtype=torch.float64)
    units = {
        "none": torch.ones_like(rows),
        "max": torch.minimum(rows, columns),
        "rows": rows,
        "columns": columns,
        "product": rows * columns,
    }
    return units[normalisation].where(units[normalisation] > 0, torch.nan)


def compare_matrix_entropy(
    points: Float[Tensor, "n d"],
    *,
    null: Literal["isotropic", "gaussian"],
    alpha: float = 1.0,
    rows: Preparation = "raw",
    normalisation: Normalisation = "none",
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """`matrix_entropy` against clouds of as many points, prepared in the same way.

    "isotropic": independent normal coordinates; the entropy of n such points is well below ln min(n, d). "gaussian": Gaussian clouds with
    exactly the mean and covariance of the data (`MatchedGaussian`), for what is not Gaussian about rows of unit length; without unit
    rows the entropy is a function of mean and covariance and the comparison is refused.
    Errors as `matrix_entropy`; also another `null`, an entropy that is nan, and n_null < 2.
    """
    if null not in ("isotropic", "gaussian"):
        raise ConfigError(f"null must be 'isotropic' or 'gaussian', got {null!r} (compare_matrix_entropy)")
    if null == "gaussian" and rows in ("raw", "centred"):
        raise ConfigError(f"rows must be 'unit' or 'centred-unit' for the null 'gaussian', which keeps the entropy of {rows!r} rows")

    def entropy(cloud: Tensor) -> float:
        return matrix_entropy(cloud, alpha=alpha, rows=rows, normalisation=normalisation)

    value = entropy(points)
    draw = _clouds(points, null, generator)
    return compare(value, torch.tensor([entropy(draw()) for _ in range(n_null)], dtype=torch.float64))


def compare_prompt_entropy(
    tokens: Float[Tensor, "tokens d"],
    lengths: Int[Tensor, " prompts"],
    *,
    null: Literal["shuffled", "isotropic", "gaussian"],
    alpha: float = 1.0,
    rows: Preparation = "raw",
    normalisation: Normalisation = "none",
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """The mean of `prompt_entropies` over the prompts that have one, against prompts of the same lengths with other tokens.

    "shuffled": the tokens of all prompts dealt to the prompts at random, which asks whether what stands together is more alike.
    "isotropic": independent normal coordinates. "gaussian": Gaussian tokens with exactly the mean and covariance of all tokens.
    Errors as `prompt_entropies`; also another `null`, no prompt with an entropy, and n_null < 2.
    """
    if null not in ("shuffled", "isotropic", "gaussian"):
        raise ConfigError(f"null must be 'shuffled', 'isotropic' or 'gaussian', got {null!r} (compare_prompt_entropy)")

    def mean_entropy(rows_of_prompts: Tensor) -> float:
        return prompt_entropies(rows_of_prompts, lengths, alpha=alpha, rows=rows, normalisation=normalisation).nanmean().item()

    value, draw = mean_entropy(tokens), _clouds(tokens, null, generator)
    return compare(value, torch.tensor([mean_entropy(draw()) for _ in range(n_null)], dtype=torch.float64))


def _clouds(points: Tensor, null: Literal["shuffled", "isotropic", "gaussian"], generator: torch.Generator) -> Callable[[], Tensor]:
    """A function that draws a cloud of the null."""
    if null == "shuffled":
        return lambda: points[torch.randperm(len(points), generator=generator, device=generator.device).to(points.device)]
    if null == "isotropic":
        return lambda: torch.randn(points.shape, generator=generator, dtype=torch.float64, device=generator.device).to(points.device)
    gaussian = MatchedGaussian.of(points)
    return lambda: gaussian.draw(generator)
