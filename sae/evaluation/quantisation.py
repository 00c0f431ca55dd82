"""Uniform quantisation of sparse codes, as coarse as a stated error allows.

    n_i = ceil(max_t |z_ti| |d_i| / w)             bins of latent i on (0, max_t |z_ti|]
    w_i = max_t |z_ti| / n_i                       their width, at most w / |d_i|
    s   = sign(z) ceil(|z| / w_i)                  the symbol, 0 for z = 0
    Q(z) = sign(s) (|s| - 1/2) w_i                 middle of the bin, and Q(0) = 0

One width w, a length in activation space, serves all latents: an active latent then adds about w^2 / 12 of squared error whichever it is, so
no latent is given bits that another could use better, and nothing depends on how the codes are scaled. The largest value of a latent is
measured on the tokens that are coded. For the residual r of the exact codes the error of the quantised ones is, with no activation kept,

    |r + (z - Q(z)) D|^2 = |r|^2 + 2 sum_s (z_s - Q(z_s)) (r . d_s) + |sum_s (z_s - Q(z_s)) d_s|^2
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError

MAX_HALVINGS = 24
"""The finest width tried is the coarsest over 2 to this power."""
ROWS_PER_CHUNK = 8192
"""Tokens decoded at a time while the error is measured."""


@final
@dataclass(frozen=True, eq=False)
class ActiveValues:
    """The active slots of many tokens, one after the other, without padding."""

    latents: Int[Tensor, " m"]
    """Latent of each slot; a token names a latent at most once."""
    values: Float[Tensor, " m"]
    """Its value, never 0."""
    counts: Int[Tensor, " n"]
    """Number of slots of each token."""
    d_sae: int
    """Number of latents."""

    @staticmethod
    def of(codes: SparseCodes) -> "ActiveValues":
        """The active slots of codes, a latent that fills several slots of a token merged into one."""
        codes = codes.detach().merged()
        active = codes.active() & (codes.values != 0)
        return ActiveValues(codes.indices[active], codes.values[active], active.sum(1), codes.d_sae)

    @staticmethod
    def concatenate(parts: "list[ActiveValues]") -> "ActiveValues":
        """The tokens of all parts, in order; parts must share d_sae, and there must be one."""
        fields = [torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "values", "counts")]
        return ActiveValues(*fields, parts[0].d_sae)

    def __len__(self) -> int:
        return len(self.counts)

    def largest(self) -> Float[Tensor, " d_sae"]:
        """max_t |z_ti| of each latent; 0 for one that is never active."""
        return self.values.new_zeros(self.d_sae).scatter_reduce(0, self.latents.long(), self.values.abs(), "amax")

    def decoded(self, values: Float[Tensor, " m"], atoms: Float[Tensor, "d_sae d_in"], first: int, last: int) -> Float[Tensor, "_ d_in"]:
        """sum_s values_s d_s of tokens first..last-1, with other values in the same slots."""
        ends = torch.nn.functional.pad(self.counts.cumsum(0), (1, 0))
        start, stop = int(ends[first]), int(ends[last])
        slots, offsets = slice(start, stop), ends[first:last] - start
        return torch.nn.functional.embedding_bag(
            self.latents[slots].long(), atoms, offsets, mode="sum", per_sample_weights=values[slots].to(atoms.dtype)
        )


@final
@dataclass(frozen=True, eq=False)
class Quantiser:
    """Uniform bins per latent; see the module's text."""

    widths: Float[Tensor, " d_sae"]
    """w_i in units of the codes; 1 for a latent without bins."""
    n_bins: Int[Tensor, " d_sae"]
    """n_i, on each side of 0; 0 for a latent that is never active."""

    @staticmethod
    def fitted(largest: Float[Tensor, " d_sae"], width: Float[Tensor, " d_sae"]) -> "Quantiser":
        """Bins of equal width, at most `width`, that divide (0, largest] without rest. Raises ConfigError unless the widths are positive."""
        if not bool((width > 0).all()):
            raise ConfigError(f"width must be positive, got {float(width.min())} (Quantiser)")
        largest = largest.double()
        # A width that divides the range up to rounding must not open another bin.
        n_bins = (largest / width.double() * (1 - 1e-9)).ceil()
        widths = torch.where(n_bins > 0, largest / n_bins.clamp(min=1), 1.0)
        return Quantiser(widths, n_bins.long())

    def symbols(self, latents: Int[Tensor, " m"], values: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
        """The signed bin number of each value, 0 for 0; a value beyond the latent's range is put in its last bin."""
        number = (values.double().abs() / self.widths[latents.long()]).ceil()
        number = torch.minimum(number.clamp(min=1), self.n_bins[latents.long()].clamp(min=1))
        return (values.sign() * number).long()

    def values(self, latents: Int[Tensor, " m"], symbols: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The middle of each bin, float64; 0 for the symbol 0."""
        return symbols.sign() * (symbols.abs() - 0.5) * self.widths[latents.long()]


def fitted_quantiser(active: ActiveValues, atoms: Float[Tensor, "d_sae d_in"], width: float | int) -> Quantiser:
    """The quantiser of one width in activation space, for codes over these atoms. An atom that is 0 has one bin."""
    norms = torch.linalg.vector_norm(atoms.double(), dim=1)
    largest = active.largest().double()
    return Quantiser.fitted(
        largest, torch.where(norms > 0, width / norms.clamp(min=torch.finfo(torch.float64).tiny), largest.clamp(min=1.0))
    )


def added_error(active: ActiveValues, atoms: Float[Tensor, "d_sae d_in"], alignments: Float[Tensor, " m"], quantiser: Quantiser) -> float:
    """By how much quantising raises the squared error, summed over tokens; may be negative. `alignments` are r . d_s of each slot."""
    change = active.values.double() - quantiser.values(active.latents, quantiser.symbols(active.latents, active.values))
    total = 2 * float(change @ alignments.double())
    for first in range(0, len(active), ROWS_PER_CHUNK):
        last = min(first + ROWS_PER_CHUNK, len(active))
        total += float(active.decoded(change, atoms, first, last).double().square().sum())
    return total


def coarsest(
    error: Callable[[float], float], allowed: float | int, start: float | int, *, precision: float | int = 0.01, owner: str = "coarsest"
) -> float:
    """The largest width up to `start`, within a factor 1 + precision, with error(width) <= allowed.

    Halves `start` until the error is allowed, then bisects the last halving in the logarithm; the width returned has itself been tried.
    An error need not rise everywhere with the width, so a coarser width beyond one that fails is not looked for. Raises ConfigError naming
    `owner` when the error is still too large at start / 2^24.
    """
    width = start
    for _ in range(MAX_HALVINGS + 1):
        if error(width) <= allowed:
            break
        width /= 2
    else:
        raise ConfigError(
            f"squared error must come down to {allowed:.6g}, got {error(width):.6g} at the finest width {width:.3g} ({owner})"
        )
    good, bad = width, min(2 * width, start)
    while bad > good * (1 + precision):
        middle = (good * bad) ** 0.5
        good, bad = (middle, bad) if error(middle) <= allowed else (good, middle)
    return good
