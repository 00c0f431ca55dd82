"""Features on new texts: one feature, or all of them, token by token. They need the language model."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from sae.inspection.encoded import EncodedText
from sae.inspection.server.api.texts import encode_texts, firings, not_steering
from sae.inspection.server.compat.bodies import COMPUTES, FAILURE, ActivationNew, ActivationSource, Steer, Tokenize, post, sent
from sae.inspection.server.compat.features import identifiers
from sae.inspection.server.context import ServerContext, Source
from sae.inspection.server.failures import NotFound
from sae.inspection.server.lookup import Lookup


def activation_router(context: ServerContext) -> APIRouter:
    """Activations of texts, tokens of a text, and steering."""
    router, lookup = APIRouter(), Lookup(context)

    @post(router, "/activation/new", response_model=None, responses=COMPUTES, operation_id="np_activation")
    async def one(body: ActivationNew) -> Response:
        """The values of one feature at each token of a text, or of each of several."""
        feature = body.feature or body.neuron
        assert feature is not None
        source = context.registry.compatible(feature.modelId, feature.source_id)
        lookup.latents(source, [feature.index])
        several = isinstance(body.customText, list)
        texts = body.customText if isinstance(body.customText, list) else [body.customText]
        encoded = await encode_texts(context, source, texts, masked=not body.ignoreBos)
        rows = [activation(source, feature.index, text, ignore_bos=body.ignoreBos) for text in encoded]
        return sent(rows if several else rows[0])

    @post(router, "/activation/source", response_model=dict[str, Any], responses=COMPUTES, operation_id="np_activation_source")
    async def all_features(body: ActivationSource) -> Response:
        """Every feature that fires in texts: its tokens and values."""
        source = context.registry.compatible(body.modelId, body.source)
        texts = body.customText if isinstance(body.customText, list) else [body.customText]
        encoded = await encode_texts(context, source, texts)
        results = [{"tokens": text.tokens, "activeFeatures": {str(i): pairs for i, pairs in firings(text).items()}} for text in encoded]
        return sent({"results": results})

    @post(router, "/tokenize", response_model=dict[str, Any], responses=COMPUTES, operation_id="np_tokenize")
    async def tokenize(body: Tokenize) -> Response:
        """A text in tokens. `tokens` are ids, `tokenStrings` their texts."""
        source = of_model(context, body.modelId)
        if source.live is None:
            raise source.needs_model
        row = (await context.run(source.live.tokenise, [body.prompt]))[0]
        first = 0 if body.prependBos else row.n_opening
        opened = body.prependBos and row.n_opening > 0
        return sent({"tokens": row.token_ids[first:], "tokenStrings": row.tokens[first:], "prependBos": opened})

    @post(router, "/steer", response_model=None, responses=COMPUTES | {501: FAILURE}, operation_id="np_steer", status_code=501)
    async def steer(body: Steer) -> Response:
        """Steered generation. This version does not have it; the request is checked as it will be."""
        for feature in body.features:
            source = context.registry.compatible(feature.modelId, feature.source_id)
            lookup.latents(source, [feature.index])
            if source.live is None:
                raise source.needs_model
        raise not_steering()

    return router


def of_model(context: ServerContext, model_id: str) -> Source:
    """A source of the model, one that encodes if there is one. Raises NotFound."""
    named = [source for source in context.registry if source.peer.model_id == model_id.lower()]
    if not named:
        raise NotFound(f"there is no source of a model {model_id[:128]!r}")
    return next((source for source in named if source.live is not None), named[0])


def activation(source: Source, latent: int, text: EncodedText, *, ignore_bos: bool) -> dict[str, Any]:
    """One feature's values over a text; the tokens that open the row are left out when asked."""
    kept = [i for i, special in enumerate(text.is_special) if not (ignore_bos and special and i == 0)]
    dense = [next((v for j, v in zip(text.latents[i], text.values[i], strict=True) if j == latent), 0.0) for i in kept]
    largest = max(dense)
    return {
        **identifiers(source, latent),
        "tokens": [text.tokens[i] for i in kept],
        "values": dense,
        "maxValue": largest,
        "maxValueTokenIndex": dense.index(largest),
        "minValue": min(dense),
    }
