"""Reports for notebooks: tables as HTML with inline styles, no script and no address, legible on light and on dark ground alike.

Colours are those of the notebook (`currentColor`, and greys that are transparent), so that a theme decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup, escape

from sae.evaluation.batteries import Finding, Group
from sae.evaluation.batteries.wording import interval_text, null_text, value_text
from sae.evaluation.headlines import ComparedRow, Line

LINE = "border-bottom:1px solid rgba(128,128,128,.35)"
CELL = f"padding:3px 14px 3px 0;text-align:left;vertical-align:top;background:none;{LINE}"
NUMBER = f"{CELL};text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"
MUTED = "font-size:90%;opacity:.78"
DEFINITION = f"{CELL};{MUTED};max-width:44em;white-space:normal"


HEAD = ("", "value", "95 % interval", "null", "definition")


def report_html(
    title: str,
    facts: Mapping[str, str],
    caveats: Sequence[str],
    lines: Sequence[Line],
    groups: Sequence[Group],
    missing: Sequence[tuple[str, str]],
) -> str:
    """The headlines of a report with their definitions, what to know before, and every number behind a fold."""
    told = Markup(" · ").join(Markup("{}: {}").format(name, value) for name, value in facts.items())
    parts = [_title(title), Markup('<p style="{}">{}</p>').format(MUTED, told), _list(caveats)]
    n = sum(len(group.findings) for group in groups)
    if lines:
        firsts = _firsts([line.found for line in lines])
        parts.append(_table(HEAD, [_cells(line.label, line.found, defined=first) for line, first in zip(lines, firsts, strict=True)]))
        parts += [_fold(f"All {n} numbers", _every(groups))] if n > len(lines) else []
    elif n:
        parts.append(_every(groups))
    if missing:
        parts.append(_fold("What was not measured", _list([f"{what}: {why}" for what, why in missing])))
    return str(_frame(parts))


def comparison_html(names: Sequence[str], rows: Sequence[ComparedRow], notes: Sequence[str]) -> str:
    """A column for each dictionary; the best value of a line in bold where its interval overlaps no other's."""
    head = ("", *names, "definition")
    first = [row for row in rows if row.headline] or list(rows)
    rest = [row for row in rows if row not in first]
    legend = Markup('<p style="{}">{}</p>').format(MUTED, "Bold: the best of its line, with an interval that overlaps no other's.")
    parts = [_title("Comparison of " + ", ".join(names)), _list(notes), _side_by_side(head, first, names), legend]
    if rest:
        parts.append(_fold(f"{len(rest)} more numbers", _side_by_side(head, rest, names)))
    return str(_frame(parts))


def _title(text: str) -> Markup:
    return Markup('<h4 style="margin:.4em 0">{}</h4>').format(text)


def _side_by_side(head: Sequence[str], rows: Sequence[ComparedRow], names: Sequence[str]) -> Markup:
    shown = [next(iter(row.findings.values())) for row in rows]
    return _table(head, [_compared(row, names, defined=is_first) for row, is_first in zip(rows, _firsts(shown), strict=True)])


def _firsts(findings: Sequence[Finding]) -> list[bool]:
    """Whether each is of another quantity than the one before it: its definition is shown."""
    keys = [(found.measure, found.name) for found in findings]
    return [i == 0 or keys[i - 1] != key for i, key in enumerate(keys)]


def _compared(row: ComparedRow, names: Sequence[str], *, defined: bool) -> list[Markup]:
    cells = [_cell(CELL, row.title)]
    for name in names:
        found = row.findings.get(name)
        text = _with_interval(replace(found, unit="")) if found is not None else "–"
        cells.append(_cell(NUMBER + (";font-weight:700" if name == row.best else ""), text))
    return [*cells, _definition(next(iter(row.findings.values()))) if defined else _cell(DEFINITION, "")]


def _with_interval(found: Finding) -> Markup:
    interval = interval_text(found) if found.low != found.high else None
    small = Markup('<br><span style="{}">{}</span>').format(MUTED + ";font-weight:400", interval) if interval else Markup("")
    return escape(value_text(found) or "–") + small


def _every(groups: Sequence[Group]) -> Markup:
    rows = []
    for group in groups:
        rows.append([Markup('<th colspan="5" style="{}">{}</th>').format(CELL + ";padding-top:10px", group.title)])
        for found, is_first in zip(group.findings, _firsts(group.findings), strict=True):
            label = f"{found.name} · {found.subject}" if found.subject else found.name
            rows.append(_cells(label, found, defined=is_first))
    return _table(HEAD, rows)


def _cells(label: str, found: Finding, *, defined: bool = True) -> list[Markup]:
    return [
        _cell(CELL, label),
        _cell(NUMBER, value_text(found) or "–"),
        _cell(NUMBER, interval_text(found) or "–"),
        _cell(NUMBER, null_text(found, short=True)),
        _definition(found) if defined else _cell(DEFINITION, ""),
    ]


def _definition(found: Finding) -> Markup:
    formula = Markup("<code>{}</code><br>").format(found.formula) if found.formula else Markup("")
    return _cell(DEFINITION, formula + escape(found.meaning) + (escape(f" Null: {found.null}.") if found.null else ""))


def _cell(style: str, content: str | Markup) -> Markup:
    return Markup('<td style="{}">{}</td>').format(style, content)


def _table(head: Sequence[str], rows: Iterable[Sequence[Markup]]) -> Markup:
    styles = (CELL, *(NUMBER for _ in head[1:-1]), CELL)
    names = Markup("").join(Markup('<th style="{}">{}</th>').format(style, name) for style, name in zip(styles, head, strict=True))
    body = Markup("").join(Markup("<tr>{}</tr>").format(Markup("").join(row)) for row in rows)
    return Markup('<table style="border-collapse:collapse;background:none"><tr>{}</tr>{}</table>').format(names, body)


def _list(texts: Sequence[str]) -> Markup:
    items = Markup("").join(Markup("<li>{}</li>").format(text) for text in texts)
    return Markup('<ul style="{};max-width:64em;margin:.3em 0;padding-left:1.2em">{}</ul>').format(MUTED, items) if texts else Markup("")


def _fold(title: str, content: Markup) -> Markup:
    return Markup('<details style="margin:.6em 0"><summary style="cursor:pointer">{}</summary>{}</details>').format(title, content)


def _frame(parts: Iterable[Markup]) -> Markup:
    return Markup('<div style="overflow-x:auto;color:inherit">{}</div>').format(Markup("").join(parts))
