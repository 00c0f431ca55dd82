"""What needs the language model: encoding texts, contrasting two sets of them, cutting a text into tokens, and steering.

Without the model every route answers 409 with the command that starts a server that has it. With it, calls take turns (`context.run`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from sae.inspection.encoded import EncodedText
from sae.inspection.server.answers import (
    PROBLEM,
    ContrastAnswer,
    ContrastRow,
    EncodeAnswer,
    EncodedAnswer,
    TokenizeAnswer,
    problems,
)
from sae.inspection.server.context import ServerContext, Source
from sae.inspection.server.failures import NotBuilt, NotLoaded
from sae.inspection.server.lookup import Lookup
from sae.inspection.server.schemas import ContrastBody, EncodeBody, NoQuery, SourceName, SteerBody, TokenizeBody

COMPUTES = problems(404, 409, 503, 504)


def texts_router(context: ServerContext) -> APIRouter:
    """`/encode` and `/contrast` of a source, `/tokenize` and `/steer`."""
    router, lookup = APIRouter(tags=["texts"]), Lookup(context)

    @router.post("/sources/{source}/encode", response_model=EncodeAnswer, responses=COMPUTES, operation_id="encode")
    async def encode(source: SourceName, body: EncodeBody, _: Annotated[NoQuery, Query()]) -> Response:
        """What fires in texts, token by token, sparse."""
        found = lookup.live(source)
        if body.features is not None:
            lookup.latents(found, body.features, field="features")
        encoded = await encode_texts(context, found, body.texts, top_k=body.top_k, masked=not body.ignore_special)
        items = [sparse(text, features=body.features, per_token=body.per_token) for text in encoded]
        return EncodeAnswer.model_construct(source=found.name, items=items).answer(keep=False)

    @router.post("/sources/{source}/contrast", response_model=ContrastAnswer, responses=COMPUTES, operation_id="contrast")
    async def contrast(source: SourceName, body: ContrastBody, _: Annotated[NoQuery, Query()]) -> Response:
        """Features that tell two sets of texts apart, best first."""
        found = lookup.live(source)
        assert found.live is not None
        ranked = await context.run(found.live.contrast, body.a, body.b, n=min(body.n, found.index.d_sae))
        labels = context.notes.labels(found.dictionary) if context.notes else {}
        rows = [ContrastRow(**vars(row), label=labels.get(row.index)) for row in ranked]
        return ContrastAnswer(source=found.name, items=rows).answer(keep=False)

    @router.post("/tokenize", response_model=TokenizeAnswer, responses=COMPUTES, operation_id="tokenize")
    async def tokenize(body: TokenizeBody, _: Annotated[NoQuery, Query()]) -> Response:
        """A text in tokens, with those that open a row."""
        found = lookup.live(body.source) if body.source is not None else any_live(context)
        assert found.live is not None
        row = (await context.run(found.live.tokenise, [body.text]))[0]
        return TokenizeAnswer(
            tokens=list(row.tokens),
            token_ids=list(row.token_ids),
            n_opening=row.n_opening,
            bos=row.tokens[0] if row.n_opening else None,
            limit=found.live.limit,
        ).answer(keep=False)

    @router.post("/steer", responses=COMPUTES | {501: PROBLEM}, operation_id="steer", status_code=501)
    async def steer(body: SteerBody, _: Annotated[NoQuery, Query()]) -> Response:
        """Steered generation. This version does not have it; the request is checked as it will be."""
        for feature in body.features:
            lookup.latents(lookup.live(feature.source), [feature.index], field="features")
        raise not_steering()

    return router


def not_steering() -> NotBuilt:
    """The failure of every steering route; `capabilities.steer` says when it is there."""
    return NotBuilt("this version of the server does not steer; `steer` in /api/v1/capabilities says whether a server does")


def any_live(context: ServerContext) -> Source:
    """The first source with a language model. Raises NotLoaded."""
    for source in context.registry:
        if source.live is not None:
            return source
    for source in context.registry:
        raise source.needs_model
    raise NotLoaded("this server has no source")


async def encode_texts(context: ServerContext, source: Source, texts: Sequence[str], **options: Any) -> list[EncodedText]:
    """The texts encoded, in the turn of this request. Raises NotLoaded, Busy, TooSlow, and ConfigError for a text that cannot be encoded."""
    if source.live is None:
        raise source.needs_model
    if (top_k := options.get("top_k")) is not None:
        options["top_k"] = min(top_k, source.index.d_sae)
    return await context.run(source.live.encode, list(texts), **options)


def firings(text: EncodedText) -> dict[int, list[tuple[int, float]]]:
    """By latent, strongest first (largest |value|, ties by id): [token, value] of each firing."""
    found: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for token, (latents, values) in enumerate(zip(text.latents, text.values, strict=True)):
        for latent, value in zip(latents, values, strict=True):
            found[latent].append((token, value))
    return dict(sorted(found.items(), key=lambda pair: (-max(abs(value) for _, value in pair[1]), pair[0])))


def sparse(text: EncodedText, *, features: Sequence[int] | None, per_token: bool) -> EncodedAnswer:
    """An encoded text as it is sent."""
    wanted = None if features is None else set(features)
    active = {str(i): pairs for i, pairs in firings(text).items() if wanted is None or i in wanted}
    steps: dict[str, list[int]] | None = None
    if text.steps is not None:
        place = {
            (token, latent): step for token, row in enumerate(text.latents) for latent, step in zip(row, text.steps[token], strict=True)
        }
        steps = {name: [place[token, int(name)] for token, _ in pairs] for name, pairs in active.items()}
    ranked = None
    if per_token:
        rows = [list(zip(latents, values, strict=True)) for latents, values in zip(text.latents, text.values, strict=True)]
        ranked = [sorted((p for p in row if wanted is None or p[0] in wanted), key=lambda p: (-abs(p[1]), p[0])) for row in rows]
    return EncodedAnswer.model_construct(
        tokens=list(text.tokens),
        token_ids=list(text.token_ids),
        is_special=list(text.is_special),
        active=active,
        steps=steps,
        per_token=ranked,
    )
