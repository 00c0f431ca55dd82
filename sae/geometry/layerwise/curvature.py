"""Curvature: by how much the path of a prompt's tokens turns at each step.

    v_k = z_{k+1} - z_k,       C = 1 / (L - 2) sum_k angle(v_{k+1}, v_k)          Hosseini & Fedorenko 2023 (arXiv 2311.04930)

in radians: 0 on a line, 2 pi / n on a regular n-gon, pi / 2 for a random walk in many dimensions, 2 pi / 3 for independent tokens (their
differences share a token). Skean et al. 2025 (arXiv 2502.02013) report it per layer; their code (snapshot of 2024-09) takes the angles
between successive centred tokens instead, which is `variant="token"` here, pi / 2 for independent tokens.

The angle of unit vectors u, v is 2 atan2(|u - v|, |u + v|): arccos(u.v), without its loss of digits near 0 and pi.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.layerwise.preparation import padded, require_prompts
from sae.geometry.nulls import NullStatistic, compare

Variant = Literal["differences", "token"]
"""Angles between successive differences (the definition), or between successive centred tokens."""


def curvature(
    tokens: Float[Tensor, "tokens d"], lengths: Int[Tensor, " prompts"], *, variant: Variant = "differences"
) -> Float[Tensor, " prompts"]:
    """C of every prompt, radians, float64; `tokens` are those of all prompts one after the other, `lengths` says how many are whose.

    Angles with a difference (for "token": a centred token) of zero are left out of the mean. A prompt without any angle, such as one of
    fewer than 3 tokens (2 for "token"), has nan. Time T d.
    Raises ConfigError for another `variant`, NaN or Inf, and lengths that do not add up to the tokens.
    """
    if variant not in ("differences", "token"):
        raise ConfigError(f"variant must be 'differences' or 'token', got {variant!r} (curvature)")
    require_prompts(tokens, lengths, where="curvature")
    lengths = lengths.to(tokens.device).long()
    if variant == "token":
        values, real = padded(tokens, lengths, "centred")
        vectors = values[real]
        steps = lengths
    else:
        vectors = tokens.detach().double().diff(dim=0)
        inside = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        inside[lengths.cumsum(0) - 1] = False  # the step from a prompt's last token leads into the next prompt
        vectors = vectors[inside[:-1]]
        steps = lengths - 1
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), steps)
    return _mean_angles(vectors, owner, len(lengths))


def _mean_angles(vectors: Float[Tensor, "n d"], owner: Int[Tensor, " n"], n_prompts: int) -> Float[Tensor, " prompts"]:
    """The mean angle between successive vectors of one owner."""
    largest = vectors.abs().amax(dim=1, keepdim=True)
    unit = vectors / largest.where(largest > 0, 1)
    norms = unit.norm(dim=1, keepdim=True)
    unit = unit / norms.where(norms > 0, 1)
    angles = 2 * torch.atan2((unit[1:] - unit[:-1]).norm(dim=1), (unit[1:] + unit[:-1]).norm(dim=1))
    moves = norms.flatten() > 0
    used = (owner[1:] == owner[:-1]) & moves[1:] & moves[:-1]
    total = angles.new_zeros(n_prompts).index_add_(0, owner[1:][used], angles[used])
    return total / torch.bincount(owner[1:][used], minlength=n_prompts)


def compare_curvature(
    tokens: Float[Tensor, "tokens d"],
    lengths: Int[Tensor, " prompts"],
    *,
    variant: Variant = "differences",
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """The mean curvature of the prompts that have one, against the same prompts with their tokens in random order.

    Errors as `curvature`; also no prompt with an angle, and n_null < 2.
    """
    value = curvature(tokens, lengths, variant=variant).nanmean().item()
    draws = [
        curvature(tokens[shuffled_within(lengths, generator=generator).to(tokens.device)], lengths, variant=variant).nanmean().item()
        for _ in range(n_null)
    ]
    return compare(value, torch.tensor(draws, dtype=torch.float64))


def shuffled_within(lengths: Int[Tensor, " prompts"], *, generator: torch.Generator) -> Int[Tensor, " tokens"]:
    """Row numbers that put the tokens of every prompt in random order and leave the prompts where they are."""
    lengths = lengths.to(generator.device).long()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    order = torch.randperm(len(owner), generator=generator, device=generator.device)
    return order[owner[order].argsort(stable=True)]
