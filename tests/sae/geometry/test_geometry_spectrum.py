"""Spectral dimensions against closed forms, direct formulas, the original IsoScore steps, and simulation."""

import math

import numpy as np
import pytest
import torch

from sae.errors import ConfigError
from sae.geometry.spectrum import (
    covariance_eigenvalues,
    effective_rank,
    isoscore,
    isotropic_participation_ratio,
    participation_ratio,
    stable_rank,
)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


HALVING = 0.5 ** torch.arange(1, 61, dtype=torch.float64)


def test_halving_eigenvalues_have_ratio_three_rank_four_and_stable_rank_two():
    assert participation_ratio(HALVING) == pytest.approx(3, rel=1e-9)
    assert effective_rank(HALVING, of="eigenvalues") == pytest.approx(4, rel=1e-9)
    assert stable_rank(HALVING) == pytest.approx(2, rel=1e-9)
    # singular values 2^(-k/2): p = (1 - q) q^(k-1) with q = 1/sqrt 2, whose entropy is -ln(1 - q) - q ln q / (1 - q)
    q = math.sqrt(0.5)
    assert effective_rank(HALVING, of="singular") == pytest.approx(math.exp(-math.log(1 - q) - q * math.log(q) / (1 - q)), rel=1e-6)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_k_equal_eigenvalues_count_as_k_with_zeros_ignored(k):
    values = torch.zeros(10)
    values[:k] = 0.37
    for measure in (participation_ratio(values), stable_rank(values)):
        assert measure == pytest.approx(k)
    assert effective_rank(values, of="eigenvalues") == pytest.approx(k)
    assert effective_rank(values, of="singular") == pytest.approx(k)
    assert isoscore(values) == pytest.approx((k - 1) / 9, abs=1e-12)


def test_isoscore_follows_the_steps_of_its_paper():
    values = np.array([5, 3, 2, 1, 0.5])
    n = len(values)
    s = math.sqrt(n) * values / np.linalg.norm(values)
    defect = np.linalg.norm(s - 1) / math.sqrt(2 * (n - math.sqrt(n)))
    share = (n - defect**2 * (n - math.sqrt(n))) ** 2 / n**2
    assert isoscore(torch.from_numpy(values)) == pytest.approx((n * share - 1) / (n - 1), rel=1e-12)
    assert isoscore(torch.from_numpy(values)) == pytest.approx(0.59236, abs=1e-5)
    assert participation_ratio(torch.from_numpy(values)) == pytest.approx(3.3694, abs=1e-4)


@pytest.mark.parametrize(("n", "d"), [(50, 7), (7, 50), (20, 20), (2, 5)])
@pytest.mark.parametrize("centred", [True, False])
def test_eigenvalues_are_those_of_the_covariance_matrix(n, d, centred):
    points = gaussian(n, d, seed=n) @ gaussian(d, d, seed=d) + 5 * gaussian(1, d, seed=1)
    matrix = np.cov(points.numpy(), rowvar=False) if centred else points.numpy().T @ points.numpy() / n
    expected = np.clip(np.linalg.eigvalsh(matrix)[::-1], 0, None)
    found = covariance_eigenvalues(points, centred=centred, block_elements=64)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-11 * expected[0])
    assert found.dtype == torch.float64


def test_rank_deficient_points_leave_exactly_rank_many_nonzero_eigenvalues():
    for n, d in ((200, 30), (30, 200)):
        points = gaussian(n, 3) @ gaussian(3, d, seed=1)
        assert (covariance_eigenvalues(points) > 0).sum() == 3
    line = gaussian(100, 1) @ gaussian(1, 8, seed=2) + gaussian(1, 8, seed=3)
    eigenvalues = covariance_eigenvalues(line)
    for of in ("eigenvalues", "singular"):
        assert effective_rank(eigenvalues, of=of) == pytest.approx(1, abs=1e-12)
    assert isoscore(eigenvalues) == pytest.approx(0, abs=1e-12)


def test_identity_codes_have_effective_rank_equal_to_their_number():
    assert effective_rank(covariance_eigenvalues(torch.eye(10), centred=False), of="eigenvalues") == pytest.approx(10)


