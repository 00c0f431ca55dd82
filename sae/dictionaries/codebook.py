"""Codebook: an activation is replaced by the mean, or the sum, of its k nearest code vectors.

    S = the k codes j with the largest cosine (x - b_dec) . c_j / |c_j|          x_hat = b_dec + (1/k) sum_{j in S} c_j      (or without 1/k)

Codebook features, Tamkin, Taufeeque & Goodman 2023 (2310.17230) section 2. Codes c_j, the rows of W_dec, keep their own norms. A code's value
says only that it is chosen. The choice has no gradient: towards the input it is passed straight through, dL/dx = dL/dx_hat, and only chosen
codes learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.dictionaries import kernels
from sae.dictionaries.base import Dictionary, check_widths, random_atoms
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.explained import Ask, Explained
from sae.dictionaries.kernels import Top
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Shape and rule of a Codebook."""

    d_in: int
    """Input width."""
    d_sae: int
    """Number of codes."""
    k: int = 8
    """Codes chosen per row."""
    reduce: Literal["mean", "sum"] = "mean"
    """Whether the chosen codes are averaged or added."""

    def __post_init__(self) -> None:
        check_widths(self.d_in, self.d_sae, "Codebook")
        if not 1 <= self.k <= self.d_sae:
            raise ConfigError(f"k must be in 1..d_sae={self.d_sae}, got {self.k} (Codebook)")
        if self.reduce not in ("mean", "sum"):
            raise ConfigError(f"reduce must be 'mean' or 'sum', got {self.reduce!r} (Codebook)")


@final
class Codebook(Dictionary):
    """The k nearest of d_sae codes, averaged or added; see the module's text. A new one has random unit codes drawn from `seed`."""

    unit_atoms = False
    config: CodebookConfig

    def __init__(
        self, config: CodebookConfig, scaling: Scaling | None = None, *, seed: int = 0, provenance: Mapping[str, Any] | None = None
    ):
        super().__init__(config, scaling, provenance)
        self.W_dec = nn.Parameter(random_atoms(config.d_sae, config.d_in, seed))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    def code(self, x: Float[Tensor, "n d_in"]) -> SparseCodes:
        """The chosen codes, nearest first, each with value 1/k (or 1)."""
        return self._chosen(x, self.config.k)

    def forward(self, acts: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """decode(encode(acts)), with the gradient passed straight through to `acts`."""
        passed = acts.to(self.W_dec.dtype)
        return super().forward(acts) + (passed - passed.detach())

    def explain(self, x: Float[Tensor, "n d_in"], ask: Ask) -> Explained:
        """What training needs to know about scaled activations. Codes have no pre-activations, so asked latents stay silent: unused codes are
        revived by resampling. Raises ConfigError for a target or prefixes, which a codebook does not have.
        """
        if ask.target is not None or ask.prefixes:
            raise ConfigError(f"{'target' if ask.target is not None else 'prefixes'} must be absent (Codebook)")
        codes = self._chosen(x, self.config.k if ask.k is None else round(ask.k))
        residual = x - self.reconstruct(codes)
        error = residual.square().sum()
        zero = error.new_zeros(())
        return Explained(
            error=error, residual=residual.detach(), codes=codes, l0=float(codes.k_max), revival=zero, penalty=zero, gate_error=zero,
            prefix_errors=zero.expand(0),
        )  # fmt: skip

    @torch.no_grad()
    def fold(self) -> "Codebook":
        """The same function on activations with identity scaling: codes / scale, b_dec' = b_dec / scale + mean. Values stay 1/k (or 1)."""
        folded = Codebook(self.config, provenance=self.provenance).to(self.W_dec)
        folded.W_dec.copy_(self.W_dec / self.scaling.scale)
        folded.b_dec.copy_(self.b_dec / self.scaling.scale + self.scaling.mean)
        return folded

    @torch.no_grad()
    def _chosen(self, x: Tensor, k: int) -> SparseCodes:
        directions = torch.nn.functional.normalize(self.W_dec, dim=1)
        slots = kernels.encode(x, self.b_dec, directions.T, x.new_zeros(self.d_sae), Top(k, signed=False))
        # The nearest codes of a row may all point away from it; a rank says which are chosen, whatever the sign of the cosine.
        if bool((slots.values <= 0).any()):
            return self._chosen_of_any_sign(x, directions, k)
        return self._codes(slots.indices, k)

    def _chosen_of_any_sign(self, x: Tensor, directions: Tensor, k: int) -> SparseCodes:
        parts = [((block - self.b_dec) @ directions.T).topk(k).indices for block in x.split(1024)]
        return self._codes(torch.cat(parts), k)

    def _codes(self, indices: Tensor, k: int) -> SparseCodes:
        n, value = len(indices), 1 / k if self.config.reduce == "mean" else 1.0
        counts = torch.full((n,), k, dtype=torch.long, device=indices.device)
        return SparseCodes(indices, self.W_dec.new_full((n, k), value), counts, self.d_sae)
