"""Units and masks: a mask no single unit draws, and the same mask from two."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from sklearn.metrics import jaccard_score

from probes.directions import FilterCombination, LabelledRows, SingleFilter, filter_curve
from probes.directions.filters import iou
from sae.errors import ConfigError


def planted(seed, *, rectified, threshold, n=2000, k=24, units=(3, 17)):
    """mask = 1[a_3 + a_17 > t], units of very different scales."""
    rng = np.random.default_rng(seed)
    acts = rng.normal(size=(n, k))
    acts = np.maximum(acts, 0) if rectified else acts
    mask = (acts[:, units[0]] + acts[:, units[1]] > threshold).astype(int)
    scale = np.random.default_rng(99).uniform(0.1, 10, k)
    scale[list(units)] = 2.0
    return LabelledRows("sum of two", acts * scale, mask, np.arange(n) // 20 + 1000 * seed)


SHARES = (*np.linspace(0.05, 0.6, 12), 0.005)


@pytest.mark.parametrize(
    ("rectified", "threshold", "fit_intercept"),
    [(False, 0.0, False), (True, 1.2, True), (False, 1.0, True)],
    ids=["paper", "rectified", "rare"],
)
def test_mask_of_a_sum_is_drawn_by_a_combination_and_by_no_single_unit(rectified, threshold, fit_intercept):
    train, validation = (planted(seed, rectified=rectified, threshold=threshold) for seed in (1, 2))
    curve = filter_curve(
        train, validation, single=SingleFilter(SHARES), combination=FilterCombination(fit_intercept=fit_intercept), n_shuffles=3
    )
    assert curve.unit in (3, 17)
    assert curve.single < 0.7
    assert curve.combined[-1] > 0.95
    assert curve.counts == (1, 2, 4, 8, 16, 24)
    assert curve.combined[0] < 0.7 < 0.95 < curve.combined[1]  # two units are enough, and are found
    assert curve.null.mean() < curve.mask_share + 0.1
    assert curve.single_null.mean() < curve.single  # by luck a shuffled mask may pick one of the two units
    assert curve.mask_share == pytest.approx(validation.y.mean())


def test_quantile_thresholds_leave_the_share_that_was_asked_for():
    train = planted(1, rectified=False, threshold=0.0)
    for share in (0.005, 0.1, 0.5):
        found = SingleFilter((share,)).fit(train.X, train.y)
        assert (train.X[:, found.unit_] > found.threshold_).mean() == pytest.approx(share, abs=1e-3)
        assert found.share_ == share
        assert found.iou_ <= share / train.y.mean() + 1e-3 or share >= train.y.mean()


def test_single_filter_is_the_best_of_all_units_and_thresholds():
    train = planted(3, rectified=True, threshold=1.2, n=400)
    best = (0.0, -1)
    for unit in range(24):
        for share in SHARES:
            predicted = train.X[:, unit] > np.quantile(train.X[:, unit], 1 - share)
            best = max(best, (jaccard_score(train.y, predicted), -unit))
    found = SingleFilter(SHARES).fit(train.X, train.y)
    assert (found.iou_, -found.unit_) == pytest.approx(best)
    assert iou(train.y, found.predict(train.X)) == pytest.approx(found.iou_)
    assert found.direction_[found.unit_] == found.direction_.sum() == 1


def test_weights_are_the_minimum_of_the_class_balanced_loss_without_a_bias():
    train = planted(4, rectified=True, threshold=1.2, n=300)
    X, y = train.X[:, :6] + np.random.default_rng(0).normal(size=(300, 6)), train.y
    spread = X.std(0)
    alpha, C = 1 - y.mean(), 0.5

    def loss(v):
        p = X / spread @ v
        balanced = alpha * y * np.logaddexp(0, -p) + (1 - alpha) * (1 - y) * np.logaddexp(0, p)
        return balanced.sum() / (2 * alpha * (1 - alpha)) + v @ v / (2 * C)

    oracle = minimize(loss, np.zeros(6), tol=1e-12).x / spread
    np.testing.assert_allclose(FilterCombination(C=C).fit(X, y).weights_, oracle, rtol=1e-3, atol=1e-5)


def test_subset_keeps_the_units_that_weigh_most_per_standard_deviation():
    train = planted(5, rectified=True, threshold=1.2)
    whole = FilterCombination(fit_intercept=True).fit(train.X, train.y)
    two = FilterCombination(n_filters=2, fit_intercept=True).fit(train.X, train.y)
    assert set(two.filters_) == {3, 17}
    assert np.count_nonzero(two.weights_) == 2
    np.testing.assert_array_equal(whole.filters_[:2], np.argsort(-np.abs(whole.weights_ * train.X.std(0)))[:2])
    scaled = FilterCombination(n_filters=2, fit_intercept=True).fit(train.X * np.linspace(0.01, 100, 24), train.y)
    assert set(scaled.filters_) == {3, 17}


def test_sparse_units_give_the_same_curve():
    train, validation = (planted(seed, rectified=True, threshold=1.2, n=600) for seed in (1, 2))
    dense = FilterCombination(n_filters=4, fit_intercept=True).fit(train.X, train.y)
    found = FilterCombination(n_filters=4, fit_intercept=True).fit(sparse.csr_matrix(train.X), train.y)
    np.testing.assert_allclose(found.weights_, dense.weights_, rtol=1e-3, atol=1e-4)
    assert (found.predict(sparse.csr_matrix(validation.X)) == dense.predict(validation.X)).mean() > 0.99


def test_intersection_over_union_counts_the_whole_set():
    a, b = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    assert iou(a, b) == jaccard_score(a, b) == 0.5
    assert iou(np.zeros(3), np.zeros(3)) == 0


def test_curve_shows_single_unit_combinations_and_the_mask_everywhere():
    train, validation = (planted(seed, rectified=False, threshold=0.0, n=300) for seed in (1, 2))
    curve = filter_curve(train, validation, counts=(1, 500), n_shuffles=0)
    assert curve.counts == (1, 24)
    assert [row[1] for row in curve.table().rows] == [1, 1, 24, 0]
    assert curve.table().column("null") == [None] * 4
    assert len(curve.figure().data) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, v: (t, t), "must not share groups"),
        (lambda t, v: (t, LabelledRows("v", v.X[:, :5], v.y, v.groups)), "24 columns of train, got 5"),
        (lambda t, v: (t, v, (0, 2)), "counts must be at least 1"),
    ],
)
def test_rows_of_other_shape_or_shared_documents_are_refused(change, message):
    given = change(*(planted(seed, rectified=False, threshold=0.0, n=200) for seed in (1, 2)))
    with pytest.raises(ConfigError, match=message):
        filter_curve(*given[:2], **({"counts": given[2]} if len(given) > 2 else {}))
