"""Does a direction found on one data set read another? A matrix of AUCs, the cosines of the directions, and three controls.

    auc[r, a, b] = AUC of reader r, fitted to training documents of a, on test documents of b;     a = b: held-out documents of the same set
    shuffled     the same with the labels of a shuffled: 1/2 on average, with the spread that one direction has
    random       uniformly random directions, turned to the labels of a: far from 1/2 where classes differ along many axes
    baseline     AUC on the same test rows of a score the caller gives, such as the probability of the answer; what a reader adds is the rest

A random direction has |cos| near sqrt(2 / (pi d)) with any other. Orgad et al., "LLMs Know More Than They Show", 2024, arXiv 2410.02707,
section 4, compare truthfulness probes across tasks so, less a baseline from the logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import clone

from probes.directions.base import LabelledRows, fit_reader
from probes.directions.labelled import RandomDirection
from probes.directions.scoring import auc, auc_interval, expected_cosine, holdout, shuffled, summary
from probes.figures import new_figure
from probes.results import Cell, Result, Table
from probes.validation import Fold
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class Transfer(Result):
    """Readers fitted to each data set and tested on each. Axes: readers, fitted to, tested on."""

    readers: tuple[str, ...]
    """Names of the readers."""
    data_sets: tuple[str, ...]
    """Names of the data sets."""
    auc: Float[np.ndarray, "readers sets sets"]
    """AUC on test documents."""
    low: Float[np.ndarray, "readers sets sets"]
    """Lower end of its 95 % interval over test documents."""
    high: Float[np.ndarray, "readers sets sets"]
    """Upper end."""
    shuffled: Float[np.ndarray, "n_shuffles readers sets sets"]
    """AUC of fits to shuffled labels."""
    random: Float[np.ndarray, "n_random sets sets"]
    """AUC of random directions turned to the labels of the first set."""
    cosine: Float[np.ndarray, "readers sets sets"]
    """Cosine of the directions fitted to two sets."""
    baseline: Float[np.ndarray, " sets"]
    """AUC of the caller's score on each set's test documents; NaN where none was given."""
    directions: Float[np.ndarray, "readers sets d"]
    """The directions, fitted to training documents."""

    @property
    def expected_cosine(self) -> float:
        """Mean |cosine| of two random directions of that width."""
        return expected_cosine(self.directions.shape[2])

    @property
    def gain(self) -> Float[np.ndarray, "readers sets sets"]:
        """AUC less the baseline of the set tested on; NaN where there is none."""
        return self.auc - self.baseline

    def table(self) -> Table:
        rows: list[tuple[Cell, ...]] = []
        with_baseline = bool(np.isfinite(self.baseline).any())
        for r, a, b in np.ndindex(*self.auc.shape):
            at = (r, a, b)
            cells: tuple[Cell, ...] = (
                self.readers[r],
                self.data_sets[a],
                self.data_sets[b],
                *(float(m[at]) for m in (self.auc, self.low, self.high)),
            )
            cells += (*summary(self.shuffled[:, r, a, b]), summary(self.random[:, a, b])[0], float(self.cosine[at]))
            rows.append((*cells, float(self.gain[at])) if with_baseline else cells)
        columns = ("reader", "fitted to", "tested on", "AUC", "low", "high", "shuffled", "shuffled sd", "random", "cosine")
        note = (
            "AUC on test documents, 95 % interval over them; shuffled: labels of the first set shuffled; random: random directions turned to its labels. "
            f"Cosine of the directions of both sets; random ones have |cosine| {self.expected_cosine:.3f} on average."
        )
        return Table("Transfer of directions", (*columns, *(("AUC - baseline",) if with_baseline else ())), tuple(rows), note)

    def figure(self) -> "Figure":
        return self.heatmap(self.readers[0])

    def heatmap(self, reader: str, *, less_baseline: bool = False) -> "Figure":
        """The matrix of one reader, AUC or its gain over the baseline. Raises ConfigError for an unknown reader, or no baseline."""
        import plotly.graph_objects as go

        if reader not in self.readers:
            raise ConfigError(f"reader must be one of {', '.join(self.readers)}, got {reader!r} (Transfer)")
        if less_baseline and not np.isfinite(self.baseline).any():
            raise ConfigError("less_baseline needs a baseline, none was given to transfer (Transfer)")
        r = self.readers.index(reader)
        values = self.gain[r] if less_baseline else self.auc[r]
        null = self.shuffled[:, r].mean(0) if len(self.shuffled) else np.full(values.shape, np.nan)
        text = [
            [
                f"{value:.2f}" + (f"<br>null {chance:.2f}" if chance == chance and not less_baseline else "")
                for value, chance in zip(*lines, strict=True)
            ]
            for lines in zip(values, null, strict=True)
        ]
        limits = {"zmid": 0.0, "zmin": -0.5, "zmax": 0.5} if less_baseline else {"zmid": 0.5, "zmin": 0.0, "zmax": 1.0}
        figure = new_figure(
            f"{reader}: {'AUC less baseline' if less_baseline else 'AUC'} on held-out documents", "tested on", "fitted to", height=460
        )
        bar = {"title": "AUC − baseline" if less_baseline else "AUC"}
        figure.add_trace(
            go.Heatmap(
                z=values, x=self.data_sets, y=self.data_sets, text=text, texttemplate="%{text}", colorscale="RdBu_r", colorbar=bar, **limits
            )
        )
        figure.update_yaxes(autorange="reversed", automargin=True)
        return figure


def transfer(
    readers: Mapping[str, Any],
    data_sets: Sequence[LabelledRows],
    *,
    baseline: Mapping[str, Shaped[np.ndarray, "_"]] | None = None,
    test_share: float = 0.3,
    shared_groups: bool = False,
    n_shuffles: int = 10,
    n_random: int = 10,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Transfer:
    """Fit every reader to the training documents of every data set, and test it on the test documents of all.

    baseline: data set -> one score per row, greater for label 1. shared_groups: group numbers mean the same document in all sets, and a
    document is on one side in all of them; otherwise each set is split by itself. Raises ConfigError for sets of different widths or equal
    names, a baseline that does not fit, or a split that lacks a class.
    """
    _check(readers, data_sets, baseline or {})
    folds = _folds(data_sets, test_share, shared_groups, seed)
    tests = [rows.take(fold.test) for rows, fold in zip(data_sets, folds, strict=True)]
    trains = [rows.take(fold.train) for rows, fold in zip(data_sets, folds, strict=True)]
    n, m, d = len(readers), len(data_sets), data_sets[0].X.shape[1]
    found, directions = np.empty((3, n, m, m)), np.empty((n, m, d))
    null, chance = np.empty((n_shuffles, n, m, m)), np.empty((n_random, m, m))
    for a, train in enumerate(trains):
        for r, reader in enumerate(readers.values()):
            fitted = fit_reader(clone(reader), train)
            directions[r, a] = fitted.direction_
            for b, test in enumerate(tests):
                found[:, r, a, b] = auc_interval(fitted.decision_function(test.X), test.y, test.groups, n_bootstrap=n_bootstrap, seed=seed)
            for i in range(n_shuffles):
                null[i, r, a] = _aucs(fit_reader(clone(reader), shuffled(train, seed=seed + 1 + i)), tests)
        for i in range(n_random):
            chance[i, a] = _aucs(RandomDirection(random_state=seed + i).fit(train.X, train.y), tests)
    scores = [(baseline or {}).get(rows.name) for rows in data_sets]
    compared = [
        np.nan if score is None else auc(np.asarray(score, dtype=np.float64)[fold.test], test.y)
        for score, fold, test in zip(scores, folds, tests, strict=True)
    ]
    return Transfer(
        readers=tuple(readers),
        data_sets=tuple(rows.name for rows in data_sets),
        auc=found[0],
        low=found[1],
        high=found[2],
        shuffled=null,
        random=chance,
        cosine=np.einsum("rad,rbd->rab", directions, directions),
        baseline=np.array(compared, dtype=np.float64),
        directions=directions,
    )


def _aucs(fitted: Any, tests: Sequence[LabelledRows]) -> np.ndarray:
    return np.array([auc(fitted.decision_function(test.X), test.y) for test in tests])


def _folds(data_sets: Sequence[LabelledRows], test_share: float, shared_groups: bool, seed: int) -> list[Fold]:
    if not shared_groups:
        return [holdout(rows, test_share=test_share, seed=seed) for rows in data_sets]
    if not 0 < test_share < 1:
        raise ConfigError(f"test_share must be in (0, 1), got {test_share} (transfer)")
    documents = np.unique(np.concatenate([rows.groups for rows in data_sets]))
    held_out = np.random.default_rng(seed).permutation(documents)[: max(1, round(test_share * len(documents)))]
    folds = []
    for rows in data_sets:
        tested = np.isin(rows.groups, held_out)
        fold = Fold(np.flatnonzero(~tested), np.flatnonzero(tested))
        for side, part in zip(fold._fields, fold, strict=True):
            if len(np.unique(rows.y[part])) < 2:
                raise ConfigError(f"data set {rows.name!r} must have both classes in {side}; change seed or test_share, or add documents")
        folds.append(fold)
    return folds


def _check(readers: Mapping[str, Any], data_sets: Sequence[LabelledRows], baseline: Mapping[str, Any]) -> None:
    if not readers or not data_sets:
        raise ConfigError(f"readers and data_sets must hold at least one each, got {len(readers)} and {len(data_sets)} (transfer)")
    names = [rows.name for rows in data_sets]
    if len(set(names)) < len(names):
        raise ConfigError(f"data sets must have different names, got {names} (transfer)")
    widths = {rows.name: rows.X.shape[1] for rows in data_sets}
    if len(set(widths.values())) > 1:
        raise ConfigError(f"data sets must have one width, got {widths} (transfer); take all from one site")
    for name, score in baseline.items():
        if name not in names:
            raise ConfigError(f"baseline must name data sets ({', '.join(names)}), got {name!r} (transfer)")
        n = len(data_sets[names.index(name)])
        if len(score) != n or not np.isfinite(score).all():
            raise ConfigError(f"baseline[{name!r}] must be {n} finite scores, one per row, got {len(score)} (transfer)")
