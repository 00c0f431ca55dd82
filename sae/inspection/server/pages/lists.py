"""Lists of features that people keep."""

from fastapi.responses import Response

from sae.inspection.server.failures import NotFound
from sae.inspection.server.pages.overview import FIRST
from sae.inspection.server.pages.shell import Page


def lists_page(page: Page) -> Response:
    """`/lists`."""
    notes = page.context.notes
    return page.render("lists.html", lists=notes.lists() if notes else (), there=notes is not None)


def list_page(page: Page, name: str) -> Response:
    """`/lists/{name}`: its features, those whose dictionary is served with their strongest passage."""
    found = page.context.notes.collection(name) if page.context.notes else None
    if found is None:
        raise NotFound(f"there is no list {name[:128]!r}", field="name")
    served = {source.index.manifest.source.dictionary_digest: source for source in reversed(list(page.context.registry))}
    rows = []
    for item in found.items:
        source = served.get(item.dictionary)
        if source is not None and item.index < source.index.d_sae:
            rows.append((item, source, source.index.record(item.index, passages=FIRST), page.label(source, item.index)))
        else:
            rows.append((item, None, None, None))
    return page.render("list.html", found=found, rows=rows)
