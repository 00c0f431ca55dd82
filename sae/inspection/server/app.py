"""The application: the API, the routes for Neuronpedia's clients, and the pages, behind one gate.

app = create_app(ServerContext(Registry({"topk": Source("topk", FeatureIndex.open("index"))})))
uvicorn.run(app, host="127.0.0.1", server_header=False)
"""

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from sae.inspection.server.answers import Problem
from sae.inspection.server.api import api_router
from sae.inspection.server.compat import compatible_router
from sae.inspection.server.context import ServerContext
from sae.inspection.server.errors import install, refusal
from sae.inspection.server.failures import Refused
from sae.inspection.server.representation import Representation
from sae.inspection.server.security import Application, Gate, Headers, Scope

DESCRIPTION = (
    "Features of sparse dictionaries: what they fire on, what they promote, how they lie together. Errors are problem JSON (RFC 9457). "
    "Sizes past a limit are refused, never cut. Of duplicate keys in a JSON body the last counts. Every read has an ETag."
)


def create_app(context: ServerContext) -> FastAPI:
    """The server's application. Nothing is opened or loaded here: `context` has everything."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        context.compute.close()

    app = FastAPI(
        title="Sparse dictionary inspection",
        version="1",
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    install(app, context)
    _include_pages(app, context)
    app.include_router(api_router(context))
    app.include_router(compatible_router(context))
    notes = context.notes
    app.add_middleware(Representation, stamp=notes.stamp if notes else str)
    app.add_middleware(Gate, settings=context.settings, refuse=_refuse)
    _state_problems(app)
    return app


def _include_pages(app: FastAPI, context: ServerContext) -> None:
    """The pages and their files, where the package has them."""
    if importlib.util.find_spec("sae.inspection.server.pages.router") is None:
        return
    from sae.inspection.server.pages.router import pages_router
    from sae.inspection.server.pages.static import static_router

    app.include_router(static_router())
    app.include_router(pages_router(context))


def _refuse(scope: Scope, failure: Refused) -> Application:
    return refusal(scope["path"], Headers(scope).one("accept"), failure)


def _state_problems(app: FastAPI) -> None:
    """Make the schema hold the model of a problem, to which every route refers."""
    plain = app.openapi

    def openapi() -> dict[str, object]:
        schema = plain()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", Problem.model_json_schema())
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
