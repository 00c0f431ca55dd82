"""The page of a feature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi.responses import Response
from markupsafe import Markup

from sae.errors import ConfigError, FormatError
from sae.inspection.contexts import window_values
from sae.inspection.definitions import DEFINITIONS
from sae.inspection.display import FeatureCard
from sae.inspection.format import number, passage, percent
from sae.inspection.passages import Look
from sae.inspection.records import RELATIONS, Example, FeatureRecord, Neighbour
from sae.inspection.server.answers import card
from sae.inspection.server.context import MODEL_COMMAND, Source
from sae.inspection.server.failures import Refused
from sae.inspection.server.pages.overview import SORTED_BY
from sae.inspection.server.pages.parameters import latent_of
from sae.inspection.server.pages.shell import Page
from sae.inspection.server.pages.strips import strip
from sae.inspection.server.pages.table import TableQuery, selected, source_table

TABS = {"top": "strongest", "intervals": "intervals", "random": "random", "near": "near misses", "negative": "negative tail"}
"""Tab -> its definition's name."""
TAB_NAMES = {"top": "Strongest", "intervals": "Across the range", "random": "Random", "near": "Near misses", "negative": "Negative tail"}
GROUPS = {"top": "top", "intervals": "intervals", "random": "random", "near": "near_miss", "negative": "bottom"}
"""Tab -> group of stored passages."""
CONTEXTS = {"5": 5, "16": 16, "full": None}
"""Tokens on either side of the peak; None shows the whole row of the store, as far as it is the same document."""
LONGEST_TEXT = 8000
RELATION_NAMES = {
    "decoder_cosine": "Decoder cosine",
    "encoder_cosine": "Encoder cosine",
    "coactivation": "Co-activation",
    "correlation": "Correlation",
}
SHOWN_NEIGHBOURS = 8
LOOK = Look("page")


@dataclass(frozen=True)
class Related:
    """A list of neighbours as shown."""

    name: str
    """Heading."""
    definition: str
    """What closeness is."""
    rows: tuple[tuple[Neighbour, str, str | None], ...]
    """(Neighbour, text of the token that drives it, its label)."""


async def feature_page(page: Page, source: Source, text: str) -> Response:
    """`/s/{source}/f/{index}`."""
    latent = latent_of(source, text)
    tab = page.parameters.choice("tab", tuple(TABS), "top")
    record = source.index.record(latent, passages={GROUPS[tab]: 10**6})
    stored = source.index.reader.n_passages(latent)
    context = page.parameters.choice("context", tuple(CONTEXTS), "16")
    query = TableQuery.read(page.parameters)
    labels = page.labels(source)
    card = FeatureCard(record)
    return page.render(
        "feature.html",
        source=source,
        r=record,
        label=labels.get(latent),
        facts=facts(record, source),
        place=_place(page, source, latent, query, labels),
        tabs=[(key, TAB_NAMES[key], stored[GROUPS[key]]) for key in TABS if key != "negative" or record.signed],
        tab=tab,
        context=context,
        contexts=tuple(CONTEXTS),
        explanation=_explanation(record, tab),
        groups=[(head, passages(page, source, record, examples, context)) for head, examples in groups(record, tab)],
        related=related(source, record, labels),
        effect_level=card.effect_level,
        table_parameters=query.parameters,
        test=await tested(page, source, record),
        **words(page, record),
        compared=[latent, *(n.index for n in record.neighbours[:3])],
        model_command=MODEL_COMMAND,
        address=str(page.request.url.replace(query="")),
    )


def raw_page(page: Page, source: Source, text: str) -> Response:
    """`/s/{source}/f/{index}/json`: what the API gives for the feature, for readers whose browser would ask it for a page."""
    record = source.index.record(latent_of(source, text))
    return card(record, source=source.name, label=page.label(source, record.index)).answer()


def facts(record: FeatureRecord, source: Source) -> list[tuple[str, str, str, str]]:
    """(Name, value, remark, definition) of the numbers at the top of a page."""
    if not record.alive:
        return []
    table, r = source_table(source.index), record
    alive = int(table.alive.sum())
    found = [
        (
            "density",
            percent(r.density),
            f"{percent(r.density_low)} – {percent(r.density_high)}, rank {number(table.rank(r.index, 'density'))}",
            "density",
        ),
        ("fires on", f"{number(r.n_active)} tokens", f"in {number(r.n_documents)} of {number(r.source.n_documents)} documents", "fires on"),
        ("max", number(r.max), f"rank {number(table.rank(r.index, 'max'))} of {number(alive)}", "max"),
    ]
    if r.signed:
        found.append(("min", number(r.min), "", "min"))
    found += [
        ("mean", number(r.mean), f"median {number(r.quantiles['0.5'])}", "mean"),
        (
            "tells",
            f"{r.token_bits + r.next_bits:.2f} bits".replace("-", "−"),
            f"token {r.token_bits:.2f}, next {r.next_bits:.2f}".replace("-", "−"),
            "bits",
        ),
    ]
    return [(name, value, remark, DEFINITIONS[key]) for name, value, remark, key in found]


def groups(record: FeatureRecord, tab: str) -> list[tuple[str, Sequence[Example]]]:
    """(Heading, passages) of a tab."""
    if tab == "intervals":
        share = max(record.n_active, 1)
        return [
            (f"{number(i.low)} – {number(i.high)} · {number(i.n_active)} firings ({percent(i.n_active / share)})", i.examples)
            for i in record.intervals
        ]
    single = {
        "top": record.examples,
        "random": record.random_examples,
        "near": record.near_miss_examples,
        "negative": record.negative_examples,
    }[tab]
    return [("", single)] if single else []


