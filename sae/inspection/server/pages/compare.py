"""Features side by side."""

from fastapi.responses import Response

from sae.inspection.display import FeatureCard
from sae.inspection.server.context import Source
from sae.inspection.server.pages.shell import Page

MOST = 4
"""Features side by side."""
SHOWN = 10
"""Passages of each."""


def compare_page(page: Page, source: Source) -> Response:
    """`/s/{source}/compare?f=1&f=2`: the cards' main parts in columns, then every two of them."""
    latents = page.parameters.latents("f", source, MOST)
    records = [source.index.record(latent, passages={"top": SHOWN}) for latent in latents]
    comparison = source.index.compare(*latents) if len(latents) > 1 else None
    labels = page.labels(source)
    columns = [
        {
            "record": record,
            "label": labels.get(record.index),
            "level": FeatureCard(record).effect_level,
            "without": page.links(f"/s/{source.name}/compare", f=[other for other in latents if other != record.index]),
        }
        for record in records
    ]
    suggested = [n for record in records[:1] for n in record.neighbours if n.index not in latents][:6]
    return page.render(
        "compare.html",
        source=source,
        latents=latents,
        columns=columns,
        comparison=comparison,
        most=MOST,
        shown=SHOWN,
        suggested=[(n, page.links(f"/s/{source.name}/compare", f=[*latents, n.index])) for n in suggested] if len(latents) < MOST else [],
    )
