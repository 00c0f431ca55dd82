"""Statistics of sparse codes, from the codes as they are: how often latents fire, and how unequally; and of dense rows, how unequal they are.

    frequency    f_i = #{t: z_ti != 0} / N                       a latent that never fired in N tokens has f < 3 / N with confidence 95%
    Hoyer        (sqrt n - l1 / l2) / (sqrt n - 1)               1 for one non-zero, 0 for equal magnitudes          Hoyer 2004
    Gini         2 sum_r r |z|_(r) / (n sum |z|) - (n + 1) / n   1 - 1/n for one non-zero, 0 for equal magnitudes    ranks r ascending from 1
    kurtosis     mean (z - m)^4 / (mean (z - m)^2)^2             3 for a Gaussian
    participation ratio   (sum z^2)^2 / sum z^4                  the number of non-zeros where they are equal

The last four are of n numbers, most of which are zero: over the latents of one token, or over the tokens of one latent. The zeros are
counted, not stored. Of n independent Gaussians with mean 0, n large, Gini is sqrt 2 - 1, l1 / l2 is sqrt(2 n / pi), kurtosis 3 and the participation
ratio n / 3. The sparseness of Treves & Rolls 1991, (1 - l1^2 / (n l2^2)) / (1 - 1/n), is Hoyer's on another scale.
The rule of three: Hanley & Lippman-Hand 1983, JAMA 249.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import require_points
from sae.geometry.sparsity import require_slots


@dataclass(frozen=True, eq=False)
class Densities:
    """How often the latents of a dictionary fire, and how many at a time."""

    frequency: Float[Tensor, " n_latents"]
    """Share of tokens on which each latent is not zero, 0..1."""
    histogram: Int[Tensor, " bins"]
    """Number of latents per bin of log10 frequency; dead latents are in none, those below the first edge in the first."""
    bin_edges: Float[Tensor, " bins+1"]
    """Edges of the bins, -6..0; a bin holds its lower edge, the last one both."""
    n_dead: int
    """Latents that never fired."""
    dead_bound: float
    """Upper bound (95%) of a dead latent's frequency, 3 / n_tokens, at most 1: what "dead" can mean on so many tokens."""
    always_share: float
    """Share of latents that fire on more than `always_above` of the tokens."""
    mean_l0: float
    """Mean number of active latents per token."""
    l0_quantiles: Float[Tensor, " 5"]
    """0, 25, 50, 75 and 100% quantiles of the number of active latents."""
    n_tokens: int
    """N."""


def densities(
    indices: Int[Tensor, "n k_max"],
    values: Float[Tensor, "n k_max"],
    counts: Int[Tensor, " n"],
    *,
    n_latents: int,
    n_bins: int = 60,
    always_above: float = 0.1,
) -> Densities:
    """Firing frequencies and their histogram, and the number of active latents. Slots `:counts[t]` are used; those of value 0 did not fire.

    Raises ConfigError for indices or counts out of range, NaN or Inf, a latent twice in a row (merge codes first), n_bins < 1, and
    always_above outside 0..1.
    """
    if n_bins < 1 or not 0 <= always_above <= 1:
        raise ConfigError(f"n_bins must be at least 1 and always_above in 0..1, got {n_bins} and {always_above} (densities)")
    owner, latent, _ = _entries(indices, values, counts, n_latents, where="densities")
    n = len(indices)
    frequency = torch.bincount(latent, minlength=n_latents).double() / n
    l0 = torch.bincount(owner, minlength=n).double()
    edges = torch.linspace(-6, 0, n_bins + 1, dtype=torch.float64, device=frequency.device)
    fired = frequency[frequency > 0].log10().clamp(min=-6)
    bins = torch.bucketize(fired, edges, right=True).clamp(max=n_bins) - 1
    return Densities(
        frequency=frequency,
        histogram=torch.bincount(bins, minlength=n_bins),
        bin_edges=edges,
        n_dead=int((frequency == 0).sum()),
        dead_bound=min(1.0, 3 / n),
        always_share=(frequency > always_above).double().mean().item(),
        mean_l0=l0.mean().item(),
        l0_quantiles=l0.quantile(torch.linspace(0, 1, 5, dtype=torch.float64, device=l0.device)),
        n_tokens=n,
    )


@dataclass(frozen=True, eq=False)
class Sparseness:
    """How unequal the numbers of each group are; nan for a group of zeros only."""

    hoyer: Float[Tensor, " groups"]
    """0..1."""
    gini: Float[Tensor, " groups"]
    """0..1 - 1/n."""
    kurtosis: Float[Tensor, " groups"]
    """At least 1; 3 for a Gaussian (not the excess). nan also where the numbers are all equal."""
    participation_ratio: Float[Tensor, " groups"]
    """1..n."""


