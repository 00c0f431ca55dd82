"""What requests may hold: unknown fields, numbers that are not finite and sizes past the limits are refused, never bent.

Integers of an address are plain decimal digits: `1e3`, `+5`, `007` and `5.0` are none. Integers of a body are JSON integers: `true` and `1.0`
are none. A text is refused before it reaches the tokenizer when it is empty, only whitespace, or holds NUL or half a surrogate pair.
"""

import re
from typing import Annotated, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from sae.inspection.encoded import check_texts
from sae.inspection.server.context import LIMITS, NAME

DECIMAL = re.compile(r"0|[1-9][0-9]*")


def _decimal(value: object) -> object:
    if isinstance(value, str) and not DECIMAL.fullmatch(value):
        raise ValueError("must be a plain decimal integer")
    if isinstance(value, str) and len(value) > 30:
        raise ValueError("must have at most 30 digits")
    return value


def _text(value: str) -> str:
    check_texts([value], name="text")
    return value


def _features(value: object) -> object:
    """`3,7,11` as a list of integers."""
    if isinstance(value, str):
        return [_decimal(part.strip()) for part in value.split(",")] if value.strip() else []
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in (_features(item) if isinstance(item, str) else [item])]  # type: ignore[union-attr]
    return value


Count = Annotated[int, BeforeValidator(_decimal)]
"""An integer of an address."""
Latent = Annotated[int, BeforeValidator(_decimal), Path(ge=0, description="Latent id, a plain decimal integer.", examples=[0])]
"""The latent that an address names."""
SourceName = Annotated[str, Path(description="Name of a source.")]
"""The source that an address names."""
Text = Annotated[StrictStr, Field(min_length=1, max_length=LIMITS.text_characters), AfterValidator(_text)]
"""A text to encode."""
Texts = Annotated[list[Text], Field(min_length=1, max_length=LIMITS.texts)]
"""Texts to encode."""
Number = StrictFloat | StrictInt
"""A number of a body."""
Cursor = Annotated[str | None, Field(default=None, max_length=64, description="`next_cursor` of the page before.")]
"""Where a page begins."""
Several = Annotated[list[int], BeforeValidator(_features), Field(min_length=1, max_length=LIMITS.together)]
"""Latent ids, parted by commas or given several times."""
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$", max_length=128)]
"""A name in an address."""


class Strict(BaseModel):
    """Refuses fields that it does not know, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class NoQuery(Strict):
    """No parameters."""


class TableQuery(Strict):
    """Which features a table lists, and in what order."""

    sort: Literal["index", "density", "n_active", "n_documents", "max", "min", "mean", "token_bits", "next_bits", "telling"] = "index"
    """Column; `telling` is token_bits + next_bits."""
    order: Literal["asc", "desc"] = "asc"
    """Ascending or descending; ties by index."""
    min_density: float = Field(0.0, ge=0, le=1)
    """Smallest density."""
    max_density: float = Field(1.0, ge=0, le=1)
    """Largest density."""
    min_max_act: float | None = None
    """Smallest largest value."""
    max_max_act: float | None = None
    """Largest largest value."""
    alive: bool | None = None
    """Only features that fire, or only dead ones."""
    label: str | None = Field(None, min_length=1, max_length=200)
    """Text that the label holds, whatever its case."""
    token: str | None = Field(None, min_length=1, max_length=200)
    """Text that the leading token holds, whatever its case."""
    limit: Count = Field(50, ge=1, le=LIMITS.page)
    """Rows."""
    cursor: Cursor


class ExamplesQuery(Strict):
    """Which passages, and how wide."""

    group: Literal["top", "bottom", "interval", "random", "near_miss"] = "top"
    """Strongest, most negative, sampled from intervals of the values, uniformly sampled, or near misses."""
    context: Count | None = Field(None, ge=0, le=LIMITS.window)
    """Tokens on either side of the peak; as stored when not given."""
    limit: Count = Field(20, ge=1, le=LIMITS.examples)
    """Passages."""
    cursor: Cursor
    dedup: bool = True
    """`top` and `bottom`: at most one a document and no near-duplicates."""


class TokensQuery(Strict):
    """How driving tokens are ranked."""

    by: Literal["mass", "max", "precision"] = "mass"
    """By share of the feature's mass, by largest value, or by the share of a token's occurrences on which it fires."""
    limit: Count = Field(20, ge=1, le=LIMITS.page)
    """Vocabulary items."""


class NeighboursQuery(Strict):
    """Which neighbours."""

    by: Literal["decoder_cosine", "encoder_cosine", "coactivation", "correlation"] = "decoder_cosine"
    """Kind of closeness."""
    limit: Count = Field(20, ge=1, le=LIMITS.neighbours)
    """Neighbours; an index keeps a number of them that it was built with."""


class RandomQuery(Strict):
    """Which feature."""

    seed: Count | None = Field(None, ge=0, le=2**63 - 1)
    """The same seed gives the same feature; another one every time when not given."""


class CoactivationQuery(Strict):
    """Between which features."""

    features: Several
    """Rows of the matrix."""
    columns: Annotated[list[int], BeforeValidator(_features), Field(max_length=LIMITS.together)] = []
    """Columns of the matrix; the rows when not given."""


class DocumentQuery(Strict):
    """Which part of a document."""

    start: Count = Field(0, ge=0, le=2**53)
    """First token."""
    limit: Count = Field(512, ge=1, le=2048)
    """Tokens."""


class SearchQuery(Strict):
    """What to look for."""

    q: str = Field(min_length=1, max_length=200)
    """Words of labels, notes, driving tokens and promoted tokens; `#7` is feature 7."""
    limit: Count = Field(50, ge=1, le=LIMITS.page)
    """Features."""


class ExportQuery(Strict):
    """What to take out."""

    format: Literal["neuronpedia", "saedashboard", "parquet", "html", "json"]
    """Format."""
    features: Annotated[list[int], BeforeValidator(_features), Field(max_length=LIMITS.export_features)] = []
    """Latent ids, parted by commas; all of them when not given, at most as many as in `limits.export_features`."""


class RunsQuery(Strict):
    """Which results."""

    kind: Literal["probes", "geometry"] | None = None
    """Only results of probes, or of geometry."""
    limit: Count = Field(50, ge=1, le=LIMITS.page)
    """Rows."""
    cursor: Cursor


class EncodeBody(Strict):
    """Texts to encode."""

    texts: Texts
    """The texts; a text longer than the model's context is refused, never cut."""
    top_k: StrictInt | None = Field(None, ge=1, le=LIMITS.top_k)
    """Only the strongest features of each token."""
    per_token: StrictBool = False
    """Also list the features of each token, strongest first."""
    features: Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(max_length=LIMITS.top_k)] | None = None
    """Only these features."""
    ignore_special: StrictBool = True
    """Leave out tokens that an index never looks at (the first position, and outliers of norm)."""


