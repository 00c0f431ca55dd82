"""Dictionaries side by side: a table with a column for each, and the frontiers of sparsity against what is lost.

    compare({"a": report_a, "b": report_b})          a table in a notebook; `.frontiers` are figures

A dictionary is on the frontier when none of the others is at least as good in both numbers and better in one. A value is marked as the best of
its line only where its 95 % interval overlaps none of the others': the intervals are of each dictionary by itself, so overlapping ones decide
nothing, and dictionaries whose intervals overlap may still differ (the same documents were drawn for all).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae.errors import ConfigError
from sae.evaluation.batteries import Finding
from sae.evaluation.figures import Axis, Figure, Series
from sae.evaluation.headlines import HEADLINES, Better, ComparedRow, summary_lines
from sae.evaluation.report import EvalReport
from sae.evaluation.report_html import comparison_html
from sae.fingerprint import to_json

Key = tuple[str, str, str]
L0: Key = ("reconstruction", "L0", "")
FVU: Key = ("reconstruction", "FVU", "")
FRONTIERS: tuple[tuple[Key, Better], ...] = (
    (FVU, "lower"),
    (("downstream", "CE increase", ""), "lower"),
    (("downstream", "CE recovered", "mean"), "higher"),
)
"""What L0 is drawn against, as (measure, quantity, subject), and which way is better."""


@dataclass(frozen=True)
class Comparison:
    """Dictionaries side by side; a notebook shows the table."""

    names: tuple[str, ...]
    """The dictionaries, in the order given."""
    rows: tuple[ComparedRow, ...]
    """Headlines first, then every other number."""
    frontiers: tuple[Figure, ...]
    """L0 against what is lost; those that were measured on two dictionaries or more."""
    notes: tuple[str, ...]
    """What was not the same for all of them."""

    def row(self, label: str) -> ComparedRow:
        """The row of that label. Raises ConfigError saying what there is."""
        for row in self.rows:
            if row.label == label:
                return row
        raise ConfigError(f"label must be one of {', '.join(repr(row.label) for row in self.rows)}, got {label!r} (Comparison)")

    def to_json(self) -> dict[str, Any]:
        """All of it, for `from_json`."""
        return to_json(self)

    def _repr_html_(self) -> str:
        return comparison_html(self.names, self.rows, self.notes)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.names)}: {len(self.rows)} numbers)"


def compare(reports: Mapping[str, EvalReport]) -> Comparison:
    """The reports side by side. Raises ConfigError for fewer than two."""
    if len(reports) < 2:
        raise ConfigError(f"reports must be two or more, got {len(reports)} (compare)")
    drawn = [figure for key, better in FRONTIERS if (figure := frontier(reports, key, better)) is not None]
    return Comparison(tuple(reports), tuple(_rows(reports)), tuple(drawn), tuple(_notes(reports)))


def _rows(reports: Mapping[str, EvalReport]) -> list[ComparedRow]:
    of = {name: {_key(found): found for found in report.findings} for name, report in reports.items()}
    first = {line.key: line for report in reports.values() for line in summary_lines(report.findings)}
    order = {(headline.measure, headline.quantity): i for i, headline in enumerate(HEADLINES)}
    keys = sorted(first, key=lambda key: order[key[:2]])
    keys += [key for key in dict.fromkeys(key for found in of.values() for key in found) if key not in first]
    rows = []
    for key in keys:
        findings = {name: found[key] for name, found in of.items() if key in found}
        line = first.get(key)
        label = line.label if line else f"{key[1]}, {key[2]}" if key[2] else key[1]
        better: Better = line.better if line else ""
        rows.append(ComparedRow(label, better, findings, best_of(findings, better), line is not None))
    return rows


def _key(found: Finding) -> Key:
    return (found.measure, found.name, found.subject)


def best_of(findings: Mapping[str, Finding], better: Better) -> str:
    """The name whose value is best and whose interval overlaps no other's; empty where there is none, or a value without interval."""
    if not better or len(findings) < 2 or any(found.value is None or found.low is None for found in findings.values()):
        return ""
    sign = 1.0 if better == "higher" else -1.0
    ends = {name: sorted((sign * float(found.low or 0.0), sign * float(found.high or 0.0))) for name, found in findings.items()}
    best = max(findings, key=lambda name: sign * float(findings[name].value or 0.0))
    return best if all(ends[best][0] > ends[name][1] for name in findings if name != best) else ""


