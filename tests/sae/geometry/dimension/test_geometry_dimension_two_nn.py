"""Two-nearest-neighbour dimension against planted manifolds, a slow reference, scikit-dimension and invariances."""

import math
import warnings

import numpy as np
import pytest
import torch
from clouds import cube, gaussian, seeded, swiss_roll

from sae.errors import ConfigError
from sae.geometry.dimension import two_nn


def two_clusters(n, spread):
    """Two Gaussian clusters of n points each, at distance 1."""
    return torch.cat([spread * gaussian(n, 3), spread * gaussian(n, 3, seed=1) + torch.tensor([1.0, 0, 0])])


def tight_groups(n_groups, size):
    """Groups of points 10^-8 apart, at distances of order 1 from each other."""
    return gaussian(n_groups, 4).repeat_interleave(size, dim=0) + 1e-8 * gaussian(n_groups * size, 4, seed=1)


def by_hand(points, discard=0.1):
    """Both estimators from the definition, with loops."""
    x = points.numpy()
    n = len(x)
    ratios = []
    for i in range(n):
        r = sorted(math.sqrt(((x[i] - x[j]) ** 2).sum()) for j in range(n) if j != i)
        ratios.append(r[1] / r[0])
    ratios.sort()
    ml = (n - 1) / sum(math.log(m) for m in ratios)
    n_kept = int(n * (1 - discard))
    pairs = [(math.log(m), -math.log(1 - (i + 1) / n)) for i, m in enumerate(ratios[:n_kept])]
    return ml, sum(a * b for a, b in pairs) / sum(a * a for a, b in pairs)


# Recorded with another implementation at 2000 points of another generator: linear fit, maximum likelihood.
@pytest.mark.parametrize(
    ("points", "fit", "ml"),
    [
        (cube(2000, 2), 2.00, 2.04),
        (cube(2000, 5), 4.71, 4.72),
        (cube(2000, 10), 8.60, 8.70),
        (cube(2000, 20), 14.9, 14.9),
        (swiss_roll(2000, 50), 1.91, 1.92),
        (gaussian(2000, 10) @ gaussian(10, 100, seed=1), 9.88, 9.87),
    ],
    ids=["cube 2", "cube 5", "cube 10", "cube 20", "swiss roll in 50", "Gaussian of rank 10 in 100"],
)
def test_planted_manifolds_have_the_recorded_dimension(points, fit, ml):
    found = two_nn(points, generator=seeded(0), n_resamples=20)
    # Two independent samples, each with a standard deviation near D / sqrt N (a little more for the fit).
    assert found.ml.value == pytest.approx(ml, rel=3.5 * math.sqrt(2 / 2000))
    assert found.fit.value == pytest.approx(fit, rel=4 * math.sqrt(2 / 2000))
    assert found.n_points == 2000
    assert found.is_lower_bound == (max(found.ml.value, found.fit.value) > 10)


@pytest.mark.parametrize("discard", [0.1, 0.35])
@pytest.mark.parametrize(("n", "d"), [(150, 3), (30, 40)])
def test_both_estimators_follow_their_definition(n, d, discard):
    points = gaussian(n, d) + 3
    found = two_nn(points, generator=seeded(0), discard=discard, n_resamples=2)
    ml, fit = by_hand(points, discard)
    assert found.ml.value == pytest.approx(ml, rel=1e-9)
    assert found.fit.value == pytest.approx(fit, rel=1e-9)


@pytest.mark.parametrize("d", [3, 30])
def test_estimators_agree_with_scikit_dimension(d):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skdim = pytest.importorskip("skdim")
        points = gaussian(600, d)
        linear = skdim.id.TwoNN().fit(points.numpy()).dimension_
    found = two_nn(points, generator=seeded(0), n_resamples=2)
    assert found.fit.value == pytest.approx(linear, rel=1e-6)


@pytest.mark.parametrize("points", [gaussian(400, 4), tight_groups(80, 5)], ids=["one cloud", "tight groups"])
def test_halves_are_estimated_with_the_neighbours_they_really_have(points):
    found = two_nn(points, generator=seeded(3), n_resamples=3)
    generator = seeded(3)
    halves = [by_hand(points[torch.randperm(400, generator=generator)[:200]]) for _ in range(3)]
    assert (found.ml.at_half, found.fit.at_half) == pytest.approx(tuple(np.mean(halves, axis=0)), rel=1e-6)


def test_interval_has_the_width_and_the_coverage_of_repeated_sampling():
    found = [two_nn(cube(200, 2, seed=s), generator=seeded(s), n_resamples=40) for s in range(80)]
    for name in ("ml", "fit"):
        estimates = [getattr(one, name) for one in found]
        values = np.array([e.value for e in estimates])
        covered = np.mean([e.low < values.mean() < e.high for e in estimates])
        half_widths = np.array([(e.high - e.low) / 2 for e in estimates])
        assert 0.87 <= covered <= 1  # 0.95 aimed at; 80 repeats have a standard error of 0.025
        assert half_widths.mean() == pytest.approx(1.96 * values.std(), rel=0.25)


