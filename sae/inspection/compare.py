"""Features beside each other: how alike their directions are, and how often they fire together, counted over every token.

    n_both = #{t : v_a(t) != 0 and v_b(t) != 0}          expected = n_a n_b / N              N tokens looked at
    jaccard = n_both / (n_a + n_b - n_both)              phi = (N n_both - n_a n_b) / sqrt(n_a (N - n_a) n_b (N - n_b))
    correlation = Pearson's r of v_a and v_b over all N tokens, zeros included

phi is Pearson's r of the two indicators of firing. Everything is exact: computed from all entries of both features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from markupsafe import Markup

from sae.errors import ConfigError
from sae.inspection.charts import histogram_chart
from sae.inspection.display import FeatureCard
from sae.inspection.entries import Entries
from sae.inspection.format import bits, number, percent
from sae.inspection.listing import frame, line, styled, table, tokens
from sae.inspection.reading import ReadableIndex
from sae.inspection.records import FeatureRecord

LARGEST = 8
"""Most features compared at once."""

COMPARE_DEFINITION = (
    "Counts are over all tokens looked at. together: tokens on which both fire, beside what independence would give; phi: correlation of the "
    "two firings; Jaccard: together over either; r: Pearson correlation of the values over all tokens, zeros included; "
    "a given b: P(a fires | b fires). cosine: of the decoder directions."
)


@dataclass(frozen=True)
class Pair:
    """Two features: how alike, and how often together."""

    a: int
    """Latent id."""
    b: int
    """Latent id."""
    cosine: float | None
    """Cosine of the decoder directions; None where the index does not hold it."""
    cosine_below: float | None
    """Where `cosine` is None: a bound that it is not above, the least of the nearest cosines that the index keeps; None without one."""
    n_both: int
    """Tokens on which both fire."""
    expected: float
    """Tokens on which both would fire if they were independent."""
    phi: float
    """Correlation of the two firings, -1..1; 0 where one never, or always, fires."""
    jaccard: float
    """Tokens on which both fire, of those on which either does; 0 where neither fires."""
    correlation: float
    """Pearson correlation of the values over all tokens, zeros included; 0 where one is constant."""
    a_given_b: float
    """P(a fires | b fires); 0 where b never fires."""
    b_given_a: float
    """P(b fires | a fires)."""


@dataclass(frozen=True)
class Comparison:
    """Several features side by side. A notebook shows their cards' main parts in columns, and a table of the pairs."""

    latents: tuple[int, ...]
    """Latent ids, in the order asked for."""
    cards: tuple[FeatureCard, ...]
    """Their cards."""
    pairs: tuple[Pair, ...]
    """Every two of them."""
    source: str = field(repr=False, default="")
    """The dictionary, as shown."""
    definition: str = COMPARE_DEFINITION
    """What the numbers are."""

    def pair(self, a: int, b: int) -> Pair:
        """The pair of two of the latents, in either order. Raises ConfigError when they were not compared."""
        for pair in self.pairs:
            if {pair.a, pair.b} == {a, b}:
                return pair
        raise ConfigError(f"a and b must be two of {', '.join(map(str, self.latents))}, got {a} and {b} (Comparison.pair)")

    def matrix(self, name: str) -> Shaped[np.ndarray, "n n"]:
        """A symmetric quantity of the pairs as a matrix; the diagonal is that of a feature with itself, NaN is a cosine that is not known.

        `name` is cosine, n_both, phi, jaccard or correlation; ConfigError otherwise.
        """
        if name not in ("cosine", "n_both", "phi", "jaccard", "correlation"):
            raise ConfigError(f"name must be cosine, n_both, phi, jaccard or correlation, got {name!r} (Comparison.matrix)")
        diagonal = [float(card.record.n_active) if name == "n_both" else 1.0 for card in self.cards]
        found = np.diag(diagonal)
        places = {latent: i for i, latent in enumerate(self.latents)}
        for pair in self.pairs:
            value = getattr(pair, name)
            i, j = places[pair.a], places[pair.b]
            found[i, j] = found[j, i] = np.nan if value is None else value
        return found

    def _repr_html_(self) -> str:
        title = Markup("{} {}").format(
            ", ".join(f"#{latent}" for latent in self.latents), styled("span", "muted", f"side by side · {self.source}")
        )
        return frame(title, [_columns([card.record for card in self.cards]), _pair_table(self.pairs)], self.definition)

    def __repr__(self) -> str:
        lines = [repr(card) for card in self.cards]
        for p in self.pairs:
            lines.append(
                f"  #{p.a} and #{p.b}: cosine {_cosine(p)}, together on {p.n_both} tokens (expected {number(p.expected)}), "
                f"phi {p.phi:.3f}, Jaccard {p.jaccard:.3f}, r {p.correlation:.3f}"
            )
        return "\n".join(lines)


