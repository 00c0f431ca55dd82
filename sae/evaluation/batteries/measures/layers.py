"""Measures of the sites of a store beside each other: how alike the same tokens lie at different sites."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.batteries.findings import Number, Quantity
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.batteries.sites import evenly, short_sites
from sae.evaluation.figures import Axis, Figure, HeatMap, Series
from sae.geometry.representations import (
    Cka,
    LayerComparison,
    MutualNeighbours,
    ProcrustesSimilarity,
    RepresentationMeasure,
    Rsa,
    compare_layers,
)


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Settings of `layers`."""

    n_tokens: int = 1000
    """Tokens, the same at every site; all pairs of them are compared."""
    n_tokens_of_pairs: int = 400
    """Of these, those whose dissimilarity matrices and rotations are compared."""
    n_sites: int = 12
    """Sites, evenly spaced where there are more."""
    n_neighbours: int = 10
    """Neighbours of a token."""
    n_null: int = 99
    """Permutations of the tokens."""


def layers(inputs: Inputs, config: LayersConfig) -> Outcome:
    """Similarity of every pair of sites by four measures, each with permuted tokens as null."""
    sites = evenly(inputs.sites, config.n_sites)
    points = list(inputs.aligned_points(sites, config.n_tokens).values())
    few = [each[: config.n_tokens_of_pairs] for each in points]
    names = tuple(short_sites(sites))
    numbers: list[Number] = []
    figures: list[HeatMap | Figure] = []
    curves: dict[str, LayerComparison] = {}
    for name, (measure, clouds) in _measures(config, points, few).items():
        found = compare_layers(measure, clouds, n_null=config.n_null, generator=inputs.generator(f"layers {name}"))
        curves[name] = found
        numbers += _numbers(name, found, names, len(clouds[0]))
        figures.append(_map(name, found, names))
    left_out = (
        f"{len(inputs.sites)} sites, of which {len(sites)} evenly spaced ones are compared." if len(sites) < len(inputs.sites) else ""
    )
    return Outcome(tuple(numbers), (*_next_figure(curves, names), *figures), (left_out,) if left_out else ())


def _measures(config: LayersConfig, points: list[Tensor], few: list[Tensor]) -> dict[str, tuple[RepresentationMeasure, list[Tensor]]]:
    return {
        "CKA": (Cka(), points),
        "mutual neighbours": (MutualNeighbours(k=min(config.n_neighbours, len(points[0]) - 2)), points),
        "RSA": (Rsa(), few),
        "Procrustes": (ProcrustesSimilarity(), few),
    }


def _numbers(name: str, found: LayerComparison, names: tuple[str, ...], n: int) -> list[Number]:
    off = ~torch.eye(len(names), dtype=torch.bool)
    place = int(found.values.masked_fill(~off, torch.inf).argmin())
    i, j = divmod(place, len(names))
    note = f"{n:,} tokens, {len(names)} sites"
    most = found.maximum
    return [
        Number(
            "most alike sites",
            most.value,
            f"{name}, {names[found.best[0]]} and {names[found.best[1]]}",
            most.null_mean,
            most.null_sd,
            most.n_null,
            most.p_greater,
            note,
        ),
        Number(
            "least alike sites",
            found.values[i, j].item(),
            f"{name}, {names[i]} and {names[j]}",
            found.null_mean[i, j].item(),
            found.null_sd[i, j].item(),
            found.n_null,
            found.p_greater[i, j].item(),
            note,
        ),
    ]


def _map(name: str, found: LayerComparison, names: tuple[str, ...]) -> HeatMap:
    values = found.values
    low = 0.0 if values.min() >= 0 else -1.0
    chance = found.null_mean[~torch.eye(len(names), dtype=torch.bool)]
    return HeatMap(
        f"Similarity of sites: {name}",
        Axis("site", names=names),
        Axis("site", names=names),
        tuple(tuple(row) for row in values.tolist()),
        name,
        low,
        1.0,
        f"Permuted tokens give {chance.mean():.3g} on average, and at most {chance.max():.3g} for a pair.",
    )


def _next_figure(curves: dict[str, LayerComparison], names: tuple[str, ...]) -> tuple[Figure, ...]:
    """Every measure between a site and the next, with its null."""
    if len(names) < 3:
        return ()
    places = tuple(range(len(names) - 1))
    series = []
    for name, found in curves.items():
        series.append(Series(name, places, tuple(found.values.diagonal(1).tolist())))
        series.append(Series(f"{name}, permuted", places, tuple(found.null_mean.diagonal(1).tolist()), *_ends(found), role="null"))
    steps = tuple(f"{a}–{b}" for a, b in pairwise(names))
    return (
        Figure(
            "From site to site",
            Axis("neighbouring sites", names=steps),
            Axis("similarity"),
            tuple(series),
            caption="Each measure between a site and the next one that is looked at; a dip is where the representation changes.",
        ),
    )


def _ends(found: LayerComparison) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean: Float[Tensor, " n"] = found.null_mean.diagonal(1)
    spread = 2 * found.null_sd.diagonal(1)
    return tuple((mean - spread).tolist()), tuple((mean + spread).tolist())


PERMUTED = "tokens of one site permuted"
LAYERS = Measure(
    name="layers",
    title="Similarity of sites",
    text=(
        "Whether the same tokens lie alike at different sites: linear CKA without bias, the share of nearest neighbours in common, the rank "
        "correlation of their dissimilarities, and what is left after the best rotation."
    ),
    needs=("store", "sites"),
    quantities=(
        Quantity(
            "most alike sites",
            "The largest similarity of two sites, against the largest one that permuted tokens give among all pairs.",
            "CKA: Kornblith et al., arXiv 1905.00414; neighbours: Huh et al., arXiv 2405.07987; RSA: Kriegeskorte et al. 2008; "
            "Procrustes: Williams et al., arXiv 2110.14739",
            alternative="greater",
            null=f"{PERMUTED}, largest of all pairs",
        ),
        Quantity(
            "least alike sites",
            "The smallest similarity of two sites: still above its null, the sites share structure throughout.",
            "as above",
            alternative="greater",
            null=PERMUTED,
        ),
    ),
    compute=layers,
    config=LayersConfig(),
    quick=LayersConfig(n_tokens=400, n_tokens_of_pairs=200, n_sites=8, n_null=59),
)
