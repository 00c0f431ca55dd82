"""Validation rules, the choice of a setting, and the columns that a latent probe reads."""

from itertools import combinations

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from probes.baselines import (
    LeadingColumns,
    RandomColumns,
    ValidatedProbe,
    baselines,
    boosted_trees,
    latent_probe,
    logistic_regression,
    validation_folds,
)
from probes.baselines.choice import ranking_auc
from probes.baselines.methods import STRENGTHS, log2_spaced
from probes.validation import evaluate_probe
from sae.errors import ConfigError, SaeError


def problem(n=60, d=10, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    X = rng.normal(size=(n, d))
    X[:, 2] += signal * y
    return X, y


def test_up_to_three_rows_there_is_no_search():
    for n in (2, 3):
        assert validation_folds(np.arange(n) % 2) == []


@pytest.mark.parametrize("n", [4, 7, 12])
def test_up_to_twelve_rows_every_pair_of_both_classes_is_left_out(n):
    y = np.arange(n) % 2
    folds = validation_folds(y)
    pairs = {pair for pair in combinations(range(n), 2) if y[pair[0]] != y[pair[1]]}
    assert {tuple(fold.test.tolist()) for fold in folds} == pairs
    assert all(sorted([*fold.train, *fold.test]) == list(range(n)) for fold in folds)


@pytest.mark.parametrize("n", [13, 127])
def test_below_128_rows_there_are_six_stratified_folds(n):
    y = np.random.default_rng(n).permutation(np.arange(n) % 2)
    oracle = StratifiedKFold(6, shuffle=True, random_state=42).split(y[:, None], y)
    assert [fold.test.tolist() for fold in validation_folds(y)] == [test.tolist() for _, test in oracle]


@pytest.mark.parametrize(("n", "n_last"), [(128, 25), (300, 60), (499, 99), (500, 100), (2000, 100)])
def test_with_more_rows_the_last_are_held_out_and_never_more_than_a_hundred(n, n_last):
    (fold,) = validation_folds(np.arange(n) % 2)
    assert fold.test.tolist() == list(range(n - n_last, n))
    assert fold.train.tolist() == list(range(n - n_last))


def test_folds_that_lack_a_class_on_a_side_are_dropped():
    one = np.array([1, 0, 0, 0, 0, 0])
    assert validation_folds(one) == []  # the pair with the only positive leaves none to train on
    two = np.array([1, 1, 0, 0, 0, 0])
    assert {tuple(fold.test.tolist()) for fold in validation_folds(two)} == {(i, j) for i in (0, 1) for j in range(2, 6)}
    rare = np.r_[np.ones(3, int), np.zeros(47, int)]
    folds = validation_folds(rare)
    assert len(folds) == 3
    assert all(rare[fold.test].any() and rare[fold.train].any() for fold in folds)
    assert validation_folds(np.r_[np.ones(100, int), np.zeros(100, int)]) == []  # the last rows are all of one class


@pytest.mark.parametrize(("n_groups", "n_folds"), [(3, 0), (8, 16), (50, 6), (200, 1)])
def test_documents_stay_on_one_side_of_validation(n_groups, n_folds):
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(n_groups), 4))
    y = (groups % 2).astype(int)
    folds = validation_folds(y, groups)
    assert len(folds) == n_folds
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
    if n_folds == 1:
        assert len(set(groups[folds[0].test])) == 40
    with pytest.raises(ConfigError, match="one entry per label, got 3"):
        validation_folds(y, groups[:3])


def test_auc_is_that_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    y, decision = rng.integers(0, 2, 200), rng.normal(size=200).round(1)
    assert ranking_auc(y, decision) == pytest.approx(roc_auc_score(y, decision), rel=1e-12)
    assert np.isnan(ranking_auc(np.ones(3, int), decision[:3]))


class Scripted(ClassifierMixin, BaseEstimator):
    """Decides by the column that it is told: what each setting scores can be planted."""

    def __init__(self, column=0):
        self.column = column

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X[:, self.column]

    def predict(self, X):
        return self.classes_[(self.decision_function(X) > 0).astype(int)]


def columns_in_turn(n, d):
    return [{"column": i} for i in range(d)]


def test_the_setting_with_the_highest_validation_auc_is_chosen_and_the_first_of_equal_ones():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    noisy, good = y + rng.normal(size=200), y + 0.3 * rng.normal(size=200)
    X = np.stack([noisy, good, 2 * good, good + 7, rng.normal(size=200)], 1)
    probe = ValidatedProbe(Scripted(), columns_in_turn).fit(X, y)
    (fold,) = validation_folds(y)
    expected = [roc_auc_score(y[fold.test], X[fold.test, i]) for i in range(5)]
    np.testing.assert_allclose(probe.val_aucs_, expected, atol=1e-12)
    assert probe.setting_ == {"column": 1}
    assert probe.val_auc_ == pytest.approx(expected[1])


