"""Measures of two dictionaries by their atoms: how many they share, and which atom of the smaller one each atom of the larger has become."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.batteries.drawing import histogram, shared_edges
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Rule, Series
from sae.geometry.atoms import atom_pairs, best_cosines, compare_matching, null_dictionary, similarity_of_rows, splitting, stability_curve
from sae.geometry.nulls import compare

COVARIANCE = "in place of the second dictionary, Gaussian atoms with the covariance of its own"
TAUS = tuple(i / 20 for i in range(2, 20))


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Settings of `matching`."""

    largest: int = 6000
    """Atoms up to which pairs are chosen to have the largest sum of cosines; beyond, pairs are those that are each other's nearest."""
    n_null: int = 59
    """Null dictionaries, each matched anew."""


def matching(inputs: Inputs, config: MatchingConfig) -> Outcome:
    """Nearest cosines both ways, and one-to-one pairs."""
    a, b = inputs.atoms("dictionary"), inputs.atoms("other")
    generator = inputs.generator("matching")
    method = "optimal" if min(len(a), len(b)) <= config.largest else "mutual"
    found = compare_matching(a, b, method=method, n_null=config.n_null, generator=generator)
    names = (inputs.name("dictionary"), inputs.name("other"))
    note = f"{found.n_pairs:,} pairs, {'largest sum of cosines' if method == 'optimal' else 'mutual nearest'}"
    q = {quantity.name: quantity for quantity in MATCHING_QUANTITIES}
    numbers = (
        of_null(q["mean largest cosine"], found.forward, subject=f"{names[0]} → {names[1]}"),
        of_null(q["mean largest cosine"], found.backward, subject=f"{names[1]} → {names[0]}"),
        of_null(q["mean cosine of pairs"], found.paired, note=note),
        *(
            of_null(q["share of pairs"], share, subject=f"cosine above {threshold:g}", note=note)
            for threshold, share in zip(found.thresholds, found.shares, strict=True)
        ),
    )
    other = null_dictionary(b, "covariance", generator=generator)
    return Outcome(numbers, (_nearest_figure(a, b, other, names), _stability_figure(a, b, other, method)))


def _nearest_figure(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], other: Float[Tensor, "m d"], names: tuple[str, str]) -> Figure:
    forward, null = best_cosines(a, b).cosines, best_cosines(a, other).cosines
    edges = shared_edges(forward, null)
    return Figure(
        f"Largest cosine of each atom of {names[0]}",
        Axis(f"cosine with the nearest atom of {names[1]}"),
        Axis("share of atoms"),
        (histogram("atoms", forward, edges), histogram("null dictionary", null, edges, null=True)),
        (Rule("x", 0.7, "0.7"),),
        "Atoms right of the dashed outline have a counterpart; the others are one dictionary's own.",
    )


def _stability_figure(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], other: Float[Tensor, "m d"], method) -> Figure:
    curves = [stability_curve(similarity_of_rows(atom_pairs(a, each, method=method)), TAUS).tolist() for each in (b, other)]
    return Figure(
        "Stability",
        Axis("threshold of the cosine"),
        Axis("share of atoms with a partner above it"),
        (Series("null dictionary", TAUS, tuple(curves[1]), role="null"), Series("pairs", TAUS, tuple(curves[0]))),
        caption="One-to-one pairs: how many atoms come back, by how strictly one asks.",
    )


MATCHING_QUANTITIES = (
    Quantity(
        "mean largest cosine",
        "MMCS: how close the nearest atom of the other dictionary is on average; an atom may serve several. 1 where every atom is there again.",
        "Sharkey, Braun & Millidge 2022; Huben et al., arXiv 2309.08600",
        alternative="greater",
        null=COVARIANCE,
    ),
    Quantity(
        "mean cosine of pairs",
        "The same with every atom used once: lower where several atoms of one share a partner in the other.",
        "Hungarian method, Kuhn 1955",
        alternative="greater",
        null=COVARIANCE,
    ),
    Quantity(
        "share of pairs",
        "Pairs that count as the same feature, over the size of the smaller dictionary.",
        "Paulo & Belrose, arXiv 2501.16615",
        alternative="greater",
        null=COVARIANCE,
    ),
)
MATCHING = Measure(
    name="matching",
    title="Shared atoms",
    text=(
        "How many atoms the two dictionaries have in common. Atoms of dictionaries trained on the same activations lie in the same directions of "
        "high variance, so the null has their covariance."
    ),
    needs=("dictionary", "other"),
    quantities=MATCHING_QUANTITIES,
    compute=matching,
    config=MatchingConfig(),
    quick=MatchingConfig(largest=2048, n_null=39),
)


