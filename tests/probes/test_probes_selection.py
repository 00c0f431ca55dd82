import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.feature_selection import f_classif, f_regression, mutual_info_classif
from sklearn.linear_model import LogisticRegression

from probes.selection import (
    MANY_CLASSES,
    NUMBER_RANKINGS,
    RANKINGS,
    adaptive_thresholding,
    l1_logistic,
    l1_path,
    linear_svm,
    mean_difference,
    moments,
    mutual_information,
    random_scores,
    rank,
    rank_number,
    standardized_difference,
    top_k,
)
from probes.selection.penalised import Rows, elastic_net_logistic, origin
from sae.errors import ConfigError

FIT_ERROR = {"linear_svm": 1e-4, "l1_logistic": 1e-6, "l1_path": 1e-6}
"""What a score from an iterated fit may be off by, in the units of the score."""


def problem(n=200, d=60, seed=0, p=0.3):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < p).astype(np.int64)
    X = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + 5 * rng.normal(size=d)
    return X + y[:, None] * rng.normal(size=d), y


def planted(n, d, k, shift, share, seed):
    """x ~ N(0, 1), shifted by y on a random support, then multiplied by a sigmoid: the generator of the paper's own tests."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) < share * n).astype(np.int64)
    support = rng.choice(d, k, replace=False)
    x = rng.normal(size=(n, d))
    x[:, support] += shift * (2 * y[:, None] - 1)
    return x / (1 + np.exp(-1.702 * x)), y, set(support.tolist())


@pytest.mark.parametrize("ranking", list(RANKINGS))
def test_every_ranking_recovers_the_whole_planted_support(ranking):
    for seed in range(1 if ranking == "mutual_information" else 3):
        X, y, support = planted(2000, 400, 5, 0.5, 0.2, seed)
        assert set(top_k(rank(X, y, ranking=ranking), 5).tolist()) == support


@pytest.mark.parametrize(
    ("ranking", "least"),
    [("mean_difference", 0.95), ("f_statistic", 0.95), ("l1_path", 0.95), ("adaptive_thresholding", 0.9), ("linear_svm", 0.85)],
)
def test_a_weak_shift_is_recovered_by_all_rankings_of_means_and_margins(ranking, least):
    found = []
    for seed in range(3):
        X, y, support = planted(2000, 400, 5, 0.2, 0.2, seed)
        found.append(len(set(top_k(rank(X, y, ranking=ranking), 5).tolist()) & support) / 5)
    assert np.mean(found) >= least


def test_a_weak_shift_is_recovered_in_part_by_mutual_information():
    X, y, support = planted(2000, 400, 5, 0.2, 0.2, 0)
    assert 1 <= len(set(top_k(rank(X, y, ranking="mutual_information"), 5).tolist()) & support) <= 4


def test_random_control_does_not_recover_the_support():
    _, _, support = planted(2000, 400, 5, 0.5, 0.2, 0)
    assert len(set(top_k(random_scores(400, seed=0), 5).tolist()) & support) <= 1


def test_t_and_f_agree_with_scipy_and_scikit_learn():
    X, y = problem()
    student = stats.ttest_ind(X[y == 1], X[y == 0])[0]
    np.testing.assert_allclose(rank(X, y, ranking="pooled_t"), student, rtol=1e-9)
    np.testing.assert_allclose(rank(X, y, ranking="f_statistic"), student**2, rtol=1e-6)
    np.testing.assert_allclose(rank(X, y, ranking="f_statistic"), f_classif(X, y)[0], rtol=1e-6)
    np.testing.assert_allclose(rank(X, y, ranking="welch_t"), stats.ttest_ind(X[y == 1], X[y == 0], equal_var=False)[0], rtol=1e-9)


def test_differences_agree_with_their_formulas():
    X, y = problem()
    difference = X[y == 1].mean(0) - X[y == 0].mean(0)
    np.testing.assert_allclose(mean_difference(X, y), difference, rtol=1e-9)
    np.testing.assert_allclose(standardized_difference(X, y), difference / X.std(0), rtol=1e-9)


def test_standardized_difference_t_and_f_order_the_columns_alike():
    X, y = problem()
    orders = [top_k(rank(X, y, ranking=name), 60).tolist() for name in ("standardized_difference", "pooled_t", "f_statistic")]
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] != top_k(mean_difference(X, y), 60).tolist()


def test_weights_count_rows():
    X, y = problem()
    weight = np.random.default_rng(1).integers(0, 4, len(y))
    repeated_X, repeated_y = np.repeat(X, weight, axis=0), np.repeat(y, weight)
    for matrix in (X, sparse.csr_matrix(X)):
        for name in RANKINGS:
            weighted = rank(matrix, y, weight.astype(float), ranking=name)
            expected = rank(repeated_X, repeated_y, ranking=name)
            np.testing.assert_allclose(weighted, expected, rtol=1e-8, atol=FIT_ERROR.get(name, 0.0))


def test_sparse_and_dense_scores_are_equal_also_with_explicit_zeros_and_unsummed_entries():
    X, y = problem()
    X[np.abs(X) < 2] = 0
    explicit = sparse.csr_matrix(np.where(X == 0, 1.0, X))
    explicit.data[(np.where(X == 0, 1.0, X) != X).ravel()] = 0.0
    rows, columns = np.nonzero(X)
    halves = X[rows, columns] / 2
    order = np.argsort(np.concatenate([rows, rows]), kind="stable")
    starts = np.concatenate([[0], np.cumsum(2 * np.bincount(rows, minlength=len(X)))])
    unsummed = sparse.csr_matrix(
        (np.concatenate([halves, halves])[order], np.concatenate([columns, columns])[order], starts), shape=X.shape
    )
    assert not unsummed.has_canonical_format
    before = unsummed.nnz
    for name in RANKINGS:
        for matrix in (sparse.csr_matrix(X), sparse.csr_array(X), explicit, unsummed):
            expected = rank(X, y, ranking=name)
            np.testing.assert_allclose(rank(matrix, y, ranking=name), expected, rtol=1e-8, atol=FIT_ERROR.get(name, 1e-12))
    assert unsummed.nnz == before  # the argument is not changed


def test_float32_columns_with_a_large_offset_keep_their_difference():
    rng = np.random.default_rng(0)
    y = np.arange(4000) % 2
    X = (1e4 + rng.normal(size=(4000, 3)) + y[:, None]).astype(np.float32)
    np.testing.assert_allclose(mean_difference(X, y), [1, 1, 1], atol=0.1)
    np.testing.assert_allclose(rank(sparse.csr_matrix(X), y, ranking="pooled_t"), rank(X, y, ranking="pooled_t"), rtol=1e-6)


def test_constant_columns_score_zero_and_class_constant_columns_are_infinite():
    y = np.array([0, 0, 0, 1, 1, 1, 1])
    X = np.stack([np.full(7, 0.1), np.zeros(7), 0.1 + 0.3 * y], axis=1)
    for matrix in (X, sparse.csr_matrix(X)):
        for name in ("pooled_t", "welch_t", "f_statistic"):
            assert rank(matrix, y, ranking=name).tolist() == [0, 0, np.inf]
        assert mean_difference(matrix, y)[:2].tolist() == [0, 0]


def test_top_k_gives_ties_to_the_lowest_index():
    assert top_k(np.array([1.0, -3.0, 3.0, 0.0, 3.0, -1.0]), 5).tolist() == [1, 2, 4, 0, 5]
    assert top_k(np.zeros(1000), 4).tolist() == [0, 1, 2, 3]


def test_moments_agree_with_numpy_over_more_columns_than_a_block(monkeypatch):
    monkeypatch.setattr("probes.selection.columns.COLUMNS_PER_BLOCK", 7)
    X, _ = problem()
    weight = np.random.default_rng(3).random(len(X))
    mean = np.average(X, axis=0, weights=weight)
    found = moments(X, weight)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.variance, np.average((X - mean) ** 2, axis=0, weights=weight), rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda X, y: rank(X, y, ranking="magic"), ["ranking must be one of", "'magic'"]),
        (lambda X, y: rank(X, 2 * y - 1), ["y must hold 0 and 1", "-1"]),
        (lambda X, y: rank(X, 0 * y), ["both classes", "class 1"]),
        (lambda X, y: rank(X, y, y.astype(float)), ["both classes", "0 of class 0"]),
        (lambda X, y: rank(X, (np.arange(len(y)) == 3).astype(int), ranking="welch_t"), ["degrees of freedom", "welch_t"]),
        (lambda X, y: rank(X, y, ranking="l1_path", filter_size=0), ["filter_size must be at least 1", "got 0"]),
        (lambda X, y: rank(X, y, np.full(len(y), 0.5), ranking="mutual_information"), ["sample_weight must be whole", "got 0.5"]),
        (lambda X, y: rank(X, 0 * y, ranking="mutual_information"), ["two classes", "got [0] only"]),
        (lambda X, y: rank(X, np.arange(len(y)) % 3, ranking="l1_path"), ["y must hold 0 and 1", "one against the rest"]),
        (lambda X, y: rank(X, 0 * y + 2, ranking="f_statistic"), ["at least two classes", "[2]"]),
        (lambda X, y: rank_number(X, X[:, 0], ranking="welch_t"), ["ranking must be one of correlation", "'welch_t'"]),
        (lambda X, y: rank_number(X, 0.0 * y + 0.1), ["y must not be constant", "got 0.1 in all 200 rows"]),
        (lambda X, y: top_k(X[0], 0), ["k must be in 1..d=60", "got 0"]),
        (lambda X, y: top_k(X[0], 61), ["k must be in 1..d=60", "got 61"]),
        (lambda X, y: top_k(np.array([1.0, np.nan]), 1), ["NaN", "1 of 2"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call(*problem())
    assert all(word in str(caught.value) for word in words), caught.value


def test_l1_logistic_is_scikit_learn_on_z_scores():
    X, y, _ = planted(1200, 60, 5, 0.2, 0.3, 0)
    z = (X - X.mean(0)) / X.std(0)
    oracle = LogisticRegression(l1_ratio=1, C=0.1, solver="saga", class_weight="balanced", tol=1e-9, max_iter=20000).fit(z, y)
    found = l1_logistic(X, y)
    assert 5 < np.count_nonzero(found) < 60
    assert set(np.flatnonzero(found)) == set(np.flatnonzero(oracle.coef_[0]))
    np.testing.assert_allclose(found, oracle.coef_[0], atol=1e-5)


def test_elastic_net_is_scikit_learn_also_where_the_classes_are_separated():
    X, y = problem(n=60, d=90)
    z = (X - X.mean(0)) / X.std(0)
    weight = np.random.default_rng(4).uniform(0.5, 2, len(y))
    for C, ratio in ((0.05, 0.9), (0.5, 0.6), (2.0, 0.3)):
        oracle = LogisticRegression(l1_ratio=ratio, C=C, solver="saga", tol=1e-9, max_iter=50000).fit(z, y, sample_weight=weight)
        rows = Rows(z, y.astype(float), weight)
        found = elastic_net_logistic(rows, l1=ratio / C, l2=(1 - ratio) / C, start=origin(rows))
        np.testing.assert_allclose(found.coef, oracle.coef_[0], atol=1e-4)
        assert found.intercept == pytest.approx(oracle.intercept_[0], abs=1e-4)


def test_columns_enter_the_l1_path_where_scikit_learn_first_gives_them_a_coefficient():
    X, y = problem()
    z = (X - X.mean(0)) / X.std(0)
    entry = l1_path(X, y)
    assert entry.max() == 1
    share = y.mean()
    weight = np.where(y == 1, 0.5 / share, 0.5 / (1 - share))
    largest = np.abs(z.T @ (weight * (y - 0.5))).max()  # balanced classes: the fit without columns says 1/2
    for penalty in (0.9, 0.6, 0.3):
        model = LogisticRegression(l1_ratio=1, C=1 / (penalty * largest), solver="saga", class_weight="balanced", tol=1e-9, max_iter=20000)
        nonzero = model.fit(z, y).coef_[0] != 0
        grid_step = 0.01 ** (1 / 59)
        assert (entry[nonzero] >= penalty * grid_step).all()
        assert (entry[~nonzero] <= penalty / grid_step).all()


def test_l1_path_prefers_one_of_two_copies_and_the_difference_of_means_takes_both():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    X = rng.normal(size=(600, 8))
    X[:, 0] += 1.2 * y
    X[:, 1] = X[:, 0] + 0.01 * rng.normal(size=600)
    X[:, 5] += 0.9 * y
    assert 5 in top_k(l1_path(X, y), 2)
    assert set(top_k(mean_difference(X, y), 2)) == {0, 1}


def test_adaptive_thresholding_keeps_the_support_that_each_elimination_left():
    X, y, _ = planted(800, 60, 5, 0.3, 0.4, 1)
    scores = adaptive_thresholding(X, y)
    z = (X - X.mean(0)) / X.std(0)
    assert sorted(scores) == list(range(1, 61))
    for k, smaller in ((32, 16), (8, 7), (4, 3), (2, 1)):
        alive = np.sort(top_k(scores, k))
        ratio = np.clip(np.exp(-k / 20), 0.1, 0.9)
        model = LogisticRegression(l1_ratio=ratio, C=k / 20, solver="saga", class_weight="balanced", tol=1e-9, max_iter=20000)
        best = alive[np.argsort(-np.abs(model.fit(z[:, alive], y).coef_[0]))[:smaller]]
        assert set(best) == set(top_k(scores, smaller))


def test_linear_svm_is_the_minimum_of_its_objective():
    X, y = problem(n=80, d=6)
    z, sign = (X - X.mean(0)) / X.std(0), 2 * y - 1
    weight = len(y) / (2 * np.where(y == 1, y.sum(), len(y) - y.sum()))

    def objective(v):
        return weight @ np.maximum(0, 1 - sign * (z @ v[:-1] + v[-1])) + v[:-1] @ v[:-1] / (2 * 0.01)

    found = linear_svm(X, y)
    best = min(objective(np.r_[found, c]) for c in sign - z @ found)
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(50):
            moved = found + size * rng.normal(size=6)
            assert min(objective(np.r_[moved, c]) for c in sign - z @ moved) > best


def test_mutual_information_sees_what_no_difference_of_means_does_and_repeats_with_its_seed():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    X = rng.normal(size=(600, 6))
    X[:, 4] *= np.where(y == 1, 4.0, 0.2)  # equal means, unequal spread
    X[:, 2] = 3.0
    scores = mutual_information(X, y)
    assert top_k(scores, 1).tolist() == [4]
    assert scores[2] == 0
    assert (mutual_information(X, y, seed=0) == scores).all()
    assert np.abs(mutual_info_classif(X, y, random_state=1) - scores)[[0, 1, 3, 4, 5]].max() < 0.02
    assert (mutual_information(X, y, np.full(600, 2.0)) >= 0).all()


def test_rankings_of_several_classes_agree_with_scikit_learn_and_skip_constant_columns():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    X = rng.normal(size=(400, 12)) * rng.uniform(0.1, 9, 12) + 3
    X[:, 3] += np.array([0, 4, 0, -3.0])[y]
    np.testing.assert_allclose(rank(X, y, ranking="f_statistic"), f_classif(X, y)[0], rtol=1e-8)
    np.testing.assert_allclose(rank(sparse.csr_matrix(X), y, ranking="f_statistic"), f_classif(X, y)[0], rtol=1e-8)
    np.testing.assert_allclose(rank(X, 3 * y + 2, ranking="f_statistic"), f_classif(X, y)[0], rtol=1e-8)
    X[:, 7] = 0.1
    X[:, 8] = 0.1 * y
    for name in MANY_CLASSES:
        scores = rank(X, y, ranking=name)
        assert scores[7] == 0
        assert {3, 8} == set(top_k(scores, 2))
    assert rank(X, y, ranking="f_statistic")[8] == np.inf


def test_rankings_for_a_number_agree_with_scikit_learn_and_numpy():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 9)) * rng.uniform(0.1, 9, 9) + 5 * rng.normal(size=9)
    y = X[:, 2] - 0.4 * X[:, 6] + rng.normal(size=300)
    oracle = [np.corrcoef(X[:, j], y)[0, 1] for j in range(9)]
    for matrix in (X, sparse.csr_matrix(X)):
        np.testing.assert_allclose(rank_number(matrix, y), oracle, rtol=1e-8)
        np.testing.assert_allclose(rank_number(matrix, y, ranking="regression_f"), f_regression(X, y)[0], rtol=1e-7)
    weight = rng.integers(0, 3, 300)
    repeated = np.repeat(X, weight, axis=0), np.repeat(y, weight)
    for name in NUMBER_RANKINGS:
        np.testing.assert_allclose(rank_number(X, y, weight.astype(float), ranking=name), rank_number(*repeated, ranking=name), rtol=1e-8)
    X[:, 4] = 0.3
    for name in NUMBER_RANKINGS:
        assert rank_number(X, y, ranking=name)[4] == 0
    X[:, 4] = -2 * y
    assert rank_number(X, y)[4] == pytest.approx(-1)
    assert top_k(rank_number(X, y, ranking="regression_f"), 1).tolist() == [4]


def test_a_filter_keeps_the_columns_with_the_largest_mean_difference_before_all_others():
    X, y = problem()
    kept = set(top_k(mean_difference(X, y), 9).tolist())
    for name in ("welch_t", "l1_logistic", "adaptive_thresholding"):
        scores = rank(X, y, ranking=name, filter_size=9)
        assert set(top_k(scores, 9).tolist()) == kept
        assert (scores[[j for j in range(60) if j not in kept]] == 0).all()
    np.testing.assert_array_equal(rank(X, y, ranking="welch_t", filter_size=60), rank(X, y, ranking="welch_t"))
    assert np.count_nonzero(rank_number(X, X[:, 0] + 0.1, filter_size=5)) == 5