class ContrastBody(Strict):
    """Two sets of texts."""

    a: Texts
    """Texts of one set."""
    b: Texts
    """Texts of the other."""
    n: StrictInt = Field(50, ge=1, le=LIMITS.top_k)
    """Features returned."""


class TokenizeBody(Strict):
    """A text to cut into tokens."""

    source: Name | None = None
    """Source whose model is asked; the first with a model when not given."""
    text: Text
    """The text."""


class SteeredFeature(Strict):
    """A feature that steers."""

    source: Name
    """Its source."""
    index: StrictInt = Field(ge=0)
    """Latent id."""
    strength: Number = Field(ge=-100, le=100)
    """In units of its largest value."""


class SteerBody(Strict):
    """A steered generation."""

    prompt: Text
    """What the model continues."""
    features: Annotated[list[SteeredFeature], Field(min_length=1, max_length=16)]
    """What steers it."""
    method: Literal["add", "project", "clamp"] = "add"
    """How the residual stream is changed."""
    temperature: Number = Field(0.5, ge=0, le=2)
    """Of sampling; 0 takes the likeliest token."""
    n_tokens: StrictInt = Field(32, ge=1, le=256)
    """Tokens generated."""
    seed: StrictInt = Field(0, ge=0, le=2**63 - 1)
    """Of sampling."""


class ExplanationBody(Strict):
    """What a feature means."""

    text: Annotated[Text, Field(max_length=2000)]
    """The words."""
    method: Annotated[StrictStr, Field(min_length=1, max_length=100)] = "human"
    """`human`, or the name of what wrote it."""
    author: Annotated[StrictStr, Field(max_length=100)] = ""
    """The person, or the model that was asked."""


class ScoreBody(Strict):
    """How an explanation did in a test."""

    method: Annotated[StrictStr, Field(min_length=1, max_length=100)]
    """Name of the test."""
    value: Number = Field(ge=-1e9, le=1e9)
    """What it gave."""
    details: dict[str, str | float | int | bool | None] = Field(default_factory=dict, max_length=50)
    """Whatever else the test says."""


class NoteBody(Strict):
    """A note on a feature."""

    text: Annotated[Text, Field(max_length=20_000)]
    """The words."""


class ItemBody(Strict):
    """A feature in a list."""

    source: Name
    """Its source."""
    index: StrictInt = Field(ge=0)
    """Latent id."""
    comment: Annotated[StrictStr, Field(max_length=500)] = ""
    """Why it is there."""


class ListBody(Strict):
    """A list of features."""

    title: Annotated[Text, Field(max_length=200)]
    """What people read."""
    description: Annotated[StrictStr, Field(max_length=2000)] = ""
    """What it is about."""
    items: Annotated[list[ItemBody], Field(max_length=1000)] = []
    """The features, in order."""
