"""Two quivers compared, in numbers and in words.

d_i = test AUC chosen with latents - test AUC chosen without,      data set i (the mean over values of a regime)
interval: quantiles .025 and .975 of the mean of d over draws of data sets with replacement; none for a single data set
e_i = d_i - the same difference for as many arrows of noise: what latents add beyond what one more throw of the dice does
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.figures import CONTROL, band, colour, control_line, new_figure
from probes.quiver.arrows import ArrowScore, choose
from probes.results import Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Difference:
    """A mean difference of test AUC over data sets."""

    value: float
    """The mean."""
    low: float | None
    """Lower end of the 95 % interval over data sets; None for a single one."""
    high: float | None
    """Upper end of the 95 % interval over data sets; None for a single one."""

    def __str__(self) -> str:
        return f"{self.value:+.4f}" + ("" if self.low is None else f" [{self.low:+.4f}, {self.high:+.4f}]")


@dataclass(frozen=True)
class QuiverRow:
    """What was chosen on one data set under one condition, and how it did on the test rows."""

    data: str
    """Name of the data set."""
    regime: str
    """Name of the regime."""
    value: float
    """Value that varies within the regime."""
    baseline: str
    """The baseline that validation chose."""
    baseline_auc: float
    """Its test AUC."""
    chosen: str
    """The arrow that validation chose out of baselines and latents."""
    chosen_auc: float
    """Its test AUC."""
    chose_latents: bool
    """Whether that is one on latents."""
    latents: str
    """The arrow on latents that validation chose."""
    latents_auc: float
    """Its test AUC: what latents do alone."""
    noise_auc: float | None
    """Test AUC of the choice out of baselines and noise; None where none was fitted."""
    duplicate_auc: float | None
    """Test AUC of the choice out of baselines and duplicates; None where none was fitted."""


@dataclass(frozen=True)
class QuiverComparison(Result):
    """What latents add to baselines over data sets, beside what noise adds."""

    rows: tuple[QuiverRow, ...]
    """One per data set and condition."""
    added: Difference
    """Test AUC with latents among the arrows, less that without."""
    alone: Difference
    """Test AUC of the best latents by validation, less that of the best baseline."""
    noise: Difference | None
    """What as many arrows on other rows' latents add: the null of `added`."""
    duplicates: Difference | None
    """What as many repetitions of a baseline add: the null of `added` for arrows as able as a baseline."""
    excess: Difference | None
    """`added` less `noise`, data set by data set."""
    n_baselines: int
    """Baselines per data set and condition."""
    n_latents: int
    """Arrows on latents per data set and condition."""
    n_bootstrap: int
    """Draws of data sets behind each interval."""

    def statement(self) -> str:
        """What latents add, in words."""
        n_data, regimes = len({row.data for row in self.rows}), sorted({row.regime for row in self.rows})
        before = float(np.mean([row.baseline_auc for row in self.rows]))
        chosen = [row for row in self.rows if row.chose_latents]
        rose, fell = (sum(sign * (row.chosen_auc - row.baseline_auc) > 0 for row in chosen) for sign in (1, -1))
        sets = f"{n_data} data set{'s' if n_data > 1 else ''}"
        sentences = [
            f"On {sets} ({', '.join(regimes)}; {len(self.rows)} choice{'s' if len(self.rows) > 1 else ''}), adding {self.n_latents} probes on "
            f"latents to {self.n_baselines} baselines changes the test AUC by {self.added}, from {before:.4f}.",
            f"Validation chose latents in {len(chosen)} of {len(self.rows)}; the test AUC then rose in {rose} and fell in {fell}.",
            f"Latents alone differ from the baselines by {self.alone}.",
        ]
        if self.noise is not None and self.duplicates is not None:
            sentences.append(
                f"As many probes on other rows' latents change it by {self.noise}, as many duplicates of a baseline by {self.duplicates}."
            )
        return " ".join([*sentences, self._verdict()])

    def _verdict(self) -> str:
        judged = self.excess if self.excess is not None else self.added
        beyond = " beyond what noise does" if self.excess is not None else ""
        if judged.low is None or judged.high is None:
            return "One data set has no interval over data sets: this says nothing about others."
        if judged.low > 0:
            return f"So latents add to what the baselines read{beyond}: {judged}."
        if judged.high < 0:
            return f"So latents take away{beyond}: {judged}."
        return f"So nothing that latents add{beyond} shows on these data: {judged}."

    def table(self) -> Table:
        """One row per condition, averaged over data sets, and one over all."""
        conditions = sorted({(row.regime, row.value) for row in self.rows})
        parts = [(*condition, [row for row in self.rows if (row.regime, row.value) == condition]) for condition in conditions]
        lines: list[tuple] = [(regime, int(value) if value > 1 else value, *_summary(rows)) for regime, value, rows in parts]
        if len(lines) > 1:
            lines.append(("all", None, *_summary(self.rows)))
        columns = (
            "regime",
            "value",
            "data sets",
            "baselines",
            "with latents",
            "added",
            "by noise",
            "by duplicates",
            "latents alone",
            "chose latents",
        )
        return Table("Test AUC of what validation chooses, with and without latents", columns, tuple(lines), self.statement())

    def choices(self) -> Table:
        """How often validation chose each arrow, out of the baselines and out of all."""
        before, after = Counter(row.baseline for row in self.rows), Counter(row.chosen for row in self.rows)
        names = sorted({*before, *after}, key=lambda name: (-before[name] - after[name], name))
        return Table(
            "What validation chose", ("arrow", "of baselines", "of all"), tuple((name, before[name], after[name]) for name in names)
        )

    def details(self) -> Table:
        """One row per data set and condition."""
        columns = ("data", "regime", "value", "baseline", "its AUC", "chosen", "chosen AUC", "added", "latents alone")
        rows = [
            (
                r.data,
                r.regime,
                int(r.value) if r.value > 1 else r.value,
                r.baseline,
                r.baseline_auc,
                r.chosen,
                r.chosen_auc,
                r.chosen_auc - r.baseline_auc,
                r.latents_auc,
            )
            for r in self.rows
        ]
        return Table("What validation chose on each data set", columns, tuple(rows))

    def figure(self) -> "Figure":
        """Test AUC against the regime's value where there are several values, else `scatter()`."""
        conditions = {(row.regime, row.value) for row in self.rows}
        regimes = sorted({regime for regime, _ in conditions})
        return self.scatter() if len(conditions) == len(regimes) else self._curves(regimes)

    def scatter(self) -> "Figure":
        """One point per data set and condition: baselines alone to the right, with latents upwards, what noise does in grey."""
        figure = new_figure("What latents add, data set by data set", "test AUC, baselines", "test AUC, baselines and latents", height=520)
        every = [auc for row in self.rows for auc in (row.baseline_auc, row.chosen_auc, row.noise_auc) if auc is not None]
        ends = [min(every) - 0.02, max(every) + 0.02]
        figure.add_scatter(x=ends, y=ends, mode="lines", line=control_line(), name="no difference", hoverinfo="skip")
        noisy = [row for row in self.rows if row.noise_auc is not None]
        if noisy:
            marker = {"color": CONTROL, "symbol": "x-thin-open", "size": 8}
            x, y = [row.baseline_auc for row in noisy], [row.noise_auc for row in noisy]
            figure.add_scatter(x=x, y=y, mode="markers", name="noise in place of latents", marker=marker)
        for i, (label, picked) in enumerate((("a baseline chosen", False), ("latents chosen", True))):
            rows = [row for row in self.rows if row.chose_latents == picked]
            figure.add_scatter(
                x=[row.baseline_auc for row in rows],
                y=[row.chosen_auc for row in rows],
                mode="markers",
                name=label,
                text=[f"{row.data}: {row.baseline} → {row.chosen}" for row in rows],
                marker={"color": colour(i), "size": 9, "opacity": 0.8},
            )
        return figure

    def _curves(self, regimes: Sequence[str]) -> "Figure":
        figure = new_figure("Test AUC of what validation chooses", f"value ({', '.join(regimes)})", "test AUC, mean over data sets")
        if regimes == ["scarce"]:
            figure.update_xaxes(type="log", title="training rows", dtick=0.30102999566398120)
        lines: list[tuple[str, Callable[[QuiverRow], float | None], str | None]] = [
            ("with noise", lambda row: row.noise_auc, None),
            ("baselines", lambda row: row.baseline_auc, colour(0)),
            ("baselines and latents", lambda row: row.chosen_auc, colour(1)),
            ("latents alone", lambda row: row.latents_auc, colour(2)),
        ]
        for regime in regimes:
            values = sorted({row.value for row in self.rows if row.regime == regime})
            for label, of, ink in lines:
                aucs = [[of(row) for row in self.rows if (row.regime, row.value) == (regime, value)] for value in values]
                if any(auc is None for part in aucs for auc in part):
                    continue
                means = [float(np.mean(part)) for part in aucs]  # type: ignore[arg-type]
                errors = [float(np.std(part) / np.sqrt(len(part))) for part in aucs]  # type: ignore[arg-type]
                line = control_line() if ink is None else {"color": ink, "dash": "dot" if label == "latents alone" else "solid"}
                name = label if len(regimes) == 1 else f"{regime}: {label}"
                if ink is not None and max(errors) > 0:
                    edge = [m + e for m, e in zip(means, errors, strict=True)] + [m - e for m, e in zip(means, errors, strict=True)][::-1]
                    figure.add_scatter(
                        x=values + values[::-1],
                        y=edge,
                        mode="lines",
                        fill="toself",
                        fillcolor=band(ink),
                        line={"width": 0},
                        showlegend=False,
                        hoverinfo="skip",
                    )
                figure.add_scatter(x=values, y=means, mode="lines+markers", name=name, line=line, marker={"size": 5})
        return figure


