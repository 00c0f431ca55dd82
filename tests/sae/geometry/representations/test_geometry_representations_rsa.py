"""RDMs against scipy's pdist, comparisons against scipy.stats, cross-validated distances against their expectation."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.representations import (
    Rsa,
    average_ranks,
    compare_representations,
    crossvalidated_rdm,
    rdm,
    rdm_similarity,
    residual_covariance,
    sample_stimuli,
    square_form,
    upper_triangle,
)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("distance", ["correlation", "cosine", "euclidean"])
def test_rdms_are_those_of_scipy_in_its_order(distance):
    x = normal(23, 7, 0) + 2
    assert rdm(x, distance=distance).tolist() == pytest.approx(pdist(x.numpy(), distance).tolist(), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_comparisons_are_those_of_scipy(ties):
    a, b = normal(300, 1, 1).flatten(), normal(300, 1, 2).flatten()
    b = b + a
    if ties:
        a, b = (3 * a).round(), (3 * b).round()
    u, v = a.numpy(), b.numpy()
    assert rdm_similarity(a, b, comparison="pearson") == pytest.approx(stats.pearsonr(u, v).statistic, abs=1e-12)
    assert rdm_similarity(a, b, comparison="spearman") == pytest.approx(stats.spearmanr(u, v).statistic, abs=1e-12)
    assert rdm_similarity(a, b, comparison="kendall") == pytest.approx(stats.kendalltau(u, v).statistic, abs=1e-12)
    assert rdm_similarity(a, b, comparison="cosine") == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v), abs=1e-12)
    assert torch.equal(average_ranks(a), torch.from_numpy(stats.rankdata(u)))


@pytest.mark.parametrize("distance", ["correlation", "cosine", "euclidean"])
@pytest.mark.parametrize("comparison", ["spearman", "pearson", "kendall", "cosine"])
def test_rsa_is_the_comparison_of_the_rdms_also_of_permuted_stimuli(distance, comparison):
    x, y = normal(20, 6, 3), normal(20, 6, 3) + normal(20, 6, 4)
    measure = Rsa(distance=distance, comparison=comparison)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for second, permutation in ((y, None), (y[order], order)):
        expected = rdm_similarity(rdm(x, distance=distance), rdm(second, distance=distance), comparison=comparison)
        assert measure.score(measure.prepare(x), measure.prepare(y), permutation) == pytest.approx(expected, abs=1e-12)


def test_square_form_and_upper_triangle_are_inverse_and_those_of_scipy():
    values = normal(45, 1, 5).flatten().abs()
    assert np.array_equal(square_form(values).numpy(), squareform(values.numpy()))
    assert torch.equal(upper_triangle(square_form(values)), values)
    with pytest.raises(ConfigError, match=r"n \(n - 1\) / 2 entries, got 44"):
        square_form(values[:-1])


def test_rsa_of_a_turned_copy_is_one_and_a_planted_relation_stands_out():
    x = normal(40, 6, 6)
    turned = 2 * x @ torch.linalg.qr(normal(6, 6, 7)).Q
    assert Rsa(distance="euclidean")(x, turned + 3) == pytest.approx(1, abs=1e-12)
    assert Rsa(distance="cosine")(x, turned) == pytest.approx(1, abs=1e-9)
    scores = [Rsa()(x, amount * x + normal(40, 6, 8)) for amount in (0.0, 0.7, 1.5, 4.0)]
    assert scores == sorted(scores)
    found = compare_representations(Rsa(), x, x + normal(40, 6, 8), n_null=49, generator=torch.Generator().manual_seed(0))
    assert found.p_greater == 0.02 and abs(found.null_mean) < 0.05


@pytest.mark.parametrize("measure", [Rsa(), Rsa("euclidean", "pearson")], ids=["correlation", "euclidean"])
def test_p_values_of_rsa_are_calibrated_by_shuffling_stimuli(measure, unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        return compare_representations(measure, normal(15, 4, seed), normal(15, 5, 1000 + seed), n_null=19, generator=generator).p_greater

    check_calibrated(p, n_draws=150)


def slow_crossnobis(repeats, precision):
    n_repeats, n, d = repeats.shape
    found = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for a in range(n_repeats):
                for b in range(n_repeats):
                    if a != b:
                        left, right = repeats[a, i] - repeats[a, j], repeats[b, i] - repeats[b, j]
                        found[i, j] += left @ precision @ right / (d * n_repeats * (n_repeats - 1))
    return upper_triangle(found)


def test_the_cross_validated_distance_is_its_definition_written_out():
    repeats = normal(3 * 6, 5, 9).reshape(3, 6, 5) + normal(6, 5, 10)
    factor = normal(5, 5, 11)
    covariance = factor @ factor.T + torch.eye(5, dtype=torch.float64)
    expected = slow_crossnobis(repeats, torch.linalg.inv(covariance))
    assert crossvalidated_rdm(repeats, noise_covariance=covariance).tolist() == pytest.approx(expected.tolist(), abs=1e-10)
    plain = slow_crossnobis(repeats, torch.eye(5, dtype=torch.float64))
    assert crossvalidated_rdm(repeats).tolist() == pytest.approx(plain.tolist(), abs=1e-10)


def test_the_cross_validated_distance_is_unbiased_where_the_plain_one_is_not():
    patterns = normal(4, 6, 12)
    patterns[1] = patterns[0]  # two equal stimuli
    truth = upper_triangle(torch.cdist(patterns, patterns).square()) / 6
    draws = torch.stack([crossvalidated_rdm(patterns + 1.5 * normal(3 * 4, 6, 100 + s).reshape(3, 4, 6)) for s in range(1500)])
    error = (draws.mean(dim=0) - truth) / (draws.std(dim=0) / 1500**0.5)
    assert error.abs().max() < 4
    assert (draws[:, 0] < 0).double().mean() > 0.3  # equal stimuli: as often below zero as above
    plain = pdist((patterns + 1.5 * normal(4, 6, 13)).numpy(), "sqeuclidean")[0] / 6
    assert plain > 1


def test_residual_covariance_estimates_the_noise_and_shrinks_to_its_diagonal():
    factor = normal(3, 3, 14)
    noise = (normal(6 * 4000, 3, 15) @ factor.T).reshape(6, 4000, 3)
    covariance = residual_covariance(noise + 10 * normal(4000, 3, 16))
    assert torch.allclose(covariance, factor @ factor.T, atol=0.1)
    shrunk = residual_covariance(noise, shrinkage=1.0)
    assert torch.equal(shrunk, shrunk.diagonal().diag())


MEASURES = [
    Measure("RSA", lambda x, y: Rsa()(x, y), rotation=False, scale=True, translation=False, linear=False, pair=True),
    Measure("RSA by cosine", lambda x, y: Rsa("cosine", "pearson")(x, y), rotation=True, scale=True, translation=False, linear=False,
            pair=True),
    Measure("RSA by distance", lambda x, y: Rsa("euclidean")(x, y), rotation=True, scale=True, translation=True, linear=False, pair=True,
            single_tolerance=1e-3),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_rsa_has_the_properties_of_its_definition(measure):
    check(measure)


def test_sampled_stimuli_are_different_rows_and_follow_the_seed():
    first, again = (sample_stimuli(50, 20, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and len(first.unique()) == 20 and (first[1:] > first[:-1]).all()
    assert sample_stimuli(5, 20, generator=torch.Generator()).tolist() == [0, 1, 2, 3, 4]


def test_bad_rdms_are_refused_with_a_reason():
    x = normal(10, 4, 17)
    with pytest.raises(ConfigError, match="at least 3 rows"):
        rdm(x[:2])
    with pytest.raises(ConfigError, match="at most 4096"):
        rdm(torch.zeros(4097, 1))
    flat = x.clone()
    flat[3] = 7.0
    with pytest.raises(ConfigError, match="constant over its columns, got 1 of 10, first row 3"):
        rdm(flat)
    assert rdm(flat, distance="euclidean").isfinite().all()
    with pytest.raises(ConfigError, match="no zero row"):
        rdm(flat * (torch.arange(10) != 3)[:, None], distance="cosine")
    with pytest.raises(ConfigError, match="must vary over its pairs"):
        rdm_similarity(torch.ones(6), torch.arange(6.0))
    with pytest.raises(ConfigError, match="must vary over its pairs"):
        Rsa("euclidean")(torch.eye(10, dtype=torch.float64), x)  # a simplex: all distances equal
    with pytest.raises(ConfigError, match="same pairs, got 6 and 5"):
        rdm_similarity(torch.arange(6.0), torch.arange(5.0))
    with pytest.raises(ConfigError, match="finite"):
        rdm_similarity(torch.tensor([1.0, 2.0, float("inf")]), torch.arange(3.0))
    with pytest.raises(ConfigError, match="at least 2 measurements"):
        crossvalidated_rdm(normal(5, 3, 18)[None])
    with pytest.raises(ConfigError, match="positive definite"):
        crossvalidated_rdm(normal(10, 3, 18).reshape(2, 5, 3), noise_covariance=torch.zeros(3, 3))
    with pytest.raises(ConfigError, match="shrinkage"):
        residual_covariance(normal(10, 3, 18).reshape(2, 5, 3), shrinkage=2.0)
