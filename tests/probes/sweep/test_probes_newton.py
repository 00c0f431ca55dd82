"""Nested logistic fits against scikit-learn's own minimum, against the equations it must satisfy, and on what is hard."""

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from probes.base import fit_logistic
from probes.logistic_loops import logistic_step
from probes.newton import _descend, _gradient, _moved, _Problem, fit_nested, row_weights, standardised
from sae.errors import ConfigError

KS = (1, 3, 8, 9, 20)


def rows(seed, *, n=400, d=20, steep=1.0, kind=""):
    """Correlated columns of various scales and means, and labels that a linear rule explains the better the larger `steep`."""
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + 3 * rng.normal(size=d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))
    X = X.astype(np.float32)
    if kind == "constant":
        X[:, 1] = 3.3
    if kind == "duplicate":
        X[:, 2] = X[:, 0]
    if kind == "rare":
        X[:, 4] = np.where(rng.random(n) < 0.01, 100.0, 0.0)
    z = standardised(np.ascontiguousarray(X.T)).z[1:]
    decision = rng.normal(size=d) @ z
    y = (steep * decision / decision.std() + (rng.logistic(size=n) if steep < 50 else 0) + 0.5 > 0).astype(int)
    return X, y


@pytest.mark.parametrize("kind", ["", "constant", "duplicate", "rare"])
@pytest.mark.parametrize("steep", [0.0, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_fits_equal_scikit_learns_for_every_k(kind, steep, weighted):
    X, y = rows(int(steep) + weighted, steep=steep, kind=kind)
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 4, len(y)).astype(float) if weighted else np.ones(len(y))
    C = float(np.exp(rng.normal()))
    found = fit_nested(np.ascontiguousarray(X.T), y, ks=KS, C=C, sample_weight=weight if weighted else None)
    for k, rule in zip(KS, found, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = fit_logistic(X[:, :k].astype(np.float64), y, weight, C=C, class_weight="balanced")
        np.testing.assert_allclose(rule.coef, expected.coef, rtol=1e-6, atol=1e-6 * np.abs(expected.coef).max())
        assert rule.intercept == pytest.approx(expected.intercept, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("C", [1e-4, 1.0, 1e5])
@pytest.mark.parametrize("steep", [1.0, 100.0])
def test_the_gradient_vanishes_where_it_ends(C, steep):
    X, y = rows(3, d=30, steep=steep)
    z = standardised(np.ascontiguousarray(X.T))
    weight = row_weights(y, class_weight={0: 0.7, 1: 1.9})
    for k, rule in zip((2, 30), fit_nested(np.ascontiguousarray(X.T), y, ks=(2, 30), C=C, class_weight={0: 0.7, 1: 1.9}), strict=True):
        v = rule.coef / z.inverse_sd[:k]
        residual = weight * (expit(X[:, :k].astype(np.float64) @ rule.coef + rule.intercept) - y)
        scale = weight.sum()
        assert np.abs(z.z[1 : k + 1] @ residual + v / C).max() < 1e-7 * scale
        assert abs(residual.sum()) < 1e-7 * scale


def test_a_general_minimiser_finds_no_lower_value():
    X, y = rows(4, n=120, d=3, steep=3.0)
    z = standardised(np.ascontiguousarray(X.T)).z[1:].T
    weight, s = row_weights(y), 2 * y - 1

    def f(theta):
        return weight @ np.logaddexp(0, -s * (z @ theta[1:] + theta[0])) + theta[1:] @ theta[1:] / (2 * 0.5)

    rule = fit_nested(np.ascontiguousarray(X.T), y, ks=(3,), C=0.5)[0]
    inverse_sd, mean = standardised(np.ascontiguousarray(X.T)).inverse_sd, X.astype(np.float64).mean(0)
    theta = np.r_[rule.intercept + rule.coef @ mean, rule.coef / inverse_sd]
    best = minimize(f, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    assert f(theta) <= best.fun + 1e-9
    np.testing.assert_allclose(theta, best.x, rtol=1e-4, atol=1e-4)


def test_separated_classes_get_the_finite_penalised_rule():
    x = np.r_[-np.ones(20), np.ones(30)]
    rule = fit_nested(x[None, :], (x > 0).astype(int), ks=(1,), C=10.0)[0]
    reference = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-10).fit(((x - x.mean()) / x.std())[:, None], x > 0)
    assert rule.coef[0] * x.std() == pytest.approx(reference.coef_[0, 0], rel=1e-5)


def test_a_step_that_is_too_long_is_halved_until_it_lowers_the_loss():
    X, y = rows(9, d=4)
    z = standardised(np.ascontiguousarray(X.T)).z
    problem = _Problem(z, None, 2.0 * y - 1, row_weights(y), 1.0)
    start = _moved(problem, np.zeros(5), np.zeros(len(y)), np.zeros(len(y)), 0.0)
    gradient = _gradient(problem, start)
    step = -gradient  # hundreds of times too long
    assert _moved(problem, step, start.margin, step @ z, 1.0).value > start.value
    found, size = _descend(problem, start, step, step @ z, float(gradient @ step))
    assert found.value < start.value and 0 < size < 1 and np.log2(size) % 1 == 0
    np.testing.assert_allclose(found.theta, size * step)


def test_the_order_of_ks_does_not_matter_and_warm_starts_change_nothing():
    X, y = rows(5, d=40)
    columns = np.ascontiguousarray(X.T)
    forwards, backwards = fit_nested(columns, y, ks=(1, 4, 40), C=1.0), fit_nested(columns, y, ks=(40, 4, 1), C=1.0)
    alone = fit_nested(columns, y, ks=(40,), C=1.0)[0]
    for one, other in zip(forwards, backwards[::-1], strict=True):
        np.testing.assert_array_equal(one.coef, other.coef)
    np.testing.assert_allclose(alone.coef, forwards[2].coef, rtol=1e-6, atol=1e-8)


def test_the_vectorised_loss_and_its_derivatives_are_those_of_the_formula():
    rng = np.random.default_rng(6)
    margin = np.r_[0.0, -0.0, 1e-12, 37.0, -37.0, 690.0, -690.0, 1e4, -1e4, 6 * rng.normal(size=1000)]
    s, weight = np.sign(rng.normal(size=len(margin))), rng.random(len(margin))
    moved, r, d = np.empty((3, len(margin)))
    along = rng.normal(size=len(margin))
    value = logistic_step(margin - 0.25 * along, along, 0.25, s, weight, moved, r, d)
    np.testing.assert_allclose(moved, margin, atol=1e-12)
    assert value == pytest.approx(weight @ np.logaddexp(0, -s * moved), rel=1e-13)
    inside = np.abs(moved) < 600
    np.testing.assert_allclose(r[inside], (-s * weight * expit(-s * moved))[inside], rtol=1e-13)
    np.testing.assert_allclose(d[inside], (weight * expit(moved) * expit(-moved))[inside], rtol=1e-13)
    assert np.isfinite(r).all() and np.isfinite(d).all()


def test_zero_weight_is_an_absent_row_and_weight_two_a_row_twice():
    X, y = rows(7, n=100, d=9)
    weight = np.random.default_rng(0).integers(0, 3, 100).astype(float)
    weighted = fit_nested(np.ascontiguousarray(X.T), y, ks=(9,), C=1.0, sample_weight=weight)[0]
    twice = np.repeat(np.arange(100), weight.astype(int))
    repeated = fit_nested(np.ascontiguousarray(X[twice].T), y[twice], ks=(9,), C=1.0)[0]
    np.testing.assert_allclose(weighted.coef, repeated.coef, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ks": (0, 2)}, ["1..k_max=5", "[0, 2]"]),
        ({"ks": (6,)}, ["1..k_max=5", "[6]"]),
        ({"ks": ()}, ["1..k_max=5"]),
        ({"y": np.zeros(50, dtype=int)}, ["both classes"]),
        ({"class_weight": "heavy"}, ["class_weight", "'heavy'"]),
    ],
)
def test_bad_input_is_named(change, words):
    X, y = rows(8, n=50, d=5)
    given = {"columns": np.ascontiguousarray(X.T), "y": y, "ks": (1, 2), "C": 1.0} | change
    with pytest.raises(ConfigError) as caught:
        fit_nested(**given)
    assert all(word in str(caught.value) for word in words), caught.value
