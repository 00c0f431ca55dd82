"""The exact search against every support there is, and on the problem that greedy rankings cannot solve."""

from itertools import combinations

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC

from probes.optimal import BestSubset, OptimalSparseProbe, OptimalSparseRegressor, SearchConfig, best_subset, best_subset_number
from probes.optimal.losses import Hinge, Squares
from probes.selection import class_weights, mean_difference, top_k
from probes.sparse import KSparseProbe
from sae.errors import ConfigError


def correlated(seed, n=120, d=12):
    """Mixed columns, of which a few decide, with noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3 * rng.normal(size=d)
    signal = (X - X.mean(0)) @ (rng.normal(size=d) * (rng.random(d) < 0.4)) + 3 * rng.normal(size=n)
    return X, (signal > 0).astype(np.int64), signal


def suppressor(n=1500, seed=0, extra=0):
    """x0 = .6 y + z + noise, x1 = z + noise: only their difference tells y; six decoys each tell a little."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    z, sign = 3 * rng.normal(size=n), 2 * y - 1
    columns = [0.6 * sign + z + 0.1 * rng.normal(size=n), z + 0.1 * rng.normal(size=n)]
    columns += [0.25 * sign + rng.normal(size=n) for _ in range(6)]
    return np.stack([*columns, *rng.normal(size=(extra, n))], 1), y


def hinge_of_support(X, y, weight, support, gamma):
    """c of one support by scikit-learn's SVC on a kernel matrix: the dual, solved apart from the search."""
    mean = weight @ X / weight.sum()
    z = ((X - mean) / np.sqrt(weight @ (X - mean) ** 2 / weight.sum()))[:, list(support)]
    kernel = gamma * z @ z.T
    model = SVC(kernel="precomputed", C=1.0, tol=1e-8).fit(kernel, y, sample_weight=weight)
    a = np.zeros(len(y))
    a[model.support_] = model.dual_coef_[0]
    return np.abs(a).sum() - a @ kernel @ a / 2


@pytest.mark.parametrize("seed", range(8))
def test_search_finds_the_best_of_every_support_and_proves_it(seed):
    X, y, _ = correlated(seed)
    weight = class_weights(y, np.random.default_rng(seed).integers(1, 3, len(y)).astype(float))
    gamma = 1 / np.sqrt(weight.sum())
    found = best_subset(X, y, weight, k=3)
    all_of_them = {support: hinge_of_support(X, y, weight, support, gamma) for support in combinations(range(12), 3)}
    best = min(all_of_them, key=all_of_them.get)
    assert found.proven
    assert set(found.support.tolist()) == set(best)
    assert found.objective == pytest.approx(all_of_them[best], rel=2e-4)
    assert found.lower_bound <= all_of_them[best] * (1 + 1e-6)
    assert found.gap <= 1e-4
    assert (np.diff(np.abs(found.coef)) <= 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_search_for_a_number_finds_the_best_of_every_support_and_proves_it(seed):
    X, _, t = correlated(seed)
    weight = np.random.default_rng(seed).integers(1, 3, len(t)).astype(float)
    n = weight.sum()

    def normal(a):
        centred = a - weight @ a / n
        return centred / np.sqrt(weight @ centred**2 / n)

    z, u = normal(X), normal(t)

    def objective(support):
        columns = z[:, list(support)]
        model = Ridge(alpha=np.sqrt(n), fit_intercept=False).fit(columns, u, sample_weight=weight)
        return (weight @ (u - model.predict(columns)) ** 2 + np.sqrt(n) * model.coef_ @ model.coef_) / (2 * n)

    all_of_them = {support: objective(support) for support in combinations(range(12), 3)}
    best = min(all_of_them, key=all_of_them.get)
    found = best_subset_number(X, t, weight, k=3)
    assert found.proven
    assert set(found.support.tolist()) == set(best)
    assert found.objective == pytest.approx(all_of_them[best], rel=1e-8)


def test_starting_support_is_rarely_the_best_one():
    better = 0
    for seed in range(6):
        X, y, _ = correlated(seed)
        z = (X - X.mean(0)) / X.std(0)
        better += set(best_subset(X, y, k=3).support) != set(top_k(mean_difference(z, y), 3))
    assert better >= 4


def test_suppressor_pair_is_found_where_the_mean_difference_takes_a_decoy():
    X, y = suppressor()
    ranked = KSparseProbe(k=2).fit(X, y)
    assert ranked.support_.tolist() != [0, 1]
    assert ranked.score(X, y) == pytest.approx(0.638, abs=0.04)
    for matrix in (X, sparse.csr_matrix(X), suppressor(extra=42)[0]):
        probe = OptimalSparseProbe(k=2).fit(matrix, y)
        assert set(probe.support_) == {0, 1}
        assert probe.score(matrix, y) == 1.0
        assert probe.search_.proven
    fresh = suppressor(seed=5)
    assert OptimalSparseProbe(k=2).fit(X, y).score(*fresh) > 0.999


@pytest.mark.parametrize("loss", ["hinge", "squares"])
def test_every_plane_lies_below_the_objective_and_touches_it_where_it_was_taken(loss):
    rng = np.random.default_rng(2)
    X, y, t = correlated(3)
    z, weight = (X - X.mean(0)) / X.std(0), rng.uniform(0.5, 2, len(y))
    taken = Hinge(z, y.astype(float), weight, 0.1) if loss == "hinge" else Squares(z, (t - t.mean()) / t.std(), weight, 0.1)
    points = [*(rng.random((6, 12)) * (rng.random((6, 12)) < 0.6)), *np.eye(12)[:4], np.ones(12)]
    values = [plane.constant + plane.slopes @ s for s in points for plane in [taken.plane(s)]]
    for s in points:
        plane = taken.plane(s)
        assert (plane.slopes <= 0).all()
        for other, value in zip(points, values, strict=True):
            assert plane.constant + plane.slopes @ other <= value * (1 + 1e-6)


def test_plane_of_the_hinge_loss_is_the_minimum_of_its_primal():
    X, y, _ = correlated(1, n=40, d=3)
    z, weight = (X - X.mean(0)) / X.std(0), np.random.default_rng(0).uniform(0.5, 2, 40)
    sign = 2 * y - 1
    plane = Hinge(z, y.astype(float), weight, 0.2).plane(np.array([1.0, 0.0, 1.0]))

    def primal(v):
        return weight @ np.maximum(0, 1 - sign * (z[:, [0, 2]] @ v[:2] + v[2])) + v[:2] @ v[:2] / (2 * 0.2)

    found = min(
        minimize(primal, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11, "maxiter": 20_000}).fun
        for start in np.random.default_rng(1).normal(size=(5, 3))
    )
    assert plane.primal == pytest.approx(found, rel=1e-6)
    assert plane.constant + plane.slopes[[0, 2]].sum() == pytest.approx(found, rel=1e-6)


