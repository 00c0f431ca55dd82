"""Alignment and uniformity against closed forms, scipy's 0F1, and sums over pairs."""

import math

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.layerwise import (
    alignment,
    compare_alignment,
    compare_uniformity,
    compare_wasserstein_uniformity,
    sampled_uniformity,
    sphere_uniformity,
    uniformity,
    wasserstein_uniformity,
)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("d", "expected"), [(2, -1.5750), (3, -2.0798), (4, -2.4149), (8, -3.0825), (128, -3.9375), (768, -3.98958)])
def test_uniformity_of_the_sphere_is_the_closed_form(d, expected):
    assert sphere_uniformity(d) == pytest.approx(expected, abs=1e-4)
    for scale in (0.1, 2.0, 6.0):
        assert sphere_uniformity(d, scale=scale) == pytest.approx(-2 * scale + math.log(hyp0f1(d / 2, scale**2)), abs=1e-9)


def test_uniformity_of_a_circle_at_large_scale_follows_its_integral():
    angles = torch.arange(200_000, dtype=torch.float64) * 2 * math.pi / 200_000
    expected = torch.exp(-100 * (2 - 2 * angles.cos())).mean().log().item()
    assert sphere_uniformity(2, scale=100.0) == pytest.approx(expected, abs=1e-9)
    assert sphere_uniformity(1, scale=3.0) == pytest.approx(math.log((1 + math.exp(-12)) / 2), abs=1e-12)


@pytest.mark.parametrize("d", [2, 3, 8, 16])
def test_random_directions_have_the_uniformity_of_the_sphere(d):
    found = np.mean([uniformity(gaussian(800, d, seed=s)) for s in range(4)])
    assert found == pytest.approx(sphere_uniformity(d), abs=0.01)


def test_uniformity_is_the_logarithm_of_the_mean_over_pairs():
    points = gaussian(40, 5)
    rows = (points / points.norm(dim=1, keepdim=True)).numpy()
    squares = ((rows[:, None] - rows) ** 2).sum(2)[np.triu_indices(40, 1)]
    for scale in (0.5, 2.0, 30.0):
        assert uniformity(points, scale=scale, block_elements=100) == pytest.approx(np.log(np.exp(-scale * squares).mean()), rel=1e-9)
    sampled = sampled_uniformity(points, n_pairs=200_000, generator=seeded(0))
    assert sampled == pytest.approx(uniformity(points), abs=0.02)
    two = gaussian(2, 3)
    assert sampled_uniformity(two, n_pairs=50, generator=seeded(0)) == pytest.approx(uniformity(two), rel=1e-9)


def test_uniformity_hardly_sees_collapsed_dimensions_and_the_wasserstein_distance_does():
    full, half = gaussian(4000, 16), gaussian(4000, 16)
    half[:, 8:] = 0
    assert uniformity(full) == pytest.approx(-3.512, abs=0.01)
    assert uniformity(half) == pytest.approx(-3.082, abs=0.01)
    assert wasserstein_uniformity(half) == pytest.approx(-math.sqrt(2 - 2 * math.sqrt(0.5)), abs=0.002)
    assert wasserstein_uniformity(half) == pytest.approx(-0.7654, abs=0.002)
    assert wasserstein_uniformity(gaussian(50_000, 16)) == pytest.approx(-0.009, abs=0.003)
    assert wasserstein_uniformity(torch.ones(9, 4)) == pytest.approx(-math.sqrt(2), abs=1e-9)
    assert wasserstein_uniformity(torch.cat([torch.eye(6), -torch.eye(6)])) == pytest.approx(0, abs=1e-7)


def test_wasserstein_uniformity_is_the_distance_of_two_gaussians():
    points = gaussian(50, 4) * torch.tensor([2.0, 1, 1, 0.5]) + 0.7
    rows = (points / points.norm(dim=1, keepdim=True)).numpy()
    mean, cov = rows.mean(0), np.cov(rows.T, bias=True)
    values, axes = np.linalg.eigh(cov / 4)
    root = axes * np.sqrt(values) @ axes.T
    expected = np.sqrt(mean @ mean + np.trace(cov) + 1 - 2 * np.trace(root))
    assert wasserstein_uniformity(points) == pytest.approx(-expected, rel=1e-9)


def test_alignment_is_the_mean_power_of_the_distance():
    first, second = gaussian(30, 5), gaussian(30, 5, seed=1)
    cosines = torch.nn.functional.cosine_similarity(first, second)
    assert alignment(first, second) == pytest.approx((2 - 2 * cosines).mean().item(), rel=1e-9)
    assert alignment(first, second, exponent=3.0) == pytest.approx((2 - 2 * cosines).pow(1.5).mean().item(), rel=1e-9)
    assert alignment(first, 5 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4)


def test_pairs_that_belong_together_and_crowded_rows_stand_out():
    first = gaussian(40, 6)
    found = compare_alignment(first, first + 0.3 * gaussian(40, 6, seed=1), n_null=19, generator=seeded(0))
    assert found.p_less == 1 / 20 and found.null_mean == pytest.approx(2, abs=0.2)
    crowded = first + 1
    assert compare_uniformity(crowded, n_null=19, generator=seeded(0)).p_greater == 1 / 20
    assert compare_wasserstein_uniformity(crowded, n_null=19, generator=seeded(0)).p_less == 1 / 20
    even = compare_uniformity(first, n_null=19, generator=seeded(1))
    assert even.null_mean == pytest.approx(sphere_uniformity(6), abs=0.05)


def test_p_values_of_uniformity_and_alignment_are_uniform_under_their_null(unchecked):
    def of_alignment(seed):
        return compare_alignment(gaussian(8, 3, seed=seed), gaussian(8, 3, seed=900 + seed), n_null=19, generator=seeded(seed)).p_less

    def of_uniformity(seed):
        return compare_uniformity(gaussian(8, 3, seed=seed), n_null=19, generator=seeded(900 + seed)).p_greater

    def of_wasserstein(seed):
        return compare_wasserstein_uniformity(gaussian(8, 3, seed=seed), n_null=19, generator=seeded(900 + seed)).p_less

    for p_value in (of_alignment, of_uniformity, of_wasserstein):
        check_calibrated(p_value, n_draws=150)


def pair(x):
    return alignment(x[: len(x) // 2], x[len(x) // 2 :])


TABLE = {"rotation": True, "scale": True, "translation": False, "linear": False}
MEASURES = [
    Measure("alignment", pair, **TABLE, permutation=None),
    Measure("uniformity", uniformity, **TABLE, blocked=lambda x, size: uniformity(x, block_elements=size)),
    Measure("Wasserstein uniformity", wasserstein_uniformity, **TABLE),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_measure_of_the_sphere_has_the_properties_of_its_definition(measure):
    check(measure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniformity(gaussian(1, 3)), "at least 2 rows"),
        (lambda: uniformity(torch.zeros(3, 3)), "no zero row"),
        (lambda: uniformity(gaussian(3, 3), scale=0.0), "scale must be positive"),
        (lambda: sampled_uniformity(gaussian(3, 3), n_pairs=0, generator=seeded(0)), "n_pairs"),
        (lambda: sphere_uniformity(0), "d must be at least 1"),
        (lambda: alignment(gaussian(3, 3), gaussian(4, 3)), "one shape"),
        (lambda: alignment(gaussian(3, 3), gaussian(3, 3), exponent=-1.0), "exponent must be positive"),
    ],
)
def test_bad_input_to_measures_of_the_sphere_is_refused_by_name(call, message, unchecked):
    with pytest.raises(ConfigError, match=message):
        call()
