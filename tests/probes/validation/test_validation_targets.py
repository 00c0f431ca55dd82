"""Several classes and numbers by the protocol of documents, with hostile input."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, confusion_matrix, r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from probes.linear import DenseProbe
from probes.results import Result
from probes.validation import (
    ClassScore,
    NumberScore,
    Split,
    evaluate_classifier,
    evaluate_probe,
    evaluate_regressor,
    group_folds,
    null_splits,
    shuffle_labels,
)
from sae.errors import ConfigError, SaeError
from sae.fingerprint import from_json, to_json

FAST = {"n_bootstrap": 20}


def problem(n_groups=60, rows=5, d=12, n_classes=3, seed=0):
    """A class and a number per row, documents with an offset of their own."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(rng.permutation(n_groups), rows)
    y = rng.integers(0, n_classes, len(groups))
    X = rng.normal(size=(len(y), d)) + 0.3 * rng.normal(size=(n_groups, d))[groups]
    X[:, :n_classes] += 1.5 * np.eye(n_classes)[y]
    number = X @ rng.normal(size=d) + rng.normal(size=len(y))
    return X, y, number, groups


def test_several_classes_are_scored_as_scikit_learn_scores_the_pooled_predictions():
    X, y, _, groups = problem()
    names = np.array(["adverb", "noun", "verb"])[y]
    folds = group_folds(names, groups, n_folds=4, seed=3)
    probe = make_pipeline(StandardScaler(), LogisticRegression())
    score = evaluate_classifier(probe, X, names, groups, folds=folds, n_shuffles=4, **FAST)
    said = cross_val_predict(probe, X, names, cv=folds)
    assert score.accuracy.value == pytest.approx(accuracy_score(names, said))
    assert np.array(score.confusion).tolist() == confusion_matrix(names, said).tolist()
    assert score.classes == ("adverb", "noun", "verb")
    assert score.accuracy.value > 0.65
    assert score.macro_auc.value > 0.8
    assert abs(score.accuracy.null_mean - 1 / 3) < 0.1
    assert abs(score.macro_auc.null_mean - 0.5) < 0.1
    assert score.macro_f1.low <= score.macro_f1.value <= score.macro_f1.high


def test_several_classes_agree_with_two_where_there_are_two():
    X, y, _, groups = problem(n_classes=2)
    folds = group_folds(y, groups)
    two = evaluate_probe(DenseProbe(), X, y, groups, folds=folds, **FAST)
    several = evaluate_classifier(DenseProbe(), X, y, groups, folds=folds, **FAST)
    for name, same in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced_accuracy"), ("macro_auc", "auc")):
        for end in ("value", "low", "high"):
            assert getattr(getattr(several, name), end) == pytest.approx(getattr(getattr(two, same), end)), name


def test_a_classifier_with_a_decision_per_class_is_scored_by_it():
    X, y, _, groups = problem()
    score = evaluate_classifier(LinearSVC(), X, y, groups, **FAST)
    assert score.macro_auc.value > 0.8


def test_a_classifier_that_cannot_rank_is_an_error_that_says_so():
    X, y, _, groups = problem()

    class Deaf(DenseProbe):
        decision_function = property()
        predict_proba = property()

    with pytest.raises(ConfigError, match="Deaf has neither"):
        evaluate_classifier(Deaf(), X, y % 2, groups, **FAST)


def test_majority_scores_chance_with_several_classes():
    X, y, _, groups = problem(n_groups=200)
    keep = (y != 2) | (np.arange(len(y)) % 3 == 0)
    score = evaluate_classifier(DummyClassifier(strategy="most_frequent"), X[keep], y[keep], groups[keep], **FAST)
    share = max(np.mean(y[keep] == 0), np.mean(y[keep] == 1))
    assert score.balanced_accuracy.value == pytest.approx(1 / 3, abs=0.01)
    assert score.macro_auc.value == 0.5
    assert score.accuracy.value == pytest.approx(share, abs=0.05)
    assert f"{1 / 3:.3f}" in score.note()