def sparseness(
    indices: Int[Tensor, "n k_max"],
    values: Float[Tensor, "n k_max"],
    counts: Int[Tensor, " n"],
    *,
    n_latents: int,
    over: Literal["latents", "tokens"],
) -> Sparseness:
    """Hoyer, Gini, kurtosis and participation ratio over the latents of each token, or over the tokens of each latent; float64.

    Raises ConfigError for another `over`, groups of one number, and bad codes as `densities`.
    """
    if over not in ("latents", "tokens"):
        raise ConfigError(f"over must be 'latents' or 'tokens', got {over!r} (sparseness)")
    owner, latent, amounts = _entries(indices, values, counts, n_latents, where="sparseness")
    group, size, n_groups = (owner, n_latents, len(indices)) if over == "latents" else (latent, len(indices), n_latents)
    if size < 2:
        raise ConfigError(f"there must be at least 2 {over} to be unequal, got {size} (sparseness)")
    order = amounts.abs().argsort(stable=True)
    order = order[group[order].argsort(stable=True)]  # by group, ascending within
    group, amounts = group[order], amounts[order]
    n_active = torch.bincount(group, minlength=n_groups)
    place = torch.arange(len(group), device=group.device) - (n_active.cumsum(0) - n_active)[group]
    rank = (size - n_active[group] + place + 1).double()  # the zeros come first

    def total(terms: Tensor) -> Tensor:
        return terms.new_zeros(n_groups).index_add_(0, group, terms)

    largest = amounts.new_zeros(n_groups).scatter_reduce_(0, group, amounts.abs(), "amax")
    z = amounts / largest[group]  # no power over- or underflows
    l1, squares = total(z.abs()), total(z.square())
    gini = 2 * total(rank * z.abs()) / (size * l1) - (size + 1) / size
    mean = total(z) / size
    n_zero = size - n_active
    second, fourth = (total((z - mean[group]).pow(p)) + n_zero * mean.pow(p) for p in (2, 4))
    varies = second > size * torch.finfo(torch.float64).eps * squares
    return Sparseness(
        hoyer=((size**0.5 - l1 / squares.sqrt()) / (size**0.5 - 1)).clamp(0, 1),
        gini=gini,
        kurtosis=(size * fourth / second.square()).where(varies, torch.nan),
        participation_ratio=squares.square() / total(z.pow(4)),
    )


def row_sparseness(rows: Float[Tensor, "groups n"]) -> Sparseness:
    """The same of dense numbers, one group a row: transpose activations for the statistics of each coordinate over the tokens; float64.

    Raises ConfigError for no rows, rows of one number, NaN or Inf.
    """
    require_points(rows, minimum=1, argument="rows", where="row_sparseness")
    n = rows.shape[1]
    if n < 2:
        raise ConfigError(f"rows must hold at least 2 numbers to be unequal, got {n} (row_sparseness)")
    z = rows.detach().double()
    z = z / z.abs().amax(dim=1, keepdim=True)  # no power over- or underflows; a row of zeros becomes nan
    ascending = z.abs().sort(dim=1).values
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=z.device)
    l1, squares = ascending.sum(dim=1), z.square().sum(dim=1)
    centred = z - z.mean(dim=1, keepdim=True)
    second, fourth = centred.square().sum(dim=1), centred.pow(4).sum(dim=1)
    varies = second > n * torch.finfo(torch.float64).eps * squares
    return Sparseness(
        hoyer=((n**0.5 - l1 / squares.sqrt()) / (n**0.5 - 1)).clamp(0, 1),
        gini=2 * (ascending @ ranks) / (n * l1) - (n + 1) / n,
        kurtosis=(n * fourth / second.square()).where(varies, torch.nan),
        participation_ratio=squares.square() / z.pow(4).sum(dim=1),
    )


def _entries(indices: Tensor, values: Tensor, counts: Tensor, n_latents: int, *, where: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token, latent and value (float64) of every non-zero."""
    require_slots(indices, values, counts, n_latents, where=where)
    active = (torch.arange(indices.shape[1], device=indices.device) < counts[:, None]) & (values != 0)
    owner, slot = active.nonzero(as_tuple=True)
    latent = indices[owner, slot].long()
    if len(torch.unique(owner * n_latents + latent)) < len(latent):
        raise ConfigError(f"indices must name a latent once per row: merge codes first ({where})")
    return owner, latent, values[owner, slot].detach().double()
