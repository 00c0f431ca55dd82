"""Measures of two dictionaries by their codes on the same tokens: which latents answer alike, and whether those that do also lie alike."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import CodeSample, Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Series
from sae.geometry.atoms import (
    CodeMoments,
    atom_pairs,
    code_moments,
    compare_codes,
    latent_pairs,
    matching_gap,
    similarity_of_rows,
    stability_by_frequency,
    universality,
)

ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class PairCodesConfig:
    """Settings of `activation_matching`."""

    n_tokens: int = 30_000
    """Tokens, whole rows of the store drawn at random."""
    largest: int = 6000
    """Latents up to which pairs have the largest sum of correlations; beyond, pairs are those that are each other's best."""
    n_null: int = 59
    """Shifts of the tokens, each matched anew."""


def activation_matching(inputs: Inputs, config: PairCodesConfig) -> Outcome:
    """Correlations of codes on the same tokens beside shifted tokens, and which latents come back by how often they fire."""
    one, two, documents = _samples(inputs, config.n_tokens)
    method = "optimal" if min(one.codes.d_sae, two.codes.d_sae) <= config.largest else "mutual"
    generator = inputs.generator("activation matching")
    found = compare_codes(one.codes, two.codes, documents, method=method, n_null=config.n_null, generator=generator)
    names = (inputs.name("dictionary"), inputs.name("other"))
    note = f"{len(documents):,} tokens; {found.n_pairs:,} pairs; dead: {found.n_dead[0]:,} and {found.n_dead[1]:,}"
    q = {quantity.name: quantity for quantity in QUANTITIES}
    moments = _moments(one.codes, two.codes)
    gap = matching_gap(moments)
    numbers = (
        of_null(q["mean best correlation"], found.forward, subject=f"{names[0]} → {names[1]}", note=note),
        of_null(q["mean best correlation"], found.backward, subject=f"{names[1]} → {names[0]}", note=note),
        of_null(q["mean correlation of pairs"], found.paired, note=note),
        *(
            of_null(q["share of latents that answer alike"], share, subject=f"correlation above {threshold:g}", note=note)
            for threshold, share in zip(found.thresholds, found.shares, strict=True)
        ),
        Number("gap of best partners to pairs", gap.gap, note=f"{gap.n_distinct:,} different partners"),
    )
    pairs = latent_pairs(moments, method=method)
    frequencies = _firing(one.codes)
    curves = {"by correlation of codes": similarity_of_rows(pairs)}
    if one.codes.d_sae == inputs.atoms("dictionary").shape[0]:
        curves["by cosine of atoms"] = similarity_of_rows(atom_pairs(inputs.atoms("dictionary"), inputs.atoms("other"), method=method))
    return Outcome(numbers, _frequency_figure(curves, frequencies))


def _samples(inputs: Inputs, n_tokens: int) -> tuple[CodeSample, CodeSample, Int[Tensor, " n"]]:
    one, two = inputs.codes(n_tokens, "dictionary"), inputs.codes(n_tokens, "other")
    return one, two, inputs.stored.document_ids().flatten()[one.token_index]


def _moments(a: SparseCodes, b: SparseCodes) -> CodeMoments:
    parts = [slice(start, start + ROWS) for start in range(0, len(a), ROWS)]
    return code_moments((a[part], b[part]) for part in parts)


def _firing(codes: SparseCodes) -> Tensor:
    """Share of the tokens on which each latent is active."""
    return torch.bincount(codes.indices[codes.active()].long(), minlength=codes.d_sae).double() / len(codes)


def _frequency_figure(curves: dict[str, Tensor], frequencies: Tensor) -> tuple[Figure, ...]:
    alive = frequencies > 0
    if int(alive.sum()) < 20:
        return ()
    series = []
    for name, similarities in curves.items():
        found = stability_by_frequency(similarities[alive], frequencies[alive].float(), threshold=0.7)
        kept = (found.counts > 0).nonzero().flatten()
        middle = (found.edges[:-1] * found.edges[1:]).sqrt()[kept]
        if len(torch.unique(middle)) < len(middle) or len(kept) < 2:
            continue
        parts = [tuple(each[kept].tolist()) for each in (found.shares, found.low, found.high)]
        series.append(Series(name, tuple(middle.tolist()), *parts))
    if not series:
        return ()
    return (
        Figure(
            "What comes back, by how often it fires",
            Axis("share of tokens on which a latent fires", scale="log"),
            Axis("share of latents with a partner above 0.7"),
            tuple(series),
            caption="In bins of equally many latents; shaded: 95 % intervals. Rare latents stand on the left.",
        ),
    )


