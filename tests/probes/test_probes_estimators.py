import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.base import fit_logistic
from probes.linear import DenseProbe
from probes.optimal import OptimalSparseProbe, OptimalSparseRegressor
from probes.selection import RANKINGS
from probes.sparse import KSparseProbe, KSparseRegressor, fit_path
from sae.errors import ConfigError

QUICK = [name for name in RANKINGS if name not in ("mean_difference", "mutual_information")]


@parametrize_with_checks(
    [
        KSparseProbe(),
        KSparseProbe(k=1, ranking="random", random_state=3),
        *[KSparseProbe(k=2, ranking=name) for name in QUICK],
        KSparseProbe(k=2, ranking="mutual_information", filter_size=3),
        DenseProbe(),
        OptimalSparseProbe(filter_size=5),
        KSparseRegressor(),
        KSparseRegressor(k=3, ranking="regression_f", alpha=0.1, l1_ratio=0.5),
        KSparseRegressor(k=1, ranking="random", random_state=3),
        KSparseRegressor(k=2, ranking="mutual_information", filter_size=3),
        OptimalSparseRegressor(),
    ]
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


def test_path_is_every_k_fitted_by_itself_from_one_ranking(monkeypatch):
    X, y = problem()
    labels = np.array(["no", "yes"])[y]
    calls = []
    ranking = RANKINGS["welch_t"]
    for matrix in (X, sparse.csr_matrix(X)):
        monkeypatch.setitem(RANKINGS, "welch_t", ranking)
        alone = {k: KSparseProbe(k=k, ranking="welch_t", C=0.3).fit(matrix, labels) for k in (1, 2, 5, 40, 70)}
        monkeypatch.setitem(RANKINGS, "welch_t", lambda *given: calls.append(1) or ranking(*given))
        path = fit_path(KSparseProbe(ranking="welch_t", C=0.3), matrix, labels, [5, 1, 2, 70, 40])
        assert list(path) == [1, 2, 5, 40, 70]
        for k, probe in path.items():
            assert probe.k == k
            assert probe.support_.tolist() == alone[k].support_.tolist()
            np.testing.assert_allclose(probe.coef_, alone[k].coef_, rtol=1e-5, atol=1e-7)
            assert probe.predict(matrix).tolist() == alone[k].predict(matrix).tolist()
    assert len(calls) == 2


def test_warm_start_takes_fewer_steps():
    X, y = problem()
    weight = np.ones(len(y))
    options = {"C": 1.0, "class_weight": "balanced"}
    cold = fit_logistic(X, y, weight, **options)
    warm = fit_logistic(X, y, weight, **options, start=cold)
    assert warm.n_iter < cold.n_iter
    np.testing.assert_allclose(warm.coef, cold.coef, rtol=1e-6)


def test_one_against_the_rest_gives_every_class_columns_of_its_own():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    X = rng.normal(size=(600, 20))
    X[np.arange(600), 4 * y] += 3.0  # class c is seen in column 4 c
    names = np.array(["cat", "dog", "fox"])[y]
    for matrix in (X, sparse.csr_matrix(X)):
        model = OneVsRestClassifier(KSparseProbe(k=1)).fit(matrix, names)
        assert [probe.support_.tolist() for probe in model.estimators_] == [[0], [4], [8]]
        assert model.score(matrix, names) > 0.8
    with pytest.raises(ValueError, match=r"(?s)Only binary.*multiclass.*OneVsRestClassifier"):
        KSparseProbe(k=1).fit(X, names)


def test_regressor_is_ridge_and_elastic_net_of_scikit_learn_on_the_chosen_z_scores():
    X, _ = problem()
    rng = np.random.default_rng(3)
    t = 2 * X[:, 7] - X[:, 31] + rng.normal(size=len(X)) + 50
    weight = rng.uniform(0.2, 3, len(X))
    for l1_ratio in (0.0, 0.6):
        found = KSparseRegressor(k=6, alpha=0.05, l1_ratio=l1_ratio).fit(X, t, weight)
        assert set(found.support_[:2]) == {7, 31}
        columns, share = X[:, found.support_], weight / weight.sum()
        z = (columns - share @ columns) / np.sqrt(share @ (columns - share @ columns) ** 2)
        u = (t - share @ t) / np.sqrt(share @ (t - share @ t) ** 2)
        if l1_ratio:
            oracle = ElasticNet(alpha=0.05, l1_ratio=l1_ratio, tol=1e-10, max_iter=100_000).fit(z, u, sample_weight=weight)
        else:
            oracle = Ridge(alpha=0.05 * weight.sum()).fit(z, u, sample_weight=weight)
        expected = oracle.predict(z) * np.sqrt(share @ (t - share @ t) ** 2) + share @ t
        np.testing.assert_allclose(found.predict(X), expected, rtol=1e-6)
        csr = clone(found).fit(sparse.csr_matrix(X), t, weight)
        np.testing.assert_allclose(csr.predict(sparse.csr_matrix(X)), expected, rtol=1e-6)


def test_a_constant_number_is_predicted_as_that_constant():
    X, _ = problem(30)
    for probe in (KSparseRegressor(k=2), OptimalSparseRegressor()):
        assert probe.fit(X, np.full(30, 0.1)).predict(X) == pytest.approx(np.full(30, 0.1))


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
        (KSparseProbe(filter_size=0), ["filter_size must be a whole number", "got 0"]),
        (KSparseProbe(ranking="l1_path").set_params(random_state="x"), ["random_state must be an integer or None", "'x'"]),
        (KSparseRegressor(ranking="welch_t"), ["ranking must be one of correlation", "'welch_t'"]),
        (KSparseRegressor(alpha=0.0), ["alpha must be a positive number", "got 0.0"]),
        (KSparseRegressor(l1_ratio=1.5), ["l1_ratio must be in [0, 1]", "1.5"]),
        (OptimalSparseProbe(k=0), ["k must be a whole number", "OptimalSparseProbe"]),
        (OptimalSparseProbe(time_limit=-1.0), ["time_limit must be a positive number", "-1.0"]),
        (OptimalSparseRegressor(gamma=0.0), ["gamma must be a positive number", "0.0"]),
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
