"""Answers about new texts."""

from sae.inspection.server.answers.base import Record


class EncodedAnswer(Record):
    """What fires in a text."""

    tokens: list[str]
    """Texts of the tokens."""
    token_ids: list[int]
    """Their ids."""
    is_special: list[bool]
    """Tokens that an index never looks at."""
    active: dict[str, list[tuple[int, float]]]
    """By feature, strongest first: [token, value] of each firing."""
    steps: dict[str, list[int]] | None
    """Matching pursuit, by feature: step of selection (from 0) of each firing."""
    per_token: list[list[tuple[int, float]]] | None
    """By token, strongest first: [feature, value]; null unless asked for."""


class EncodeAnswer(Record):
    """What fires in texts."""

    source: str
    """The source."""
    items: list[EncodedAnswer]
    """One for each text."""


class ContrastRow(Record):
    """How a feature tells two sets of texts apart."""

    index: int
    """Latent id."""
    label: str | None
    """What people or programs call it."""
    auc: float
    """Probability that a text of `a` scores above one of `b`, ties counted half."""
    mean_a: float
    """Mean score in `a`."""
    mean_b: float
    """Mean score in `b`."""
    share_a: float
    """Share of the texts of `a` in which it fires."""
    share_b: float
    """Share of the texts of `b`."""
    p_value: float | None = None
    """Family-wise p-value over random divisions of the texts; null for too few texts."""


class ContrastAnswer(Record):
    """Features that tell two sets of texts apart."""

    source: str
    """The source."""
    items: list[ContrastRow]
    """Best first."""


class TokenizeAnswer(Record):
    """A text in tokens."""

    tokens: list[str]
    """Their texts, with those that open the row."""
    token_ids: list[int]
    """Their ids."""
    n_opening: int
    """How many stand before the text."""
    bos: str | None
    """The token that opens the row; null when none does."""
    limit: int
    """Most tokens of a row."""
