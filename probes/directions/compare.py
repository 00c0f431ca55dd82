"""All readers on one data set: how well each direction separates held-out documents, how alike the directions are, and how stable.

    AUC         cross-validated by document (probes.validation), beside shuffled labels and random directions
    cosine      of directions fitted to all rows; two random ones have |cos| near sqrt(2 / (pi d))
    stability   cos(v, v_b), v_b fitted to documents drawn with replacement; cos(v_1, v_2) of disjoint halves of the documents

A bootstrap shares rows with the data, so cos(v, v_b) is far from 0 even for labels that mean nothing: it is read against shuffled labels.
The two halves share no document: there shuffled labels give 0 on average. For pairs a shuffle turns documents round; the axis of an uncentred
PCA does not see that, so its null has the cosine of the data with a random sign: the labels gave it no more than the sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, clone

from probes.directions.base import LabelledRows, fit_reader
from probes.directions.labelled import RandomDirection
from probes.directions.scoring import expected_cosine, holdout, resampled, shuffled, summary
from probes.figures import CONTROL, colour, new_figure
from probes.results import Cell, Result, Table
from probes.validation import Fold, ProbeScore, Split, evaluate_probes, group_folds
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RANDOM = "random direction"


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """How readers are compared."""

    n_folds: int = 5
    """Folds, split by document."""
    n_bootstrap: int = 1000
    """Draws of documents behind each interval."""
    n_shuffles: int = 10
    """Label shuffles behind each null; 0 for none."""
    n_random: int = 10
    """Random directions averaged in the control row; 0 for no such row."""
    seed: int = 0
    """Seed of folds, bootstrap, shuffles and random directions."""

    def __post_init__(self) -> None:
        for name, least in (("n_folds", 2), ("n_bootstrap", 1), ("n_shuffles", 0), ("n_random", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)} (ComparisonConfig)")


class _OnRows(BaseEstimator):
    """A reader that is fitted to rows by number, so that it gets their pairs and no matrix is copied: X is the row numbers [n, 1]."""

    def __init__(self, reader: Any, rows: LabelledRows):
        self.reader = reader
        self.rows = rows

    def __sklearn_clone__(self) -> "_OnRows":
        return _OnRows(clone(self.reader), self.rows)

    def fit(self, X: np.ndarray, y: np.ndarray) -> "_OnRows":
        numbers = X[:, 0].astype(np.int64)
        pairs = None if self.rows.pairs is None else self.rows.pairs[numbers]
        fit_reader(self.reader, LabelledRows(self.rows.name, self.rows.X[numbers], y, self.rows.groups[numbers], pairs))
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return self.reader.decision_function(self.rows.X[X[:, 0].astype(np.int64)])

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.reader.predict(self.rows.X[X[:, 0].astype(np.int64)])


@dataclass(frozen=True, eq=False)
class ReaderComparison(Result):
    """The readers of one data set side by side."""

    name: str
    """The data set."""
    readers: tuple[str, ...]
    """Names of the readers."""
    scores: tuple[ProbeScore, ...]
    """Held-out scores of each, with interval and null."""
    random: ProbeScore | None
    """What a random direction scores on average; None where none was asked for."""
    cosine: Float[np.ndarray, "n_readers n_readers"]
    """Cosines of the directions fitted to all rows."""
    directions: Float[np.ndarray, "n_readers d"]
    """The directions fitted to all rows."""

    @property
    def expected_cosine(self) -> float:
        """Mean |cosine| of two random directions of that width."""
        return expected_cosine(self.directions.shape[1])

    def table(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        named = [
            *zip(self.readers, self.scores, self.cosine[0].tolist(), strict=True),
            *([(RANDOM, self.random, None)] if self.random else []),
        ]
        for name, score, cosine in named:
            a = score.auc
            rows.append((name, a.value, a.low, a.high, a.null_mean, a.null_sd, score.balanced_accuracy.value, cosine))
        first = self.readers[0]
        columns = ("reader", "AUC", "low", "high", "null", "null sd", "balanced accuracy", f"cosine with {first}")
        n = self.scores[0]
        note = (
            f"AUC on held-out documents ({n.n_test} rows, {n.n_groups} documents), 95 % interval over documents; null: {n.n_shuffles} shuffles of the "
            f"labels. Two random directions have |cosine| {self.expected_cosine:.3f} on average."
        )
        return Table(f"Directions for {self.name!r}", columns, tuple(rows), note)

    def figure(self) -> "Figure":
        import plotly.graph_objects as go

        figure = new_figure(f"Directions for {self.name!r}", "AUC on held-out documents", "", height=120 + 44 * (len(self.readers) + 1))
        names = [*self.readers, *([RANDOM] if self.random else [])]
        found = [score.auc for score in [*self.scores, *([self.random] if self.random else [])]]
        parts = [("AUC, 95 %", colour(0), slice(0, len(self.readers))), (f"{RANDOM}, mean", CONTROL, slice(len(self.readers), len(names)))]
        for label, ink, part in parts if self.random else parts[:1]:
            a = found[part]
            error = {"type": "data", "symmetric": False, "array": [e.high - e.value for e in a], "arrayminus": [e.value - e.low for e in a]}
            marker = {"color": ink, "size": 9}
            figure.add_trace(
                go.Scatter(x=[e.value for e in a], y=names[part], error_x=error | {"color": ink}, mode="markers", name=label, marker=marker)
            )
        null = [(name, a.null_mean, a.null_sd or 0.0) for name, a in zip(names, found, strict=True) if a.null_mean is not None]
        if null:
            spread = {"type": "data", "array": [2 * sd for _, _, sd in null], "color": CONTROL}
            marker = {"color": CONTROL, "symbol": "line-ns-open", "size": 14, "line": {"width": 2}}
            figure.add_trace(
                go.Scatter(
                    x=[m for _, m, _ in null],
                    y=[name for name, _, _ in null],
                    error_x=spread,
                    mode="markers",
                    name="shuffled, ± 2 sd",
                    marker=marker,
                )
            )
        figure.update_yaxes(autorange="reversed", automargin=True)
        return figure


def compare_readers(readers: Mapping[str, Any], rows: LabelledRows, config: ComparisonConfig | None = None) -> ReaderComparison:
    """Each reader by the same folds of documents, with intervals, nulls and the random direction beside them.

    Readers of pairs get the pairs of `rows` where there are any. Raises ConfigError for no reader, or too few documents of a class.

        print(compare_readers({"mean": MeanDifferenceDirection(), "LDA": LDADirection()}, rows))
    """
    config = config or ComparisonConfig()
    if not readers:
        raise ConfigError("readers must hold at least one reader, got none (compare_readers)")
    folds = group_folds(rows.y, rows.groups, n_folds=config.n_folds, seed=config.seed)
    nulls = [_split(shuffled(rows, seed=config.seed + 1 + i), folds, config) for i in range(config.n_shuffles)]
    numbers = np.arange(len(rows), dtype=np.float64)[:, None]

    def score(estimators: list[Any], splits: list[Split]) -> ProbeScore:
        wrapped = [_OnRows(estimator, rows) for estimator in estimators]
        return evaluate_probes(
            wrapped, numbers, rows.y, rows.groups, folds=folds, nulls=splits, n_bootstrap=config.n_bootstrap, seed=config.seed
        )

    fitted = np.stack([fit_reader(clone(reader), rows).direction_ for reader in readers.values()])
    draws = [RandomDirection(random_state=config.seed + i) for i in range(config.n_random)]
    return ReaderComparison(
        name=rows.name,
        readers=tuple(readers),
        scores=tuple(score([reader], nulls) for reader in readers.values()),
        random=score(draws, []) if draws else None,
        cosine=fitted @ fitted.T,
        directions=fitted,
    )


def _split(rows: LabelledRows, folds: list[Fold], config: ComparisonConfig) -> Split:
    return Split(rows.y, group_folds(rows.y, rows.groups, n_folds=len(folds), seed=config.seed))


@dataclass(frozen=True, eq=False)
class Stability(Result):
    """How much of a direction comes back on other documents."""

    name: str
    """The data set."""
    readers: tuple[str, ...]
    """Names of the readers."""
    bootstrap: Float[np.ndarray, "n_readers n_draws"]
    """Cosine of the direction with that of documents drawn with replacement."""
    bootstrap_null: Float[np.ndarray, "n_readers n_draws"]
    """The same, both fitted to shuffled labels."""
    halves: Float[np.ndarray, "n_readers n_draws"]
    """Cosine of the directions of two disjoint halves of the documents."""
    halves_null: Float[np.ndarray, "n_readers n_draws"]
    """The same for shuffled labels."""
    d: int
    """Width of the space."""

    def table(self) -> Table:
        rows = []
        for i, name in enumerate(self.readers):
            low, high = np.quantile(self.bootstrap[i], (0.025, 0.975))
            cells = [summary(values[i]) for values in (self.bootstrap_null, self.halves, self.halves_null)]
            rows.append(
                (
                    name,
                    float(self.bootstrap[i].mean()),
                    float(low),
                    float(high),
                    cells[0][0],
                    cells[1][0],
                    cells[1][1],
                    cells[2][0],
                    cells[2][1],
                )
            )
        columns = ("reader", "bootstrap cosine", "low", "high", "null", "halves cosine", "sd", "halves null", "halves null sd")
        note = (
            f"{self.bootstrap.shape[1]} draws of documents. Bootstrap: with the direction of all rows, whose rows it shares, so the null (shuffled labels) "
            f"is far from 0. Halves: of two disjoint halves. Random directions: |cosine| {expected_cosine(self.d):.3f} on average."
        )
        return Table(f"Stability of directions for {self.name!r}", columns, tuple(rows), note)

    def figure(self) -> "Figure":
        import plotly.graph_objects as go

        figure = new_figure(f"Stability of directions for {self.name!r}", "", "cosine of directions from disjoint halves")
        for label, values, style in (("labels", self.halves, colour(0)), ("shuffled labels", self.halves_null, CONTROL)):
            names = np.repeat(self.readers, values.shape[1])
            figure.add_trace(go.Box(x=names, y=values.ravel(), name=label, marker={"color": style, "size": 4}, boxpoints="all"))
        figure.update_layout(boxmode="group")
        figure.update_yaxes(range=[min(-0.25, float(self.halves_null.min()) - 0.05), 1.05])
        return figure


def direction_stability(readers: Mapping[str, Any], rows: LabelledRows, *, n_draws: int = 20, seed: int = 0) -> Stability:
    """Cosines under resampling of documents, each with the same for shuffled labels.

    Raises ConfigError for no reader, fewer than 2 draws, or documents too few to hold both classes in each half.
    """
    if not readers or n_draws < 2:
        raise ConfigError(
            f"readers must hold one or more and n_draws be at least 2, got {len(readers)} and {n_draws} (direction_stability)"
        )
    found = np.empty((4, len(readers), n_draws))
    names = list(readers)

    def fit(name: str, data: LabelledRows) -> np.ndarray:
        return fit_reader(clone(readers[name]), data).direction_

    whole = {name: fit(name, rows) for name in names}
    for draw in range(n_draws):
        null = shuffled(rows, seed=seed + 1 + draw)
        for column, data in ((0, rows), (1, null)):
            sample = resampled(data, np.random.default_rng([seed, draw]))
            fold = holdout(data, test_share=0.5, seed=seed + draw)
            for i, name in enumerate(names):
                base = whole[name] if data is rows else fit(name, data)
                found[column, i, draw] = base @ fit(name, sample)
                found[2 + column, i, draw] = fit(name, data.take(fold.train)) @ fit(name, data.take(fold.test))
    return Stability(rows.name, tuple(names), *found, d=rows.X.shape[1])
