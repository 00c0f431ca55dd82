"""Latents that fire together: how strongly, and whether they also lie together (lobes)."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.batteries.dealing import dealt_anew
from sae.evaluation.batteries.drawing import histogram, shared_edges
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import CodeSample, Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Series
from sae.geometry.coactivation import Firings, firings, nearest_by_coactivation
from sae.geometry.lobes import (
    coactivation_graph,
    compare_locality,
    cosine_graph,
    frequency_strata,
    spectral_lobes_of_graph,
    sweep_agreement,
)
from sae.geometry.nulls import compare
from sae.geometry.pairs import atom_pairs


@dataclass(frozen=True, kw_only=True)
class CoactivationConfig:
    """Settings of `coactivation`."""

    n_tokens: int = 50_000
    """Tokens, whole rows of the store drawn at random."""
    n_null: int = 39
    """Null codes."""


def strongest_partners(inputs: Inputs, config: CoactivationConfig) -> Outcome:
    """The largest phi of every latent with another one."""
    codes = inputs.codes(config.n_tokens).codes
    generator = inputs.generator("coactivation")
    own = _strongest(codes)
    draws = [_strongest(dealt_anew(codes, generator)) for _ in range(config.n_null)]
    q = {quantity.name: quantity for quantity in COACTIVATION_QUANTITIES}
    note = f"{len(codes):,} tokens, {len(own):,} living latents"
    numbers = (
        of_null(q["mean strongest phi"], compare(own.mean().item(), [draw.mean().item() for draw in draws]), note=note),
        of_null(
            q["share with a companion"],
            compare((own > 0.5).double().mean().item(), [(draw > 0.5).double().mean().item() for draw in draws]),
            note="phi above 0.5",
        ),
    )
    edges = shared_edges(own, draws[0])
    figure = Figure(
        "Strongest companion of each latent",
        Axis("phi with the latent that it fires with most"),
        Axis("share of latents"),
        (histogram("latents", own, edges), histogram("firings dealt anew", draws[0], edges, null=True)),
        caption="phi is the correlation of firing; 1 is two latents that fire on the same tokens.",
    )
    return Outcome(numbers, (figure,))


def _strongest(codes: SparseCodes) -> Tensor:
    found = nearest_by_coactivation(firings(codes.indices, codes.counts, n_latents=codes.d_sae), "phi", n_neighbours=1)
    return found.affinities[found.firing > 0, 0].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)


DEALT = "the firings dealt anew over the tokens"
COACTIVATION_QUANTITIES = (
    Quantity(
        "mean strongest phi",
        "How strongly a latent's firing is tied to that of its closest companion, on average.",
        "phi coefficient; Li et al. 2024, arXiv 2410.19750",
        alternative="greater",
        null=DEALT,
    ),
    Quantity(
        "share with a companion",
        "Latents whose firing another one nearly repeats: split features, or two halves of one.",
        "phi coefficient; Li et al. 2024, arXiv 2410.19750",
        alternative="greater",
        null=DEALT,
    ),
)
COACTIVATION = Measure(
    name="coactivation",
    title="Latents that fire together",
    text="Which latents fire on the same tokens, more than their rates explain.",
    needs=("dictionary", "store"),
    quantities=COACTIVATION_QUANTITIES,
    compute=strongest_partners,
    config=CoactivationConfig(),
    quick=CoactivationConfig(n_tokens=10_000),
)


@dataclass(frozen=True, kw_only=True)
class LobesConfig:
    """Settings of `lobes`."""

    n_tokens: int = 100_000
    """Tokens, whole rows of the store drawn at random."""
    block: int = 64
    """Tokens of a block of one document; latents count as firing together when they fire in the same block."""
    n_neighbours: int = 30
    """Neighbours of a latent in the graphs."""
    n_lobes: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Numbers of lobes that are tried."""
    n_strata: int = 10
    """Classes of like firing frequency, within which the null permutes."""
    n_null: int = 999
    """Permutations of the latents."""


