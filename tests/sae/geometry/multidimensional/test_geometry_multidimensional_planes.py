"""Separability and the mixture index of planar clouds: closed forms, slow references, reference values, invariances, nulls."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from universal import Measure, anisotropic_cloud, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.multidimensional import (
    MixtureConfig,
    SeparabilityConfig,
    circle_mixture_index,
    compare_mixture,
    compare_separability,
    components,
    gaussian_mixture_draws,
    gaussian_mixture_index,
    mixture_index,
    regular_polygon,
    separability,
    square_axis_mixture_index,
    sweeps,
)

N = 4096


def reference_clouds():
    random = np.random.default_rng(0)

    def ring(n_classes, sd):
        at = random.uniform(0, 2 * np.pi, N) if n_classes is None else 2 * np.pi * random.integers(0, n_classes, N) / n_classes
        return np.stack([np.cos(at), np.sin(at)], 1) + sd * random.normal(size=(N, 2))

    return {
        "independent Gaussians": random.normal(size=(N, 2)),
        "circle": ring(None, 0),
        "circle with noise": ring(None, 0.05),
        "heptagon": ring(7, 0),
        "heptagon with a little noise": ring(7, 0.05),
        "heptagon with noise": ring(7, 0.1),
        "dodecagon with a little noise": ring(12, 0.05),
        "square": random.uniform(-1, 1, (N, 2)),
        "lattice": np.trunc(3 * random.normal(size=(N, 2))),
    }


GOLDEN = {
    "independent Gaussians": (0.094, 0.21),
    "circle": (0.233, 2.33),
    "circle with noise": (0.199, 1.50),
    "heptagon": (0.295, 1.95),
    "heptagon with a little noise": (0.287, 1.85),
    "heptagon with noise": (0.222, 1.46),
    "dodecagon with a little noise": (0.231, 1.54),
    "square": (0.116, 0.094),
    "lattice": (0.261, 0.044),
}


def clouds(seed, n=200):
    """A cloud that is neither Gaussian nor symmetric."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x[: n // 3, 1] = 0.5 * x[: n // 3, 0] ** 2
    return x @ torch.tensor([[1.3, 0.4], [-0.2, 0.7]], dtype=torch.float64) + 3


@pytest.mark.parametrize("name", list(GOLDEN))
def test_reference_clouds_have_the_reference_mixture_index_and_separability(name):
    points = torch.from_numpy(reference_clouds()[name])
    mixture, bits = GOLDEN[name]
    assert mixture_index(points).value == pytest.approx(mixture, abs=0.02)
    assert separability(points).value == pytest.approx(bits, abs=0.05)


def test_miller_madow_takes_most_of_the_bias_of_independent_coordinates_away():
    points = {name: torch.from_numpy(cloud) for name, cloud in reference_clouds().items()}
    assert separability(points["independent Gaussians"]).corrected == pytest.approx(0.06, abs=0.02)
    assert separability(points["square"]).corrected == pytest.approx(0.001, abs=0.01)


def test_population_values_are_those_of_large_samples():
    assert gaussian_mixture_index(0.1) == pytest.approx(0.0797, abs=5e-5)
    assert circle_mixture_index(0.1) == pytest.approx(0.21866, abs=5e-6)
    assert square_axis_mixture_index(0.1) == pytest.approx(0.1064, abs=5e-5)
    n = 200_001
    one_direction = MixtureConfig(n_angles=1, n_refined=0)
    # Quantiles in place of draws: the error is of order 1 / n, not 1 / sqrt n.
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    normal = torch.special.ndtri(levels)[:, None]
    assert mixture_index(normal, config=one_direction).value == pytest.approx(gaussian_mixture_index(0.1), abs=1e-4)
    for epsilon in (0.05, 0.1, 0.3):
        config = MixtureConfig(epsilon=epsilon, n_angles=1, n_refined=0)
        arcsine = (math.pi * (levels - 0.5)).sin()[:, None]
        assert mixture_index(arcsine, config=config).value == pytest.approx(circle_mixture_index(epsilon), abs=1e-4)
        assert mixture_index(2 * levels[:, None] - 1, config=config).value == pytest.approx(square_axis_mixture_index(epsilon), abs=1e-4)


