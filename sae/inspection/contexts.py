"""Which passages to show for a latent: the strongest ones, and honest samples of the weaker ones.

All functions take the entries of one latent: flat token indices `t = row * context + position`, ascending, and its non-zero values there.

    top         by value descending, ties by token index; each document offers its `per_document` strongest;
                of equal windows the strongest stays
    intervals   (max * j / m, max * (j + 1) / m],  j = 0..m-1, half-open below so that zero never enters;
                uniform seeded samples of each

Equal-width intervals of the activation range as in T. Bricken et al., "Towards Monosemanticity" (Transformer Circuits, 2023); that the
strongest examples alone mislead is shown by T. Bolukbasi et al., "An Interpretability Illusion for BERT" (2021, arXiv 2104.07143).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer, Shaped

from sae.errors import ConfigError

DUPLICATE_BEFORE, DUPLICATE_AFTER = 5, 2
"""Two passages are near-duplicates when the tokens from 5 before the peak to 2 after it are the same."""


@dataclass(frozen=True)
class TokenTable:
    """The corpus of an index: rows of token ids with the document of each token."""

    ids: Integer[np.ndarray, "n_rows context"]
    """Token ids."""
    documents: Integer[np.ndarray, "n_rows context"]
    """Document id of each token."""

    @property
    def context(self) -> int:
        """Tokens in a row."""
        return self.ids.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens in all rows."""
        return self.ids.size

    def window(self, token: int, before: int, after: int) -> tuple[int, int]:
        """Flat range [start, stop) of the tokens from `before` before to `after` after `token`, clipped to its row and document."""
        row, position = divmod(token, self.context)
        documents = self.documents[row]
        start, stop = max(0, position - before), min(self.context, position + after + 1)
        same = documents[start:stop] == documents[position]
        left = np.flatnonzero(~same[: position - start])
        right = np.flatnonzero(~same[position - start :])
        if len(left):
            start += int(left[-1]) + 1
        if len(right):
            stop = position + int(right[0])
        return row * self.context + start, row * self.context + stop


def top_contexts(
    tokens: Integer[np.ndarray, "n"],
    values: Float[np.ndarray, "n"],
    table: TokenTable,
    *,
    n: int,
    per_document: int = 1,
    largest: bool = True,
) -> Int[np.ndarray, "m"]:
    """Flat indices of the m <= n strongest passages, strongest first: exact, deterministic, without near-duplicates.

    `largest=False` takes the most negative values instead. Only values of that sign (positive, or negative) take part. Each document
    offers its `per_document` strongest tokens. Raises ConfigError for a non-positive `n` or `per_document`.
    """
    for name, number in (("n", n), ("per_document", per_document)):
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, got {number} (top_contexts)")
    strength = values if largest else -values
    positive = np.flatnonzero(strength > 0)
    tokens, strength = tokens[positive], strength[positive]
    order = np.argsort(-strength, kind="stable")
    prefix = 16 * n
    while True:
        ranked = tokens[order[:prefix]].astype(np.int64)
        chosen = _without_duplicates(ranked[_rank_in_group(table.documents.reshape(-1)[ranked]) < per_document], table, n)
        if len(chosen) == n or prefix >= len(order):
            return chosen
        prefix *= 8


def _rank_in_group(groups: Integer[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """How many earlier entries belong to the same group."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(groups) else np.zeros(0, np.int64)
    start = np.repeat(first, np.diff(np.r_[first, len(groups)]))
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - start
    return rank


def _without_duplicates(ranked: Int[np.ndarray, "n"], table: TokenTable, n: int) -> Int[np.ndarray, "m"]:
    flat, seen, chosen = table.ids.reshape(-1), set(), []
    for token in ranked.tolist():
        start, stop = table.window(token, DUPLICATE_BEFORE, DUPLICATE_AFTER)
        window = (token - start, flat[start:stop].tobytes())
        if window not in seen:
            seen.add(window)
            chosen.append(token)
            if len(chosen) == n:
                break
    return np.array(chosen, np.int64)


class IntervalSample(NamedTuple):
    """One interval of a latent's values."""

    low: float
    """Lower end, excluded."""
    high: float
    """Upper end, included."""
    n_active: int
    """Entries within."""
    picks: Int[np.ndarray, "m"]
    """Positions (into the latent's entries) of the samples, strongest first, ties by token index."""


def interval_samples(
    values: Float[np.ndarray, "n"], *, n_intervals: int, n_samples: int, seed: tuple[int, ...]
) -> Iterator[IntervalSample]:
    """The intervals of (0, max], highest first, each with at most `n_samples` of its entries drawn uniformly without replacement.

    Nothing when no value is positive. `seed` decides the draw: equal seeds and values give equal samples.
    """
    top = float(values.max(initial=0.0))
    if top <= 0:
        return
    edges = top * np.arange(n_intervals + 1) / n_intervals
    edges[-1] = top
    place = np.searchsorted(edges, values.astype(np.float64), side="left") - 1
    generator = np.random.default_rng(list(seed))
    for j in reversed(range(n_intervals)):
        within = np.flatnonzero(place == j)
        picks = np.sort(generator.choice(within, size=min(n_samples, len(within)), replace=False)) if len(within) else within
        picks = picks[np.argsort(-values[picks], kind="stable")]
        yield IntervalSample(float(edges[j]), float(edges[j + 1]), len(within), picks)


def window_values(
    tokens: Integer[np.ndarray, "n"], values: Shaped[np.ndarray, "n"], start: int, stop: int
) -> tuple[Int[np.ndarray, "m"], Shaped[np.ndarray, "m"]]:
    """(offset from `start`, value) of the latent's entries with `start <= token < stop`; `tokens` ascending."""
    low, high = np.searchsorted(tokens, [start, stop])
    return tokens[low:high].astype(np.int64) - start, values[low:high]
