"""Search: features by the tokens that drive them, the tokens they promote, and the labels they were given.

    score(i) = sum over the terms of the query of [ label_i + driving_i + promoted_i / 10 ]

    label_i      1 where the term is a word of the latent's label, 1/2 where it is a part of one
    driving_i    share of the latent's mass on the driving tokens that match, each times how well it matches
    promoted_i   the largest logit effect of a promoted token that matches, over the latent's largest, times how well it matches

A token matches a term fully when it is the term (case and surrounding spaces aside), by 1/10 when it begins with it, and by 1/20 when it
contains it; beginnings count from 2 characters, parts from 3. Every term must match somewhere. Ties go to the lower id. So a feature that
fires on "war" comes before one that fires on "warning", and both before one that only promotes "war".
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from markupsafe import Markup

from sae.errors import ConfigError
from sae.inspection.format import number, percent, visible
from sae.inspection.listing import Column, listing_html, listing_text
from sae.inspection.reading import ReadableIndex

SEARCH_DEFINITION = (
    "Ranked by label + driving + promoted / 10, summed over the words of the query, each of which must match: a word of the label counts 1 "
    "(a part of one 1/2); driving is the share of the feature's mass on matching tokens; promoted is the logit effect of a matching token "
    "over the feature's largest. Tokens that begin with a word count a tenth, those that contain it a twentieth."
)
BEGINS, CONTAINS, PROMOTED = 0.1, 0.05, 0.1
"""How well a token matches a term that it begins with, or contains; and the weight of promoted tokens."""
MIN_BEGINS, MIN_CONTAINS = 2, 3
"""Fewest characters of a term for either."""
BREAK = "\n"
"""Between the spellings of two tokens in the table; none of them contains it."""


@dataclass(frozen=True)
class Match:
    """Why a feature was found."""

    kind: Literal["label", "driving", "promoted", "number"]
    """Where the query matched."""
    text: str
    """The label, or the token."""
    value: float
    """Share of the mass of a driving token, logit effect of a promoted one; 1 for a label or a number."""


@dataclass(frozen=True)
class SearchHit:
    """A feature that was found."""

    index: int
    """Latent id."""
    score: float
    """What it is ranked by."""
    matches: tuple[Match, ...]
    """Why: labels first, then driving and promoted tokens, strongest first."""


@dataclass(frozen=True)
class SearchResults:
    """The features that a query finds, best first. A notebook shows them as a table."""

    query: str
    """What was asked."""
    hits: tuple[SearchHit, ...]
    """The best of them."""
    n_found: int
    """How many features match."""
    index: ReadableIndex = field(repr=False, compare=False)
    """Where they were looked for."""
    definition: str = SEARCH_DEFINITION
    """What they are ranked by."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Latent ids, best first."""
        return tuple(hit.index for hit in self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def _reasons(self, latent: int) -> list[str]:
        matches = next(hit.matches for hit in self.hits if hit.index == latent)
        return [_reason(match) for match in matches[:2]] + ["…"] * (len(matches) > 2)

    def _title(self) -> str:
        return f"{self.n_found} feature{'s' * (self.n_found != 1)} for {self.query!r}"

    def _repr_html_(self) -> str:
        why = Column("found by", lambda latent: Markup("<br>").join(self._reasons(latent)), "cell")
        return listing_html(self.index, self.ids, title=self._title(), footer=self.definition, columns=[why])

    def __repr__(self) -> str:
        return listing_text(self.index, self.ids, title=self._title(), notes={i: "; ".join(self._reasons(i)) for i in self.ids})


def _reason(match: Match) -> str:
    if match.kind in ("label", "number"):
        return match.text
    token = visible(match.text, spaces=True)
    return f"{token} {percent(match.value)}" if match.kind == "driving" else f"promotes {token} {number(match.value)}"


class Found(NamedTuple):
    """Tokens that match a term."""

    tokens: Integer[np.ndarray, "m"]
    """Their ids, ascending."""
    weights: Float[np.ndarray, "m"]
    """How well each matches, 0..1."""


class Postings:
    """For every token the latents that list it, each with a number: an inverted table, made once."""

    def __init__(self, ids: Integer[np.ndarray, "d_sae m"], values: Float[np.ndarray, "d_sae m"]) -> None:
        self.ids, self.listed = ids, values
        latents, columns = np.nonzero((ids >= 0) & (values > 0))
        tokens = np.asarray(ids)[latents, columns]
        order = np.argsort(tokens, kind="stable")
        self.tokens, first = np.unique(tokens[order], return_index=True)
        self.start, self.counts = first, np.diff(np.r_[first, len(order)])
        self.latents = latents[order]
        self.values = np.asarray(values)[latents, columns][order].astype(np.float64)

    def of(self, found: Found) -> tuple[np.ndarray, np.ndarray]:
        """(latent, value * weight) of every posting of the tokens found."""
        place = np.searchsorted(self.tokens, found.tokens)
        known = np.isin(found.tokens, self.tokens, assume_unique=True)
        begin, counts = self.start[place[known]], self.counts[place[known]]
        places = np.arange(counts.sum()) + np.repeat(begin - np.r_[0, np.cumsum(counts)[:-1]], counts)
        return self.latents[places], self.values[places] * np.repeat(found.weights[known], counts)

    def row(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(token, value) of everything that a latent lists."""
        ids, values = np.asarray(self.ids[latent]), np.asarray(self.listed[latent])
        kept = (ids >= 0) & (values > 0)
        return ids[kept], values[kept]


class SearchTable:
    """The inverted table of an index, from the arrays of its summary and the texts of the vocabulary. Made at the first query; queries then touch
    only what matches."""

    def __init__(self, arrays: Mapping[str, np.ndarray], texts: Sequence[str]) -> None:
        self.d_sae, self.texts = len(arrays["driving_ids"]), texts
        self.driving = Postings(arrays["driving_ids"], arrays["driving_share"])
        nothing = np.zeros((self.d_sae, 0))
        effects = np.asarray(arrays.get("effect_top", nothing), float)
        largest = effects.max(axis=1, keepdims=True, initial=0.0)
        ids = np.asarray(arrays.get("effect_top_ids", nothing.astype(np.int64)))
        self.promoted = Postings(ids, effects / np.where(largest > 0, largest, 1.0))
        self.largest = largest[:, 0]

    @cached_property
    def _spellings(self) -> tuple[list[str], np.ndarray, str, np.ndarray]:
        """Spellings of all listed tokens in order, the token of each; the same as one text, and where each begins in it."""
        listed = np.union1d(self.driving.tokens, self.promoted.tokens).tolist()
        pairs = sorted({(spelling, token) for token in listed for spelling in spellings(self.texts[token])})
        words = [spelling for spelling, _ in pairs]
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
        return words, np.array([token for _, token in pairs], np.int64), BREAK.join(words), starts

    def tokens(self, term: str) -> Found:
        """The listed tokens that match a term."""
        words, tokens, joined, starts = self._spellings
        low = bisect_left(words, term)
        same, begins = low, low
        while same < len(words) and words[same] == term:
            same += 1
        if len(term) >= MIN_BEGINS:
            begins = bisect_left(words, term + "\U0010ffff")
        weights: dict[int, float] = {}
        if len(term) >= MIN_CONTAINS:
            places = np.array([found.start() for found in re.finditer(re.escape(term), joined)], np.int64)
            weights |= dict.fromkeys(tokens[np.searchsorted(starts, places, side="right") - 1].tolist(), CONTAINS)
        weights |= dict.fromkeys(tokens[low:begins].tolist(), BEGINS)
        weights |= dict.fromkeys(tokens[low:same].tolist(), 1.0)
        ids = np.array(sorted(weights), np.int64)
        return Found(ids, np.array([weights[i] for i in ids.tolist()], float))

    def scores(self, found: Found, term: str, labels: Mapping[int, str]) -> Float[np.ndarray, "d_sae"]:
        """The score of every latent for a term with the tokens it matches; 0 where it does not match."""
        latents, shares = self.driving.of(found)
        scores = np.bincount(latents, shares, minlength=self.d_sae).astype(float)  # of nothing it counts in integers
        latents, effects = self.promoted.of(found)
        promoted = np.zeros(self.d_sae)
        np.maximum.at(promoted, latents, effects)
        scores += PROMOTED * promoted
        for latent, label in labels.items():
            if term in (folded := label.casefold()):
                scores[latent] += 1.0 if re.search(rf"(?<!\w){re.escape(term)}(?!\w)", folded) else 0.5
        return scores

    def matches(self, latent: int, found: frozenset[int]) -> list[Match]:
        """Why a latent was found: its driving, then its promoted tokens that are among those found, strongest first."""
        reasons = []
        for kind, postings, scale in (("driving", self.driving, 1.0), ("promoted", self.promoted, float(self.largest[latent]))):
            listed = zip(*(array.tolist() for array in postings.row(latent)), strict=True)
            wanted = sorted((-value * scale, token) for token, value in listed if token in found)
            reasons += [Match(kind, self.texts[token], -value) for value, token in wanted]
        return reasons


def spellings(token: str) -> set[str]:
    """How a token may be written in a query: without surrounding spaces, or with glyphs for what cannot be seen (`·the`, `↵`)."""
    return {each for each in (token.strip().casefold(), visible(token, spaces=True).casefold()) if each and BREAK not in each}


def terms_of(query: str) -> list[str]:
    """The terms of a query, each once: its words, or, when it is only spaces and line ends, those as glyphs."""
    words = query.casefold().split()
    return list(dict.fromkeys(words)) if words else [visible(query, spaces=True).casefold()]


def search(
    index: ReadableIndex, table: SearchTable, query: str, *, limit: int = 50, labels: Mapping[int, str] | None = None
) -> SearchResults:
    """The `limit` features that match a query best; see the module's text. `labels` are texts given to latents. `#123` finds that latent.

    Raises ConfigError for an empty query, a limit below 1, and a label of a latent that does not exist.
    """
    if not isinstance(query, str) or query == "":
        raise ConfigError(f"text must be a string that is not empty, got {query!r} (search)")
    if isinstance(limit, bool) or limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit!r} (search)")
    labels = labels or {}
    wrong = next((latent for latent in labels if not 0 <= latent < table.d_sae), None)
    if wrong is not None:
        raise ConfigError(f"labels must be of latents in 0..d_sae-1={table.d_sae - 1}, got one of {wrong} (search)")
    terms = terms_of(query)
    named = re.fullmatch(r"#(\d{1,12})", query.strip())
    if named and int(named[1]) < table.d_sae:
        hit = SearchHit(int(named[1]), 1.0, (Match("number", query.strip(), 1.0),))
        return SearchResults(query, (hit,), 1, index)
    found = [table.tokens(term) for term in terms]
    each = np.stack([table.scores(tokens, term, labels) for tokens, term in zip(found, terms, strict=True)])
    scores = np.where((each > 0).all(axis=0), each.sum(axis=0), 0.0)
    best, n_found = _best(scores, limit)
    any_term = frozenset(np.concatenate([tokens.tokens for tokens in found]).tolist())
    hits = []
    for latent in best.tolist():
        label = labels.get(latent, "")
        given = [Match("label", label, 1.0)] if any(term in label.casefold() for term in terms) else []
        hits.append(SearchHit(latent, float(scores[latent]), (*given, *table.matches(latent, any_term))))
    return SearchResults(query, tuple(hits), n_found, index)


def _best(scores: Float[np.ndarray, "d_sae"], limit: int) -> tuple[Integer[np.ndarray, "m"], int]:
    """The latents of the `limit` largest positive scores, ties by id, and how many are positive."""
    found = np.flatnonzero(scores)
    n_found = len(found)
    if n_found > 4 * limit:  # only what may be among the best is put in order
        least = np.partition(scores[found], n_found - limit)[n_found - limit]
        found = found[scores[found] >= least]
    return found[np.lexsort((found, -scores[found]))[:limit]], n_found
