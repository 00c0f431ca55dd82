"""Questions to an index that go past the cards: more passages, what fires at a token, which features tell most."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sae.errors import ConfigError
from sae.inspection.contexts import top_contexts, window_values
from sae.inspection.reader import FeatureStatistics
from sae.inspection.reading import ReadableIndex
from sae.inspection.records import Example

MIN_ACTIVE = 50
"""Fewest firings of a telling feature: below, its bits are mostly luck."""
MAX_DENSITY = 0.1
"""Largest density of a telling feature: above, it is on too often to mean one thing."""
PER_TOKEN = 2
"""Features of the list that may share their leading token, so that one frequent word does not fill it."""

TELLING_DEFINITION = (
    "Ranked by held-out information: the bits that a firing tells about the token it is on plus the bits it tells about the next token. "
    "A code is learnt on the firings in one half of the documents and paid on those in the other half, both ways, against a code for the "
    "whole corpus; a meaningless latent gets about 0 or less. "
    f"Listed are latents with at least {MIN_ACTIVE} firings and a density of at most {MAX_DENSITY:.0%}, at most {PER_TOKEN} for each "
    "leading token."
)


class TellingFeature(NamedTuple):
    """A latent and how much it tells."""

    index: int
    """Latent id."""
    bits: float
    """token_bits + next_bits, per firing."""


def telling_features(
    index: ReadableIndex, n: int, *, min_active: int = MIN_ACTIVE, max_density: float = MAX_DENSITY, per_token: int = PER_TOKEN
) -> list[TellingFeature]:
    """The `n` most telling features, most telling first: the largest held-out bits per firing about the token plus about the next token.

    `sae.inspection.statistics.held_out_bits` has the formula. Latents with fewer than `min_active` firings or a density above
    `max_density` are left out, and of those that share their leading token (most mass) only the `per_token` best stay. Ties by latent id.
    Raises ConfigError for n < 1.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n} (telling_features)")
    statistics = index.statistics
    allowed = (statistics.n_active >= min_active) & (statistics.density <= max_density)
    bits = statistics.token_bits + statistics.next_bits
    return [TellingFeature(latent, float(bits[latent])) for latent in telling_order(statistics, allowed, n=n, per_token=per_token)]


def telling_order(
    statistics: FeatureStatistics, allowed: Bool[np.ndarray, "d_sae"], *, n: int, per_token: int = PER_TOKEN, ascending: bool = False
) -> list[int]:
    """The first `n` of the allowed latents by token_bits + next_bits, largest first, at most `per_token` for each leading token."""
    bits = statistics.token_bits + statistics.next_bits
    ids = np.flatnonzero(allowed)
    taken: dict[int, int] = {}
    found: list[int] = []
    for latent in ids[np.argsort(bits[ids] if ascending else -bits[ids], kind="stable")].tolist():
        token = int(statistics.leading_token[latent])
        if taken.get(token, 0) < per_token:
            taken[token] = taken.get(token, 0) + 1
            found.append(latent)
            if len(found) == n:
                break
    return found


def top_examples(
    index: ReadableIndex, latent: Any, n: int, *, per_document: int = 1, largest: bool = True, before: int = 32, after: int = 16
) -> list[Example]:
    """The `n` strongest passages of a latent (`largest=False`: most negative), read from the entries: as many, and as wide, as asked
    for."""
    entries = index.entries(latent)
    tokens = top_contexts(entries.ids, entries.values, index.table, n=n, per_document=per_document, largest=largest)
    found = []
    for token in tokens.tolist():
        offsets, values = window_values(entries.ids, entries.values, *index.table.window(token, before, after))
        found.append(index.reader.example(token, offsets, values, before, after))
    return found


class Coactive(NamedTuple):
    """Latents that fire on the same tokens as a given one."""

    ids: Int[np.ndarray, "m"]
    """Latent ids, most often together first; ties by id."""
    n_together: Int[np.ndarray, "m"]
    """Tokens on which both fire, exact."""


def coactive(index: ReadableIndex, latent: Any, n: int) -> Coactive:
    """The `n` latents that fire most often together with `latent`, with exact counts over all its firings."""
    counts = np.bincount(index.at_tokens(index.entries(latent).ids), minlength=index.d_sae)
    counts[latent] = 0
    ids = np.argsort(-counts, kind="stable")[:n]
    ids = ids[counts[ids] > 0]
    return Coactive(ids, counts[ids])
