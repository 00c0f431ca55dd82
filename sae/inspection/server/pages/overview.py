"""The list of sources, the table of one source, and the way to a random feature."""

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup

from sae.inspection.distributions import distribution_chart
from sae.inspection.query import TELLING_DEFINITION
from sae.inspection.records import FeatureRecord
from sae.inspection.server.context import Source
from sae.inspection.server.failures import NotFound
from sae.inspection.server.pages.parameters import latent_of
from sae.inspection.server.pages.shell import Page
from sae.inspection.server.pages.table import ASCENDING, LONGEST, TableQuery, selected, source_table

SIZES = (25, 50, 100)
FIRST = {"top": 1, "bottom": 1}
"""Passages that a row of a table may show."""
MOST_FOUND = 500
"""Latents that a search lists."""
SORTED_BY = {
    "telling": "most telling first",
    "index": "by number",
    "label": "by label",
    "density": "by density",
    "max": "by largest value",
    "mean": "by mean value",
    "token_bits": "by bits about the token",
    "next_bits": "by bits about the next token",
    "bits": "by bits",
    "documents": "by documents",
}
RANGES = (("density", "Density", "share of tokens"), ("max", "Largest value", "of each latent that fires"))


@dataclass(frozen=True)
class TableRow:
    """A latent in the table."""

    record: FeatureRecord
    """Its numbers and passages."""
    label: str | None
    """What it is called."""
    matches: tuple[Any, ...] = ()
    """Why a search found it."""


def sources_page(page: Page) -> Response:
    """`/`: every source with what it is."""
    items = []
    for source in page.context.registry:
        statistics = source.index.statistics
        alive = statistics.density[statistics.n_active > 0]
        chart = distribution_chart(alive, name="density", width=420, height=120, n_bins=36)
        dead = int((statistics.n_active == 0).sum())
        items.append({"source": source, "n_dead": dead, "l0": float(statistics.density.sum()), "chart": chart})
    return page.render("sources.html", items=items, failures=page.context.registry.failures)


def overview_page(page: Page, source: Source) -> Response:
    """`/s/{source}`: the distributions, and the table as the address asks for it."""
    query, parameters = TableQuery.read(page.parameters), page.parameters
    searched = parameters.text("q", LONGEST).strip()
    if searched.removeprefix("#").isdecimal() and searched.startswith("#"):
        return RedirectResponse(page.feature_link(source, latent_of(source, searched[1:])), status_code=303)
    size = parameters.integer("size", SIZES[0], 1, SIZES[-1])
    labels = page.labels(source)
    found = searched_latents(source, searched, labels) if searched else {}
    ids = selected(source.index, query, labels)
    if searched:
        allowed = set(ids.tolist())
        ids = np.array([i for i in found if i in allowed], np.int64)
    pages = max(1, -(-len(ids) // size))
    number = parameters.integer("page", 1, 1, 10**9)
    if number > pages:
        raise NotFound(f"the table has {pages} pages, not {number}", field="page")
    shown = ids[(number - 1) * size : number * size].tolist()
    asked = query.parameters | ({"q": searched} if searched else {}) | ({"size": size} if size != SIZES[0] else {})
    return page.render(
        "overview.html",
        source=source,
        query=query,
        searched=searched,
        total=len(ids),
        rows=[TableRow(source.index.record(i, passages=FIRST), labels.get(i), found.get(i, ())) for i in shown],
        labelled=bool(labels),
        charts=[_chart(page, source, query, *each) for each in RANGES],
        n_dead=int((~source_table(source.index).alive).sum()),
        sorted_by=SORTED_BY[query.sort] + (", reversed" if query.order == ("desc" if query.sort in ASCENDING else "asc") else ""),
        telling_definition=TELLING_DEFINITION,
        ascending=ASCENDING,
        page=number,
        pages=pages,
        page_numbers=page_numbers(number, pages),
        size=size,
        sizes=SIZES,
        table_link=lambda **changes: page.links(f"/s/{source.name}", **_changed(asked, number, changes)),
        feature_link=lambda latent: page.feature_link(source, latent, **query.parameters),
    )


def random_page(page: Page, source: Source) -> Response:
    """`/s/{source}/random`: to a feature that fires, drawn uniformly."""
    alive = np.flatnonzero(source_table(source.index).alive)
    if not len(alive):
        raise NotFound(f"no feature of {source.name} fires")
    response = RedirectResponse(page.feature_link(source, int(alive[secrets.randbelow(len(alive))])), status_code=303)
    response.headers["Cache-Control"] = "no-store"
    return response


def searched_latents(source: Source, text: str, labels: dict[int, str]) -> dict[int, tuple[Any, ...]]:
    """The best latents that a search finds, best first, each with why."""
    results = source.index.search(text, limit=min(MOST_FOUND, source.index.d_sae), labels=labels)
    return {hit.index: hit.matches for hit in results.hits}


def page_numbers(current: int, pages: int) -> list[int | None]:
    """The numbers that lead to other pages: the ends and those near the current one, None where some are left out."""
    wanted = sorted({1, pages, *range(max(1, current - 2), min(pages, current + 2) + 1)})
    found: list[int | None] = []
    for before, each in zip([0, *wanted[:-1]], wanted, strict=True):
        found += [None] * (each > before + 1) + [each]
    return found


def _changed(asked: dict[str, Any], number: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the table with some changed; whatever changes the order or the filter goes back to the first page."""
    kept = asked | ({"page": number} if "page" in changes and number > 1 else {})
    if "sort" in changes:
        kept = {name: value for name, value in kept.items() if name not in ("order", "page")}
    return kept | changes


def _chart(page: Page, source: Source, query: TableQuery, column: str, title: str, note: str) -> dict[str, Any]:
    table = source_table(source.index)
    values = table.columns[column][table.alive & (table.columns[column] > 0)].astype(np.float64)
    low, high = getattr(query, f"min_{column}"), getattr(query, f"max_{column}")
    chosen = None if low is None and high is None else (low if low is not None else -np.inf, high if high is not None else np.inf)

    def link(a: float, b: float) -> str:
        return page.links(f"/s/{source.name}", **query.parameters | {f"min_{column}": f"{a:.6g}", f"max_{column}": f"{b:.6g}"})

    return {
        "title": title,
        "note": note,
        "drawing": distribution_chart(values, name=title.lower(), link=link, chosen=chosen) if len(values) else Markup(""),
    }
