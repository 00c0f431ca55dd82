"""Convergent learning and universality: matching of units, sparse prediction, joint blocks, decoders of paired latents."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import Lasso
from sklearn.metrics import adjusted_mutual_info_score
from universal import Measure, check, check_calibrated

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.atoms import (
    Pairs,
    compare_convergence,
    concept_pairs,
    convergence,
    joint_blocks,
    random_rotation,
    sparse_prediction,
    top_tokens,
    unit_correlations,
    universality,
)
from sae.geometry.nulls import random_directions


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def half_shared_units(n=1500, p=40, seed=0):
    """Two networks of p units of which half are the same up to order and scale."""
    generator = seeded(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    y = torch.randn(n, p, generator=generator, dtype=torch.float64)
    y[:, : p // 2] = x[:, : p // 2] * 3 + 1
    return x, y[:, torch.randperm(p, generator=generator)]


def test_half_shared_units_are_matched_for_exactly_a_half():
    for seed in range(4):
        found = convergence(*half_shared_units(seed=seed))
        assert found.pairs.share_above(0.7) == 0.5
        assert (found.best > 0.7).double().mean() == 0.5


def test_matching_is_that_of_numpys_correlations_and_scipys_assignment():
    generator = seeded(1)
    x, y = torch.randn(60, 7, generator=generator), torch.randn(60, 9, generator=generator)
    expected = np.corrcoef(x.double().T, y.double().T)[:7, 7:]
    np.testing.assert_allclose(unit_correlations(x, y).numpy(), expected, atol=1e-12)
    for absolute in (False, True):
        values = np.abs(expected) if absolute else expected
        found = convergence(x, y, absolute=absolute)
        assert found.pairs.columns.tolist() == linear_sum_assignment(values, maximize=True)[1].tolist()
        np.testing.assert_allclose(found.best.numpy(), values.max(axis=1), atol=1e-12)
        assert found.partners.tolist() == values.argmax(axis=1).tolist()
        assert found.gap == pytest.approx(values.max(axis=1).mean() - found.pairs.mean)


def test_constant_units_are_left_out():
    x, y = half_shared_units(n=200, p=6, seed=2)
    x[:, 3] = 4.2
    y[:, 0] = 0.0
    found = convergence(x, y)
    assert 3 not in found.pairs.rows.tolist()
    assert 0 not in found.pairs.columns.tolist()
    assert found.partners[3] == -1
    assert found.best[3].isnan()
    assert found.best.isnan().sum() == 1


def test_units_that_serve_several_make_a_gap():
    x = torch.randn(500, 8, generator=seeded(3), dtype=torch.float64)
    found = convergence(x[:, [0, 0, 0, 0, 4, 5, 6, 7]], x)
    assert float(found.best.mean()) == pytest.approx(1)
    assert found.gap == pytest.approx(3 / 8, abs=0.06)
    compared = compare_convergence(*half_shared_units(n=200, p=12), n_null=19, generator=seeded())
    assert compared.matching.p_greater == compared.semi_matching.p_greater == pytest.approx(1 / 20)
    assert compared.matching.null_mean < 0.3 < 0.5 < compared.matching.value


def test_p_values_of_unrelated_units_are_uniform(unchecked):
    def p_value(seed):
        generator = seeded(seed)
        x, y = torch.randn(12, 3, generator=generator), torch.randn(12, 4, generator=generator)
        return compare_convergence(x, y, n_null=9, generator=generator).matching.p_greater

    check_calibrated(p_value, n_draws=60)


@pytest.mark.parametrize(
    "measure",
    [
        Measure("matching of units", lambda x, y: convergence(x, y).pairs.mean, False, True, True, False, pair=True),
        Measure("semi-matching of units", lambda x, y: float(convergence(x, y).best.nanmean()), False, True, True, False, pair=True),
    ],
    ids=str,
)
def test_matching_of_units_has_the_properties_of_its_definition(measure):
    check(measure)


def test_sparse_prediction_equals_the_lasso_and_finds_the_units_that_a_target_is_made_of():
    generator = seeded(4)
    x = torch.randn(800, 30, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, 30, dtype=torch.float64) + 5
    z = (x - x.mean(0)) / x.std(0)
    y = torch.stack([z[:, 3], z[:, [1, 8, 20]].sum(1), torch.randn(800, generator=generator, dtype=torch.float64)], dim=1)
    found = sparse_prediction(x, y, penalties=(0.6, 0.2, 0.05, 0.01))
    assert found.n_used[0].tolist() == [1, 1, 1, 1]
    assert found.n_used[1, 1] == 3
    assert found.r_squared[0].tolist() == pytest.approx([1 - 0.6**2, 1 - 0.2**2, 1 - 0.05**2, 1 - 0.01**2], abs=0.01)  # shrunk by lambda
    assert found.r_squared[1, 3] > 0.99
    assert found.r_squared[2].max() < 0.05
    assert found.n_needed(0.8).tolist()[:2] == [1, 3]
    assert found.n_needed(0.99)[0] == 1
    # The same by scikit-learn's estimator, on the rows that were fitted on.
    order = torch.randperm(800, generator=seeded(0))
    fit, test = order[200:], order[:200]
    scaled = ((x - x[fit].mean(0)) / x[fit].std(0, correction=0)).numpy()
    target = ((y - y[fit].mean(0)) / y[fit].std(0, correction=0)).numpy()[:, 1]
    largest = np.abs(scaled[fit].T @ target[fit]).max() / 600
    model = Lasso(alpha=0.2 * largest, fit_intercept=False).fit(scaled[fit], target[fit])
    assert found.r_squared[1, 1].item() == pytest.approx(model.score(scaled[test], target[test]), abs=1e-3)


def test_joint_blocks_find_subspaces_that_both_networks_span_and_those_of_one_alone():
    generator = seeded(5)
    factors = torch.randn(2000, 4, generator=generator, dtype=torch.float64)
    block_x, block_y = torch.tensor([0] * 5 + [1] * 5 + [2] * 5), torch.tensor([0] * 4 + [1] * 7 + [3] * 6)

    def units(block):
        return factors[:, block] + 0.5 * torch.randn(2000, len(block), generator=generator, dtype=torch.float64)

    found = joint_blocks(units(block_x), units(block_y), n_clusters=4)
    truth, labels = torch.cat([block_x, block_y]), torch.cat([found.labels_x, found.labels_y])
    assert adjusted_mutual_info_score(truth, labels) == pytest.approx(1)
    assert sorted(map(tuple, found.sizes.tolist())) == [(0, 6), (5, 0), (5, 4), (5, 7)]
    again = joint_blocks(units(block_x), units(block_y), n_clusters=4)
    assert sorted(map(tuple, again.sizes.tolist())) == sorted(map(tuple, found.sizes.tolist()))


def all_pairs(m, n_a=None, n_b=None):
    ids = torch.arange(m)
    return Pairs(ids, ids, torch.ones(m, dtype=torch.float64), n_a or m, n_b or m, float(m))


def test_rotated_decoders_of_another_width_are_universal_and_unrelated_ones_are_not():
    generator = seeded(6)
    a = random_directions(400, torch.zeros(1, 24, dtype=torch.float64), generator=generator) * torch.logspace(
        0, -1, 24, dtype=torch.float64
    )
    wider = torch.cat([a @ random_rotation(24, generator=generator), torch.zeros(400, 8, dtype=torch.float64)], dim=1)
    turned = wider @ random_rotation(32, generator=generator)
    same = universality(a, turned, all_pairs(400), n_null=39, generator=generator)
    assert same.n_components == 20
    assert same.svcca.value == pytest.approx(1)
    assert same.svcca.null_mean == pytest.approx(8 / (3 * np.pi) * (20 / 400) ** 0.5, rel=0.1)
    assert same.rsa.value > 0.9
    assert abs(same.rsa.null_mean) < 0.02
    assert same.svcca.p_greater == same.rsa.p_greater == pytest.approx(1 / 40)
    other = random_directions(400, turned, generator=generator)
    none = universality(a, other, all_pairs(400, n_b=400), n_null=39, generator=generator)
    assert none.svcca.p_greater > 0.02
    assert abs(none.rsa.value) < 0.03
    assert universality(a, turned, all_pairs(100, 400, 400), most_pairs=50, n_null=2, generator=generator).share_kept == 0.25
    with pytest.raises(ConfigError, match="at least 20"):
        universality(a, turned, all_pairs(19, 400, 400), generator=generator)
    with pytest.raises(ConfigError, match="dictionaries of 400 and 400 atoms"):
        universality(a, turned, all_pairs(30), generator=generator)


def test_p_values_of_shuffled_pairs_are_uniform(unchecked):
    def p_value(seed):
        generator = seeded(seed)
        a, b = (random_directions(40, torch.zeros(1, d), generator=generator) for d in (5, 6))
        return universality(a, b, all_pairs(40), n_components=2, n_null=9, generator=generator).svcca.p_greater

    check_calibrated(p_value, n_draws=60)


def test_filters_on_top_tokens_filter():
    codes = SparseCodes.of_slots(
        torch.arange(3).repeat(6, 1),
        torch.tensor([[0.1, 0, 0], [0.9, 0, 0], [0.5, 2.0, 0], [0, 1.0, 0], [0, -3.0, 0], [0.5, 0, 0]]),
        3,
    )
    tokens = torch.tensor([10, 11, 12, 13, 14, 15])
    tops = top_tokens(codes, tokens, n_top=3)
    assert tops.tolist() == [[11, 12, 15], [12, 13, -1], [-1, -1, -1]]
    other = torch.tensor([[15, 40, -1], [13, 99, -1], [-1, -1, -1]])
    assert concept_pairs(all_pairs(3), tops, other).rows.tolist() == [0, 1]
    assert concept_pairs(all_pairs(3), tops, other, excluded={99}).rows.tolist() == [0]
    assert concept_pairs(all_pairs(3), tops, other, excluded={11, 99}).rows.tolist() == []
    assert concept_pairs(all_pairs(3), tops, other.flip(0)).rows.tolist() == [1]
    with pytest.raises(ConfigError, match="one row per latent"):
        concept_pairs(all_pairs(2), tops, other)
    with pytest.raises(ConfigError, match="one per row of codes"):
        top_tokens(codes, tokens[:2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: convergence(x, y[:5]), "one row per input"),
        (lambda x, y: convergence(x[:2], y[:2]), "at least 3 rows"),
        (lambda x, y: convergence(x * 0, y), "unit that varies"),
        (lambda x, y: convergence(x * float("nan"), y), "finite"),
        (lambda x, y: unit_correlations(torch.zeros(3, 5000), torch.zeros(3, 2)), "at most 4096 units"),
        (lambda x, y: sparse_prediction(x, y, penalties=(0.1, 0.2)), "must fall within"),
        (lambda x, y: sparse_prediction(x, y, held_out=1.0), "held_out must be in"),
        (lambda x, y: sparse_prediction(x[:4], y[:4]), "both fitting and scoring"),
        (lambda x, y: sparse_prediction(x, y * 0), "constant on the fitted rows"),
        (lambda x, y: joint_blocks(x, y, n_clusters=1), "n_clusters must be in"),
    ],
)
def test_bad_input_of_convergence_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.randn(20, 3, generator=seeded(1)), torch.randn(20, 4, generator=seeded(2)))
