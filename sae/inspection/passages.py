"""Passages as HTML: lines aligned at their peaks, or whole texts, every token coloured by its value. Plain strings, for they are the bulk of a card.

    look.lines(examples, scale)      one line each: value, what comes before the peak, the peak and what follows
    look.full(passage)               the whole passage, its lines ending where the text's do

Two skins: `class` attributes for pages, which have a stylesheet and a strict policy, and `style` attributes for notebooks.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from typing import Literal

from markupsafe import Markup

from sae.inspection.format import N_LEVELS, Passage, Span, number, passage
from sae.inspection.records import Example

NOTEBOOK_STYLES = {
    "card": "font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:13px;line-height:1.5;max-width:1000px",
    "head": "margin:0 0 2px 0;font-size:18px;font-weight:600",
    "muted": "opacity:.72;font-weight:400",
    "small": "font-size:12px;opacity:.72",
    "facts": "margin:4px 0 8px 0",
    "fact": "display:inline-block;margin:0 18px 4px 0",
    "fact-value": "font-weight:600",
    "dead": "margin:8px 0;padding:6px 10px;border:1px solid rgba(128,128,128,.5)",
    "columns": "border-collapse:collapse;border:none;background-color:transparent;width:100%",
    "row": "background-color:transparent;border:none",
    "main": "vertical-align:top;text-align:left;border:none;padding:0 18px 0 0;width:66%",
    "side": "vertical-align:top;text-align:left;border:none;padding:0;width:34%",
    "h": "margin:10px 0 3px 0;font-size:13px;font-weight:600",
    "interval": "margin:6px 0 0 0;font-size:12px;font-weight:600",
    "kwic": "border-collapse:collapse;border:none;background-color:transparent;width:100%;table-layout:fixed;font-size:13px",
    "kwic-value": "width:52px;text-align:right;padding:1px 8px 1px 0;border:none;font-size:12px;white-space:nowrap;opacity:.8",
    "kwic-left": "width:42%;text-align:right;padding:1px 0;border:none;white-space:pre;overflow:hidden",
    "kwic-right": "text-align:left;padding:1px 0;border:none;white-space:pre;overflow:hidden;text-overflow:ellipsis",
    "table": "border-collapse:collapse;border:none;background-color:transparent;font-size:12.5px",
    "cell": "text-align:left;padding:1px 10px 1px 0;border:none;white-space:nowrap",
    "num": "text-align:right;padding:1px 10px 1px 0;border:none;white-space:nowrap",
    "token": "font-family:ui-monospace,'SF Mono',Menlo,Consolas,monospace;font-size:12px;white-space:pre",
    "scale": "font-size:12px;opacity:.85",
    "peak": "font-weight:600",
}
"""Inline style of each part of a card; properties that notebook sanitisers let through."""
HOT_RGB, COLD_RGB = (234, 98, 22), (38, 120, 200)
SPACES = re.compile(" {3,}")


@cache
def _part(page: bool, part: str) -> Markup:
    return Markup('class="{}"').format(part) if page else Markup('style="{}"').format(NOTEBOOK_STYLES[part])


@cache
def _heat(page: bool, level: int, negative: bool, peak: bool) -> str:
    """The attribute that colours a token."""
    if page:
        names = (["t", f"{'b' if negative else 'a'}{level - 1}"] if level else []) + ["peak"] * peak
        return f' class="{" ".join(names)}"' if names else ""
    rgb = COLD_RGB if negative else HOT_RGB
    styles = [f"background-color:rgba({rgb[0]},{rgb[1]},{rgb[2]},{0.08 + 0.5 * level / N_LEVELS:.2f});border-radius:3px"] if level else []
    styles += [NOTEBOOK_STYLES["peak"]] * peak
    return f' style="{";".join(styles)}"' if styles else ""


def narrow(spans: Sequence[Span]) -> list[Span]:
    """The spans with runs of spaces shortened to two, for lines."""
    return [span._replace(text=SPACES.sub("  ", span.text)) if "   " in span.text else span for span in spans]


def tail(spans: Sequence[Span], n: int) -> list[Span]:
    """The last spans with together at most about `n` characters; the first of them is cut from the left."""
    kept, left = [], n
    for span in reversed(narrow(spans)):
        if left <= 0:
            break
        kept.append(span._replace(text=span.text[-left:]) if len(span.text) > left else span)
        left -= len(span.text)
    return kept[::-1]


def head(spans: Sequence[Span], n: int) -> list[Span]:
    """The first spans with together at most about `n` characters; the last of them is cut from the right."""
    kept, left = [], n
    for span in narrow(spans):
        if left <= 0:
            break
        kept.append(span._replace(text=span.text[:left]) if len(span.text) > left else span)
        left -= len(span.text)
    return kept


class Look:
    """How the parts of a card look in one skin: `class` attributes for pages, `style` attributes for notebooks."""

    def __init__(self, skin: Literal["page", "notebook"]) -> None:
        self.page = skin == "page"

    def __call__(self, part: str) -> Markup:
        """The attribute for a part of the card."""
        return _part(self.page, part)

    def heat(self, level: int, negative: bool, peak: bool = False) -> Markup:
        """The attribute that colours a token: level 1..32 of the orange scale, or of the blue one for negative values; 0 is no colour."""
        return Markup(_heat(self.page, level, negative, peak))

    def span(self, span: Span, peak: bool = False) -> Markup:
        """A token, or a run of tokens without value, isolated from the direction of its neighbours."""
        return Markup(self._span(span, peak))

    def spans(self, spans: Sequence[Span], lines: bool = False) -> Markup:
        """Spans one after the other; with `lines`, lines end where the text's do."""
        return Markup(self._spans(spans, lines))

    def lines(
        self,
        examples: Sequence[Example],
        scale: float | int,
        *,
        characters: int = 160,
        reach: int | None = None,
        more: Callable[[Example], str] | None = None,
    ) -> Markup:
        """The examples as lines aligned at their peaks, cut to `characters` and, with `reach`, to so many tokens on either side.

        `more` gives what a page shows at the end of a line, already escaped.
        """
        return Markup("".join(self._line(e, passage(e, scale, reach), characters, more) for e in examples))

    def full(self, shown: Passage) -> Markup:
        """The whole passage, its lines ending where the text's do."""
        peak = self._span(shown.peak, True) + ("<br>" if shown.peak.breaks else "")
        return Markup(self._spans(shown.left, True) + peak + self._spans(shown.right, True))

    def _line(self, example: Example, shown: Passage, characters: int, more: Callable[[Example], str] | None) -> str:
        value = escape(number(example.value))
        left, right = self._spans(tail(shown.left, characters), False), self._spans(head(shown.right, characters), False)
        peak = self._span(shown.peak, True)
        if self.page:
            end = f'<span class="more">{more(example)}</span>' if more else ""
            return (
                f'<div class="kwic-line"><span class="value">{value}</span><span class="left"><span>{left}</span></span>'
                f'<span class="right">{peak}{right}</span>{end}</div>'
            )
        labels = "".join(f" · {escape(name)} {escape(str(text))}" for name, text in sorted(example.labels.items()))
        cells = [f"<td {self('kwic-value')}>{value}</td>", f'<td dir="rtl" {self("kwic-left")}><span dir="ltr">{left}</span></td>']
        return f'<tr {self("row")} title="document {example.document}{labels}">{"".join(cells)}<td {self("kwic-right")}>{peak}{right}</td></tr>'

    def _spans(self, spans: Sequence[Span], lines: bool) -> str:
        return "".join([self._span(s, False) + ("<br>" if lines and s.breaks else "") for s in spans])

    def _span(self, span: Span, peak: bool) -> str:
        attributes = _heat(self.page, span.level, span.negative, peak)
        if span.title:
            attributes += f' title="{escape(span.title)}"' + (f' data-v="{span.value:.5g}"' if self.page else "")
        return f"<bdi{attributes}>{escape(span.text)}</bdi>"