@pytest.mark.parametrize(("n", "inside"), [(3, 2), (4, 2), (7, 2), (12, 3)])
def test_polygons_have_the_share_of_corners_that_a_strip_can_hold(n, inside):
    points = regular_polygon(n, radius=2.5).repeat(11, 1)
    assert mixture_index(points).value == pytest.approx(inside / n, abs=1e-9)


def fullest_strip_by_definition(projections, epsilon):
    """Every place at which the set of points inside can change, and the middles between them: the definition itself."""
    q, e = projections - projections.mean(), epsilon
    half = e * np.sqrt(q**2 + (1 - e**2) * (q**2).mean())
    ends = np.sort(np.concatenate([(q - half), (q + half)]) / (1 - e**2))
    offsets = -(ends[1:] + ends[:-1]) / 2
    z = q[None] + offsets[:, None]
    return (np.abs(z) < e * np.sqrt((z**2).mean(1, keepdims=True))).mean(1).max()


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.4])
def test_mixture_index_is_the_largest_share_over_all_directions_and_offsets(epsilon):
    config = MixtureConfig(epsilon=epsilon, n_angles=48, n_refined=0)
    points = clouds(1, n=60)
    white = points - points.mean(0)
    white = white @ torch.linalg.svd(white, full_matrices=False).Vh.T
    white = (white / white.norm(dim=0)).numpy()
    angles = np.arange(48) * math.pi / 48
    shares = [fullest_strip_by_definition(white @ np.array([math.cos(a), math.sin(a)]), epsilon) for a in angles]
    assert mixture_index(points, config=config).value == pytest.approx(max(shares), abs=1e-9)


def test_strip_of_the_index_holds_its_share_of_the_points():
    for seed in range(5):
        points = clouds(seed)
        found = mixture_index(points)
        z = points @ found.direction + found.offset
        inside = (z.abs() < 0.1 * z.square().mean().sqrt()).double().mean().item()
        assert inside == pytest.approx(found.value, abs=1e-12)
        assert found.direction.norm().item() == pytest.approx(1)


def test_no_strip_of_thousands_drawn_at_random_is_fuller():
    points = clouds(3)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    z = directions @ points.T
    z = z - z[torch.arange(4000), torch.randint(len(points), (4000,), generator=generator)][:, None]
    shares = (z.abs() < 0.1 * z.square().mean(1, keepdim=True).sqrt()).double().mean(1)
    assert mixture_index(points).value >= shares.max().item()


def test_a_planted_mixture_has_the_share_of_its_line_and_a_direction_across_it():
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(2000, 4, generator=generator, dtype=torch.float64)
    normal = torch.tensor([0.6, -0.8, 0.0, 0.0], dtype=torch.float64)
    points[:900] -= (points[:900] @ normal)[:, None] * normal  # 45 % lie in a hyperplane
    found = mixture_index(points, config=MixtureConfig(n_angles=180, n_restarts=6))
    assert 0.45 <= found.value < 0.52
    assert abs((found.direction @ normal).item()) > 0.99


def test_mixture_index_does_not_change_with_invertible_maps_and_separability_does():
    points, stretch = torch.from_numpy(reference_clouds()["circle with noise"]), torch.tensor([[4.0, 1.0], [0.5, 0.3]]).double()
    assert mixture_index(points @ stretch - 7).value == pytest.approx(mixture_index(points).value, abs=0.005)
    assert abs(separability(points @ stretch).value - separability(points).value) > 0.2


