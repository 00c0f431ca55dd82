"""Whether a feature is aligned with the basis: its sparse probes against those in a rotated basis, and on random subspaces.

    rotated:    X Q, Q Haar-distributed orthogonal: Q R = G, G_ij ~ N(0, 1), columns of Q multiplied by sign(R_jj)
    subspace:   X Q[:, :k], all of its k coordinates, no choice

A rotation changes nothing that a probe on all columns can read, so what a sparse probe loses by it was owed to the basis. The best k of d
rotated coordinates bring some of every feature, k random ones less: the first is the control for "this neuron", the second for "k numbers".
Gurnee et al. 2023, arXiv 2305.01610, section 5. Departure: their random matrix is Gaussian, which also changes lengths and angles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from sklearn.base import clone

from probes.figures import CONTROL, colour, control_line, new_figure
from probes.linear import DenseProbe
from probes.problem import Features
from probes.results import Result, Table
from probes.selection import Labels
from probes.sparse import KSparseProbe
from probes.superposition.curves import add_estimates, always_positive, check_ks
from probes.validation import Groups, ProbeScore, evaluate_probe, group_folds
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LARGEST_ROTATION = 8192
"""Columns up to which a rotation is drawn: its matrix then has 512 MB and takes about a minute."""


def haar_rotation(d: int, *, seed: int) -> Float[np.ndarray, "d d"]:
    """A uniformly distributed orthogonal matrix (Stewart 1980, SIAM J. Numer. Anal. 17:403). ConfigError for d outside 1..8192."""
    if not 1 <= d <= LARGEST_ROTATION:
        raise ConfigError(f"d must be in 1..{LARGEST_ROTATION}, got {d} (haar_rotation); choose columns first")
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))
    return q * np.sign(np.diag(r))


@dataclass(frozen=True, eq=False)
class BasisControl(Result):
    """Scores in the given basis beside those in rotated ones and on random subspaces."""

    ks: tuple[int, ...]
    """Numbers of columns, ascending."""
    scores: tuple[ProbeScore, ...]
    """Scores in the given basis at each k."""
    rotated_f1: Float[np.ndarray, "rotations ks"]
    """F1 of the same probe after each rotation."""
    rotated_auc: Float[np.ndarray, "rotations ks"]
    """AUC of the same probe after each rotation."""
    subspace_f1: tuple[Float[np.ndarray, "_"], ...]
    """For each k, F1 of a probe on each random k-dimensional subspace."""

    def table(self) -> Table:
        """A line per k: the basis, and mean and standard deviation of the controls."""
        rows = []
        for i, (k, s) in enumerate(zip(self.ks, self.scores, strict=True)):
            f1, auc, sub = self.rotated_f1[:, i], self.rotated_auc[:, i], self.subspace_f1[i]
            rows.append((k, s.f1.value, s.f1.low, s.f1.high, s.auc.value, _mean(f1), _sd(f1), _mean(auc), _mean(sub), _sd(sub), len(sub)))
        return Table(
            "Sparse probes in this basis and in random ones",
            ("k", "F1", "F1 low", "F1 high", "AUC", "F1 rotated", "sd", "AUC rotated", "F1 subspace", "sd of subspaces", "subspaces"),
            tuple(rows),
            f"Controls: best k of d coordinates after {len(self.rotated_f1)} Haar rotations; all k coordinates of random subspaces. A "
            f"feature of the basis scores above both at small k. Always positive: F1 {always_positive(self.scores[0]):.3f}.",
        )

    def figure(self) -> "Figure":
        """F1 by k, with the controls in grey."""
        figure = new_figure("Sparse probes in this basis and in random ones", "k (columns)", "F1")
        add_estimates(figure, self.ks, [s.f1 for s in self.scores], "this basis", colour(0))
        for name, means, sds, style in (
            ("rotated, ± sd", self.rotated_f1.mean(0), [_sd(f1) for f1 in self.rotated_f1.T], control_line()),
            (
                "random subspaces, ± sd",
                [_mean(f1) for f1 in self.subspace_f1],
                [_sd(f1) for f1 in self.subspace_f1],
                control_line(dash="dot"),
            ),
        ):
            error: Any = {"type": "data", "array": [sd or 0.0 for sd in sds], "color": CONTROL, "thickness": 1}
            figure.add_scatter(x=list(self.ks), y=list(means), name=name, mode="lines+markers", line=style, error_y=error)
        figure.update_xaxes(type="log", tickvals=list(self.ks))
        return figure


def basis_control(
    X: Features,
    y: Labels,
    groups: Groups,
    *,
    ks: Sequence[int] = (1, 4, 16),
    probe: KSparseProbe | None = None,
    n_rotations: int = 5,
    n_folds: int = 5,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> BasisControl:
    """The held-out scores of `probe` at every k, with the same after `n_rotations` rotations, and on round(16 / sqrt(k)) random subspaces.

    Rotated columns are dense: a sparse X becomes n x d numbers. The probes' z-scores are taken after the rotation, so that k = d is the same
    rule under another ridge. Raises ConfigError for a k outside 1..d, no rotation, d above 8192, and what `evaluate_probe` raises.
    """
    ks = check_ks(ks, X.shape[1], "basis_control")
    if n_rotations < 1:
        raise ConfigError(f"n_rotations must be at least 1, got {n_rotations} (basis_control)")
    folds = group_folds(y, groups, n_folds=n_folds, seed=seed)
    probe = probe or KSparseProbe()

    def score(estimator: Any, matrix: Any, draws: int) -> ProbeScore:
        return evaluate_probe(estimator, matrix, y, groups, folds=folds, n_bootstrap=draws, seed=seed)

    scores = tuple(score(clone(probe).set_params(k=k), X, n_bootstrap) for k in ks)
    dense = DenseProbe(C=probe.C, class_weight=probe.class_weight)
    rotated = np.empty((2, n_rotations, len(ks)))
    subspaces: list[list[float]] = [[] for _ in ks]
    for r in range(n_rotations):
        turned = np.asarray(X @ haar_rotation(X.shape[1], seed=seed + r))
        for i, k in enumerate(ks):
            found = score(clone(probe).set_params(k=k), turned, 1)
            rotated[:, r, i] = found.f1.value, found.auc.value
            wanted = max(1, round(16 / np.sqrt(k)))
            for start in range(0, X.shape[1] - k + 1, k):  # disjoint coordinates of one rotation are orthogonal subspaces
                if len(subspaces[i]) < min(wanted, (r + 1) * -(-wanted // n_rotations)):
                    subspaces[i].append(score(dense, turned[:, start : start + k], 1).f1.value)
    return BasisControl(ks, scores, rotated[0], rotated[1], tuple(np.array(f1) for f1 in subspaces))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _sd(values: np.ndarray) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
