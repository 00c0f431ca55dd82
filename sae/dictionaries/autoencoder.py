"""Autoencoder: one linear map, a sparse activation, and a dictionary.

    z = activation((x - b_dec) W_enc + b_enc)        x_hat = z W_dec + b_dec

With TopK this is the k-sparse autoencoder of Makhzani & Frey 2013 (1312.5663) in the form of Gao et al. 2024 (2406.04093) section 2.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.dictionaries import kernels
from sae.dictionaries.activations import Activation, TopK
from sae.dictionaries.base import Dictionary, check_widths, random_atoms
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.scaling import Scaling


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape and activation of an Autoencoder."""

    d_in: int
    """Input width."""
    d_sae: int
    """Number of latents."""
    activation: Activation = field(default_factory=TopK)
    """What is kept of the pre-activations."""

    def __post_init__(self) -> None:
        check_widths(self.d_in, self.d_sae, "Autoencoder")
        self.activation.check(self.d_sae)


@final
class Autoencoder(Dictionary):
    """z = activation((x - b_dec) W_enc + b_enc), x_hat = z W_dec + b_dec.

    A new one has random unit atoms drawn from `seed`, a tied encoder W_enc = W_dec^T and zero biases; `initialise_` starts it from data.
    W_enc [d_in, d_sae] is stored column by column, so that one latent's weights are contiguous.
    """

    config: AutoencoderConfig

    def __init__(
        self, config: AutoencoderConfig, scaling: Scaling | None = None, *, seed: int = 0, provenance: Mapping[str, Any] | None = None
    ):
        super().__init__(config, scaling, provenance)
        atoms = random_atoms(config.d_sae, config.d_in, seed)
        self.W_enc = nn.Parameter(atoms.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    def code(self, x: Float[Tensor, "n d_in"]) -> SparseCodes:
        """Codes of scaled activations, each row by falling value."""
        values, indices = kernels.encode(x, self.b_dec, self.W_enc, self.b_enc, self.config.activation)
        return SparseCodes.positive(indices, values, self.d_sae)

    def pre_acts(
        self, x: Float[Tensor, "n d_in"], residual: Float[Tensor, "n d_in"], latents: Int[Tensor, "m"]
    ) -> Float[Tensor, "n m"]:
        """Pre-activations (x - b_dec) W_enc + b_enc of the given latents; the residual plays no part."""
        return torch.addmm(self.b_enc[latents], x - self.b_dec, self.W_enc.T[latents].T)

    def with_activation(self, activation: Activation) -> "Autoencoder":
        """The same weights (shared, not copied) under another activation, for example TopK with another k at inference."""
        other = Autoencoder(replace(self.config, activation=activation), self.scaling, provenance=self.provenance)
        for name, parameter in self.named_parameters():
            setattr(other, name, parameter)
        return other.train(self.training)

    @torch.no_grad()
    def fold(self) -> "Autoencoder":
        """The same function on activations with identity scaling: b_enc' = b_enc / scale, b_dec' = b_dec / scale + mean, weights
        unchanged.
        """
        scaling = self.scaling
        folded = Autoencoder(self.config, provenance=self.provenance).to(self.W_dec)
        folded.W_enc.copy_(self.W_enc)
        folded.W_dec.copy_(self.W_dec)
        folded.b_enc.copy_(self.b_enc / scaling.scale)
        folded.b_dec.copy_(self.b_dec / scaling.scale + scaling.mean)
        return folded
