"""The galaxy scale against planted spectra, closed-form entropies and the reference's measured nulls."""

import math

import numpy as np
import pytest
import torch
from universal import Measure, anisotropic_cloud, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.galaxy import (
    GalaxyConfig,
    compare_negentropy,
    eigenvalue_slope,
    galaxy,
    gaussian_entropy,
    log_volume,
    nearest_neighbour_entropy,
    negentropy,
    principal_coordinates,
)
from sae.geometry.spectrum import covariance_eigenvalues, wishart_eigenvalues


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def power_law(d, exponent):
    return torch.arange(1, d + 1, dtype=torch.float64) ** -exponent


@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.47, 1.0, 2.5])
def test_slope_of_a_power_law_is_its_exponent(exponent):
    values = 3e-4 * power_law(300, exponent)
    assert eigenvalue_slope(values) == pytest.approx(exponent, abs=1e-12)
    assert eigenvalue_slope(values[torch.randperm(300, generator=seeded(0))], first=2, last=300) == pytest.approx(exponent, abs=1e-12)


def test_slope_and_volume_are_of_ranks_11_to_150():
    values = gaussian(200, seed=1).exp().sort(descending=True).values
    x, y = np.log10(np.arange(1, 201))[10:150], np.log10(values.numpy())[10:150]
    assert eigenvalue_slope(values) == pytest.approx(-np.polyfit(x, y, 1)[0], rel=1e-9)
    assert log_volume(values) == pytest.approx(np.log(values.numpy())[10:150].sum(), rel=1e-9)
    assert log_volume(5 * values) == pytest.approx(log_volume(values) + 140 * math.log(5))


@pytest.mark.parametrize(("n", "d", "expected"), [(8192, 512, 0.108), (16384, 768, 0.070), (65536, 2304, 0.0275)])
def test_isotropic_atoms_have_the_slope_of_a_wishart_matrix(n, d, expected):
    found = np.mean([eigenvalue_slope(wishart_eigenvalues(n, d, generator=seeded(s))) for s in range(3)])
    assert found == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("exponent", [0.25, 0.47, 1.0])
def test_planted_spectra_are_recovered_from_unit_atoms(exponent):
    atoms = gaussian(8192, 512) * power_law(512, exponent).sqrt()
    settings = GalaxyConfig(n_resamples=2, n_null=9, n_entropy_null=2, n_entropy_atoms=200)
    found = galaxy(atoms, settings, l0=70.0, generator=seeded(0))
    assert found.slope.value == pytest.approx(exponent, abs=0.03)
    assert found.slope.p_greater == 0.1
    assert found.l0 == 70 and (found.n_atoms, found.width) == (8192, 512)
    assert found.volume.value == pytest.approx(log_volume(covariance_eigenvalues(atoms / atoms.norm(dim=1, keepdim=True))))


def test_interval_of_the_slope_covers_what_other_samples_give():
    scales = power_law(60, 0.6).sqrt()
    settings = GalaxyConfig(first=5, last=40, n_resamples=40, n_null=5, n_entropy_null=2, n_entropy_atoms=100)
    found = galaxy(gaussian(1000, 60) * scales, settings, generator=seeded(0))
    others = [
        eigenvalue_slope(covariance_eigenvalues(torch.nn.functional.normalize(gaussian(1000, 60, seed=s) * scales)), first=5, last=40)
        for s in range(1, 40)
    ]
    assert found.slope_low < found.slope.value < found.slope_high
    assert found.slope_high - found.slope_low == pytest.approx(3.9 * np.std(others), rel=0.5)
    assert found.l0 is None


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 3])
def test_entropy_of_gaussian_and_uniform_points_is_the_closed_form(d, k):
    scales = torch.linspace(0.5, 2, d, dtype=torch.float64)
    expected = gaussian_entropy(scales.square())
    assert expected == pytest.approx(d / 2 * (1 + math.log(2 * math.pi)) + scales.log().sum().item())
    found = np.mean([nearest_neighbour_entropy(gaussian(2000, d, seed=s) * scales, k=k) for s in range(3)])
    assert found == pytest.approx(expected, abs=0.06)
    uniform = torch.rand(3000, 2, generator=seeded(0), dtype=torch.float64) * torch.tensor([2.0, 0.25])
    assert nearest_neighbour_entropy(uniform, k=k) == pytest.approx(math.log(0.5), abs=0.1)


