"""Every estimator of dimension against planted manifolds, closed forms, scikit-dimension, slow references and its invariances."""

import math
import warnings

import numpy as np
import pytest
import torch
from clouds import cube, gaussian, seeded, swiss_roll
from scipy.optimize import minimize_scalar
from universal import Measure, check

from sae.errors import ConfigError
from sae.geometry.dimension import (
    correlation_dimension,
    fukunaga_olsen,
    gride,
    gride_orders,
    linear_dimension,
    local_dimension,
    local_pca,
    log_distances,
    log_sums,
    maximum_likelihood,
    nearest_neighbours,
    pca_dimension,
    two_nn_estimates,
    unbiased_mean,
)
from sae.geometry.dimension.correlation import close_pairs
from sae.geometry.dimension.gride import gride_estimates, plateau
from sae.geometry.dimension.intervals import Estimate

N = 2000


def sphere(n, d, ambient, seed=0):
    """S^d in R^ambient."""
    points = gaussian(n, d + 1, seed)
    return points / points.norm(dim=1, keepdim=True) @ torch.linalg.qr(gaussian(ambient, d + 1, seed=98)).Q.T


PLANTED = {  # TwoNN fit, TwoNN ML, mean of (k - 1) / S_i, CorrInt, recorded at 2000 points of another generator
    "cube 2": (cube(N, 2), 2.00, 2.04, 2.06, 1.95),
    "cube 5": (cube(N, 5), 4.71, 4.72, 4.71, 4.46),
    "cube 10": (cube(N, 10), 8.60, 8.70, 8.61, 8.05),
    "cube 20": (cube(N, 20), 14.9, 14.9, 15.0, 13.5),
    "swiss roll in 50": (swiss_roll(N, 50), 1.91, 1.92, 2.06, 1.97),
    "Gaussian of rank 10 in 100": (gaussian(N, 10) @ gaussian(10, 100, seed=1), 9.88, 9.87, 9.66, 7.64),
    "sphere of dimension 4 in 20": (sphere(N, 4, 20), 3.87, 3.90, 4.19, 3.95),
}


@pytest.fixture(scope="module")
def found():
    return {name: nearest_neighbours(case[0], n_neighbours=64) for name, case in PLANTED.items()}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_manifolds_have_the_recorded_dimensions(found, name):
    _, fit, ml, mean, correlation = PLANTED[name]
    neighbours = found[name]
    # Two independent samples, each with a standard deviation near D / sqrt N; the estimates from k = 20 share points and vary as much.
    near = 3.5 * math.sqrt(2 / N)
    two_nn_ml, two_nn_fit = (value.item() for value in two_nn_estimates(log_distances(neighbours, (1, 2))))
    assert two_nn_fit == pytest.approx(fit, rel=near)
    assert two_nn_ml == pytest.approx(ml, rel=near)
    sums = log_sums(log_distances(neighbours, (20,)))
    # The recorded values average (k - 1) / S_i without the correction k - 2.
    assert unbiased_mean(sums, k=20).item() * 19 / 18 == pytest.approx(mean, rel=near)
    value = correlation_dimension(neighbours, generator=seeded(0), n_references=N).value
    assert value == pytest.approx(correlation, rel=near)


