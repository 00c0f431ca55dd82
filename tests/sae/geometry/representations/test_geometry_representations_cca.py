"""Canonical correlations against the generalised eigenvalue problem, scikit-learn, planted correlations and closed forms."""

import math

import pytest
import scipy.linalg
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.representations import (
    Svcca,
    canonical_correlations,
    compare_representations,
    components,
    independent_svcca_mean,
    kept_components,
    pwcca,
    svcca,
)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n=200, seed=0):
    x = normal(n, 5, seed) @ normal(5, 5, seed + 1) + 3
    return x, x[:, :4] @ normal(4, 4, seed + 2) + 1.5 * normal(n, 4, seed + 3) - 2


def test_correlations_solve_the_generalised_eigenvalue_problem_of_the_covariances():
    x, y = related()
    both = torch.cat([x, y], dim=1)
    covariance = torch.cov(both.T)
    cross = covariance.clone()
    cross[:5, :5] = cross[5:, 5:] = 0
    blocks = torch.block_diag(covariance[:5, :5], covariance[5:, 5:])
    rho = scipy.linalg.eigh(cross.numpy(), blocks.numpy(), eigvals_only=True)[::-1][:4]
    assert canonical_correlations(x, y).tolist() == pytest.approx(rho.tolist(), abs=1e-10)


def test_scikit_learn_finds_the_same_first_correlation():
    from sklearn.cross_decomposition import CCA

    x, y = related(seed=10)
    u, v = CCA(n_components=1, max_iter=5000, tol=1e-12).fit_transform(x.numpy(), y.numpy())
    first = torch.corrcoef(torch.tensor([u[:, 0].tolist(), v[:, 0].tolist()]))[0, 1]
    assert float(canonical_correlations(x, y)[0]) == pytest.approx(float(first), abs=1e-5)


def test_planted_correlations_are_found_through_any_invertible_maps():
    n, planted = 20_000, [0.9, 0.6, 0.3]
    z, w = normal(n, 3, 0), normal(n, 3, 1)
    rho = torch.tensor(planted, dtype=torch.float64)
    other = rho * z + (1 - rho**2).sqrt() * w
    found = canonical_correlations(z @ normal(3, 3, 2) + 5, other @ normal(3, 3, 3) - 5)
    assert found.tolist() == pytest.approx(planted, abs=0.02)


@pytest.mark.parametrize(("n", "k"), [(1024, 10), (1000, 100)])
def test_mean_correlation_of_independent_data_is_the_closed_form(n, k):
    assert svcca(normal(n, k, 1), normal(n, k, 2), n_components=k) == pytest.approx(independent_svcca_mean(n, k), abs=0.012)
    assert independent_svcca_mean(n, k) == pytest.approx(8 / (3 * math.pi) * math.sqrt(k / n))


def test_closed_form_of_the_null_has_its_known_values():
    assert independent_svcca_mean(1024, 10) == pytest.approx(0.084, abs=5e-4)
    assert independent_svcca_mean(1000, 100) == pytest.approx(0.27, abs=2e-3)


def test_the_cumulative_fraction_keeps_126_of_128_components_of_random_unit_rows_not_one():
    rows = normal(2304, 128, 4)
    found = components(rows / rows.norm(dim=1, keepdim=True))
    assert kept_components(found.values) == 126
    assert kept_components(found.values, fraction=1.0) == 128
    assert kept_components(100 * found.values) == 126


def test_kept_components_are_the_fewest_that_reach_the_fraction():
    values = torch.tensor([3.0, 2.0, 1.0, 1.0])  # squares 9, 4, 1, 1 of 15
    assert [kept_components(values, fraction=f) for f in (0.1, 0.6, 0.61, 13 / 15, 0.9, 14 / 15, 1.0)] == [1, 1, 2, 2, 3, 3, 4]


def test_svcca_is_the_mean_correlation_of_the_leading_principal_components():
    x, y = related()
    u, _, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    v, _, _ = torch.linalg.svd(y - y.mean(0), full_matrices=False)
    expected = canonical_correlations(u[:, :2] + 1, v[:, :2] * 3)
    assert svcca(x, y, n_components=2) == pytest.approx(float(expected.mean()), abs=1e-10)
    assert svcca(x, y, fraction=1.0) == pytest.approx(float(canonical_correlations(x, y).mean()), abs=1e-12)