def test_with_equal_settings_the_weakest_penalty_wins():
    X, y = problem(n=150, signal=40.0)  # any strength separates the classes
    assert logistic_regression().fit(X, y).setting_ == {"logistic__C": max(STRENGTHS)}
    assert STRENGTHS[0] == 1e5 == max(STRENGTHS)
    assert len(STRENGTHS) == 10
    assert STRENGTHS[-1] == pytest.approx(1e-5)


def test_without_a_search_the_first_setting_is_taken_and_judged_on_the_training_rows():
    X, y = problem(n=3)
    probe = ValidatedProbe(Scripted(), columns_in_turn).fit(X, y)
    assert probe.n_validation_ == 0
    assert probe.setting_ == {"column": 0}
    assert probe.val_auc_ == roc_auc_score(y, X[:, 0])


@pytest.mark.parametrize("n", [7, 40, 180])
def test_logistic_regression_is_a_grid_search_over_a_pipeline(n):
    X, y = problem(n=n, seed=3)
    folds = validation_folds(y)
    grid = GridSearchCV(
        Pipeline([("scale", StandardScaler()), ("logistic", LogisticRegression(max_iter=2000))]),
        [{"logistic__C": [C]} for C in STRENGTHS],
        scoring="roc_auc",
        cv=[tuple(fold) for fold in folds],
    ).fit(X, y)
    probe = logistic_regression().fit(X, y)
    np.testing.assert_allclose(probe.val_aucs_, grid.cv_results_["mean_test_score"], atol=1e-12)
    assert probe.setting_ == grid.best_params_
    fresh = problem(seed=9)[0]
    np.testing.assert_allclose(probe.decision_function(fresh), grid.decision_function(fresh), rtol=1e-8)


def test_what_a_pipeline_learns_before_its_last_step_never_sees_validation_rows():
    """Columns chosen on all rows of pure noise would validate far above one half."""
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(80, 4000)), rng.permutation(np.arange(80) % 2)
        found.append(latent_probe(16, penalty="l2").fit(X, y).val_auc_)
    assert abs(np.mean(found) - 0.5) < 0.15


def test_settings_that_do_not_converge_are_passed_over_and_none_at_all_is_an_error():
    X, y = problem(n=80)

    def steps(n, d):
        return [{"max_iter": 1, "C": 1e5}, {"max_iter": 1000, "C": 1.0}]

    probe = ValidatedProbe(LogisticRegression(), steps).fit(X, y)
    assert np.isnan(probe.val_aucs_[0])
    assert probe.setting_["C"] == 1.0
    with pytest.raises(SaeError, match="none of 1 settings of LogisticRegression converged on 80 rows"):
        ValidatedProbe(LogisticRegression(), lambda n, d: [{"max_iter": 1, "C": 1e5}]).fit(X, y)
    with pytest.raises(SaeError, match="none of 1 settings"):
        ValidatedProbe(LogisticRegression(), lambda n, d: [{"max_iter": 1, "C": 1e5}]).fit(X[[0, 1, 2]] * 1e3, np.array([0, 1, 0]))


@pytest.mark.parametrize("name", list(baselines()))
@pytest.mark.parametrize("n", [2, 9, 30, 140])
def test_every_baseline_fits_any_number_of_rows_and_reads_a_strong_signal(name, n):
    probe = boosted_trees(n_settings=2) if name == "boosted trees" else baselines()[name]
    X, y = problem(n=n, d=6, signal=4.0)
    y[:2] = [0, 1]
    X[:, 2] = np.random.default_rng(1).normal(size=n) + 4 * y
    fresh, truth = problem(n=300, d=6, seed=5, signal=4.0)
    names = np.array(["no", "yes"])
    auc = roc_auc_score(truth, probe.fit(X, names[y]).decision_function(fresh))
    assert auc > {2: 0.3, 9: 0.6, 30: 0.9, 140: 0.95}[n]
    assert set(probe.predict(fresh)) <= {"no", "yes"}
    np.testing.assert_allclose(probe.predict_proba(fresh).sum(1), 1)


def test_settings_are_the_same_for_the_same_seed():
    for name, probe in baselines(seed=3).items():
        assert probe.settings(50, 20) == baselines(seed=3)[name].settings(50, 20)
    assert baselines(seed=3)["perceptron"].settings(50, 20) != baselines(seed=5)["perceptron"].settings(50, 20)
    assert len(baselines()["boosted trees"].settings(50, 20)) == 10
    assert [s["neighbours__n_neighbors"] for s in baselines()["nearest neighbours"].settings(40, 9)][-1] == 40
    assert max(s["components__n_components"] for s in baselines()["principal components"].settings(500, 300)) == 100
    assert log2_spaced(1, 8, 4) == [1, 2, 4, 8]


