"""Routes under /api that clients of Neuronpedia use (https://github.com/hijohnnylin/neuronpedia): its paths, its fields, our features.

Identifiers are a model's name, a source `{layer}-{name}` and an index. Unknown fields of a request are ignored. Failures are
`{"error": kind, "message": sentence}`. What this server does not know (authors, votes, dates, neurons) is absent or empty, never made up.
"""

from fastapi import APIRouter

from sae.inspection.server.compat.activations import activation_router
from sae.inspection.server.compat.features import feature_router
from sae.inspection.server.compat.searches import search_router
from sae.inspection.server.context import ServerContext


def compatible_router(context: ServerContext) -> APIRouter:
    """Every compatible route."""
    router = APIRouter(prefix="/api", tags=["neuronpedia"])
    for part in (feature_router, activation_router, search_router):
        router.include_router(part(context))
    return router
