"""Absorption: a general latent stops firing where a more specific one does, and the specific one takes its direction over.

Planted tree (Costa et al. 2025, 2506.03093, table 1), over true children c with parent p(c), d the atom of the latent matched to c:

    score = mean_c cos(d_c, f_{p(c)})                       true value 0 in the tree, whose levels are orthogonal; 1 / sqrt(2) for d_c ~ f_c + f_p

Language model with a probe direction p for the general concept, on a token where the concept holds (SAEBench's first-letter task; Chanin
et al. 2024, 2409.14507, and Karvonen et al. 2025, 2503.09532):

    along_j  = z_j d_j . p / |p|,        total = acts . p / |p|
    main     = sum of along_j over the concept's own latents
    A        = sum of the 3 largest along_j > 0 among other latents with cos(d_j, p) >= 0.1
    fraction = 0 if main >= total or A / total < 0.4;   1 if main <= 0;   else u / (u + main), u = min(A, total - main)

    full absorption: the concept's own latents are silent, z_j < 1e-8 for all of them, and of all others the one with the largest along_j
                     has cos(d_j, p) >= 0.025 and along_j >= 0.4 total

The fraction counts a concept that is partly carried by others, the full absorption only one that is not carried by its own latents at all.
How many latents a concept has is read from k-sparse probes, F1(k) their scores with the best 1, 2, ... latents (`n_split`):

    n_split = the largest k that is reached from 1 while F1(k) > F1(k - 1) + 0.03
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.recovery import Match, cosines
from sae.geometry.rows import unit_rows

N_ABSORBERS = 3
"""Absorbing latents counted per token."""
LEAST_COSINE = 0.1
"""Cosine with the probe from which a latent may be an absorber."""
LEAST_SHARE = 0.4
"""Share of the activation's projection on the probe that absorbers must carry to count."""
SILENT = 1e-8
"""A latent below this is silent."""
LEAST_COSINE_FULL = 0.025
"""Cosine with the probe from which one latent may absorb a concept in full."""
LEAST_GAIN = 0.03
"""By how much F1 must grow for another latent to be one of the concept's own."""


@dataclass(frozen=True, eq=False)
class TreeAbsorption:
    """How much of the parent each child's latent contains."""

    children: Int[Tensor, " n_children"]
    """Feature number of each child."""
    cosines: Float[Tensor, " n_children"]
    """cos(d_c, f_p(c)); nan where the child was not found."""
    score: float
    """Their mean over the children that were found; nan if none was. Chance: mean 0, standard deviation 1 / sqrt(d_in n_found)."""

    @property
    def n_found(self) -> int:
        """Number of children whose matched latent fires on them."""
        return int((~self.cosines.isnan()).sum())