def test_a_number_is_scored_as_scikit_learn_scores_the_pooled_predictions():
    X, _, y, groups = problem()
    folds = group_folds(y, groups, n_folds=4, seed=1)
    score = evaluate_regressor(Ridge(), X, y, groups, folds=folds, n_shuffles=4, **FAST)
    assert score.r2.value == pytest.approx(r2_score(y, cross_val_predict(Ridge(), X, y, cv=folds)))
    assert score.r2.value > 0.8
    assert score.spearman.value > 0.85
    assert score.r2.null_mean < 0.05
    assert abs(score.spearman.null_mean) < 0.2
    assert score.mae.low <= score.mae.value <= score.mae.high
    assert score.label_sd == pytest.approx(y.std())


def test_the_mean_of_the_training_labels_scores_nothing():
    X, _, y, groups = problem()
    score = evaluate_regressor(DummyRegressor(), X, y, groups, **FAST)
    assert -0.1 < score.r2.value <= 0
    assert score.spearman.value == 0


def test_whole_numbers_are_numbers_to_a_regressor():
    X, y, _, groups = problem()
    assert evaluate_regressor(Ridge(), X, y, groups, **FAST) == evaluate_regressor(Ridge(), X, y.astype(float), groups, **FAST)


def test_folds_of_numbers_are_scikit_learns_folds_of_groups():
    _, _, y, groups = problem()
    folds = group_folds(y, groups, n_folds=3, seed=4)
    oracle = GroupKFold(3, shuffle=True, random_state=4).split(y[:, None], y, groups)
    assert [fold.test.tolist() for fold in folds] == [test.tolist() for _, test in oracle]


def test_folds_of_several_classes_keep_shares_and_documents():
    _, y, _, groups = problem(n_groups=120)
    folds = group_folds(y, groups, n_folds=4, seed=4)
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
        np.testing.assert_allclose(np.bincount(y[fold.test]) / len(fold.test), np.bincount(y) / len(y), atol=0.08)


def test_documents_of_one_row_are_folds_of_rows():
    _, y, _, _ = problem()
    folds = group_folds(y, np.arange(len(y)), n_folds=5)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(len(y)))
    assert {len(fold.test) for fold in folds} == {60}


def test_given_nulls_are_used():
    X, y, _, groups = problem()
    folds = group_folds(y, groups)
    own = evaluate_classifier(LogisticRegression(), X, y, groups, n_shuffles=3, **FAST)
    given = evaluate_classifier(
        LogisticRegression(), X, y, groups, folds=folds, nulls=null_splits(y, groups, folds, n_shuffles=3, seed=0), **FAST
    )
    assert own == given
    same = evaluate_classifier(LogisticRegression(), X, y, groups, folds=folds, nulls=[Split(y, folds)], **FAST)
    assert same.accuracy.null_mean == same.accuracy.value


def test_shuffling_keeps_numbers_and_names():
    _, y, number, groups = problem()
    for labels in (number, np.array(["a", "b", "c"])[y], number[np.argsort(groups)]):
        shuffled = shuffle_labels(labels, groups, seed=1)
        assert sorted(shuffled.tolist()) == sorted(labels.tolist())
        assert shuffled.tolist() != labels.tolist()


def test_sparse_matrices_and_boolean_labels_give_the_same_scores():
    X, y, number, groups = problem(n_classes=2)
    X[np.abs(X) < 0.5] = 0
    csr = sparse.csr_array(X)
    assert evaluate_classifier(DenseProbe(), X, y, groups, **FAST) == evaluate_classifier(DenseProbe(), csr, y, groups, **FAST)
    two = evaluate_probe(DenseProbe(), X, y, groups, **FAST)
    assert (
        evaluate_probe(DenseProbe(), csr, y == 1, groups, **FAST) == two == evaluate_probe(DenseProbe(), X, y.astype(float), groups, **FAST)
    )
    dense, from_csr = (evaluate_regressor(Ridge(solver="sparse_cg", tol=1e-10), m, number, groups, **FAST) for m in (X, csr))
    assert from_csr.r2.value == pytest.approx(dense.r2.value, rel=1e-6)


def test_more_columns_than_rows_are_scored():
    rng = np.random.default_rng(0)
    X, y, groups = rng.normal(size=(60, 400)), np.arange(60) % 3, np.arange(60)
    X[:, :3] += 6 * np.eye(3)[y]
    X[:, 7] = 1.0
    X[:, 8] = X[:, 9]
    assert evaluate_classifier(make_pipeline(StandardScaler(), LogisticRegression()), X, y, groups, **FAST).accuracy.value > 0.5
    assert evaluate_regressor(Ridge(), X, X[:, 0], groups, **FAST).r2.value > 0.1


