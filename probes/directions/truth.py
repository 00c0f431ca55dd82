"""Does the model's state tell that its answer is wrong, and where: AUC of a reader at every layer and token position.

    documents split three ways;   cell (layer, position):  fit on training rows, AUC on validation rows
    chosen cell = argmax of the validation AUC (of equal ones the first);   reported: its AUC on test rows, with an interval over documents
    null: all of it, choice included, on shuffled labels

Label 1 means a wrong answer. Orgad et al., "LLMs Know More Than They Show", 2024, arXiv 2410.02707, sections 3 and 4. The reader that is tested
is the one that was chosen, fitted to training rows only; the maximum of many validation AUCs is above 1/2 without any signal, which is what
the null of the choice says. Between tasks such readers hardly transfer: see `probes.directions.transfer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import clone

from probes.directions.base import LabelledRows, fit_reader
from probes.directions.labelled import LogisticDirection
from probes.directions.scoring import Interval, auc, auc_interval, holdout, shuffled, summary
from probes.figures import new_figure
from probes.problem import Features
from probes.results import Cell, Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Cells = Mapping[tuple[int, str], Features]
"""(layer, position) -> activations [n, d], rows in one order; it may read them when asked."""


@dataclass(frozen=True, kw_only=True)
class TruthfulnessConfig:
    """How the documents are split and the scores drawn."""

    validation_share: float = 0.2
    """Share of the documents that choose the cell."""
    test_share: float = 0.2
    """Share of the documents that the chosen cell is tested on."""
    n_bootstrap: int = 1000
    """Draws of test documents behind the interval."""
    n_shuffles: int = 5
    """Label shuffles, each a whole map; 0 for none."""
    seed: int = 0
    """Seed of splits, bootstrap and shuffles."""

    def __post_init__(self) -> None:
        shares = self.validation_share, self.test_share
        if not (min(shares) > 0 and sum(shares) < 1):
            raise ConfigError(
                f"validation_share and test_share must be positive and leave training rows, got {shares} (TruthfulnessConfig)"
            )
        if self.n_bootstrap < 1 or self.n_shuffles < 0:
            given = f"{self.n_bootstrap} and {self.n_shuffles}"
            raise ConfigError(f"n_bootstrap must be at least 1 and n_shuffles at least 0, got {given} (TruthfulnessConfig)")


class Parts(NamedTuple):
    """Row numbers of the three parts; no document is in two."""

    train: Int[np.ndarray, " n_train"]
    """Rows to fit on."""
    validation: Int[np.ndarray, " n_validation"]
    """Rows that choose the cell."""
    test: Int[np.ndarray, " n_test"]
    """Rows for the chosen cell."""


@dataclass(frozen=True, eq=False)
class TruthfulnessMap(Result):
    """AUC of a reader by layer and position, and of the chosen one on documents that played no part."""

    name: str
    """The task."""
    layers: tuple[int, ...]
    """Layers, in order."""
    positions: tuple[str, ...]
    """Positions, in order."""
    validation: Float[np.ndarray, "layers positions"]
    """AUC on validation rows; NaN for a cell that was not given."""
    chosen: tuple[int, str]
    """Layer and position of the greatest validation AUC."""
    test: Interval
    """AUC of the chosen reader on test rows."""
    null_validation: Float[np.ndarray, " n_shuffles"]
    """Greatest validation AUC for shuffled labels."""
    null_test: Float[np.ndarray, " n_shuffles"]
    """Test AUC of the cell chosen for shuffled labels."""
    parts: Parts
    """The rows of each part."""
    reader: Any
    """The chosen reader, fitted to training rows."""

    def table(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        for j, position in enumerate(self.positions):
            column = np.where(np.isnan(self.validation[:, j]), -1.0, self.validation[:, j])
            i = int(column.argmax())
            cell = (self.layers[i], position)
            tested = tuple(float(value) for value in self.test) if cell == self.chosen else (None, None, None)
            rows.append((position, self.layers[i], float(column[i]), *tested))
        choice, test = summary(self.null_validation), summary(self.null_test)
        null = ""
        if choice[0] is not None and test[0] is not None:
            null = f" Shuffled labels ({len(self.null_test)}): greatest validation AUC {choice[0]:.3f}, its test AUC {test[0]:.3f}"
            null += f" ± {test[1]:.3f}." if test[1] is not None else "."
        note = (
            f"Best layer of every position by validation AUC; only the best of all is tested, with the 95 % interval over documents.{null}"
        )
        return Table(
            f"Where {self.name!r} can be read", ("position", "layer", "AUC validation", "AUC test", "low", "high"), tuple(rows), note
        )

    def figure(self) -> "Figure":
        import plotly.graph_objects as go

        title = f"{self.name}: AUC on validation documents"
        figure = new_figure(
            title, "token position", "layer", width=max(480, 200 + 48 * len(self.positions)), height=max(360, 140 + 18 * len(self.layers))
        )
        scale = {"colorscale": "RdBu_r", "zmid": 0.5, "zmin": 0.0, "zmax": 1.0, "colorbar": {"title": "AUC"}}
        layers = [str(layer) for layer in self.layers]
        figure.add_trace(go.Heatmap(z=self.validation, x=self.positions, y=layers, hoverongaps=False, **scale))
        marker = {"symbol": "square-open", "size": 14, "color": "#000", "line": {"width": 2}}
        name = f"chosen: test AUC {self.test.value:.2f} [{self.test.low:.2f}, {self.test.high:.2f}]"
        figure.add_trace(go.Scatter(x=[self.chosen[1]], y=[str(self.chosen[0])], mode="markers", marker=marker, name=name, showlegend=True))
        figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin={"t": 88})
        figure.update_xaxes(type="category")
        figure.update_yaxes(type="category")
        return figure


def truthfulness_map(
    cells: Cells,
    y: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    *,
    name: str = "wrong answer",
    reader: Any = None,
    config: TruthfulnessConfig | None = None,
) -> TruthfulnessMap:
    """The map over all cells, the choice, and its test. y: 1 for a wrong answer; groups: the question of each row, or its document.

    reader: any of `probes.directions` (None: `LogisticDirection()`). Raises ConfigError for cells that do not fit y, or too few documents.
    """
    config = config or TruthfulnessConfig()
    if not cells:
        raise ConfigError("cells must hold at least one (layer, position), got none (truthfulness_map)")
    layers, positions = tuple(sorted({layer for layer, _ in cells})), tuple(dict.fromkeys(position for _, position in cells))
    rows = LabelledRows(name, np.zeros((len(y), 1)), y, groups)
    parts = _parts(rows, config)
    reader = LogisticDirection() if reader is None else reader
    validation, chosen = _choose(cells, rows, reader, parts, layers, positions)
    fitted = _fit(cells, rows, reader, parts, chosen)
    X = cells[chosen]
    decision = fitted.decision_function(X[parts.test])
    test = auc_interval(decision, y[parts.test], groups[parts.test], n_bootstrap=config.n_bootstrap, seed=config.seed)
    null = np.empty((2, config.n_shuffles))
    for i in range(config.n_shuffles):
        other = shuffled(rows, seed=config.seed + 1 + i)
        split = _parts(other, config)
        scores, best = _choose(cells, other, reader, split, layers, positions)
        tested = _fit(cells, other, reader, split, best).decision_function(cells[best][split.test])
        null[:, i] = np.nanmax(scores), auc(tested, other.y[split.test])
    return TruthfulnessMap(name, layers, positions, validation, chosen, test, null[0], null[1], parts, fitted)


def _parts(rows: LabelledRows, config: TruthfulnessConfig) -> Parts:
    outer = holdout(rows, test_share=config.test_share, seed=config.seed)
    share = config.validation_share / (1 - config.test_share)
    inner = holdout(rows.take(outer.train), test_share=share, seed=config.seed)
    return Parts(outer.train[inner.train], outer.train[inner.test], outer.test)


def _fit(cells: Cells, rows: LabelledRows, reader: Any, parts: Parts, cell: tuple[int, str]) -> Any:
    X = cells[cell]
    if X.shape[0] != len(rows):
        raise ConfigError(f"cells[{cell}] must have one row per label, got {X.shape[0]} rows for {len(rows)} labels (truthfulness_map)")
    return fit_reader(clone(reader), LabelledRows(rows.name, X[parts.train], rows.y[parts.train], rows.groups[parts.train]))


def _choose(
    cells: Cells, rows: LabelledRows, reader: Any, parts: Parts, layers: tuple[int, ...], positions: tuple[str, ...]
) -> tuple[np.ndarray, tuple[int, str]]:
    """The validation AUC of every cell [layers, positions], and the cell of the greatest."""
    scores = np.full((len(layers), len(positions)), np.nan)
    for layer, position in cells:
        fitted = _fit(cells, rows, reader, parts, (layer, position))
        decision = fitted.decision_function(cells[layer, position][parts.validation])
        scores[layers.index(layer), positions.index(position)] = auc(decision, rows.y[parts.validation])
    i, j = np.unravel_index(np.nanargmax(scores), scores.shape)
    return scores, (layers[i], positions[j])
