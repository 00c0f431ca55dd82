"""Spectral dimensions against closed forms, direct formulas, the original IsoScore steps, and simulation."""

import math

import numpy as np
import pytest
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.spectrum import (
    average_cosine,
    compare_with_isotropic,
    covariance_eigenvalues,
    effective_rank,
    isoscore,
    isoscore_star,
    isotropic_effective_rank,
    isotropic_participation_ratio,
    numerical_rank,
    participation_ratio,
    partition_score,
    rank_me,
    stable_rank,
    top_variance_share,
    unbiased_participation_ratio,
    wishart_eigenvalues,
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


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 40), (9, 8), (2, 3), (9, 1)])
def test_wishart_eigenvalues_are_distributed_as_those_of_gaussian_points(n, d):
    from scipy.stats import ks_2samp

    drawn = torch.stack([wishart_eigenvalues(n, d, generator=seeded(s)) for s in range(300)])
    direct = torch.stack([covariance_eigenvalues(gaussian(n, d, seed=10_000 + s)) for s in range(300)])
    assert drawn.shape == direct.shape and torch.equal(drawn > 1e-9, direct > 1e-9)
    for rank in {0, min(n - 1, d) // 2, min(n - 1, d) - 1}:
        assert ks_2samp(drawn[:, rank].numpy(), direct[:, rank].numpy()).pvalue > 0.001
    assert ks_2samp(drawn.square().sum(1).numpy(), direct.square().sum(1).numpy()).pvalue > 0.001


def test_uncentred_wishart_eigenvalues_have_one_more_degree_of_freedom():
    total = torch.stack([wishart_eigenvalues(5, 3, generator=seeded(s), centred=False).sum() for s in range(2000)])
    assert total.mean() == pytest.approx(3, abs=0.1) and total.var() == pytest.approx(2 * 3 / 5, rel=0.15)


@pytest.mark.parametrize(("n", "d"), [(200, 100), (1000, 100), (100, 1000), (40, 20)])
def test_isotropic_points_have_the_effective_rank_of_the_marchenko_pastur_law(n, d):
    found = np.mean([effective_rank(wishart_eigenvalues(n, d, generator=seeded(s)), of="eigenvalues") for s in range(5)])
    assert found == pytest.approx(isotropic_effective_rank(n, d), rel=0.01 if min(n, d) >= 100 else 0.04)


@pytest.mark.parametrize(("n", "centred"), [(12, True), (40, True), (12, False)])
def test_unbiased_participation_ratio_has_unbiased_parts(n, centred):
    scales = torch.linspace(0.3, 2, 8, dtype=torch.float64)
    truth = scales.square().sum().item() ** 2 / scales.pow(4).sum().item()
    above = below = 0.0
    m = n - 1 if centred else n
    ratios = []
    for s in range(1500):
        values = covariance_eigenvalues(gaussian(n, 8, seed=s) * scales, centred=centred)
        a, b = values.sum().item() ** 2, values.square().sum().item()
        of_square = m * (m * b - a) / ((m - 1) * (m + 2))
        above, below = above + a - 2 * of_square / m, below + of_square
        ratios.append(unbiased_participation_ratio(values, n, centred=centred))
        assert ratios[-1] == pytest.approx((a - 2 * of_square / m) / of_square)
    assert below / 1500 == pytest.approx(scales.pow(4).sum().item(), rel=0.05)
    assert above / below == pytest.approx(truth, rel=0.05)
    assert abs(np.median(ratios) - truth) < 0.15 * truth


def test_unbiased_participation_ratio_of_isotropic_points_is_their_width():
    found = [unbiased_participation_ratio(covariance_eigenvalues(gaussian(200, 100, seed=s)), 200) for s in range(4)]
    assert np.mean(found) == pytest.approx(100, rel=0.03)
    assert participation_ratio(covariance_eigenvalues(gaussian(200, 100))) < 70
    assert unbiased_participation_ratio(torch.ones(1000), 4) == math.inf


def test_spectral_statistics_stand_out_only_where_the_cloud_is_not_isotropic():
    for points, p in ((gaussian(50, 8) * torch.linspace(1, 3, 8), 1 / 40), (gaussian(50, 8, seed=5), None)):
        values = covariance_eigenvalues(points)
        found = compare_with_isotropic(values, participation_ratio, n=50, n_null=39, generator=seeded(0))
        assert found.value == participation_ratio(values)
        assert found.null_mean == pytest.approx(isotropic_participation_ratio(50, 8), rel=0.02)
        assert found.p_less == p if p else found.p_less > 0.05
    scaled = compare_with_isotropic(values, lambda v: v.sum().item(), n=50, n_null=3, generator=seeded(0))
    assert scaled.null_mean == pytest.approx(scaled.value) and scaled.null_sd == pytest.approx(0, abs=1e-9)


def test_p_values_of_spectral_statistics_are_uniform_for_isotropic_points(unchecked):
    def p_value(seed):
        values = covariance_eigenvalues(gaussian(9, 4, seed=seed))
        return compare_with_isotropic(values, participation_ratio, n=9, n_null=19, generator=seeded(seed)).p_less

    check_calibrated(p_value, n_draws=120)


def test_rank_and_shares_count_what_is_there():
    values = torch.tensor([4.0, 3.0, 2.0, 1.0, 1e-20, 0.0])
    assert numerical_rank(values) == 4 and numerical_rank(values, relative=0.3) == 3
    assert numerical_rank(covariance_eigenvalues(gaussian(30, 3) @ gaussian(3, 9, seed=1))) == 3
    assert top_variance_share(values, 2) == pytest.approx(0.7) and top_variance_share(values, 6) == pytest.approx(1)


def test_isoscore_star_lies_on_the_covariance_between_the_points_and_the_reference():
    points = gaussian(6, 4) * torch.tensor([3.0, 1, 1, 0.2])
    reference = (gaussian(500, 4, seed=1) @ gaussian(4, 4, seed=2)).T.cov()
    assert isoscore_star(points, reference, shrinkage=0.0) == pytest.approx(isoscore(covariance_eigenvalues(points)), rel=1e-9)
    assert isoscore_star(points, torch.eye(4), shrinkage=1.0) == pytest.approx(1)
    mixed = 0.7 * np.cov(points.numpy().T) + 0.3 * reference.numpy()
    values = np.linalg.svd(mixed, compute_uv=False)
    s = 2 * values / np.linalg.norm(values)  # the steps of the paper, sqrt(n) = 2
    defect = np.linalg.norm(s - 1) / math.sqrt(2 * (4 - 2))
    share = (4 - defect**2 * (4 - 2)) ** 2 / 16
    assert isoscore_star(points, reference, shrinkage=0.3) == pytest.approx((4 * share - 1) / 3, rel=1e-9)


def test_rank_me_is_the_entropy_of_the_singular_values_of_the_rows_as_they_are():
    points = gaussian(20, 6) * torch.linspace(0.2, 2, 6, dtype=torch.float64) + 1
    singular = np.linalg.svd(points.numpy(), compute_uv=False)
    p = singular / singular.sum() + 1e-7
    assert rank_me(points) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert rank_me(points[:3]) <= 3.001
    assert rank_me(torch.eye(7)) == pytest.approx(7, abs=1e-4)


def test_average_cosine_is_the_mean_over_pairs():
    points = gaussian(15, 4) + 0.5
    rows = points / points.norm(dim=1, keepdim=True)
    expected = (rows @ rows.T)[np.triu_indices(15, 1)].mean()
    assert average_cosine(points) == pytest.approx(expected.item(), rel=1e-9)
    assert average_cosine(torch.ones(3, 2)) == pytest.approx(1) and average_cosine(torch.eye(5)) == pytest.approx(0)
    spread = np.std([average_cosine(gaussian(30, 5, seed=s)) for s in range(400)])
    assert spread == pytest.approx(math.sqrt(2 / (5 * 30 * 29)), rel=0.12)


def test_partition_score_is_one_where_no_direction_is_preferred():
    points = gaussian(30, 4) * 0.5 + 0.3
    axes = np.linalg.eigh(points.numpy().T @ points.numpy())[1].T
    sums = [np.exp(points.numpy() @ c).sum() for axis in axes for c in (axis, -axis)]
    assert partition_score(points) == pytest.approx(min(sums) / max(sums), rel=1e-9)
    assert partition_score(torch.cat([torch.eye(5), -torch.eye(5)])) == pytest.approx(1)
    assert partition_score(gaussian(30, 4) + 100) < 1e-80


SCORES = [
    Measure("RankMe", rank_me, rotation=True, scale=True, translation=False, linear=False),
    Measure("average cosine", average_cosine, rotation=True, scale=True, translation=False, linear=False),
    Measure("partition score", partition_score, rotation=True, scale=False, translation=False, linear=False),
    Measure(
        "unbiased participation ratio",
        lambda x: unbiased_participation_ratio(covariance_eigenvalues(x), len(x)),
        rotation=True,
        scale=True,
        translation=True,
        linear=False,
    ),
    Measure(
        "IsoScore*",
        lambda x: isoscore_star(x, torch.eye(x.shape[1], dtype=torch.float64), shrinkage=0.2),
        rotation=True,
        scale=False,
        translation=True,
        linear=False,
    ),
]


@pytest.mark.parametrize("measure", SCORES, ids=str)
def test_every_score_of_a_spectrum_has_the_properties_of_its_definition(measure):
    check(measure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unbiased_participation_ratio(torch.ones(3), 2), "n must be at least 3"),
        (lambda: isotropic_effective_rank(1, 3), "n must be at least 2"),
        (lambda: wishart_eigenvalues(1, 3, generator=seeded(0)), "n must be at least 2"),
        (lambda: numerical_rank(torch.ones(3), relative=1.0), "relative must be in"),
        (lambda: top_variance_share(torch.ones(3), 4), "k must be in 1..3"),
        (lambda: isoscore_star(gaussian(4, 3), torch.eye(3), shrinkage=1.5), "shrinkage must be in"),
        (lambda: isoscore_star(gaussian(4, 3), gaussian(3, 3), shrinkage=0.5), "finite symmetric"),
        (lambda: isoscore_star(gaussian(4, 3), -100 * torch.eye(3), shrinkage=0.5), "none negative"),
        (lambda: average_cosine(torch.zeros(3, 2)), "no zero row"),
    ],
)
def test_bad_input_to_scores_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
