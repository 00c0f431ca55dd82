"""Crystals: pairs of atoms that differ by one vector, beside dictionaries whose coordinates are shuffled."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Series
from sae.geometry.crystals import CrystalConfig, Crystals, find_crystals, shuffled_atoms
from sae.geometry.nulls import compare
from sae.geometry.rows import unit_rows


@dataclass(frozen=True, kw_only=True)
class CrystalsConfig:
    """Settings of `crystals`."""

    n_atoms: int = 4096
    """Atoms, drawn at random where there are more."""
    n_neighbours: int = 20
    """Nearest atoms that each atom forms differences with."""
    min_cosine: float = 0.6
    """Cosine of two differences from which on they count as parallel."""
    max_loss: float = 0.5
    """Largest loss of a parallelogram; what is parallel with a larger loss is a trapezoid."""
    n_null: int = 39
    """Shuffled dictionaries, each searched in the same way."""
    n_shown: int = 5
    """Crystals that are named, no two of them with a common atom."""


def crystals(inputs: Inputs, config: CrystalsConfig) -> Outcome:
    """Quadruples of atoms with parallel differences: their number beside shuffled dictionaries, and the best of them."""
    atoms = unit_rows(inputs.atoms(), minimum=4, argument="atoms", where="crystals")
    generator = inputs.generator("crystals")
    chosen = torch.randperm(len(atoms), generator=generator)[: config.n_atoms].sort().values
    rows = atoms[chosen]
    settings = CrystalConfig(n_neighbours=config.n_neighbours, min_cosine=config.min_cosine, max_loss=config.max_loss)
    found = find_crystals(rows, generator=generator, config=settings)
    draws = [find_crystals(shuffled_atoms(rows, generator=generator), generator=generator, config=settings) for _ in range(config.n_null)]
    q = {quantity.name: quantity for quantity in QUANTITIES}
    note = f"{len(rows):,} atoms, {found.n_edges:,} differences, {found.n_compared:,} pairs of them compared"
    numbers = [
        of_null(q["crystals"], compare(float(len(found.losses)), [float(len(each.losses)) for each in draws]), note=note),
        of_null(q["parallelograms"], compare(_parallelograms(found), [_parallelograms(each) for each in draws])),
        of_null(q["share of atoms in crystals"], compare(_share(found, len(rows)), [_share(each, len(rows)) for each in draws])),
    ]
    latents = (inputs.chosen("dictionary").W_dec.detach().norm(dim=1) > 0).nonzero().flatten()[chosen]
    numbers += [_crystal(found, i, latents) for i in _apart(found.quadruples, config.n_shown)]
    notes = [] if len(rows) == len(atoms) else [f"Of {len(atoms):,} atoms {len(rows):,} were searched: crystals with others are not seen."]
    return Outcome(tuple(numbers), _figure(found, draws, config.min_cosine), tuple(notes))


def _parallelograms(found: Crystals) -> float:
    return float(found.is_parallelogram.sum())


def _share(found: Crystals, n_atoms: int) -> float:
    return len(torch.unique(found.quadruples)) / n_atoms


def _crystal(found: Crystals, i: int, latents: Int[Tensor, " n"]) -> Number:
    a, b, c, d = latents[found.quadruples[i]].tolist()
    kind = "parallelogram" if found.is_parallelogram[i] else "trapezoid"
    note = f"{kind}; cosine {found.cosines[i]:.2f}, q {found.q_values[i]:.1g}"
    return Number("loss of a crystal", found.losses[i].item(), f"{a} → {b} as {c} → {d}", note=note)


def _apart(quadruples: Int[Tensor, "n 4"], most: int) -> list[int]:
    """The first rows, none of which shares an atom with another."""
    used: set[int] = set()
    kept: list[int] = []
    for i, row in enumerate(quadruples.tolist()):
        if len(kept) == most:
            break
        if used.isdisjoint(row):
            kept.append(i)
            used.update(row)
    return kept


def _figure(found: Crystals, draws: list[Crystals], low: float) -> tuple[Figure, ...]:
    """Crystals by cosine; none where nothing was found."""
    pooled = torch.cat([each.cosines for each in draws])
    if not len(found.cosines) and not len(pooled):
        return ()
    edges = torch.linspace(low, 1.0, 31, dtype=torch.float64)
    own, null = (_counts(values, edges) for values in (found.cosines, pooled))
    series = (
        Series("atoms", tuple(edges.tolist()), tuple(own.tolist()), mark="bars"),
        Series("shuffled dictionary", tuple(edges.tolist()), tuple((null / len(draws)).tolist()), mark="bars", role="null"),
    )
    caption = "Towards 1 the two differences are one direction. Dashed: a shuffled dictionary, on average."
    return (Figure("Crystals by how parallel they are", Axis("cosine of the two differences"), Axis("crystals"), series, caption=caption),)


def _counts(values: Float[Tensor, " n"], edges: Float[Tensor, " bins"]) -> Float[Tensor, " n_bins"]:
    return torch.histogram(values.clamp(float(edges[0]), float(edges[-1])).double(), edges).hist


SHUFFLED = "dictionaries with the same norms and spectrum, every principal coordinate permuted over the atoms"
LI = "Li et al. 2024, arXiv 2410.19750, among nearest atoms"
QUANTITIES = (
    Quantity(
        "crystals",
        "Sets of four atoms a, b, c, d with b - a parallel to d - c, as man : woman = king : queen would give. Above the null, atoms are displaced "
        "from one another by shared vectors; at the null, parallel differences are chance. The search finds most of them, not all.",
        LI,
        "crystals",
        "greater",
        SHUFFLED,
    ),
    Quantity(
        "parallelograms",
        "Crystals whose two differences are also about equally long; the others are trapezoids, where only the direction is shared.",
        LI,
        "crystals",
        "greater",
        SHUFFLED,
    ),
    Quantity(
        "share of atoms in crystals",
        "Atoms that belong to a crystal. Few atoms in many crystals are one relation with many pairs: n pairs give n (n - 1) / 2 crystals.",
        LI,
        "",
        "greater",
        SHUFFLED,
    ),
    Quantity(
        "loss of a crystal",
        "How far one of the best crystals is from a parallelogram: |(b - a) - (d - c)| over the mean length of the two. 0 is exact; unrelated "
        "differences have about 1.4. The arrows name latents: look at what they fire on.",
        LI,
    ),
)
CRYSTALS = Measure(
    name="crystals",
    title="Crystals",
    text=(
        "Whether relations between atoms repeat: pairs of near atoms whose differences are parallel beyond chance. Near-copies and atoms on one line "
        "are not counted."
    ),
    needs=("dictionary",),
    quantities=QUANTITIES,
    compute=crystals,
    config=CrystalsConfig(),
    quick=CrystalsConfig(n_atoms=1024),
)
