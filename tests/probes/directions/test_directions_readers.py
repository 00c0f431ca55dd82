"""Readers against closed forms, scikit-learn, and directions that were planted."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from probes.directions import (
    KMeansDirection,
    LabelledRows,
    LDADirection,
    LogisticDirection,
    MeanDifferenceDirection,
    PCADirection,
    RandomDirection,
    contrast_pairs,
    labelled_rows,
    principal_axis,
)
from probes.directions.base import match_pairs
from probes.directions.discriminant import discriminant, within_covariance
from probes.directions.paired import pair_sign
from probes.linear import DenseProbe
from probes.problem import Problem
from probes.shrinkage import ledoit_wolf_shrinkage
from sae.errors import ConfigError


def correlated(n, d, seed, share=0.3):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < share).astype(int)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * rng.uniform(0.1, 10, d) + 5 * rng.normal(size=d)
    X[:, 0] += 3 * y
    X[:, 1] -= 2 * y
    return X, y


def test_mean_difference_is_the_difference_of_means():
    X, y = correlated(90, 7, 0)
    difference = X[y == 1].mean(0) - X[y == 0].mean(0)
    reader = MeanDifferenceDirection().fit(X, y)
    np.testing.assert_allclose(reader.direction_, difference / np.linalg.norm(difference), rtol=1e-12)
    middle = (X[y == 1].mean(0) + X[y == 0].mean(0)) / 2
    np.testing.assert_allclose(reader.decision_function(middle[None]), [0], atol=1e-10)


SHAPES = [(300, 40), (60, 200), (45, 44), (44, 45), (50, 1)]
CASES = [(*shape, s) for shape in SHAPES for s in ("auto", 0.0, 0.2, 1.0) if s != 0.0 or shape[0] > 2 * shape[1]]  # else singular


@pytest.mark.parametrize(("n", "d", "shrinkage"), CASES)
def test_discriminant_is_that_of_scikit_learn(n, d, shrinkage):
    X, y = correlated(n, max(d, 2), seed=n + d)
    X = X[:, :d]
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y).coef_[0]
    np.testing.assert_allclose(LDADirection(shrinkage).fit(X, y).direction_, oracle / np.linalg.norm(oracle), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 30), (2, 5), (12, 12), (20, 1)])
def test_ledoit_wolf_share_is_that_of_scikit_learn(n, d):
    z = np.random.default_rng(n).normal(size=(n, d)) * np.linspace(1, 3, d)
    z -= z.mean(0)
    np.testing.assert_allclose(ledoit_wolf_shrinkage(z), ledoit_wolf(z, assume_centered=True)[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(25, 9), (9, 25)])
def test_low_rank_solution_solves_the_full_equations(n, d):
    X, y = correlated(n, d, 3, share=0.5)
    within = within_covariance(X, y, shrinkage="auto")
    full = within.factor.T @ within.factor + np.diag(within.diagonal)
    difference = np.random.default_rng(1).normal(size=d)
    np.testing.assert_allclose(full @ discriminant(within, difference), difference, rtol=1e-7, atol=1e-9)


def test_singular_covariance_gives_the_limit_of_vanishing_shrinkage():
    X, y = correlated(20, 50, 5, share=0.5)
    limit = LDADirection(shrinkage=0.0).fit(X, y).direction_
    nearly = LDADirection(shrinkage=1e-9).fit(X, y).direction_
    assert limit @ nearly > 1 - 1e-5
    spread = np.concatenate([X[y == label] - X[y == label].mean(0) for label in (0, 1)]) @ limit
    assert np.abs(spread).max() < 1e-8 * np.abs(X).max()  # no variance within classes along it
    two = np.repeat([[0.0, 0, 1], [1, 2, 3]], 5, axis=0)
    np.testing.assert_allclose(LDADirection().fit(two, np.repeat([0, 1], 5)).direction_, np.array([1, 2, 2]) / 3)


def test_discriminant_divides_out_a_loud_nuisance_that_the_mean_difference_follows():
    rng = np.random.default_rng(0)
    n, d = 600, 30
    found = {"mean": [], "LDA": [], "logistic": []}
    for _ in range(5):
        y = rng.permutation(np.arange(n) % 2)
        v, u = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
        X = rng.normal(size=(n, d)) + np.outer(2 * y, v) + np.outer(20 * rng.normal(size=n), u)
        for name, reader in (("mean", MeanDifferenceDirection()), ("LDA", LDADirection()), ("logistic", LogisticDirection())):
            found[name].append(reader.fit(X, y).direction_ @ v)
    assert np.mean(found["LDA"]) > 0.93
    assert np.mean(found["logistic"]) > 0.9
    assert np.mean(found["mean"]) < 0.85


def test_logistic_direction_is_the_normal_of_the_dense_probe_with_its_threshold():
    X, y = correlated(200, 15, 2)
    reader, probe = LogisticDirection(C=0.3).fit(X, y), DenseProbe(C=0.3).fit(X, y)
    expected = probe.decision_function(X) / np.linalg.norm(probe.coef_)
    np.testing.assert_allclose(reader.decision_function(X), expected, rtol=1e-6, atol=1e-7)
    assert (reader.predict(X) == probe.predict(X)).all()


def test_random_directions_are_uniform_and_look_at_the_labels_for_their_sign_only():
    X, y = correlated(100, 400, 1)
    found = np.stack([RandomDirection(random_state=i).fit(X, y).direction_ for i in range(40)])
    cosines = (found @ found.T)[np.triu_indices(40, 1)]
    np.testing.assert_allclose(np.abs(cosines).mean(), np.sqrt(2 / (np.pi * 400)), rtol=0.1)
    for i in range(5):
        turned = RandomDirection(random_state=i).fit(X, 1 - y).direction_
        np.testing.assert_allclose(turned, -found[i])


def swapped_pairs(seed, n=256, d=64):
    """Pairs whose difference is 3v, plus a nuisance of sd .8 along u and a little noise: the planted truth of the reader's swap."""
    rng = np.random.default_rng(seed)
    v, u = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    shared = 4 * rng.normal(size=(n, d))
    difference = 3 * v + 0.8 * rng.normal(size=(n, 1)) * u + 0.27 * rng.normal(size=(n, d))
    return contrast_pairs("planted", shared + difference, shared), difference, v, u