@pytest.mark.parametrize("n_shuffles", [0, 2])
def test_scores_survive_json_and_show_themselves(n_shuffles):
    X, y, number, groups = problem()
    scores = [
        evaluate_classifier(LogisticRegression(), X, y, groups, n_shuffles=n_shuffles, **FAST),
        evaluate_regressor(Ridge(), X, number, groups, n_shuffles=n_shuffles, **FAST),
        evaluate_probe(DenseProbe(), X, y % 2, groups, n_shuffles=n_shuffles, **FAST),
    ]
    for score in scores:
        assert isinstance(score, Result)
        assert from_json(type(score), to_json(score)) == score
        table = score.table()
        assert table.column("value") == [estimate.value for estimate in score.estimates().values()]
        assert score.note() in table.note
        traces = score.figure().data
        assert len(traces) == (2 if n_shuffles else 1)
        n_drawn = 2 if isinstance(score, NumberScore) else len(table.rows)  # the error is in the units of the label
        assert list(traces[-1].x) == table.column("value")[:n_drawn]
    assert [type(score) for score in scores[:2]] == [ClassScore, NumberScore]


def hole(X):
    X = X.copy()
    X[3, 1] = np.inf
    return X


class Silent(Ridge):
    """A regressor that answers NaN."""

    def predict(self, X):
        return np.full(len(X), np.nan)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(), hole(X), y, g), ConfigError, ["X must be finite", "1 entries"]),
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X, 0 * y, g), ConfigError, ["two classes or more", "only 0"]),
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X, v, g), ConfigError, ["got numbers", "evaluate_regressor"]),
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X[1:], y, g), ConfigError, ["one row per label", "299", "300"]),
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X, y, g[1:]), ConfigError, ["one entry per label", "299"]),
        (
            lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X, np.where(g < 3, 3, y), g),
            ConfigError,
            ["3 for class 3", "n_folds=5"],
        ),
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X, y, g, folds=[]), ConfigError, ["at least one fold"]),
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X, y, g, n_bootstrap=0), ConfigError, ["n_bootstrap", "got 0"]),
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(max_iter=1), X, y, g), SaeError, ["did not converge on fold 0"]),
        (lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X, y, g, n_shuffles=-1), ConfigError, ["n_shuffles", "-1"]),
        (
            lambda X, y, v, g: evaluate_classifier(LogisticRegression(), X, y, g, folds=2 * group_folds(y, g)),
            ConfigError,
            ["at most once", "300"],
        ),
        (
            lambda X, y, v, g: evaluate_probe(DenseProbe(), X, np.array(["a", "b"])[y % 2], g),
            ConfigError,
            ["0 and 1", "'a'", "evaluate_classifier"],
        ),
        (lambda X, y, v, g: evaluate_probe(DenseProbe(), X, v, g), ConfigError, ["y must hold 0 and 1", "evaluate_regressor"]),
        (lambda X, y, v, g: evaluate_probe(DenseProbe(), X, 0 * y, g), ConfigError, ["two classes or more", "300 rows"]),
        (lambda X, y, v, g: evaluate_probe(DenseProbe(), X[:0], y[:0], g[:0]), ConfigError, ["at least one label"]),
        (lambda X, y, v, g: evaluate_regressor(Ridge(), X, np.where(v > 0, np.nan, v), g), ConfigError, ["y must be finite"]),
        (lambda X, y, v, g: evaluate_regressor(Ridge(), X, 0 * v + 2, g), ConfigError, ["y must vary", "got 2"]),
        (lambda X, y, v, g: evaluate_regressor(Ridge(), X, v.astype(str), g), ConfigError, ["y must hold numbers", "evaluate_classifier"]),
        (lambda X, y, v, g: evaluate_regressor(Ridge(), X, v, 0 * g), ConfigError, ["at least n_folds=5 groups", "got 1"]),
        (lambda X, y, v, g: evaluate_regressor(Ridge(), X, v, np.minimum(g, 3)), ConfigError, ["got 4", "fewer folds"]),
        (lambda X, y, v, g: evaluate_regressor(Silent(), X, v, g), SaeError, ["Silent answered", "not finite", "fold 0"]),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(call, error, words):
    X, y, number, groups = problem()
    with pytest.raises(error) as caught:
        call(X, y, number, groups)
    assert all(word in str(caught.value) for word in words), caught.value