def test_wider_level_gives_a_wider_interval_around_the_same_value():
    narrow = two_nn(cube(300, 3), generator=seeded(0), level=0.5)
    wide = two_nn(cube(300, 3), generator=seeded(0), level=0.99)
    assert narrow.ml.value == wide.ml.value
    assert wide.ml.low < narrow.ml.low < narrow.ml.value < narrow.ml.high < wide.ml.high


def test_dimension_ignores_rotation_translation_scale_order_and_added_coordinates():
    points = gaussian(300, 6)
    expected = two_nn(points, generator=seeded(0), n_resamples=2)
    turn = torch.linalg.qr(gaussian(6, 6, seed=1)).Q
    padded = torch.cat([points, torch.full((300, 5), 3.0, dtype=torch.float64)], dim=1)
    for other in (points @ turn, points + 50, points * 1e-6, points * 1e-200, points * 1e200, points.flip(0), padded):
        found = two_nn(other, generator=seeded(0), n_resamples=2)
        assert found.ml.value == pytest.approx(expected.ml.value, rel=1e-7)
        assert found.fit.value == pytest.approx(expected.fit.value, rel=1e-7)


def test_blocks_change_nothing():
    points = gaussian(120, 5)
    whole = two_nn(points, generator=seeded(0), n_resamples=5)
    blocked = two_nn(points, generator=seeded(0), n_resamples=5, block_elements=1000)
    assert blocked.ml == pytest.approx(whole.ml, rel=1e-9)


def test_duplicated_points_are_merged_and_counted():
    points = gaussian(200, 4)
    once = two_nn(points, generator=seeded(0), n_resamples=5)
    twice = two_nn(torch.cat([points, points[:70], points[:10]]), generator=seeded(0), n_resamples=5)
    assert (twice.n_points, twice.n_duplicates) == (200, 80)
    assert twice.ml == once.ml
    assert twice.fit == once.fit


# At 10^-5 the matrix product still finds the neighbours but has lost half the digits of their distances; at 10^-9 it sees zeros.
@pytest.mark.parametrize(("spread", "tolerance"), [(1e-5, 1e-8), (1e-9, 1e-4)])
def test_tiny_distances_far_from_the_mean_keep_their_digits(spread, tolerance):
    clusters = two_clusters(150, spread)
    found = two_nn(clusters, generator=seeded(0), n_resamples=2)
    assert (found.ml.value, found.fit.value) == pytest.approx(by_hand(clusters), rel=tolerance)


def test_estimate_that_still_grows_with_the_number_of_points_shows_it():
    found = two_nn(gaussian(1500, 500), generator=seeded(0), n_resamples=400)
    for estimate in (found.ml, found.fit):
        middle = (estimate.low + estimate.high) / 2
        assert estimate.at_half < 0.98 * estimate.value
        assert abs(middle - estimate.value) < 0.3 * abs(middle - estimate.at_half)  # the interval is about all points, not about the halves
    assert found.is_lower_bound


def test_same_seed_gives_the_same_interval():
    points = gaussian(100, 3)
    assert two_nn(points, generator=seeded(4)) == two_nn(points, generator=seeded(4))
    assert two_nn(points, generator=seeded(4)).ml.low != two_nn(points, generator=seeded(5)).ml.low


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_are_measured_in_float64(dtype):
    points = gaussian(200, 4).to(dtype)
    narrow = two_nn(points, generator=seeded(0), n_resamples=2)
    assert narrow == two_nn(points.double(), generator=seeded(0), n_resamples=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_nn(gaussian(19, 3), generator=seeded(0)), "at least 20 distinct rows, got 19 among 19"),
        (lambda: two_nn(torch.ones(50, 3), generator=seeded(0)), "got 1 among 50"),
        (lambda: two_nn(torch.full((50, 3), math.nan), generator=seeded(0)), "finite"),
        (lambda: two_nn(gaussian(50, 3), generator=seeded(0), discard=0.0), "discard"),
        (lambda: two_nn(gaussian(50, 3), generator=seeded(0), level=1.0), "level"),
        (lambda: two_nn(gaussian(50, 3), generator=seeded(0), n_resamples=1), "n_resamples"),
        (
            lambda: two_nn(torch.cat([gaussian(50, 3), torch.eye(2, 3, dtype=torch.float64) * 1e-200]), generator=seeded(0)),
            "distinct rows at distance 0",
        ),
        (lambda: two_nn(torch.cartesian_prod(*[torch.arange(6.0)] * 3), generator=seeded(0)), "regular grid"),
        (lambda: two_nn(torch.cartesian_prod(*[torch.arange(6.0).double() / 10] * 3), generator=seeded(0)), "regular grid"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
