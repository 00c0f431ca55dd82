"""Intrinsic dimension of the activations at a site: every estimator, over scales, and beside Gaussian clouds of the same covariance."""

from dataclasses import dataclass

from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Series
from sae.geometry.dimension import (
    CorrelationDimension,
    DimensionBattery,
    DimensionConfig,
    Estimate,
    NonlinearComparison,
    battery,
    compare_nonlinear,
)


@dataclass(frozen=True, kw_only=True)
class DimensionsConfig:
    """Settings of `dimension`."""

    n_tokens: int = 10_000
    """Tokens, drawn at random."""
    n_neighbours: int = 128
    """Neighbours found per token."""
    n_resamples: int = 100
    """Random halves behind the intervals."""
    n_compared: int = 2000
    """Tokens compared with Gaussian clouds, and points of each of these."""
    n_null: int = 39
    """Gaussian clouds."""


def dimension(inputs: Inputs, config: DimensionsConfig) -> Outcome:
    """All estimators, GRIDE over scales, and the comparison with Gaussian clouds."""
    points = inputs.points(inputs.site, config.n_tokens)
    generator = inputs.generator(f"dimension {inputs.site}")
    settings = DimensionConfig(n_neighbours=min(config.n_neighbours, max(8, len(points) // 4)), n_resamples=config.n_resamples)
    if settings.n_neighbours < 3 * settings.k:
        settings = DimensionConfig(n_neighbours=settings.n_neighbours, n_resamples=config.n_resamples, k=max(3, settings.n_neighbours // 3))
    found = battery(points, generator=generator, config=settings)
    compared = compare_nonlinear(points, generator=generator, n_null=config.n_null, max_points=config.n_compared)
    q = {quantity.name: quantity for quantity in QUANTITIES}
    own = f"{found.n_points:,} tokens" + (f", {found.n_duplicates:,} duplicates left out" if found.n_duplicates else "")
    few = f"{compared.n_points:,} tokens, as in each Gaussian cloud" + ("; a lower bound" if compared.is_lower_bound else "")
    plateau = found.gride.plateau
    numbers = (
        of_null(q["TwoNN"], compared.two_nn_ml, note=few),
        of_null(q["maximum likelihood"], compared.maximum_likelihood, note=few),
        Number(
            "TwoNN of more tokens",
            found.two_nn_ml.value,
            note=f"{own}; {_interval(found.two_nn_ml)}; at half of them {found.two_nn_ml.at_half:.3g}",
        ),
        Number(
            "GRIDE",
            plateau.value,
            note=f"{own}; scales {plateau.first} to {plateau.last}, {'flat' if plateau.is_flat else 'no plateau'}, spread {plateau.spread:.0%}",
        ),
        Number("correlation dimension", found.correlation.value, note=f"{own}; {_interval(found.correlation)}"),
        Number(
            "local PCA", found.local_pca.value, note=f"{own}; sd {found.local_pca.sd:.2g} over {found.local_pca.n_anchors} neighbourhoods"
        ),
        Number("linear dimension", float(found.linear.pca_99), note=own),
    )
    return Outcome(numbers, (_scales_figure(inputs.site, found, compared), _estimators_figure(inputs.site, found)))


def _interval(estimate: Estimate | CorrelationDimension) -> str:
    return f"95 % interval {estimate.low:.3g} to {estimate.high:.3g}"


def _scales_figure(site: str, found: DimensionBattery, compared: NonlinearComparison) -> Figure:
    """GRIDE over scales with intervals; of fewer points with its null."""
    curve = compared.gride
    mean, spread = curve.null_mean.tolist(), (2 * curve.null_sd).tolist()
    low, high = (tuple(max(m + sign * s, 0.0) for m, s in zip(mean, spread, strict=True)) for sign in (-1, 1))
    orders = tuple(compared.first_orders)
    estimates = found.gride.estimates
    return Figure(
        f"Dimension over scales, {site}",
        Axis("neighbour, n1 (ratios of neighbour 2 n1 to n1)", scale="log"),
        Axis("GRIDE dimension"),
        (
            Series(f"Gaussian, {compared.n_points:,}", orders, tuple(mean), low, high, role="null"),
            Series(f"tokens, {compared.n_points:,}", orders, tuple(curve.values.tolist())),
            Series(
                f"tokens, {found.n_points:,}",
                tuple(found.gride.first_orders),
                tuple(e.value for e in estimates),
                tuple(e.low for e in estimates),
                tuple(e.high for e in estimates),
            ),
        ),
        caption="A plateau is a dimension; below the grey band the cloud is curved or clustered, and not only stretched.",
    )


def _estimators_figure(site: str, found: DimensionBattery) -> Figure:
    names = ("TwoNN ML", "TwoNN fit", "ML", "ML unbiased", "CorrInt")
    estimates = (found.two_nn_ml, found.two_nn_fit, found.maximum_likelihood, found.unbiased_mean, found.correlation)
    return Figure(
        f"Estimators, {site}",
        Axis("estimator", names=names),
        Axis("dimension"),
        (
            Series(
                "estimates",
                tuple(range(len(names))),
                tuple(e.value for e in estimates),
                tuple(e.low for e in estimates),
                tuple(e.high for e in estimates),
                mark="points",
                labels=names,
            ),
        ),
        caption=f"With 95 % intervals, {found.n_points:,} tokens. Above about 10 every one is a lower bound.",
    )


GAUSSIAN = "Gaussian clouds of the same covariance and number of points"
QUANTITIES = (
    Quantity(
        "TwoNN",
        "How many coordinates the cloud needs locally, from the two nearest neighbours. Below its null: curved or clustered, not only stretched.",
        "Facco et al. 2017, arXiv 1803.06992; comparison: Cheng et al., arXiv 2410.01444",
        "dimensions",
        "less",
        GAUSSIAN,
    ),
    Quantity(
        "maximum likelihood",
        "The same from 20 neighbours, so at a larger scale.",
        "Levina & Bickel 2005; MacKay & Ghahramani 2005",
        "dimensions",
        "less",
        GAUSSIAN,
    ),
    Quantity(
        "TwoNN of more tokens",
        "TwoNN again on more tokens: where it is larger, the estimate still grows with the number of points, and is a lower bound.",
        "Facco et al. 2017, arXiv 1803.06992",
        "dimensions",
    ),
    Quantity("GRIDE", "The flattest stretch of the dimension over scales.", "Denti et al. 2022, arXiv 2104.13832", "dimensions"),
    Quantity(
        "correlation dimension", "How the number of pairs within a distance grows with it.", "Grassberger & Procaccia 1983", "dimensions"
    ),
    Quantity("local PCA", "Directions that carry variance within a neighbourhood, on average.", "Fukunaga & Olsen 1971", "dimensions"),
    Quantity(
        "linear dimension", "Principal components that hold 99 % of the variance: what a flat subspace would need.", "PCA", "dimensions"
    ),
)
DIMENSION = Measure(
    name="dimension",
    title="Intrinsic dimension",
    text=(
        "How many dimensions the activations of a site have where one looks closely. Estimates above about 10 are lower bounds at any number of tokens "
        "one can afford: compare sites at the same number."
    ),
    needs=("store",),
    quantities=QUANTITIES,
    compute=dimension,
    config=DimensionsConfig(),
    quick=DimensionsConfig(n_tokens=2000, n_resamples=30, n_compared=1000),
    each_site=True,
    curves=("TwoNN", "TwoNN of more tokens", "GRIDE", "linear dimension"),
)
