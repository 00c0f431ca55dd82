"""Statistics beside their null distributions.

A coherence of 0.3 means nothing until one knows what random directions give. Everything here whose value is not zero under "no structure"
is returned with the mean and standard deviation of its null draws, and with Monte-Carlo p-values

    p = (1 + #{null >= value}) / (1 + n_null)          Davison & Hinkley, Bootstrap Methods and their Application (1997), section 4.2

which are never zero and are valid at any n_null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sae.errors import ConfigError


@dataclass(frozen=True)
class NullStatistic:
    """A number and what chance alone gives."""

    value: float
    """The statistic of the data."""
    null_mean: float
    """Mean of the null draws."""
    null_sd: float
    """Standard deviation of the null draws (n_null - 1 in the denominator)."""
    n_null: int
    """Number of null draws."""
    p_greater: float
    """p-value of "the data are larger than chance"; at least 1 / (1 + n_null)."""
    p_less: float
    """p-value of "the data are smaller than chance"; at least 1 / (1 + n_null)."""


@dataclass(frozen=True)
class NullCurve:
    """A curve of statistics and, point by point, what chance alone gives. p-values are per point, not corrected for their number."""

    values: Float[Tensor, " points"]
    """The statistics of the data."""
    null_mean: Float[Tensor, " points"]
    """Mean of the null draws at each point."""
    null_sd: Float[Tensor, " points"]
    """Standard deviation of the null draws at each point (n_null - 1 in the denominator)."""
    n_null: int
    """Number of null draws."""
    p_greater: Float[Tensor, " points"]
    """p-value of "larger than chance" at each point."""
    p_less: Float[Tensor, " points"]
    """p-value of "smaller than chance" at each point."""


def p_value(
    values: Float[Tensor, " points"], draws: Float[Tensor, "n_null points"], *, alternative: Literal["greater", "less"]
) -> Float[Tensor, " points"]:
    """p = (1 + #{null >= value}) / (1 + n_null) for "greater", with <= for "less"; float64, in [1 / (1 + n_null), 1].

    Ties count against significance. Raises ConfigError for another `alternative` and for no draws.
    """
    if alternative not in ("greater", "less"):
        raise ConfigError(f"alternative must be 'greater' or 'less', got {alternative!r} (p_value)")
    if len(draws) < 1:
        raise ConfigError("draws must hold at least 1 null draw, got 0 (p_value)")
    extreme = draws >= values if alternative == "greater" else draws <= values
    return (1 + extreme.sum(dim=0)).double() / (1 + len(draws))


def compare_curve(values: Float[Tensor, " points"], draws: Float[Tensor, "n_null points"] | Sequence[Tensor]) -> NullCurve:
    """`values` with the mean, standard deviation and p-values of `draws`, in float64 on the device of `values`.

    Raises ConfigError for fewer than 2 draws and for NaN in either.
    """
    if len(draws) < 2:
        raise ConfigError(f"n_null must be at least 2, got {len(draws)} (compare_curve)")
    values = values.double()
    null = (draws if isinstance(draws, Tensor) else torch.stack(list(draws))).to(values)
    if values.isnan().any() or null.isnan().any():
        raise ConfigError("values and draws must not hold NaN (compare_curve)")
    return NullCurve(
        values=values,
        null_mean=null.mean(dim=0),
        null_sd=null.std(dim=0),
        n_null=len(null),
        p_greater=p_value(values, null, alternative="greater"),
        p_less=p_value(values, null, alternative="less"),
    )


def compare(value: float, draws: Float[Tensor, " n_null"] | Sequence[float]) -> NullStatistic:
    """`value` with the mean, standard deviation and p-values of `draws`. Raises ConfigError for fewer than 2 draws and for NaN."""
    curve = compare_curve(torch.tensor([value], dtype=torch.float64), torch.as_tensor(draws, dtype=torch.float64).detach().cpu()[:, None])
    return NullStatistic(
        value=curve.values.item(),
        null_mean=curve.null_mean.item(),
        null_sd=curve.null_sd.item(),
        n_null=curve.n_null,
        p_greater=curve.p_greater.item(),
        p_less=curve.p_less.item(),
    )


def benjamini_hochberg(p_values: Float[Tensor, " n"], n_tests: int | None = None) -> Float[Tensor, " n"]:
    """q-values: the least false discovery rate at which each test is rejected, in float64; of m tests, in order of their p-values,

        q_(i) = min_{j >= i} m p_(j) / j                            Benjamini & Hochberg, J. R. Stat. Soc. B 57 (1995), 289-300

    `n_tests` counts the tests made; those not among `p_values` must have larger p-values than all that are. Raises ConfigError for p outside
    [0, 1] and n_tests below the number of p-values.
    """
    p = p_values.detach().double()
    m = len(p) if n_tests is None else n_tests
    if not ((p >= 0) & (p <= 1)).all() or m < len(p):
        raise ConfigError(f"p_values must be in 0..1 and at most n_tests={m}, got {len(p)} of them (benjamini_hochberg)")
    ordered, order = p.sort()
    scaled = ordered * m / torch.arange(1, len(p) + 1, device=p.device, dtype=p.dtype)
    q = torch.empty_like(p)
    q[order] = scaled.flip(0).cummin(dim=0).values.flip(0).clamp(max=1) if len(p) else scaled
    return q


def random_directions(n: int, like: Shaped[Tensor, "_ d"], *, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """`n` independent directions, uniform on the unit sphere of R^d, with the width, dtype and device of `like`.

    Drawn on the generator's device in float32 or wider, so that one CPU generator gives the same directions on every machine.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    normal = torch.randn(n, like.shape[1], generator=generator, dtype=dtype, device=generator.device)
    return (normal / normal.norm(dim=1, keepdim=True)).to(like.device)
