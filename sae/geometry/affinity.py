"""How strongly two latents go together, from four counts, and what two independent latents of the same rates give.

    n11 units where both fire, n_i and n_j where each does, T units;   n10 = n_i - n11,  n01 = n_j - n11,  n00 = T - n11 - n10 - n01

    matching   (n11 + n00) / T                     simple matching coefficient
    jaccard    n11 / (n11 + n10 + n01)
    dice       2 n11 / (n_i + n_j)
    overlap    n11 / min(n_i, n_j)
    phi        (n11 n00 - n10 n01) / sqrt(n_i n_j (T - n_i)(T - n_j))       Pearson's correlation of two binary variables
    lift       T n11 / (n_i n_j)

0/0 is 0. Li et al. 2024 (arXiv 2410.19750), "The Geometry of Concepts", compare the first five and keep phi. Matching, Jaccard and Dice depend
on the rates themselves: where rates vary, latents of like rates look alike.

The null: at fixed n_i and n_j, latents that fire independently have n11 ~ Hypergeometric(T, n_i, n_j), so that

    E n11 = n_i n_j / T,     Var n11 = n_i n_j (T - n_i)(T - n_j) / (T^2 (T - 1)),     phi sqrt(T - 1) = (n11 - E n11) / sd n11

Each affinity rises with n11 when the rates are fixed, hence all six have one and the same p-value: that of n11 (Fisher's exact test). Units
are taken as independent; neighbouring tokens are not, so count blocks or documents where a p-value is to be believed.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError

Affinity = Literal["matching", "jaccard", "dice", "overlap", "phi", "lift"]
AFFINITIES: tuple[Affinity, ...] = get_args(Affinity)
"""All names, in the order of their numbers in the compiled loops."""
MOST_TERMS = 2**22
"""Terms of the sums over n11 that are in memory at once."""


@dataclass(frozen=True, eq=False)
class Association:
    """Affinities of pairs beside those of independent latents with the same rates. The null is exact: there are no draws."""

    values: Float[Tensor, " *pairs"]
    """The affinities."""
    null_mean: Float[Tensor, " *pairs"]
    """Mean under independence at the same rates."""
    null_sd: Float[Tensor, " *pairs"]
    """Standard deviation under independence at the same rates."""
    p_greater: Float[Tensor, " *pairs"]
    """P(n11 at least as large) under independence, exact (hypergeometric); per pair, not corrected for their number."""
    p_less: Float[Tensor, " *pairs"]
    """P(n11 at least as small) under independence, exact."""


def require_affinity(kind: str, *, where: str) -> int:
    """The number of the affinity `kind`. Raises ConfigError for another name."""
    if kind not in AFFINITIES:
        raise ConfigError(f"kind must be one of {', '.join(AFFINITIES)}, got {kind!r} ({where})")
    return AFFINITIES.index(kind)


def affinity(
    kind: Affinity, both: Int[Tensor, "*pairs"], first: Int[Tensor, "*#pairs"], second: Int[Tensor, "*#pairs"], n_units: int
) -> Float[Tensor, "*pairs"]:
    """The affinity of every pair (float64), from n11 = `both`, n_i = `first`, n_j = `second` and T = `n_units`.

    Raises ConfigError for another `kind`, n_units < 1, and counts that no two sets have: n11 outside max(0, n_i + n_j - T)..min(n_i, n_j),
    or n_i or n_j above T.
    """
    require_affinity(kind, where="affinity")
    _require_counts(both, first, second, n_units)
    return _value(kind, both.double(), first.double(), second.double(), float(n_units))


def _value(
    kind: Affinity, n11: Float[Tensor, "*pairs"], n_i: Float[Tensor, "*#pairs"], n_j: Float[Tensor, "*#pairs"], T: float
) -> Float[Tensor, "*pairs"]:
    if kind == "matching":
        return (T - n_i - n_j + 2 * n11) / T
    if kind == "jaccard":
        return _ratio(n11, n_i + n_j - n11)
    if kind == "dice":
        return _ratio(2 * n11, n_i + n_j)
    if kind == "overlap":
        return _ratio(n11, torch.minimum(n_i, n_j))
    if kind == "lift":
        return _ratio(T * n11, n_i * n_j)
    spread = (n_i * (T - n_i)).sqrt() * (n_j * (T - n_j)).sqrt()
    return _ratio(T * n11 - n_i * n_j, spread)


def _ratio(above: Float[Tensor, "*pairs"], below: Float[Tensor, "*#pairs"]) -> Float[Tensor, "*pairs"]:
    """above / below, 0 where both are."""
    return torch.where(below == 0, torch.zeros_like(above), above / below.where(below != 0, torch.ones_like(below)))


def _require_counts(both: Int[Tensor, "*pairs"], first: Int[Tensor, "*#pairs"], second: Int[Tensor, "*#pairs"], n_units: int) -> None:
    if n_units < 1:
        raise ConfigError(f"n_units must be at least 1, got {n_units} (affinity)")
    n11, n_i, n_j = both.long(), first.long(), second.long()
    impossible = (n11 < (n_i + n_j - n_units).clamp(min=0)) | (n11 > torch.minimum(n_i, n_j)) | (torch.maximum(n_i, n_j) > n_units)
    if impossible.any():
        n11, n_i, n_j = (each.expand(impossible.shape)[impossible][0].item() for each in (n11, n_i, n_j))
        raise ConfigError(
            f"counts must be those of two sets of units: both in max(0, first + second - n_units)..min(first, second), got both {n11}, "
            f"first {n_i}, second {n_j} of n_units {n_units}; count all from the same units (affinity)"
        )


def compare_affinity(
    kind: Affinity, both: Int[Tensor, "*pairs"], first: Int[Tensor, "*#pairs"], second: Int[Tensor, "*#pairs"], n_units: int
) -> Association:
    """The affinity of every pair with its mean, standard deviation and exact p-values under independence at the same rates.

    Meant for the pairs that one looks at, not for all of a dictionary: about a microsecond a pair, more for Jaccard, which is not linear in
    n11 and has its two moments summed over n11 (within 12 standard deviations of its mean). Errors as `affinity`.
    """
    values = affinity(kind, both, first, second, n_units)
    n_i, n_j = (each.double().expand(values.shape).contiguous() for each in (first, second))
    T = float(n_units)
    expected = n_i * n_j / T
    variance = expected * (T - n_i) * (T - n_j) / (T * max(T - 1, 1))
    if kind == "jaccard":
        mean, sd = _jaccard_moments(n_i.flatten(), n_j.flatten(), expected.flatten(), variance.sqrt().flatten(), T)
        mean, sd = mean.view_as(values), sd.view_as(values)
    else:
        mean = _value(kind, expected, n_i, n_j, T)
        per_count = _value(kind, expected + 1, n_i, n_j, T) - mean
        sd = per_count * variance.sqrt()
        mean = torch.zeros_like(mean) if kind == "phi" else mean
    p_greater, p_less = _tails(both, n_i, n_j, n_units)
    return Association(values=values, null_mean=mean, null_sd=sd, p_greater=p_greater, p_less=p_less)


def _tails(
    both: Int[Tensor, "*pairs"], n_i: Float[Tensor, "*pairs"], n_j: Float[Tensor, "*pairs"], n_units: int
) -> tuple[Float[Tensor, "*pairs"], Float[Tensor, "*pairs"]]:
    from scipy.stats import hypergeom

    n11, first, second = (each.detach().cpu().long().numpy() for each in (both, n_i, n_j))
    above, below = hypergeom.sf(n11 - 1, n_units, first, second), hypergeom.cdf(n11, n_units, first, second)
    return tuple(torch.as_tensor(np.clip(p, 0, 1)).to(both.device) for p in (above, below))


def _jaccard_moments(
    n_i: Float[Tensor, " n"], n_j: Float[Tensor, " n"], expected: Float[Tensor, " n"], sd: Float[Tensor, " n"], T: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    from scipy.stats import hypergeom

    reach = 12 * sd + 12
    low = torch.maximum((n_i + n_j - T).clamp(min=0), (expected - reach).floor())
    high = torch.minimum(torch.minimum(n_i, n_j), (expected + reach).ceil())
    n_terms = int((high - low).max().item()) + 1 if len(low) else 1
    moments = []
    for part in torch.arange(len(n_i)).split(max(1, MOST_TERMS // n_terms)):
        terms = low[part, None] + torch.arange(n_terms, dtype=torch.float64, device=low.device)
        first, second = n_i[part, None], n_j[part, None]
        chance = torch.as_tensor(hypergeom.pmf(*(each.cpu().numpy() for each in (terms, torch.tensor(T), first, second))))
        chance = chance.to(terms).masked_fill(terms > high[part, None], 0)
        values = _value("jaccard", terms.minimum(torch.minimum(first, second)), first, second, T)
        mean = (chance * values).sum(dim=1)
        moments.append(torch.stack([mean, (chance * (values - mean[:, None]).square()).sum(dim=1).sqrt()]))
    mean, spread = torch.cat([*moments, n_i.new_zeros(2, 0)], dim=1)
    return mean, spread
