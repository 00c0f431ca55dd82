import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.feature_selection import f_classif

from probes.selection import RANKINGS, mean_difference, moments, random_scores, rank, standardized_difference, top_k
from sae.errors import ConfigError


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
    x[:, support] += shift * y[:, None]
    return x / (1 + np.exp(-1.702 * x)), y, set(support.tolist())


@pytest.mark.parametrize("ranking", list(RANKINGS))
def test_every_ranking_recovers_the_whole_planted_support(ranking):
    for seed in range(4):
        X, y, support = planted(2000, 400, 5, 0.5, 0.2, seed)
        assert set(top_k(rank(X, y, ranking=ranking), 5).tolist()) == support


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
            np.testing.assert_allclose(weighted, rank(repeated_X, repeated_y, ranking=name), rtol=1e-8)


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
            np.testing.assert_allclose(rank(matrix, y, ranking=name), rank(X, y, ranking=name), rtol=1e-8, atol=1e-12)
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
    monkeypatch.setattr("probes.selection.COLUMNS_PER_BLOCK", 7)
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
        (lambda X, y: top_k(X[0], 0), ["k must be in 1..d=60", "got 0"]),
        (lambda X, y: top_k(X[0], 61), ["k must be in 1..d=60", "got 61"]),
        (lambda X, y: top_k(np.array([1.0, np.nan]), 1), ["NaN", "1 of 2"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call(*problem())
    assert all(word in str(caught.value) for word in words), caught.value
