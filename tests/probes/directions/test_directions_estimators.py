"""Every reader as a scikit-learn estimator, and what it does with input that is not fit to read."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.directions import (
    FilterCombination,
    InContextVector,
    KMeansDirection,
    LDADirection,
    LogisticDirection,
    MeanDifferenceDirection,
    PCADirection,
    RandomDirection,
    SingleFilter,
)
from sae.errors import ConfigError

READERS = [
    MeanDifferenceDirection(),
    LDADirection(),
    LDADirection(shrinkage=0.3),
    LogisticDirection(),
    RandomDirection(),
    PCADirection(),
    PCADirection(swap=False, center=False),
    KMeansDirection(n_init=2),
    InContextVector(),
    SingleFilter(shares=(0.3,)),
    FilterCombination(),
    FilterCombination(n_filters=1, fit_intercept=True),
]
FINDERS = [
    MeanDifferenceDirection(),
    LDADirection(),
    LogisticDirection(C=0.1),
    PCADirection(),
    KMeansDirection(n_init=2),
    InContextVector(),
]
SPARSE = [MeanDifferenceDirection(), LogisticDirection(), RandomDirection(), FilterCombination(), SingleFilter((0.3,))]


def name(reader):
    return repr(reader)


@parametrize_with_checks(READERS)
def test_reader_passes_every_check_of_scikit_learn(estimator, check):
    check(estimator)


def problem(n=120, d=12, seed=0, gap=4.0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    X = rng.normal(size=(n, d)) * rng.uniform(0.8, 1.2, d) + rng.normal(size=d)
    X[:, 3] += gap * y
    return X, y


@pytest.mark.parametrize("reader", READERS, ids=name)
def test_direction_has_length_one_and_the_decision_is_the_projection_moved(reader):
    X, y = problem()
    reader = clone(reader).fit(X, y)
    np.testing.assert_allclose(np.linalg.norm(reader.direction_), 1, rtol=1e-12)
    np.testing.assert_allclose(reader.decision_function(X), X @ reader.direction_ + reader.intercept_, rtol=1e-12)
    assert reader.direction_.dtype == np.float64
    assert (reader.predict(X) == (reader.decision_function(X) > 0)).all()


@pytest.mark.parametrize("reader", FINDERS, ids=name)
def test_direction_points_to_the_greater_label_whatever_the_labels_are(reader):
    X, y = problem()
    direction = clone(reader).fit(X, y).direction_
    assert direction[3] > 0.8
    for labels in (y.astype(bool), np.where(y == 1, "true", "false"), 7 * y - 3, y.astype(float)):
        found = clone(reader).fit(X, labels)
        np.testing.assert_allclose(found.direction_, direction, rtol=1e-10)
        assert (found.predict(X) == labels).mean() > 0.9
        assert found.classes_.dtype == labels.dtype
    np.testing.assert_allclose(np.abs(clone(reader).fit(X, 1 - y).direction_ @ -direction), 1, rtol=0.02)


@pytest.mark.parametrize("reader", FINDERS, ids=name)
def test_adding_a_constant_to_every_row_moves_the_threshold_and_nothing_else(reader):
    X, y = problem()
    before, after = clone(reader).fit(X, y), clone(reader).fit(X + 50, y)
    np.testing.assert_allclose(after.direction_, before.direction_, atol=1e-8)
    np.testing.assert_allclose(after.decision_function(X + 50), before.decision_function(X), atol=1e-7)


@pytest.mark.parametrize("reader", READERS, ids=name)
def test_constant_columns_and_duplicate_rows_do_no_harm(reader):
    X, y = problem()
    X[:, 5], X[:, 6] = 3.7, 0.0
    X, y = np.concatenate([X, X[:40], X[:40]]), np.concatenate([y, y[:40], y[:40]])
    fitted = clone(reader).fit(X, y)
    assert np.isfinite(fitted.direction_).all()
    if not isinstance(reader, (RandomDirection, SingleFilter)):
        assert np.abs(fitted.direction_[[5, 6]]).max() < 1e-6


@pytest.mark.parametrize("reader", FINDERS, ids=name)
def test_more_columns_than_rows_still_give_a_direction_that_reads_others(reader):
    X, y = problem(n=240, d=300)
    X[:, 10:40] += y[:, None]
    fitted = clone(reader).fit(X[:40], y[:40])
    assert roc_auc_score(y[40:], fitted.decision_function(X[40:])) > 0.9


@pytest.mark.parametrize("reader", READERS, ids=name)
def test_nothing_to_tell_the_classes_apart_is_an_error_or_a_random_direction(reader):
    y = np.arange(20) % 2
    if isinstance(reader, (RandomDirection, SingleFilter)):
        assert np.isfinite(clone(reader).fit(np.ones((20, 3)), y).direction_).all()
        return
    with pytest.raises(ConfigError, match=r"positive and finite|not all 0"):
        clone(reader).fit(np.full((20, 3), 0.1), y)


@pytest.mark.parametrize("reader", READERS, ids=name)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, np.zeros(len(y), int)), "one class"),
        (lambda X, y: (X, np.arange(len(y)) % 3), "Only binary"),
        (lambda X, y: (np.where(X > 3, np.nan, X), y), "NaN"),
        (lambda X, y: (np.where(X > 3, np.inf, X), y), "infinity"),
        (lambda X, y: (X, y[:-1]), "inconsistent"),
        (lambda X, y: (X[:0], y[:0]), "0 sample"),
        (lambda X, y: (X, np.where(y == 1, 0.5, 0.25)), "continuous"),
    ],
    ids=["one class", "three classes", "NaN", "Inf", "lengths", "empty", "numbers"],
)
def test_rows_that_cannot_be_read_are_refused(reader, change, message):
    with pytest.raises(ValueError, match=message):
        clone(reader).fit(*change(*problem()))


@pytest.mark.parametrize("reader", SPARSE, ids=name)
@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array, sparse.coo_matrix], ids=lambda kind: kind.__name__)
def test_sparse_and_dense_rows_give_the_same_direction(reader, kind):
    X, y = problem()
    X[np.abs(X) < 0.7] = 0
    dense, found = clone(reader).fit(X, y), clone(reader).fit(kind(X), y)
    np.testing.assert_allclose(found.direction_, dense.direction_, atol=1e-6)
    np.testing.assert_allclose(found.decision_function(kind(X)), dense.decision_function(X), atol=1e-5)


@pytest.mark.parametrize("reader", SPARSE, ids=name)
def test_wide_sparse_rows_are_never_made_dense(reader):
    import tracemalloc

    X = sparse.random(200, 100_000, density=1e-4, random_state=0, format="csr")  # 160 MB if it were dense
    tracemalloc.start()
    clone(reader).fit(X, np.arange(200) % 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


@pytest.mark.parametrize("reader", [LDADirection(), PCADirection(), KMeansDirection(), InContextVector()], ids=name)
def test_readers_without_a_sparse_algorithm_say_so(reader):
    X, y = problem()
    with pytest.raises(TypeError, match=r"[Ss]parse data was passed"):
        clone(reader).fit(sparse.csr_matrix(X), y)


@pytest.mark.parametrize("reader", FINDERS, ids=name)
def test_readers_work_in_pipelines_and_cross_validation_by_document(reader):
    X, y = problem(200)
    model = make_pipeline(StandardScaler(), clone(reader))
    groups = np.arange(200) // 4
    scores = cross_val_score(model, X, y, groups=groups, cv=GroupKFold(4), scoring="roc_auc")
    assert scores.mean() > 0.9


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (LDADirection(shrinkage=1.5), ["shrinkage", "[0, 1]", "1.5"]),
        (LDADirection(shrinkage="some"), ["shrinkage", "'auto'", "'some'"]),
        (LogisticDirection(C=0), ["C must be a positive number", "got 0"]),
        (RandomDirection(random_state=None), ["random_state must be an integer", "None"]),
        (PCADirection(random_state=-1), ["random_state", "-1", "PCADirection"]),
        (KMeansDirection(n_init=0), ["n_init", "at least 1", "got 0"]),
        (InContextVector(n_layers=5), ["n_layers", "divides the 12 columns", "got 5"]),
        (SingleFilter(shares=()), ["shares must hold numbers in (0, 1)", "()"]),
        (SingleFilter(shares=(0.5, 1.0)), ["shares must hold numbers in (0, 1)"]),
        (FilterCombination(n_filters=13), ["n_filters", "1..d=12", "got 13"]),
        (FilterCombination(C=-1.0), ["C must be a positive number", "-1.0"]),
    ],
    ids=lambda value: repr(value) if not isinstance(value, list) else "",
)
def test_bad_parameters_are_named(reader, words):
    with pytest.raises(ConfigError) as caught:
        clone(reader).fit(*problem())
    assert all(word in str(caught.value) for word in words)


def test_weights_of_classes_follow_the_labels_they_are_given_for():
    X, y = problem(gap=1.0)
    words = np.where(y == 1, "yes", "no")
    by_word = LogisticDirection(class_weight={"no": 1.0, "yes": 9.0}).fit(X, words)
    by_number = LogisticDirection(class_weight={0: 1.0, 1: 9.0}).fit(X, y)
    np.testing.assert_array_equal(by_word.direction_, by_number.direction_)
    assert by_word.intercept_ > LogisticDirection(class_weight=None).fit(X, words).intercept_ + 0.1