def test_separability_is_the_least_information_over_the_angles():
    points = clouds(2, n=500)
    config = SeparabilityConfig(bins=9, n_angles=16, base=math.e)
    x = points - points.mean(0)
    x = (x / x.square().mean().sqrt()).numpy()
    found = []
    for angle in config.angles().numpy():
        turned = x @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        numbers = np.floor((np.clip(turned, -3, 3) + 3) / 6 * 9).clip(0, 8).astype(int)
        found.append(mutual_info_score(numbers[:, 0], numbers[:, 1]))
    assert separability(points, config=config).value == pytest.approx(min(found), abs=1e-12)
    assert separability(points, config=config).angle == pytest.approx(config.angles()[np.argmin(found)].item())


def test_cluster_script_settings_are_ten_bins_of_the_range_and_a_closed_turn():
    config = SeparabilityConfig.cluster_script()
    assert (len(config.angles()), config.angles()[-1].item()) == (100, pytest.approx(2 * math.pi))
    points = clouds(4, n=400)
    found = []
    for angle in config.angles().numpy():
        turned = points.numpy() @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        p = np.histogram2d(turned[:, 0], turned[:, 1], bins=10)[0] / len(turned)
        expected = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
        found.append((p[p > 0] * np.log2(p[p > 0] / expected[p > 0])).sum())
    assert separability(points, config=config).value == pytest.approx(min(found), abs=1e-9)


def test_information_of_a_permutation_of_bins_is_the_logarithm_of_their_number():
    # Bin k of one coordinate goes with one bin of the other only: I = ln(bins).
    n_bins, order = 8, [3, 0, 6, 1, 7, 2, 5, 4]
    middles = -3 + 6 * (torch.arange(n_bins, dtype=torch.float64) + 0.5) / n_bins
    points = torch.stack([middles, middles[order]], 1).repeat(5, 1)
    information, excess = sweeps.separability_curve(points, torch.zeros(1, dtype=torch.float64), bins=n_bins, box=3.0)
    assert information.item() == pytest.approx(math.log(n_bins))
    assert excess.item() == n_bins - 2 * n_bins + 1


@pytest.mark.parametrize("box", [3.0, 0.0])
def test_torch_gives_what_the_compiled_sweeps_give(monkeypatch, box):
    points = clouds(6, n=300)
    points = points - points.mean(0)
    turn = torch.linspace(0, math.pi, 40, dtype=torch.float64)
    compiled = sweeps.separability_curve(points, turn, bins=12, box=box), sweeps.overlap_sweep(points, turn, epsilon=0.1)
    few = sweeps.overlap_sweep(points, turn[::20], epsilon=0.1)  # points enough for a sort per angle
    monkeypatch.setattr(sweeps, "compiles", lambda x: False)
    torch.testing.assert_close(compiled[0][0], sweeps.separability_curve(points, turn, bins=12, box=box)[0])
    assert torch.equal(compiled[0][1], sweeps.separability_curve(points, turn, bins=12, box=box)[1])
    assert compiled[1] == sweeps.overlap_sweep(points, turn, epsilon=0.1)
    assert few == sweeps.overlap_sweep(points, turn[::20], epsilon=0.1)


def test_the_last_intervals_of_a_direction_count(monkeypatch):
    # All points but one coincide, and the overlap is at the last of the sorted intervals.
    q = torch.cat([torch.tensor([-50.0]), torch.full((49,), 1.0), torch.linspace(1.0, 1.001, 10)]).double()[:, None]
    compiled = mixture_index(q).value
    monkeypatch.setattr(sweeps, "compiles", lambda x: False)
    assert compiled == mixture_index(q).value == pytest.approx(59 / 60)


def test_independent_coordinates_are_within_their_null_and_a_circle_is_far_above():
    generator = torch.Generator().manual_seed(8)
    points = {name: torch.from_numpy(cloud[:1500]) for name, cloud in reference_clouds().items()}
    config = SeparabilityConfig(n_angles=60)
    square = compare_separability(points["square"], n_null=39, generator=generator, config=config)
    circle = compare_separability(points["circle"], n_null=39, generator=generator, config=config)
    assert square.p_greater > 0.02
    assert circle.p_greater == 1 / 40
    assert circle.value - circle.null_mean > 1
    # The null's own bias is that of the value: far from 0 for as few points.
    assert circle.null_mean > 0.1


