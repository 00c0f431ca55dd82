"""Logistic fits to all columns, many at once: Newton's method, its equations solved by conjugate gradients whose products are shared.

    f_b(v, c) = sum_i w_ib log(1 + exp(-s_ib m_ib)) + |v_b|^2 / (2 C),     m = Z V + c,     z_ij = (x_ij - mean_j) / sd_j
    (Z^T D_b Z - a_b a_b^T / sum D_b + I / C) step = -gradient,            a_b = Z^T D_b 1:   the intercept eliminated

All fits b take one step of each loop together, so a product with X is one matrix product for all of them. Means and standard deviations
differ from fit to fit (each its own training rows, the others with weight 0) and are applied to V, never to X: a sparse X stays sparse.
Products of the inner loop are float32, gradients float64: the minimum is that of `probes.base.fit_logistic`, up to a gradient of at most
`TOLERANCE` of the first one. Inexact Newton: Nocedal & Wright, Numerical Optimization, 2006, section 7.1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from probes.newton import row_weights
from probes.problem import Features
from probes.selection import moments
from probes.sweep.plan import Fit
from sae.errors import SaeError

TOLERANCE = 1e-6
"""Norm of the gradient at the end, relative to that at v = 0."""
FORCING = 0.1
"""Residual of Newton's equations at which conjugate gradients stop, relative to the gradient."""
MAX_STEPS, MAX_INNER, MAX_HALVINGS = 100, 500, 40
TINY, TINY32 = np.finfo(np.float64).tiny, np.finfo(np.float32).tiny


class _Scaled:
    """Z of every fit, without being it: X with the fits' means and scales applied to the other side. Products have the dtype they are given."""

    def __init__(self, X: Features, mean: np.ndarray, inverse_sd: np.ndarray):
        self._mean, self._inverse_sd = mean, inverse_sd  # [d, fits]
        self._X = {np.dtype(dtype): X.astype(dtype) for dtype in (np.float32, np.float64)}

    def times(self, V: np.ndarray, fits: np.ndarray) -> np.ndarray:
        """Z_b v_b for the columns v_b of V, one of `fits` each: [n, len(fits)]."""
        scaled = V * self._inverse_sd[:, fits].astype(V.dtype)
        return self._X[V.dtype] @ scaled - (self._mean[:, fits].astype(V.dtype) * scaled).sum(0)

    def transposed(self, R: np.ndarray, fits: np.ndarray) -> np.ndarray:
        """Z_b^T r_b for the columns r_b of R: [d, len(fits)]."""
        centred = self._X[R.dtype].T @ R - self._mean[:, fits].astype(R.dtype) * R.sum(0)
        return centred * self._inverse_sd[:, fits].astype(R.dtype)


class _State(NamedTuple):
    """Parameters [d, fits] and [fits], decisions [n, fits], f [fits]."""

    V: np.ndarray
    c: np.ndarray
    margin: np.ndarray
    value: np.ndarray