def test_entropy_of_points_follows_its_formula():
    from scipy.special import digamma, gammaln

    points = gaussian(50, 3)
    distances = np.sort(np.linalg.norm(points.numpy()[:, None] - points.numpy(), axis=2), axis=1)[:, 4]
    volume = 1.5 * math.log(math.pi) - gammaln(2.5)
    expected = digamma(50) - digamma(4) + volume + 3 * np.log(distances).mean()
    assert nearest_neighbour_entropy(points, k=4) == pytest.approx(expected, rel=1e-9)
    assert nearest_neighbour_entropy(7 * points + 1, k=4) == pytest.approx(expected + 3 * math.log(7), rel=1e-9)
    twice = torch.cat([points, points])
    assert nearest_neighbour_entropy(twice, k=4) == pytest.approx(expected, rel=1e-9)


def test_two_modes_have_their_negentropy_and_a_gaussian_none():
    cloud = gaussian(5000, 10)
    sides = cloud.clone()
    sides[:, 0] += 5 * torch.where(torch.arange(5000) % 2 == 0, 1.0, -1.0)
    found = compare_negentropy(sides, k=1, n_null=4, generator=seeded(0))
    theory = 0.5 * math.log(26) - math.log(2)
    assert found.value == pytest.approx(0.95, abs=0.05) and found.p_greater == 0.2
    assert found.value - found.null_mean == pytest.approx(theory, abs=0.06)
    plain = compare_negentropy(cloud, k=1, n_null=4, generator=seeded(0))
    assert abs(plain.value) < 0.06 and abs(plain.value - plain.null_mean) < 0.06


@pytest.mark.parametrize(("n", "d"), [(60, 8), (8, 60)])
def test_principal_coordinates_keep_the_largest_variances(n, d):
    points = gaussian(n, d) * torch.linspace(0.2, 2, d, dtype=torch.float64) + 3
    found = principal_coordinates(points, n_components=5)
    torch.testing.assert_close(found.T.cov(), torch.diag(covariance_eigenvalues(points)[:5]))
    assert principal_coordinates(points[:4], n_components=9).shape == (4, 3)


def test_p_values_of_negentropy_are_uniform_for_gaussian_clouds(unchecked):
    def p_value(seed):
        return compare_negentropy(gaussian(30, 3, seed=seed) * torch.tensor([2.0, 1, 0.3]), n_null=9, generator=seeded(seed)).p_greater

    check_calibrated(p_value, n_draws=80)


TABLE = {"rotation": True, "scale": True, "translation": True, "linear": False}
MEASURES = [
    Measure("slope", lambda x: eigenvalue_slope(covariance_eigenvalues(x), first=1, last=6), **TABLE),
    Measure("negentropy", lambda x: negentropy(x, k=2), **TABLE, tolerance=1e-5, single_tolerance=1e-3, cloud=anisotropic_cloud(80, 6)),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_measure_of_the_galaxy_has_the_properties_of_its_definition(measure):
    check(measure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eigenvalue_slope(torch.ones(149)), "at least last=150"),
        (lambda: eigenvalue_slope(torch.ones(200), first=5, last=5), "1 <= first < last"),
        (lambda: log_volume(torch.tensor([1.0, math.nan]), first=1, last=2), "finite"),
        (lambda: gaussian_entropy(torch.tensor([1.0, 0.0])), "all be positive"),
        (lambda: nearest_neighbour_entropy(gaussian(30, 21)), "at most 20 columns"),
        (lambda: nearest_neighbour_entropy(gaussian(4, 2), k=3), "k must be in 1..2"),
        (lambda: nearest_neighbour_entropy(torch.ones(9, 2), k=1), "different rows"),
        (lambda: negentropy(gaussian(30, 3), n_components=21), "n_components must be in 1..20"),
        (lambda: principal_coordinates(torch.ones(5, 2), n_components=1), "points must vary"),
        (lambda: galaxy(gaussian(300, 200), l0=-1.0, generator=seeded(0)), "l0 must be"),
        (lambda: galaxy(gaussian(300, 200), GalaxyConfig(level=1.0), generator=seeded(0)), "level must be"),
        (lambda: galaxy(torch.zeros(3, 2), generator=seeded(0)), "no zero row"),
    ],
)
def test_bad_input_to_the_galaxy_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
