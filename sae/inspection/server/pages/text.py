"""The text page: what fires in a typed text, token by token, and which features tell two texts apart."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi.responses import Response

from sae.inspection.format import number
from sae.inspection.server.context import MODEL_COMMAND, Source
from sae.inspection.server.pages.feature import LONGEST_TEXT
from sae.inspection.server.pages.shell import Page
from sae.inspection.server.pages.strips import most_bits, rarity, salience, salience_scale, strip

SHOWN = 60
SORTS = ("strength", "value", "salience", "tokens", "index")
"""Orders of the features of a text: value over the feature's own largest, value, that weighted by rarity, tokens it fires on, number."""


@dataclass(frozen=True)
class Active:
    """A feature that fires in the text."""

    index: int
    """Latent id."""
    value: float
    """Its value of largest magnitude, over the text or at the chosen token."""
    strength: float
    """value / the largest magnitude in the corpus."""
    n: int
    """Tokens of the text on which it fires."""
    density: float
    """Its density in the corpus."""
    token: str
    """The corpus token that drives it."""
    label: str | None
    """What it is called."""
    values: str
    """Its values at all tokens of the text, parted by spaces, for pages with script."""
    step: int | None
    """Step of selection at the chosen token, from 1; None without one."""


async def text_page(page: Page, source: Source) -> Response:
    """`/s/{source}/text`."""
    typed, against = page.parameters.text("text", LONGEST_TEXT), page.parameters.text("against", LONGEST_TEXT)
    order = page.parameters.choice("order", SORTS, "strength")
    common = {"source": source, "typed": typed, "against": against, "model_command": MODEL_COMMAND, "order": order, "orders": SORTS}
    if not typed.strip() or source.live is None or not page.may_compute:
        return page.render("text.html", encoded=None, **common)
    if against.strip():
        sets = [[line for line in each.splitlines() if line.strip()] for each in (typed, against)]
        rows = await page.context.run(source.live.contrast, sets[0], sets[1], n=SHOWN)
        texts, leading = source.index.texts, source.index.statistics.leading_token
        named = page.labels(source)
        contrast = [(row, texts[t] if (t := int(leading[row.index])) >= 0 else "", named.get(row.index)) for row in rows]
        return page.render("text.html", encoded=None, contrast=contrast, sizes=[len(each) for each in sets], **common)
    encoded = (await page.context.run(source.live.encode, [typed]))[0]
    at = page.parameters.integer("at", -1, 0, len(encoded.tokens) - 1)
    chosen = page.parameters.latents("f", source, 1)
    return page.render("text.html", encoded=encoded, **_shown(page, source, encoded, at, chosen, order), **common)


def _shown(page: Page, source: Source, encoded: Any, at: int, chosen: list[int], order: str) -> dict[str, Any]:
    """The strip and the ranking for the chosen token and feature."""
    by_latent = by_feature(encoded)
    peaks = {i: float(max(abs(source.index.statistics.max[i]), abs(source.index.statistics.min[i]))) for i in by_latent}
    active = ranked(page, source, encoded, by_latent, peaks, at, order)
    if chosen:
        values = [by_latent.get(chosen[0], {}).get(t, 0.0) for t in range(len(encoded.tokens))]
        scale = max([peaks.get(chosen[0], 0.0), *map(abs, values)])
        means = f"value of #{chosen[0]}, on its own scale to {number(scale)}"
    else:
        values = [float(salience(source, np.array(ids, np.int64), np.array(vals)).max(initial=0.0)) for ids, vals in pairs(encoded)]
        scale, means = most_bits(source), salience_scale(source)
    kept = {"text": encoded.text, "order": None if order == "strength" else order}
    tokens = strip(
        encoded.tokens,
        values,
        scale,
        special=encoded.is_special,
        link=lambda i: page.links(f"/s/{source.name}/text", **kept, f=chosen or None, at=None if i == at else i, anchor="ranking"),
        chosen=at,
        notes=[f"{len(ids)} features" for ids in encoded.latents],
        swap="#encoded",
    )
    n_active = len(by_latent)
    return {
        "strip": tokens,
        "active": active,
        "at": at,
        "chosen": chosen[0] if chosen else None,
        "means": means,
        "n_active": n_active,
        "scale": scale,
    }


def pairs(encoded: Any) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(Latents, values) of each token; none at special ones."""
    rows = zip(encoded.latents, encoded.values, encoded.is_special, strict=True)
    return [((), ()) if special else (ids, values) for ids, values, special in rows]


def by_feature(encoded: Any) -> dict[int, dict[int, float]]:
    """Latent -> token -> value."""
    found: dict[int, dict[int, float]] = defaultdict(dict)
    for token, (ids, values) in enumerate(pairs(encoded)):
        for latent, value in zip(ids, values, strict=True):
            found[latent][token] = value
    return dict(found)


def ranked(
    page: Page, source: Source, encoded: Any, by_latent: dict[int, dict[int, float]], peaks: dict[int, float], at: int, order: str
) -> list[Active]:
    """The features of the text, or of one of its tokens, in order."""
    statistics, texts, labels = source.index.statistics, source.index.texts, page.labels(source)
    steps = {} if encoded.steps is None or at < 0 else dict(zip(encoded.latents[at], encoded.steps[at], strict=True))
    found = []
    for latent, places in by_latent.items():
        if at >= 0 and at not in places:
            continue
        value = places[at] if at >= 0 else max(places.values(), key=abs)
        token = int(statistics.leading_token[latent])
        row = " ".join(f"{places[t]:.4g}" if t in places else "0" for t in range(len(encoded.tokens)))
        found.append(
            Active(
                latent, float(value), float(value) / (peaks[latent] or 1.0), len(places), float(statistics.density[latent]),
                texts[token] if token >= 0 else "", labels.get(latent), row, steps[latent] + 1 if latent in steps else None,
            )
        )  # fmt: skip
    bits = rarity(source)
    keys = {
        "strength": lambda a: (-abs(a.strength), a.index),
        "value": lambda a: (-abs(a.value), a.index),
        "salience": lambda a: (-min(abs(a.strength), 1.0) * bits[a.index], a.index),
        "tokens": lambda a: (-a.n, -abs(a.strength), a.index),
        "index": lambda a: (a.index,),
    }
    return sorted(found, key=keys[order])[:SHOWN]