def slow_pwcca(x, y, weights):
    """With canonical variates from whitened covariances, not from a singular value decomposition of the data."""
    x, y = x - x.mean(0), y - y.mean(0)
    wx = torch.from_numpy(scipy.linalg.inv(scipy.linalg.sqrtm((x.T @ x).numpy()).real))
    wy = torch.from_numpy(scipy.linalg.inv(scipy.linalg.sqrtm((y.T @ y).numpy()).real))
    a, rho, _ = torch.linalg.svd((x @ wx).T @ (y @ wy))
    variates = x @ wx @ a
    projected = variates.T @ x
    alpha = projected.abs().sum(1)[: len(rho)] if weights == "absolute" else projected.square().sum(1)
    padded = torch.cat([rho, torch.zeros(len(alpha) - len(rho), dtype=torch.float64)])
    return float((alpha * padded).sum() / alpha.sum())


@pytest.mark.parametrize("weights", ["absolute", "variance"])
def test_pwcca_weights_correlations_by_what_the_variates_account_for(weights):
    x, y = related(seed=20)
    assert pwcca(x, y, weights=weights) == pytest.approx(slow_pwcca(x, y, weights), abs=1e-9)
    assert pwcca(x, x @ normal(5, 5, 8), weights=weights) == pytest.approx(1, abs=1e-9)


def test_pwcca_rises_when_the_shared_directions_carry_more_variance():
    n = 400
    z, own = normal(n, 2, 1), normal(n, 2, 2)
    y = torch.cat([z + 0.1 * normal(n, 2, 3), normal(n, 2, 4)], dim=1)
    loud, quiet = torch.cat([5 * z, own], dim=1), torch.cat([0.2 * z, own], dim=1)
    for weights in ("absolute", "variance"):
        assert pwcca(loud, y, weights=weights) > pwcca(quiet, y, weights=weights)
    assert svcca(loud, y, fraction=1.0) == pytest.approx(svcca(quiet, y, fraction=1.0), abs=1e-9)


def test_p_values_of_svcca_are_calibrated_in_spite_of_its_bias(unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        x, y = normal(30, 4, seed), normal(30, 5, 1000 + seed)
        return compare_representations(Svcca(n_components=3), x, y, n_null=19, generator=generator).p_greater

    check_calibrated(p, n_draws=150)


def test_the_null_of_svcca_carries_its_bias():
    x, y = normal(120, 20, 1), normal(120, 20, 2)
    found = compare_representations(Svcca(n_components=20), x, y, n_null=40, generator=torch.Generator().manual_seed(0))
    assert found.value > 0.3 and abs(found.value - found.null_mean) < 3 * found.null_sd
    x, y = related(n=60)
    assert compare_representations(Svcca(), x, y, n_null=40, generator=torch.Generator().manual_seed(0)).p_greater == 1 / 41


MEASURES = [
    Measure("CCA", canonical_correlations, rotation=True, scale=True, translation=True, linear=True, pair=True, wide=False,
            constant_column=True),
    Measure("SVCCA", lambda x, y: svcca(x, y, n_components=3), rotation=True, scale=True, translation=True, linear=False, pair=True),
    Measure("PWCCA by variance", lambda x, y: pwcca(x, y, weights="variance"), rotation=True, scale=True, translation=True, linear=False,
            pair=True, wide=False),
    Measure("PWCCA as published", pwcca, rotation=False, scale=True, translation=True, linear=False, pair=True, wide=False),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_canonical_measure_has_the_properties_of_its_definition(measure):
    check(measure)


def test_correlations_that_are_one_for_any_data_are_refused():
    x, y = normal(30, 20, 1), normal(30, 15, 2)
    with pytest.raises(ConfigError, match=r"at most n - 1 = 29 together, got 20 \+ 15: 6 or more"):
        canonical_correlations(x, y)
    assert float(torch.linalg.svdvals(components(x).basis.T @ components(y).basis)[5]) == pytest.approx(1)
    assert svcca(x, y, n_components=5) < 0.9
    with pytest.raises(ConfigError, match="n_components must be in"):
        svcca(x, y, n_components=16)
    with pytest.raises(ConfigError, match="fraction must be in"):
        svcca(x, y, fraction=0.0)
    with pytest.raises(ConfigError, match="equal rows"):
        svcca(torch.ones(30, 2), y)
    with pytest.raises(ConfigError, match="30 and 29 rows"):
        pwcca(x, y[:-1])
    with pytest.raises(ConfigError, match="k must be in"):
        independent_svcca_mean(10, 10)


def test_columns_that_repeat_do_not_count_twice():
    x, y = related()
    doubled = torch.cat([x, x], dim=1).float()
    assert canonical_correlations(doubled, y).tolist() == pytest.approx(canonical_correlations(x, y).tolist(), abs=1e-5)
