"""What a sweep found: a table per layer, what is best by validation, and figures over k and over layers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from probes.figures import band, colour, control_line, new_figure
from probes.results import Cell, Result, Table
from probes.sweep.config import DENSE, RANDOM, SweepCell, SweepConfig
from probes.validation import METRICS, Estimate
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LABELS = {"auc": "AUC", "f1": "F1", "mcc": "MCC", "average_precision": "average precision", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True)
class SweepResult(Result):
    """The cells of a sweep; what they mean is said by `SweepCell`."""

    name: str
    """What was swept: a model, a kind of features."""
    config: SweepConfig
    """What was fitted and how it was scored."""
    cells: tuple[SweepCell, ...]
    """Every probe, matrix after matrix."""

    @cached_property
    def _found(self) -> dict[tuple[str, str, str, int], SweepCell]:
        return {(cell.problem, cell.matrix, cell.method, 0 if cell.method == DENSE else cell.k): cell for cell in self.cells}

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrices, in order."""
        return tuple(dict.fromkeys(cell.matrix for cell in self.cells))

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems, in order."""
        return tuple(dict.fromkeys(cell.problem for cell in self.cells))

    def cell(self, problem: str, matrix: str, *, k: int | None, ranking: str | None = None) -> SweepCell:
        """One cell; k None is the dense probe; ranking is by default the first. Raises ConfigError for one that was not swept."""
        method = DENSE if k is None else ranking or self.config.rankings[0]
        key = (problem, matrix, method, k or 0)
        if key not in self._found:
            known = f"problems {', '.join(self.problems)}; matrices {', '.join(self.matrices)}; ks {list(self.config.ks)}"
            raise ConfigError(
                f"no cell for problem {problem!r}, matrix {matrix!r}, {method}, k={k} in sweep {self.name!r}, which has {known}"
            )
        return self._found[key]

    def best(self, problem: str, *, k: int | None, ranking: str | None = None, metric: str = "auc") -> SweepCell:
        """The cell of the matrix with the highest score on the validation folds, the first of equals; k None is the dense probe.

        The test documents have no part in the choice, so its test score is not the luckiest of many.
        """
        _check_metric(metric)
        cells = [self.cell(problem, matrix, k=k, ranking=ranking) for matrix in self.matrices]
        return cells[int(np.argmax([cell.validation[metric] for cell in cells]))]

    def best_layer(self, *, k: int | None, problems: Sequence[str] | None = None, ranking: str | None = None, metric: str = "auc") -> str:
        """The matrix with the highest mean validation score over the problems, all of them by default."""
        _check_metric(metric)
        means = [
            np.mean([self.cell(problem, matrix, k=k, ranking=ranking).validation[metric] for problem in problems or self.problems])
            for matrix in self.matrices
        ]
        return self.matrices[int(np.argmax(means))]

    def estimate(self, problem: str, matrix: str, *, k: int | None, ranking: str | None = None, metric: str = "auc") -> Estimate:
        """A test score with its interval and null."""
        _check_metric(metric)
        return getattr(self.cell(problem, matrix, k=k, ranking=ranking).test, metric)

    def table(self, problem: str | None = None, *, ranking: str | None = None, metric: str = "auc") -> Table:
        """One row per matrix: the test score at every k, then the dense probe, and what shuffled labels and random coordinates give at the
        largest k. For one problem, or the mean over all. The last column marks the matrix that validation prefers at the largest k.
        """
        problems = self._problems(problem)
        k_max, dense, random = max(self.config.ks), self._has(DENSE), self._has(RANDOM)
        preferred = self.best_layer(k=k_max, problems=problems, ranking=ranking, metric=metric)
        columns = ["matrix", "d", *(f"k={k}" for k in self.config.ks), *(["dense"] if dense else [])]
        columns += ["shuffled labels", *([RANDOM] if random else []), "best by validation"]
        rows: list[tuple[Cell, ...]] = []
        for matrix in self.matrices:
            d = self.cell(problems[0], matrix, k=k_max, ranking=ranking).d
            values: list[Cell] = [self._mean(problems, matrix, k, ranking, metric) for k in (*self.config.ks, *([None] if dense else []))]
            values.append(self._null(problems, matrix, k_max, ranking, metric))
            if random:
                values.append(self._mean(problems, matrix, k_max, RANDOM, metric))
            rows.append((matrix, d, *values, matrix == preferred))
        subject = f"{len(problems)} problems (mean)" if len(problems) > 1 else problems[0]
        chosen = ranking or self.config.rankings[0]
        note = (
            f"Scores on test documents of probes fitted to the other documents, columns ranked by {chosen} there. Shuffled labels and random "
            f"coordinates: the same with k={k_max}, which is what chance gives. Best by validation: chosen on folds of the training documents."
        )
        return Table(f"{self.name}: {_label(metric)} of {subject}", tuple(columns), tuple(rows), note)

    def best_table(self, *, ranking: str | None = None, metric: str = "auc") -> Table:
        """One row per problem and k: the matrix that validation chose, with its validation score, test score, interval, and null."""
        rows: list[tuple[Cell, ...]] = []
        for problem in self.problems:
            for k in (*self.config.ks, *([None] if self._has(DENSE) else [])):
                cell = self.best(problem, k=k, ranking=ranking, metric=metric)
                found = getattr(cell.test, metric)
                validation = cell.validation[metric]
                rows.append(
                    (
                        problem,
                        "dense" if k is None else str(k),
                        cell.matrix,
                        validation,
                        found.value,
                        found.low,
                        found.high,
                        found.null_mean,
                    )
                )
        columns = ("problem", "k", "matrix", "validation", "test", "low (95 %)", "high (95 %)", "shuffled labels")
        note = "The matrix is chosen by the validation score, on folds of the training documents; the test score had no part in it."
        return Table(f"{self.name}: best matrix by validation, {_label(metric)}", columns, tuple(rows), note)

    def figure(self, problem: str | None = None, *, ranking: str | None = None, metric: str = "auc") -> "Figure":
        """Score against layer, one line per k; the dense probe and the controls in grey. For one problem, or the mean over all."""
        problems = self._problems(problem)
        subject = problems[0] if len(problems) == 1 else f"mean of {len(problems)} problems"
        layers = layer_numbers(self.matrices)
        figure = new_figure(f"{self.name}: {subject}", "matrix" if layers is None else "layer", f"{_label(metric)} on test documents")
        x = list(self.matrices if layers is None else layers)
        k_max = max(self.config.ks)
        if self._has(DENSE):
            y = [self._mean(problems, matrix, None, ranking, metric) for matrix in self.matrices]
            figure.add_scatter(x=x, y=y, mode="lines", name="dense", line=control_line(dash="solid"))
        for i, k in enumerate(sorted(self.config.ks, reverse=True)):
            y = [self._mean(problems, matrix, k, ranking, metric) for matrix in self.matrices]
            figure.add_scatter(x=x, y=y, mode="lines+markers", name=f"k = {k}", line={"color": colour(i), "width": 2}, marker={"size": 5})
        if self._has(RANDOM):
            y = [self._mean(problems, matrix, k_max, RANDOM, metric) for matrix in self.matrices]
            figure.add_scatter(x=x, y=y, mode="lines", name=f"random, k = {k_max}", line=control_line())
        if self.config.n_shuffles:
            y = [self._null(problems, matrix, k_max, ranking, metric) for matrix in self.matrices]
            figure.add_scatter(x=x, y=y, mode="lines", name=f"shuffled, k = {k_max}", line=control_line(dash="dot"))
        return figure

    def k_figure(self, *, ranking: str | None = None, metric: str = "auc") -> "Figure":
        """Score against k, one line per problem with its interval, each k at the matrix that validation chose for it; right, all columns."""
        figure = new_figure(f"{self.name}: best layer by validation", "columns the probe reads, k", f"{_label(metric)} on test documents")
        ks = sorted(self.config.ks)
        ticks = [*map(str, ks), *(["all"] if self._has(DENSE) else [])]
        for i, problem in enumerate(self.problems):
            chosen = [self.best(problem, k=k, ranking=ranking, metric=metric) for k in (*ks, *([None] if self._has(DENSE) else []))]
            found = [getattr(cell.test, metric) for cell in chosen]
            ink = colour(i)
            edge = {"x": [*ticks, *ticks[::-1]], "y": [*(e.high for e in found), *(e.low for e in found[::-1])]}
            figure.add_scatter(
                **edge, mode="lines", fill="toself", fillcolor=band(ink), line={"width": 0}, hoverinfo="skip", showlegend=False
            )
            hover = [cell.matrix for cell in chosen]
            values = [e.value for e in found]
            figure.add_scatter(x=ticks, y=values, mode="lines+markers", name=problem, line={"color": ink, "width": 2}, text=hover)
        if self.config.n_shuffles:
            null = [
                np.mean([getattr(self.best(p, k=k, ranking=ranking, metric=metric).test, metric).null_mean for p in self.problems])
                for k in ks
            ]
            figure.add_scatter(x=ticks[: len(ks)], y=null, mode="lines", name="shuffled labels (mean)", line=control_line(dash="dot"))
        figure.update_xaxes(type="category")
        return figure

    def _problems(self, problem: str | None) -> tuple[str, ...]:
        if problem is not None and problem not in self.problems:
            raise ConfigError(f"problem must be one of {', '.join(self.problems)}, got {problem!r} (sweep {self.name!r})")
        return self.problems if problem is None else (problem,)

    def _has(self, method: str) -> bool:
        return any(cell.method == method for cell in self.cells)

    def _mean(self, problems: Sequence[str], matrix: str, k: int | None, ranking: str | None, metric: str) -> float:
        return float(np.mean([self.estimate(problem, matrix, k=k, ranking=ranking, metric=metric).value for problem in problems]))

    def _null(self, problems: Sequence[str], matrix: str, k: int, ranking: str | None, metric: str) -> float | None:
        if not self.config.n_shuffles:
            return None
        nulls = [self.estimate(problem, matrix, k=k, ranking=ranking, metric=metric).null_mean for problem in problems]
        return float(np.mean(np.array(nulls, dtype=np.float64)))


def layer_numbers(matrices: Sequence[str]) -> tuple[int, ...] | None:
    """The layer of every matrix whose name has `blocks.<layer>.`; None unless all have, each another."""
    found = [re.search(r"blocks\.(\d+)\.", name) for name in matrices]
    numbers = tuple(int(match.group(1)) for match in found if match)
    return numbers if len(numbers) == len(matrices) == len(set(numbers)) else None


def _label(metric: str) -> str:
    return LABELS.get(metric, metric)


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {metric!r} (SweepResult)")
