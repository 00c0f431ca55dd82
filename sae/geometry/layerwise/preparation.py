"""Prompts of different lengths as one matrix, what is done to rows before they are measured, and the Gaussian that a cloud is compared with.

    tokens   [T, d]      the vectors of all tokens, prompt after prompt
    lengths  [P]         how many of them each prompt has, sum = T

    raw            z
    unit           z / |z|
    centred        z - m                        m: the mean of the cloud; for tokens, of the tokens of their prompt
    centred-unit   (z - m) / |z - m|            a row at the mean stays zero

A Gaussian with exactly the mean and the covariance of a cloud of n points: with the singular value decomposition X - m = U S V^T of rank r,

    X' = m + Q S V^T,      Q uniform among the n x r matrices with orthonormal columns, each orthogonal to the ones

Mean and covariance are sufficient for a Gaussian sample, so given them X' is distributed as X is when X is Gaussian: a test that compares the
two is exact, whatever the covariance and also for fewer points than dimensions. A Gaussian drawn with the sample covariance is not: its own
sample covariance is that of a sample of a sample, more spread than the data's.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import require_points

Preparation = Literal["raw", "unit", "centred", "centred-unit"]
"""What is done to the rows first."""


def require_preparation(rows: str, *, where: str) -> None:
    """Raises ConfigError unless `rows` names a preparation."""
    if rows not in get_args(Preparation):
        raise ConfigError(f"rows must be one of {', '.join(map(repr, get_args(Preparation)))}, got {rows!r} ({where})")


def require_prompts(tokens: Float[Tensor, "tokens d"], lengths: Int[Tensor, " prompts"], *, where: str) -> None:
    """Raises ConfigError unless there is a prompt, each has a token, the lengths add up to the rows of `tokens`, and these are finite."""
    require_points(tokens, minimum=1, argument="tokens", where=where)
    if len(lengths) == 0 or int(lengths.min()) < 1 or int(lengths.sum()) != len(tokens):
        got = f"got {len(lengths)} lengths with sum {int(lengths.sum())}, the first {lengths[:8].tolist()}"
        raise ConfigError(f"lengths must each be at least 1 and add up to the {len(tokens)} rows of tokens, {got} ({where})")


def prepared(points: Float[Tensor, "n d"], rows: Preparation) -> Float[Tensor, "n d"]:
    """`points` as `rows` says, detached, in float64. A zero row has no direction and stays zero."""
    points = points.detach().double()
    if rows in ("centred", "centred-unit"):
        points = _without_dust(points - points.mean(dim=0), points.abs().amax(dim=0))
    return _unit(points) if rows in ("unit", "centred-unit") else points


def padded(
    tokens: Float[Tensor, "tokens d"], lengths: Int[Tensor, " prompts"], rows: Preparation
) -> tuple[Float[Tensor, "prompts longest d"], Bool[Tensor, "prompts longest"]]:
    """The prompts as one float64 tensor, rows prepared within their prompt, and which places hold a token; the others are zero."""
    real = torch.arange(int(lengths.max()), device=tokens.device) < lengths.to(tokens.device)[:, None]
    values = torch.zeros(*real.shape, tokens.shape[1], dtype=torch.float64, device=tokens.device)
    values[real] = tokens.detach().double()
    if rows in ("centred", "centred-unit"):
        mean = values.sum(dim=1, keepdim=True) / real.sum(dim=1)[:, None, None]
        values = _without_dust((values - mean) * real[..., None], values.abs().amax(dim=1, keepdim=True))
    return (_unit(values) if rows in ("unit", "centred-unit") else values), real


def pooled_tokens(
    tokens: Float[Tensor, "tokens d"], lengths: Int[Tensor, " prompts"], *, rows: Preparation = "raw"
) -> Float[Tensor, "prompts d"]:
    """The mean vector of the tokens of each prompt, float64.

    The tokens are prepared within their prompt before they are averaged. "raw" is the definition: the mean of the activations.
    "centred-unit" is what the code of Skean et al. 2025 (arXiv 2502.02013; snapshot of 2024-09) pools, by which the mean of the prompt is
    gone before the mean is taken; "centred" leaves zeros.
    Raises ConfigError for another `rows`, NaN or Inf, and lengths that do not add up to the tokens.
    """
    require_preparation(rows, where="pooled_tokens")
    require_prompts(tokens, lengths, where="pooled_tokens")
    lengths = lengths.to(tokens.device).long()
    wide = tokens.detach().double()
    if rows != "raw":
        values, real = padded(tokens, lengths, rows)
        wide = values[real]
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
    return wide.new_zeros(len(lengths), tokens.shape[1]).index_add_(0, owner, wide) / lengths[:, None]


def matched_gaussian(points: Float[Tensor, "n d"], *, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """A draw of n Gaussian points with exactly the mean and the covariance of `points`, float64; see the top of this file.

    Time n d min(n, d). Raises ConfigError for fewer than 2 rows and for NaN or Inf.
    """
    require_points(points, minimum=2, argument="points", where="matched_gaussian")
    wide = points.detach().double()
    mean = wide.mean(dim=0)
    _, singular, axes = torch.linalg.svd(wide - mean, full_matrices=False)
    return mean + recoloured(len(points), singular, axes, generator=generator)


def recoloured(n: int, singular: Float[Tensor, " r"], axes: Float[Tensor, "r d"], *, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Q S V^T of the top of this file, for a decomposition that is at hand. Singular values from rank n - 1 on are left out."""
    kept = singular > max(n, axes.shape[1]) * torch.finfo(torch.float64).eps * singular.amax().clamp(min=torch.finfo(torch.float64).tiny)
    kept[n - 1 :] = False
    if not kept.any():
        return axes.new_zeros(n, axes.shape[1])
    normal = torch.randn(n, int(kept.sum()), generator=generator, dtype=torch.float64, device=generator.device).to(axes.device)
    q, upper = torch.linalg.qr(normal - normal.mean(dim=0))
    q = q * upper.diagonal().sign()  # uniform only with the signs that make R's diagonal positive
    return (q * singular[kept]) @ axes[kept]


def _unit(values: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    largest = values.abs().amax(dim=-1, keepdim=True)
    values = values / largest.where(largest > 0, 1)
    norms = values.norm(dim=-1, keepdim=True)
    return values / norms.where(norms > 0, 1)


def _without_dust(centred: Float[Tensor, "*rows d"], scale: Float[Tensor, "*ones d"]) -> Float[Tensor, "*rows d"]:
    """Rows of differences that are nothing but the rounding of the mean are zero: they would become directions of length 1."""
    small = centred.abs() <= 16 * torch.finfo(torch.float64).eps * scale
    return centred.masked_fill(small.all(dim=-1, keepdim=True), 0)
