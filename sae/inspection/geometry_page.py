"""The page of a geometry battery: for each measure a table of its findings and its figures, as a report that `write_report` writes.

Everything on the page is in `findings.json`, which `write_findings` writes beside it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae.evaluation.batteries import BATTERIES, Finding, Group, Results
from sae.evaluation.batteries.findings import smallest_p
from sae.fingerprint import to_json
from sae.inspection.format import number, percent
from sae.inspection.report_data import Column, Fact, ReportData, Row, Section, Table
from sae.storage import write_json

FINDINGS = "findings.json"
FOREMOST = 12
"""Findings named in the overview."""
MANY = 24
"""Numbers up to which a measure shows all of them first; of more, a row for each quantity, and all of them folded up."""


def geometry_report(results: Results, *, title: str, facts: Sequence[Fact]) -> ReportData:
    """The report: what stands out first, then every measure with its table and figures, then what was left out."""
    sections = [_overview(results)]
    for battery in dict.fromkeys(group.battery for group in results.groups):
        groups = [group for group in results.groups if group.battery == battery]
        sections += [_section(group, BATTERIES[battery].title if i == 0 else "") for i, group in enumerate(groups)]
    if results.left_out:
        rows = tuple(Row((name,), note=reason) for name, reason in results.left_out)
        table = Table("What could not be measured", (Column("measure"),), rows, note_heading="Why")
        sections.append(Section("Left out", tables=(table,)))
    footer = (f"Samples and nulls are drawn with seed {results.seed}.", "Every number is in findings.json, beside the folder of this page.")
    return ReportData(title, rule(results), tuple(facts), tuple(sections), footer=footer)


def rule(results: Results) -> str:
    """The rule that says what stands out, in a sentence."""
    n = sum(found.p is not None for found in results.findings)
    n_out = sum(found.stands_out == "yes" for found in results.findings)
    return (
        f"{n_out} of {n} numbers that have a null stand out: Benjamini–Hochberg over all {n}, at an expected share of {percent(results.rate)} "
        "that chance alone explains."
    )


def null_text(found: Finding, *, short: bool = False) -> str:
    """The null as mean ± standard deviation and its number of draws; a dash where there is none."""
    if found.null_mean is None:
        return "–"
    spread = "" if found.null_sd is None else f" ± {number(found.null_sd, 2)}"
    draws = (
        "exact"
        if found.n_null is None and found.p is not None
        else ""
        if found.n_null is None
        else f"n={found.n_null:,}".replace(",", "\u202f")
    )
    return f"{number(found.null_mean)}{spread}" + (f" ({draws})" if draws and not short else "")


def p_text(found: Finding) -> str:
    """The p-value; `≤` where the null could not give a smaller one."""
    if found.p is None:
        return "–"
    if found.p <= 1e-12:
        return "<10⁻¹²"
    return ("≤" if found.p <= smallest_p(found) * (1 + 1e-9) else "") + number(found.p, 2)


def findings_json(results: Results, **more: Any) -> dict[str, Any]:
    """All of it as JSON: the rule, every finding, every figure, the settings and times of every measure, what was left out."""
    return {
        **more,
        "rule": {"method": "Benjamini-Hochberg", "rate": results.rate, "n": sum(found.p is not None for found in results.findings)},
        **to_json(results),
    }


def write_findings(results: Results, path: Path, **more: Any) -> None:
    """Write `findings.json`, atomically."""
    write_json(path, findings_json(results, **more))


def _overview(results: Results) -> Section:
    """What stands out, the furthest from its null first."""
    standing = [found for found in results.findings if found.stands_out == "yes"]
    undecided = sum(found.stands_out == "too few draws" for found in results.findings)
    furthest: dict[tuple[str, str], Finding] = {}
    for found in sorted(standing, key=lambda found: -(distance(found) or 0.0)):
        furthest.setdefault((found.measure, found.name), found)
    shown = list(furthest.values())[:FOREMOST]
    text = (
        "A number stands out when its p-value passes the Benjamini–Hochberg threshold over all numbers of this page that have a null. "
        "The p-value of n null draws is (1 + draws at least as extreme) / (1 + n), doubled where both sides count, so it is never below 1 / (1 + n). "
        + (
            f"Numbers beyond all their draws that would need more of these to pass are marked “too few draws”; there {_are(undecided)}. "
            if undecided
            else ""
        )
        + "Standing out says that chance, as the null has it, does not explain a number; how large an effect is, the number beside its null says."
    )
    if not standing:
        return Section("What stands out", text + "\n\nNothing stands out.")
    columns = (Column("quantity"), Column("of"), Column("value"), Column("null"), Column("distance", "null sd"))
    rows = tuple(
        Row((found.name, found.subject or None, value_cell(found), null_text(found, short=True), distance(found)), note=found.meaning)
        for found in shown
    )
    caption = "The number of each quantity that is furthest from its null" + (
        f"; {len(shown)} of {len(furthest)}." if len(furthest) > len(shown) else "."
    )
    return Section("What stands out", text, (Table("Furthest from chance", columns, rows, caption),))


def _are(n: int) -> str:
    return "is 1" if n == 1 else f"are {n}"


def distance(found: Finding) -> float | None:
    """(value - null mean) / null sd, without its sign; None where it is not defined."""
    if found.value is None or found.null_mean is None or not found.null_sd:
        return None
    return abs(found.value - found.null_mean) / found.null_sd


def value_cell(found: Finding) -> str | None:
    """The value with its unit."""
    if found.value is None:
        return None
    whole = found.value.is_integer() and 1 <= abs(found.value) < 1e6
    return number(int(found.value) if whole else found.value, 4) + (f" {found.unit}" if found.unit else "")


def _section(group: Group, battery: str) -> Section:
    order = list(dict.fromkeys(found.name for found in group.findings))
    by_quantity = [[found for found in group.findings if found.name == name] for name in order]
    settings = ", ".join(f"{name} {value}" for name, value in group.settings.items())
    took = f"{group.n_cached} of {group.n_tasks} from the cache" if group.n_cached else f"{group.seconds:.1f} s"
    notes = (*group.notes, f"Settings: {settings}. {took[0].upper()}{took[1:]}.")
    every = _every_number(by_quantity)
    if len(group.findings) <= MANY:
        tables: tuple[Table, ...] = (replace(every, notes=notes),)
    else:
        tables = _spans(by_quantity, notes), replace(every, title=f"All {len(group.findings)} numbers", folded=True)
    return Section(f"{battery}: {group.title.lower()}" if battery else group.title, group.text, tables, group.figures)


def _every_number(by_quantity: Sequence[Sequence[Finding]]) -> Table:
    columns = (Column("quantity"), Column("value"), Column("null", "mean ± sd (draws)"), Column("p"), Column("stands out"))
    several = any(found.subject for findings in by_quantity for found in findings)
    shown = columns if not several else (columns[0], Column("of"), *columns[1:])
    rows = tuple(_row(found, several=several, first=i == 0) for findings in by_quantity for i, found in enumerate(findings))
    return Table("Findings", shown, rows)


def _spans(by_quantity: Sequence[Sequence[Finding]], notes: tuple[str, ...]) -> Table:
    """A row for each quantity, from its smallest to its largest value."""
    columns = (Column("quantity"), Column("of"), Column("value"), Column("null", "mean"), Column("stand out"))
    rows = tuple(Row((found[0].name, *span(found)), note=_meaning(found[0])) for found in by_quantity)
    return Table("Findings", columns, rows, notes=notes)


def span(several: Sequence[Finding]) -> tuple[str | None, str | None, str | None, str]:
    """Many findings of one quantity in four cells: how many, values, means of the nulls, how many stand out."""
    values = sorted((found for found in several if found.value is not None), key=lambda found: found.value or 0.0)
    means = sorted(found.null_mean for found in several if found.null_mean is not None)
    with_null = [found for found in several if found.p is not None]
    out = f"{sum(found.stands_out == 'yes' for found in with_null)} of {len(with_null)}" if with_null else "no null"
    if len(several) == 1:
        return several[0].subject or None, value_cell(several[0]), null_text(several[0]) if means else None, several[0].stands_out
    return (
        f"{len(several)}",
        _from_to(value_cell(values[0]), value_cell(values[-1])) if values else None,
        _from_to(number(means[0]), number(means[-1])) if means else None,
        out,
    )


def _from_to(low: str | None, high: str | None) -> str:
    return f"{low} to {high}" if low != high else f"{low}"


def _row(found: Finding, *, several: bool, first: bool) -> Row:
    cells: list[str | float | int | None] = [value_cell(found), null_text(found), p_text(found), found.stands_out]
    if several:
        cells.insert(0, found.subject or None)
    note = f"{_meaning(found)} {_sentence(found.note)}".strip() if first else _sentence(found.note)
    strong = (len(cells),) if found.stands_out == "yes" else ()
    return Row((found.name, *cells), note=note, strong=strong)


def _meaning(found: Finding) -> str:
    """What the quantity means, its null and its source."""
    null = f" Null: {found.null}." if found.null else ""
    return f"{found.meaning}{null} Source: {found.source}."


def _sentence(text: str) -> str:
    return text and text[0].upper() + text[1:] + "."
