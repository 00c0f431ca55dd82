"""What a battery found, for a notebook: the table of one measure, and its figures.

for view in group_views(results):
    display(view)                       # value, null, p-value, whether it stands out, and what it means
    for figure in view.figures(): figure.show()
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sae.evaluation.batteries import Finding, Group, Results
from sae.evaluation.batteries.wording import null_text, p_text, value_text
from sae.inspection.geometry_page import rule
from sae.inspection.interactive import to_plotly

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CELL = "padding:2px 12px 2px 0;text-align:left;border-bottom:1px solid rgba(128,128,128,.3);white-space:nowrap"
MUTED = "font-size:90%;opacity:.75;max-width:64em;white-space:normal"


@dataclass(frozen=True, eq=False)
class GroupView:
    """One measure's findings, shown as a table."""

    group: Group
    """What the measure found."""
    n_rows: int
    """Rows of the table at most, about: of more, some of each quantity are taken at equal steps."""

    def figures(self) -> "list[Figure]":
        """The figures of the measure, for Plotly."""
        return [to_plotly(figure) for figure in self.group.figures]

    def _repr_html_(self) -> str:
        shown = self._rows()
        head = ("quantity", "of", "value", "null: mean ± sd (draws)", "p", "stands out")
        cells = Markup("").join(Markup('<th style="{}">{}</th>').format(CELL, name) for name in head)
        body = Markup("").join(_row(found) for found in shown)
        meanings = {found.name: f"{found.meaning} Null: {found.null}." if found.null else found.meaning for found in shown}
        legend = Markup("").join(Markup("<dt><b>{}</b></dt><dd>{}</dd>").format(name, text) for name, text in meanings.items())
        left_out = len(self.group.findings) - len(shown)
        more = f"{left_out} more rows are not shown." if left_out else ""
        return str(
            Markup('<div style="overflow-x:auto"><h4>{}</h4><p style="{}">{} {}</p><table style="{}"><tr>{}</tr>{}</table>').format(
                self.group.title, MUTED, self.group.text, more, "border-collapse:collapse;font-variant-numeric:tabular-nums", cells, body
            )
            + Markup('<dl style="{}">{}</dl></div>').format(MUTED, legend)
        )

    def __repr__(self) -> str:
        lines = [self.group.title]
        for found in self._rows():
            name = f"{found.name}, {found.subject}" if found.subject else found.name
            lines.append(
                f"  {name}: {value_text(found) or '–'}; null {null_text(found)}; p {p_text(found)}; stands out: {found.stands_out}"
            )
        return "\n".join(lines)

    def _rows(self) -> list[Finding]:
        """All findings, or of each quantity its first, its last and some between."""
        found = self.group.findings
        if len(found) <= self.n_rows:
            return list(found)
        by_name: dict[str, list[Finding]] = {}
        for each in found:
            by_name.setdefault(each.name, []).append(each)
        most = max(2, self.n_rows // len(by_name))
        return [each for several in by_name.values() for each in _spread(several, most)]


def group_views(results: Results, *, n_rows: int = 40) -> list[GroupView]:
    """A view per measure, in order; of long tables at most about `n_rows` rows, evenly taken from each quantity."""
    return [GroupView(group, n_rows) for group in results.groups]


def summary(results: Results) -> str:
    """How many numbers stand out and by which rule, in a sentence."""
    return rule(results)


def _spread(several: list[Finding], most: int) -> list[Finding]:
    if len(several) <= most:
        return several
    places = sorted({round(i * (len(several) - 1) / (most - 1)) for i in range(most)})
    return [several[place] for place in places]


def _row(found: Finding) -> Markup:
    weight = "font-weight:600" if found.stands_out == "yes" else ""
    content: list[Any] = [found.name, found.subject, value_text(found) or "–", null_text(found), p_text(found), found.stands_out]
    return Markup('<tr style="{}">{}</tr>').format(
        weight, Markup("").join(Markup('<td style="{}">{}</td>').format(CELL, cell) for cell in content)
    )