@dataclass(frozen=True, kw_only=True)
class SplittingConfig:
    """Settings of `feature_splitting`."""

    minimum: float = 0.5
    """Cosine from which on a large atom belongs to its nearest small one."""
    n_null: int = 99
    """Null dictionaries."""


def feature_splitting(inputs: Inputs, config: SplittingConfig) -> Outcome:
    """Parents of the larger dictionary's atoms among the smaller one's."""
    a, b = inputs.atoms("dictionary"), inputs.atoms("other")
    names = (inputs.name("dictionary"), inputs.name("other"))
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    subject = "{} → {}".format(*(names if len(a) <= len(b) else names[::-1]))
    generator = inputs.generator("splitting")
    found = splitting(small, large, minimum=config.minimum)
    draws = [
        splitting(small, null_dictionary(large, "covariance", generator=generator), minimum=config.minimum) for _ in range(config.n_null)
    ]
    q = {quantity.name: quantity for quantity in SPLITTING_QUANTITIES}
    note = f"{len(small):,} and {len(large):,} atoms, cosine at least {config.minimum:g}"
    orphans = [d.orphans for d in draws]
    childless = [d.childless for d in draws]
    numbers = [
        of_null(q["share of novel atoms"], compare(found.orphans, orphans), subject=subject, note=note),
        of_null(q["share of atoms without a child"], compare(found.childless, childless), subject=subject, note=note),
    ]
    with_children = int((found.counts > 0).sum())
    factor = float(found.counts.sum()) / with_children if with_children else None
    numbers.append(Number("children of an atom that has any", factor, subject, note=note))
    return Outcome(tuple(numbers), (_children_figure(found.counts, draws[0].counts),))


def _children_figure(counts: Tensor, null: Tensor) -> Figure:
    most = int(min(max(int(counts.max()), 3), 12))
    edges = torch.arange(-0.5, most + 1, dtype=torch.float64)
    series = (histogram("atoms", counts.clamp(max=most), edges), histogram("null dictionary", null.clamp(max=most), edges, null=True))
    axis = Axis("children", names=(*(str(i) for i in range(most)), f"{most}+"))
    caption = "Atoms of the smaller dictionary by how many atoms of the larger one have them as their nearest."
    return Figure("Children", axis, Axis("share of atoms"), series, caption=caption)


SPLITTING_QUANTITIES = (
    Quantity(
        "share of novel atoms",
        "Atoms of the larger dictionary that nothing in the smaller one resembles: what more latents add.",
        "Leask et al., arXiv 2502.04878; Bricken et al. 2023",
        alternative="less",
        null=COVARIANCE.replace("second", "larger"),
    ),
    Quantity(
        "share of atoms without a child",
        "Atoms of the smaller dictionary that the larger one has not kept.",
        "O'Neill et al., arXiv 2408.00657",
        alternative="less",
        null=COVARIANCE.replace("second", "larger"),
    ),
    Quantity(
        "children of an atom that has any",
        "Into how many atoms one has split; 1 where each lives on as one.",
        "Bricken et al. 2023",
        unit="atoms",
    ),
)
SPLITTING = Measure(
    name="splitting",
    title="Splitting",
    text="Every atom of the larger dictionary belongs to its nearest atom of the smaller one, if that is near enough.",
    needs=("dictionary", "other"),
    quantities=SPLITTING_QUANTITIES,
    compute=feature_splitting,
    config=SplittingConfig(),
    quick=SplittingConfig(n_null=39),
)
