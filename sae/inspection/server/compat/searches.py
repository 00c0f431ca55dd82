"""The strongest features of a text, as a whole and token by token. They need the language model."""

from typing import Any, NamedTuple

from fastapi import APIRouter
from starlette.responses import Response

from sae.inspection.encoded import EncodedText
from sae.inspection.server.api.texts import encode_texts, firings
from sae.inspection.server.compat.bodies import COMPUTES, SearchAll, SearchByToken, post, sent
from sae.inspection.server.compat.features import identifiers
from sae.inspection.server.context import ServerContext, Source
from sae.inspection.server.failures import NotFound


class Hit(NamedTuple):
    """A feature in a text."""

    source: Source
    """Its source."""
    latent: int
    """Its id."""
    values: list[float]
    """Its value at each token."""


def search_router(context: ServerContext) -> APIRouter:
    """`/api/search-all` and `/api/search-topk-by-token`."""
    router = APIRouter()

    @post(router, "/search-all", response_model=dict[str, Any], responses=COMPUTES, operation_id="np_search_all")
    async def search_all(body: SearchAll) -> Response:
        """The strongest features of a text, or of each of several, over one or more sources."""
        sources = selected(context, body)
        several = isinstance(body.text, list)
        texts = body.text if isinstance(body.text, list) else [body.text]
        encoded = [await encode_texts(context, source, texts, masked=not body.ignoreBos) for source in sources]
        results = []
        for j in range(len(texts)):
            hits = [hit for source, found in zip(sources, encoded, strict=True) for hit in hits_of(source, found[j], body.densityThreshold)]
            results.append(ranked(encoded[0][j], hits, body))
        return sent({"results": results} if several else results[0])

    @post(router, "/search-topk-by-token", response_model=dict[str, Any], responses=COMPUTES, operation_id="np_search_by_token")
    async def by_token(body: SearchByToken) -> Response:
        """The strongest features of each token of a text, or of each of several."""
        source = context.registry.compatible(body.modelId, body.source)
        several = isinstance(body.text, list)
        texts = body.text if isinstance(body.text, list) else [body.text]
        encoded = await encode_texts(context, source, texts, masked=not body.ignoreBos)
        results = [{"source": source.peer.source, "results": token_rows(source, text, body)} for text in encoded]
        return sent({"results": results} if several else results[0])

    return router


def selected(context: ServerContext, body: SearchAll) -> list[Source]:
    """The sources to search: those named, or all of the set. Raises NotFound."""
    if body.selectedLayers:
        named = (context.registry.compatible(body.modelId, layer) for layer in body.selectedLayers)
        return list({source.name: source for source in named}.values())
    model, group = body.modelId.lower(), body.sourceSet.lower()
    found = [source for source in context.registry if source.peer.model_id == model and source.peer.source_set == group]
    if not found:
        raise NotFound(f"there is no source set {body.sourceSet[:128]!r} of a model {body.modelId[:128]!r}")
    return found


def hits_of(source: Source, text: EncodedText, threshold: float | int) -> list[Hit]:
    """The features of a text whose density is at most the threshold (0 or less: all)."""
    found = []
    for latent, pairs in firings(text).items():
        if threshold > 0 and source.index.statistics.density[latent] > threshold:
            continue
        values = [0.0] * len(text.tokens)
        for place, value in pairs:
            values[place] = value
        found.append(Hit(source, latent, values))
    return found


def ranked(text: EncodedText, hits: list[Hit], body: SearchAll) -> dict[str, Any]:
    """The strongest hits: by their values at the tokens asked for, added up, or by their largest magnitude."""
    places = [i for i in body.sortIndexes if i < len(text.tokens)]

    def strength(hit: Hit) -> float:
        return abs(sum(hit.values[i] for i in places)) if places else max(map(abs, hit.values))

    best = sorted(hits, key=lambda hit: (-strength(hit), hit.source.name, hit.latent))[: body.numResults]
    rows = [
        {
            **identifiers(hit.source, hit.latent),
            "values": hit.values,
            "maxValue": max(hit.values),
            "maxValueIndex": hit.values.index(max(hit.values)),
        }
        for hit in best
    ]
    return {"tokens": text.tokens, "result": rows, "sortIndexes": body.sortIndexes}


def token_rows(source: Source, text: EncodedText, body: SearchByToken) -> list[dict[str, Any]]:
    """By token: its strongest features, largest magnitude first."""
    density, rows = source.index.statistics.density, []
    for place, token in enumerate(text.tokens):
        if body.ignoreBos and text.is_special[place]:
            continue
        pairs = sorted(zip(text.latents[place], text.values[place], strict=True), key=lambda pair: (-abs(pair[1]), pair[0]))
        kept = [(i, value) for i, value in pairs if not 0 < body.densityThreshold < density[i]][: body.numResults]
        features = [{"featureIndex": i, "activationValue": value} for i, value in kept]
        rows.append({"position": place, "token": token, "isSpecial": text.is_special[place], "topFeatures": features})
    return rows
