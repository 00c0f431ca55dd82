"""The battery: one search for neighbours, the same numbers as each estimator alone, honest intervals; and clouds against their Gaussians."""

import math

import numpy as np
import pytest
import torch
from universal import check_calibrated

from sae.errors import ConfigError
from sae.geometry.dimension import (
    DimensionConfig,
    battery,
    battery_of,
    compare_nonlinear,
    correlation_dimension,
    gride,
    linear_dimension,
    local_dimension,
    nearest_neighbours,
    two_nn,
)

QUICK = DimensionConfig(n_resamples=10, n_anchors=30)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def cube(n, d, seed=0):
    return torch.rand(n, d, generator=seeded(seed), dtype=torch.float64)


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def curved_sheet(n, ambient=60, waves=30, seed=0):
    """Two coordinates bent through random sines into R^ambient: many linear dimensions, two nonlinear ones."""
    frequencies = 2 * gaussian(2, waves, seed=5)
    return torch.sin(cube(n, 2, seed) * 3 @ frequencies + gaussian(1, waves, seed=6)) @ gaussian(waves, ambient, seed=7)


def test_battery_gives_what_each_estimator_gives_alone():
    points = torch.cat([cube(700, 3), cube(700, 3)[:40]])
    found = battery(points, generator=seeded(0), config=QUICK)
    neighbours = nearest_neighbours(points, n_neighbours=128)
    alone = two_nn(points, generator=seeded(0), n_resamples=2)
    assert (found.n_points, found.n_duplicates, found.width) == (700, 40, 3)
    assert found.two_nn_ml.value == pytest.approx(alone.ml.value, rel=1e-12)
    assert found.two_nn_fit.value == pytest.approx(alone.fit.value, rel=1e-12)
    distances = neighbours.distances.numpy()
    for n1, estimate, radius in zip(found.gride.first_orders, found.gride.estimates, found.gride.radii, strict=True):
        ratios = torch.from_numpy(np.log(distances[:, 2 * n1 - 1] / distances[:, n1 - 1]))
        assert estimate.value == pytest.approx(gride(ratios, first_order=n1), rel=1e-8)
        assert radius == pytest.approx(np.exp(np.log(distances[:, 2 * n1 - 1]).mean()))
    sums = np.log(distances[:, 19:20] / distances[:, :19]).sum(axis=1)
    assert found.maximum_likelihood.value == pytest.approx(700 * 19 / sums.sum())
    assert found.unbiased_mean.value == pytest.approx((18 / sums).mean())
    assert found.correlation.value == pytest.approx(correlation_dimension(neighbours, generator=seeded(0)).value)
    assert torch.allclose(found.local.values, local_dimension(neighbours, k=20).values)
    assert found.linear.participation_ratio == pytest.approx(linear_dimension(points[:700]).participation_ratio)
    assert torch.equal(points[found.row_ids], neighbours.points)
    assert not found.is_lower_bound


