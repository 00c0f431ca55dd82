"""The table of features, a feature's card, and a random feature."""

import json
import random
import secrets
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, Response

from sae.inspection.display import FeatureCard as Card
from sae.inspection.server.answers import FeatureCard, FeaturePage, RandomAnswer, card, problems
from sae.inspection.server.context import ServerContext
from sae.inspection.server.cursors import cursor_at, offset_of
from sae.inspection.server.failures import NotFound
from sae.inspection.server.lookup import Lookup
from sae.inspection.server.schemas import Latent, NoQuery, RandomQuery, SourceName, TableQuery
from sae.inspection.server.table import Labels, chosen, rows

FRAGMENT = {200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The card"}}


def feature_router(context: ServerContext) -> APIRouter:
    """`/sources/{source}/features`, a feature of it, and `/random`."""
    router, lookup = APIRouter(tags=["features"]), Lookup(context)

    @router.get("/sources/{source}/features", response_model=FeaturePage, responses=problems(404), operation_id="features")
    async def features(source: SourceName, query: Annotated[TableQuery, Query()]) -> Response:
        """The table of features: sorted, filtered, page by page."""
        found = lookup.source(source)
        labels = Labels.of(found, context.notes)
        asked = json.dumps(query.model_dump(exclude={"cursor", "limit"}), sort_keys=True)
        scope = f"features {found.index.digest} {asked}"
        ids, offset = chosen(found, query, labels), offset_of(query.cursor, scope)
        stop = offset + query.limit
        following = cursor_at(stop, scope) if stop < len(ids) else None
        return FeaturePage(items=rows(found, ids[offset:stop], labels), total=len(ids), next_cursor=following).answer()

    @router.get(
        "/sources/{source}/features/{index}",
        response_model=FeatureCard,
        responses=problems(404) | FRAGMENT,
        operation_id="feature",
    )
    async def feature(source: SourceName, index: Latent, _: Annotated[NoQuery, Query()], request: Request) -> Response:
        """All that is known of a feature; with `Accept: text/html`, the card as a fragment of a page."""
        found, record = lookup.record(source, index)
        accept = request.headers.get("accept", "")
        if "text/html" in accept and "application/json" not in accept:
            return HTMLResponse(Card(record).html(), headers={"Vary": "Accept"})
        answer = card(record, source=found.name, label=lookup.label(found, index)).answer()
        answer.headers["Vary"] = "Accept"
        return answer

    @router.get(
        "/sources/{source}/features/{index}/html",
        response_class=HTMLResponse,
        responses=problems(404),
        operation_id="feature_html",
    )
    async def fragment(source: SourceName, index: Latent, _: Annotated[NoQuery, Query()]) -> Response:
        """The card as a fragment of a page; it wants the stylesheet of the pages."""
        return HTMLResponse(Card(lookup.record(source, index)[1]).html())

    @router.get("/sources/{source}/random", response_model=RandomAnswer, responses=problems(404), operation_id="random_feature")
    async def random_feature(source: SourceName, query: Annotated[RandomQuery, Query()]) -> Response:
        """A feature that fires, drawn uniformly."""
        found = lookup.source(source)
        alive = np.flatnonzero(found.index.statistics.n_active)
        if len(alive) == 0:
            raise NotFound(f"no feature of {found.name} fires on any token", field="source")
        draw = random.Random(secrets.randbits(64) if query.seed is None else query.seed)
        index = int(alive[draw.randrange(len(alive))])
        return RandomAnswer(source=found.name, index=index, n_alive=len(alive)).answer(keep=query.seed is not None)

    return router
