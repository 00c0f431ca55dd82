"""Comparison, stability and transfer: what they say of planted directions, and that their nulls are nulls."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.dummy import DummyClassifier
from sklearn.metrics import roc_auc_score

from probes.directions import (
    ComparisonConfig,
    KMeansDirection,
    LabelledRows,
    LDADirection,
    LogisticDirection,
    MeanDifferenceDirection,
    PCADirection,
    compare_readers,
    contrast_pairs,
    direction_stability,
    expected_cosine,
    transfer,
)
from probes.directions.base import match_pairs
from probes.directions.scoring import auc, auc_interval, resampled, shuffled
from sae.errors import ConfigError

QUICK = ComparisonConfig(n_folds=4, n_bootstrap=200, n_shuffles=5, n_random=4)


def rows_along(v, name="set", seed=0, n_documents=30, per_document=6, gap=2.5):
    """Documents with one label each, an offset of their own, and the label along v."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n_documents) % 2)
    groups = np.repeat(np.arange(n_documents), per_document)
    X = rng.normal(size=(len(groups), len(v))) + 0.3 * rng.normal(size=(n_documents, len(v)))[groups]
    return LabelledRows(name, X + gap * np.outer(label[groups], v), label[groups], groups)


def directions(*cosines, d=40, seed=1):
    """A direction, and others at these cosines to it."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(d, 1 + len(cosines))))[0].T
    return [basis[0], *(c * basis[0] + np.sqrt(1 - c * c) * e for c, e in zip(cosines, basis[1:], strict=True))]


def pairs_along(v, seed=0, n=60, gap=2.0):
    rng = np.random.default_rng(seed)
    shared = 5 * rng.normal(size=(n, len(v)))
    return contrast_pairs("pairs", shared + gap * v + rng.normal(size=shared.shape), shared, groups=np.arange(n) // 2)


@pytest.mark.parametrize("d", [1, 2, 3, 10, 600])
def test_expected_cosine_is_that_of_random_directions(d):
    x = np.random.default_rng(d).normal(size=(2, 20000, d))
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    assert expected_cosine(d) == pytest.approx(np.abs((x[0] * x[1]).sum(1)).mean(), rel=0.03)
    if d > 9:
        assert expected_cosine(d) == pytest.approx(np.sqrt(2 / (np.pi * d)), rel=0.5 / d)


def test_area_under_the_curve_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    y, decision = rng.integers(0, 2, 200), rng.integers(0, 12, 200) / 3.0
    assert auc(decision, y) == pytest.approx(roc_auc_score(y, decision))
    found = auc_interval(decision + 2 * y, y, np.arange(200) // 4, n_bootstrap=300, seed=0)
    assert found.value == pytest.approx(roc_auc_score(y, decision + 2 * y))
    assert found.low < found.value < found.high
    assert np.isnan(auc(decision, np.ones(200, dtype=np.int64)))


def test_comparison_ranks_what_was_planted_above_its_null_and_random_directions():
    v = directions()[0]
    rows = rows_along(v)
    readers = {"mean": MeanDifferenceDirection(), "LDA": LDADirection(), "logistic": LogisticDirection(C=0.1)}
    found = compare_readers(readers, rows, QUICK)
    assert found.readers == ("mean", "LDA", "logistic")
    for score, direction in zip(found.scores, found.directions, strict=True):
        assert score.auc.value > 0.9
        assert score.auc.low <= score.auc.value <= score.auc.high
        assert abs(score.auc.null_mean - 0.5) < 0.15
        assert direction @ v > 0.7
    assert found.random.auc.value < 0.7
    np.testing.assert_allclose(np.diag(found.cosine), 1)
    assert found.cosine[0, 1] == pytest.approx(found.directions[0] @ found.directions[1])
    table = found.table()
    assert [row[0] for row in table.rows] == ["mean", "LDA", "logistic", "random direction"]
    assert f"{expected_cosine(40):.3f}" in table.note
    assert len(found.figure().data) == 3


def test_labels_that_mean_nothing_score_one_half():
    rows = rows_along(directions()[0], gap=0.0, n_documents=60)
    found = compare_readers({"mean": MeanDifferenceDirection(), "LDA": LDADirection()}, rows, QUICK)
    for score in found.scores:
        assert abs(score.auc.value - 0.5) < 0.2
        assert score.auc.low < 0.6


def test_documents_with_one_row_each_and_sparse_rows_are_compared():
    rows = rows_along(directions()[0], per_document=1, n_documents=80)
    rows = LabelledRows("one", sparse.csr_matrix(np.where(np.abs(rows.X) > 0.5, rows.X, 0)), rows.y, rows.groups)
    found = compare_readers({"mean": MeanDifferenceDirection()}, rows, QUICK)
    assert found.scores[0].n_groups == 80
    assert found.scores[0].auc.value > 0.75


def test_readers_of_pairs_get_the_pairs_inside_every_fold():
    v = directions()[0]
    rows = pairs_along(v)
    found = compare_readers({"PCA": PCADirection(), "k-means": KMeansDirection(n_init=2)}, rows, QUICK)
    assert found.cosine[0, 1] > 0.95 and found.directions[0] @ v > 0.9
    without = LabelledRows("rows", rows.X, rows.y, rows.groups)
    unpaired = compare_readers({"PCA": PCADirection()}, without, QUICK)
    assert found.scores[0].auc.value > unpaired.scores[0].auc.value + 0.05


def test_shuffled_pairs_stay_pairs_and_turn_document_by_document():
    rows = pairs_along(directions()[0])
    turned = np.stack([shuffled(rows, seed=seed).y != rows.y for seed in range(200)])
    for seed in range(3):
        match_pairs(shuffled(rows, seed=seed).y, rows.pairs)
    assert (turned.reshape(200, 30, 4) == turned.reshape(200, 30, 4)[:, :, :1]).all()
    assert abs(turned.mean() - 0.5) < 0.03


def test_documents_drawn_twice_have_pairs_of_their_own():
    rows = pairs_along(directions()[0])
    sample = resampled(rows, np.random.default_rng(0))
    assert len(sample) == len(rows)
    matched = match_pairs(sample.y, sample.pairs)
    assert len(matched.positive) == 60
    assert len(np.unique(sample.groups)) == 30
    original = {tuple(np.round(a - b, 9)) for a, b in zip(rows.X[::2], rows.X[1::2], strict=True)}
    drawn = {tuple(np.round(d, 9)) for d in sample.X[matched.positive] - sample.X[matched.negative]}
    assert drawn < original


def test_stability_is_high_for_a_planted_direction_and_its_nulls_are_read_beside_it():
    rows = rows_along(directions()[0], gap=4.0, n_documents=40)
    found = direction_stability({"mean": MeanDifferenceDirection(), "LDA": LDADirection()}, rows, n_draws=12)
    assert (found.halves.mean(1) > 0.6).all()
    assert (np.abs(found.halves_null.mean(1)) < 0.25).all()
    assert (found.bootstrap.mean(1) > 0.85).all()
    assert (found.bootstrap_null.mean(1) > 0.4).all()  # it shares rows with the data: far from 0 although the labels mean nothing
    assert (found.bootstrap.mean(1) > found.bootstrap_null.mean(1)).all()
    assert len(found.table().rows) == 2 and len(found.figure().data) == 2


def test_labels_of_pairs_give_an_uncentred_axis_no_more_than_its_sign():
    rows = pairs_along(directions()[0], gap=5.0, n=100)
    found = direction_stability({"PCA": PCADirection(swap=False, center=False), "mean": MeanDifferenceDirection()}, rows, n_draws=8)
    assert (found.halves > 0.9).all()
    np.testing.assert_allclose(np.abs(found.halves_null[0]), found.halves[0], atol=1e-6)
    assert {-1.0, 1.0} == set(np.sign(found.halves_null[0]))
    assert np.abs(found.halves_null[1]).mean() < found.halves[1].mean() - 0.1


def test_transfer_follows_the_cosine_of_the_planted_directions():
    v, near, far, opposite = directions(0.9, 0.0, -1.0)
    sets = [
        rows_along(w, name, seed=i, n_documents=60)
        for i, (name, w) in enumerate([("v", v), ("near", near), ("far", far), ("not v", opposite)])
    ]
    found = transfer({"LDA": LDADirection(), "mean": MeanDifferenceDirection()}, sets, n_shuffles=6, n_random=6)
    assert found.auc.shape == (2, 4, 4)
    for r in range(2):
        assert (np.diag(found.auc[r]) > 0.9).all()
        assert found.auc[r, 0, 1] > 0.85 and found.auc[r, 1, 0] > 0.85
        assert 0.25 < found.auc[r, 0, 2] < 0.75
        assert found.auc[r, 0, 3] < 0.1
        assert found.cosine[r, 0, 3] < -0.6 < 0.5 < found.cosine[r, 0, 1]
        assert abs(found.cosine[r, 0, 2]) < 0.4
    assert abs(found.shuffled.mean() - 0.5) < 0.08
    assert found.low.min() >= 0 and (found.low <= found.auc).all() and (found.auc <= found.high).all()
    np.testing.assert_allclose(np.einsum("rad,rad->ra", found.directions, found.directions), 1)
    assert found.expected_cosine == expected_cosine(40)
    assert np.isnan(found.baseline).all() and "AUC - baseline" not in found.table().columns
    assert len(found.table().rows) == 32


def test_transfer_is_scored_on_documents_that_no_fit_has_seen():
    rng = np.random.default_rng(0)
    rows = rows_along(directions(d=300)[0], gap=0.0, n_documents=24, per_document=8)  # d > n: a fit separates what it has seen
    found = transfer({"LDA": LDADirection()}, [rows], n_shuffles=0, n_random=0)
    assert auc(LDADirection().fit(rows.X, rows.y).decision_function(rows.X), rows.y) > 0.99
    assert found.auc[0, 0, 0] < 0.9
    other = LabelledRows("other", rows.X + 0.01 * rng.normal(size=rows.X.shape), rows.y, rows.groups)
    shared = transfer({"LDA": LDADirection()}, [rows, other], n_shuffles=0, n_random=0, shared_groups=True)
    assert shared.auc.max() < 0.9  # the same documents in both sets, and never on both sides


def test_baseline_of_the_caller_is_scored_on_the_same_rows_and_subtracted():
    v, w = directions(0.5)
    sets = [rows_along(v, "a", 0), rows_along(w, "b", 1)]
    scores = {"a": sets[0].y + 0.0, "b": np.random.default_rng(0).normal(size=len(sets[1]))}
    found = transfer({"mean": MeanDifferenceDirection()}, sets, baseline=scores, n_shuffles=2, n_random=2)
    assert found.baseline[0] == 1
    np.testing.assert_allclose(found.gain[0, :, 0], found.auc[0, :, 0] - 1)
    assert found.table().columns[-1] == "AUC - baseline"
    assert found.heatmap("mean", less_baseline=True).data[0].zmid == 0
    assert found.figure().data[0].zmid == 0.5
    only_a = transfer({"mean": MeanDifferenceDirection()}, sets, baseline={"a": scores["a"]}, n_shuffles=0, n_random=0)
    assert np.isnan(only_a.gain[0, 0, 1]) and only_a.table().rows[1][-1] != only_a.table().rows[1][-1]


def test_same_seed_gives_the_same_numbers_and_inputs_stay_as_they_are():
    rows = rows_along(directions()[0])
    before = rows.X.copy()
    tables = [str(transfer({"mean": MeanDifferenceDirection()}, [rows], n_shuffles=2, n_random=2, seed=seed)) for seed in (5, 5, 6)]
    assert tables[0] == tables[1] != tables[2]
    np.testing.assert_array_equal(rows.X, before)


def one_class(rows):
    return LabelledRows("one class", rows.X, np.zeros_like(rows.y), rows.groups)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: transfer({}, [r]), "at least one each, got 0 and 1"),
        (lambda r: transfer({"m": MeanDifferenceDirection()}, [r, r]), "different names"),
        (lambda r: transfer({"m": MeanDifferenceDirection()}, [r, rows_along(np.eye(7)[0], "b")]), r"one width, got \{'set': 40, 'b': 7\}"),
        (lambda r: transfer({"m": MeanDifferenceDirection()}, [one_class(r)]), "'one class' cannot be split: it must have both classes"),
        (lambda r: transfer({"m": MeanDifferenceDirection()}, [one_class(r)], shared_groups=True), "both classes in train"),
        (lambda r: transfer({"m": MeanDifferenceDirection()}, [r], shared_groups=True, test_share=1.5), "test_share"),
        (lambda r: transfer({"m": MeanDifferenceDirection()}, [r], baseline={"x": r.y}), "baseline must name data sets"),
        (lambda r: transfer({"m": MeanDifferenceDirection()}, [r], baseline={"set": r.y[:3]}), "180 finite scores"),
        (lambda r: transfer({"m": DummyClassifier()}, [r]), "must have direction_ after fit, DummyClassifier has none"),
        (lambda r: compare_readers({}, r), "readers must hold at least one"),
        (lambda r: compare_readers({"m": MeanDifferenceDirection()}, one_class(r)), "two classes or more"),
        (lambda r: direction_stability({"m": MeanDifferenceDirection()}, r, n_draws=1), "n_draws be at least 2"),
        (lambda r: ComparisonConfig(n_folds=1), "n_folds must be at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(rows_along(directions()[0]))


def test_unknown_readers_and_a_missing_baseline_are_named():
    found = transfer({"mean": MeanDifferenceDirection()}, [rows_along(directions()[0])], n_shuffles=0, n_random=0)
    with pytest.raises(ConfigError, match="reader must be one of mean, got 'LDA'"):
        found.heatmap("LDA")
    with pytest.raises(ConfigError, match="needs a baseline"):
        found.heatmap("mean", less_baseline=True)
