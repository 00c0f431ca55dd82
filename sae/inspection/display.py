"""One renderer for a feature's card: in pages by classes and a stylesheet, in notebooks by inline styles.

    FeatureCard(record).html(skin="page")       a fragment for a page that has `assets/report.css`; no inline style, so a strict CSP holds
    FeatureCard(record).html(skin="notebook")   no <script>, no <style>, no address: GitHub, nbviewer and untrusted notebooks still show it

Both come from one template, escaped throughout: token texts are untrusted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import jinja2

from sae.errors import ConfigError
from sae.inspection.charts import histogram_chart, sparkline, step_chart
from sae.inspection.definitions import DEFINITIONS
from sae.inspection.format import bits, level, number, passage, percent, visible
from sae.inspection.passages import Look, head, tail
from sae.inspection.records import FeatureRecord

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
        return level(effect, self._largest_effect)

    @cached_property
    def _largest_effect(self) -> float:
        return max((abs(e.effect) for e in (*self.record.promoted, *self.record.suppressed)), default=0.0)

    def _repr_html_(self) -> str:
        return self.html(skin="notebook")

    def __repr__(self) -> str:
        r = self.record
        driving = ", ".join(repr(d.token) for d in r.driving_tokens[:3])
        about = f"density {percent(r.density)}, max {number(r.max)}, driven by {driving}" if r.alive else "never fires"
        return f"FeatureCard({r.source.dictionary} #{r.index}: {about})"
