"""The affine map between activation space and the space a dictionary is trained in.

    x = (acts - mean) * scale,        acts = x / scale + mean

With `mean` the activations' mean and `scale = sqrt(d_in) / mean norm of (acts - mean)`, x has mean zero and mean norm sqrt(d_in), so one
learning rate serves every model and layer. A Scaling is an explicit value: it travels with the dictionary and can be folded into its
weights.

Some dictionaries normalise every row by itself before that, and undo it after decoding:

    layer_norm      (a - mean(a)) / (std(a) + 1e-5), undone by * std(a) + mean(a); std unbiased         OpenAI's TopK autoencoders (Gao et al. 2024)
    constant_norm   a sqrt(d_in) / |a|, undone by |a| / sqrt(d_in)
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.dispatch import difference
from sae.errors import ConfigError

Normalisation = Literal["none", "layer_norm", "constant_norm"]
"""What is done to every row by itself."""
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """What the normalisation of rows took away, to be given back after decoding: acts = x * scale + mean, row by row."""

    mean: Float[Tensor, " n"]
    """Mean of each row, or 0."""
    scale: Float[Tensor, " n"]
    """Standard deviation of each row, or its norm over sqrt(d_in)."""

    def undo(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """x * scale + mean."""
        return x * self.scale[:, None].to(x) + self.mean[:, None].to(x)


def row_statistics(acts: Float[Tensor, "n d_in"], normalisation: Normalisation) -> RowStatistics:
    """The statistics of rows that a normalisation takes away, float32 or wider."""
    wide = acts.float() if acts.dtype in (torch.float16, torch.bfloat16) else acts
    if normalisation == "layer_norm":
        mean = wide.mean(1)
        return RowStatistics(mean, (wide - mean[:, None]).square().sum(1).div(max(wide.shape[1] - 1, 1)).sqrt())
    norm = (
        torch.linalg.vector_norm(wide, dim=1) if normalisation == "constant_norm" else wide.new_full((len(wide),), math.sqrt(wide.shape[1]))
    )
    return RowStatistics(torch.zeros_like(norm), norm / math.sqrt(wide.shape[1]))


def normalised(acts: Float[Tensor, "n d_in"], normalisation: Normalisation) -> Float[Tensor, "n d_in"]:
    """Every row normalised by itself; a row of zeros stays one."""
    if normalisation == "none":
        return acts
    rows = row_statistics(acts, normalisation)
    if normalisation == "layer_norm":
        return (acts - rows.mean[:, None]) / (rows.scale[:, None] + LAYER_NORM_EPSILON)
    return acts / rows.scale[:, None].clamp_min(torch.finfo(rows.scale.dtype).tiny)


@dataclass(frozen=True, eq=False)
class Scaling:
    """x = (acts - mean) * scale."""

    mean: Float[Tensor, "d_in"]
    """What is subtracted, in activation units."""
    scale: float
    """What the difference is multiplied by; positive and finite."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"scale must be positive and finite, got {self.scale} (Scaling)")
        if self.mean.ndim != 1:
            raise ConfigError(f"mean must be a vector [d_in], got shape {list(self.mean.shape)} (Scaling)")
        if not bool(torch.isfinite(self.mean).all()):
            raise ConfigError("mean must be finite (Scaling)")

    @staticmethod
    def identity(d_in: int) -> "Scaling":
        """The scaling that changes nothing."""
        return Scaling(torch.zeros(d_in), 1.0)

    @staticmethod
    def fitted(acts: Float[Tensor, "n d_in"]) -> "Scaling":
        """The scaling under which `acts` have mean zero and mean norm sqrt(d_in); computed in float64."""
        wide = acts.to(torch.float64)
        mean = wide.mean(0)
        norm = float((wide - mean).norm(dim=1).mean())
        if not norm > 0:
            raise ConfigError(f"acts must differ from their mean, got {acts.shape[0]} rows with mean distance {norm} (Scaling.fitted)")
        return Scaling(mean.float(), math.sqrt(acts.shape[1]) / norm)

    @property
    def is_identity(self) -> bool:
        """Whether applying it changes nothing."""
        return self.scale == 1.0 and not bool(self.mean.any())

    def apply(self, acts: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """x = (acts - mean) * scale, in the dtype and on the device of `mean`."""
        # In place, in memory that is used again: a fresh array costs more than the arithmetic.
        return difference(acts.to(self.mean), self.mean).mul_(self.scale)

    def undo(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """acts = x / scale + mean."""
        return x / self.scale + self.mean