def _notes(reports: Mapping[str, EvalReport]) -> list[str]:
    notes = []
    for fact in ("Store", "Site", "Model", "Settings"):
        found = {name: report.facts.get(fact, "none") for name, report in reports.items()}
        if len(set(found.values())) > 1:
            notes.append(f"{fact} differs: " + "; ".join(f"{name}: {value}" for name, value in found.items()))
    for caveat in dict.fromkeys(caveat for report in reports.values() for caveat in report.caveats):
        names = [name for name, report in reports.items() if caveat in report.caveats]
        notes.append(caveat if len(names) == len(reports) else f"{', '.join(names)}: {caveat}")
    return notes


def frontier(reports: Mapping[str, EvalReport], key: Key, better: Better) -> Figure | None:
    """L0 of every dictionary against another of its numbers, with the Pareto frontier; None where fewer than two have both."""
    points = {}
    for name, report in reports.items():
        found = {_key(each): each for each in report.findings}
        if L0 in found and key in found and found[L0].value is not None and found[key].value is not None:
            points[name] = (found[L0], found[key])
    if len(points) < 2:
        return None
    l0 = {name: float(pair[0].value or 0.0) for name, pair in points.items()}
    value = {name: float(pair[1].value or 0.0) for name, pair in points.items()}
    shown = next(iter(points.values()))[1]
    marks = [_point(name, l0[name], found) for name, (_, found) in points.items()]
    first, last = min(l0.values()), max(l0.values())
    dense = _dense(reports, first, last) if key == FVU else []
    series = (*dense, *_families(reports, l0, value), *_pareto(l0, value, better), *marks)
    label = f"{shown.name}, {shown.subject}" if shown.subject else shown.name
    positive = min(v for s in series for v in (*s.y, *s.low)) > 0
    x = Axis("L0", "active latents a token", "log" if first > 0 else "linear")
    y = Axis(label, shown.unit, "log" if key == FVU and positive else "linear")
    asked = (shown.formula or shown.meaning).rstrip(".")
    caption = f"{asked}. {'Lower' if better == 'lower' else 'Higher'} is better; bars are 95 % intervals over documents."
    if any(s.name == "Pareto" for s in series):
        caption += " Pareto: through the dictionaries that no other beats."
    if dense:
        caption += " Dashed: the first k principal components of the store's activations, which need k real coefficients a token."
    return Figure(f"L0 against {label}", x, y, series, caption=caption)


def _point(name: str, at: float, found: Finding) -> Series:
    bounds = ((), ()) if found.low is None or found.high is None else ((found.low,), (found.high,))
    return Series(name, (at,), (float(found.value or 0.0),), *bounds, mark="points", labels=(name,), named=True)


def _pareto(l0: Mapping[str, float], value: Mapping[str, float], better: Better) -> list[Series]:
    """The line through the dictionaries that no other beats, where they are two or more."""
    names = pareto(l0, value, better)
    if len(names) < 2:
        return []
    return [Series("Pareto", tuple(l0[name] for name in names), tuple(value[name] for name in names))]


def pareto(l0: Mapping[str, float], value: Mapping[str, float], better: Better) -> list[str]:
    """The names that no other beats, by L0: none is at least as sparse and as good, and better in one of the two."""
    sign = -1.0 if better == "higher" else 1.0
    kept = [
        name
        for name in l0
        if not any(
            l0[other] <= l0[name] and sign * value[other] <= sign * value[name] and (l0[other], value[other]) != (l0[name], value[name])
            for other in l0
        )
    ]
    return sorted(kept, key=lambda name: (l0[name], sign * value[name]))


def _families(reports: Mapping[str, EvalReport], l0: Mapping[str, float], value: Mapping[str, float]) -> list[Series]:
    """Dictionaries of one width and kind at two or more sparsities, joined."""
    found: dict[tuple[str, int], list[str]] = {}
    for name in l0:
        found.setdefault((reports[name].kind, reports[name].d_sae), []).append(name)
    lines = []
    for (_, d_sae), names in found.items():
        if len({l0[name] for name in names}) > 1:
            joined = sorted(names, key=lambda name: l0[name])
            lines.append(Series(f"{d_sae:,} latents", tuple(l0[name] for name in joined), tuple(value[name] for name in joined)))
    return lines


def _dense(reports: Mapping[str, EvalReport], first: float, last: float) -> list[Series]:
    """FVU of principal components where the dictionaries are; of one store only."""
    curves = {report.dense for report in reports.values()}
    if len(curves) != 1:
        return []
    curve: Sequence[tuple[int, float]] = [(k, fvu) for k, fvu in next(iter(curves)) if first / 2 <= k <= 2 * last]
    return [Series("PCA", tuple(k for k, _ in curve), tuple(fvu for _, fvu in curve), role="null")] if len(curve) > 1 else []
