"""What training minimises: the fraction of variance unexplained, and a term that revives dead latents.

    FVU    = sum |x - x_hat|^2 / sum |x - mean x|^2                                        over the batch
    e      = x - x_hat, detached;     e_hat = sum over the k_aux largest positive pre-activations a_j of dead latents of a_j d_j
    AuxK   = sum |e - e_hat|^2 / sum |e - mean e|^2
    loss   = FVU + aux_coefficient * AuxK

Gao et al. 2024 (2406.04093) sections 2.4 and A.2. The target e is detached and e_hat has no decoder bias, so AuxK moves dead latents only.
For matching pursuit, which has no pre-activations, a_j = d_j . e: a dead atom is drawn to what the pursuit leaves over.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.dictionaries.activations import largest
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError, SaeError


class Losses(NamedTuple):
    """An objective's value on one batch."""

    total: Float[Tensor, ""]
    """What is differentiated."""
    fvu: Float[Tensor, ""]
    """Fraction of variance unexplained, detached."""
    codes: SparseCodes
    """The batch's codes, detached."""


@runtime_checkable
class Objective(Protocol):
    """A frozen value that computes the loss of a dictionary on one batch."""

    def __call__(self, dictionary: Dictionary, x: Float[Tensor, "n d_in"], dead: Bool[Tensor, "d_sae"]) -> Losses:
        """The loss on scaled activations x, given which latents are dead."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReconstructionObjective:
    """loss = FVU + aux_coefficient * AuxK; see the module's text."""

    aux_coefficient: float = 1 / 32
    """Weight of AuxK; 0 leaves dead latents dead."""
    aux_share: float = 0.5
    """k_aux as a share of d_in, rounded to the nearest power of two."""

    def __post_init__(self) -> None:
        if not self.aux_coefficient >= 0:
            raise ConfigError(f"aux_coefficient must be at least 0, got {self.aux_coefficient} (ReconstructionObjective)")
        if not 0 < self.aux_share <= 1:
            raise ConfigError(f"aux_share must be in (0, 1], got {self.aux_share} (ReconstructionObjective)")

    def __call__(self, dictionary: Dictionary, x: Float[Tensor, "n d_in"], dead: Bool[Tensor, "d_sae"]) -> Losses:
        """The loss on scaled activations x, given which latents are dead. Raises SaeError if all rows of x are equal: FVU is not
        defined.
        """
        residual, codes = dictionary.residual(x)
        variance = total_variance(x)
        if not variance > 0:
            raise SaeError(f"x must vary within the batch, got {len(x)} equal rows (ReconstructionObjective)")
        total = fvu = residual.square().sum() / variance
        latents = dead.nonzero().view(-1)
        if self.aux_coefficient and len(latents):
            total = fvu + self.aux_coefficient * aux_k(dictionary, x, residual.detach(), latents, self.k_aux(dictionary.d_in))
        return Losses(total, fvu.detach(), codes.detach())

    def k_aux(self, d_in: int) -> int:
        """Dead latents asked per row: aux_share * d_in rounded to a power of two (in the logarithm)."""
        return 1 << max(0, round(math.log2(self.aux_share * d_in)))


def aux_k(
    dictionary: Dictionary, x: Float[Tensor, "n d_in"], residual: Float[Tensor, "n d_in"], latents: Tensor, k_aux: int
) -> Float[Tensor, ""]:
    """AuxK of the latents numbered `latents` (at least one): how badly min(k_aux, n_dead) of them explain `residual`; 0 where that does
    not vary.
    """
    answers = dictionary.pre_acts(x, residual, latents).relu()
    if k_aux < len(latents):
        kept = largest(answers.detach(), k_aux).indices
        answers = answers * torch.zeros_like(answers).scatter_(1, kept, 1.0)
    error = residual - answers @ dictionary.W_dec[latents]
    variance = total_variance(residual)
    return error.square().sum() / variance if variance > 0 else error.sum() * 0


def total_variance(x: Float[Tensor, "n d_in"]) -> Float[Tensor, ""]:
    """sum |x - mean x|^2 over the batch."""
    return (x - x.mean(0)).square().sum()
