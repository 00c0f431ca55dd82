"""Features one below the other, for a notebook and for a terminal: one row each, with its strongest passage.

No script, no style sheet, no address: inline styles only, so GitHub and notebooks that are not trusted show it too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from sae.inspection.charts import sparkline
from sae.inspection.format import bits, number, passage, percent, visible
from sae.inspection.passages import Look, head, tail
from sae.inspection.reading import ReadableIndex
from sae.inspection.records import Example, FeatureRecord

N_SHOWN = 20
"""Rows shown; the rest is counted."""
STYLES = {
    "frame": "font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:13px;line-height:1.5;max-width:1240px;overflow-x:auto",
    "head": "margin:0 0 6px 0;font-size:15px;font-weight:600",
    "foot": "margin:8px 0 0 0;font-size:12px;opacity:.72;max-width:80em",
    "table": "border-collapse:collapse;border:none;background-color:transparent;font-size:12.5px;font-variant-numeric:tabular-nums",
    "row": "background-color:transparent;border:none",
    "th": "text-align:left;padding:2px 12px 3px 0;border:none;border-bottom:1px solid rgba(128,128,128,.45);font-weight:600;white-space:nowrap",
    "th-num": "text-align:right;padding:2px 12px 3px 0;border:none;border-bottom:1px solid rgba(128,128,128,.45);font-weight:600;"
    "white-space:nowrap",
    "cell": "text-align:left;padding:3px 12px 3px 0;border:none;border-bottom:1px solid rgba(128,128,128,.16);white-space:nowrap",
    "num": "text-align:right;padding:3px 12px 3px 0;border:none;border-bottom:1px solid rgba(128,128,128,.16);white-space:nowrap",
    "id": "text-align:right;padding:3px 12px 3px 0;border:none;border-bottom:1px solid rgba(128,128,128,.16);font-weight:600",
    "note": "text-align:left;padding:3px 12px 3px 0;border:none;border-bottom:1px solid rgba(128,128,128,.16);max-width:18em",
    "left": "text-align:right;padding:3px 0;border:none;border-bottom:1px solid rgba(128,128,128,.16);white-space:pre",
    "right": "text-align:left;padding:3px 12px 3px 0;border:none;border-bottom:1px solid rgba(128,128,128,.16);white-space:pre",
    "token": "font-family:ui-monospace,'SF Mono',Menlo,Consolas,monospace;font-size:12px;white-space:pre;padding:0 4px;margin:0 3px 0 0;"
    "background-color:rgba(128,128,128,.13);border-radius:3px",
    "label": "text-align:left;vertical-align:top;padding:5px 14px 5px 0;border:none;border-bottom:1px solid rgba(128,128,128,.16);opacity:.72;"
    "white-space:nowrap",
    "column": "text-align:left;vertical-align:top;padding:5px 22px 5px 0;border:none;border-bottom:1px solid rgba(128,128,128,.16)",
    "muted": "opacity:.72;font-weight:400",
}
"""Inline styles of the parts of a list."""


class Column(NamedTuple):
    """A further column of a list."""

    title: str
    """What stands above it."""
    cell: Callable[[int], str | Markup]
    """What stands in the row of a latent."""
    style: str = "num"
    """Its style: `num`, `cell` or `note`."""


def styled(tag: str, style: str, content: object, **attributes: str) -> Markup:
    """An element in one of the styles; the content is escaped unless it is markup."""
    more = Markup("").join(Markup(' {}="{}"').format(name, value) for name, value in attributes.items())
    return Markup('<{} style="{}"{}>{}</{}>').format(Markup(tag), STYLES[style], more, content, Markup(tag))


def table(titles: Sequence[tuple[str, str]], rows: Sequence[Sequence[Markup]]) -> Markup:
    """A table of cells; a title comes with its style, `th` or `th-num`."""
    top = Markup("").join(styled("th", style, title) for title, style in titles)
    body = Markup("").join(styled("tr", "row", Markup("").join(row)) for row in rows)
    return styled("table", "table", styled("tr", "row", top) + body)


def frame(title: str | Markup, parts: Sequence[Markup], footer: str = "") -> str:
    """The whole: a title, the parts, and a line below."""
    below = styled("p", "foot", footer) if footer else Markup("")
    return str(styled("div", "frame", styled("div", "head", title) + Markup("").join(parts) + below))


def tokens(texts: Sequence[str]) -> Markup:
    """Tokens as small boxes, isolated from the direction of the text around them."""
    return Markup("").join(styled("bdi", "token", visible(text, spaces=True)) for text in texts)


def line(example: Example, scale: float, *, left: int = 36, right: int = 26) -> tuple[Markup, Markup]:
    """A passage as two cells that meet at its peak."""
    look, cut = Look("notebook"), passage(example, scale)
    before = look.spans(tail(cut.left, left))
    return styled("td", "left", before), styled("td", "right", look.span(cut.peak, True) + look.spans(head(cut.right, right)))


def strongest(r: FeatureRecord) -> tuple[Example, ...]:
    """The passage with the value of largest magnitude, of either sign; none for a latent that never fires."""
    first, second = (r.examples, r.negative_examples) if r.max >= -r.min else (r.negative_examples, r.examples)
    return first[:1] or second[:1]


def listing_html(
    index: ReadableIndex,
    ids: Sequence[int],
    *,
    title: str,
    footer: str,
    columns: Sequence[Column] = (),
    shown: int = N_SHOWN,
    spark: bool = True,
) -> str:
    """The features as a table: id, the columns given, driving tokens, density, value of largest magnitude, bits, distribution (with `spark`), strongest
    passage."""
    titles = [
        ("feature", "th-num"),
        *((column.title, "th-num" if column.style == "num" else "th") for column in columns),
        ("driven by", "th"),
        ("density", "th-num"),
        ("strongest", "th-num"),
        ("tells, bits", "th-num"),
        *[("values", "th")] * spark,
        ("", "th"),
        ("strongest passage", "th"),
    ]
    rows = [_row(index.record(latent), columns, spark) for latent in ids[:shown]]
    more = f"{len(ids) - shown} more are not shown. " if len(ids) > shown else ""
    parts = [table(titles, rows)] if rows else [styled("p", "muted", "Nothing.")]
    return frame(title, parts, more + footer)


def _row(r: FeatureRecord, columns: Sequence[Column], spark: bool) -> list[Markup]:
    given = [styled("td", column.style, column.cell(r.index)) for column in columns]
    shown = strongest(r)
    ends = line(shown[0], r.peak) if shown else (styled("td", "left", ""), styled("td", "right", styled("span", "muted", "never fires")))
    return [
        styled("td", "id", f"#{r.index}"),
        *given,
        styled("td", "cell", tokens([d.token for d in r.driving_tokens[:3]])),
        styled("td", "num", percent(r.density)),
        styled("td", "num", number(r.max if r.max >= -r.min else r.min)),
        styled("td", "num", bits(r.token_bits + r.next_bits)),
        *[styled("td", "cell", sparkline(r.histogram) if r.alive else "")] * spark,
        *ends,
    ]


def listing_text(index: ReadableIndex, ids: Sequence[int], *, title: str, notes: Mapping[int, str], shown: int = N_SHOWN) -> str:
    """The features as lines of text: id, note, density, value of largest magnitude, driving tokens."""
    lines = [title]
    for latent in ids[:shown]:
        r = index.record(latent)
        driving = " ".join(visible(d.token, spaces=True) for d in r.driving_tokens[:3])
        about = (
            f"density {percent(r.density)}, strongest {number(r.max if r.max >= -r.min else r.min)}; {driving}"
            if r.alive
            else "never fires"
        )
        note = notes.get(latent, "")
        lines.append(f"  #{latent:<6} {note + '  ' if note else ''}{about}")
    if len(ids) > shown:
        lines.append(f"  and {len(ids) - shown} more")
    return "\n".join(lines)
