"""Measures of a dictionary's atoms by their cosines: coherence and nearest atoms. Nulls are as many independent uniform directions."""

from dataclasses import dataclass

import torch

from sae.evaluation.batteries.drawing import histogram, shared_edges
from sae.evaluation.batteries.findings import Number, Quantity, largest_rejected, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Rule, Series
from sae.geometry.coherence import babel, compare_babel, guaranteed_sparsity, mutual_coherence, welch_bound
from sae.geometry.nulls import compare
from sae.geometry.similarity import max_cosine_null, max_cosine_p_value, nearest_atoms

DIRECTIONS = "as many independent uniform directions"


@dataclass(frozen=True, kw_only=True)
class CoherenceConfig:
    """Settings of `coherence`."""

    max_order: int = 32
    """Largest number of other atoms of the Babel function."""
    n_atoms: int = 4096
    """Atoms, drawn at random where there are more, that the Babel function is compared with its null on."""
    n_null: int = 99
    """Null dictionaries for the Babel function."""
    n_law: int = 999
    """Draws from exact laws."""


def coherence(inputs: Inputs, config: CoherenceConfig) -> Outcome:
    """Mutual coherence of all atoms, and the Babel function."""
    atoms = inputs.atoms()
    n, d = atoms.shape
    generator = inputs.generator("coherence")
    mu, bound = mutual_coherence(atoms), welch_bound(n, d)
    law = max_cosine_null(n * (n - 1), d, n_null=config.n_law, generator=generator)
    p = max_cosine_p_value(torch.tensor([min(mu, 1.0)], dtype=torch.float64), n * (n - 1), d).item()
    numbers = [
        Number("mutual coherence", mu, "", law.mean().item(), law.std().item(), None, p, f"{n:,} atoms, Welch bound {bound:.4f}"),
        Number("coherence over the Welch bound", mu / bound if bound else None),
    ]
    order = min(config.max_order, n - 1)
    chosen = atoms[torch.randperm(n, generator=generator)[: config.n_atoms]]
    order = min(order, len(chosen) - 1)
    curve = compare_babel(chosen, max_order=order, n_null=config.n_null, generator=generator)
    place = order - 1
    numbers.append(
        Number(
            "Babel function",
            curve.values[place].item(),
            f"{order} other atoms",
            curve.null_mean[place].item(),
            curve.null_sd[place].item(),
            curve.n_null,
            curve.p_greater[place].item(),
            f"{len(chosen):,} atoms",
        )
    )
    whole = curve.values if len(chosen) == n else babel(atoms, max_order=min(config.max_order, n - 1))
    numbers.append(Number("sparsity that pursuit is guaranteed", float(guaranteed_sparsity(whole))))
    return Outcome(tuple(numbers), (_babel_figure(curve, len(chosen)),))


