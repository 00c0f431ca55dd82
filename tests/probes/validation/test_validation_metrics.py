"""The scores under weights of documents, against scikit-learn's and scipy's on the same rows repeated."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from probes.validation import METRICS
from probes.validation.binary import _metrics as binary_metrics
from probes.validation.classes import CLASS_METRICS
from probes.validation.classes import _metrics as class_metrics
from probes.validation.estimates import document_draws
from probes.validation.fits import HeldOut
from probes.validation.numbers import NUMBER_METRICS
from probes.validation.numbers import _metrics as number_metrics


def one_fold(n=90, n_documents=17, seed=0):
    rng = np.random.default_rng(seed)
    document = rng.permutation(np.arange(n) % n_documents)
    weights = np.concatenate([np.ones((1, n_documents), np.int32), rng.integers(0, 4, (6, n_documents)).astype(np.int32)])
    return rng, document, weights, rng.permutation(n), np.zeros(n, np.int64)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_scores_of_two_classes_are_those_of_scikit_learn_on_rows_repeated(decimals):
    rng, document, weights, rows, fold = one_fold()
    y = rng.integers(0, 2, 90)
    decision = np.round(rng.normal(size=90) + 0.8 * y[rows], decimals)
    predicted = decision > 0.3
    found = binary_metrics(HeldOut(rows, fold, np.stack([decision, predicted], 1)), y, document, weights)
    for draw, weight in enumerate(weights):
        again = np.repeat(np.arange(90), weight[document])
        truth, said, score = y[rows][again], predicted[again].astype(int), decision[again]
        expected = {
            "accuracy": metrics.accuracy_score(truth, said),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, said),
            "f1": metrics.f1_score(truth, said),
            "auc": metrics.roc_auc_score(truth, score),
            "mcc": metrics.matthews_corrcoef(truth, said),
            "precision": metrics.precision_score(truth, said),
            "recall": metrics.recall_score(truth, said),
            "average_precision": metrics.average_precision_score(truth, score),
        }
        np.testing.assert_allclose(found[draw], [expected[name] for name in METRICS], rtol=1e-12)


def test_average_precision_and_auc_compare_rows_of_one_fold_only():
    rng = np.random.default_rng(1)
    fold, y = np.repeat([0, 1, 2], [40, 30, 50]), rng.integers(0, 2, 120)
    decision = rng.normal(size=120) + y + 10 * fold  # a shift between folds changes nothing
    answers = HeldOut(np.arange(120), fold, np.stack([decision, y], 1))
    found = dict(zip(METRICS, binary_metrics(answers, y, np.arange(120), np.ones((1, 120), np.int32))[0], strict=True))
    parts = [(y[fold == f], decision[fold == f]) for f in range(3)]
    pairs = [truth.sum() * (1 - truth).sum() for truth, _ in parts]
    assert found["auc"] == pytest.approx(np.average([metrics.roc_auc_score(*part) for part in parts], weights=pairs))
    positives = [truth.sum() for truth, _ in parts]
    assert found["average_precision"] == pytest.approx(np.average([metrics.average_precision_score(*p) for p in parts], weights=positives))


def test_constant_predictions_score_what_is_written():
    y = np.r_[np.ones(30, np.int64), np.zeros(70, np.int64)]
    rows, fold, document, once = np.arange(100), np.zeros(100, np.int64), np.arange(100), np.ones((1, 100), np.int32)

    def of(said):
        answers = HeldOut(rows, fold, np.stack([np.zeros(100), np.full(100, said)], 1))
        return dict(zip(METRICS, binary_metrics(answers, y, document, once)[0].tolist(), strict=True))

    p = 0.3
    always = {"accuracy": p, "balanced_accuracy": 0.5, "f1": 2 * p / (1 + p), "auc": 0.5, "mcc": 0, "precision": p, "recall": 1}
    assert of(1) == pytest.approx(always | {"average_precision": p})
    never = {"accuracy": 1 - p, "balanced_accuracy": 0.5, "f1": 0, "auc": 0.5, "mcc": 0, "precision": 0, "recall": 0}
    assert of(0) == pytest.approx(never | {"average_precision": p})


def test_draws_that_lost_a_class_are_undefined_where_they_must_be():
    y, rows = np.array([1, 0, 1, 0]), np.arange(4)
    answers = HeldOut(rows, np.zeros(4, np.int64), np.stack([y, y], 1).astype(float))
    only_zeros = np.array([[0, 1, 0, 2]], np.int32)
    found = dict(zip(METRICS, binary_metrics(answers, y, rows, only_zeros)[0], strict=True))
    assert {name for name, value in found.items() if np.isnan(value)} == {"balanced_accuracy", "auc", "recall", "average_precision"}
    assert (found["accuracy"], found["f1"], found["mcc"], found["precision"]) == (1, 0, 0, 0)


@pytest.mark.parametrize("decimals", [0, 8])
def test_scores_of_several_classes_are_those_of_scikit_learn_on_rows_repeated(decimals):
    rng, document, weights, rows, fold = one_fold()
    y = rng.permutation(np.arange(90) % 4)
    decision = np.round(rng.normal(size=(90, 4)) + np.eye(4)[y[rows]], decimals)
    said = decision.argmax(1)
    found = class_metrics(HeldOut(rows, fold, np.column_stack([decision, said])), y, document, weights)
    for draw, weight in enumerate(weights):
        again = np.repeat(np.arange(90), weight[document])
        truth = y[rows][again]
        aucs = [metrics.roc_auc_score(truth == c, decision[again, c]) for c in range(4)]
        expected = {
            "accuracy": metrics.accuracy_score(truth, said[again]),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, said[again]),
            "macro_f1": metrics.f1_score(truth, said[again], average="macro"),
            "macro_auc": np.mean(aucs),
        }
        np.testing.assert_allclose(found[draw], [expected[name] for name in CLASS_METRICS], rtol=1e-12)


@pytest.mark.parametrize("decimals", [0, 8])
def test_scores_of_a_number_are_those_of_scikit_learn_and_scipy_on_rows_repeated(decimals):
    rng, document, weights, rows, fold = one_fold()
    y = np.round(rng.normal(size=90) * 3 + 100, decimals)
    said = np.round(y[rows] + rng.normal(size=90), decimals)
    found = number_metrics(HeldOut(rows, fold, said), y, document, weights)
    for draw, weight in enumerate(weights):
        again = np.repeat(np.arange(90), weight[document])
        truth, answer = y[rows][again], said[again]
        expected = {
            "r2": metrics.r2_score(truth, answer),
            "spearman": stats.spearmanr(truth, answer).statistic,
            "mae": metrics.mean_absolute_error(truth, answer),
        }
        np.testing.assert_allclose(found[draw], [expected[name] for name in NUMBER_METRICS], rtol=1e-8)


def test_rank_correlation_is_the_mean_over_folds_and_0_for_a_constant_answer():
    rng = np.random.default_rng(3)
    fold, y = np.repeat([0, 1], [60, 40]), rng.normal(size=100)
    said = np.where(fold == 0, y + rng.normal(size=100), -50 + rng.normal(size=100))
    once = np.ones((1, 100), np.int32)
    found = number_metrics(HeldOut(np.arange(100), fold, said), y, np.arange(100), once)[0, 1]
    apart = [stats.spearmanr(y[fold == f], said[fold == f]).statistic for f in (0, 1)]
    assert found == pytest.approx(0.6 * apart[0] + 0.4 * apart[1])
    means = np.where(fold == 0, y[fold == 1].mean(), y[fold == 0].mean())
    constant = number_metrics(HeldOut(np.arange(100), fold, means), y, np.arange(100), once)[0]
    assert constant[1] == 0
    assert -0.2 < constant[0] < 0


def test_draws_are_as_many_documents_as_there_are_each_as_likely_and_cannot_be_written():
    draws = document_draws(40, 3000, 5)
    assert draws.shape == (3001, 40)
    assert (draws[0] == 1).all()
    assert (draws.sum(1) == 40).all()
    np.testing.assert_allclose(draws[1:].mean(0), 1, atol=0.08)
    np.testing.assert_allclose(draws[1:].var(0), 39 / 40, atol=0.12)
    with pytest.raises(ValueError, match="read-only"):
        draws[0, 0] = 2
    assert (document_draws(40, 3000, 6) != draws).any()