@pytest.mark.parametrize("name", PLANTED)
def test_estimates_are_those_of_scikit_dimension(found, name):
    points, neighbours = PLANTED[name][0], found[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skdim = pytest.importorskip("skdim")
        inverse = skdim.id.MLE().fit(points.numpy(), n_neighbors=20).dimension_
        mean = skdim.id.MLE(unbiased=True).fit(points.numpy(), n_neighbors=20, comb="mean")
        corr_int = skdim.id.CorrInt().fit(points.numpy()).dimension_
        lpca = skdim.id.lPCA().fit(points.numpy()).dimension_
    sums = log_sums(log_distances(neighbours, (20,)))
    assert maximum_likelihood(sums, k=20).item() == pytest.approx(inverse, rel=1e-6)
    assert unbiased_mean(sums, k=20).item() == pytest.approx(mean.dimension_, rel=1e-6)
    assert torch.allclose(local_dimension(neighbours, k=20).values, torch.from_numpy(mean.dimension_pw_), rtol=1e-5)
    assert correlation_dimension(neighbours, generator=seeded(0), n_references=N).value == pytest.approx(corr_int, rel=1e-4)
    assert linear_dimension(points).fukunaga_olsen == lpca


@pytest.mark.parametrize("n1", [1, 2, 8])
def test_gride_is_the_maximum_of_its_likelihood(n1):
    L = (gaussian(400, 1).abs() / 5).flatten()
    n2 = 2 * n1

    def minus(D):  # ln L without its constant
        middle = (n2 - n1 - 1) * torch.log(torch.expm1(D * L)).sum() if n1 > 1 else 0.0
        return -float(len(L) * math.log(D) + middle - ((n2 - 1) * D + 1) * L.sum())

    best = minimize_scalar(minus, bounds=(1e-3, 1e3), method="bounded", options={"xatol": 1e-9}).x
    for start in (None, 0.01, 1.0, 1e5):
        assert gride(L, first_order=n1, start=start) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("name", PLANTED)
def test_first_scale_of_gride_is_two_nn(found, name):
    logs = log_distances(found[name], (1, 2))
    first = gride(logs.at[2] - logs.at[1], first_order=1)
    assert first * (N - 1) / N == pytest.approx(two_nn_estimates(logs)[0].item(), rel=1e-10)


def test_gride_finds_the_dimension_its_own_law_draws_ratios_from():
    # r_n^D is a sum of exponential gaps, so r_n1^D / r_n2^D is Beta(n1, n2 - n1).
    generator = np.random.default_rng(0)
    for D, n1 in ((1.5, 1), (7.0, 4), (40.0, 16)):
        mu = generator.beta(n1, n1, size=20_000) ** (-1 / D)
        assert gride(torch.from_numpy(np.log(mu)), first_order=n1) == pytest.approx(D, rel=0.02)


def test_gride_of_cubes_falls_with_the_scale_and_noise_raises_the_smallest(found):
    def curve(neighbours):
        scales = gride_orders(neighbours.distances.shape[1])
        return gride_estimates(log_distances(neighbours, tuple(sorted({*scales, *(2 * n for n in scales)}))), scales)

    falling = curve(found["cube 10"])
    assert falling[-1] < 0.96 * falling[0]
    line = torch.cat([torch.linspace(0, 1, 4000, dtype=torch.float64)[:, None] * 50, torch.zeros(4000, 9, dtype=torch.float64)], dim=1)
    noisy = curve(nearest_neighbours(line + 0.02 * gaussian(4000, 10), n_neighbours=512))
    assert noisy[0] > 2.5
    assert noisy[-1] < 1.3


@pytest.mark.parametrize(
    ("values", "first", "last", "is_flat"),
    [
        ([9.0, 5.0, 3.0, 3.0, 3.1, 1.0], 4, 16, True),
        ([3.0, 3.0, 3.0, 3.01, 8.0], 1, 8, True),
        ([9.0, 6.0, 4.0, 3.0], 2, 8, False),
        ([2.0], 1, 1, True),
    ],
)
def test_plateau_is_the_flattest_run_of_scales(values, first, last, is_flat):
    orders = tuple(2**i for i in range(len(values)))
    run = plateau(orders, tuple(Estimate(v, v, v, v) for v in values))
    assert (run.first, run.last, run.is_flat) == (first, last, is_flat)
    inside = [v for n, v in zip(orders, values, strict=True) if first <= n <= last]
    assert run.value == pytest.approx(sum(inside) / len(inside))
    assert run.spread == pytest.approx((max(inside) - min(inside)) / run.value)


def test_likelihood_of_exponential_gaps_is_unbiased_where_it_says_so():
    # r_j^D are partial sums of exponential gaps: S_i is Gamma(k - 1, D) exactly.
    D, k, n = 3.0, 8, 40_000
    gaps = -torch.rand(n, k, generator=seeded(0), dtype=torch.float64).log()
    logs = gaps.cumsum(dim=1).log() / D
    sums = (k - 1) * logs[:, -1] - logs[:, :-1].sum(dim=1)
    assert maximum_likelihood(sums, k=k).item() == pytest.approx(D, rel=0.006)
    assert unbiased_mean(sums, k=k).item() == pytest.approx(D, rel=0.009)
    assert ((k - 1) / sums).mean().item() == pytest.approx(D * (k - 1) / (k - 2), rel=0.009)
    assert (sums.std() / sums.mean()).item() == pytest.approx(1 / math.sqrt(k - 1), rel=0.02)


def test_local_dimension_tells_a_line_from_a_cube_and_says_that_they_differ():
    line = torch.cat([torch.rand(600, 1, generator=seeded(1), dtype=torch.float64) * 300, torch.zeros(600, 4, dtype=torch.float64)], dim=1)
    cloud = torch.cat([line + 100, cube(900, 5)])
    found = local_dimension(nearest_neighbours(cloud, n_neighbours=20), k=20)
    assert found.values[:600].median() == pytest.approx(1.0, abs=0.1)
    assert found.values[600:].median() == pytest.approx(4.4, abs=0.4)
    assert found.spread > 2 * found.expected_spread
    alone = local_dimension(nearest_neighbours(cube(900, 5), n_neighbours=20), k=20)
    assert alone.spread == pytest.approx(alone.expected_spread, rel=0.2)


def test_close_pairs_are_counted_exactly_where_the_list_is_long_enough_and_where_it_is_not():
    points = gaussian(300, 4)
    neighbours = nearest_neighbours(points, n_neighbours=10)
    radii = torch.tensor([0.3, 0.8, 1.5, 9.0, 100.0], dtype=torch.float64)
    every = torch.cdist(points, points).fill_diagonal_(torch.inf)
    expected = (every[:, :, None] < radii).sum(dim=1)
    rows = torch.tensor([0, 17, 299])
    assert torch.equal(close_pairs(neighbours, torch.arange(300), radii), expected)
    assert torch.equal(close_pairs(neighbours, rows, radii, block_elements=1), expected[rows])


def test_slopes_of_the_correlation_integral_of_a_line_are_one_and_of_a_square_two():
    for d in (1, 2):
        found = correlation_dimension(nearest_neighbours(cube(1500, d), n_neighbours=20), generator=seeded(0), n_references=1500)
        inside = found.slopes[3:10]
        assert inside.median() == pytest.approx(d, rel=0.08)
        assert found.low < found.value < found.high
        assert (found.shares.diff() >= 0).all()


def test_interval_of_the_correlation_dimension_covers_its_mean_and_is_at_most_half_too_wide():
    clouds = [correlation_dimension(nearest_neighbours(cube(300, 2, seed=s), n_neighbours=20), generator=seeded(s)) for s in range(80)]
    mean = np.mean([c.value for c in clouds])
    assert 0.9 <= np.mean([c.low < mean < c.high for c in clouds]) <= 1
    half = np.mean([(c.high - c.low) / 2 for c in clouds])
    spread = 1.96 * np.std([c.value for c in clouds])
    assert 0.9 * spread < half < 1.6 * spread


def test_few_references_stand_for_all_points_and_their_interval_is_wider():
    neighbours = nearest_neighbours(cube(2000, 3), n_neighbours=20)
    every = correlation_dimension(neighbours, generator=seeded(0), n_references=2000)
    some = correlation_dimension(neighbours, generator=seeded(0), n_references=200)
    assert (some.n_references, every.n_references) == (200, 2000)
    assert some.low < every.value < some.high
    assert some.high - some.low > 1.2 * (every.high - every.low)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([1, 1, 1, 1], 0.5, 2), ([1, 1, 1, 1], 0.51, 3), ([99, 1], 0.99, 1), ([98.9, 1.1], 0.99, 2), ([3, 0, 0], 1.0, 1), ([1, 2, 7], 0.9, 2)],
)
def test_component_that_crosses_the_share_is_counted(values, share, expected):
    assert pca_dimension(torch.tensor(values, dtype=torch.float64), share=share) == expected