def test_time_limit_returns_the_best_so_far_with_an_honest_bound():
    rng = np.random.default_rng(1)
    y = (rng.random(600) < 0.3).astype(int)
    X = rng.normal(size=(600, 6)) @ rng.normal(size=(6, 40)) + 1.5 * rng.normal(size=(600, 40)) + 0.3 * y[:, None] * rng.random(40)
    weight = class_weights(y, np.ones(600))
    quick = best_subset(X, y, weight, k=5, config=SearchConfig(time_limit=0.7))
    assert not quick.proven
    assert 0.001 < quick.gap <= 1
    assert quick.seconds < 3
    assert "not proven" in str(quick)
    longer = best_subset(X, y, weight, k=5, config=SearchConfig(time_limit=5.0))
    assert quick.lower_bound <= longer.objective <= quick.objective
    assert longer.gap < quick.gap


def test_filter_limits_the_search_to_the_largest_mean_differences_and_k_to_what_passes_it():
    X, y = suppressor()
    kept = set(top_k(mean_difference(X, y), 4).tolist())
    found = best_subset(X, y, k=3, config=SearchConfig(filter_size=4))
    assert set(found.support.tolist()) <= kept
    assert found.n_searched == 4
    assert OptimalSparseProbe(k=6, filter_size=2).fit(X, y).search_.n_searched == 6
    with pytest.raises(ConfigError, match=r"k must be in 1\.\.4.*got 5.*filter_size"):
        best_subset(X, y, k=5, config=SearchConfig(filter_size=4))


def test_estimators_are_the_usual_fits_on_the_columns_found():
    X, y, t = correlated(4)
    probe = OptimalSparseProbe(k=3, C=0.7).fit(X, np.array(["a", "b"])[y])
    columns = X[:, probe.support_]
    z = (columns - columns.mean(0)) / columns.std(0)
    oracle = LogisticRegression(C=0.7, class_weight="balanced", tol=1e-10, max_iter=1000).fit(z, y)
    np.testing.assert_allclose(probe.decision_function(X), oracle.decision_function(z), rtol=1e-4, atol=1e-5)
    number = OptimalSparseRegressor(k=3).fit(X, t)
    assert number.score(X, t) > score_of_the_top_three(X, t)
    weighted = OptimalSparseProbe(k=2, class_weight={0: 1.0, 1: 5.0}).fit(X, y)
    assert weighted.search_.objective != OptimalSparseProbe(k=2, class_weight=None).fit(X, y).search_.objective


def score_of_the_top_three(X, t):
    z = (X - X.mean(0)) / X.std(0)
    first = np.argsort(-np.abs(z.T @ (t - t.mean())))[:3]
    return Ridge(alpha=1e-3 * len(t)).fit(z[:, first], t).score(z[:, first], t) - 1e-9


def test_result_shows_support_bounds_and_state():
    X, y = suppressor(300)
    found = best_subset(X, y, k=2)
    assert isinstance(found, BestSubset)
    assert found.table().column("column") == found.support.tolist()
    assert "proven best" in str(found) and "lower bound" in found._repr_html_()
    seconds, upper, lower = found.bounds.T
    assert (np.diff(seconds) >= 0).all() and (np.diff(upper) <= 0).all() and (np.diff(lower) >= 0).all()
    assert [trace.name for trace in found.figure().data] == ["best support found", "lower bound for all supports"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": -1.0}, "gamma must be positive"),
        ({"filter_size": 0}, "filter_size must be at least 1"),
        ({"time_limit": 0.0}, "time_limit must be a positive number of seconds"),
        ({"tolerance": 1.0}, r"tolerance must be in \(0, 1\)"),
    ],
)
def test_bad_search_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        SearchConfig(**options)