def test_stable_rank_is_the_ratio_of_norms():
    points = gaussian(40, 12)
    points = points - points.mean(dim=0)
    expected = (torch.linalg.matrix_norm(points) / torch.linalg.matrix_norm(points, ord=2)) ** 2
    assert stable_rank(covariance_eigenvalues(points)) == pytest.approx(expected.item(), rel=1e-10)


def test_effective_rank_of_singular_values_is_that_of_the_centred_matrix():
    points = gaussian(40, 12) @ torch.diag(torch.arange(1, 13).double())
    singular = np.linalg.svd((points - points.mean(dim=0)).numpy(), compute_uv=False)
    p = singular / singular.sum()
    assert effective_rank(covariance_eigenvalues(points), of="singular") == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-10)


@pytest.mark.parametrize(("n", "d", "expected"), [(200, 100, 66.3), (1000, 100, 91.0), (100, 1000, 89.8)])
def test_isotropic_points_have_the_finite_sample_participation_ratio(n, d, expected):
    assert isotropic_participation_ratio(n, d) == pytest.approx(expected, abs=0.3)
    measured = np.mean([participation_ratio(covariance_eigenvalues(gaussian(n, d, seed=s))) for s in range(3)])
    assert measured == pytest.approx(isotropic_participation_ratio(n, d), rel=5e-3)


def test_uncentred_isotropic_participation_ratio_has_one_more_degree_of_freedom():
    draws = [covariance_eigenvalues(gaussian(6, 3, seed=s), centred=False) for s in range(1000)]
    squared_trace = np.mean([v.sum().item() ** 2 for v in draws])
    trace_of_square = np.mean([v.square().sum().item() for v in draws])
    assert squared_trace / trace_of_square == pytest.approx(isotropic_participation_ratio(6, 3, centred=False), rel=0.03)


def measures(points):
    values = covariance_eigenvalues(points)
    return [
        participation_ratio(values),
        effective_rank(values, of="eigenvalues"),
        effective_rank(values, of="singular"),
        stable_rank(values),
        isoscore(values),
    ]


@pytest.mark.parametrize(("n", "d"), [(60, 5), (5, 60)])
def test_measures_ignore_rotation_scale_translation_and_order(n, d):
    points = gaussian(n, d) * torch.linspace(1, 3, d, dtype=torch.float64)
    turn = torch.linalg.qr(gaussian(d, d, seed=1)).Q
    for other in (points @ turn, points * 1e4, points + 7.0, points[torch.randperm(n, generator=torch.Generator().manual_seed(2))]):
        assert measures(other) == pytest.approx(measures(points), rel=1e-8)


def test_measures_of_float32_points_far_from_the_origin_keep_four_digits():
    points = gaussian(500, 8) * torch.linspace(1, 3, 8, dtype=torch.float64) + 100
    assert measures(points.float()) == pytest.approx(measures(points), rel=1e-4)


def test_a_constant_column_adds_a_zero_eigenvalue():
    points = torch.cat([gaussian(30, 4), torch.full((30, 1), 0.1, dtype=torch.float64)], dim=1)
    values = covariance_eigenvalues(points)
    assert values[-1] == 0
    torch.testing.assert_close(values[:4], covariance_eigenvalues(points[:, :4]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: covariance_eigenvalues(gaussian(1, 4)), "at least 2 rows"),
        (lambda: covariance_eigenvalues(torch.full((5, 4), 0.1)), "points must vary, got 5 rows that are all equal"),
        (lambda: covariance_eigenvalues(gaussian(1, 8).repeat(1000, 1)), "points must vary"),
        (lambda: covariance_eigenvalues(torch.zeros(5, 4), centred=False), "all zero"),
        (lambda: covariance_eigenvalues(torch.full((5, 4), math.nan)), "finite"),
        (lambda: participation_ratio(torch.zeros(4)), "not all zero"),
        (lambda: stable_rank(torch.tensor([1.0, -1e-3])), "none negative"),
        (lambda: effective_rank(torch.tensor([1.0, math.nan]), of="singular"), "finite"),
        (lambda: isoscore(torch.ones(1)), "at least 2, got 1"),
        (lambda: isotropic_participation_ratio(1, 4), "n must be at least 2"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