def test_fukunaga_olsen_counts_what_is_above_alpha_times_the_largest():
    values = torch.tensor([0.2, 10.0, 0.5, 0.6, 4.0])
    assert fukunaga_olsen(values, alpha=0.05) == 3
    assert fukunaga_olsen(values, alpha=0.01) == 5


def test_local_pca_of_a_curved_sheet_is_its_dimension_where_global_pca_is_not():
    sheet = nearest_neighbours(swiss_roll(6000, 12), n_neighbours=24)
    assert local_pca(sheet, generator=seeded(0), k=24, n_anchors=200).value == pytest.approx(2.0, abs=0.05)
    assert linear_dimension(sheet.points).pca_99 == 3
    flat = nearest_neighbours(gaussian(500, 6) @ gaussian(6, 30, seed=1), n_neighbours=100)
    exact = local_pca(flat, generator=seeded(0), k=100, n_anchors=50, alpha=1e-6)
    assert (exact.value, exact.sd, exact.n_anchors) == (6.0, 0.0, 50)


def test_local_pca_follows_its_definition():
    neighbours = nearest_neighbours(gaussian(80, 5) * torch.tensor([3.0, 2, 1, 0.5, 0.2], dtype=torch.float64), n_neighbours=9)
    points, counts = neighbours.points.numpy(), []
    for i in range(80):
        near = points[[i, *neighbours.ids[i].tolist()]]
        values = np.linalg.eigvalsh(np.cov(near.T))
        counts.append((values > 0.05 * values[-1]).sum())
    found = local_pca(neighbours, generator=seeded(0), k=9, n_anchors=100)
    assert (found.value, found.sd) == pytest.approx((np.mean(counts), np.std(counts, ddof=1)))


