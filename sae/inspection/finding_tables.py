"""Tables of findings on a page: a section for each measure, with its numbers, what they mean, and its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sae.evaluation.batteries import Battery, Finding, Group, Results
from sae.evaluation.batteries.wording import interval_text, null_text, p_text, value_text
from sae.evaluation.numbers import number
from sae.inspection.report_data import Column, Row, Section, Table

MANY = 24
"""Numbers up to which a measure shows all of them first; of more, a row for each quantity, and all of them folded up."""


def measure_sections(results: Results, batteries: Mapping[str, Battery]) -> tuple[Section, ...]:
    """A section for every measure, battery by battery, and one for what could not be measured."""
    sections = []
    for name in dict.fromkeys(group.battery for group in results.groups):
        groups = [group for group in results.groups if group.battery == name]
        title = batteries[name].title if name in batteries else name
        first = groups[0].title
        headings = [title if first == title else f"{title}: {first.lower()}", *(group.title for group in groups[1:])]
        sections += [_section(*each) for each in zip(groups, headings, strict=True)]
    if results.left_out:
        rows = tuple(Row((name,), note=reason) for name, reason in results.left_out)
        table = Table("What could not be measured", (Column("measure"),), rows, note_heading="Why")
        sections.append(Section("Left out", tables=(table,)))
    return tuple(sections)


def _section(group: Group, heading: str) -> Section:
    """What a measure found: its table, or one of spans where there are many numbers, and its figures."""
    order = list(dict.fromkeys(found.name for found in group.findings))
    by_quantity = [[found for found in group.findings if found.name == name] for name in order]
    settings = ", ".join(f"{name} {value}" for name, value in group.settings.items())
    took = f"{group.n_cached} of {group.n_tasks} from the cache" if group.n_cached else f"{group.seconds:.1f} s"
    notes = (*group.notes, (f"Settings: {settings}. " if settings else "") + f"{took[0].upper()}{took[1:]}.")
    every = _every_number(by_quantity)
    if len(group.findings) <= MANY:
        tables: tuple[Table, ...] = (replace(every, notes=notes),)
    else:
        tables = _spans(by_quantity, notes), replace(every, title=f"All {len(group.findings)} numbers", folded=True)
    return Section(heading, group.text, tables, group.figures)


def _every_number(by_quantity: Sequence[Sequence[Finding]]) -> Table:
    """A row for each number; columns of what none of them has are left out."""
    every = [found for findings in by_quantity for found in findings]
    has = {
        "of": any(found.subject for found in every),
        "interval": any(found.low is not None for found in every),
        "null": any(found.null_mean is not None for found in every),
        "p": any(found.p is not None for found in every),
    }
    columns = {
        "quantity": Column("quantity"),
        "of": Column("of"),
        "value": Column("value"),
        "interval": Column("95 % interval"),
        "null": Column("null", "mean ± sd (draws)"),
        "p": Column("p"),
        "stands out": Column("stands out"),
    }
    shown = [name for name in columns if has.get(name, has["p"] if name == "stands out" else True)]
    rows = tuple(_row(found, shown, first=i == 0) for findings in by_quantity for i, found in enumerate(findings))
    return Table("Findings", tuple(columns[name] for name in shown), rows)


def _spans(by_quantity: Sequence[Sequence[Finding]], notes: tuple[str, ...]) -> Table:
    """A row for each quantity, from its smallest to its largest value."""
    columns = (Column("quantity"), Column("of"), Column("value"), Column("null", "mean"), Column("stand out"))
    rows = tuple(Row((found[0].name, *span(found)), note=meaning_text(found[0]), formula=found[0].formula) for found in by_quantity)
    return Table("Findings", columns, rows, notes=notes)


def span(several: Sequence[Finding]) -> tuple[str | None, str | None, str | None, str]:
    """Many findings of one quantity in four cells: how many, values, means of the nulls, how many stand out."""
    values = sorted((found for found in several if found.value is not None), key=lambda found: found.value or 0.0)
    means = sorted(found.null_mean for found in several if found.null_mean is not None)
    with_null = [found for found in several if found.p is not None]
    out = f"{sum(found.stands_out == 'yes' for found in with_null)} of {len(with_null)}" if with_null else "no null"
    if len(several) == 1:
        return several[0].subject or None, value_text(several[0]), null_text(several[0]) if means else None, several[0].stands_out
    return (
        f"{len(several)}",
        _from_to(value_text(values[0]), value_text(values[-1])) if values else None,
        _from_to(number(means[0]), number(means[-1])) if means else None,
        out,
    )


def _from_to(low: str | None, high: str | None) -> str:
    return f"{low} to {high}" if low != high else f"{low}"


def _row(found: Finding, shown: Sequence[str], *, first: bool) -> Row:
    cells: dict[str, str | None] = {
        "quantity": found.name,
        "of": found.subject or None,
        "value": value_text(found),
        "interval": interval_text(found),
        "null": null_text(found),
        "p": p_text(found),
        "stands out": found.stands_out,
    }
    note = f"{meaning_text(found)} {sentence(found.note)}".strip() if first else sentence(found.note)
    strong = (shown.index("stands out"),) if found.stands_out == "yes" else ()
    return Row(tuple(cells[name] for name in shown), note=note, strong=strong, formula=found.formula if first else "")


def meaning_text(found: Finding) -> str:
    """What the quantity means, its null and its source."""
    null = f" Null: {found.null}." if found.null else ""
    return f"{found.meaning}{null} Source: {found.source}."


def sentence(text: str) -> str:
    """The text with a capital and a full stop; empty for none."""
    return text and text[0].upper() + text[1:] + "."
