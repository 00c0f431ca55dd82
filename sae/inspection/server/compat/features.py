"""`GET /api/feature/{modelId}/{source}/{index}`, the stored activations of a feature, nearest features, and words in explanations."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from sae.inspection.exports.folder import short
from sae.inspection.exports.peers import feature_arrays, groups, peer_text, shorts
from sae.inspection.records import FeatureRecord
from sae.inspection.server.compat.bodies import Cosine, ExplanationSearch, FeatureId, failures, post, sent
from sae.inspection.server.context import ServerContext, Source
from sae.inspection.server.failures import NotFound
from sae.inspection.server.lookup import Lookup
from sae.inspection.server.schemas import Latent

PAGE = 20
"""Explanations on a page, as many as Neuronpedia returns."""
N_PASSAGES = 3
"""Passages of a feature that is found by an explanation."""
N_NEAREST = 10
"""Nearest features returned."""


def feature_router(context: ServerContext) -> APIRouter:
    """Reading features."""
    router, lookup = APIRouter(), Lookup(context)

    def found(model_id: str, source_id: str, index: int) -> tuple[Source, FeatureRecord]:
        source = context.registry.compatible(model_id, source_id)
        lookup.latents(source, [index])
        return source, source.index.record(index)

    @router.get("/feature/{modelId}/{source}/{index}", response_model=dict[str, Any], responses=failures(), operation_id="np_feature")
    async def feature(modelId: str, source: str, index: Latent) -> Response:
        """A feature with its passages and explanations."""
        return sent(feature_row(*found(modelId, source, index), context), keep=True)

    @post(router, "/activation/get", response_model=list[dict[str, Any]], responses=failures(), operation_id="np_activations")
    async def activations(body: FeatureId) -> Response:
        """The stored passages of a feature, strongest first."""
        source, record = found(body.modelId, body.source_id, body.index)
        rows = sorted(activation_rows(source, record), key=lambda row: -row["maxValue"])
        if not rows:
            raise NotFound(f"feature {body.index} of {source.name} fires on no token")
        return sent(rows)

    @post(router, "/cossim", response_model=dict[str, Any], responses=failures(), operation_id="np_cossim")
    async def cosine(body: Cosine) -> Response:
        """The nearest features of the same source by the cosine of their decoder directions."""
        source, record = found(body.modelId, body.source, body.index)
        if context.registry.compatible(body.targetModelId, body.targetSourceId) is not source:
            raise NotFound("an index keeps the nearest features of its own source only; targetSourceId must be that source")
        nearest = [
            {
                "feature": {"model": source.peer.model_id, "source": source.peer.source, "index": other.index},
                "cosineSimilarity": other.value,
            }
            for other in record.neighbours[:N_NEAREST]
        ]
        own = {"model": source.peer.model_id, "source": source.peer.source, "index": record.index}
        return sent({"feature": own, "topkDecoderCossimFeatures": nearest})

    @post(router, "/explanation/search", response_model=dict[str, Any], responses=failures(), operation_id="np_explanation_search")
    async def search(body: ExplanationSearch) -> Response:
        """Explanations that hold the query, whatever its case; Neuronpedia compares meanings, this server compares letters."""
        rows = []
        for source in {s.name: s for s in (context.registry.compatible(body.modelId, layer) for layer in body.layers)}.values():
            hits = context.notes.search(source.dictionary, body.query, limit=1000) if context.notes else []
            rows += [(source, latent, text) for latent, kind, text in hits if kind == "label" and latent < source.index.d_sae]
        page = rows[body.offset : body.offset + PAGE]
        more = len(rows) > body.offset + PAGE
        results = [_explained(context, source, latent, text) for source, latent, text in page]
        following = {"nextOffset": body.offset + len(page)} if more else {}
        return sent({"request": body.model_dump(), "results": results, "resultsCount": len(results), "hasMore": more, **following})

    return router


def _explained(context: ServerContext, source: Source, latent: int, text: str) -> dict[str, Any]:
    row = next((e for e in explanation_rows(source, latent, context) if e["description"] == peer_text(text)), {})
    neuron = feature_row(source, source.index.record(latent), context)
    return {**row, "neuron": neuron | {"activations": neuron["activations"][:N_PASSAGES]}}


def identifiers(source: Source, latent: int) -> dict[str, str]:
    """How a row names its feature."""
    return {"modelId": source.peer.model_id, "layer": source.peer.source, "source": source.peer.source, "index": str(latent)}


def feature_row(source: Source, record: FeatureRecord, context: ServerContext) -> dict[str, Any]:
    """A feature as the route sends it."""
    return {
        **identifiers(source, record.index),
        "sourceSetName": source.peer.source_set,
        "hookName": record.source.site,
        "maxActApprox": short(record.max),
        "hasVector": False,
        "topkCosSimIndices": [other.index for other in record.neighbours],
        "topkCosSimValues": [short(other.value) for other in record.neighbours],
        **feature_arrays(record, None),
        "explanations": explanation_rows(source, record.index, context),
        "activations": list(activation_rows(source, record)),
        "comments": [],
        "lists": [],
    }


def activation_rows(source: Source, record: FeatureRecord) -> Iterator[dict[str, Any]]:
    """The passages of a feature, group by group: strongest, intervals, most negative. The strongest are no interval and have no share: the
    -1 that files have there is refused by the official client."""
    for group in groups(record):
        for example in group.examples:
            values = shorts(example.values)
            largest = max(values)
            yield {
                **identifiers(source, record.index),
                "tokens": [peer_text(token) for token in example.tokens],
                "values": values,
                "maxValue": largest,
                "maxValueTokenIndex": values.index(largest),
                "minValue": min(values),
                "dataIndex": f"{example.document}:{example.row}:{example.position}",
                "binMin": group.low,
                "binMax": group.high,
                "binContains": group.share if group.share >= 0 else None,
                "qualifyingTokenIndex": example.peak,
            }


def explanation_rows(source: Source, latent: int, context: ServerContext) -> list[dict[str, Any]]:
    """What is said about a feature, newest first."""
    notes = context.notes
    return [
        {
            "id": str(explanation.id),
            **identifiers(source, latent),
            "description": peer_text(explanation.text),
            "typeName": peer_text(explanation.method),
            "explanationModelName": peer_text(explanation.author) or None,
            "createdAt": explanation.created,
            "scores": [{"explanationScoreTypeName": score.method, "value": score.value} for score in explanation.scores],
        }
        for explanation in (notes.explanations(source.dictionary, latent) if notes else ())
    ]
