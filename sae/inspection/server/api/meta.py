"""Liveness, what the server can do, and its sources."""

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from starlette.responses import Response

from sae.fingerprint import to_json
from sae.inspection.exports.provenance import provenance_of
from sae.inspection.server.answers import Capabilities, Health, SourceInfo, Sources, problems
from sae.inspection.server.context import MODEL_COMMAND, ServerContext, Source
from sae.inspection.server.lookup import Lookup
from sae.inspection.server.schemas import NoQuery, SourceName


def health_router() -> APIRouter:
    """`/healthz`."""
    router = APIRouter(tags=["server"])

    @router.get("/healthz", response_model=Health, operation_id="health")
    async def health() -> Response:
        """Answers whenever the server runs; needs no token."""
        return Health().answer(keep=False)

    return router


def meta_router(context: ServerContext) -> APIRouter:
    """Capabilities and sources."""
    router, lookup = APIRouter(tags=["server"]), Lookup(context)

    @router.get("/capabilities", response_model=Capabilities, responses=problems(), operation_id="capabilities")
    async def capabilities(_: Annotated[NoQuery, Query()]) -> Response:
        """What this server can do, and how much it lets a request ask for."""
        encode = [source.name for source in context.registry if source.live is not None]
        return Capabilities(
            version=package_version(),
            model_loaded=bool(encode),
            encode=encode,
            steer=False,
            notes=context.notes is not None,
            results=context.results is not None,
            start_model=MODEL_COMMAND,
            limits=asdict(context.limits),
            failures=context.registry.failures,
        ).answer()

    @router.get("/sources", response_model=Sources, responses=problems(), operation_id="sources")
    async def sources(_: Annotated[NoQuery, Query()]) -> Response:
        """Every source."""
        return Sources(items=[source_info(source) for source in context.registry]).answer()

    @router.get("/sources/{source}", response_model=SourceInfo, responses=problems(404), operation_id="source")
    async def source(source: SourceName, _: Annotated[NoQuery, Query()]) -> Response:
        """One source."""
        return source_info(lookup.source(source)).answer()

    return router


def source_info(source: Source) -> SourceInfo:
    """What a source says about itself."""
    index = source.index
    manifest, about = index.manifest, index.manifest.source
    return SourceInfo(
        name=source.name,
        dictionary=about.dictionary,
        kind=about.kind,
        site=about.site,
        d_sae=about.d_sae,
        n_alive=int(np.count_nonzero(index.statistics.n_active)),
        n_tokens=about.n_tokens,
        n_documents=about.n_documents,
        n_entries=manifest.n_entries,
        mean_active=manifest.n_entries / max(about.n_tokens, 1),
        n_steps=manifest.n_steps,
        effects_convention=about.effects_convention,
        model_id=source.peer.model_id,
        source_id=source.peer.source,
        digests={"index": index.digest, "dictionary": about.dictionary_digest, "store": about.store_digest},
        provenance=to_json(provenance_of(index)),
        settings=to_json(manifest.config),
        can_encode=source.live is not None,
    )


def package_version() -> str:
    """Version of the installed package; "unknown" when it runs from its sources."""
    try:
        return version("sae-workbench")
    except PackageNotFoundError:
        return "unknown"