def test_axis_of_pairs_needs_the_swap_and_the_mean_difference_does_not():
    found = {"unswapped": [], "nuisance": [], "swapped": [], "uncentred": [], "means": [], "k-means": []}
    for seed in range(6):
        rows, D, v, u = swapped_pairs(seed)
        axis = principal_axis(D)
        found["unswapped"].append(abs(axis @ v))
        found["nuisance"].append(abs(axis @ u))
        for name, reader in (
            ("swapped", PCADirection(random_state=seed)),
            ("uncentred", PCADirection(swap=False, center=False)),
            ("means", MeanDifferenceDirection()),
            ("k-means", KMeansDirection(n_init=3, random_state=seed)),
        ):
            options = {} if name == "means" else {"pairs": rows.pairs}
            found[name].append(reader.fit(rows.X, rows.y, **options).direction_ @ v)
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    assert mean["unswapped"] < 0.05
    assert mean["nuisance"] == pytest.approx(0.984, abs=0.02)
    for name in ("swapped", "uncentred", "means", "k-means"):
        assert mean[name] == pytest.approx(0.997, abs=0.002), name


def test_one_order_in_all_pairs_is_refused_where_it_hides_the_direction():
    rows, _, v, _ = swapped_pairs(0)
    for X, y, pairs in ((rows.X, rows.y, rows.pairs), (rows.X[::-1], rows.y[::-1], rows.pairs[::-1])):
        for reader in (PCADirection(swap=False), KMeansDirection(swap=False)):
            with pytest.raises(ConfigError, match=r"all 256 pairs have their (positive|negative) row first.*swap=True"):
                reader.fit(X, y, pairs=pairs)
    mixed = rows.take(np.random.default_rng(0).permutation(len(rows)))
    reader = PCADirection(swap=False).fit(mixed.X, mixed.y, pairs=mixed.pairs)
    assert reader.direction_ @ v > 0.99
    assert 0.3 < reader.first_share_ < 0.7
    assert reader.n_pairs_ == 256


def test_pairs_read_better_than_rows_matched_at_random():
    rows, _, v, _ = swapped_pairs(1)
    paired = PCADirection().fit(rows.X, rows.y, pairs=rows.pairs).direction_ @ v
    assert paired > PCADirection().fit(rows.X, rows.y).direction_ @ v + 0.2


@pytest.mark.parametrize(("n", "d"), [(40, 9), (9, 40)])
@pytest.mark.parametrize("center", [True, False])
def test_principal_axis_is_that_of_a_singular_value_decomposition(n, d, center):
    D = np.random.default_rng(n).normal(size=(n, d)) + 0.3
    oracle = np.linalg.svd(D - D.mean(0) * center)[2][0]
    assert abs(principal_axis(D, center=center) @ oracle) == pytest.approx(1, abs=1e-10)
    if center:
        assert abs(principal_axis(D) @ PCA(1).fit(D).components_[0]) == pytest.approx(1, abs=1e-10)
    assert not principal_axis(np.full((4, 3), 0.1)).any()


def test_sign_goes_by_the_majority_of_pairs_and_not_by_the_mean():
    v = np.array([1.0, 0.0])
    D = np.array([[1.0, 0], [1, 0], [1, 0], [-100, 0]])
    assert pair_sign(v, D) == 1
    assert pair_sign(-v, D) == -1
    assert pair_sign(v, D[2:]) == -1  # a draw: the mean decides


def test_swap_is_the_same_for_the_same_seed_and_splits_the_pairs_in_half():
    rows, _, _, _ = swapped_pairs(2)
    first, again, other = (PCADirection(random_state=s).fit(rows.X, rows.y, pairs=rows.pairs) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.direction_, again.direction_)
    assert not np.array_equal(first.direction_, other.direction_)
    assert first.first_share_ == 0.5


