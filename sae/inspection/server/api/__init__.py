"""The API of this server, under /api/v1."""

from fastapi import APIRouter

from sae.inspection.server.api.exports import export_router
from sae.inspection.server.api.features import feature_router
from sae.inspection.server.api.meta import health_router, meta_router
from sae.inspection.server.api.parts import parts_router
from sae.inspection.server.api.relations import relations_router
from sae.inspection.server.api.runs import runs_router
from sae.inspection.server.api.texts import texts_router
from sae.inspection.server.api.words import words_router
from sae.inspection.server.context import ServerContext

PREFIX = "/api/v1"


def api_router(context: ServerContext) -> APIRouter:
    """Every route of the API, and `/healthz`."""
    router = APIRouter()
    router.include_router(health_router())
    for part in (meta_router, feature_router, parts_router, relations_router, texts_router, words_router, export_router, runs_router):
        router.include_router(part(context), prefix=PREFIX)
    return router
