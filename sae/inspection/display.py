"""One renderer for a feature's card: in pages by classes and a stylesheet, in notebooks by inline styles.

    FeatureCard(record).html(skin="page")       a fragment for a page that has `assets/report.css`; no inline style, so a strict CSP holds
    FeatureCard(record).html(skin="notebook")   no <script>, no <style>, no address: GitHub, nbviewer and untrusted notebooks still show it

Both come from one template, escaped throughout: token texts are untrusted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import jinja2
from markupsafe import Markup, escape

from sae.errors import ConfigError
from sae.inspection.charts import histogram_chart, sparkline, step_chart
from sae.inspection.definitions import DEFINITIONS
from sae.inspection.format import N_LEVELS, Span, bits, level, number, passage, percent, visible
from sae.inspection.records import FeatureRecord

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
NOTEBOOK_LIMITS = {"examples": 10, "negative": 5, "samples": 2, "side": 6, "left": 60, "right": 60}
PAGE_LIMITS = {"examples": 10**6, "negative": 10, "samples": 10**6, "side": 10**6, "left": 160, "right": 160}


@cache
def environment() -> jinja2.Environment:
    """The templates of this package, escaping everything; an undefined name is an error."""
    loader = jinja2.PackageLoader("sae.inspection", "templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"bits": bits, "number": number, "percent": percent, "visible": visible}
    made.globals |= {
        "histogram_chart": histogram_chart,
        "step_chart": step_chart,
        "sparkline": sparkline,
        "passage": passage,
        "definitions": DEFINITIONS,
        "tail": tail,
        "head": head,
    }
    return made


def _narrow(spans: list[Span]) -> list[Span]:
    """The spans with runs of spaces shortened to two, for lines."""
    return [span._replace(text=re.sub(" {3,}", "  ", span.text)) for span in spans]


def tail(spans: list[Span], n: int) -> list[Span]:
    """The last spans with together at most about `n` characters; the first of them is cut from the left."""
    kept, left = [], n
    for span in reversed(_narrow(spans)):
        if left <= 0:
            break
        kept.append(span._replace(text=span.text[-left:]) if len(span.text) > left else span)
        left -= len(span.text)
    return kept[::-1]


def head(spans: list[Span], n: int) -> list[Span]:
    """The first spans with together at most about `n` characters; the last of them is cut from the right."""
    kept, left = [], n
    for span in _narrow(spans):
        if left <= 0:
            break
        kept.append(span._replace(text=span.text[:left]) if len(span.text) > left else span)
        left -= len(span.text)
    return kept


@cache
def _heat(page: bool, level: int, negative: bool, peak: bool) -> str:
    """The attribute that colours a token."""
    if page:
        names = (["t", f"{'b' if negative else 'a'}{level - 1}"] if level else []) + ["peak"] * peak
        return f'class="{" ".join(names)}"' if names else ""
    rgb = COLD_RGB if negative else HOT_RGB
    styles = [f"background-color:rgba({rgb[0]},{rgb[1]},{rgb[2]},{0.08 + 0.5 * level / N_LEVELS:.2f});border-radius:3px"] if level else []
    styles += [NOTEBOOK_STYLES["peak"]] * peak
    return f'style="{";".join(styles)}"' if styles else ""


class Look:
    """How the parts of a card look in one skin: `class` attributes for pages, `style` attributes for notebooks."""

    def __init__(self, skin: Literal["page", "notebook"]) -> None:
        self.page = skin == "page"

    def __call__(self, part: str) -> Markup:
        """The attribute for a part of the card."""
        return Markup('class="{}"').format(part) if self.page else Markup('style="{}"').format(NOTEBOOK_STYLES[part])

    def heat(self, level: int, negative: bool, peak: bool = False) -> Markup:
        """The attribute that colours a token: level 1..32 of the orange scale, or of the blue one for negative values; 0 is no colour."""
        return Markup(_heat(self.page, level, negative, peak))

    def span(self, span: Span, peak: bool = False) -> Markup:
        """A token, or a run of tokens without value, isolated from the direction of its neighbours."""
        return Markup(self._span(span, peak))

    def spans(self, spans: list[Span], lines: bool = False) -> Markup:
        """Spans one after the other; with `lines`, lines end where the text's do."""
        return Markup("".join(self._span(s, False) + ("<br>" if lines and s.breaks else "") for s in spans))

    def _span(self, span: Span, peak: bool) -> str:
        attributes = _heat(self.page, span.level, span.negative, peak)
        if span.title:
            attributes += f' title="{escape(span.title)}"' + (f' data-v="{span.value:.5g}"' if self.page else "")
        return f"<bdi {attributes}>{escape(span.text)}</bdi>" if attributes else f"<bdi>{escape(span.text)}</bdi>"


@dataclass(frozen=True)
class FeatureCard:
    """What a person sees of one latent."""

    record: FeatureRecord
    """The numbers and passages."""

    def html(self, skin: str = "page", *, links: Mapping[int, str] | None = None) -> str:
        """The card as an HTML fragment. `links` gives the addresses of the neighbours that have a page. Raises ConfigError for an unknown
        skin."""
        if skin not in ("page", "notebook"):
            raise ConfigError(f"skin must be 'page' or 'notebook', got {skin!r} (FeatureCard.html)")
        limits = PAGE_LIMITS if skin == "page" else NOTEBOOK_LIMITS
        template = environment().get_template("card.html")
        return template.render(r=self.record, look=Look(skin), limits=limits, links=links or {}, effect_level=self.effect_level)

    def effect_level(self, effect: float) -> int:
        """Place of a logit effect on the colour scale, which ends at the largest magnitude shown."""
        shown = [abs(e.effect) for e in (*self.record.promoted, *self.record.suppressed)]
        return level(effect, max(shown, default=0.0))

    def _repr_html_(self) -> str:
        return self.html(skin="notebook")

    def __repr__(self) -> str:
        r = self.record
        driving = ", ".join(repr(d.token) for d in r.driving_tokens[:3])
        about = f"density {percent(r.density)}, max {number(r.max)}, driven by {driving}" if r.alive else "never fires"
        return f"FeatureCard({r.source.dictionary} #{r.index}: {about})"
