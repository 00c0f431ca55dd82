"""Dense fits that share their products, against the same fits one by one."""

import warnings

import numpy as np
import pytest
from scipy import sparse

from probes.base import fit_logistic
from probes.sweep.dense import fit_dense
from probes.sweep.plan import Fit
from sae.errors import SaeError


def fits_of(seed, n=150, d=40, *, steep=1.0, n_fits=4):
    """A matrix with columns of many scales, and fits with different labels and rows."""
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + 5 * rng.normal(size=d)).astype(np.float32)
    X[:, 3] = 1.7
    X[:, 5] = X[:, 4]
    z = (X - X.mean(0)) / np.where(X.std(0) > 0, X.std(0), 1)
    fits = []
    for _ in range(n_fits):
        y = (steep * z @ rng.normal(size=d) / np.sqrt(d) + rng.logistic(size=n) > rng.normal()).astype(np.int64)
        order = rng.permutation(n)
        fits.append(Fit(y, np.sort(order[: 2 * n // 3]), np.sort(order[2 * n // 3 :])))
    return X, fits


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize(("d", "steep", "C"), [(40, 0.0, 1.0), (40, 4.0, 0.1), (30, 50.0, 3.0), (300, 1.0, 1.0)])
def test_every_fit_is_the_one_it_would_be_alone(form, d, steep, C):
    X, fits = fits_of(0, d=d, steep=steep)
    if form == "sparse":
        X = np.maximum(X, 0)
    found = fit_dense(sparse.csr_matrix(X) if form == "sparse" else X, fits, C=C)
    for b, fit in enumerate(fits):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rule = fit_logistic(X[fit.train].astype(np.float64), fit.y[fit.train], np.ones(len(fit.train)), C=C, class_weight="balanced")
        np.testing.assert_allclose(found[:, b], X.astype(np.float64) @ rule.coef + rule.intercept, atol=2e-3, rtol=1e-3)


def test_rows_that_are_not_trained_on_do_not_matter():
    X, fits = fits_of(1)
    other, fit = X.copy(), fits[0]
    other[fit.test] = 100.0
    np.testing.assert_array_equal(fit_dense(X, [fit], C=1.0)[fit.train], fit_dense(other, [fit], C=1.0)[fit.train])


def test_company_does_not_change_a_fit():
    X, fits = fits_of(2, steep=3.0)
    together, alone = fit_dense(X, fits, C=1.0), fit_dense(X, fits[2:3], C=1.0)
    np.testing.assert_allclose(together[:, 2], alone[:, 0], atol=1e-4)


def test_a_fit_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr("probes.sweep.dense.MAX_STEPS", 2)
    X, fits = fits_of(3, steep=5.0)
    with pytest.raises(SaeError, match=r"4 logistic fits to 40 columns did not converge in 2 steps at C=10; lower C"):
        fit_dense(X, fits, C=10.0)
