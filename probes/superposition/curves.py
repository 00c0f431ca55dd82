"""How many columns a feature needs: one, or several that each know a little.

    F1(k) = score of the best k columns by a ranking, on documents that were not seen
    dedicated column:   F1(1) = F1(all)           superposed feature:   F1(1) well below F1(k) for a handful k, which reaches F1(all)

Gurnee et al., "Finding Neurons in a Haystack", 2023, arXiv 2305.01610, sections 4 and 5. A rise from k = 1 to k = 8 alone does not show
superposition: several columns also average noise away. Prune (`prune`) and rotate (`basis_control`) to tell these apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from sklearn.base import clone

from probes.figures import band, colour, control_line, new_figure
from probes.linear import DenseProbe
from probes.problem import Features
from probes.results import Result, Table
from probes.selection import Labels, rank, top_k
from probes.sparse import KSparseProbe
from probes.validation import Estimate, Fold, Groups, ProbeScore, evaluate_probe, group_folds, group_holdout
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def always_positive(score: ProbeScore) -> float:
    """F1 of a probe that always says 1: 2p / (1 + p)."""
    return 2 * score.positive_share / (1 + score.positive_share)


def add_estimates(figure: "Figure", x: Sequence[Any], found: Sequence[Estimate], name: str, ink: str) -> None:
    """A line through the values over the band of their intervals."""
    figure.add_scatter(x=[*x, *reversed(x)], y=[*(e.high for e in found), *(e.low for e in reversed(found))], fill="toself", mode="none",
                       fillcolor=band(ink), hoverinfo="skip", showlegend=False)  # fmt: skip
    figure.add_scatter(x=list(x), y=[e.value for e in found], name=name, mode="lines+markers", line={"color": ink})


@dataclass(frozen=True, eq=False)
class KCurve(Result):
    """Scores by number of columns, beside all columns."""

    ks: tuple[int, ...]
    """Numbers of columns, ascending."""
    scores: tuple[ProbeScore, ...]
    """Scores at each."""
    dense: ProbeScore
    """Scores of a probe on all columns."""
    d: int
    """Number of columns."""

    @property
    def missing_at_one(self) -> float:
        """F1 of the dense probe less that of the smallest k: near 0 for a dedicated column, positive for a superposed feature."""
        return self.dense.f1.value - self.scores[0].f1.value

    def table(self) -> Table:
        """F1 and AUC with their intervals by k."""
        rows = [(str(k), s) for k, s in zip(self.ks, self.scores, strict=True)] + [(f"all {self.d}", self.dense)]
        return Table(
            "Score by number of columns",
            ("columns", "F1", "F1 low", "F1 high", "AUC", "AUC low", "AUC high"),
            tuple((k, s.f1.value, s.f1.low, s.f1.high, s.auc.value, s.auc.low, s.auc.high) for k, s in rows),
            f"Chance: F1 {always_positive(self.dense):.3f} (always positive), AUC 0.5. 95 % intervals over documents. F1 at k = "
            f"{self.ks[0]} is {self.missing_at_one:.3f} below all columns.",
        )

    def figure(self) -> "Figure":
        """F1 by k with its band, all columns and chance dashed."""
        figure = new_figure("F1 by number of columns", "k (columns)", "F1")
        add_estimates(figure, self.ks, [s.f1 for s in self.scores], "best k columns", colour(0))
        ends = [self.ks[0], self.ks[-1]]
        figure.add_scatter(x=ends, y=[self.dense.f1.value] * 2, name=f"all {self.d} columns", mode="lines", line=control_line(dash="dot"))
        figure.add_scatter(x=ends, y=[always_positive(self.dense)] * 2, name="always positive", mode="lines", line=control_line())
        figure.update_xaxes(type="log", tickvals=list(self.ks))
        return figure


def k_curve(
    X: Features,
    y: Labels,
    groups: Groups,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    probe: KSparseProbe | None = None,
    n_folds: int = 5,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> KCurve:
    """The held-out scores of `probe` (default: mean difference) at every k, and of all columns, on the same folds of documents.

    Raises ConfigError for a k outside 1..d, and what `evaluate_probe` raises.
    """
    ks = check_ks(ks, X.shape[1], "k_curve")
    folds = group_folds(y, groups, n_folds=n_folds, seed=seed)
    probe = probe or KSparseProbe()

    def score(estimator: Any) -> ProbeScore:
        return evaluate_probe(estimator, X, y, groups, folds=folds, n_bootstrap=n_bootstrap, seed=seed)

    scores = tuple(score(clone(probe).set_params(k=k)) for k in ks)
    return KCurve(ks, scores, score(DenseProbe(C=probe.C, class_weight=probe.class_weight)), X.shape[1])


def check_ks(ks: Sequence[int], d: int, where: str) -> tuple[int, ...]:
    """The ks ascending. Raises ConfigError for none, or one outside 1..d."""
    ordered = tuple(sorted({int(k) for k in ks}))
    if not ordered or ordered[0] < 1 or ordered[-1] > d:
        raise ConfigError(f"ks must be in 1..d={d}, at least one, got {list(ks)} ({where})")
    return ordered


@dataclass(frozen=True, eq=False)
class SingleColumns(Result):
    """The columns that a ranking puts first, each as a probe of its own."""

    columns: Int[np.ndarray, " m"]
    """Column numbers, by their score on training documents."""
    scores: tuple[ProbeScore, ...]
    """Scores of each by itself on held-out documents."""

    def table(self) -> Table:
        """A line per column."""
        rows = zip(self.columns.tolist(), self.scores, strict=True)
        return Table(
            "Single columns on held-out documents",
            ("column", "F1", "F1 low", "F1 high", "AUC", "precision", "recall"),
            tuple((j, s.f1.value, s.f1.low, s.f1.high, s.auc.value, s.precision.value, s.recall.value) for j, s in rows),
            f"Chosen on training documents, scored on others. Chance: F1 {always_positive(self.scores[0]):.3f} (always positive), AUC 0.5.",
        )

    def figure(self) -> "Figure":
        """F1 of each column, in the order of the ranking."""
        figure = new_figure("Single columns on held-out documents", "place in the ranking", "F1")
        places = list(range(1, len(self.columns) + 1))
        add_estimates(figure, places, [s.f1 for s in self.scores], "one column", colour(0))
        ends = [places[0], places[-1]]
        figure.add_scatter(x=ends, y=[always_positive(self.scores[0])] * 2, name="always positive", mode="lines", line=control_line())
        return figure


def single_columns(
    X: Features,
    y: Labels,
    groups: Groups,
    *,
    n_columns: int = 30,
    ranking: str = "mean_difference",
    test_share: float = 0.3,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> SingleColumns:
    """The `n_columns` best columns of the training documents, each fitted alone and scored on the held-out ones.

    Raises ConfigError for n_columns outside 1..d, and what `group_holdout` and `rank` raise.
    """
    check_ks([n_columns], X.shape[1], "single_columns")
    fold: Fold = group_holdout(y, groups, test_share=test_share, seed=seed)
    columns = top_k(rank(X[fold.train], y[fold.train], ranking=ranking, seed=seed), n_columns)
    scores = tuple(
        evaluate_probe(KSparseProbe(k=1), X[:, [j]], y, groups, folds=[fold], n_bootstrap=n_bootstrap, seed=seed) for j in columns
    )
    return SingleColumns(columns, scores)
