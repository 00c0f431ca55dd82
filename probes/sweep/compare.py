"""Several sweeps side by side: models, or kinds of features of one model (neurons, latents of this and that dictionary).

    sparsity = smallest k with  s(k) - chance >= share (s(dense) - chance)         s: score;  chance: 1/2 for AUC and balanced accuracy, else 0

The wider of two matrices gives a ranking more columns to be lucky with; shuffled labels and random coordinates pay that price too and stand
beside every score (Gurnee et al., 2023, arXiv 2305.01610, section 3; Kantamneni et al., 2025, arXiv 2502.16681).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.figures import colour, control_line, new_figure
from probes.results import Cell, Result, Table
from probes.sweep.config import DENSE
from probes.sweep.result import LABELS, SweepResult, layer_numbers
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CHANCE = {"auc": 0.5, "balanced_accuracy": 0.5}


@dataclass(frozen=True)
class SweepComparison(Result):
    """Sweeps of the same problems with the same configuration."""

    sweeps: tuple[SweepResult, ...]
    """What is compared, each under its name."""
    metric: str
    """The score they are compared by."""

    def table(self) -> Table:
        """One row per problem and sweep: the test score at every k, each at the layer validation chose for it, dense, and shuffled labels
        at the largest k; last the means over problems.
        """
        ks = self.sweeps[0].config.ks
        columns = ("problem", "features", "d", *(f"k={k}" for k in ks), "dense", "shuffled labels", "best layer by validation")
        rows: list[tuple[Cell, ...]] = []
        numbers: dict[str, list[list[float]]] = {each.name: [] for each in self.sweeps}
        for problem in self.sweeps[0].problems:
            for each in self.sweeps:
                cells = [each.best(problem, k=k, metric=self.metric) for k in (*ks, None)]
                values = [getattr(cell.test, self.metric).value for cell in cells]
                null = getattr(cells[len(ks) - 1].test, self.metric).null_mean
                numbers[each.name].append([*values, np.nan if null is None else null])
                rows.append((problem, each.name, cells[-2].d, *values, null, cells[-2].matrix))
        for name, found in numbers.items():
            rows.append(("mean", name, None, *np.mean(found, axis=0).tolist(), None))
        note = (
            "Test documents; the layer is chosen for every k on folds of the training documents, and the last column is that of the largest "
            "k. Shuffled labels: the same probe at the largest k on labels without meaning."
        )
        return Table(f"{LABELS.get(self.metric, self.metric)} of {len(self.sweeps)} kinds of features", columns, tuple(rows), note)

    def figure(self) -> "Figure":
        """Mean score over the problems against k, one line per sweep, its dense probe at the right end; shuffled labels dotted."""
        label = LABELS.get(self.metric, self.metric)
        problems = self.sweeps[0].problems
        figure = new_figure(
            f"{len(problems)} problems, best layer by validation", "columns the probe reads, k", f"mean {label} on test documents"
        )
        ks = sorted(self.sweeps[0].config.ks)
        ticks = [*map(str, ks), "all"]
        for i, each in enumerate(self.sweeps):
            chosen = [[getattr(each.best(p, k=k, metric=self.metric).test, self.metric) for p in problems] for k in (*ks, None)]
            y = [float(np.mean([e.value for e in row])) for row in chosen]
            figure.add_scatter(x=ticks, y=y, mode="lines+markers", name=each.name, line={"color": colour(i), "width": 2})
            if each.config.n_shuffles:
                null = [float(np.mean([e.null_mean for e in row])) for row in chosen[:-1]]
                line = control_line(dash="dot") | {"color": colour(i)}
                figure.add_scatter(x=ticks[:-1], y=null, mode="lines", name=f"{each.name}, shuffled", line=line)
        figure.update_xaxes(type="category")
        return figure

    def sparsity(self, *, share: float = 0.95) -> Table:
        """One row per sweep, layer and problem: the smallest k that reaches `share` of the dense score above chance; a dash where none does."""
        _check_share(share)
        rows = [
            (each.name, matrix, problem, sparsity(each, problem, matrix, share=share, metric=self.metric))
            for each in self.sweeps
            for matrix in each.matrices
            for problem in each.problems
        ]
        title = f"Columns needed for {share:.0%} of the dense probe's {LABELS.get(self.metric, self.metric)} above chance"
        return Table(title, ("features", "matrix", "problem", "k"), tuple(rows), f"Out of k = {list(self.sweeps[0].config.ks)}.")

    def sparsity_figure(self, *, share: float = 0.95) -> "Figure":
        """The columns needed, against the layer as a share of the last one swept: the geometric mean over problems, one line per sweep. A
        problem for which no k suffices counts as all columns.
        """
        _check_share(share)
        title = f"Columns needed for {share:.0%} of the dense probe's {LABELS.get(self.metric, self.metric)} above chance"
        figure = new_figure(title, "depth (share of the layers)", "k (geometric mean over problems)")
        widest = 1
        for i, each in enumerate(self.sweeps):
            y, d = [], 1
            for matrix in each.matrices:
                d = each.cell(each.problems[0], matrix, k=None).d
                ks = [sparsity(each, problem, matrix, share=share, metric=self.metric) or d for problem in each.problems]
                y.append(float(np.exp(np.mean(np.log(ks)))))
            layers = layer_numbers(each.matrices) or tuple(range(len(y)))
            x = np.array(layers) / max(1, *layers)
            line = {"color": colour(i), "width": 2}
            figure.add_scatter(x=x.tolist(), y=y, mode="lines+markers", name=each.name, line=line, text=list(each.matrices))
            widest = max(widest, d)
        ticks = [k for k in sorted(self.sweeps[0].config.ks) if k < widest] + [widest]
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{k:,}" for k in ticks], range=[-0.1, float(np.log10(widest)) + 0.1])
        return figure


def compare_sweeps(sweeps: Sequence[SweepResult], *, metric: str = "auc") -> SweepComparison:
    """The sweeps side by side. Raises ConfigError unless they have different names, the same problems and configuration, and dense probes."""
    if not sweeps or len({each.name for each in sweeps}) < len(sweeps):
        raise ConfigError(f"sweeps must hold at least one, with different names, got {[each.name for each in sweeps]} (compare_sweeps)")
    first = sweeps[0]
    for each in sweeps:
        if each.problems != first.problems or each.config != first.config:
            raise ConfigError(
                f"sweeps must have the same problems and configuration, {each.name!r} differs from {first.name!r}: sweep both alike"
            )
        if not any(cell.method == DENSE for cell in each.cells):
            raise ConfigError(f"sweep {each.name!r} has no dense probes to compare with: sweep with dense=True (compare_sweeps)")
    first.estimate(first.problems[0], first.matrices[0], k=None, metric=metric)
    return SweepComparison(tuple(sweeps), metric)


def sparsity(result: SweepResult, problem: str, matrix: str, *, share: float = 0.95, metric: str = "auc") -> int | None:
    """The smallest k of the sweep that reaches `share` of the dense score above chance; None where none does."""
    _check_share(share)
    chance = CHANCE.get(metric, 0.0)
    needed = chance + share * (result.estimate(problem, matrix, k=None, metric=metric).value - chance)
    for k in sorted(result.config.ks):
        if result.estimate(problem, matrix, k=k, metric=metric).value >= needed:
            return k
    return None


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"share must be in (0, 1], got {share} (sparsity)")
