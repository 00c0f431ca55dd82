import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.base import fit_logistic
from probes.linear import DenseProbe
from probes.sparse import KSparseProbe
from sae.errors import ConfigError


@parametrize_with_checks(
    [KSparseProbe(), KSparseProbe(k=2, ranking="pooled_t"), KSparseProbe(k=1, ranking="random", random_state=3), DenseProbe()]
)
def test_probe_passes_every_check_of_scikit_learn(estimator, check):
    check(estimator)


def problem(n=300, d=40, seed=0, p=0.3):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < p).astype(int)
    X = rng.normal(size=(n, d)) * rng.uniform(0.2, 5, d) + rng.normal(size=d)
    X[:, 7] += 2.0 * y
    X[:, 31] -= 1.5 * y
    X[np.abs(X) < 0.4] = 0
    return X, y


def test_probe_on_all_columns_is_scikit_learn_on_z_scores():
    X, y = problem()
    oracle = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.3, class_weight="balanced", solver="lbfgs", tol=1e-12, max_iter=10000)
    ).fit(X, y)
    fresh = problem(seed=1)[0]
    for probe in (DenseProbe(C=0.3), KSparseProbe(k=40, C=0.3)):
        np.testing.assert_allclose(probe.fit(X, y).decision_function(fresh), oracle.decision_function(fresh), rtol=1e-5, atol=1e-6)


def test_sparse_and_dense_matrices_give_the_same_probe():
    X, y = problem()
    for probe in (KSparseProbe(k=5), KSparseProbe(k=5, ranking="welch_t"), DenseProbe()):
        dense, csr = clone(probe).fit(X, y), clone(probe).fit(sparse.csr_matrix(X), y)
        assert dense.support_.tolist() == csr.support_.tolist()
        np.testing.assert_allclose(csr.coef_, dense.coef_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(csr.decision_function(sparse.csr_array(X)), dense.decision_function(X), rtol=1e-6, atol=1e-8)


def test_both_solvers_find_the_same_minimum(monkeypatch):
    X, y = problem()
    options = {"C": 1.0, "class_weight": "balanced"}
    newton = fit_logistic(X, y, np.ones(len(y)), **options)
    monkeypatch.setattr("probes.base.NEWTON_COLUMNS", 1)
    for matrix in (X, sparse.csr_matrix(X)):
        other = fit_logistic(matrix, y, np.ones(len(y)), **options)
        np.testing.assert_allclose(other.coef, newton.coef, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(other.intercept, newton.intercept, rtol=1e-4)


def test_scaling_a_column_changes_nothing_but_its_coefficient():
    X, y = problem()
    scales = np.random.default_rng(5).uniform(0.01, 100, X.shape[1])
    before, after = DenseProbe().fit(X, y), DenseProbe().fit(X * scales + 3.0, y)
    np.testing.assert_allclose(after.decision_function(X * scales + 3.0), before.decision_function(X), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(after.coef_ * scales, before.coef_, rtol=1e-6, atol=1e-9)


def test_constant_columns_get_no_weight_and_do_no_harm():
    X, y = problem()
    X[:, 3], X[:, 4] = 0.1, 0.0
    probe = DenseProbe().fit(X, y)
    assert probe.coef_[0, 3] == probe.coef_[0, 4] == 0
    assert np.isfinite(probe.coef_).all()
    assert not {3, 4} & set(KSparseProbe(k=38, ranking="pooled_t").fit(X, y).support_.tolist())


def test_coefficients_off_the_support_are_zero_and_the_support_is_in_order_of_the_scores():
    X, y = problem()
    probe = KSparseProbe(k=6, ranking="pooled_t").fit(X, y)
    assert set(np.flatnonzero(probe.coef_[0])) == set(probe.support_)
    assert probe.support_[0] == 7
    assert (np.diff(np.abs(probe.scores_[probe.support_])) <= 0).all()


def test_random_ranking_does_not_look_at_the_labels():
    X, y = problem()
    supports = [KSparseProbe(k=5, ranking="random", random_state=2).fit(X, labels).support_.tolist() for labels in (y, 1 - y, y[::-1])]
    assert supports[0] == supports[1] == supports[2]
    assert supports[0] != KSparseProbe(k=5, ranking="random", random_state=3).fit(X, y).support_.tolist()


def test_sparse_selection_densifies_only_the_chosen_columns():
    X = sparse.random(200, 400_000, density=1e-4, random_state=0, format="csr")  # 640 MB if it were dense
    y = np.arange(200) % 2
    import tracemalloc

    tracemalloc.start()
    KSparseProbe(k=3).fit(X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (KSparseProbe(k=0), ["k must be", "at least 1", "got 0"]),
        (KSparseProbe().set_params(k=2.5), ["k must be a whole number", "2.5"]),
        (KSparseProbe(ranking="magic"), ["ranking must be one of", "mean_difference", "'magic'"]),
        (KSparseProbe(ranking="random"), ["random_state must be an integer", "None"]),
        (KSparseProbe(C=0.0), ["C must be a positive number", "got 0.0"]),
        (DenseProbe(C=-1.0), ["C must be a positive number", "-1.0", "DenseProbe"]),
    ],
)
def test_bad_parameters_are_named(probe, words):
    X, y = problem(50)
    with pytest.raises(ConfigError) as caught:
        probe.fit(X, y)
    assert all(word in str(caught.value) for word in words)


def test_suppressor_is_missed_by_the_ranking_but_solved_by_the_right_pair():
    rng = np.random.default_rng(0)
    n = 1500
    y = rng.integers(0, 2, n)
    z = 3 * rng.normal(size=n)
    sign = 2 * y - 1
    X = np.stack(
        [0.6 * sign + z + 0.1 * rng.normal(size=n), z + 0.1 * rng.normal(size=n)] + [0.25 * sign + rng.normal(size=n) for _ in range(6)], 1
    )
    ranked = KSparseProbe(k=2).fit(X, y)
    assert 0 in ranked.support_
    assert 1 not in ranked.support_
    assert ranked.score(X, y) < 0.72
    assert KSparseProbe(k=2).fit(X[:, :2], y).score(X[:, :2], y) > 0.99
