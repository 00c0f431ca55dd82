"""The causal inner product against its definition, its invariances and planted concepts."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.causal import CausalInnerProduct, ConceptDirection, cosines
from sae.errors import ConfigError


@parametrize_with_checks([CausalInnerProduct(ridge=1e-3), ConceptDirection()])
def test_estimator_passes_every_check_of_scikit_learn(estimator, check):
    check(estimator)


def unembedding(n=400, d=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) * np.geomspace(20, 0.5, d)) + rng.normal(size=d) * 5


def test_whitened_rows_have_the_identity_for_covariance_and_the_pairing_with_contexts_is_kept():
    gamma, contexts = unembedding(), np.random.default_rng(1).normal(size=(30, 12))
    causal = CausalInnerProduct().fit(gamma)
    g = causal.transform(gamma)
    np.testing.assert_allclose(g.T @ g / len(g), np.eye(12), atol=1e-10)
    np.testing.assert_allclose(g.mean(axis=0), 0, atol=1e-10)
    centred = gamma - gamma.mean(axis=0)
    pairing = contexts @ centred.T
    assert np.abs(causal.whiten_contexts(contexts) @ g.T - pairing).max() < 1e-10 * np.abs(pairing).max()
    np.testing.assert_allclose(causal.sqrt_ @ causal.inverse_sqrt_, np.eye(12), atol=1e-10)
    np.testing.assert_allclose(causal.sqrt_, causal.sqrt_.T, atol=1e-12)
    np.testing.assert_allclose(causal.covariance_, np.cov(gamma.T, bias=True), rtol=1e-10)


def test_inner_product_and_duals_are_those_of_the_inverse_covariance():
    gamma = unembedding()
    causal = CausalInnerProduct().fit(gamma)
    a, b = gamma[:3] - gamma[3:6], gamma[6:10] - gamma[10:14]
    expected = a @ np.linalg.inv(np.cov(gamma.T, bias=True)) @ b.T
    np.testing.assert_allclose(causal.inner(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(causal.dual(a) @ b.T, expected, rtol=1e-9)
    np.testing.assert_allclose(causal.primal(causal.dual(a)), a, rtol=1e-8)
    np.testing.assert_allclose(causal.unwhiten(causal.whiten(a)), a, rtol=1e-8)
    np.testing.assert_allclose(causal.unwhiten_contexts(causal.whiten_contexts(a)), a, rtol=1e-8)
    np.testing.assert_allclose(causal.inverse_transform(causal.transform(gamma)), gamma, rtol=1e-8, atol=1e-9)
    own = np.sqrt(np.diag(causal.inner(a, a)))[:, None] * np.sqrt(np.diag(causal.inner(b, b)))
    np.testing.assert_allclose(causal.cosine(a, b), expected / own, rtol=1e-9)
    np.testing.assert_allclose(causal.whiten(a), causal.whiten_contexts(causal.dual(a)), rtol=1e-8)  # one vector in both


def test_invertible_change_of_coordinates_changes_no_causal_inner_product_but_the_euclidean_ones():
    rng = np.random.default_rng(2)
    left, right = (np.linalg.qr(rng.normal(size=(12, 12)))[0] for _ in range(2))
    gamma, change = unembedding(), left * np.geomspace(0.5, 12, 12) @ right
    pairs = gamma[:50] - gamma[50:100]
    before, after = CausalInnerProduct().fit(gamma), CausalInnerProduct().fit(gamma @ change)
    expected = before.inner(pairs, pairs)
    assert np.abs(after.inner(pairs @ change, pairs @ change) - expected).max() < 1e-9 * np.abs(expected).max()
    euclid = np.linalg.norm(pairs @ change, axis=1) / np.linalg.norm(pairs, axis=1)
    assert euclid.max() > 5
    gain = rng.uniform(0.1, 3, 12)  # folding the final norm's gain is such a change
    folded = CausalInnerProduct().fit(gamma * gain).inner(pairs * gain, pairs * gain)
    assert np.abs(folded - expected).max() < 1e-9 * np.abs(expected).max()


def test_planted_independent_concepts_are_orthogonal_under_it_and_steps_along_one_leave_the_others():
    rng = np.random.default_rng(0)
    concepts = rng.choice([-1.0, 1.0], size=(20000, 6))
    left, right = (np.linalg.qr(rng.normal(size=(24, 24)))[0] for _ in range(2))
    mixing = left * np.linspace(30, 1, 24) @ right
    gamma = np.concatenate([concepts, rng.normal(size=(20000, 18))], axis=1) @ mixing
    causal = CausalInnerProduct().fit(gamma)
    directions = 2 * mixing[:6]  # flipping one concept
    off = ~np.eye(6, dtype=bool)
    assert np.abs(causal.cosine(directions, directions))[off].max() < 0.03
    assert np.abs(cosines(directions, directions))[off].max() > 0.3
    crossed = causal.dual(directions) @ directions.T
    assert np.abs(crossed / np.diag(crossed)[:, None])[off].max() < 0.03


def test_a_step_changes_log_odds_by_exactly_its_inner_product_with_the_pair():
    rng = np.random.default_rng(3)
    gamma, contexts = unembedding(), rng.normal(size=(7, 12))
    causal = CausalInnerProduct().fit(gamma)
    direction = ConceptDirection().fit(causal.whiten(gamma[:20] - gamma[20:40])).direction_
    logits = contexts @ gamma.T
    moved = (contexts + 0.3 * causal.unwhiten_contexts(direction[None])) @ gamma.T
    g = causal.transform(gamma)
    change = (moved - logits)[:, 5] - (moved - logits)[:, 9]
    np.testing.assert_allclose(change, 0.3 * (g[5] - g[9]) @ direction, rtol=1e-9)


@pytest.mark.parametrize("hostile", ["fewer rows than columns", "copies", "padded column", "repeated column", "constant"])
def test_a_covariance_without_inverse_is_refused_unless_a_ridge_is_given(hostile):
    gamma = unembedding(60, 12)
    gamma = {
        "fewer rows than columns": gamma[:8],
        "copies": np.repeat(gamma[:9], 20, axis=0),
        "padded column": np.concatenate([gamma, np.zeros((60, 2))], axis=1),
        "repeated column": np.concatenate([gamma, gamma[:, :1]], axis=1),
        "constant": np.ones((60, 12)),
    }[hostile]
    with pytest.raises(ConfigError, match=r"covariance with an inverse.*give ridge") as caught:
        CausalInnerProduct().fit(gamma)
    assert f"of {gamma.shape[1]} eigenvalues" in str(caught.value)
    if hostile != "constant":
        causal = CausalInnerProduct(ridge=1e-2).fit(gamma)
        ridge = 1e-2 * np.trace(np.cov(gamma.T, bias=True)) / gamma.shape[1]
        np.testing.assert_allclose(causal.covariance_, np.cov(gamma.T, bias=True) + ridge * np.eye(gamma.shape[1]), rtol=1e-9, atol=1e-9)
        assert np.isfinite(causal.transform(gamma)).all()


def test_single_precision_rows_are_whitened_in_double():
    gamma = unembedding().astype(np.float32)
    np.testing.assert_array_equal(CausalInnerProduct().fit(gamma).precision_, CausalInnerProduct().fit(gamma.astype(np.float64)).precision_)


def test_rows_that_cannot_be_used_are_refused():
    gamma = unembedding()
    gamma[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        CausalInnerProduct().fit(gamma)
    with pytest.raises(ConfigError, match="ridge must be None or a number of at least 0, got -1"):
        CausalInnerProduct(ridge=-1.0).fit(unembedding())
    with pytest.raises(ConfigError, match="no row of zeros, row 1"):
        CausalInnerProduct().fit(unembedding()).cosine(np.eye(12)[:2], np.array([np.ones(12), np.zeros(12)]))
    with pytest.raises(ValueError, match="features"):
        CausalInnerProduct().fit(unembedding()).whiten(np.ones((2, 5)))
    with pytest.raises(ConfigError, match="cancel out"):
        ConceptDirection().fit(np.array([[1.0, 2.0], [-1.0, -2.0]]))


def test_it_goes_in_a_pipeline_and_clones():
    gamma = unembedding()
    piped = make_pipeline(StandardScaler(), clone(CausalInnerProduct())).fit_transform(gamma)
    whitened = CausalInnerProduct().fit_transform(gamma)
    np.testing.assert_allclose(piped @ piped.T, whitened @ whitened.T, rtol=1e-7, atol=1e-8)  # scaling columns is a change of coordinates