def compare_quivers(scores: Sequence[ArrowScore], *, n_bootstrap: int = 2000, seed: int = 0) -> QuiverComparison:
    """What latents add over the data sets and conditions of `scores`, which hold baselines and latents, noise and duplicates if any, for each.

    Raises ConfigError for conditions with other numbers of arrows, or without baselines or latents.
    """
    if n_bootstrap < 1:
        raise ConfigError(f"n_bootstrap must be at least 1, got {n_bootstrap} (compare_quivers)")
    cases: dict[tuple[str, str, float], dict[str, list[ArrowScore]]] = {}
    for score in scores:
        roles = cases.setdefault((score.data, score.regime, score.value), {"baseline": [], "latents": [], "noise": [], "duplicate": []})
        roles[score.role].append(score)
    counts = {tuple(len(found) for found in roles.values()) for roles in cases.values()}
    if len(counts) != 1 or min(next(iter(counts))[:2]) == 0:
        found = ", ".join(str(count) for count in sorted(counts)) or "none"
        raise ConfigError(
            f"scores must hold the same arrows for every data set and condition, with baselines and latents, got (baselines, latents, noise, "
            f"duplicates): {found} (compare_quivers)"
        )
    rows = tuple(_row(*case, roles) for case, roles in cases.items())
    n_baselines, n_latents, n_noise, n_duplicates = next(iter(counts))

    def difference(of: Callable[[QuiverRow], float]) -> Difference:
        return _difference(rows, of, n_bootstrap, seed)

    return QuiverComparison(
        rows=rows,
        added=difference(lambda row: row.chosen_auc - row.baseline_auc),
        alone=difference(lambda row: row.latents_auc - row.baseline_auc),
        noise=difference(lambda row: (row.noise_auc or 0.0) - row.baseline_auc) if n_noise else None,
        duplicates=difference(lambda row: (row.duplicate_auc or 0.0) - row.baseline_auc) if n_duplicates else None,
        excess=difference(lambda row: row.chosen_auc - (row.noise_auc or 0.0)) if n_noise else None,
        n_baselines=n_baselines,
        n_latents=n_latents,
        n_bootstrap=n_bootstrap,
    )


