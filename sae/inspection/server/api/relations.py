"""How features lie together: co-activation, the map, documents, and search."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from jaxtyping import Int
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from sae.inspection.server.answers import (
    CoactivationAnswer,
    DocumentAnswer,
    MapAnswer,
    SearchAnswer,
    SearchMatch,
    SearchRow,
    problems,
)
from sae.inspection.server.context import ServerContext, Source
from sae.inspection.server.failures import NotFound, NotLoaded
from sae.inspection.server.lookup import Lookup
from sae.inspection.server.notes import Notes
from sae.inspection.server.schemas import CoactivationQuery, Count, DocumentQuery, NoQuery, SearchQuery, SourceName

NOTE_SCORE = 0.5
"""What a note counts that holds the query."""


def relations_router(context: ServerContext) -> APIRouter:
    """`/coactivation`, `/map`, `/documents` and `/search` of a source."""
    router, lookup = APIRouter(tags=["sources"]), Lookup(context)

    @router.get(
        "/sources/{source}/coactivation", response_model=CoactivationAnswer, responses=problems(404, 409), operation_id="coactivation"
    )
    async def together(source: SourceName, query: Annotated[CoactivationQuery, Query()]) -> Response:
        """On how many tokens pairs of features fire together, exactly."""
        found = lookup.source(source)
        columns = query.columns or query.features
        lookup.latents(found, query.features, field="features")
        lookup.latents(found, columns, field="columns")
        _need_entries(found)
        return (await run_in_threadpool(coactivation, found, query.features, columns)).answer()

    @router.get("/sources/{source}/map", response_model=MapAnswer, responses=problems(404), operation_id="feature_map")
    async def feature_map(source: SourceName, _: Annotated[NoQuery, Query()]) -> Response:
        """Features in the plane."""
        index = lookup.source(source).index
        places = index.map
        return MapAnswer.model_construct(
            method=places.method,
            ids=np.asarray(places.ids).tolist(),
            x=np.asarray(places.x, np.float64).round(6).tolist(),
            y=np.asarray(places.y, np.float64).round(6).tolist(),
            density=index.statistics.density[np.asarray(places.ids)].tolist(),
        ).answer()

    @router.get(
        "/sources/{source}/documents/{document}", response_model=DocumentAnswer, responses=problems(404, 409), operation_id="document"
    )
    async def document(source: SourceName, document: Count, query: Annotated[DocumentQuery, Query()]) -> Response:
        """A stored document, or a part of it, with the features that fire."""
        found = lookup.source(source)
        _need_entries(found)
        ids = found.index.document_ids
        if document < 0 or document >= 2**63 or document not in ids:
            raise NotFound(f"{found.name} has no document {str(document)[:30]}", field="document")
        return (await run_in_threadpool(part_of_document, found, document, query)).answer()

    @router.get("/sources/{source}/search", response_model=SearchAnswer, responses=problems(404), operation_id="search")
    async def search(source: SourceName, query: Annotated[SearchQuery, Query()]) -> Response:
        """Features by labels, notes, driving tokens and promoted tokens."""
        found = lookup.source(source)
        return (await run_in_threadpool(matching, found, context.notes, query)).answer()

    return router


def _need_entries(source: Source) -> None:
    if not (source.index.folder / "by_latent").is_dir():
        raise NotLoaded(f"{source.name} is served from a summary bundle without its entries, which this needs")


def coactivation(source: Source, features: Sequence[int], columns: Sequence[int]) -> CoactivationAnswer:
    """The matrix of joint firings: |A and B| for each pair, from the sorted tokens of each latent."""
    index = source.index
    tokens = {i: index.entries(i).ids for i in dict.fromkeys([*features, *columns])}
    n = index.n_tokens
    counts = [[_n_common(tokens[a], tokens[b]) for b in columns] for a in features]
    active = {str(i): len(found) for i, found in tokens.items()}
    phi = [
        [_phi(c, len(tokens[a]), len(tokens[b]), n) for b, c in zip(columns, row, strict=True)]
        for a, row in zip(features, counts, strict=True)
    ]
    return CoactivationAnswer(features=list(features), columns=list(columns), n_tokens=n, n_active=active, n_together=counts, phi=phi)


def _n_common(a: Int[np.ndarray, "n"], b: Int[np.ndarray, "m"]) -> int:
    if len(a) > len(b):
        a, b = b, a
    if len(a) == 0:
        return 0
    place = np.minimum(np.searchsorted(b, a), len(b) - 1)
    return int(np.count_nonzero(b[place] == a))


def _phi(together: int, a: int, b: int, n: int) -> float | None:
    """(n n_ab - n_a n_b) / sqrt(n_a (n - n_a) n_b (n - n_b)); None where a latent fires nowhere or everywhere."""
    spread = float(a) * (n - a) * float(b) * (n - b)
    return (float(n) * together - float(a) * b) / spread**0.5 if spread > 0 else None


def part_of_document(source: Source, document: int, query: DocumentQuery) -> DocumentAnswer:
    """The tokens `start` .. `start + limit` of a document with their firings, feature by feature."""
    view = source.index.document(document)
    n = len(view.texts)
    first, last = min(query.start, n), min(query.start + query.limit, n)
    begin, end = int(view.start[first]), int(view.start[last])
    places = np.repeat(np.arange(last - first), np.diff(np.asarray(view.start[first : last + 1])))
    latents, values = np.asarray(view.latents[begin:end]), np.asarray(view.values[begin:end], np.float64)
    steps = None if view.steps is None else np.asarray(view.steps[begin:end])
    active: dict[str, list[tuple[int, float]]] = {}
    order: dict[str, list[int]] = {}
    for i in np.argsort(latents, kind="stable").tolist():
        name = str(int(latents[i]))
        active.setdefault(name, []).append((int(places[i]), float(values[i])))
        if steps is not None:
            order.setdefault(name, []).append(int(steps[i]))
    return DocumentAnswer.model_construct(
        document=document,
        labels=dict(view.labels),
        n_tokens=n,
        start=first,
        tokens=list(view.texts[first:last]),
        active=active,
        steps=order if steps is not None else None,
    )


def matching(source: Source, notes: Notes | None, query: SearchQuery) -> SearchAnswer:
    """Features that the query finds in the index, its labels, and the file of notes, best first."""
    labels = {i: label for i, label in (notes.labels(source.dictionary) if notes else {}).items() if i < source.index.d_sae}
    results = source.index.search(query.q, limit=query.limit, labels=labels)
    scores = {hit.index: float(hit.score) for hit in results.hits}
    matches = {hit.index: [SearchMatch(kind=m.kind, text=m.text, value=float(m.value)) for m in hit.matches] for hit in results.hits}
    n_found = results.n_found
    for latent, kind, text in notes.search(source.dictionary, query.q, limit=1000) if notes else ():
        if latent >= source.index.d_sae or text == labels.get(latent):
            continue
        n_found += latent not in scores
        scores[latent] = scores.get(latent, 0.0) + NOTE_SCORE
        matches.setdefault(latent, []).append(SearchMatch(kind=kind, text=text, value=1.0))
    best = sorted(scores, key=lambda latent: (-scores[latent], latent))[: query.limit]
    rows = [SearchRow(index=i, score=scores[i], label=labels.get(i), matches=matches[i]) for i in best]
    definition = f"{results.definition} A note, or another explanation, that holds the whole query adds {NOTE_SCORE}."
    return SearchAnswer(query=query.q, definition=definition, n_found=n_found, items=rows)
