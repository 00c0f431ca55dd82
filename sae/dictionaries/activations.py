"""Sparse activations: what an autoencoder keeps of its pre-activations.

    TopK        z = ReLU(the k largest of pre_acts per row)          Makhzani & Frey 2013 (1312.5663); Gao et al. 2024 (2406.04093) section
    2.3

An activation is a frozen, callable value. It maps a block of pre-activations [n, d_sae] to the slots that may be active, `Slots(values,
indices)`; a slot with value 0 is not active. Architectures of the one-layer family differ in nothing else, so a new one is a class here and
a name in `Activation`.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError


class Slots(NamedTuple):
    """The latents that an activation keeps, per row, by falling value."""

    values: Float[Tensor, "n k_max"]
    """Their values, not negative."""
    indices: Int[Tensor, "n k_max"]
    """Their numbers."""


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each row, rectified. Homogeneous: TopK(c * a) = c * TopK(a) for c > 0."""

    k: int = 32
    """Active latents per row."""
    kind: Literal["top_k"] = "top_k"
    """Names the activation in a saved configuration."""

    def check(self, d_sae: int) -> None:
        """Raises ConfigError unless 1 <= k <= d_sae."""
        if not 1 <= self.k <= d_sae:
            raise ConfigError(f"k must be in 1..d_sae={d_sae}, got {self.k} (TopK)")

    def widened(self, n_spare: int, d_sae: int) -> "TopK":
        """The same rule with room for `n_spare` more candidates; for a first look at low precision that exact values then settle."""
        return TopK(min(self.k + n_spare, d_sae))

    def __call__(self, pre_acts: Float[Tensor, "n d_sae"]) -> Slots:
        """The k largest entries of each row, by falling value, with negative ones set to 0."""
        values, indices = largest(pre_acts, self.k)
        return Slots(values.relu_(), indices)


Activation = TopK


def largest(rows: Float[Tensor, "n width"], k: int) -> Slots:
    """The k largest entries of each row, as torch.topk gives them up to the order of ties, several times faster for k << width.

    The width is cut into groups; every one of the k largest lies in one of the k groups with the largest maxima (if an entry's group were
    not among them, k other groups would each hold a larger entry). So the group maxima are ranked first, then only the members of the k
    best groups.
    """
    n, width = rows.shape
    size = _group_size(width, k)
    if size == 1 or not n:
        return Slots(*rows.topk(k))
    n_groups = width // size
    maxima = rows.reshape(n, size, n_groups).amax(1)
    best = maxima.topk(k, sorted=False).indices
    columns = (best[:, None, :] + torch.arange(0, width, n_groups, device=rows.device)[:, None]).reshape(n, -1)
    values, position = rows.gather(1, columns).topk(k)
    return Slots(values, columns.gather(1, position))


def _group_size(width: int, k: int) -> int:
    """The divisor of `width` near sqrt(width / k), which balances ranking the group maxima against ranking the members; 1 where
    grouping does not pay.
    """
    wanted = math.sqrt(width / k)
    divisors = [size for size in (4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32) if width % size == 0 and width // size >= 2 * k]
    return min(divisors, key=lambda size: abs(math.log(size / wanted)), default=1)