def passages(page: Page, source: Source, record: FeatureRecord, examples: Sequence[Example], context: str) -> Markup:
    """Passages of the record as lines, or as texts when the context is full."""

    def more(e: Example) -> str:
        return f'<a href="{document_link(page, source, e, record.index)}" title="The document, at this token">doc {e.document}</a>'

    if CONTEXTS[context] is not None:
        return LOOK.lines(examples, record.peak, reach=CONTEXTS[context], more=more)
    parts = []
    for e in whole_rows(source, record.index, examples):
        shown = passage(e, record.peak)
        labels = "".join(
            Markup("<span class=tag><span class=muted>{}</span> <bdi>{}</bdi></span>").format(*pair) for pair in sorted(e.labels.items())
        )
        parts.append(
            f'<div class="prose-passage"><span class="value">{number(e.value)}</span><p class="text">{LOOK.full(shown)}</p>'
            f'<p class="meta">{labels}<span class="tag">{more(e)}</span> <span class="tag">row {e.row}, position {e.position}</span></p></div>'
        )
    return Markup("".join(parts))


def document_link(page: Page, source: Source, example: Example, latent: int) -> str:
    """The address of the document of an example, at its peak."""
    at = example.row * source.index.table.context + example.position
    return str(Markup.escape(page.links(f"/s/{source.name}/doc/{example.document}", f=latent, at=at, anchor="here")))


def whole_rows(source: Source, latent: int, examples: Sequence[Example]) -> list[Example]:
    """The examples, with all of their row that is of their document; as they are where the index was shipped without its entries."""
    index = source.index
    try:
        entries = index.entries(latent)
    except FormatError:
        return list(examples)
    found = []
    for e in examples:
        token = e.row * index.table.context + e.position
        start, stop = index.table.window(token, index.table.context, index.table.context)
        values = np.zeros(stop - start, np.float32)
        offsets, inside = window_values(entries.ids, entries.values, start, stop)
        values[offsets] = inside
        texts = tuple(index.texts[i] for i in index.table.ids.reshape(-1)[start:stop].tolist())
        found.append(replace(e, tokens=texts, values=tuple(values.tolist()), peak=token - start))
    return found


def related(source: Source, record: FeatureRecord, labels: Mapping[int, str]) -> list[Related]:
    """The lists of neighbours that the index has."""
    texts, leading = source.index.texts, source.index.statistics.leading_token
    found = []
    for key, near in record.related.items():
        rows = tuple(
            (n, texts[token] if (token := int(leading[n.index])) >= 0 else "", labels.get(n.index)) for n in near[:SHOWN_NEIGHBOURS]
        )
        if rows:
            found.append(Related(RELATION_NAMES[key], RELATIONS[key], rows))
    return found


def words(page: Page, record: FeatureRecord) -> dict[str, Any]:
    """What people and programs say about a feature, and the lists that it is or could be in."""
    notes, digest = page.context.notes, record.source.dictionary_digest
    if notes is None:
        return {"has_notes": False, "said": (), "note": None, "lists": (), "memberships": ()}
    lists = notes.lists()
    inside = tuple(found for found in lists if any(item.dictionary == digest and item.index == record.index for item in found.items))
    said, note = notes.explanations(digest, record.index), notes.note(digest, record.index)
    return {"has_notes": True, "said": said, "note": note, "lists": lists, "memberships": inside}


async def tested(page: Page, source: Source, record: FeatureRecord) -> dict[str, Any]:
    """What the test box shows: the text, and its tokens coloured by this feature when there is a model."""
    text = page.parameters.text("text", LONGEST_TEXT)
    if not text or source.live is None or not page.may_compute:
        return {"text": text, "strip": None, "problem": None}
    try:
        encoded = (await page.context.run(source.live.encode, [text]))[0]
    except (Refused, ConfigError) as refused:
        return {"text": text, "strip": None, "problem": str(refused)}
    values = [dict(zip(ids, vals, strict=True)).get(record.index, 0.0) for ids, vals in zip(encoded.latents, encoded.values, strict=True)]
    most = max(values, key=abs, default=0.0)
    scale = max(record.peak, abs(most))
    shown = strip(encoded.tokens, values, scale, special=encoded.is_special)
    return {
        "text": text,
        "strip": shown,
        "problem": None,
        "most": most,
        "n": sum(v != 0 for v in values),
        "above": abs(most) > record.peak,
        "scale": scale,
    }


def _place(page: Page, source: Source, latent: int, query: TableQuery, labels: Mapping[int, str]) -> dict[str, Any]:
    """Where the feature stands in the table it was opened from, and its neighbours there."""
    ids = selected(source.index, query, labels)
    at = np.flatnonzero(ids == latent)
    inside = len(at) > 0
    if inside:
        i = int(at[0])
        near = (int(ids[i - 1]) if i else None, int(ids[i + 1]) if i + 1 < len(ids) else None)
    else:
        near = (latent - 1 if latent else None, latent + 1 if latent + 1 < source.index.d_sae else None)
    kept = {name: page.request.query_params.get(name) for name in ("tab", "context")} | query.parameters
    links = [None if other is None else (other, page.feature_link(source, other, **kept)) for other in near]
    order = SORTED_BY[query.sort] if inside else "by number"
    return {"n": i + 1 if inside else None, "of": len(ids), "order": order, "previous": links[0], "next": links[1]}


def _explanation(record: FeatureRecord, tab: str) -> str:
    return record.near_miss_definition if tab == "near" and record.near_miss_definition else DEFINITIONS[TABS[tab]]