def test_battery_searches_for_neighbours_once(monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return nearest_neighbours(*arguments, **options)

    import sys

    from sae.geometry.dimension import correlation, intervals, likelihood, linear

    package = sys.modules[battery.__module__]
    monkeypatch.setattr(package, "nearest_neighbours", counted)
    battery(cube(300, 3), generator=seeded(0), config=QUICK)
    assert calls == [1]
    assert not any(hasattr(module, "nearest_neighbours") for module in (correlation, intervals, likelihood, linear))


def test_intervals_of_every_estimator_cover_what_repeated_sampling_gives():
    config = DimensionConfig(n_resamples=40, n_neighbours=80, n_anchors=2)
    clouds = [battery(cube(260, 2, seed=s), generator=seeded(s), config=config) for s in range(60)]
    columns = {
        "two_nn_ml": [c.two_nn_ml for c in clouds],
        "maximum_likelihood": [c.maximum_likelihood for c in clouds],
        "unbiased_mean": [c.unbiased_mean for c in clouds],
        "gride 2": [c.gride.estimates[1] for c in clouds],
        "gride 8": [c.gride.estimates[3] for c in clouds],
    }
    for name, estimates in columns.items():
        values = np.array([e.value for e in estimates])
        covered = np.mean([e.low < values.mean() < e.high for e in estimates])
        half = np.mean([(e.high - e.low) / 2 for e in estimates])
        assert 0.84 <= covered <= 1, name  # 0.95 aimed at; 60 repeats have a standard error of 0.028
        assert half == pytest.approx(1.96 * values.std(), rel=0.35), name


def test_bootstrap_with_replacement_would_have_destroyed_the_estimate():
    points = cube(1000, 2)
    twins = points[torch.randint(1000, (1000,), generator=seeded(1))]
    found = nearest_neighbours(twins, n_neighbours=2)
    assert found.n_duplicates > 330  # 1/e of the draws are repeats: distance 0, or points lost
    jittered = twins + 1e-9 * gaussian(1000, 2, seed=2)
    assert two_nn(jittered, generator=seeded(0), n_resamples=2).ml.value < 0.5  # the truth is 2


def test_decimation_looks_at_the_same_cloud_from_further_away():
    found = battery(cube(2000, 2), generator=seeded(0), config=QUICK)
    assert [part.n_points for part in found.decimation] == [2000, 1000, 500]
    assert found.decimation[0].ml == pytest.approx(found.two_nn_ml.value)
    assert found.decimation[1].ml == pytest.approx(found.two_nn_ml.at_half, rel=0.05)
    ratios = [b.radius / a.radius for a, b in zip(found.decimation, found.decimation[1:], strict=False)]
    assert ratios == pytest.approx([math.sqrt(2)] * 2, rel=0.03)  # half as dense in two dimensions
    noisy = torch.cat([cube(3000, 1) * 60, torch.zeros(3000, 9, dtype=torch.float64)], dim=1) + 0.02 * gaussian(3000, 10)
    parts = battery(noisy, generator=seeded(0), config=QUICK).decimation
    assert parts[0].ml > 1.2 * parts[2].ml


def test_same_seed_gives_the_same_battery_and_another_only_other_intervals():
    neighbours = nearest_neighbours(cube(200, 3), n_neighbours=128)
    one, same, other = (battery_of(neighbours, generator=seeded(s), config=QUICK) for s in (1, 1, 2))
    assert one.two_nn_ml == same.two_nn_ml
    assert one.gride == same.gride
    assert one.two_nn_ml.value == other.two_nn_ml.value
    assert one.two_nn_ml.low != other.two_nn_ml.low


@pytest.mark.parametrize("n", [20, 21, 45])
@pytest.mark.parametrize("d", [1, 3, 200])
def test_smallest_clouds_have_a_battery(n, d):
    found = battery(gaussian(n, d), generator=seeded(0), config=QUICK)
    for estimate in (found.two_nn_ml, found.two_nn_fit, found.maximum_likelihood, found.unbiased_mean, *found.gride.estimates):
        assert 0 <= estimate.low <= estimate.high
        assert math.isfinite(estimate.value)
    assert found.is_lower_bound == (d == 200)


def test_half_precision_constant_columns_and_wide_clouds_are_measured():
    points = torch.cat([gaussian(150, 300), torch.ones(150, 2, dtype=torch.float64)], dim=1).half()
    found = battery(points, generator=seeded(0), config=QUICK)
    assert found.linear.pca_99 <= 149
    assert found.two_nn_ml.value > 20
    assert found.is_lower_bound


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: battery(cube(19, 2), generator=seeded(0)), "at least 20 distinct rows, got 19"),
        (lambda: battery(torch.ones(50, 2), generator=seeded(0)), "got 1 among 50"),
        (lambda: battery(torch.full((50, 2), math.inf), generator=seeded(0)), "finite"),
        (lambda: battery(torch.cartesian_prod(*[torch.arange(6.0)] * 3), generator=seeded(0)), "regular grid"),
        (lambda: battery(cube(300, 2), generator=seeded(0), config=DimensionConfig(k=60)), r"k must be in 3\.\.42"),
        (lambda: battery(cube(300, 2), generator=seeded(0), config=DimensionConfig(discard=0.0)), "discard"),
        (lambda: battery(cube(300, 2), generator=seeded(0), config=DimensionConfig(level=1.0)), "level"),
        (lambda: battery(cube(300, 2), generator=seeded(0), config=DimensionConfig(n_resamples=1)), "n_resamples"),
        (lambda: compare_nonlinear(cube(300, 2), generator=seeded(0), n_null=1), "n_null must be at least 2"),
        (lambda: compare_nonlinear(cube(300, 2), generator=seeded(0), k=65), "k in 2..n_neighbours"),
        (lambda: compare_nonlinear(cube(19, 2), generator=seeded(0)), "at least 20 rows"),
        (lambda: compare_nonlinear(torch.full((50, 2), math.nan), generator=seeded(0)), "finite"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_curved_sheet_stands_out_from_the_gaussian_of_its_spectrum():
    found = compare_nonlinear(curved_sheet(1500), generator=seeded(0), n_null=9)
    assert found.linear.pca_99 > 12
    for statistic in (found.two_nn_ml, found.two_nn_fit, found.maximum_likelihood):
        assert statistic.value < 3.5
        assert statistic.null_mean > 8
        assert statistic.p_less == pytest.approx(0.1)
        assert statistic.p_greater == 1.0
    assert (found.gride.p_less <= 0.1 + 1e-12).all()
    assert found.n_points == 1500


def test_gaussian_cloud_does_not_stand_out_and_its_null_has_the_bias_of_the_estimator():
    spectrum = torch.linspace(1, 0.02, 80, dtype=torch.float64).square()
    found = compare_nonlinear(gaussian(1200, 80) * spectrum, generator=seeded(3), n_null=19)
    assert found.linear.pca_99 > found.two_nn_ml.value > 10
    assert found.is_lower_bound
    for statistic in (found.two_nn_ml, found.two_nn_fit, found.maximum_likelihood):
        assert abs(statistic.value - statistic.null_mean) < 3.5 * statistic.null_sd


def test_larger_clouds_are_thinned_for_value_and_null_alike():
    found = compare_nonlinear(gaussian(900, 4), generator=seeded(0), n_null=2, max_points=150)
    assert found.n_points == 150
    with_twins = torch.cat([gaussian(100, 4)] * 3)
    assert compare_nonlinear(with_twins, generator=seeded(0), n_null=2).n_points == 100


def test_p_values_of_gaussian_clouds_are_uniform():
    def p_value(seed):
        found = compare_nonlinear(
            gaussian(100, 3, seed=seed) * torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64),
            generator=seeded(10_000 + seed), n_null=9, k=5, n_neighbours=8,
        )  # fmt: skip
        return found.two_nn_ml.p_less

    check_calibrated(p_value, n_draws=120)
