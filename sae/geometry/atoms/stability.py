"""Which latents come back when a dictionary is trained again.

    share(tau)      = #{pairs with similarity > tau} / n                              n: the latents of the first dictionary
    share(tau | f)  = the same among the latents that fire with frequency in one bin; each with Wilson's interval

Paulo & Belrose 2025 (2501.16615). Rare latents are usually less stable than frequent ones, so a share without the frequencies of the latents
compares two dictionaries of different sparsity badly. A latent without a partner has similarity -1 and counts as not found at any tau.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.atoms.assignment import Pairs


@dataclass(frozen=True, eq=False)
class StabilityByFrequency:
    """Shares of latents found again, by how often they fire."""

    edges: Float[Tensor, " n_edges"]
    """The n_bins + 1 edges of the bins of the firing frequency, float64; a bin holds its upper edge, the first one both."""
    counts: Int[Tensor, " n_bins"]
    """Latents per bin."""
    shares: Float[Tensor, " n_bins"]
    """Share of each bin's latents with similarity above the threshold, float64; nan for an empty bin."""
    low: Float[Tensor, " n_bins"]
    """Lower end of Wilson's 95 % interval of each share."""
    high: Float[Tensor, " n_bins"]
    """Upper end."""


def similarity_of_rows(pairs: Pairs) -> Float[Tensor, " n_rows"]:
    """The similarity of every member of the first set with its partner, float64, -1 for none."""
    values = torch.full((pairs.n_rows,), -1.0, dtype=torch.float64)
    values[pairs.rows] = pairs.similarities
    return values


def stability_curve(similarities: Float[Tensor, " n"], thresholds: Sequence[float]) -> Float[Tensor, " n_thresholds"]:
    """Share of latents with a partner above each threshold, float64, falling in the threshold. Raises ConfigError for no latents or NaN."""
    values = _checked(similarities, "stability_curve")
    return torch.stack([(values > threshold).double().mean() for threshold in thresholds]) if len(thresholds) else values[:0]


def stability_by_frequency(
    similarities: Float[Tensor, " n"], frequencies: Float[Tensor, " m"], *, threshold: float = 0.7, n_bins: int = 10
) -> StabilityByFrequency:
    """Share of latents with a partner above `threshold` in bins of equal numbers of latents by firing frequency.

    Latents that never fire are left out: nothing says what they stand for. Frequencies that are equal share a bin, so that there may be
    fewer than `n_bins`. Raises ConfigError for sizes that differ, frequencies outside [0, 1], no firing latent, and n_bins < 1.
    """
    values, rates = _checked(similarities, "stability_by_frequency"), frequencies.detach().cpu().double()
    if len(values) != len(rates) or n_bins < 1:
        raise ConfigError(
            f"frequencies must be one per latent, {len(values)}, and n_bins at least 1, got {len(rates)} and {n_bins} (stability_by_frequency)"
        )
    if not bool(((rates >= 0) & (rates <= 1)).all()):
        raise ConfigError("frequencies must be in [0, 1]: divide firing counts by the number of tokens (stability_by_frequency)")
    alive = rates > 0
    if not bool(alive.any()):
        raise ConfigError("frequencies must be positive for at least one latent, got none (stability_by_frequency)")
    values, rates = values[alive], rates[alive]
    edges = torch.quantile(rates, torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)).unique()
    edges = edges if len(edges) > 1 else edges.repeat(2)
    bins = (torch.searchsorted(edges, rates) - 1).clamp(0, len(edges) - 2)
    counts = torch.bincount(bins, minlength=len(edges) - 1)
    found = torch.bincount(bins, weights=(values > threshold).double(), minlength=len(edges) - 1)
    low, high = wilson_interval(found, counts)
    return StabilityByFrequency(edges, counts, found / counts, low, high)


def wilson_interval(found: Float[Tensor, " n"], counts: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """95 % interval of a proportion found / counts (Wilson 1927); nan for no counts."""
    z, n, p = 1.959963984540054, counts.double(), found.double() / counts
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()
    return centre - half, centre + half


def _checked(similarities: Tensor, where: str) -> Tensor:
    values = similarities.detach().cpu().double()
    if not len(values) or bool(values.isnan().any()):
        raise ConfigError(
            f"similarities must hold at least one number and no NaN, got {len(values)} with {int(values.isnan().sum())} NaN ({where})"
        )
    return values
