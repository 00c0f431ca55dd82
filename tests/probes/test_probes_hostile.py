"""What every estimator that chooses columns does with input that is not nice: the right answer or a clear error."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone, is_regressor

from probes.linear import DenseProbe
from probes.optimal import OptimalSparseProbe, OptimalSparseRegressor
from probes.selection import NUMBER_RANKINGS, RANKINGS
from probes.sparse import KSparseProbe, KSparseRegressor

CLASSIFIERS = [
    *[KSparseProbe(k=2, ranking=name) for name in RANKINGS],
    KSparseProbe(k=2, ranking="random", random_state=0),
    DenseProbe(),
    OptimalSparseProbe(k=2, filter_size=6),
]
REGRESSORS = [*[KSparseRegressor(k=2, ranking=name) for name in NUMBER_RANKINGS], OptimalSparseRegressor(k=2, filter_size=6)]
each = pytest.mark.parametrize("estimator", [*CLASSIFIERS, *REGRESSORS], ids=lambda e: f"{type(e).__name__}-{getattr(e, 'ranking', '')}")
each_classifier = pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: f"{type(e).__name__}-{getattr(e, 'ranking', '')}")
both_kinds = pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csr_array], ids=["dense", "matrix", "array"])


def problem(n=90, d=12, seed=0):
    """Columns 3 and 8 carry the labels; many zeros, so that the sparse form is one."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = rng.normal(size=(n, d)) * rng.uniform(0.5, 3, d)
    X[:, 3] += 6 * y
    X[:, 8] -= 5 * y
    X[np.abs(X) < 0.3] = 0
    return X, y


def says_right(estimator, X, y):
    """Whether a fitted estimator tells the classes apart on the rows it saw; one that draws its columns has only to answer."""
    if getattr(estimator, "ranking", "") == "random":
        return np.isfinite(estimator.decision_function(X)).all()
    return estimator.score(X, y) > (0.5 if is_regressor(estimator) else 0.9)


@each
@both_kinds
def test_constant_columns_get_no_weight(estimator, kind):
    X, y = problem()
    X[:, 0], X[:, 1], X[:, 11] = 0.0, 0.1, -1e6
    probe = clone(estimator).fit(kind(X), y)
    assert says_right(probe, kind(X), y)
    assert (np.ravel(probe.coef_)[[0, 1, 11]] == 0).all()
    assert np.isfinite(np.ravel(probe.coef_)).all()


@each
@both_kinds
def test_only_constant_columns_give_the_majority_or_the_mean(estimator, kind):
    X, y = np.full((30, 4), 0.1), (np.arange(30) < 20).astype(int)
    given = clone(estimator)
    if not is_regressor(given):
        given.set_params(class_weight=None)
    predicted = given.fit(kind(X), y).predict(kind(X))
    np.testing.assert_allclose(predicted, np.full(30, y.mean()) if is_regressor(given) else np.ones(30), rtol=1e-6)


@each_classifier
@both_kinds
def test_one_class_is_an_error_that_says_so(estimator, kind):
    X, y = problem()
    with pytest.raises(ValueError, match="one class"):
        clone(estimator).fit(kind(X), 0 * y)
    with pytest.raises(ValueError, match="one class"):
        clone(estimator).fit(kind(X), y, sample_weight=y.astype(float))


@each
@both_kinds
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_error_in_fit_and_in_predict(estimator, kind, bad):
    X, y = problem()
    probe = clone(estimator).fit(kind(X), y)
    X[4, 5] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        clone(estimator).fit(kind(X), y)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        probe.predict(kind(X))


@each
def test_duplicate_rows_are_rows_of_double_weight(estimator):
    X, y = problem()
    rows = np.r_[np.arange(90), np.arange(20)]
    weight = 1.0 + (np.arange(90) < 20)
    twice, weighted = clone(estimator).fit(X[rows], y[rows]), clone(estimator).fit(X, y, sample_weight=weight)
    assert set(twice.support_) == set(weighted.support_)
    np.testing.assert_allclose(twice.predict(X), weighted.predict(X), rtol=1e-6)


@each
def test_duplicate_columns_go_to_the_lowest_index_or_are_shared_and_do_no_harm(estimator):
    X, y = problem()
    X[:, 9] = X[:, 3]
    X[:, 10] = X[:, 3]
    probe = clone(estimator).fit(X, y)
    assert says_right(probe, X, y)
    if getattr(estimator, "ranking", "") in ("mean_difference", "pooled_t", "f_statistic", "welch_t", "correlation", "regression_f"):
        assert probe.support_.tolist() in ([3, 9], [3, 8])


@each
@both_kinds
def test_identical_rows_with_both_labels_are_answered(estimator, kind):
    X, y = np.ones((20, 3)) * np.array([1.0, 0.0, 2.0]), np.arange(20) % 2
    predicted = clone(estimator).fit(kind(X), y).predict(kind(X))
    assert np.isin(predicted, (0, 1)).all() or np.allclose(predicted, 0.5)


@each
@both_kinds
def test_more_columns_than_rows(estimator, kind):
    X, y = problem(n=40, d=300)
    probe = clone(estimator).fit(kind(X), y)
    assert says_right(probe, kind(X), y)


@each
def test_k_above_the_number_of_columns_uses_them_all(estimator):
    if "k" not in estimator.get_params():
        return
    X, y = problem(d=9)
    assert sorted(clone(estimator).set_params(k=50).fit(X, y).support_) == list(range(9))


@each_classifier
@both_kinds
@pytest.mark.parametrize("labels", [["ham", "spam"], [False, True], [-1, 1], [2.0, 7.0]], ids=["strings", "booleans", "signs", "floats"])
def test_labels_of_any_kind_come_back(estimator, kind, labels):
    X, y = problem()
    names = np.array(labels)[y]
    probe, plain = clone(estimator).fit(kind(X), names), clone(estimator).fit(kind(X), y)
    assert probe.classes_.tolist() == labels
    assert probe.predict(kind(X)).dtype == names.dtype
    assert (probe.predict(kind(X)) == np.array(labels)[plain.predict(kind(X))]).all()
    np.testing.assert_allclose(probe.predict_proba(kind(X)), plain.predict_proba(kind(X)))


@each
def test_sparse_and_dense_input_give_the_same_probe(estimator):
    X, y = problem()
    dense, csr = clone(estimator).fit(X, y), clone(estimator).fit(sparse.csr_matrix(X), y)
    assert dense.support_.tolist() == csr.support_.tolist()
    np.testing.assert_allclose(np.ravel(csr.coef_), np.ravel(dense.coef_), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(csr.predict(sparse.csc_matrix(X)), dense.predict(X), rtol=1e-6)


@each
def test_float32_gives_nearly_the_same_probe_and_the_input_is_left_alone(estimator):
    X, y = problem()
    single = X.astype(np.float32)
    before = single.copy()
    probe = clone(estimator).fit(single, y)
    assert (single == before).all()
    assert set(probe.support_) == set(clone(estimator).fit(X, y).support_)
