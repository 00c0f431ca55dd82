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

from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class MatchedGaussian:
    """Gaussian clouds with exactly the mean and the covariance of one cloud; see the top of this file. Made by `of`."""

    mean: Float[Tensor, " d"]
    """Mean of the cloud."""
    roots: Float[Tensor, "r d"]
    """S V^T: its rows are the principal axes, each as long as its singular value."""
    n: int
    """Number of points."""

    @classmethod
    def of(cls, points: Float[Tensor, "n d"]) -> "MatchedGaussian":
        """For the rows of `points`. Time n d min(n, d). Raises ConfigError for fewer than 2 rows and for NaN or Inf."""
        require_points(points, minimum=2, argument="points", where="MatchedGaussian")
        wide = points.detach().double()
        n, d = wide.shape
        mean = wide.mean(dim=0)
        centred = wide - mean
        if n > d:
            squares, axes = torch.linalg.eigh(centred.T @ centred)
            singular, axes = squares.clamp(min=0).sqrt(), axes.T
        else:
            _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
        kept = singular > max(n, d) * torch.finfo(torch.float64).eps ** (0.5 if n > d else 1.0) * singular.max()
        if n <= d:
            kept[n - 1 :] = False  # centred rows have at most n - 1 dimensions
        return cls(mean=mean, roots=singular[kept, None] * axes[kept], n=n)

    def draw(self, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """One cloud, float64. Time n d r."""
        rank = len(self.roots)
        if rank == 0:
            return self.mean.expand(self.n, -1).clone()
        normal = torch.randn(self.n, rank, generator=generator, dtype=torch.float64, device=generator.device).to(self.mean.device)
        normal = normal - normal.mean(dim=0)
        if self.n > 2 * rank:  # Q R = normal with R^T R = normal^T normal: well conditioned
            upper = torch.linalg.cholesky(normal.T @ normal, upper=True)
            return self.mean + normal @ torch.linalg.solve_triangular(upper, self.roots, upper=True)
        q, upper = torch.linalg.qr(normal)
        return self.mean + (q * upper.diagonal().sign()) @ self.roots  # uniform only with the signs that make R's diagonal positive


def _unit(values: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    largest = values.abs().amax(dim=-1, keepdim=True)
    values = values / largest.where(largest > 0, 1)
    norms = values.norm(dim=-1, keepdim=True)
    return values / norms.where(norms > 0, 1)


def _without_dust(centred: Float[Tensor, "*rows d"], scale: Float[Tensor, "*ones d"]) -> Float[Tensor, "*rows d"]:
    """Rows of differences that are nothing but the rounding of the mean are zero: they would become directions of length 1."""
    small = centred.abs() <= 16 * torch.finfo(torch.float64).eps * scale
    return centred.masked_fill(small.all(dim=-1, keepdim=True), 0)
