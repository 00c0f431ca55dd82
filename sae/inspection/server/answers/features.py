"""Answers about features. Records of the index (`sae.inspection.records`) are sent as they are: their fields are the schema."""

from typing import Any, get_type_hints

from pydantic import Field, create_model

from sae.inspection.records import Example, FeatureRecord, Neighbour, TokenEffect
from sae.inspection.server.answers.base import Record


class FeatureRow(Record):
    """A row of the table."""

    index: int
    """Latent id."""
    alive: bool
    """Whether it fires on some token."""
    density: float
    """Share of the tokens on which it fires."""
    n_active: int
    """Tokens on which it fires."""
    n_documents: int
    """Documents in which it fires."""
    max: float
    """Largest value."""
    min: float
    """Smallest non-zero value."""
    mean: float
    """Mean over its firings."""
    token_bits: float
    """Held-out bits about its token."""
    next_bits: float
    """Held-out bits about the next token."""
    leading_token: str | None
    """Vocabulary item with most of its mass."""
    label: str | None
    """What people or programs call it."""


class FeaturePage(Record):
    """A page of the table."""

    items: list[FeatureRow]
    """The rows."""
    total: int
    """Rows on all pages."""
    next_cursor: str | None
    """Where the next page begins; null on the last."""


def _card() -> type[Record]:
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in get_type_hints(FeatureRecord).items()}
    own: dict[str, Any] = {
        "alive": (bool, Field(description="Whether it fires on any token looked at.")),
        "signed": (bool, Field(description="Whether any of its values is negative.")),
        "source_name": (str, Field(description="Name of the source.")),
        "label": (str | None, Field(description="What people or programs call it.")),
    }
    return create_model("FeatureCard", __base__=Record, __doc__="All that is known of a feature.", **fields, **own)


FeatureCard = _card()
"""Every field of `FeatureRecord`, with what the server adds."""


def card(record: FeatureRecord, *, source: str, label: str | None) -> Record:
    """The card of a feature."""
    own = {"alive": record.alive, "signed": record.signed, "source_name": source, "label": label}
    return FeatureCard.model_construct(**vars(record), **own)


class Passage(Record):
    """A passage."""

    example: Example
    """Tokens, values and where they are from."""
    low: float | None = None
    """Interval that it was sampled from: its lower end, excluded."""
    high: float | None = None
    """Its upper end, included."""


class ExamplePage(Record):
    """Passages of a feature."""

    group: str
    """Which passages they are."""
    definition: str
    """How they are chosen, in words."""
    items: list[Passage]
    """The passages."""
    total: int | None
    """Passages on all pages; null where only the last page tells."""
    next_cursor: str | None
    """Where the next page begins; null on the last."""


class HistogramAnswer(Record):
    """Values of a feature."""

    edges: list[float]
    """Bin edges, ascending."""
    counts: list[int]
    """Values in each bin."""
    quantiles: dict[str, float]
    """Quantiles of the non-zero values, by probability."""
    steps: list[int]
    """Matching pursuit: firings by step of selection."""


class TokenRow(Record):
    """A vocabulary item on which the feature fires."""

    token: str
    """Its text."""
    token_id: int
    """Its id."""
    n_active: int
    """Firings on it."""
    n_occurrences: int
    """Its occurrences among the tokens looked at."""
    precision: float
    """n_active / n_occurrences."""
    mass: float
    """Sum of |value| on it."""
    share: float
    """mass over the feature's whole mass."""
    max: float | None
    """Value of largest magnitude on it; null when only the stored list is known."""


class TokensAnswer(Record):
    """Vocabulary items that drive a feature."""

    by: str
    """What they are ranked by."""
    complete: bool
    """Whether all items were ranked; false when the index has no entries and only its stored list is known."""
    items: list[TokenRow]
    """Best first."""


class LogitsAnswer(Record):
    """Tokens whose logits the feature's direction moves."""

    convention: str
    """What the effects are, in words."""
    promoted: list[TokenEffect]
    """Largest first."""
    suppressed: list[TokenEffect]
    """Smallest first."""


class NeighboursAnswer(Record):
    """Close features."""

    by: str
    """Kind of closeness."""
    definition: str
    """What it is, in words."""
    stored: int
    """How many the index keeps."""
    items: list[Neighbour]
    """Closest first."""


class RandomAnswer(Record):
    """A feature that fires."""

    source: str
    """Its source."""
    index: int
    """Latent id."""
    n_alive: int
    """How many it was drawn from."""