def lobes(inputs: Inputs, config: LobesConfig) -> Outcome:
    """Clusters by firing beside clusters by cosine, and whether near atoms belong to one lobe."""
    sample = inputs.codes(config.n_tokens)
    fired = _blocks(inputs, sample, config.block)
    alive = (fired.firing > 0).nonzero().flatten()
    if len(alive) < 4 * min(config.n_lobes):
        raise ConfigError(f"dictionary must have at least {4 * min(config.n_lobes)} latents that fire, got {len(alive)}")
    atoms = inputs.chosen("dictionary").W_dec.detach().float()[alive]
    n_neighbours = min(config.n_neighbours, len(alive) - 1)
    near = coactivation_graph(nearest_by_coactivation(fired, "phi", n_neighbours=n_neighbours))[alive.numpy()][:, alive.numpy()]
    alike = cosine_graph(atoms, n_neighbours=n_neighbours)
    numbers = [k for k in config.n_lobes if k <= len(alive) // 4]
    by_firing = {k: spectral_lobes_of_graph(near, n_lobes=k, seed=inputs.seed).labels for k in numbers}
    by_cosine = {k: spectral_lobes_of_graph(alike, n_lobes=k, seed=inputs.seed).labels for k in numbers}
    strata = frequency_strata(fired.firing[alive], n_strata=min(config.n_strata, len(alive) // 4))
    options = {"n_null": config.n_null, "strata": strata}
    swept = sweep_agreement(by_firing, by_cosine, generator=inputs.generator("lobes"), **options)
    ids = atom_pairs(atoms, n_neighbours=1, max_order=1, n_bins=1).atom_ids
    best = swept.best_n_lobes
    local = compare_locality(ids, by_firing[best], generator=inputs.generator("locality"), **options)
    q = {quantity.name: quantity for quantity in LOBES_QUANTITIES}
    note = f"{fired.n_units:,} blocks, {len(alive):,} living latents"
    found = (
        of_null(
            q["agreement of firing and place"], swept.best, subject=f"{best} lobes", note=f"best of {', '.join(map(str, numbers))}; {note}"
        ),
        of_null(q["neighbours in the same lobe"], local, subject=f"{best} lobes", note=note),
        *(Number("size of a lobe", float(n), f"{best} lobes, number {i + 1}") for i, n in enumerate(_sizes(by_firing[best])[:4])),
    )
    return Outcome(found, _agreement_figure(swept))


def _blocks(inputs: Inputs, sample: CodeSample, block: int) -> Firings:
    documents = inputs.stored.document_ids().flatten()[sample.token_index].long() * (inputs.stored.n_rows + 1) + sample.row_id
    codes = sample.codes
    longest = int(torch.unique_consecutive(documents, return_counts=True)[1].max())
    return firings(codes.indices, codes.counts, n_latents=codes.d_sae, block=min(block, longest), documents=documents)


def _sizes(labels: Int[Tensor, " n"]) -> list[int]:
    return sorted(torch.bincount(labels[labels >= 0]).tolist(), reverse=True)


def _agreement_figure(swept) -> tuple[Figure, ...]:
    if len(swept.n_lobes) < 2:
        return ()
    x = tuple(swept.n_lobes.tolist())
    mean, spread = swept.agreement.null_mean, 2 * swept.agreement.null_sd
    return (
        Figure(
            "Agreement of lobes with clusters by cosine",
            Axis("number of lobes", scale="log"),
            Axis("adjusted mutual information"),
            (
                Series(
                    "permuted latents",
                    x,
                    tuple(mean.tolist()),
                    tuple((mean - spread).tolist()),
                    tuple((mean + spread).tolist()),
                    role="null",
                ),
                Series("lobes", x, tuple(swept.agreement.values.tolist())),
            ),
            caption="0 is no agreement beyond chance, 1 the same partition. The null keeps the firing rates.",
        ),
    )


PERMUTED = "latents permuted among those of like firing rate"
LOBES_QUANTITIES = (
    Quantity(
        "agreement of firing and place",
        "Whether latents that fire together also lie together: adjusted mutual information of clusters by firing and clusters by cosine.",
        "Li et al. 2024, arXiv 2410.19750",
        alternative="greater",
        null=f"{PERMUTED}, best over the same numbers of lobes",
    ),
    Quantity(
        "neighbours in the same lobe",
        "Share of latents whose nearest atom belongs to the same lobe.",
        "own definition, after Li et al. 2024, arXiv 2410.19750",
        alternative="greater",
        null=PERMUTED,
    ),
    Quantity("size of a lobe", "How many latents the largest lobes have.", "count", "latents"),
)
LOBES = Measure(
    name="lobes",
    title="Lobes",
    text="Clusters of latents that fire in the same stretches of text, and whether these are also regions of the space of atoms.",
    needs=("dictionary", "store"),
    quantities=LOBES_QUANTITIES,
    compute=lobes,
    config=LobesConfig(),
    quick=LobesConfig(n_tokens=20_000, n_lobes=(2, 4, 8), n_null=199),
)
