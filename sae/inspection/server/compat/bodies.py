"""Requests in Neuronpedia's manner. Their names are its names; unknown fields are ignored."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator
from starlette.responses import Response

from sae.inspection.exports.folder import json_line
from sae.inspection.server.schemas import LIMITS, Number, Text

MAX_TOKENISED = 10_000
"""Characters that its tokenizing route takes."""


def _index(value: object) -> object:
    """An index is a string of digits, or an integer."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 30:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a plain decimal integer")
    return value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Index = Annotated[int, BeforeValidator(_index), Field(ge=0, json_schema_extra={"anyOf": [{"type": "integer"}, {"type": "string"}]})]
"""A latent, as `7` or `"7"`."""
Identifier = Annotated[StrictStr, Field(min_length=1, max_length=200)]
"""A model or a source."""
OneOrMore = Text | Annotated[list[Text], Field(min_length=1, max_length=LIMITS.texts)]
"""A text, or several."""


class Loose(BaseModel):
    """Ignores fields that it does not know."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, populate_by_name=True)


class FeatureId(Loose):
    """A feature: model, source (also called layer), index."""

    modelId: Identifier
    source: Identifier | None = None
    layer: Identifier | None = None
    index: Index

    @model_validator(mode="after")
    def _has_source(self) -> "FeatureId":
        if self.source is None and self.layer is None:
            raise ValueError("source or layer must be given")
        return self

    @property
    def source_id(self) -> str:
        """The source under either name."""
        return self.layer or self.source or ""


class ActivationNew(Loose):
    """A feature on texts."""

    feature: FeatureId | None = None
    neuron: FeatureId | None = None
    customText: OneOrMore
    ignoreBos: StrictBool = False

    @model_validator(mode="after")
    def _has_feature(self) -> "ActivationNew":
        if self.feature is None and self.neuron is None:
            raise ValueError("feature must be given")
        return self


class ActivationSource(Loose):
    """All features on texts."""

    modelId: Identifier
    source: Identifier
    customText: Text | Annotated[list[Text], Field(min_length=1, max_length=4)]


class SearchAll(Loose):
    """The strongest features of texts."""

    modelId: Identifier
    sourceSet: Identifier
    text: OneOrMore
    selectedLayers: Annotated[list[Identifier], Field(max_length=16)] = []
    sortIndexes: Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(max_length=1024)] = []
    ignoreBos: StrictBool = True
    densityThreshold: Number = Field(-1, ge=-1, le=1)
    numResults: StrictInt = Field(50, ge=1, le=100)


class SearchByToken(Loose):
    """The strongest features of each token."""

    modelId: Identifier
    source: Identifier
    text: OneOrMore
    numResults: StrictInt = Field(10, ge=1, le=20)
    ignoreBos: StrictBool = True
    densityThreshold: Number = Field(0.01, ge=-1, le=1)


class Cosine(Loose):
    """The nearest features by cosine."""

    modelId: Identifier
    source: Identifier
    index: Index
    targetModelId: Identifier
    targetSourceId: Identifier


class Tokenize(Loose):
    """A text to cut into tokens."""

    modelId: Identifier
    prompt: Annotated[Text, Field(max_length=MAX_TOKENISED)]
    prependBos: StrictBool = True


class ExplanationSearch(Loose):
    """Words to find in explanations."""

    modelId: Identifier
    layers: Annotated[list[Identifier], Field(min_length=1, max_length=16)]
    query: Annotated[Text, Field(min_length=3, max_length=200)]
    offset: StrictInt = Field(0, ge=0, le=2**53)


class SteeringFeature(FeatureId):
    """A feature that steers."""

    strength: Number = Field(ge=-1e4, le=1e4)


class Steer(Loose):
    """A steered generation."""

    modelId: Identifier
    prompt: Annotated[Text, Field(max_length=2048)]
    features: Annotated[list[SteeringFeature], Field(min_length=1, max_length=16)]
    temperature: Number = Field(0.5, ge=0, le=2)
    n_tokens: StrictInt = Field(32, ge=1, le=256)
    seed: StrictInt = Field(16, ge=0, le=2**63 - 1)
    strength_multiplier: Number = Field(4, ge=0, le=10)


FAILURE: dict[str, Any] = {
    "description": "Failure",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
                "required": ["error", "message"],
            }
        }
    },
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The failures of a route, for the schema."""
    return dict.fromkeys((400, 401, 403, 404, 413, 415, 422, *statuses), FAILURE)


COMPUTES = failures(409, 503, 504)
"""Failures of a route that needs the language model."""


def sent(value: Any, *, keep: bool = False) -> Response:
    """A value as strict JSON."""
    return Response(json_line(value).encode(), headers={} if keep else {"Cache-Control": "no-store"}, media_type="application/json")


def post(router: APIRouter, path: str, **options: Any) -> Any:
    """Register a POST route with and without a slash at its end: the official client writes some addresses so."""

    def register(function: Any) -> Any:
        router.post(f"{path}/", include_in_schema=False)(function)
        return router.post(path, **options)(function)

    return register