def test_a_probe_is_scored_by_documents_like_any_other():
    X, y = problem(n=120, signal=3.0)
    assert evaluate_probe(logistic_regression(), X, y, np.arange(120) // 2, n_bootstrap=10, n_folds=3).auc.value > 0.9


def test_leading_columns_are_those_with_the_largest_difference_divided_where_asked():
    rng = np.random.default_rng(0)
    y = np.arange(100) % 2
    X = np.zeros((100, 5))
    X[:, 1] = 10 * (1 + 0.5 * y)  # always active: difference 5, in its own units 5 / 12.5
    X[:, 3] = 2 * y * (rng.random(100) < 0.9)  # difference about 1.8, in its own units about 0.9
    X[:, 4] = -3 * (1 - y)
    assert LeadingColumns(3).fit(X, y).support_.tolist() == [1, 4, 3]
    divided = LeadingColumns(3, divide=True).fit(X, y)
    assert divided.support_.tolist() == [4, 3, 1]
    np.testing.assert_allclose(divided.scale_, [3, 2, 12.5])
    np.testing.assert_allclose(divided.transform(X)[:, 1], X[:, 3] / 2)
    for csr in (sparse.csr_matrix(X), sparse.csr_array(X)):
        np.testing.assert_array_equal(LeadingColumns(3, divide=True).fit(csr, y).transform(csr), divided.transform(X))
    assert divided.get_feature_names_out().tolist() == ["x4", "x3", "x1"]


def test_a_latent_probe_never_makes_sparse_codes_dense():
    import tracemalloc

    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(200), 40)
    codes = sparse.csr_matrix((rng.random(8000), (rows, rng.integers(0, 400_000, 8000))), (200, 400_000))  # 640 MB if it were dense
    tracemalloc.start()
    probe = latent_probe(8).fit(codes, np.arange(200) % 2)
    probe.decision_function(codes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
    assert probe.n_features_in_ == 400_000


def test_random_columns_are_a_share_of_them_and_do_not_look():
    X, y = problem(d=20)
    first, again, other = (RandomColumns(0.25, seed).fit(X, y).get_support().tolist() for seed in (1, 1, 2))
    assert sum(first) == 5
    assert first == again != other
    assert RandomColumns(0.25, 1).fit(7 * X[::-1]).get_support().tolist() == first


def holes(X):
    X = X.copy()
    X[2, 2] = np.nan
    return X


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda X, y: logistic_regression().fit(holes(X), y), ValueError, ["NaN"]),
        (lambda X, y: logistic_regression().fit(X, 0 * y), ValueError, ["one class"]),
        (lambda X, y: logistic_regression().fit(X, np.arange(60) % 3), ValueError, ["Only binary"]),
        (lambda X, y: logistic_regression().fit(X, y, groups=y[:5]), ConfigError, ["one entry per label", "5"]),
        (lambda X, y: logistic_regression().fit(sparse.csr_matrix(X), y), TypeError, ["dense data is required"]),
        (lambda X, y: latent_probe(0).fit(X, y), ConfigError, ["k must be a whole number", "got 0"]),
        (lambda X, y: LeadingColumns(2.5).fit(X, y), ConfigError, ["2.5"]),
        (lambda X, y: LeadingColumns(2, divide="yes").fit(X, y), ConfigError, ["divide must be", "'yes'"]),
        (lambda X, y: RandomColumns(0.0).fit(X, y), ConfigError, ["share must be in (0, 1]", "0.0"]),
        (lambda X, y: ValidatedProbe(LogisticRegression(), [{"C": 1}]).fit(X, y), ConfigError, ["settings must be a function"]),
        (lambda X, y: ValidatedProbe(LogisticRegression(), lambda n, d: []).fit(X, y), ConfigError, ["at least one setting"]),
        (lambda X, y: boosted_trees(n_settings=0), ConfigError, ["n_settings", "got 0"]),
    ],
)
def test_bad_input_is_named(call, error, words):
    X, y = problem()
    with pytest.raises(error) as caught:
        call(X, y)
    assert all(word in str(caught.value) for word in words), caught.value


def test_degenerate_columns_do_no_harm():
    X, y = problem(n=40, d=200, signal=3.0)
    X[:, 0], X[:, 1], X[:, 3] = 5.0, 0.0, X[:, 2]
    for probe in (logistic_regression(), latent_probe(300), latent_probe(5, penalty="l2", divide=True)):
        fresh, truth = problem(n=400, d=200, seed=2, signal=3.0)
        fresh[:, 3] = fresh[:, 2]
        assert roc_auc_score(truth, probe.fit(X, y == 1).decision_function(fresh)) > 0.75
