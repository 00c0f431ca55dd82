"""Are lobes places: do an atom's nearest atoms belong to its lobe, and which lobe does a piece of text light up.

    same lobe = (1 / F m) sum_i #{j among the m nearest atoms of i : lobe_j = lobe_i}
    winning lobe of block t = argmax_l (latents of l that fire in t) / (latents of l)

The second is how Li et al. 2024 (arXiv 2410.19750) say what a lobe is for: the lobe that most often wins in the blocks of one kind of document.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.coactivation import Firings
from sae.geometry.lobes.spectral import NO_LOBE
from sae.geometry.nulls import NullStatistic, compare


def compare_locality(
    neighbour_ids: Int[Tensor, "n_latents n_neighbours"],
    lobes: Int[Tensor, " n_labels"],
    *,
    n_null: int,
    generator: torch.Generator,
    strata: Int[Tensor, " n_latents"] | None = None,
) -> NullStatistic:
    """Share of the nearest atoms that belong to the same lobe, against lobes dealt out at random, within `strata` if given.

    `neighbour_ids` as `nearest_atoms` or `atom_pairs` give them; an id of -1, and latents with a negative label on either side, do not count.
    Chance is sum_l share_l^2. Raises ConfigError for shapes that differ, ids out of range, n_null < 2, and when no pair is left.
    """
    n = len(lobes)
    ids = neighbour_ids.long().to(lobes.device)
    if len(ids) != n or (strata is not None and len(strata) != n):
        raise ConfigError(f"neighbour_ids, lobes and strata must have one row a latent, got {len(ids)} and {n} (compare_locality)")
    if ids.numel() == 0 or int(ids.max()) >= n or int(ids.min()) < -1:
        raise ConfigError(f"neighbour_ids must be in -1..n_latents-1={n - 1} and at least one a latent (compare_locality)")
    usable = (ids >= 0) & (lobes[:, None] >= 0) & (lobes[ids.clamp(min=0)] >= 0)
    if not bool(usable.any()):
        raise ConfigError("at least one latent and its neighbour must both have a lobe, got none (compare_locality)")
    rows = torch.arange(n, device=ids.device)[:, None].expand_as(ids)[usable]
    partners = ids[usable]

    def share(labels: Int[Tensor, " n_latents"]) -> float:
        return (labels[rows] == labels[partners]).double().mean().item()

    labelled = (lobes >= 0).nonzero().flatten()
    stratum = (torch.zeros_like(lobes) if strata is None else strata.to(lobes.device))[labelled]
    places = labelled[stratum.argsort(stable=True)]
    draws = []
    for _ in range(n_null):
        order = torch.randperm(len(labelled), generator=generator, device=generator.device).to(lobes.device)
        shuffled = lobes.clone()
        shuffled[places] = lobes[labelled[order[stratum[order].argsort(stable=True)]]]
        draws.append(share(shuffled))
    return compare(share(lobes), torch.tensor(draws, dtype=torch.float64))


def lobe_activity(fired: Firings, lobes: Int[Tensor, " n_latents"], *, n_lobes: int) -> Float[Tensor, "n_units n_lobes"]:
    """Share of each lobe's latents that fire in each unit (float64); 0 for an empty lobe.

    Raises ConfigError for labels not one a latent, or at n_lobes or above.
    """
    if len(lobes) != fired.n_latents or int(lobes.max()) >= n_lobes or int(lobes.min()) < NO_LOBE:
        raise ConfigError(
            f"lobes must be one label in -1..n_lobes-1={n_lobes - 1} for each of the {fired.n_latents} latents, got {len(lobes)} (lobe_activity)"
        )
    labels = lobes.cpu().long()
    units = torch.repeat_interleave(torch.arange(fired.n_units), fired.unit_starts.diff())
    of_firing = labels[fired.latent_ids.long()]
    counted = of_firing >= 0
    cells = (units * n_lobes + of_firing)[counted].bincount(minlength=fired.n_units * n_lobes)
    sizes = labels[labels >= 0].bincount(minlength=n_lobes)
    return cells.view(fired.n_units, n_lobes).double() / sizes.clamp(min=1)


def winning_lobes(fired: Firings, lobes: Int[Tensor, " n_latents"], *, n_lobes: int) -> Int[Tensor, " n_units"]:
    """The lobe of which the largest share fires in each unit, the larger lobe (lower number) where two are equal; -1 where nothing fires.

    Errors as `lobe_activity`.
    """
    activity = lobe_activity(fired, lobes, n_lobes=n_lobes)
    winners = (activity == activity.amax(dim=1, keepdim=True)).long().argmax(dim=1)  # the first of the largest
    return winners.masked_fill(activity.amax(dim=1) == 0, NO_LOBE)


def lobes_of_kinds(
    winners: Int[Tensor, " n_units"], kinds: Int[Tensor, " n_kinds_given"], *, n_lobes: int
) -> Int[Tensor, "n_kinds n_lobes"]:
    """How many units of each kind of document 0..max(kinds) each lobe wins; the argmax of a row is the lobe of that kind.

    Units without a winner count nowhere. Raises ConfigError for kinds that are negative or not one a unit.
    """
    if len(kinds) != len(winners) or len(kinds) == 0 or int(kinds.min()) < 0:
        raise ConfigError(f"kinds must be one number >= 0 for each of the {len(winners)} units, got {len(kinds)} (lobes_of_kinds)")
    won = winners >= 0
    n_kinds = int(kinds.max()) + 1
    return (kinds[won].long() * n_lobes + winners[won]).bincount(minlength=n_kinds * n_lobes).view(n_kinds, n_lobes)
