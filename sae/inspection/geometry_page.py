"""The page of a geometry battery: for each measure a table of its findings and its figures, as a report that `write_report` writes.

Everything on the page is in `findings.json`, which `write_findings` writes beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.evaluation.batteries import BATTERIES, Finding, Results
from sae.evaluation.batteries.wording import null_text, value_text
from sae.evaluation.numbers import percent
from sae.fingerprint import to_json
from sae.inspection.finding_tables import measure_sections
from sae.inspection.report_data import Column, Fact, ReportData, Row, Section, Table
from sae.storage import write_json

FINDINGS = "findings.json"
FOREMOST = 12
"""Findings named in the overview."""


def geometry_report(results: Results, *, title: str, facts: Sequence[Fact]) -> ReportData:
    """The report: what stands out first, then every measure with its table and figures, then what was left out."""
    sections = (_overview(results), *measure_sections(results, BATTERIES))
    footer = (f"Samples and nulls are drawn with seed {results.seed}.", "Every number is in findings.json, beside the folder of this page.")
    return ReportData(title, rule(results), tuple(facts), sections, footer=footer)


def rule(results: Results) -> str:
    """The rule that says what stands out, in a sentence."""
    n = sum(found.p is not None for found in results.findings)
    n_out = sum(found.stands_out == "yes" for found in results.findings)
    return (
        f"{n_out} of {n} numbers that have a null stand out: Benjamini–Hochberg over all {n}, at an expected share of {percent(results.rate)} "
        "that chance alone explains."
    )


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
        Row((found.name, found.subject or None, value_text(found), null_text(found, short=True), distance(found)), note=found.meaning)
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
