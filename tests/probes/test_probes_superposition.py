"""Diagnostics on a feature that has a neuron of its own, and on one that is spread over four."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import f1_score

from probes.optimal import OptimalSparseProbe
from probes.sparse import KSparseProbe
from probes.superposition import (
    ablation_effect,
    basis_control,
    haar_rotation,
    k_curve,
    prune,
    single_columns,
    token_classes,
    weight_statistics,
)
from sae.errors import ConfigError

SUPERPOSED_F1 = {1: 0.908, 2: 0.993, 3: 0.996, 4: 1.0, 5: 1.0, 8: 1.0}
SUPERPOSED_PRUNED = (1.0, 0.996, 0.991, 0.89, 0.475)
DEDICATED_PRUNED = (1.0, 0.498, 0.478, 0.44, 0.45)


def features(dedicated, n=3000, seed=0, share=0.22):
    """60 features on 4 of 40 neurons each, one active at a time; feature 0, the label, alone on neuron 0 if `dedicated`."""
    rng = np.random.default_rng(seed)
    neurons = np.zeros((60, 40))
    for feature in range(60):
        neurons[feature, rng.choice(np.arange(int(dedicated), 40), 4, replace=False)] = 1
    if dedicated:
        neurons[0] = np.eye(40)[0]
    active = np.where(rng.random(n) < share, 0, rng.integers(1, 60, n))
    X = neurons[active] * (1 + 0.1 * rng.normal(size=(n, 40))) + 0.1 * rng.normal(size=(n, 40))
    return X, (active == 0).astype(np.int64), np.arange(n) // 5, set(np.flatnonzero(neurons[0]).tolist())


def test_curve_of_a_superposed_feature_rises_and_that_of_a_dedicated_one_is_flat():
    found = np.zeros(6)
    for seed in range(3):
        X, y, documents, support = features(False, seed=seed)
        curve = k_curve(X, y, documents, ks=tuple(SUPERPOSED_F1), n_bootstrap=100, seed=seed)
        found += np.array([s.f1.value for s in curve.scores]) / 3
        assert set(KSparseProbe(k=4).fit(X, y).support_.tolist()) == support
        assert curve.missing_at_one > 0.03
    np.testing.assert_allclose(found, list(SUPERPOSED_F1.values()), atol=0.04)
    assert found[0] < 0.95 and found[3] > 0.995
    X, y, documents, _ = features(True)
    curve = k_curve(sparse.csr_matrix(X), y, documents, ks=(8, 1, 2), n_bootstrap=100)
    assert curve.ks == (1, 2, 8)
    assert all(s.f1.value > 0.999 for s in curve.scores)
    assert abs(curve.missing_at_one) < 0.001
    assert KSparseProbe(k=1).fit(X, y).support_.tolist() == [0]


def test_interval_of_the_curve_holds_the_score_on_many_more_documents():
    X, y, documents, _ = features(False, seed=1)
    curve = k_curve(X, y, documents, ks=(1,), n_bootstrap=500)
    truth = []
    for start in range(5):
        train = np.random.default_rng(start).permutation(3000)[:2400]
        fresh = np.setdiff1d(np.arange(3000), train)
        truth.append(f1_score(y[fresh], KSparseProbe(k=1).fit(X[train], y[train]).predict(X[fresh])))
    assert curve.scores[0].f1.low <= np.mean(truth) <= curve.scores[0].f1.high
    assert curve.scores[0].f1.low < curve.scores[0].f1.value < curve.scores[0].f1.high


def test_pruning_fells_a_dedicated_feature_at_once_and_a_superposed_one_only_with_its_last_neuron():
    for probe in (KSparseProbe(k=4), OptimalSparseProbe(k=4, filter_size=8, time_limit=2.0)):
        exact = isinstance(probe, OptimalSparseProbe)
        superposed, dedicated = [], []
        for seed in range(1 if exact else 4):
            X, y, documents, support = features(False, seed=seed)
            curve = prune(X, y, documents, probe=probe, n_rounds=5, n_bootstrap=50, seed=seed)
            assert {r.dropped for r in curve.rounds[:4]} == support
            assert set(curve.rounds[0].support) == support
            superposed.append([r.score.f1.value for r in curve.rounds])
            assert curve.drops[4] > 0.4
            X, y, documents, _ = features(True, seed=seed)
            curve = prune(X, y, documents, probe=probe, n_rounds=5, n_bootstrap=50, seed=seed)
            assert curve.rounds[0].dropped == 0
            dedicated.append([r.score.f1.value for r in curve.rounds])
        assert 1 - np.mean(dedicated, 0)[1] >= 0.4
        assert (1 - np.mean(superposed, 0)[:3] < 0.05).all()
        np.testing.assert_allclose(np.mean(superposed, 0), SUPERPOSED_PRUNED, atol=0.09)
        np.testing.assert_allclose(np.mean(dedicated, 0), DEDICATED_PRUNED, atol=0.09)


def test_pruning_looks_at_the_test_documents_only_to_score():
    X, y, documents, _ = features(False)
    first = prune(X, y, documents, n_rounds=4, n_bootstrap=10)
    from probes.validation import group_holdout

    test = group_holdout(y, documents, test_share=0.3, seed=0).test
    changed = y.copy()
    changed[test] = 1 - changed[test]  # the split depends on documents alone
    second = prune(X, changed, documents, n_rounds=4, n_bootstrap=10)
    assert [r.dropped for r in first.rounds] == [r.dropped for r in second.rounds]
    assert [r.support for r in first.rounds] == [r.support for r in second.rounds]
    assert [r.dropped_f1 for r in first.rounds] == [r.dropped_f1 for r in second.rounds]
    assert second.rounds[0].score.f1.value < 0.1


def test_rotation_costs_a_dedicated_feature_much_at_one_column_and_nothing_at_all():
    rotated = {}
    for dedicated in (False, True):
        X, y, documents, _ = features(dedicated, n=1500)
        found = basis_control(X, y, documents, ks=(1, 4, 40), n_rotations=3, n_bootstrap=20)
        rotated[dedicated] = found.rotated_f1.mean(0)
        assert [len(f1) for f1 in found.subspace_f1] == [16, 8, 3]
        assert found.subspace_f1[0].mean() < rotated[dedicated][0]
        assert found.scores[2].f1.value == pytest.approx(found.rotated_f1[:, 2].mean(), abs=0.01)
        assert found.rotated_auc[:, 2].min() > 0.999
    np.testing.assert_allclose([rotated[False][0], rotated[True][0]], [0.858, 0.805], atol=0.1)
    assert rotated[True][0] < 0.9


def test_haar_rotation_is_orthogonal_and_has_no_preferred_direction():
    q = haar_rotation(30, seed=1)
    np.testing.assert_allclose(q.T @ q, np.eye(30), atol=1e-12)
    assert (q == haar_rotation(30, seed=1)).all()
    small = np.stack([haar_rotation(3, seed=s) for s in range(3000)])
    assert np.abs(small.mean(0)).max() < 0.05  # without the sign fix the diagonal's mean is not 0
    np.testing.assert_allclose((small**2).mean(0), np.full((3, 3), 1 / 3), atol=0.02)
    assert abs(np.linalg.det(small).mean()) < 0.06
    angle = np.angle(np.linalg.eigvals(np.stack([haar_rotation(2, seed=s) for s in range(2000)]))).ravel()
    assert np.abs(np.exp(1j * angle).mean()) < 0.05


def test_single_columns_are_chosen_on_training_documents_and_scored_on_others():
    X, y, documents, support = features(False)
    found = single_columns(X, y, documents, n_columns=6, n_bootstrap=50)
    assert set(found.columns[:4].tolist()) == support
    assert min(s.f1.value for s in found.scores[:4]) > max(s.f1.value for s in found.scores[4:])
    noise = np.random.default_rng(0).normal(size=(300, 500))
    label = np.arange(300) // 2 % 2
    found = single_columns(noise, label, np.arange(300), n_columns=10, n_bootstrap=50)
    assert np.mean([s.auc.value for s in found.scores]) == pytest.approx(0.5, abs=0.08)


def test_token_classes_have_numpys_quantiles_and_find_the_classes_that_move_the_neuron():
    rng = np.random.default_rng(0)
    previous, tokens = rng.integers(0, 9, (2, 6000))
    moving = ((previous == 3) & (tokens == 4)) | ((previous == 7) & (tokens == 1))
    acts = rng.normal(size=6000) * 0.3 + 5 * moving
    found = token_classes(acts, tokens, previous, names={3: "social", 4: "security"}, n_shown=5)
    assert set(found.names[:2]) == {"social + security", "7 + 1"}
    assert (found.n_classes, found.n_moved) == (81, 2)
    mask = (previous == 3) & (tokens == 4)
    place = found.names.index("social + security")
    assert found.counts[place] == mask.sum()
    np.testing.assert_allclose(found.quantiles[place], np.quantile(acts[mask], [0.05, 0.25, 0.5, 0.75, 0.95]))
    assert (np.diff(found.quantiles[:, 2]) <= 0).all()
    assert token_classes(acts, tokens).n_classes == 9
    assert token_classes(acts, tokens).n_moved == 0
    assert token_classes(acts.astype(np.float32), tokens, previous, min_count=80).n_classes < 81


def test_weight_statistics_are_their_formulas_with_the_place_in_the_layer():
    rng = np.random.default_rng(0)
    w_in, w_out, b_in = rng.normal(size=(200, 32)), rng.normal(size=(200, 32)), rng.normal(size=200)
    w_in[7] *= 10
    b_in[7] = -8
    w_out[9] = -w_in[9]
    w_out[11] = 0
    found = weight_statistics(w_in, b_in, w_out, neurons=np.array([7, 9, 11]))
    values = found.values
    assert values[7, 0] == pytest.approx(np.sqrt((w_in[7] ** 2).sum()))
    assert values[7, 4] == pytest.approx(values[7, 0] * -8)
    assert values[9, 3] == pytest.approx(-1) and values[11, 3] == 0 and values[11, 2] == 0
    assert values[:, 3].std() == pytest.approx(1 / np.sqrt(32), rel=0.2)
    places = found.percentiles()
    assert (
        places[0, 0] == pytest.approx(199.5 / 200) and places[0, 1] == pytest.approx(0.5 / 200) and places[1, 3] == pytest.approx(0.5 / 200)
    )
    everyone = weight_statistics(w_in, b_in, w_out, neurons=np.arange(200)).percentiles()
    np.testing.assert_allclose(everyone.mean(0), 0.5)
    single = weight_statistics(w_in.astype(np.float32), b_in.astype(np.float32), w_out.astype(np.float32), neurons=np.array([3]))
    np.testing.assert_allclose(single.values, values, rtol=1e-5, atol=1e-6)


def test_ablation_finds_the_context_that_needs_the_neuron_and_its_null_does_not():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 50)
    inside = groups % 4 == 0
    loss = rng.gamma(2.0, 1.0, 4000)
    needed = loss + 0.4 * inside + 0.1 * rng.normal(size=4000) + 0.05
    useless = loss + 0.1 * rng.normal(size=4000)
    found = ablation_effect(loss, {"zero": needed, "mean": useless}, inside, groups)
    zero, mean = found.rows
    assert (zero.name, zero.inside, zero.outside) == ("zero", pytest.approx(0.45, abs=0.02), pytest.approx(0.05, abs=0.02))
    assert zero.low < 0.4 + 0.02 and zero.low > 0.35 and zero.high > zero.difference
    assert mean.low < 0 < mean.high
    assert abs(zero.null_mean) < 0.05 < zero.difference - 5 * zero.null_sd
    assert (found.n_inside, found.n_outside, found.n_groups) == (1000, 3000, 80)
    halves = rng.random(4000) < 0.5
    assert ablation_effect(loss, {"zero": loss + 0.3 * halves}, halves, groups).rows[0].difference == pytest.approx(0.3)


def test_every_result_shows_a_table_with_its_control_and_a_figure():
    X, y, documents, _ = features(False, n=600)
    rng = np.random.default_rng(0)
    options = {"n_bootstrap": 20}
    results = [
        (k_curve(X, y, documents, ks=(1, 2), **options), "Chance: F1"),
        (single_columns(X, y, documents, n_columns=3, **options), "Chance: F1"),
        (prune(X, y, documents, n_rounds=2, **options), "Always positive: F1"),
        (basis_control(X, y, documents, ks=(1, 2), n_rotations=2, **options), "Always positive: F1"),
        (token_classes(X[:, 0], y), "all positions"),
        (weight_statistics(X[:50], X[:50, 0], X[50:100], neurons=np.array([1])), "Null of the cosine"),
        (ablation_effect(rng.random(600), {"zero": rng.random(600)}, y == 1, documents), "Null: which tokens"),
    ]
    for result, control in results:
        assert control in str(result)
        assert control in result._repr_html_()
        assert len(result.figure().data) >= 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda X, y, g: k_curve(X, y, g, ks=(1, 41)), r"ks must be in 1\.\.d=40, at least one, got \[1, 41\]"),
        (lambda X, y, g: k_curve(X, y, g, ks=()), r"ks must be in 1\.\.d=40, at least one, got \[\]"),
        (lambda X, y, g: single_columns(X, y, g, n_columns=0), r"1\.\.d=40.*single_columns"),
        (lambda X, y, g: prune(X, y, g, n_rounds=40), r"n_rounds must be in 1\.\.d-1=39, got 40"),
        (lambda X, y, g: prune(X, y, g, validation_share=0.6, test_share=0.5), "validation_share . test_share must be below 1"),
        (lambda X, y, g: basis_control(X, y, g, n_rotations=0), "n_rotations must be at least 1, got 0"),
        (lambda X, y, g: haar_rotation(10_000, seed=0), r"d must be in 1\.\.8192, got 10000"),
        (lambda X, y, g: token_classes(X[:, 0], y, min_count=10_000), "min_count must leave a class, got 10000"),
        (lambda X, y, g: token_classes(np.where(X[:, 0] > 2, np.nan, X[:, 0]) + np.nan, y), "acts must be finite, got 200"),
        (lambda X, y, g: weight_statistics(X, X[:, 0], X, neurons=np.array([200])), r"neurons must be numbers in 0\.\.199.*\[200\]"),
        (lambda X, y, g: ablation_effect(X[:, 0], {"zero": X[:, 1]}, y > 1, g), "got 0 of 200 inside"),
        (lambda X, y, g: ablation_effect(X[:, 0], {}, y == 1, g), "ablated must hold finite losses"),
        (lambda X, y, g: ablation_effect(X[:, 0], {"zero": X[:, 1]}, y == 1, g, n_shuffles=1), "n_shuffles 2, got 1000 and 1"),
    ],
)
def test_bad_input_is_named(call, words):
    X, y, documents, _ = features(False, n=200)
    with pytest.raises(ConfigError, match=words):
        call(X, y, documents)