def tree_absorption(
    features: Float[Tensor, "n_features d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    match: Match,
    children: Mapping[int, Sequence[int]],
) -> TreeAbsorption:
    """Absorption score of a dictionary trained on a planted tree with `children[parent]`.

    `match` is the matching on the overlap of activations; a child is found if the overlap with its latent is positive, that is, if the latent
    is active in some of its samples. Raises ConfigError for a match over another number of features, and if there are no children.
    """
    pairs = [(child, parent) for parent, group in children.items() for child in group]
    if len(match.latents) != len(features):
        raise ConfigError(f"match must hold one latent per feature, {len(features)}, got {len(match.latents)} (tree_absorption)")
    if not pairs:
        raise ConfigError("children must name at least one child, got none (tree_absorption)")
    child, parent = torch.tensor(pairs).T
    latents = match.latents[child]
    found = (latents >= 0) & (match.similarities[child] > 0)
    values = cosines(features, atoms.detach()).cpu()[parent, latents.clamp(min=0)]
    values = torch.where(found, values, float("nan"))
    return TreeAbsorption(children=child, cosines=values, score=float(values[found].mean()))


def absorption_fraction(
    main: Float[Tensor, " n"],
    absorbers: Float[Tensor, "n m"],
    total: Float[Tensor, " n"],
    *,
    n_absorbers: int = N_ABSORBERS,
    least_share: float = LEAST_SHARE,
) -> Float[Tensor, " n"]:
    """Share of the concept that absorbers carry, per token, from projections on the probe; see the module's text.

    `main` is what the concept's own latents contribute, `absorbers` the contribution of every candidate (0 or negative ones do not count),
    `total` the projection of the activation. Where total <= 0 there is nothing to absorb: 0.
    """
    largest = absorbers.clamp(min=0).topk(min(n_absorbers, absorbers.shape[1]), dim=1).values.sum(1)
    taken = torch.minimum(largest, total - main)
    fraction = torch.where(main <= 0, 1.0, taken / (taken + main).clamp_min(torch.finfo(main.dtype).tiny))
    counts = (total > 0) & (main < total) & (largest >= least_share * total)
    return torch.where(counts, fraction, 0.0)


def probe_absorption(
    acts: Float[Tensor, "n d_in"],
    codes: SparseCodes,
    atoms: Float[Tensor, "d_sae d_in"],
    probe: Float[Tensor, " d_in"],
    main_latents: Sequence[int],
) -> Float[Tensor, " n"]:
    """The absorption fraction of every token, for a probe direction and the latents that stand for its concept.

    Give tokens on which the concept holds and the probe says so; the score is the mean. Contributions are z_j d_j . p with the atoms as they
    are, so atoms need not have unit norm. A probe is only worth this if it is right: SAEBench asks for F1 > 0.6. Raises ConfigError if the
    shapes do not fit, for a latent outside 0..d_sae-1, and for a zero probe; a zero atom carries nothing.
    """
    slots = _projected(acts, codes, atoms, probe, main_latents, "probe_absorption")
    absorbers = torch.where(slots.own | (slots.cosine < LEAST_COSINE), 0.0, slots.along)
    return absorption_fraction((slots.along * slots.own).sum(1), absorbers, slots.total)


def full_absorption(
    acts: Float[Tensor, "n d_in"],
    codes: SparseCodes,
    atoms: Float[Tensor, "d_sae d_in"],
    probe: Float[Tensor, " d_in"],
    main_latents: Sequence[int],
) -> Bool[Tensor, " n"]:
    """Which tokens have their concept absorbed in full: its own latents are silent and one other carries it; see the module's text.

    Arguments and errors as in `probe_absorption`; the share of such tokens is the absorption rate of Chanin et al. Where total <= 0 there is
    nothing to absorb.
    """
    slots = _projected(acts, codes, atoms, probe, main_latents, "full_absorption")
    if not slots.along.shape[1]:
        return torch.zeros(len(acts), dtype=torch.bool, device=acts.device)
    silent = ~(slots.own & (slots.value.abs() >= SILENT)).any(1)
    largest, place = torch.where(slots.own | ~slots.active, -torch.inf, slots.along).max(1)
    cosine = slots.cosine.gather(1, place[:, None])[:, 0]
    return silent & (slots.total > 0) & (cosine >= LEAST_COSINE_FULL) & (largest >= LEAST_SHARE * slots.total)


def n_split(f1: Sequence[float], *, least_gain: float = LEAST_GAIN) -> int:
    """How many latents share a concept, from the F1 of probes on its best 1, 2, ... latents: the first counts if its F1 is above 0, each
    further one while it raises F1 by more than `least_gain`. 0 where even the best latent says nothing.
    """
    n = 0
    for before, now in zip((-least_gain, *f1), f1, strict=False):
        if not (now > 0 and now > before + least_gain):
            break
        n += 1
    return n


class _Slots(NamedTuple):
    """Codes along a probe, slot by slot [n, k], and the activations [n] along it."""

    value: Tensor
    along: Tensor
    cosine: Tensor
    own: Tensor
    active: Tensor
    total: Tensor


def _projected(acts: Tensor, codes: SparseCodes, atoms: Tensor, probe: Tensor, main_latents: Sequence[int], where: str) -> _Slots:
    if len(acts) != len(codes) or codes.d_sae != len(atoms):
        raise ConfigError(
            f"codes must have {len(acts)} rows over d_sae={len(atoms)} latents, got {len(codes)} over {codes.d_sae} ({where})"
        )
    outside = [latent for latent in main_latents if not 0 <= latent < codes.d_sae]
    if outside:
        raise ConfigError(f"main_latents must be in 0..d_sae-1={codes.d_sae - 1}, got {outside[0]} ({where})")
    unit = unit_rows(probe[None].double(), minimum=1, argument="probe", where=where)[0]
    dots = atoms.detach().double() @ unit
    norms = torch.linalg.vector_norm(atoms.detach().double(), dim=1)
    cosine = torch.where(norms > 0, dots / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)
    merged = codes.detach().merged()
    along = merged.values.double() * dots[merged.indices]
    is_main = torch.zeros(codes.d_sae, dtype=torch.bool, device=along.device)
    is_main[list(main_latents)] = True
    active = merged.active()
    return _Slots(merged.values, along, cosine[merged.indices], is_main[merged.indices] & active, active, acts.double() @ unit)