def compare(index: ReadableIndex, latents: Sequence[Any], *, atoms: Float[np.ndarray, "n d_in"] | None = None) -> Comparison:
    """The latents side by side. `atoms` are their decoder directions where they are known; without, a cosine is given where the index keeps
    it. Raises ConfigError for fewer than 2, more than 8, or repeated latents."""
    records = [index.record(latent) for latent in latents]
    ids = [record.index for record in records]
    if not 2 <= len(ids) <= LARGEST or len(set(ids)) < len(ids):
        raise ConfigError(f"latents must be 2 to {LARGEST} different ones, got {', '.join(map(str, ids)) or 'none'} (FeatureIndex.compare)")
    entries = {latent: index.entries(latent) for latent in ids}
    pairs = []
    for (i, a), (j, b) in combinations(enumerate(records), 2):
        cosine, below = _known_cosine(a, b) if atoms is None else (_cosine_of(atoms[i], atoms[j]), None)
        pairs.append(_pair(a.index, b.index, entries[a.index], entries[b.index], index.n_tokens, cosine, below))
    cards = tuple(FeatureCard(record) for record in records)
    return Comparison(tuple(ids), cards, tuple(pairs), records[0].source.dictionary)


def _pair(a: int, b: int, of_a: Entries, of_b: Entries, n: int, cosine: float | None, below: float | None) -> Pair:
    n_a, n_b = len(of_a.ids), len(of_b.ids)
    _, in_a, in_b = np.intersect1d(of_a.ids, of_b.ids, assume_unique=True, return_indices=True)
    n_both = len(in_a)
    spread = float(n_a) * (n - n_a) * n_b * (n - n_b)
    u, v = of_a.values.astype(np.float64), of_b.values.astype(np.float64)
    covariance = n * float(u[in_a] @ v[in_b]) - u.sum() * v.sum()
    variances = (n * float(u @ u) - u.sum() ** 2) * (n * float(v @ v) - v.sum() ** 2)
    return Pair(
        a,
        b,
        cosine,
        below,
        n_both,
        n_a * n_b / max(n, 1),
        (n * n_both - n_a * n_b) / math.sqrt(spread) if spread > 0 else 0.0,
        n_both / (n_a + n_b - n_both) if n_a + n_b else 0.0,
        float(covariance / math.sqrt(variances)) if variances > 0 else 0.0,
        n_both / n_b if n_b else 0.0,
        n_both / n_a if n_a else 0.0,
    )


def _cosine_of(a: np.ndarray, b: np.ndarray) -> float | None:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a.astype(np.float64) @ b.astype(np.float64)) / lengths if lengths else None


def _known_cosine(a: FeatureRecord, b: FeatureRecord) -> tuple[float | None, float | None]:
    """The cosine that the neighbours of either list, or a bound that it is not above."""
    for record, other in ((a, b), (b, a)):
        for near in record.neighbours:
            if near.index == other.index:
                return near.cosine, None
    bounds = [min(near.cosine for near in record.neighbours) for record in (a, b) if record.neighbours]
    return None, min(bounds, default=None)


def _cosine(pair: Pair) -> str:
    if pair.cosine is not None:
        return number(pair.cosine)
    return "–" if pair.cosine_below is None else f"≤ {number(pair.cosine_below)}"


def _pair_table(pairs: Sequence[Pair]) -> Markup:
    names = ("cosine", "together", "expected", "phi", "Jaccard", "r", "a given b", "b given a")
    rows = []
    for p in pairs:
        shares = [percent(p.a_given_b), percent(p.b_given_a)]
        cells = [_cosine(p), number(p.n_both), number(p.expected), number(p.phi), number(p.jaccard), number(p.correlation), *shares]
        rows.append([styled("td", "cell", f"a = #{p.a}, b = #{p.b}"), *(styled("td", "num", cell) for cell in cells)])
    return table([("pair", "th"), *((name, "th-num") for name in names)], rows)


def _columns(records: Sequence[FeatureRecord]) -> Markup:
    titles = [("", "th"), *((f"#{r.index}", "th") for r in records)]
    facts = {
        "density": [percent(r.density) for r in records],
        "fires on": [f"{number(r.n_active)} tokens, {number(r.n_documents)} documents" for r in records],
        "values": [_range(r) for r in records],
        "tells": [f"{bits(r.token_bits)} bits, next {bits(r.next_bits)}" for r in records],
        "distribution": [histogram_chart(r.histogram, unit=r.source.kind, width=260, height=128) if r.alive else "" for r in records],
        "driven by": [tokens([d.token for d in r.driving_tokens[:5]]) for r in records],
        "promotes": [tokens([e.token for e in r.promoted[:5]]) for r in records],
        "suppresses": [tokens([e.token for e in r.suppressed[:5]]) for r in records],
        "passages": [_passages(r, width=22 if len(records) == 2 else 15) for r in records],
    }
    rows = [
        [styled("td", "label", name), *(styled("td", "column", cell) for cell in cells)]
        for name, cells in facts.items()
        if any(cell for cell in cells)
    ]
    return table(titles, rows)


def _range(r: FeatureRecord) -> str:
    if not r.alive:
        return "never fires"
    return f"{number(r.min)} to {number(r.max)}, mean {number(r.mean)}"


def _passages(r: FeatureRecord, *, width: int) -> Markup:
    rows = [
        [styled("td", "num", number(e.value)), *line(e, r.peak, left=22, right=20)] for e in (*r.examples[:4], *r.negative_examples[:2])
    ]
    return table([], rows) if rows else Markup("")
