"""Random parameters that are the same bits on every machine, so that the files made from them have one digest.

Every number is a multiple of 1/32 below 2: sums of products of such numbers are exact in float32 in any order, and so is a fold whose
scales are powers of two. Unit atoms have four entries of size 1/2.
"""

import torch
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.dictionaries.scaling import Scaling

ABOVE_ZERO = ("threshold",)
"""State that must be positive."""


def grid(*shape: int, seed: int) -> Tensor:
    """Multiples of 1/32 in (-1, 1), none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(1, 32, shape, generator=generator)
    return (size * (2 * torch.randint(0, 2, shape, generator=generator) - 1)) / 32


def unit_rows(n: int, width: int, seed: int) -> Tensor:
    """Rows of exactly unit norm: four entries of size 1/2, at random places with random signs."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(n, width)
    for row in rows:
        signs = 2 * torch.randint(0, 2, (4,), generator=generator) - 1
        row[torch.randperm(width, generator=generator)[:4]] = signs / 2
    return rows


def scaling(width: int, scale: float, seed: int) -> Scaling:
    """A scaling with a random mean; `scale` a power of two."""
    return Scaling(grid(width, seed=seed), scale)


@torch.no_grad()
def filled(dictionary: Dictionary, seed: int = 0, *, unit: bool = False) -> Dictionary:
    """The same dictionary with every parameter and buffer but the scalings drawn anew; `unit`: W_dec with rows of unit norm."""
    named = sorted([*dictionary.named_parameters(), *dictionary.named_buffers()])
    for index, (name, tensor) in enumerate(named):
        if name in ("scaling_mean", "target_mean"):
            continue
        drawn = grid(*tensor.shape, seed=1000 * seed + index)
        if unit and name == "W_dec":
            drawn = unit_rows(*tensor.shape, seed=1000 * seed + index)
        tensor.copy_(drawn.abs() if name in ABOVE_ZERO else drawn)
    return dictionary