def _row(data: str, regime: str, value: float, roles: dict[str, list[ArrowScore]]) -> QuiverRow:
    base = roles["baseline"]
    baseline, chosen, alone = choose(base), choose([*base, *roles["latents"]]), choose(roles["latents"])
    noise, duplicate = (choose([*base, *roles[role]]).test_auc if roles[role] else None for role in ("noise", "duplicate"))
    return QuiverRow(
        data=data,
        regime=regime,
        value=value,
        baseline=baseline.arrow,
        baseline_auc=baseline.test_auc,
        chosen=chosen.arrow,
        chosen_auc=chosen.test_auc,
        chose_latents=chosen.role == "latents",
        latents=alone.arrow,
        latents_auc=alone.test_auc,
        noise_auc=noise,
        duplicate_auc=duplicate,
    )


def _difference(rows: Sequence[QuiverRow], of: Callable[[QuiverRow], float], n_bootstrap: int, seed: int) -> Difference:
    names, number = np.unique([row.data for row in rows], return_inverse=True)
    values = np.array([of(row) for row in rows])
    per_data = np.bincount(number, values) / np.bincount(number)
    if len(names) == 1:
        return Difference(float(per_data[0]), None, None)
    picks = np.random.default_rng(seed).integers(0, len(names), (n_bootstrap, len(names)))
    low, high = np.quantile(per_data[picks].mean(1), INTERVAL)
    return Difference(float(per_data.mean()), float(low), float(high))


def _summary(rows: Sequence[QuiverRow]) -> tuple[int, float, float, float, float | None, float | None, float, float]:
    def mean(of: Callable[[QuiverRow], float | None]) -> float | None:
        found = [of(row) for row in rows]
        return None if any(value is None for value in found) else float(np.mean(found))  # type: ignore[arg-type]

    base, chosen, alone = (float(np.mean([getattr(row, name) for row in rows])) for name in ("baseline_auc", "chosen_auc", "latents_auc"))
    noise, duplicate = mean(lambda row: row.noise_auc), mean(lambda row: row.duplicate_auc)
    return (
        len({row.data for row in rows}),
        base,
        chosen,
        chosen - base,
        None if noise is None else noise - base,
        None if duplicate is None else duplicate - base,
        alone,
        float(np.mean([row.chose_latents for row in rows])),
    )
