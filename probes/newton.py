"""Many small logistic fits quickly: nested columns, each fit started where the smaller one ended.

    f(v, c) = sum_i w_i log(1 + exp(-s_i (v . z_i + c))) + |v|^2 / (2 C),        z_j = (x_j - mean_j) / sd_j,      s_i = +1 or -1
    r_i = w_i (p_i - y_i),   D_i = w_i p_i (1 - p_i),       gradient = (1^T r, Z^T r + v / C),       Hessian = [1 Z]^T D [1 Z] + I / C

The minimum is that of `probes.base.fit_logistic`, to rounding. Columns come best first, and the fit to k of them starts where the fit to
the previous k ended, new coefficients at 0. Few columns are fitted by Newton's method. With more, what costs is the Hessian (n k^2, against
n k for the gradient): it is taken once, its inverse B is kept right by the BFGS update, and it is taken anew only if steps stop shrinking,

    B <- (I - rho s y^T) B (I - rho y s^T) + rho s s^T,      rho = 1 / y.s,      s = step, y = change of the gradient
                                                             (Nocedal & Wright, Numerical Optimization, 2006, section 6.1)

and its products are float32 where the penalty is well above their rounding. Gradients are float64 always, and they alone decide where it
stops. A step that does not lower f is halved: classes that k columns separate have a finite minimum through the penalty, and it is reached.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import blas, lapack

from probes.base import Logistic
from probes.logistic_loops import logistic_step, standardise
from sae.errors import ConfigError, SaeError

NEWTON_UP_TO = 8
"""Up to this many columns a Hessian costs about what a step does, and is taken anew each time."""
SLOW = 0.5
"""A step this much of the one before, twice in a row, has the Hessian taken anew."""
TOLERANCE = 1e-8
"""Largest last step, relative to the largest coefficient; the error left is smaller than the step."""
MAX_STEPS, MAX_HALVINGS = 200, 40
SINGLE_PRECISION = 1e-5
"""Products are float32 where 1 / C is at least this share of the largest diagonal entry of the Hessian."""


def row_weights(
    y: Int[np.ndarray, " n"] | Bool[np.ndarray, " n"],
    sample_weight: Float[np.ndarray, " n"] | None = None,
    *,
    class_weight: str | Mapping | None = "balanced",
) -> Float[np.ndarray, " n"]:
    """w_i: the weight of each row times that of its class.

    "balanced" gives both classes the same total, sum_i w_i / 2 each; a mapping has a factor for each of 0 and 1, or 1 where it has none.
    """
    weight = np.ones(len(y)) if sample_weight is None else sample_weight.astype(np.float64)
    if class_weight is None:
        return weight
    positive = np.asarray(y, dtype=bool)
    if class_weight == "balanced":
        total, of_positive = float(weight.sum()), float(weight[positive].sum())
        if not 0 < of_positive < total:
            raise ConfigError("y must hold both classes, 0 and 1, with positive weight, got one only (row_weights)")
        return weight * np.where(positive, total / (2 * of_positive), total / (2 * (total - of_positive)))
    if not isinstance(class_weight, Mapping):
        raise ConfigError(f"class_weight must be 'balanced', None or a mapping of 0 and 1 to factors, got {class_weight!r} (row_weights)")
    return weight * np.where(positive, class_weight.get(1, 1.0), class_weight.get(0, 1.0))


def fit_nested(
    columns: Float[np.ndarray, "k_max n"],
    y: Int[np.ndarray, " n"] | Bool[np.ndarray, " n"],
    *,
    ks: Sequence[int],
    C: float,
    sample_weight: Float[np.ndarray, " n"] | None = None,
    class_weight: str | Mapping | None = "balanced",
) -> list[Logistic]:
    """The fit to the first k columns for every k of `ks`, in their order, in the units of the columns.

    columns: one row per column, best first. y: 0 and 1. C: inverse strength of the penalty on z-scored columns. A constant column gets the
    coefficient 0. Raises ConfigError for a k outside 1..k_max or one class only, SaeError for a fit that does not converge.
    """
    if not ks or min(ks) < 1 or max(ks) > len(columns):
        raise ConfigError(f"ks must be in 1..k_max={len(columns)}, the number of columns, got {list(ks)} (fit_nested)")
    weight = row_weights(y, sample_weight, class_weight=class_weight)
    s = np.where(y, 1.0, -1.0)
    if not (weight[s > 0].sum() > 0 and weight[s < 0].sum() > 0):
        raise ConfigError("y must hold both classes, 0 and 1, with positive weight, got one only (fit_nested)")
    scaled = standardised(columns, sample_weight)
    problem = _Problem(scaled.z, scaled.z.astype(np.float32) if len(columns) > NEWTON_UP_TO else None, s, weight, C)
    theta, found = np.zeros(1), {}
    for k in sorted(set(ks)):
        theta = np.concatenate([theta[:1], theta[1:], np.zeros(k + 1 - len(theta))])
        theta, n_iter = _minimise(problem, theta)
        coef = theta[1:] * scaled.inverse_sd[:k]
        found[k] = Logistic(coef, float(theta[0] - coef @ scaled.mean[:k]), n_iter)
    return [found[k] for k in ks]


class Standardised(NamedTuple):
    """Columns with mean 0 and standard deviation 1 over the weighted rows, under a first row of ones."""

    z: Float[np.ndarray, "k1 n"]
    """Ones, then z-scores; a constant column is 0."""
    mean: Float[np.ndarray, " k"]
    """Mean of each column."""
    inverse_sd: Float[np.ndarray, " k"]
    """1 / standard deviation; 0 for a constant column."""


def standardised(columns: Float[np.ndarray, "k n"], sample_weight: Float[np.ndarray, " n"] | None = None) -> Standardised:
    """z-scores in float64, in two passes; a column counts as constant where its variance is only rounding."""
    k, n = columns.shape
    share = np.full(n, 1 / n) if sample_weight is None else sample_weight / sample_weight.sum()
    z, mean, inverse_sd = np.empty((k + 1, n)), np.empty(k), np.empty(k)
    z[0] = 1.0
    standardise(np.ascontiguousarray(columns), share, (n * np.finfo(np.float64).eps) ** 2, z[1:], mean, inverse_sd)
    return Standardised(z, mean, inverse_sd)


class _Problem(NamedTuple):
    """Rows of z-scores under a row of ones [k + 1, n], also in float32 or None; labels +1 and -1; weights; C."""

    z: np.ndarray
    z32: np.ndarray | None
    s: np.ndarray
    weight: np.ndarray
    C: float


class _Point(NamedTuple):
    """Where the search is: parameters, decision of every row, f, r and D of every row."""

    theta: np.ndarray
    margin: np.ndarray
    value: float
    r: np.ndarray
    d: np.ndarray


def _moved(problem: _Problem, theta: np.ndarray, base: np.ndarray, along: np.ndarray, size: float) -> _Point:
    """The point `theta`, whose decisions are base + size * along."""
    margin, r, d = np.empty((3, len(base)))
    loss = logistic_step(base, along, size, problem.s, problem.weight, margin, r, d)
    v = theta[1:]
    return _Point(theta, margin, loss + float(v @ v) / (2 * problem.C), r, d)


def _gradient(problem: _Problem, point: _Point) -> np.ndarray:
    gradient = problem.z[: len(point.theta)] @ point.r
    gradient[1:] += point.theta[1:] / problem.C
    return gradient


def _minimise(problem: _Problem, theta: np.ndarray) -> tuple[np.ndarray, int]:
    """The minimum over the first len(theta) - 1 columns, found from `theta`, and the steps it took."""
    z = problem.z[: len(theta)]
    decision = theta @ z
    point = _moved(problem, theta, decision, decision, 0.0)
    gradient, inverse, previous, n_slow = _gradient(problem, point), None, 1e-300, 0
    for n_iter in range(1, MAX_STEPS + 1):
        kept = inverse is not None
        if inverse is None:
            step, inverse, n_slow = *_newton_step(problem, point, gradient), 0
        else:
            step = blas.dsymv(-1.0, inverse, gradient)
        new, size = _descend(problem, point, step, step @ z, float(gradient @ step))
        if size == 0 and kept:  # f may be flat here, or B is worn out
            inverse = None
            continue
        length = float(np.abs(step).max())
        shrunk, previous = length / previous, length
        # Steps shrink ever faster: the next one would be at most length * shrunk.
        if size == 0 or (size == 1 and length * min(1.0, shrunk) <= TOLERANCE * max(1.0, float(np.abs(new.theta).max()))):
            return new.theta, n_iter
        new_gradient = _gradient(problem, new)
        n_slow = n_slow + 1 if shrunk > SLOW else 0
        if size < 1 or n_slow == 2:
            inverse = None
        elif inverse is not None:
            _update(inverse, step, new_gradient - gradient)
        point, gradient = new, new_gradient
    raise SaeError(f"a logistic fit to {len(theta) - 1} columns did not converge in {MAX_STEPS} steps at C={problem.C:g}; lower C")


def _descend(problem: _Problem, point: _Point, step: np.ndarray, along: np.ndarray, slope: float) -> tuple[_Point, float]:
    """The first of the whole step, its half, its quarter... that lowers f enough, and its size; the point itself and 0 where f is flat to
    rounding.
    """
    size, rounding = 1.0, 1e-12 * abs(point.value)
    for _ in range(MAX_HALVINGS):
        new = _moved(problem, point.theta + size * step, point.margin, along, size)
        if new.value <= point.value + 1e-4 * size * slope + rounding:
            return new, size
        size /= 2
    return point, 0.0


def _update(inverse: np.ndarray, s: np.ndarray, y: np.ndarray) -> None:
    """The BFGS update of B, its upper triangle, in place; left out where rounding has made y.s worthless."""
    curvature = float(s @ y)
    if curvature <= 1e-12 * float(np.abs(s).max() * np.abs(y).max()):
        return
    by = blas.dsymv(1.0, inverse, y)
    blas.dsyr((1 + float(y @ by) / curvature) / curvature, s, a=inverse, overwrite_a=1)
    blas.dsyr2(-1 / curvature, by, s, a=inverse, overwrite_a=1)


def _newton_step(problem: _Problem, point: _Point, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """- B gradient, and the upper triangle of B, the inverse of the Hessian: None where it will not be kept."""
    n_theta = len(point.theta)
    hessian = _hessian(problem, point)
    scale, ridge = float(hessian.diagonal().max()), 0.0
    for _ in range(60):
        factor, step, failed = lapack.dposv(hessian, gradient)
        if not failed:
            return -step, None if n_theta <= NEWTON_UP_TO + 1 else lapack.dpotri(factor)[0]
        # The penalty is below the rounding of the Hessian, or no row is undecided.
        ridge = max(10 * ridge, n_theta * np.finfo(np.float64).eps * scale, np.finfo(np.float64).tiny)
        hessian.flat[:: n_theta + 1] += ridge
    raise SaeError(f"the Hessian of a logistic fit to {n_theta - 1} columns is not finite: look for NaN or infinite values in the columns")


def _hessian(problem: _Problem, point: _Point) -> np.ndarray:
    """[1 Z]^T D [1 Z] + I / C, its upper triangle at least."""
    n_theta = len(point.theta)
    hessian = None
    if problem.z32 is not None and n_theta > NEWTON_UP_TO + 1:
        scaled = problem.z32[:n_theta] * np.sqrt(point.d).astype(np.float32)
        hessian = blas.ssyrk(1.0, scaled.T, trans=1, lower=0).astype(np.float64)
        if SINGLE_PRECISION * hessian.diagonal().max() > 1 / problem.C:
            hessian = None
    if hessian is None:
        z = problem.z[:n_theta]
        hessian = np.asfortranarray((z * point.d) @ z.T)
    hessian.flat[n_theta + 1 :: n_theta + 1] += 1 / problem.C
    return hessian