SHIFTED = "tokens of the second dictionary shifted within their documents"
QUANTITIES = (
    Quantity(
        "mean best correlation",
        "How well the best latent of the other dictionary follows a latent over the tokens, on average; a latent may serve several.",
        "Lan et al., arXiv 2410.06981",
        alternative="greater",
        null=SHIFTED,
    ),
    Quantity(
        "mean correlation of pairs",
        "The same with every latent used once.",
        "Li et al., arXiv 1511.07543",
        alternative="greater",
        null=SHIFTED,
    ),
    Quantity(
        "share of latents that answer alike",
        "Pairs whose codes correlate that strongly, over the size of the smaller dictionary.",
        "Lan et al., arXiv 2410.06981",
        alternative="greater",
        null=SHIFTED,
    ),
    Quantity(
        "gap of best partners to pairs",
        "What is lost when partners may be used only once: large where one latent of one dictionary is several of the other.",
        "Li et al., arXiv 1511.07543",
    ),
)
ACTIVATION_MATCHING = Measure(
    name="activation_matching",
    title="Latents that answer alike",
    text=(
        "Correlations of the codes of two dictionaries on the same tokens. Tokens of one document are alike, so the null shifts them within "
        "their documents."
    ),
    needs=("dictionary", "other", "store"),
    quantities=QUANTITIES,
    compute=activation_matching,
    config=PairCodesConfig(),
    quick=PairCodesConfig(n_tokens=10_000, n_null=39),
)


@dataclass(frozen=True, kw_only=True)
class UniversalityConfig:
    """Settings of `universal`."""

    n_tokens: int = 30_000
    """Tokens, whole rows of the store drawn at random."""
    minimum: float = 0.1
    """Correlation that a pair needs."""
    most_pairs: int = 1000
    """Pairs compared at most."""
    n_null: int = 99
    """Shuffled pairings."""


def universal(inputs: Inputs, config: UniversalityConfig) -> Outcome:
    """SVCCA and RSA of the atoms of latents that answer alike."""
    one, two, _ = _samples(inputs, config.n_tokens)
    pairs = latent_pairs(_moments(one.codes, two.codes), method="mutual", minimum=config.minimum)
    rows = [inputs.chosen(which).W_dec.detach().float() for which in ("dictionary", "other")]
    generator = inputs.generator("universality")
    found = universality(rows[0], rows[1], pairs, most_pairs=config.most_pairs, n_null=config.n_null, generator=generator)
    note = f"{found.n_pairs:,} pairs, {found.share_kept:.0%} of the smaller dictionary, mean correlation {found.correlation:.2f}"
    q = {quantity.name: quantity for quantity in UNIVERSALITY_QUANTITIES}
    return Outcome(
        (
            of_null(q["SVCCA of paired atoms"], found.svcca, note=f"{note}; {found.n_components} components"),
            of_null(q["RSA of paired atoms"], found.rsa, note=note),
        )
    )


UNIVERSALITY_QUANTITIES = (
    Quantity(
        "SVCCA of paired atoms",
        "Mean canonical correlation of the atoms of latents that answer alike: do they span the same directions, up to a linear map?",
        "Lan et al., arXiv 2410.06981, with the components that hold the variance",
        alternative="greater",
        null="pairs shuffled",
    ),
    Quantity(
        "RSA of paired atoms",
        "Rank correlation of who is near whom: do latents that answer alike have the same relations to each other?",
        "Lan et al., arXiv 2410.06981",
        alternative="greater",
        null="pairs shuffled",
    ),
)
UNIVERSALITY = Measure(
    name="universality",
    title="Universality",
    text="Latents are paired by their codes alone; then their atoms are compared as two representations of the same features.",
    needs=("dictionary", "other", "store"),
    quantities=UNIVERSALITY_QUANTITIES,
    compute=universal,
    config=UniversalityConfig(),
    quick=UniversalityConfig(n_tokens=10_000, most_pairs=400),
)