def fit_dense(X: Features, fits: Sequence[Fit], *, C: float) -> Float[np.ndarray, "n fits"]:
    """The decisions on every row of X of a balanced logistic fit to all columns, for each of `fits`, which say its rows and labels.

    X: dense or csr [n, d]. Raises SaeError for a fit that does not converge.
    """
    n, d = X.shape
    s, weight = np.ones((n, len(fits))), np.zeros((n, len(fits)))
    inverse_sd, mean = np.empty((d, len(fits))), np.empty((d, len(fits)))
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    for b, fit in enumerate(fits):
        s[:, b] = np.where(fit.y == 1, 1.0, -1.0)
        weight[fit.train, b] = row_weights(fit.y[fit.train])
        key = fit.train.tobytes()
        if key not in known:
            _, centre, variance = moments(X[fit.train], np.ones(len(fit.train)))
            known[key] = centre, np.where(variance > 0, 1 / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)
        mean[:, b], inverse_sd[:, b] = known[key]
    Z = _Scaled(X, mean, inverse_sd)
    zero = np.zeros((n, len(fits)))
    state = _State(np.zeros((d, len(fits))), np.zeros(len(fits)), zero, _value(zero, np.zeros((d, len(fits))), s, weight, C))
    active, first = np.arange(len(fits)), np.zeros(len(fits))
    for number in range(MAX_STEPS):
        own = _State(state.V[:, active], state.c[active], state.margin[:, active], state.value[active])
        p = expit(own.margin)
        w, sign = weight[:, active], s[:, active]
        r = w * (p - (sign > 0))
        gradient, of_c = Z.transposed(r, active) + own.V / C, r.sum(0)
        norm = np.sqrt((gradient**2).sum(0) + of_c**2)
        if number == 0:
            first = norm
        open_ = norm > TOLERANCE * np.maximum(first[active], TINY)
        if not open_.any():
            return state.margin
        active = active[open_]
        own = _State(own.V[:, open_], own.c[open_], own.margin[:, open_], own.value[open_])
        step = _direction(Z, active, gradient[:, open_], of_c[open_], (w * p * (1 - p))[:, open_], C)
        moved = _descend(Z, active, own, step, (gradient[:, open_], of_c[open_]), (sign[:, open_], w[:, open_]), C)
        for whole, part in zip(state, moved, strict=True):
            whole[..., active] = part
    raise SaeError(f"{len(active)} logistic fits to {d} columns did not converge in {MAX_STEPS} steps at C={C:g}; lower C")


def _value(margin: np.ndarray, V: np.ndarray, s: np.ndarray, weight: np.ndarray, C: float) -> np.ndarray:
    loss = np.log1p(np.exp(-np.abs(margin))) - np.minimum(s * margin, 0.0)
    return np.einsum("ib,ib->b", weight, loss) + np.einsum("jb,jb->b", V, V) / (2 * C)


def _direction(
    Z: _Scaled, active: np.ndarray, gradient: np.ndarray, of_c: np.ndarray, D: np.ndarray, C: float
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's step (V, c) of every fit, to the residual `FORCING`: conjugate gradients, from which fits are dropped as they are done."""
    total = np.maximum(D.sum(0), TINY)
    a = Z.transposed(D, active)
    residual = (a * (of_c / total) - gradient).astype(np.float32)
    step, live = np.zeros(residual.shape), np.arange(len(active))
    D32, share = D.astype(np.float32), (D / total).astype(np.float32)
    V, direction, square = np.zeros_like(residual), residual.copy(), np.square(residual).sum(0)
    wanted = FORCING**2 * square
    for _ in range(MAX_INNER):
        along = Z.times(direction, active[live])
        along -= (share * along).sum(0)
        along *= D32
        image = Z.transposed(along, active[live])
        image += direction / np.float32(C)
        size = square / np.maximum((direction * image).sum(0), TINY32)
        V += size * direction
        residual -= size * image
        new = np.square(residual).sum(0)
        done = new <= wanted
        if done.any():
            step[:, live[done]] = V[:, done]
            if done.all():
                break
            kept = ~done
            live, square, new, wanted = live[kept], square[kept], new[kept], wanted[kept]
            V, residual, direction, D32, share = (each[:, kept] for each in (V, residual, direction, D32, share))
        direction *= new / np.maximum(square, TINY32)
        direction += residual
        square = new
    else:
        step[:, live] = V
    return step, -(of_c + (a * step).sum(0)) / total


def _descend(
    Z: _Scaled,
    active: np.ndarray,
    state: _State,
    step: tuple[np.ndarray, np.ndarray],
    gradient: tuple[np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray],
    C: float,
) -> _State:
    """The whole step of every fit, or its half, its quarter... until f is lowered enough."""
    (V, c), (s, weight) = step, rows
    along = Z.times(V, active) + c
    slope = (gradient[0] * V).sum(0) + gradient[1] * c
    size = np.ones(len(active))
    rounding = 1e-12 * np.abs(state.value)
    for _ in range(MAX_HALVINGS):
        new_V, margin = state.V + size * V, state.margin + size * along
        value = _value(margin, new_V, s, weight, C)
        high = value > state.value + 1e-4 * size * slope + rounding
        if not high.any():
            break
        size = np.where(high, size / 2, size)
    return _State(new_V, state.c + size * c, margin, value)
