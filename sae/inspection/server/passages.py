"""Passages of a feature, group by group, as wide and as many as a request asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae.inspection.contexts import window_values
from sae.inspection.entries import Entries
from sae.inspection.query import top_examples
from sae.inspection.records import Example, FeatureRecord
from sae.inspection.server.answers import Passage
from sae.inspection.server.context import Source
from sae.inspection.server.schemas import ExamplesQuery

DEFINITIONS = {
    "top": "The strongest firings, strongest first; with dedup at most one a document and no near-duplicates.",
    "bottom": "The most negative values, most negative first; with dedup at most one a document and no near-duplicates.",
    "interval": "Firings drawn uniformly, with a seed, from equal-width intervals (low, high] of the positive values, highest first.",
    "random": "Firings drawn uniformly, with a seed.",
    "near_miss": "Passages around tokens on which the feature does not fire though its driving tokens stand there.",
}
"""How each group is chosen."""


@dataclass(frozen=True)
class Passages:
    """A page of passages."""

    items: list[Passage]
    """The page."""
    total: int | None
    """Passages on all pages; None where only the last page tells."""
    more: bool
    """Whether another page follows."""
    definition: str
    """How they are chosen."""


def passages(source: Source, record: FeatureRecord, query: ExamplesQuery, offset: int) -> Passages:
    """The passages that the query asks for, from `offset` on."""
    stop = offset + query.limit
    if query.group in ("top", "bottom") and _has_entries(source):
        return _ranked(source, record, query, offset)
    found = _stored(record, query.group)
    page = [_widened(source, record.index, passage, query.context) for passage in found[offset:stop]]
    definition = (query.group == "near_miss" and record.near_miss_definition) or DEFINITIONS[query.group]
    return Passages(page, len(found), stop < len(found), definition)


def _has_entries(source: Source) -> bool:
    return (source.index.folder / "by_latent").is_dir()


def _stored(record: FeatureRecord, group: str) -> list[Passage]:
    if group == "interval":
        return [Passage(example=e, low=i.low, high=i.high) for i in record.intervals for e in i.examples]
    stored: dict[str, Sequence[Example]] = {
        "top": record.examples,
        "bottom": record.negative_examples,
        "random": record.random_examples,
        "near_miss": record.near_miss_examples,
    }
    return [Passage(example=example) for example in stored[group]]


def _ranked(source: Source, record: FeatureRecord, query: ExamplesQuery, offset: int) -> Passages:
    """The strongest, or most negative, passages from the entries: beyond those that a card keeps."""
    index, largest = source.index, query.group == "top"
    entries = index.entries(record.index)
    strength = entries.values if largest else -entries.values
    able = np.flatnonzero(strength > 0)
    config = index.manifest.config
    before, after = (config.before, config.after) if query.context is None else (query.context, query.context)
    if not query.dedup:
        order = able[np.argsort(-strength[able], kind="stable")]
        page = [_example(source, entries, int(entries.ids[i]), before, after) for i in order[offset : offset + query.limit].tolist()]
        items = [Passage(example=example) for example in page]
        return Passages(items, len(order), offset + query.limit < len(order), DEFINITIONS[query.group])
    most = min(offset + query.limit + 1, len(able))
    found = top_examples(index, record.index, most, largest=largest, before=before, after=after) if most else []
    more = len(found) > offset + query.limit
    items = [Passage(example=example) for example in found[offset : offset + query.limit]]
    return Passages(items, None if more else len(found), more, DEFINITIONS[query.group])


def _widened(source: Source, latent: int, passage: Passage, context: int | None) -> Passage:
    if context is None or not _has_entries(source):
        return passage
    example = passage.example
    token = example.row * source.index.table.context + example.position
    wide = _example(source, source.index.entries(latent), token, context, context)
    return Passage(example=wide, low=passage.low, high=passage.high)


def _example(source: Source, entries: Entries, token: int, before: int, after: int) -> Example:
    offsets, values = window_values(entries.ids, entries.values, *source.index.table.window(token, before, after))
    return source.index.reader.example(token, offsets, values, before, after)