def test_selection_of_the_best_direction_raises_the_index_of_a_gaussian_above_its_population():
    draws = gaussian_mixture_draws(N, 2, n_null=6, generator=torch.Generator().manual_seed(0), config=MixtureConfig(n_angles=360))
    assert draws.mean().item() == pytest.approx(0.094, abs=0.004)
    assert draws.min() > gaussian_mixture_index(0.1)


def test_p_values_of_separability_are_uniform_for_independent_coordinates():
    config = SeparabilityConfig(bins=6, n_angles=8)

    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(150, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1.6])
        return compare_separability(points, n_null=9, generator=generator, config=config).p_greater

    check_calibrated(p, n_draws=150)


def test_p_values_of_the_mixture_index_are_uniform_for_gaussians():
    config = MixtureConfig(n_angles=4, n_refined=0)

    def p(seed):  # points enough that two clouds seldom have the same count: ties count against significance
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(4000, 2, generator=generator, dtype=torch.float64) @ torch.tensor([[1.0, 2.0], [0.0, 0.5]]).double()
        return compare_mixture(points, n_null=9, generator=generator, config=config).p_greater

    check_calibrated(p, n_draws=100)


def principal_separability(x):
    return separability(components(x).scores[:, :2], config=SeparabilityConfig(bins=6, n_angles=30)).value


MEASURES = [
    # A point that crosses the edge of a bin moves S by some 1 / n.
    Measure("separability", principal_separability, rotation=True, scale=True, translation=True, linear=False, single_tolerance=0.1),
    # The grid of directions stands otherwise in the cloud after a map: a count of one or two.
    Measure(
        "mixture index",
        lambda x: mixture_index(x, config=MixtureConfig(n_restarts=2, n_sweeps=2)).value,
        rotation=True,
        scale=True,
        translation=True,
        linear=True,
        cloud=anisotropic_cloud(d=2),
        tolerance=0.03,
        single_tolerance=0.03,
    ),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_measures_of_planes_have_the_properties_of_their_definitions(measure):
    check(measure)


def test_points_on_a_line_are_separable_and_their_index_is_that_of_the_line():
    t = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert separability(torch.cat([t, torch.zeros_like(t)], 1)).value == pytest.approx(0, abs=1e-12)
    assert mixture_index(torch.cat([t, 2 * t], 1)).value == pytest.approx(mixture_index(t).value, abs=1e-9)


def test_what_has_no_value_is_refused():
    same = torch.full((10, 2), 3.3)
    generator = torch.Generator().manual_seed(0)
    for call in (separability, mixture_index):
        with pytest.raises(ConfigError, match="all equal"):
            call(same)
        with pytest.raises(ConfigError, match="at least 2 rows"):
            call(torch.randn(1, 2))
    for bad in ({"bins": 0}, {"box": -1.0}, {"turn": 0.0}, {"base": 1.0}, {"n_angles": 0}):
        with pytest.raises(ConfigError, match="SeparabilityConfig"):
            SeparabilityConfig(**bad)
    for bad in ({"epsilon": 0.0}, {"epsilon": 1.0}, {"n_angles": 0}, {"n_refined": -1}, {"n_restarts": 0}):
        with pytest.raises(ConfigError, match="MixtureConfig"):
            MixtureConfig(**bad)
    with pytest.raises(ConfigError, match="n_null"):
        compare_mixture(torch.randn(10, 2, generator=generator), n_null=1, generator=generator)
    with pytest.raises(ConfigError, match="n_null"):
        gaussian_mixture_draws(10, 2, n_null=0, generator=generator)
    for measure in (circle_mixture_index, gaussian_mixture_index, square_axis_mixture_index):
        with pytest.raises(ConfigError, match="epsilon"):
            measure(1.5)
    with pytest.raises(ConfigError, match="radius"):
        regular_polygon(5, radius=0.0)