def _babel_figure(curve, n: int) -> Figure:
    orders = tuple(range(1, len(curve.values) + 1))
    mean, spread = curve.null_mean.tolist(), (2 * curve.null_sd).tolist()
    low, high = ([m + s * sign for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
    return Figure(
        "Babel function",
        Axis("other atoms, r", scale="log"),
        Axis("largest sum of r |cosines| of one atom"),
        (
            Series("random directions", orders, tuple(mean), tuple(low), tuple(high), role="null"),
            Series("atoms", orders, tuple(curve.values.tolist())),
        ),
        caption=f"The worst case: how much r other atoms together can look like one atom. {n:,} atoms; grey: null ± 2 sd.",
    )


COHERENCE = Measure(
    name="coherence",
    title="Coherence",
    text=(
        "How far the atoms are from orthogonal in the worst case. Matching pursuit is certain to find a sparse code only where atoms are "
        "nearly orthogonal; large values come from near-duplicate atoms."
    ),
    needs=("dictionary",),
    quantities=(
        Quantity(
            "mutual coherence",
            "The largest absolute cosine between two different atoms: 1 means that an atom is there twice.",
            "Donoho & Huo 2001; null: Cai, Fan & Jiang, arXiv 1306.0256",
            alternative="greater",
            null=f"{DIRECTIONS}, exact law",
        ),
        Quantity(
            "coherence over the Welch bound",
            "1 is the best that so many atoms in so many dimensions can do; 10 is ten times as coherent.",
            "Welch 1974",
        ),
        Quantity(
            "Babel function",
            "The largest sum of absolute cosines of one atom with that many others: how well others together can imitate an atom.",
            "Tropp 2004",
            alternative="greater",
            null=DIRECTIONS,
        ),
        Quantity(
            "sparsity that pursuit is guaranteed",
            "Up to this many active atoms, orthogonal matching pursuit finds every code; 0 where not even one is guaranteed.",
            "Tropp 2004",
            unit="atoms",
        ),
    ),
    compute=coherence,
    config=CoherenceConfig(),
    quick=CoherenceConfig(n_atoms=1024),
)


@dataclass(frozen=True, kw_only=True)
class NearestConfig:
    """Settings of `nearest`."""

    n_rows: int = 1024
    """Atoms, drawn at random, whose mean nearest cosine is compared with its null; at most an eighth of all, so that they are nearly independent."""
    n_null: int = 999
    """Draws of the null."""
    n_bins: int = 200
    """Bins of the histogram of all cosines over [-1, 1]."""
    rate: float = 0.05
    """Expected share of chance among the atoms that are said to have a near twin."""


def nearest(inputs: Inputs, config: NearestConfig) -> Outcome:
    """Nearest cosines of all atoms, and the histogram of every cosine."""
    atoms = inputs.atoms()
    n, d = atoms.shape
    generator = inputs.generator("nearest")
    found = nearest_atoms(atoms, n_neighbours=1, n_bins=config.n_bins)
    cosines = found.cosines[:, 0].double().clamp(-1, 1)
    rows = torch.randperm(n, generator=generator)[: max(2, min(config.n_rows, n // 8))]
    draws = max_cosine_null(n - 1, d, n_null=config.n_null * len(rows), generator=generator).view(config.n_null, len(rows))
    mean = NEAREST_QUANTITY["mean nearest cosine"]
    numbers = [of_null(mean, compare(cosines[rows].mean().item(), draws.mean(dim=1)), note=f"{len(rows):,} of {n:,} atoms")]
    p_values = max_cosine_p_value(cosines, n - 1, d)
    twins = _share_rejected(p_values[rows], config.rate)
    uniform = torch.rand(config.n_null, len(rows), generator=generator, dtype=torch.float64)
    null = torch.tensor([_share_rejected(row, config.rate) for row in uniform], dtype=torch.float64)
    numbers.append(of_null(NEAREST_QUANTITY["share of atoms with a near twin"], compare(twins, null), note=f"{len(rows):,} of {n:,} atoms"))
    return Outcome(tuple(numbers), (_cosine_figure(found, d), _nearest_figure(cosines, n, d, config, generator)))


def _share_rejected(p_values: torch.Tensor, rate: float) -> float:
    threshold = largest_rejected(p_values.tolist(), rate)
    return (p_values <= threshold).double().mean().item()


def _cosine_figure(found, d: int) -> Figure:
    """Every cosine, with the law of random directions: a coordinate of a uniform point of the sphere."""
    from scipy import special

    edges, counts = found.bin_edges, found.histogram.double()
    half = (d - 1) / 2
    law = torch.from_numpy(special.betainc(half, half, ((1 + edges) / 2).numpy())).diff()
    share = counts / counts.sum()
    width = edges[1] - edges[0]
    kept = ((share > 0) | (law > 1e-9)).nonzero().flatten()
    first, last = int(kept[0]), int(kept[-1]) + 1
    x = tuple(edges[first : last + 1].tolist())
    floor = 1e-12
    return Figure(
        "Cosines of all pairs of atoms",
        Axis("cosine"),
        Axis("share of pairs per unit of cosine", scale="log"),
        (
            Series("atoms", x, tuple((share[first:last] / width).clamp(min=0).tolist()), mark="bars"),
            Series(
                "random directions",
                x,
                tuple((law[first:last] / width).where(law[first:last] > floor, 0).tolist()),
                mark="bars",
                role="null",
            ),
        ),
        caption="On a logarithmic scale, so that the rare near-duplicates show: everything right of the dashed outline is closer than chance.",
    )


def _nearest_figure(cosines: torch.Tensor, n: int, d: int, config: NearestConfig, generator: torch.Generator) -> Figure:
    draws = max_cosine_null(n - 1, d, n_null=max(2000, config.n_null), generator=generator)
    edges = shared_edges(cosines, draws)
    return Figure(
        "Cosine with the nearest atom",
        Axis("cosine"),
        Axis("share of atoms"),
        (
            histogram("atoms", cosines, edges),
            histogram("random directions", draws, edges, null=True),
        ),
        (Rule("x", cosines.mean().item(), f"mean {cosines.mean().item():.3f}"),),
        f"{n:,} atoms; dashed: the exact law of the largest of {n - 1:,} cosines with independent uniform directions of R^{d}.",
    )


NEAREST_QUANTITIES = (
    Quantity(
        "mean nearest cosine",
        "How close an atom's nearest neighbour is on average: above the null atoms crowd together, below it they keep apart.",
        "Sharkey, Braun & Millidge 2022 (MMCS within one dictionary); null: Cai, Fan & Jiang, arXiv 1306.0256",
        null=f"{DIRECTIONS}, exact law",
    ),
    Quantity(
        "share of atoms with a near twin",
        "Atoms whose nearest neighbour is closer than chance allows, at an expected 5 % of false ones: split or duplicated features.",
        "Benjamini & Hochberg 1995 on exact p-values",
        alternative="greater",
        null="uniform p-values",
    ),
)
NEAREST_QUANTITY = {quantity.name: quantity for quantity in NEAREST_QUANTITIES}
NEAREST = Measure(
    name="nearest",
    title="Nearest atoms",
    text="The cosine of every atom with its nearest neighbour, and of all pairs.",
    needs=("dictionary",),
    quantities=NEAREST_QUANTITIES,
    compute=nearest,
    config=NearestConfig(),
    quick=NearestConfig(n_rows=256),
)
