import numpy as np
import pytest
from scipy import sparse
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from probes.linear import DenseProbe
from probes.selection import mean_difference, top_k
from probes.sparse import KSparseProbe
from probes.validation import Fold, ProbeScore, evaluate_probe, group_folds, group_holdout, shuffle_labels
from sae.errors import ConfigError, SaeError
from sae.fingerprint import canonical, from_json, to_json


def documents(n_groups=60, rows=8, d=30, signal=1.0, offset=0.5, seed=0):
    """Rows of documents: a label per document, an offset per document, and a signal on column 3."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rows)
    y = (rng.permutation(n_groups) % 2)[groups]
    X = rng.normal(size=(len(y), d)) + (offset * rng.normal(size=(n_groups, d)))[groups]
    X[:, 3] += signal * y
    return X, y, groups


def test_folds_hold_every_row_out_once_and_share_no_document():
    _, y, groups = documents()
    folds = group_folds(y, groups, n_folds=4, seed=1)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(len(y)))
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
        assert abs(y[fold.test].mean() - y.mean()) < 0.1
        assert len(fold.train) + len(fold.test) == len(y)


def test_holdout_shares_no_document_and_follows_its_seed():
    _, y, groups = documents()
    first, again, other = (group_holdout(y, groups, test_share=0.25, seed=s) for s in (0, 0, 1))
    assert not set(groups[first.train]) & set(groups[first.test])
    assert len(set(groups[first.test])) == 15
    assert first.test.tolist() == again.test.tolist() != other.test.tolist()


def test_random_labels_with_document_offsets_are_read_by_row_splits_but_not_by_document_splits():
    by_row, by_document = [], []
    for seed in range(4):
        X, y, groups = documents(n_groups=60, rows=12, d=100, signal=0.0, offset=2.0, seed=seed)
        leaking = cross_val_predict(DenseProbe(), X, y, cv=StratifiedKFold(5, shuffle=True, random_state=0), method="decision_function")
        by_row.append(metrics.roc_auc_score(y, leaking))
        by_document.append(evaluate_probe(DenseProbe(), X, y, groups, n_bootstrap=2).auc.value)
    assert np.mean(by_row) == pytest.approx(0.984, abs=0.02)
    assert np.mean(by_document) == pytest.approx(0.508, abs=0.08)


def test_selection_inside_the_folds_finds_nothing_in_noise_and_outside_it_does():
    inside, outside = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        X, y, groups = rng.normal(size=(80, 4000)), np.arange(80) % 2, np.arange(80)
        inside.append(evaluate_probe(KSparseProbe(k=16), X, y, groups, n_bootstrap=10).auc.value)
        chosen = X[:, top_k(mean_difference(X, y), 16)]
        outside.append(evaluate_probe(KSparseProbe(k=16), chosen, y, groups, n_bootstrap=10).auc.value)
    assert np.mean(inside) == pytest.approx(0.504, abs=0.07)
    assert np.mean(outside) == pytest.approx(0.955, abs=0.02)


def test_scores_agree_with_scikit_learn_on_the_pooled_predictions():
    X, y, groups = documents(signal=0.7)
    folds = group_folds(y, groups, n_folds=3, seed=2)
    score = evaluate_probe(KSparseProbe(k=3), X, y, groups, folds=folds, n_bootstrap=20)
    truth, predicted, wins, pairs = [], [], 0.0, 0.0
    for fold in folds:
        probe = KSparseProbe(k=3).fit(X[fold.train], y[fold.train])
        truth.append(y[fold.test])
        predicted.append(probe.predict(X[fold.test]))
        n = float(y[fold.test].sum() * (1 - y[fold.test]).sum())
        wins, pairs = wins + n * metrics.roc_auc_score(y[fold.test], probe.decision_function(X[fold.test])), pairs + n
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    assert score.accuracy.value == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert score.balanced_accuracy.value == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    assert score.f1.value == pytest.approx(metrics.f1_score(truth, predicted))
    assert score.mcc.value == pytest.approx(metrics.matthews_corrcoef(truth, predicted))
    assert score.auc.value == pytest.approx(wins / pairs)
    assert (score.n_test, score.n_groups, score.n_train) == (len(y), 60, min(len(fold.train) for fold in folds))
    assert score.positive_share == y.mean()


class Rounded(KSparseProbe):
    """A probe whose decisions are full of ties."""

    def decision_function(self, X):
        return np.round(super().decision_function(X))


def test_auc_counts_ties_one_half():
    X, y, groups = documents(signal=0.7)
    fold = group_holdout(y, groups)
    score = evaluate_probe(Rounded(k=3), X, y, groups, folds=[fold], n_bootstrap=5)
    decision = Rounded(k=3).fit(X[fold.train], y[fold.train]).decision_function(X[fold.test])
    assert len(np.unique(decision)) < 15
    assert score.auc.value == pytest.approx(metrics.roc_auc_score(y[fold.test], decision))


def test_interval_draws_whole_documents():
    rng = np.random.default_rng(0)
    X, y, groups = documents(n_groups=20, rows=40, d=4, signal=1.0, offset=2.0)
    by_document = evaluate_probe(DenseProbe(), X, y, groups, n_bootstrap=400).accuracy
    fold = group_folds(y, groups)
    hits = np.concatenate([DenseProbe().fit(X[f.train], y[f.train]).predict(X[f.test]) == y[f.test] for f in fold])
    order = np.concatenate([groups[f.test] for f in fold])
    means = np.array([hits[order == g].mean() for g in range(20)])
    slow = [means[rng.integers(0, 20, 20)].mean() for _ in range(4000)]  # documents are of one size, so their mean is the accuracy
    np.testing.assert_allclose([by_document.low, by_document.high], np.quantile(slow, [0.025, 0.975]), atol=0.03)
    by_row = 2 * 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / len(hits))
    assert by_document.high - by_document.low > 2 * by_row


def test_shuffled_labels_score_chance_and_the_signal_does_not():
    X, y, groups = documents(signal=2.0)
    score = evaluate_probe(KSparseProbe(k=2), X, y, groups, n_bootstrap=50, n_shuffles=10)
    assert score.auc.value > 0.85
    assert abs(score.auc.null_mean - 0.5) < 0.08
    assert abs(score.mcc.null_mean) < 0.12
    assert 0 < score.auc.null_sd < 0.12
    assert score.n_shuffles == 10


def test_null_knows_that_documents_share_labels():
    """With few documents the chance scores of a probe scatter widely; a null that shuffles rows would call that scatter a finding."""
    X, y, groups = documents(n_groups=12, rows=50, d=20, signal=0.0, offset=1.0)
    score = evaluate_probe(DenseProbe(), X, y, groups, n_folds=3, n_bootstrap=10, n_shuffles=20)
    by_row = evaluate_probe(DenseProbe(), X, np.random.default_rng(0).permutation(y), groups, n_folds=3, n_bootstrap=10)
    assert score.auc.null_sd > 0.07
    assert abs(by_row.auc.value - 0.5) < 0.07


def test_shuffling_exchanges_labels_between_documents_when_each_has_one():
    groups = np.repeat([5, 3, 9, 7, 1, 4], [1, 5, 2, 3, 4, 6])
    y = np.repeat([0, 1, 0, 1, 1, 0], [1, 5, 2, 3, 4, 6])
    seen = set()
    for seed in range(20):
        shuffled = shuffle_labels(y, groups, seed=seed)
        per_document = [set(shuffled[groups == g].tolist()) for g in np.unique(groups)]
        assert all(len(labels) == 1 for labels in per_document)
        assert sum(labels == {1} for labels in per_document) == 3
        seen.add(tuple(shuffled.tolist()))
    assert len(seen) > 5


def test_shuffling_mixed_documents_keeps_counts_and_runs():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(30), 10))
    y = np.zeros(300, dtype=np.int64)
    for g in range(30):
        y[np.flatnonzero(groups == g)[: [0, 9, 1][g % 3]]] = 1
    before = y.copy()
    shuffled = shuffle_labels(y, groups, seed=4)
    assert y.tolist() == before.tolist()
    assert shuffled.sum() == y.sum()
    assert shuffled.tolist() != y.tolist()
    shares = sorted(shuffled[groups == g].mean() for g in range(30))
    assert shares == sorted(y[groups == g].mean() for g in range(30))


@pytest.mark.parametrize("pattern", [[0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0]])
def test_shuffling_labels_that_repeat_alike_in_all_documents_takes_their_meaning(pattern):
    """Dealt on as they stand, every document would get its own labels back."""
    groups = np.repeat(np.arange(60), len(pattern))
    y = np.tile(pattern, 60)
    agreement = [np.mean(shuffle_labels(y, groups, seed=seed) == y) for seed in range(40)]
    expected = np.mean(pattern) ** 2 + (1 - np.mean(pattern)) ** 2
    assert np.mean(agreement) == pytest.approx(expected, abs=0.05)
    assert 0.1 < np.max(agreement) < 0.85


def test_shuffling_numbers_that_count_up_in_all_documents_takes_their_meaning():
    groups, y = np.repeat(np.arange(50), 8), np.tile(np.arange(8.0), 50)
    shuffled = shuffle_labels(y, groups, seed=3)
    assert sorted(shuffled) == sorted(y)
    assert abs(np.corrcoef(shuffled, y)[0, 1]) < 0.2


def test_majority_class_scores_chance_and_constant_positive_scores_its_closed_form():
    X, y, groups = documents()
    keep = (y == 0) | (groups % 3 == 0)
    X, y, groups = X[keep], y[keep], groups[keep]
    majority = evaluate_probe(DummyClassifier(strategy="most_frequent"), X, y, groups, n_bootstrap=20)
    assert (majority.auc.value, majority.balanced_accuracy.value, majority.mcc.value, majority.f1.value) == (0.5, 0.5, 0, 0)
    assert majority.accuracy.value == 1 - y.mean()
    positive = evaluate_probe(DummyClassifier(strategy="constant", constant=1), X, y, groups, n_bootstrap=20)
    assert positive.f1.value == pytest.approx(2 * y.mean() / (1 + y.mean()))


def test_sparse_matrix_scores_as_its_dense_form_and_pipelines_are_accepted():
    X, y, groups = documents(signal=2.0)
    X[np.abs(X) < 0.7] = 0
    dense, csr = (evaluate_probe(KSparseProbe(k=4), m, y, groups, n_bootstrap=30, n_shuffles=2) for m in (X, sparse.csr_matrix(X)))
    assert dense == csr
    assert evaluate_probe(make_pipeline(KSparseProbe(k=4)), X, y, groups, n_bootstrap=30, n_shuffles=2) == dense


def test_score_survives_json():
    X, y, groups = documents()
    for n_shuffles in (0, 2):
        score = evaluate_probe(KSparseProbe(k=1), X, y, groups, n_bootstrap=10, n_shuffles=n_shuffles)
        data = to_json(score)
        assert from_json(ProbeScore, data) == score
        assert canonical(data) == canonical(score)


def test_fit_that_does_not_converge_is_an_error():
    X, y, groups = documents()
    with pytest.raises(SaeError, match="LogisticRegression did not converge on fold 0"):
        evaluate_probe(LogisticRegression(max_iter=1), X, y, groups)


def broken(X, y, groups):
    X = X.copy()
    X[4, 2] = np.nan
    return X


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda X, y, g: evaluate_probe(DenseProbe(), X[:-1], y, g), ["X must have one row per label", "479", "480"]),
        (lambda X, y, g: evaluate_probe(DenseProbe(), X, y, g[:-1]), ["groups must have one entry per label", "479", "480"]),
        (lambda X, y, g: evaluate_probe(DenseProbe(), X, y + 1, g), ["y must hold 0 and 1", "[1, 2]"]),
        (lambda X, y, g: evaluate_probe(DenseProbe(), broken(X, y, g), y, g), ["X must be finite", "1 entries"]),
        (lambda X, y, g: evaluate_probe(DenseProbe(), X, y, g, n_folds=1), ["n_folds must be at least 2", "got 1"]),
        (lambda X, y, g: evaluate_probe(DenseProbe(), X, y, g, n_bootstrap=0), ["n_bootstrap must be at least 1", "0"]),
        (lambda X, y, g: evaluate_probe(DenseProbe(), X, y, y), ["at least n_folds=5 groups", "1 for class 0"]),
        (lambda X, y, g: evaluate_probe(DenseProbe(), X, y, g, folds=[Fold(np.arange(100), np.arange(99, 480))]), ["share groups"]),
        (lambda X, y, g: group_holdout(y, g, test_share=1.0), ["test_share must be in (0, 1)", "1.0"]),
        (lambda X, y, g: group_holdout(y, 0 * g), ["at least 2 different groups"]),
        (lambda X, y, g: group_holdout(y, g, test_share=0.01), ["both classes on both sides", "in test"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call(*documents())
    assert all(word in str(caught.value) for word in words), caught.value
