"""What training asks of a dictionary about one batch, and what it answers.

error = sum |target - x_hat|^2
revival = sum |e - e_hat|^2,  e = target - x_hat held fixed,  e_hat = sum over the k_aux largest positive answers a_j of asked latents of a_j d_j
prefix error m = sum |target - b_dec - sum_{j < m} z_j d_j|^2
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries import kernels
from sae.dictionaries.codes import SparseCodes


@dataclass(frozen=True, kw_only=True, eq=False)
class Ask:
    """What is wanted beyond the reconstruction of x."""

    target: Float[Tensor, "n d_out"] | None = None
    """What is to be explained where that is not x: scaled activations of another site (transcoding)."""
    k: float | None = None
    """Active latents per row, where it is not the configuration's."""
    latents: Int[Tensor, "m"] | None = None
    """Latents, dead ones, that are asked to explain what is left (AuxK)."""
    k_aux: int = 0
    """How many of their answers count in each row."""
    prefixes: tuple[int, ...] = ()
    """Rising numbers of latents whose own reconstruction errors are wanted (Matryoshka)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """A dictionary's answer; the scalars are differentiable."""

    error: Float[Tensor, ""]
    """Squared error of the whole batch."""
    residual: Float[Tensor, "n d_out"]
    """target - x_hat, detached."""
    codes: SparseCodes
    """The codes, detached; for pursuit one slot per selection."""
    l0: float
    """Mean number of distinct active latents per row."""
    revival: Float[Tensor, ""]
    """Squared error that the asked latents leave of the residual; 0 where none was asked."""
    penalty: Float[Tensor, ""]
    """What the activation charges for the codes, a mean over rows; 0 where k fixes their number."""
    penalty_is_l0: bool = False
    """Whether that is L0 itself, with a gradient in the thresholds."""
    gate_error: Float[Tensor, ""]
    """Squared error of the gates' own reconstruction through the decoder held fixed (Gated); 0 otherwise."""
    prefix_errors: Float[Tensor, "n_prefixes"]
    """Squared error of each prefix that was asked for."""


def prefix_errors(
    values: Float[Tensor, "n k"],
    indices: Int[Tensor, "n k"],
    W_dec: Float[Tensor, "d_sae d_out"],
    target: Float[Tensor, "n d_out"],
    prefixes: tuple[int, ...],
) -> Float[Tensor, "n_prefixes"]:
    """sum |target - sum_{j < m} z_j d_j|^2 for each m in `prefixes` (rising); differentiable in values, W_dec and target.

    The slots of a row are dealt to the gaps between prefixes, each gap is decoded once, and the sums run over the gaps.
    """
    n, n_gaps = len(values), len(prefixes)
    gap = torch.bucketize(indices, torch.tensor(prefixes, device=indices.device), right=True)
    gap = torch.where(values.detach() != 0, gap, n_gaps)
    order = gap.argsort(dim=1, stable=True)
    gap, values, indices = gap.gather(1, order), values.gather(1, order), indices.gather(1, order)
    counts = (gap[:, :, None] == torch.arange(n_gaps, device=gap.device)).sum(1)
    starts = counts.cumsum(1) - counts
    row, slot = (gap < n_gaps).nonzero(as_tuple=True)
    place = slot - starts[row, gap[row, slot]]
    width = max(1, int(counts.max())) if n else 1
    cell = (row * n_gaps + gap[row, slot]) * width + place
    dealt = values.new_zeros(n * n_gaps * width).index_put((cell,), values[row, slot])
    numbers = torch.zeros(n * n_gaps * width, dtype=torch.long, device=gap.device).index_put((cell,), indices[row, slot])
    parts = kernels.weighted_rows(dealt.view(n * n_gaps, width), numbers.view(n * n_gaps, width), W_dec)
    residuals = target[:, None] - parts.view(n, n_gaps, -1).cumsum(1)
    return residuals.square().sum((0, 2))
