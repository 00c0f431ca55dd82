"""Stability: what of a dictionary comes back when it is trained again, by its atoms, by what it fires on, and weighted by how often it fires.

The mathematics is that of `sae.geometry.atoms`, with which the battery `pair` of the geometry looks closer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.geometry.atoms import NullKind, Pairs, atom_pairs, compare_codes, compare_matching, null_dictionary, similarity_of_rows
from sae.geometry.nulls import compare

THRESHOLDS = (0.7, 0.9)
COSINES = 100_000_000
"""Cosines of atoms that all null dictionaries together may cost."""
SEEDS = (
    "Dictionaries that differ in the seed alone are drawn from the same training: what they share is what the training finds reliably, what they "
    "do not share may be real as well, found by one of them only. A shared atom is not for that reason a meaningful one."
)
"""What a comparison of seeds says."""
NULL = "in place of the second dictionary, unit atoms with the covariance of its own"


@dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """Settings of `stability`."""

    null: NullKind = "covariance"
    """What the null keeps of the second dictionary: `covariance`, `rotated`, `reflected` or `random`."""
    largest: int = 4096
    """Atoms up to which pairs have the largest sum of cosines; beyond, pairs are those that are each other's nearest."""
    n_null: int = 19
    """Null dictionaries at most, each matched anew; fewer, at least 2, where there are more than 5 million pairs of atoms."""


def stability(inputs: Inputs, config: StabilityConfig) -> Outcome:
    """Largest cosines both ways, one-to-one pairs, and the shares of atoms found again."""
    a, b = inputs.atoms("dictionary"), inputs.atoms("other")
    method = "optimal" if min(len(a), len(b)) <= config.largest else "mutual"
    generator = inputs.generator("stability")
    n_null = affordable(config.n_null, len(a) * len(b))
    found = compare_matching(a, b, null=config.null, method=method, thresholds=THRESHOLDS, n_null=n_null, generator=generator)
    names = (inputs.name("dictionary"), inputs.name("other"))
    note = f"{found.n_pairs:,} pairs, {'largest sum of cosines' if method == 'optimal' else 'mutual nearest'}; null: {config.null}"
    largest, paired, again = STABILITY.quantities
    numbers = (
        of_null(largest, found.forward, subject=f"{names[0]} → {names[1]}"),
        of_null(largest, found.backward, subject=f"{names[1]} → {names[0]}"),
        of_null(paired, found.paired, note=note),
        *(
            of_null(again, share, subject=f"cosine above {threshold:g}", note=note)
            for threshold, share in zip(THRESHOLDS, found.shares, strict=True)
        ),
    )
    return Outcome(numbers, notes=(SEEDS,))


