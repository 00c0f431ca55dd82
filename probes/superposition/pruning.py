"""What is left of a feature when its best column is taken away, again and again.

    round r:   S = k columns of those left, chosen and fitted on training documents
               score on test documents
               drop  argmax_{j in S} F1 of column j alone on validation documents

A dedicated column: the score falls to what the others know at once. A superposed feature: it holds until the last of its columns is gone.
Gurnee et al. 2023, arXiv 2305.01610, section 5. Departure: their code chooses the column to drop by its score on the test set.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone
from sklearn.metrics import f1_score

from probes.base import LinearProbe
from probes.figures import colour, control_line, new_figure
from probes.problem import Features
from probes.results import Result, Table
from probes.selection import Labels
from probes.sparse import KSparseProbe
from probes.superposition.curves import add_estimates, always_positive
from probes.validation import Fold, Groups, ProbeScore, evaluate_probe, group_holdout
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class PruningRound:
    """One round, with `n_dropped` columns gone."""

    n_dropped: int
    """Columns taken away before this round."""
    support: tuple[int, ...]
    """Columns the probe chose from those left."""
    score: ProbeScore
    """Its scores on the test documents."""
    dropped: int
    """The column that is taken away after this round."""
    dropped_f1: float
    """F1 of that column alone, on the validation documents."""


@dataclass(frozen=True, eq=False)
class PruningCurve(Result):
    """Scores as the best column is taken away round by round."""

    rounds: tuple[PruningRound, ...]
    """The rounds in order; nothing is gone in the first."""

    @property
    def drops(self) -> tuple[float, ...]:
        """F1 of the first round less that of each."""
        return tuple(self.rounds[0].score.f1.value - r.score.f1.value for r in self.rounds)

    def table(self) -> Table:
        """A line per round."""
        return Table(
            "Score as the best column is taken away",
            ("columns gone", "F1", "F1 low", "F1 high", "AUC", "drop in F1", "columns chosen", "taken away next", "its F1 (validation)"),
            tuple(
                (r.n_dropped, r.score.f1.value, r.score.f1.low, r.score.f1.high, r.score.auc.value, drop, ", ".join(map(str, r.support)),
                 r.dropped, r.dropped_f1)
                for r, drop in zip(self.rounds, self.drops, strict=True)
            ),
            "Chosen on training, dropped by validation, scored on test documents. A dedicated column shows as a fall in the first round, a "
            f"superposed feature holds until its columns are gone. Always positive: F1 {always_positive(self.rounds[0].score):.3f}.",
        )  # fmt: skip

    def figure(self) -> "Figure":
        """F1 by columns gone, chance dashed."""
        figure = new_figure("F1 as the best column is taken away", "columns gone", "F1")
        gone = [r.n_dropped for r in self.rounds]
        add_estimates(figure, gone, [r.score.f1 for r in self.rounds], "probe on the columns left", colour(0))
        chance = always_positive(self.rounds[0].score)
        figure.add_scatter(x=[gone[0], gone[-1]], y=[chance] * 2, name="always positive", mode="lines", line=control_line())
        return figure


def prune(
    X: Features,
    y: Labels,
    groups: Groups,
    *,
    probe: LinearProbe | None = None,
    n_rounds: int = 10,
    validation_share: float = 0.2,
    test_share: float = 0.3,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> PruningCurve:
    """`n_rounds` rounds with `probe`: a `KSparseProbe` (default: k = 5 by F) or an `OptimalSparseProbe`, whose support is exact.

    Documents are split into training, validation and test. Raises ConfigError for shares that leave no training documents, more rounds than
    columns allow, and what `group_holdout` raises for too few documents.
    """
    probe = KSparseProbe(k=5, ranking="f_statistic") if probe is None else probe
    if validation_share + test_share >= 1:
        raise ConfigError(f"validation_share + test_share must be below 1, got {validation_share} + {test_share} (prune)")
    if not 1 <= n_rounds < X.shape[1]:
        raise ConfigError(f"n_rounds must be in 1..d-1={X.shape[1] - 1}, got {n_rounds} (prune)")
    outer = group_holdout(y, groups, test_share=test_share, seed=seed)
    inner = group_holdout(y[outer.train], groups[outer.train], test_share=validation_share / (1 - test_share), seed=seed)
    train, validation = outer.train[inner.train], outer.train[inner.test]
    left = np.arange(X.shape[1])
    rounds = []
    for n_dropped in range(n_rounds):
        remaining = X[:, left]
        fitted: Any = clone(probe).fit(remaining[train], y[train])
        folds = [Fold(train, outer.test)]
        score = evaluate_probe(probe, remaining, y, groups, folds=folds, n_bootstrap=n_bootstrap, seed=seed)
        alone = [_alone(X[:, [j]], y, train, validation) for j in left[fitted.support_]]
        best = int(np.argmax(alone))
        dropped = int(left[fitted.support_[best]])
        support = tuple(int(j) for j in left[fitted.support_])
        rounds.append(PruningRound(n_dropped, support, score, dropped, alone[best]))
        left = left[left != dropped]
    return PruningCurve(tuple(rounds))


def _alone(column: Any, y: np.ndarray, train: np.ndarray, validation: np.ndarray) -> float:
    """F1 of one column as a probe."""
    fitted = KSparseProbe(k=1).fit(column[train], y[train])
    return float(f1_score(y[validation], fitted.predict(column[validation]), zero_division=0.0))
