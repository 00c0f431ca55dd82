"""Which passages to show for a latent: the strongest ones, and honest samples of the weaker ones.

All functions take the entries of one latent: flat token indices `t = row * context + position`, ascending, and its non-zero values there.

    top         by value descending, ties by token index; each document offers its `per_document` strongest;
                of equal windows the strongest stays
    intervals   (max * j / m, max * (j + 1) / m],  j = 0..m-1, half-open below so that zero never enters;
                uniform samples of each, chosen by the same rules from the list in the order of
                priority(t) = mix(key + t), mix the finaliser of SplitMix64
    near misses occurrences of the driving tokens on which the latent does not fire, drawn uniformly

A sample in the order of a hash is uniform, needs no state, and stays when the corpus grows but for what the new tokens displace. The hash:
G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). Equal-width intervals of the activation
range as in T. Bricken et al., "Towards Monosemanticity" (Transformer Circuits, 2023); that the strongest examples alone mislead is shown by
T. Bolukbasi et al., "An Interpretability Illusion for BERT" (2021, arXiv 2104.07143).

These are the plain forms; `sae.inspection.loops.passages` has the ones that are compiled.
"""

from collections.abc import Iterator, Sequence
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


STREAMS = {"intervals": 0, "random": 1, "near_miss": 2}
"""Which draws are independent of which."""
GOLDEN, M1, M2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(z: Shaped[np.ndarray, "*n"]) -> Shaped[np.ndarray, "*n"]:
    """The finaliser of SplitMix64, of uint64."""
    z = (z ^ (z >> np.uint64(30))) * M1
    z = (z ^ (z >> np.uint64(27))) * M2
    return z ^ (z >> np.uint64(31))


def sample_keys(seed: int, latents: Integer[np.ndarray, "n"], stream: str) -> Shaped[np.ndarray, "n"]:
    """The key of every latent's draws, uint64."""
    start = mix(np.full(len(latents), (seed * len(STREAMS) + STREAMS[stream] + 1) % 2**64, np.uint64) * GOLDEN)
    return mix(start + latents.astype(np.uint64) * GOLDEN)


def sampled_contexts(
    tokens: Integer[np.ndarray, "n"], values: Float[np.ndarray, "n"], table: TokenTable, *, n: int, key: np.uint64
) -> Int[np.ndarray, "m"]:
    """Flat indices of `n` passages drawn uniformly, strongest first: one a document, without near-duplicates."""
    order = np.argsort(mix(key + tokens.astype(np.uint64)), kind="stable")
    ranked = tokens[order].astype(np.int64)
    chosen = _without_duplicates(ranked[_rank_in_group(table.documents.reshape(-1)[ranked]) < 1], table, n)
    strength = values[np.searchsorted(tokens, chosen)]
    return chosen[np.lexsort((chosen, -strength))]


class IntervalSample(NamedTuple):
    """One interval of a latent's values."""

    low: float
    """Lower end, excluded."""
    high: float
    """Upper end, included."""
    n_active: int
    """Entries within."""
    picks: Int[np.ndarray, "m"]
    """Flat token indices of the samples, strongest first, ties by token index."""


def interval_samples(
    tokens: Integer[np.ndarray, "n"], values: Float[np.ndarray, "n"], table: TokenTable, *, n_intervals: int, n_samples: int, key: np.uint64
) -> Iterator[IntervalSample]:
    """The intervals of (0, max], highest first, each with at most `n_samples` passages drawn uniformly.

    Nothing when no value is positive. `key` decides the draw: equal keys and entries give equal samples.
    """
    top = float(values.max(initial=0.0))
    if top <= 0:
        return
    edges = top * np.arange(n_intervals + 1) / n_intervals
    edges[-1] = top
    place = np.searchsorted(edges, values.astype(np.float64), side="left") - 1
    for j in reversed(range(n_intervals)):
        within = np.flatnonzero(place == j)
        picks = sampled_contexts(tokens[within], values[within], table, n=n_samples, key=key)
        yield IntervalSample(float(edges[j]), float(edges[j + 1]), len(within), picks)


def near_misses(
    tokens: Integer[np.ndarray, "n"],
    driving: Integer[np.ndarray, "n_driving"],
    occurrences: Sequence[Integer[np.ndarray, "_"]],
    table: TokenTable,
    *,
    n: int,
    n_draws: int,
    key: np.uint64,
) -> Int[np.ndarray, "m"]:
    """At most `n` occurrences of the driving tokens, each token in turn, on which the latent does not fire.

    `occurrences[s]` are the places of driving token s, ascending. A token's next occurrence is the first of its remaining draws (with
    replacement, `n_draws` in all) where the latent is silent, whose document is new and whose window is; fewer are found where it nearly
    always fires.
    """
    chosen: list[int] = []
    seen: set[int] = set()
    drawn, flat, firing = [0] * len(driving), table.documents.reshape(-1), set(tokens.tolist())
    progress = True
    while len(chosen) < n and progress:
        progress = False
        for s, places in enumerate(occurrences):
            if len(chosen) == n:
                break
            if not set(places.tolist()) - firing:
                continue
            while drawn[s] < n_draws:
                draw = mix(mix(np.array([key + np.uint64(driving[s])])) + np.uint64(drawn[s]))[0]
                token = int(places[int(draw) % len(places)])
                drawn[s] += 1
                if token in firing or int(flat[token]) in seen:
                    continue
                seen.add(int(flat[token]))
                if len(_without_duplicates(np.array([*chosen, token]), table, n)) > len(chosen):
                    chosen.append(token)
                    progress = True
                    break
    return np.array(chosen, np.int64)


def window_values(
    tokens: Integer[np.ndarray, "n"], values: Shaped[np.ndarray, "n"], start: int, stop: int
) -> tuple[Int[np.ndarray, "m"], Shaped[np.ndarray, "m"]]:
    """(offset from `start`, value) of the latent's entries with `start <= token < stop`; `tokens` ascending."""
    low, high = np.searchsorted(tokens, [start, stop])
    return tokens[low:high].astype(np.int64) - start, values[low:high]