def affordable(n_null: int, n_pairs: int) -> int:
    """Null draws, so that they and their pairs of atoms stay below 100 million together; at least 2, at most `n_null`."""
    return max(2, min(n_null, COSINES // max(n_pairs, 1)))


STABILITY = Measure(
    name="stability",
    title="Stability across seeds",
    text=(
        "How much of the dictionary is in another one that was trained in the same way from another seed, by the directions of the atoms. Atoms of "
        "dictionaries of the same activations lie in the same directions of high variance, so the null has their covariance."
    ),
    needs=("dictionary", "other"),
    quantities=(
        Quantity(
            "mean largest cosine",
            "How close the nearest atom of the other dictionary is, on average; an atom may serve several. 1 where every atom is there again.",
            "Sharkey, Braun & Millidge 2022; Huben et al., arXiv 2309.08600",
            alternative="greater",
            null=NULL,
            formula="mean_i max_j cos(a_i, b_j)",
        ),
        Quantity(
            "mean cosine of pairs",
            "The same with every atom used once: 1 where the dictionaries are the same up to order and scale.",
            "Hungarian method, Kuhn 1955; Paulo & Belrose, arXiv 2501.16615",
            alternative="greater",
            null=NULL,
            formula="mean_i cos(a_i, b_m(i)), m one-to-one with the largest sum",
        ),
        Quantity(
            "share of atoms found again",
            "Atoms whose partner is that near, over the size of the smaller dictionary.",
            "Paulo & Belrose, arXiv 2501.16615",
            alternative="greater",
            null=NULL,
            formula="#{i: cos(a_i, b_m(i)) > t} / min(n_a, n_b)",
        ),
    ),
    compute=stability,
    config=StabilityConfig(),
    quick=StabilityConfig(largest=2048, n_null=9),
)


@dataclass(frozen=True, kw_only=True)
class FiringStabilityConfig:
    """Settings of `firing_stability`."""

    n_tokens: int = 20_000
    """Tokens, whole rows of the store drawn at random."""
    largest: int = 4096
    """Latents up to which pairs have the largest sum; beyond, pairs are those that are each other's nearest."""
    n_null: int = 9
    """Null dictionaries, and shifts of the tokens, at most."""


def firing_stability(inputs: Inputs, config: FiringStabilityConfig) -> Outcome:
    """Cosines of pairs weighted by firing, and correlations of the codes of the same tokens."""
    one, two = inputs.codes(config.n_tokens, "dictionary"), inputs.codes(config.n_tokens, "other")
    documents = inputs.stored.document_ids().flatten()[one.token_index]
    a, b = inputs.atoms("dictionary"), inputs.atoms("other")
    there = inputs.chosen("dictionary").W_dec.detach().norm(dim=1).cpu() > 0
    weights = torch.bincount(one.codes.indices[one.codes.active()].long(), minlength=one.codes.d_sae).double()[there]
    method = "optimal" if min(len(a), len(b)) <= config.largest else "mutual"
    generator = inputs.generator("stability of firing")
    value = _weighted(atom_pairs(a, b, method=method), weights)
    draws = [
        _weighted(atom_pairs(a, null_dictionary(b, "covariance", generator=generator), method=method), weights)
        for _ in range(affordable(config.n_null, len(a) * len(b)))
    ]
    note = f"{len(documents):,} tokens; {int((weights > 0).sum()):,} of {len(weights):,} latents fire"
    mean, again, correlation, alike = FIRING_STABILITY.quantities
    subjects = ["", *(f"cosine above {threshold:g}" for threshold in THRESHOLDS)]
    numbers = [
        of_null(quantity, compare(value[i], [draw[i] for draw in draws]), subject=subject, note=note)
        for i, (quantity, subject) in enumerate(zip((mean, again, again), subjects, strict=True))
    ]
    return Outcome((*numbers, *_correlations(inputs, config, (one, two, documents), correlation, alike)), notes=(SEEDS,))


def _weighted(pairs: Pairs, weights: Float[Tensor, " n"]) -> list[float]:
    """Mean cosine of the pairs and the shares above the thresholds, each latent weighted by how often it fires; none counts as cosine 0.

    0 where nothing fires.
    """
    cosines = similarity_of_rows(pairs)
    values = [cosines.clamp(min=0), *((cosines > threshold).double() for threshold in THRESHOLDS)]
    total = weights.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return [float((weights * each).sum() / total) for each in values]


def _correlations(inputs: Inputs, config: FiringStabilityConfig, samples, correlation: Quantity, alike: Quantity) -> list[Number]:
    one, two, documents = samples
    method = "optimal" if min(one.codes.d_sae, two.codes.d_sae) <= config.largest else "mutual"
    generator = inputs.generator("stability of codes")
    n_null = affordable(config.n_null, one.codes.d_sae * two.codes.d_sae)
    found = compare_codes(one.codes, two.codes, documents, method=method, n_null=n_null, generator=generator)
    note = f"{len(documents):,} tokens; {found.n_pairs:,} pairs; dead: {found.n_dead[0]:,} and {found.n_dead[1]:,}"
    numbers = [of_null(correlation, found.paired, note=note)]
    for threshold, share in zip(found.thresholds, found.shares, strict=True):
        numbers.append(of_null(alike, share, subject=f"correlation above {threshold:g}", note=note))
    return numbers


SHIFTED = "tokens of the second dictionary shifted within their documents"
FIRING_STABILITY = Measure(
    name="firing_stability",
    title="Stability across seeds, by firing",
    text=(
        "The same by what the latents do: atoms weighted by how often they fire, since rare ones are usually less stable and are many, and the "
        "correlation of the codes of both dictionaries on the same tokens."
    ),
    needs=("dictionary", "other", "store"),
    quantities=(
        Quantity(
            "mean cosine of pairs, by firing",
            "Mean cosine of one-to-one pairs in which each latent counts as often as it fires: what an activation meets, rather than an atom.",
            "the weighting is this package's",
            alternative="greater",
            null=NULL,
            formula="sum_i f_i max(cos(a_i, b_m(i)), 0) / sum_i f_i",
        ),
        Quantity(
            "share of firing found again",
            "Share of all firing that is of latents with a partner that near.",
            "the weighting is this package's; Paulo & Belrose, arXiv 2501.16615",
            alternative="greater",
            null=NULL,
            formula="sum_i f_i [cos(a_i, b_m(i)) > t] / sum_i f_i",
        ),
        Quantity(
            "mean correlation of pairs",
            "How well the latents' values on the same tokens agree, every latent used once.",
            "Li et al., arXiv 1511.07543",
            alternative="greater",
            null=SHIFTED,
            formula="mean_i corr(z_i, z'_m(i)), m one-to-one with the largest sum",
        ),
        Quantity(
            "share of latents that answer alike",
            "Pairs whose values correlate that strongly, over the size of the smaller dictionary.",
            "Lan et al., arXiv 2410.06981",
            alternative="greater",
            null=SHIFTED,
            formula="#{i: corr(z_i, z'_m(i)) > t} / min(n, n')",
        ),
    ),
    compute=firing_stability,
    config=FiringStabilityConfig(),
    quick=FiringStabilityConfig(n_tokens=5_000, n_null=4),
)
