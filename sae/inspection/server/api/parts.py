"""The parts of a feature's card, each by itself and further than a card goes."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from sae.inspection.records import RELATIONS, FeatureRecord
from sae.inspection.server.answers import (
    ExamplePage,
    HistogramAnswer,
    LogitsAnswer,
    NeighboursAnswer,
    TokenRow,
    TokensAnswer,
    problems,
)
from sae.inspection.server.context import ServerContext, Source
from sae.inspection.server.cursors import cursor_at, offset_of
from sae.inspection.server.lookup import Lookup
from sae.inspection.server.passages import passages
from sae.inspection.server.schemas import ExamplesQuery, Latent, NeighboursQuery, NoQuery, SourceName, TokensQuery

MANY = 10**6
"""All passages of a group."""
PATH = "/sources/{source}/features/{index}"


def parts_router(context: ServerContext) -> APIRouter:
    """Examples, histogram, tokens, logits and neighbours of a feature."""
    router, lookup = APIRouter(tags=["features"]), Lookup(context)

    @router.get(f"{PATH}/examples", response_model=ExamplePage, responses=problems(404), operation_id="examples")
    async def examples(source: SourceName, index: Latent, query: Annotated[ExamplesQuery, Query()]) -> Response:
        """Passages: strongest, most negative, by interval, random, or near misses."""
        group = {"interval": "intervals"}.get(query.group, query.group)
        found, record = lookup.record(source, index, passages={group: MANY})
        scope = f"examples {found.index.digest} {index} {query.group} {query.context} {query.dedup}"
        offset = offset_of(query.cursor, scope)
        page = await run_in_threadpool(passages, found, record, query, offset)
        following = cursor_at(offset + query.limit, scope) if page.more else None
        answer = ExamplePage.model_construct(
            group=query.group, definition=page.definition, items=page.items, total=page.total, next_cursor=following
        )
        return answer.answer()

    @router.get(f"{PATH}/histogram", response_model=HistogramAnswer, responses=problems(404), operation_id="histogram")
    async def histogram(source: SourceName, index: Latent, _: Annotated[NoQuery, Query()]) -> Response:
        """Its non-zero values: bins, quantiles, and the steps of a matching pursuit."""
        record = lookup.record(source, index, passages={})[1]
        return HistogramAnswer(
            edges=list(record.histogram.edges),
            counts=list(record.histogram.counts),
            quantiles=dict(record.quantiles),
            steps=list(record.steps),
        ).answer()

    @router.get(f"{PATH}/tokens", response_model=TokensAnswer, responses=problems(404), operation_id="driving_tokens")
    async def tokens(source: SourceName, index: Latent, query: Annotated[TokensQuery, Query()]) -> Response:
        """Vocabulary items on which it fires."""
        found, record = lookup.record(source, index, passages={})
        return (await run_in_threadpool(driving, found, record, query)).answer()

    @router.get(f"{PATH}/logits", response_model=LogitsAnswer, responses=problems(404), operation_id="logits")
    async def logits(source: SourceName, index: Latent, _: Annotated[NoQuery, Query()]) -> Response:
        """Tokens whose logits its direction moves."""
        record = lookup.record(source, index, passages={})[1]
        convention = record.source.effects_convention
        return LogitsAnswer(convention=convention, promoted=list(record.promoted), suppressed=list(record.suppressed)).answer()

    @router.get(f"{PATH}/neighbours", response_model=NeighboursAnswer, responses=problems(404), operation_id="neighbours")
    async def neighbours(source: SourceName, index: Latent, query: Annotated[NeighboursQuery, Query()]) -> Response:
        """Close features by one of four relations, over the whole dictionary."""
        record = lookup.record(source, index, passages={})[1]
        related = record.neighbours if query.by == "decoder_cosine" else record.related.get(query.by, ())
        return NeighboursAnswer(
            by=query.by, definition=RELATIONS[query.by], stored=len(related), items=list(related[: query.limit])
        ).answer()

    return router


def driving(source: Source, record: FeatureRecord, query: TokensQuery) -> TokensAnswer:
    """The vocabulary items on which a feature fires, ranked over all of its firings where the index has them."""
    index = source.index
    if not (index.folder / "by_latent").is_dir():
        found = [
            TokenRow(
                token=d.token, token_id=d.token_id, n_active=d.n_active, n_occurrences=d.n_occurrences,
                precision=d.precision, mass=d.mass, share=d.share, max=None,
            )
            for d in record.driving_tokens
        ]  # fmt: skip
        order = {"mass": lambda row: -row.mass, "precision": lambda row: -row.precision, "max": lambda row: -row.mass}[query.by]
        return TokensAnswer(by="mass" if query.by == "max" else query.by, complete=False, items=sorted(found, key=order)[: query.limit])
    entries = index.entries(record.index)
    ids, inverse, counts = np.unique(index.table.ids.reshape(-1)[entries.ids], return_inverse=True, return_counts=True)
    strength = np.abs(entries.values.astype(np.float64))
    mass = np.bincount(inverse, weights=strength, minlength=len(ids))
    order = np.lexsort((strength, inverse))
    largest = entries.values[order[np.cumsum(counts) - 1]] if len(ids) else entries.values
    occurrences = np.asarray(index.reader.arrays["occurrences"])[ids]
    ranks = {"mass": mass, "max": np.abs(largest), "precision": counts / np.maximum(occurrences, 1)}
    whole = float(mass.sum()) or 1.0
    rows = [
        TokenRow(
            token=index.texts[int(ids[i])],
            token_id=int(ids[i]),
            n_active=int(counts[i]),
            n_occurrences=int(occurrences[i]),
            precision=float(counts[i] / max(int(occurrences[i]), 1)),
            mass=float(mass[i]),
            share=float(mass[i]) / whole,
            max=float(largest[i]),
        )
        for i in np.argsort(-ranks[query.by], kind="stable")[: query.limit].tolist()
    ]
    return TokensAnswer(by=query.by, complete=True, items=rows)