def test_two_or_three_pairs_are_enough_and_one_is_refused_unless_uncentred():
    rows, _, v, _ = swapped_pairs(3)
    for n in (2, 3):
        few = rows.take(np.arange(2 * n))
        assert PCADirection().fit(few.X, few.y, pairs=few.pairs).direction_ @ v > 0.6
    one = rows.take(np.arange(2))
    with pytest.raises(ConfigError, match="at least 2 pairs"):
        PCADirection().fit(one.X, one.y, pairs=one.pairs)
    alone = PCADirection(center=False).fit(one.X, one.y, pairs=one.pairs).direction_
    for reader in (MeanDifferenceDirection().fit(one.X, one.y), KMeansDirection().fit(one.X, one.y, pairs=one.pairs)):
        np.testing.assert_allclose(reader.direction_, alone, atol=1e-12)


def test_pair_numbers_may_be_words_and_rows_in_any_order():
    rows, _, _, _ = swapped_pairs(4)
    words = np.array([f"pair {i}" for i in rows.pairs])
    order = np.random.default_rng(0).permutation(len(rows))
    reader = PCADirection(center=False).fit(rows.X, rows.y, pairs=rows.pairs)
    for y, pairs in ((rows.y, words), (np.where(rows.y == 1, "yes", "no"), rows.pairs)):
        found = PCADirection(center=False).fit(rows.X[order], y[order], pairs=pairs[order])
        np.testing.assert_allclose(found.direction_, reader.direction_, atol=1e-8)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([0, 0, 1, 1, 2, 3], "pair 2 has 0 rows of class 0 and 1 of class 1"),
        ([0, 1, 0, 1, 2, 2], "pair 0 has 0 rows of class 0 and 2 of class 1"),
        ([0, 0, 0, 0, 2, 2], "2 rows of class 0 and 2 of class 1"),
        ([0, 0, 1], "inconsistent"),
    ],
)
def test_pairs_that_are_not_one_row_of_each_class_are_refused(pairs, message):
    X, y = np.random.default_rng(0).normal(size=(6, 3)), np.array([1, 0, 1, 0, 1, 0])
    with pytest.raises(ValueError, match=message):
        PCADirection().fit(X, y, pairs=np.array(pairs))


def test_contrast_pairs_are_rows_with_labels_and_pair_numbers():
    positive, negative = np.arange(6.0).reshape(3, 2), -np.arange(6.0).reshape(3, 2)
    rows = contrast_pairs("p", positive, negative, groups=np.array([5, 5, 8]))
    matched = match_pairs(rows.y, rows.pairs)
    np.testing.assert_array_equal(rows.X[matched.positive], positive)
    np.testing.assert_array_equal(rows.X[matched.negative], negative)
    assert rows.groups.tolist() == [5, 5, 5, 5, 8, 8]
    assert match_pairs(np.array([0, 1, 1, 0, 0, 1]), np.array([9, 4, 9, 4, 1, 1])).positive.tolist() == [2, 1, 5]  # as they first appear
    assert contrast_pairs("p", positive, negative).groups.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": np.array([0, 1, 2, 1])}, "0 and 1 only.*encode"),
        ({"y": np.array([0, 1, 1])}, "y must have one entry per row of X, got 3 for 4 rows"),
        ({"groups": np.array([0, 1, 1])}, "groups must have one entry"),
        ({"pairs": np.array([0, 0, 0, 1])}, "one row of each class"),
        ({"pairs": np.array([0, 1, 0, 1]), "y": np.array([0, 0, 1, 1])}, "must have one group, pair 0 has two"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(changed, message):
    given = {"X": np.zeros((4, 2)), "y": np.array([0, 1, 0, 1]), "groups": np.array([0, 0, 1, 1]), "pairs": None}
    with pytest.raises(ConfigError, match=message):
        LabelledRows("set", **(given | changed))
    with pytest.raises(ConfigError, match="one shape"):
        contrast_pairs("p", np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="one entry per pair"):
        contrast_pairs("p", np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(6, dtype=int))


class Source:
    """A feature source of one matrix."""

    names, n_rows, digest = ("blocks.0",), 6, "0"

    def read(self, name):
        return np.arange(12.0).reshape(6, 2)


def test_rows_of_a_problem_come_from_its_source():
    problem = Problem("p", np.array([4, 1, 0]), np.array([1, 0, 1]), np.array([7, 8, 9]), ("no", "yes"))
    rows = labelled_rows(Source(), "blocks.0", problem)
    assert rows.X.tolist() == [[8, 9], [2, 3], [0, 1]]
    assert (rows.y.tolist(), rows.groups.tolist(), rows.name) == ([1, 0, 1], [7, 8, 9], "p")
    with pytest.raises(ConfigError, match="two classes, got 'number'"):
        labelled_rows(Source(), "blocks.0", Problem("n", np.arange(3), np.array([0.1, 0.2, 0.3]), np.arange(3), ()))
