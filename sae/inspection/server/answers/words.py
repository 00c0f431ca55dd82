"""Answers about what people and explainers say."""

from sae.inspection.server.answers.base import Record
from sae.inspection.server.notes import Explanation


class ExplanationsAnswer(Record):
    """What is said about a feature."""

    items: list[Explanation]
    """Newest first."""


class NoteAnswer(Record):
    """The note on a feature."""

    text: str
    """The words."""
    changed: str
    """When it was written, UTC, ISO 8601."""


class ItemAnswer(Record):
    """A feature in a list."""

    source: str | None
    """Its source; null when none of this server has its dictionary."""
    dictionary: str
    """Digest of its dictionary."""
    index: int
    """Latent id."""
    comment: str
    """Why it is there."""


class ListAnswer(Record):
    """A list of features."""

    name: str
    """Its name, as in addresses."""
    title: str
    """What people read."""
    description: str
    """What it is about."""
    changed: str
    """When it was last written, UTC, ISO 8601."""
    items: list[ItemAnswer]
    """The features, in order."""


class ListsAnswer(Record):
    """All lists."""

    items: list[ListAnswer]
    """By name."""
