"""Stored documents with the features that fire in them."""

from typing import Any

import numpy as np
from fastapi.responses import Response

from sae.errors import FormatError
from sae.inspection.format import number
from sae.inspection.server.context import Source
from sae.inspection.server.failures import NotFound, Refused
from sae.inspection.server.pages.overview import page_numbers
from sae.inspection.server.pages.parameters import INTEGER
from sae.inspection.server.pages.shell import Page
from sae.inspection.server.pages.strips import most_bits, salience, salience_scale, strip

TOKENS = 600
"""Tokens on one page of a document."""
DOCUMENTS = 60
"""Documents on one page of the list."""
SHOWN = 40


def documents_page(page: Page, source: Source) -> Response:
    """`/s/{source}/doc`: the documents of the corpus."""
    ids = source.index.document_ids
    pages = max(1, -(-len(ids) // DOCUMENTS))
    at = page.parameters.integer("page", 1, 1, pages)
    texts, reader = source.index.texts, source.index.reader
    flat, rows = source.index.table.ids.reshape(-1), []
    for document in ids[(at - 1) * DOCUMENTS : at * DOCUMENTS].tolist():
        tokens = reader.document_tokens(document)
        beginning = "".join(texts[i] for i in flat[tokens[:40]].tolist())
        rows.append((document, len(tokens), " ".join(beginning.split())[:150], reader.labels.get(str(document), {})))
    return page.render("documents.html", source=source, rows=rows, n=len(ids), page=at, pages=pages, page_numbers=page_numbers(at, pages))


def document_page(page: Page, source: Source, text: str) -> Response:
    """`/s/{source}/doc/{id}?at=..&f=..`: a document; `at` is a flat token index, `f` a feature to colour the text by."""
    ids = source.index.document_ids
    if not INTEGER.fullmatch(text):
        raise Refused(f"a document is named by a plain integer, got {text[:60]!r}", field="document")
    place = int(np.searchsorted(ids, int(text)))
    if place >= len(ids) or int(ids[place]) != int(text):
        raise NotFound(f"{source.name} has no document {text}", field="document")
    try:
        view = source.index.document(int(text))
    except FormatError as error:
        raise NotFound(f"the documents of {source.name} cannot be shown: the index was shipped without its entries") from error
    n, flat = len(view.token_index), np.asarray(view.token_index)
    at = page.parameters.integer("at", -1, 0, source.index.table.n_tokens - 1)
    chosen = int(np.searchsorted(flat, at)) if at in flat else -1
    latents = page.parameters.latents("f", source, 1)
    pages = max(1, -(-n // TOKENS))
    number_of = page.parameters.integer("page", 1 + max(chosen, 0) // TOKENS, 1, pages)
    first = (number_of - 1) * TOKENS
    values, scale, means = _values(source, view, latents)
    stop = min(first + TOKENS, n)
    here = f"/s/{source.name}/doc/{text}"
    tokens = strip(
        view.texts[first:stop],
        values[first:stop].tolist(),
        scale,
        link=lambda i: page.links(
            here, f=latents or None, at=None if first + i == chosen else int(flat[first + i]), page=number_of, anchor="here"
        ),
        chosen=chosen - first,
        swap="#content",
    )
    return page.render(
        "document.html",
        source=source,
        view=view,
        n=n,
        strip=tokens,
        means=means,
        chosen=chosen,
        token=view.texts[chosen] if chosen >= 0 else None,
        rows=_at_token(page, source, view, chosen) if chosen >= 0 else _strongest(page, source, view, first, stop),
        latent=latents[0] if latents else None,
        latent_label=page.label(source, latents[0]) if latents else None,
        near=[int(ids[place + step]) if 0 <= place + step < len(ids) else None for step in (-1, 1)],
        at=at,
        page=number_of,
        pages=pages,
        page_numbers=page_numbers(number_of, pages),
    )


def _values(source: Source, view: Any, latents: list[int]) -> tuple[np.ndarray, float, str]:
    """A number for each token, the end of the colour scale, and what it is."""
    start, ids, values = np.asarray(view.start), np.asarray(view.latents), np.asarray(view.values, np.float64)
    tokens = np.repeat(np.arange(len(start) - 1), np.diff(start))
    found = np.zeros(len(start) - 1)
    statistics = source.index.statistics
    if latents:
        mine = ids == latents[0]
        found[tokens[mine]] = values[mine]
        peak = max(abs(float(statistics.max[latents[0]])), abs(float(statistics.min[latents[0]])))
        return found, peak, f"value of #{latents[0]}, to {number(peak)}, its largest in the corpus"
    np.maximum.at(found, tokens, salience(source, ids, values))
    return found, most_bits(source), salience_scale(source)


def _row(page: Page, source: Source, labels: dict[int, str], latent: int, value: float, n: int, step: int | None) -> dict[str, Any]:
    statistics, texts = source.index.statistics, source.index.texts
    token = int(statistics.leading_token[latent])
    peak = max(abs(float(statistics.max[latent])), abs(float(statistics.min[latent]))) or 1.0
    name = {"label": labels.get(latent), "token": texts[token] if token >= 0 else ""}
    return {
        "index": latent,
        "value": value,
        "strength": value / peak,
        "n": n,
        "step": step,
        "density": float(statistics.density[latent]),
    } | name


def _at_token(page: Page, source: Source, view: Any, chosen: int) -> list[dict[str, Any]]:
    part, labels = slice(int(view.start[chosen]), int(view.start[chosen + 1])), page.labels(source)
    steps = [None] * (part.stop - part.start) if view.steps is None else [int(s) + 1 for s in view.steps[part]]
    triples = zip(view.latents[part].tolist(), view.values[part].tolist(), steps, strict=True)
    rows = [_row(page, source, labels, int(i), float(v), 1, step) for i, v, step in triples]
    return sorted(rows, key=lambda row: (-abs(row["strength"]), row["index"]))


def _strongest(page: Page, source: Source, view: Any, first: int, stop: int) -> list[dict[str, Any]]:
    """The features of the tokens shown, the most salient first."""
    part = slice(int(view.start[first]), int(view.start[stop]))
    ids, values = np.asarray(view.latents[part]), np.asarray(view.values[part], np.float64)
    found, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if not len(found):
        return []
    most = np.zeros(len(found))
    np.maximum.at(most, inverse, np.abs(values))
    order = np.argsort(-salience(source, found, most), kind="stable")[:SHOWN]
    labels = page.labels(source)
    return [_row(page, source, labels, int(found[i]), float(most[i]), int(counts[i]), None) for i in order.tolist()]
