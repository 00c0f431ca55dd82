"""Measures of activations at one site as a cloud of points: spectrum and isotropy, beside isotropic clouds; and sparseness, beside Gaussian ones."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.evaluation.batteries.drawing import null_band
from sae.evaluation.batteries.findings import Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Rule, Series
from sae.fingerprint import digest
from sae.geometry.densities import row_sparseness
from sae.geometry.layerwise.uniformity import sphere_uniformity, uniformity, wasserstein_uniformity
from sae.geometry.nulls import compare
from sae.geometry.sparsity import gaussian_like
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


@dataclass(frozen=True, kw_only=True)
class SparsenessConfig:
    """Settings of `sparseness`."""

    n_tokens: int = 1000
    """Tokens, drawn at random."""
    n_null: int = 39
    """Null clouds."""


def sparseness_of_activations(inputs: Inputs, config: SparsenessConfig) -> Outcome:
    """How unequal the coordinates of a token are, and the values of a coordinate over the tokens, beside Gaussian points of the same covariance."""
    points = inputs.points(inputs.site, config.n_tokens).double()
    if len(points) < 4:
        raise ConfigError(f"site must have at least 4 tokens that are not masked, got {len(points)} in {inputs.site}")
    constant = points.amax(dim=0) == points.amin(dim=0)
    if bool(constant.all()):
        raise ConfigError(f"site must have a coordinate that varies, got none over {len(points)} tokens in {inputs.site}")
    points = points[:, ~constant]
    values, kurtosis = _unequal(points)
    generator = inputs.generator(f"Gaussian points of {inputs.site}")
    draws = [_unequal(gaussian_like(points, len(points), generator=generator)) for _ in range(config.n_null)]
    note = f"{len(points):,} tokens of width {points.shape[1]}" + (
        f"; {int(constant.sum())} constant coordinates left out" if constant.any() else ""
    )
    numbers = tuple(of_null(q, compare(values[q.name], [found[q.name] for found, _ in draws]), note=note) for q in SPARSENESS_QUANTITIES)
    return Outcome(numbers, (_kurtosis_figure(inputs.site, kurtosis, torch.stack([each for _, each in draws])),))


def _unequal(points: Float[Tensor, "n d"]) -> tuple[dict[str, float], Float[Tensor, " d"]]:
    """The statistics, and the kurtosis of every coordinate, descending."""
    of_token, of_coordinate = row_sparseness(points[points.abs().amax(dim=1) > 0]), row_sparseness(points.T)
    kurtosis = of_coordinate.kurtosis.nan_to_num(1.0).sort(descending=True).values
    found = {
        "Gini of a token": of_token.gini.mean(),
        "Hoyer of a token": of_token.hoyer.mean(),
        "Gini of a coordinate": of_coordinate.gini.median(),
        "kurtosis of a coordinate": kurtosis.median(),
        "largest kurtosis": kurtosis[0],
    }
    return {name: value.item() for name, value in found.items()}, kurtosis


def _kurtosis_figure(site: str, values: Float[Tensor, " d"], draws: Float[Tensor, "n_null d"]) -> Figure:
    ranks = torch.unique(
        torch.logspace(0, torch.log10(torch.tensor(float(len(values)))).item(), SHOWN).round().long().clamp(1, len(values))
    )
    return Figure(
        f"Kurtosis of the coordinates of {site}",
        Axis("coordinate, by rank", scale="log"),
        Axis("kurtosis", scale="log"),
        (
            null_band("Gaussian, same covariance", ranks.tolist(), draws[:, ranks - 1]),
            Series("activations", tuple(ranks.tolist()), tuple(values[ranks - 1].tolist())),
        ),
        (Rule("y", 3, "Gaussian"),),
        "Coordinates on the left are small on most tokens and large on few.",
    )


GAUSSIAN = "as many Gaussian points of the same mean and covariance"
SPARSENESS_QUANTITIES = (
    Quantity(
        "Gini of a token",
        "How unequal the magnitudes of a token's coordinates are, mean over tokens: 0 where all are equal, 0.41 where they are independent and "
        "Gaussian, 1 where one has it all.",
        "Gini 1912; Hurley & Rickard 2009, arXiv 0811.4706",
        alternative="greater",
        null=GAUSSIAN,
    ),
    Quantity(
        "Hoyer of a token",
        "The same by the ratio of the l1 and l2 norms, for which the largest coordinates count for more: 0 equal, 0.2 Gaussian, 1 one has it all.",
        "Hoyer 2004",
        alternative="greater",
        null=GAUSSIAN,
    ),
    Quantity(
        "Gini of a coordinate",
        "How unequal the magnitudes of a coordinate are over the tokens, in the middle coordinate: near 1 where it speaks on few tokens only.",
        "Gini 1912; Hurley & Rickard 2009, arXiv 0811.4706",
        alternative="greater",
        null=GAUSSIAN,
    ),
    Quantity(
        "kurtosis of a coordinate",
        "Tails of the middle coordinate over the tokens: 3 for a Gaussian, more where few tokens are far out: coordinates that mean something.",
        "fourth standardised moment",
        alternative="greater",
        null=GAUSSIAN,
    ),
    Quantity(
        "largest kurtosis",
        "The same of the coordinate with the heaviest tails: very large where a coordinate is massive on a few tokens.",
        "fourth standardised moment",
        alternative="greater",
        null=f"{GAUSSIAN}, the largest of their coordinates",
    ),
)
SPARSENESS = Measure(
    name="sparseness",
    title="Sparseness of activations",
    text=(
        "Whether activations are sparse as they are, in the model's own coordinates: how unequal the coordinates of a token are, and how heavy the tails "
        "of a coordinate. A rotation of the space would change these numbers; Gaussian points have as little sparseness in any coordinates."
    ),
    needs=("store",),
    quantities=SPARSENESS_QUANTITIES,
    compute=sparseness_of_activations,
    config=SparsenessConfig(),
    quick=SparsenessConfig(n_tokens=400, n_null=19),
    each_site=True,
    curves=("Gini of a token", "kurtosis of a coordinate", "largest kurtosis"),
)
