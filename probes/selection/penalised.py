"""Logistic regression with an elastic net, the solver behind the rankings that fit all columns together.

    min_{v, c}  sum_i w_i log(1 + exp(-s_i (v . z_i + c))) + l1 |v|_1 + l2 |v|^2 / 2,      s_i = +1 or -1
    optimal:    |g_j| <= l1 where v_j = 0,   g_j = l1 sign(v_j) elsewhere,      g_j = sum_i w_i s_i sigma(-s_i f_i) z_ij - l2 v_j

Proximal Newton on a working set (Friedman, Hastie and Tibshirani 2010, J. Stat. Software 33(1); Lee, Sun and Saunders 2014, SIAM J. Optim.
24:1420): the loss is replaced by its quadratic with the free intercept eliminated, scikit-learn's coordinate descent solves that on the
set's Gram matrix, a line search takes the step, and columns that break the condition above join the set until none does. Stochastic
solvers need hundreds of passes for what a dozen of these steps reach, and a path of penalties starts each fit where the last one ended.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path

from sae.errors import SaeError

TOLERANCE = 1e-7
"""The optimality condition may be missed by this share of l1."""
MAX_ROUNDS, MAX_STEPS, MAX_HALVINGS = 200, 100, 40
LEAST_CURVATURE = 1e-6
"""Of a row, as a share of its weight: keeps the quadratic bounded where the classes are separated."""
LEAST_JOINING = 64
"""How many columns may join the working set at once when it is small."""


class Fitted(NamedTuple):
    """An optimum."""

    coef: Float[np.ndarray, " d"]
    """v, in the units of z."""
    intercept: float
    """c."""
    gradient: Float[np.ndarray, " d"]
    """Of the weighted log-likelihood at the optimum: sum_i w_i s_i sigma(-s_i f_i) z_ij."""


class Rows(NamedTuple):
    """What is fitted to."""

    z: Any
    """float64 [n, d], dense or scipy csc; columns of comparable scale."""
    y: Float[np.ndarray, " n"]
    """0 and 1."""
    weight: Float[np.ndarray, " n"]
    """Weight of each row, 0 or more."""


def origin(rows: Rows) -> Fitted:
    """The fit without columns: the log-odds of the weighted classes. Its largest |gradient| is the l1 above which every coefficient is 0."""
    share = rows.weight @ rows.y / rows.weight.sum()
    intercept = float(np.log(share / (1 - share)))
    return Fitted(np.zeros(rows.z.shape[1]), intercept, rows.z.T @ (rows.weight * (rows.y - share)))


def elastic_net_logistic(rows: Rows, *, l1: float, l2: float, start: Fitted) -> Fitted:
    """The optimum for one penalty, from `start`. l1 must be positive. Raises SaeError if it is not reached."""
    coef, intercept, gradient = start
    coef = coef.copy()
    working = np.flatnonzero(coef)
    for _ in range(MAX_ROUNDS):
        broken = np.flatnonzero((np.abs(gradient) > l1 * (1 + TOLERANCE)) & (coef == 0))
        broken = np.setdiff1d(broken, working)
        if len(broken):
            room = max(LEAST_JOINING, len(working))
            worst = broken[np.argsort(-np.abs(gradient[broken]), kind="stable")[:room]]
            working = np.union1d(working, worst)
        z = rows.z[:, working]
        z = z.toarray() if sparse.issparse(z) else z
        coef[working], intercept, residual = _on_working_set(z, rows, l1, l2, coef[working], intercept)
        gradient = rows.z.T @ residual
        if not ((np.abs(gradient) > l1 * (1 + TOLERANCE)) & (coef == 0) & ~np.isin(np.arange(len(coef)), working)).any():
            return Fitted(coef, intercept, gradient)
    raise SaeError(f"the penalised logistic fit did not converge in {MAX_ROUNDS} rounds (l1={l1:g}, l2={l2:g}); rank fewer columns")


def _on_working_set(
    z: np.ndarray, rows: Rows, l1: float, l2: float, coef: np.ndarray, intercept: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """The optimum over these columns: coefficients, intercept, and the residual w (y - p)."""
    decision = z @ coef + intercept
    loss = _objective(decision, rows, coef, l1, l2)
    for _ in range(MAX_STEPS):
        p = expit(decision)
        residual = rows.weight * (rows.y - p)
        gradient = z.T @ residual - l2 * coef
        missed = np.where(coef == 0, np.maximum(np.abs(gradient) - l1, 0), np.abs(gradient - l1 * np.sign(coef)))
        if max(missed.max(initial=0), abs(residual.sum())) <= TOLERANCE * l1:
            return coef, intercept, residual
        curvature = rows.weight * np.maximum(p * (1 - p), LEAST_CURVATURE)
        step, shift = _newton_step(z, residual, curvature, l1, l2, coef)
        moved = z @ step + shift
        for halving in range(MAX_HALVINGS):
            scale = 0.5**halving
            trial = _objective(decision + scale * moved, rows, coef + scale * step, l1, l2)
            if trial < loss:
                break
        else:
            return coef, intercept, residual  # no step lowers the loss any more: the optimum to rounding
        coef, intercept, decision, loss = coef + scale * step, intercept + scale * shift, decision + scale * moved, trial
    raise SaeError(f"the penalised logistic fit did not converge in {MAX_STEPS} steps (l1={l1:g}, l2={l2:g}, {z.shape[1]} columns)")


def _newton_step(
    z: np.ndarray, residual: np.ndarray, curvature: np.ndarray, l1: float, l2: float, coef: np.ndarray
) -> tuple[np.ndarray, float]:
    """Changes of coefficients and intercept that minimise the penalised quadratic."""
    total = curvature.sum()
    mean = curvature @ z / total
    root = np.sqrt(curvature)
    x = root[:, None] * (z - mean)
    gram = x.T @ x
    linear = z.T @ residual - residual.sum() * mean + gram @ coef
    used = root > 0
    target = np.zeros(len(z))
    target[used] = (residual[used] - curvature[used] * residual.sum() / total) / root[used] + x[used] @ coef
    n = len(z)
    with warnings.catch_warnings():  # the caller checks the optimum itself
        warnings.simplefilter("ignore", ConvergenceWarning)
        path = enet_path(
            x,
            target,
            alphas=np.array([(l1 + l2) / n]),
            l1_ratio=l1 / (l1 + l2),
            precompute=gram,
            Xy=linear,
            coef_init=coef.copy(),  # it is written to
            max_iter=2000,
            tol=1e-15,
        )
    step = path[1][:, 0] - coef
    return step, float((residual.sum() - total * (mean @ step)) / total)


def _objective(decision: np.ndarray, rows: Rows, coef: np.ndarray, l1: float, l2: float) -> float:
    loss = rows.weight @ np.logaddexp(0.0, np.where(rows.y > 0, -decision, decision))
    return float(loss + l1 * np.abs(coef).sum() + l2 * (coef @ coef) / 2)
