"""What a search for a support minimises: for every choice s of columns, a plane that lies below the objective and touches it at s.

    hinge:      c(s) = min_{v on s, b} sum_i w_i max(0, 1 - y_i (z_i . v + b)) + |v|^2 / (2 gamma)
                     = max_a sum_i a_i - (gamma/2) sum_j s_j p_j^2,     p_j = sum_i a_i y_i z_ij,   0 <= a_i <= w_i,  sum_i a_i y_i = 0
                       v_j = gamma s_j p_j
    squares:    c(s) = min_{v on s} (|y - Z v|^2 + |v|^2 / gamma) / (2 n)
                     = max_a (2 y.a - |a|^2 - gamma sum_j s_j p_j^2) / (2 n),     p = Z^T a,   at the optimum a = y - Z v

Both duals are linear in s for a fixed a, so any a gives a plane below c at every s, fractions included: that of the optimum at s touches it
there. Bertsimas, Pauphilet and Van Parys 2021, Machine Learning 110:3177; Bertsimas and Van Parys 2020, Annals of Statistics 48(1):300.
"""

import warnings
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC

SVM_TOLERANCE, SVM_STEPS = 1e-6, 200_000
"""When SMO stops. Its multipliers are feasible at every step, so a plane is below the objective, and a fit's objective above, all the same."""


class Plane(NamedTuple):
    """A function below c: constant + slopes . s, and the fit it came from."""

    constant: float
    slopes: np.ndarray
    primal: float
    """The objective of the fit, an upper bound on c where s is a support."""
    coef: np.ndarray


@runtime_checkable
class Loss(Protocol):
    """What a search minimises."""

    d: int

    def plane(self, s: np.ndarray) -> Plane:
        """The plane that touches c at s, 0 <= s <= 1."""
        ...


class Hinge:
    """The dual of the weighted support vector machine, by SMO."""

    def __init__(self, z: np.ndarray, y: np.ndarray, weight: np.ndarray, gamma: float):
        self.z, self.sign, self.weight, self.gamma = z, 2.0 * y - 1.0, weight, gamma
        self.d = z.shape[1]

    def plane(self, s: np.ndarray) -> Plane:
        used = np.flatnonzero(s)
        scale = np.sqrt(self.gamma * s[used])
        model = SVC(kernel="linear", C=1.0, tol=SVM_TOLERANCE, max_iter=SVM_STEPS, cache_size=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(self.z[:, used] * scale, self.sign, sample_weight=self.weight)
        signed = model.dual_coef_[0]  # a_i y_i of the support vectors
        products = signed @ self.z[model.support_]
        coef = np.zeros(self.d)
        coef[used] = self.gamma * s[used] * products[used]
        margins = self.sign * (self.z[:, used] @ coef[used] + model.intercept_[0])
        ridge = float(self.gamma * (s[used] @ products[used] ** 2) / 2)
        primal = float(self.weight @ np.maximum(0.0, 1.0 - margins)) + ridge
        return Plane(float(np.abs(signed).sum()), -self.gamma / 2 * products**2, primal, coef)


class Squares:
    """Half the mean squared error, from the columns' products alone."""

    def __init__(self, z: np.ndarray, y: np.ndarray, weight: np.ndarray, gamma: float):
        self.total = float(weight.sum())
        self.gamma, self.d = gamma, z.shape[1]
        self.gram, self.cross, self.square = (z.T * weight) @ z, (z.T * weight) @ y, float(weight @ y**2)

    def plane(self, s: np.ndarray) -> Plane:
        used = np.flatnonzero(s)
        root = np.sqrt(s[used])
        inner = root[:, None] * self.gram[np.ix_(used, used)] * root + np.eye(len(used)) / self.gamma
        coef = np.zeros(self.d)
        coef[used] = root * np.linalg.solve(inner, root * self.cross[used])
        slopes = -self.gamma * (self.cross - self.gram[:, used] @ coef[used]) ** 2 / (2 * self.total)
        value = float(self.square - self.cross @ coef) / (2 * self.total)
        return Plane(value - float(slopes @ s), slopes, value, coef)
