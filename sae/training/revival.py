"""Dead latents started anew from what the dictionary explains worst.

    row r is drawn with probability ~ |residual_r|^2;    d_j = residual_r / |residual_r|    (a codebook: c_j = x_r - b_dec)

After Bricken et al. 2023 ("Towards monosemanticity", appendix on neuron resampling). An encoder's column becomes d_j with the mean norm of the
living ones, or a fifth of it where latents need not compete for k places, its bias 0; the optimiser's moments of the latent are cleared.
AuxK revives without such jumps and is the default; resampling serves codebooks, which have no pre-activations, and pursuit atoms that
nothing reaches.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.training.optimisers import Optimiser
from sae.training.world import World

ENCODER_SHARE = 0.2
"""Norm of a revived encoder column, as a share of the mean norm of the living ones, where the activation does not fix k."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """When dead latents are started anew."""

    every: int = 100
    """Steps between two rounds."""
    until: float = 0.8
    """Share of the run after which there are no more rounds, so that the last newcomers can settle."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every must be at least 1, got {self.every} (Resampling)")
        if not 0 < self.until <= 1:
            raise ConfigError(f"until must be in (0, 1], got {self.until} (Resampling)")

    def is_due(self, step: int, n_steps: int) -> bool:
        """Whether a round follows the step, counted from 1."""
        return step % self.every == 0 and step <= self.until * n_steps


@torch.no_grad()
def resample_(
    dictionary: Dictionary,
    x: Float[Tensor, "n d_in"],
    residual: Float[Tensor, "n d_out"],
    dead: Bool[Tensor, "d_sae"],
    optimiser: Optimiser,
    *,
    seed: int,
    world: World | None = None,
) -> Bool[Tensor, "d_sae"]:
    """Start dead latents anew from a batch, in place; returns which ones. At most one latent per row that has an error left.

    With a `world` of several processes x and residual are this one's rows; all draw from the rows of all.
    """
    world = world or World()
    energy = world.along_rows.concatenated(residual.double().square().sum(1))
    n_sources = int((energy > 0).sum())
    latents = dead.nonzero().view(-1)[:n_sources]
    revived = torch.zeros_like(dead)
    if not len(latents):
        return revived
    revived[latents] = True
    generator = torch.Generator(energy.device).manual_seed(seed)
    rows = torch.multinomial(energy, len(latents), generator=generator)
    x, residual = world.taken(x, rows), world.taken(residual, rows)
    if not dictionary.unit_atoms:
        dictionary.W_dec[latents] = x - dictionary.b_dec
    else:
        dictionary.W_dec[latents] = torch.nn.functional.normalize(residual, dim=1)
    if isinstance(dictionary, Autoencoder):
        source = x if dictionary.is_transcoder else residual
        norm = torch.linalg.vector_norm(dictionary.W_enc[:, ~dead], dim=0)
        size = (ENCODER_SHARE if dictionary.k is None else 1.0) * (float(norm.mean()) if len(norm) else 1.0)
        dictionary.W_enc[:, latents] = size * torch.nn.functional.normalize(source, dim=1).T
        dictionary.b_enc[latents] = 0
    optimiser.forget_(latents, dictionary)
    return revived
