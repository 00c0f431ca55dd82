"""Measures of activations at one site as a cloud of points: spectrum and isotropy. Nulls are isotropic clouds of as many points."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.batteries.drawing import null_band
from sae.evaluation.batteries.findings import Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Series
from sae.fingerprint import digest
from sae.geometry.layerwise.uniformity import sphere_uniformity, uniformity, wasserstein_uniformity
from sae.geometry.nulls import compare
from sae.geometry.spectrum import (
    average_cosine,
    covariance_eigenvalues,
    effective_rank,
    isoscore,
    participation_ratio,
    top_variance_share,
    wishart_eigenvalues,
)

SHOWN = 400
"""Points of a spectrum that are drawn."""


def _generator(*parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(int(digest(list(parts))[:15], 16))


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """Settings of `spectrum`."""

    n_tokens: int = 20_000
    """Tokens, drawn at random."""
    n_null: int = 99
    """Null clouds."""


STATISTICS: dict[str, Callable[[Tensor], float]] = {
    "participation ratio": participation_ratio,
    "effective rank": lambda values: effective_rank(values, of="eigenvalues"),
    "IsoScore": isoscore,
    "variance of the first component": lambda values: top_variance_share(values, 1),
}


@lru_cache(maxsize=2)
def _isotropic_spectra(n: int, d: int, n_null: int, seed: int) -> Float[Tensor, "n_null d"]:
    """Spectra of isotropic clouds; the sites of a store share them."""
    generator = _generator("isotropic spectra", n, d, seed)
    return torch.stack([wishart_eigenvalues(n, d, generator=generator) for _ in range(n_null)])


def spectrum(inputs: Inputs, config: SpectrumConfig) -> Outcome:
    """Eigenvalues of the activations' covariance beside those of isotropic points."""
    points = inputs.points(inputs.site, config.n_tokens)
    n, d = points.shape
    values = covariance_eigenvalues(points)
    draws = _isotropic_spectra(n, d, config.n_null, inputs.seed)
    note = f"{n:,} tokens of width {d}"
    numbers = tuple(
        of_null(q, compare(STATISTICS[q.name](values), [STATISTICS[q.name](draw) for draw in draws]), note=note)
        for q in SPECTRUM_QUANTITIES
    )
    return Outcome(numbers, (_figure(inputs.site, values, draws),))


def _figure(site: str, values: Float[Tensor, " d"], draws: Float[Tensor, "n_null d"]) -> Figure:
    share, null = values / values.sum(), draws / draws.sum(dim=1, keepdim=True)
    n = int(((share > 0) & (null > 0).all(dim=0)).sum())
    ranks = torch.unique(torch.logspace(0, torch.log10(torch.tensor(float(n))).item(), SHOWN).round().long().clamp(1, n))
    return Figure(
        f"Spectrum of {site}",
        Axis("principal component", scale="log"),
        Axis("share of the variance", scale="log"),
        (
            null_band("isotropic (Wishart)", ranks.tolist(), null[:, ranks - 1]),
            Series("activations", tuple(ranks.tolist()), tuple(share[ranks - 1].tolist())),
        ),
        caption="A straight line is a power law; the grey curve is what as many isotropic points of the same width give.",
    )


ISOTROPIC = "as many isotropic Gaussian points (Wishart)"
SPECTRUM_QUANTITIES = (
    Quantity(
        "participation ratio",
        "How many directions carry the variance, counting each by its share; 1 where one direction has it all.",
        "(sum l)^2 / sum l^2",
        "dimensions",
        "less",
        ISOTROPIC,
    ),
    Quantity(
        "effective rank",
        "The same by entropy: directions with little variance count for more.",
        "Roy & Vetterli 2007",
        "dimensions",
        "less",
        ISOTROPIC,
    ),
    Quantity(
        "IsoScore",
        "1 where the variance is the same in all directions, 0 on a line: (participation ratio - 1) / (width - 1).",
        "Rudman et al. 2022, arXiv 2108.07344",
        alternative="less",
        null=ISOTROPIC,
    ),
    Quantity(
        "variance of the first component",
        "Share of the variance in one direction; near 1 where a few massive coordinates dominate.",
        "PCA",
        alternative="greater",
        null=ISOTROPIC,
    ),
)
SPECTRUM = Measure(
    name="spectrum",
    title="Spectrum of activations",
    text="How many directions the activations of a site use, from the eigenvalues of their covariance. Masked tokens are left out.",
    needs=("store",),
    quantities=SPECTRUM_QUANTITIES,
    compute=spectrum,
    config=SpectrumConfig(),
    quick=SpectrumConfig(n_tokens=5000),
    each_site=True,
    curves=("participation ratio", "effective rank", "variance of the first component"),
)


@dataclass(frozen=True, kw_only=True)
class IsotropyConfig:
    """Settings of `isotropy`."""

    n_tokens: int = 2000
    """Tokens, drawn at random; all pairs of them are compared."""
    n_null: int = 99
    """Null clouds."""


ISOTROPY: dict[str, Callable[[Tensor], float]] = {
    "average cosine": average_cosine,
    "uniformity": uniformity,
    "Wasserstein uniformity": wasserstein_uniformity,
}


@lru_cache(maxsize=2)
def _uniform_clouds(n: int, d: int, n_null: int, seed: int) -> dict[str, list[float]]:
    """The statistics on uniform directions; the sites of a store share them."""
    generator = _generator("uniform clouds", n, d, seed)
    found: dict[str, list[float]] = {name: [] for name in ISOTROPY}
    for _ in range(n_null):
        rows = torch.randn(n, d, generator=generator)
        for name, statistic in ISOTROPY.items():
            found[name].append(statistic(rows))
    return found


def isotropy(inputs: Inputs, config: IsotropyConfig) -> Outcome:
    """Whether directions of activations are spread over the sphere."""
    points = inputs.points(inputs.site, config.n_tokens)
    n, d = points.shape
    draws = _uniform_clouds(n, d, config.n_null, inputs.seed)
    note = f"{n:,} tokens; uniform sphere: {sphere_uniformity(d):.3f}"
    numbers = tuple(of_null(q, compare(ISOTROPY[q.name](points), draws[q.name]), note=note) for q in ISOTROPY_QUANTITIES)
    return Outcome(numbers)


UNIFORM = "as many uniform directions"
ISOTROPY_QUANTITIES = (
    Quantity(
        "average cosine",
        "Mean cosine of two tokens' activations: near 1 where all lie in a narrow cone about their mean.",
        "Ethayarajh 2019, arXiv 1909.00512",
        alternative="greater",
        null=UNIFORM,
    ),
    Quantity(
        "uniformity",
        "ln mean exp(-2 |x - y|^2) of unit rows: near -4 on a uniform sphere, 0 where all point the same way.",
        "Wang & Isola 2020, arXiv 2005.10242",
        alternative="greater",
        null=UNIFORM,
    ),
    Quantity(
        "Wasserstein uniformity",
        "Minus the distance from a uniform sphere: 0 is uniform, -1.41 is a point; unlike the above it sees collapsed dimensions.",
        "Fang et al. 2024, arXiv 2403.00642",
        alternative="less",
        null=UNIFORM,
    ),
)
ISOTROPY_MEASURE = Measure(
    name="isotropy",
    title="Isotropy",
    text="Whether the directions of activations are spread over the sphere or crowd into a cone.",
    needs=("store",),
    quantities=ISOTROPY_QUANTITIES,
    compute=isotropy,
    config=IsotropyConfig(),
    quick=IsotropyConfig(n_tokens=1000),
    each_site=True,
    curves=("average cosine", "Wasserstein uniformity"),
)
