"""The pages of an evaluation and of a comparison, as reports that `write_report` writes.

An evaluation begins with the numbers that are asked for first, each with its interval and its definition; every measure follows with its table
and figures. A comparison has a column for each dictionary, and the frontiers of sparsity against what is lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sae.evaluation.batteries import Battery, Finding, Results
from sae.evaluation.batteries.wording import interval_text, null_text, value_text
from sae.evaluation.common_distortion import CommonLengths
from sae.evaluation.frontiers import Comparison
from sae.evaluation.headlines import ComparedRow
from sae.evaluation.numbers import number
from sae.evaluation.report import EvalReport
from sae.evaluation.suite.registry import evaluations
from sae.inspection.finding_tables import meaning_text, measure_sections, sentence
from sae.inspection.geometry_page import rule
from sae.inspection.report_data import Column, Fact, ReportData, Row, Section, Table

INTERVALS = (
    "Intervals are 95 % intervals of a bootstrap over documents (over words, letters or entities where a measure is about these): how far a number "
    "would move with others of the same kind."
)
LEAD = ("FVU", "L0", "CE increase")
BEST = (
    "The best value of a line is marked where its interval overlaps none of the others'. Intervals are of each dictionary by itself; dictionaries "
    "whose intervals overlap may still differ."
)


def evaluation_page(report: EvalReport, batteries: Mapping[str, Battery] | None = None) -> ReportData:
    """The page of a report; `batteries` are those that it is of (None: all that are installed)."""
    known = evaluations() if batteries is None else batteries
    sections = [section for section in (_caveats(report.caveats), _summary(report)) if section is not None]
    sections += measure_sections(report.results, known)
    if report.unmeasured:
        rows = tuple(Row((what,), note=sentence(why)) for what, why in report.unmeasured)
        table = Table("What else can be measured", (Column("measure"),), rows, note_heading="What it takes")
        sections.append(Section("Not measured", tables=(table,)))
    seeds = f"Samples, resamples and nulls are drawn with seed {report.results.seed}."
    footer = (seeds, *_rules(report.results), "Every number is in evaluation.json, beside the folder of this page.")
    return ReportData(f"Evaluation of {report.name}", _lead(report), _facts(report.facts), tuple(sections), footer=footer)


def _lead(report: EvalReport) -> str:
    """What was lost at which sparsity, in a sentence."""
    lines = [line for line in report.lines if line.label in LEAD and line.found.value is not None]
    return ", ".join(f"{line.label} {value_text(line.found, 3)}" for line in lines) + "." if lines else ""


def _facts(facts: Mapping[str, str]) -> tuple[Fact, ...]:
    """Facts as a page shows them: a digest and what else stands after a semicolon is smaller."""
    return tuple(Fact(name, *value.split("; ", 1)) for name, value in facts.items())


def _rules(results: Results) -> tuple[str, ...]:
    return (rule(results),) if any(found.p is not None for found in results.findings) else ()


def _caveats(caveats: Sequence[str]) -> Section | None:
    return Section("Before the numbers", "\n\n".join(caveats)) if caveats else None


def _summary(report: EvalReport) -> Section | None:
    lines = report.lines
    if not lines:
        return None
    nulls = any(line.found.null_mean is not None for line in lines)
    columns = [Column("number"), Column("value"), Column("95 % interval"), *([Column("null")] if nulls else [])]
    rows = []
    for line, before in zip(lines, [None, *lines], strict=False):
        cells = [line.label, value_text(line.found), interval_text(line.found), *([null_text(line.found, short=True)] if nulls else [])]
        rows.append(Row(tuple(cells), **_definition(line.found, None if before is None else before.found)))
    return Section("Summary", INTERVALS, (Table("In short", tuple(columns), tuple(rows)),))


def comparison_page(comparison: Comparison, reports: Mapping[str, EvalReport], more: Sequence[Section] = ()) -> ReportData:
    """The page of a comparison; `more` are sections that only these dictionaries have together."""
    sections = [section for section in (_caveats(comparison.notes),) if section is not None]
    first = [row for row in comparison.rows if row.headline] or list(comparison.rows)
    sections.append(Section("Side by side", f"{INTERVALS} {BEST}", (_side_by_side("In short", first, comparison.names),)))
    if comparison.frontiers:
        text = "A dictionary is on the frontier when no other is at least as sparse and loses as little, and is better in one of the two."
        sections.append(Section("Frontiers", text, figures=comparison.frontiers))
    sections += more
    rest = [row for row in comparison.rows if row not in first]
    if rest:
        table = _side_by_side(f"{len(rest)} more numbers", rest, comparison.names, folded=True)
        sections.append(Section("Every number", tables=(table,)))
    facts = [Fact(name, report.kind, f"{report.d_sae:,} latents".replace(",", "\u202f")) for name, report in reports.items()]
    common = next(iter(reports.values())).facts
    shared = {name: value for name, value in common.items() if all(report.facts.get(name) == value for report in reports.values())}
    footer = ("Every number is in comparison.json, beside the folder of this page.",)
    title = "Comparison of " + (", ".join(comparison.names) if len(comparison.names) <= 4 else f"{len(comparison.names)} dictionaries")
    return ReportData(title, "", (*facts, *_facts(shared)), tuple(sections), footer=footer)


def length_section(found: CommonLengths) -> Section:
    """Description lengths at one distortion."""
    columns = (Column("dictionary"), Column("bits per token", better="lower"), Column("for which latents"), Column("for how strongly"))
    rows = [Row((each.name, each.bits, each.index_bits, each.value_bits)) for each in found.lengths]
    rows += [
        Row(("principal components, rounded", found.pca_bits, None, None), role="baseline"),
        Row(("least for a Gaussian of this covariance", found.gaussian_bits, None, None), role="baseline"),
    ]
    text = (
        f"Bits that a token costs when the codes of every dictionary are rounded until its FVU is {number(found.fvu)}, which all of them reach: "
        "lengths at different distortions cannot be compared. Rare latents' entropies are too low on few tokens, which favours wide dictionaries."
    )
    caption = f"{found.n_tokens:,} tokens. Ayonrinde, Pearce & Sharkey 2024, arXiv 2410.11179.".replace(",", "\u202f", 1)
    return Section("Description length at one distortion", text, (Table("Lengths", columns, tuple(rows), caption),))


def _side_by_side(title: str, rows: Sequence[ComparedRow], names: Sequence[str], *, folded: bool = False) -> Table:
    columns = (Column("number"), *(Column(name) for name in names))
    shown = [next(iter(row.findings.values())) for row in rows]
    made = (_compared(row, names, _definition(*pair)) for row, *pair in zip(rows, shown, [None, *shown], strict=False))
    return Table(title, columns, tuple(made), folded=folded, sideways=True)


def _compared(row: ComparedRow, names: Sequence[str], definition: Mapping[str, str]) -> Row:
    cells = [row.title, *(with_interval(row.findings[name]) if name in row.findings else None for name in names)]
    strong = (1 + list(names).index(row.best),) if row.best else ()
    return Row(tuple(cells), strong=strong, **definition)


def _definition(found: Finding, before: Finding | None) -> dict[str, str]:
    """What a row's number means; nothing below another number of the same quantity."""
    if before is not None and (before.measure, before.name) == (found.measure, found.name):
        return {}
    return {"note": meaning_text(found), "formula": found.formula}


def with_interval(found: Finding) -> str | None:
    """The value without its unit, and its interval on a line of its own."""
    value, interval = value_text(replace(found, unit="")), interval_text(found)
    return value if value is None or interval is None or found.low == found.high else f"{value}\n{interval}"