def of_neighbours(estimate, k=12):
    return lambda x: estimate(nearest_neighbours(x, n_neighbours=k))


def linear_numbers(x):
    found = linear_dimension(x)
    return torch.tensor([found.pca_90, found.pca_99, found.participation_ratio, found.fukunaga_olsen], dtype=torch.float64)


TURNED = {"rotation": True, "scale": True, "translation": True, "linear": False}
MEASURES = [
    Measure("TwoNN", of_neighbours(lambda found: torch.stack(two_nn_estimates(log_distances(found, (1, 2))))), **TURNED),
    Measure("GRIDE", of_neighbours(lambda found: gride_estimates(log_distances(found, (1, 2, 4)), (1, 2))), **TURNED),
    Measure(
        "maximum likelihood",
        of_neighbours(
            lambda found: torch.stack([f(log_sums(log_distances(found, (9,))), k=9) for f in (maximum_likelihood, unbiased_mean)])
        ),
        blocked=lambda x, size: torch.stack(
            [
                f(log_sums(log_distances(nearest_neighbours(x, n_neighbours=12, block_elements=size), (9,))), k=9)
                for f in (maximum_likelihood, unbiased_mean)
            ]
        ),
        **TURNED,
    ),
    Measure(
        "local dimension", of_neighbours(lambda found: local_dimension(found, k=9).values.sort().values), single_tolerance=1e-3, **TURNED
    ),
    Measure(
        "correlation dimension",
        of_neighbours(lambda found: correlation_dimension(found, generator=seeded(0), k1=4, k2=9).value),
        **TURNED,
    ),
    Measure("local PCA", of_neighbours(lambda found: local_pca(found, generator=seeded(0), k=12).value), **TURNED),
    Measure("linear dimension", linear_numbers, **TURNED),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_estimator_has_the_properties_of_its_definition(measure):
    check(measure)


GRID = torch.cartesian_prod(*[torch.arange(6.0)] * 3)
SMALL = nearest_neighbours(gaussian(60, 3), n_neighbours=10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_nn_estimates(log_distances(nearest_neighbours(GRID, n_neighbours=3), (1, 2))), "regular grid"),
        (lambda: gride(torch.zeros(50), first_order=4), "regular grid"),
        (lambda: gride(torch.ones(50), first_order=0), "first_order must be at least 1"),
        (lambda: gride(-torch.ones(50), first_order=1), "not negative"),
        (lambda: maximum_likelihood(torch.zeros(9), k=3), "no varying distance"),
        (lambda: maximum_likelihood(torch.ones(9), k=1), "k must be at least 2"),
        (lambda: unbiased_mean(torch.ones(9), k=2), "k must be at least 3"),
        (lambda: local_dimension(SMALL, k=11), "orders must be in 1..10"),
        (lambda: local_dimension(SMALL, k=2), "k must be at least 3"),
        (lambda: correlation_dimension(SMALL, generator=seeded(0)), "k2 <= 10 neighbours"),
        (lambda: correlation_dimension(nearest_neighbours(GRID, n_neighbours=4), generator=seeded(0), k1=1, k2=2), "must differ"),
        (lambda: local_pca(SMALL, generator=seeded(0), k=11), r"k must be in 2\.\.10"),
        (lambda: pca_dimension(torch.ones(3), share=0.0), "share"),
        (lambda: pca_dimension(torch.zeros(3), share=0.5), "not all zero"),
        (lambda: pca_dimension(torch.tensor([1.0, math.nan]), share=0.5), "finite"),
        (lambda: fukunaga_olsen(torch.ones(3), alpha=1.0), "alpha"),
        (lambda: linear_dimension(torch.ones(30, 4)), "vary"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
