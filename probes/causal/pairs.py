"""Counterfactual pairs as rows of an unembedding: words that are one token each, with the space before them.

    delta_i = gamma(Y_i(1)) - gamma(Y_i(0))

What is not a single token is left out and counted: a first piece of a word is another token's meaning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from probes.causal.words import WORD_PAIRS
from probes.figures import CONTROL, colour, new_figure
from probes.results import Result, Table
from probes.unembedding import Unembedding
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MIN_PAIRS = 6
"""Fewest pairs that a concept is kept with; a leave-one-out test of fewer says nothing."""


@dataclass(frozen=True, eq=False)
class ConceptPairs:
    """The pairs of one concept."""

    concept: str
    """Its name."""
    words: tuple[tuple[str, str], ...]
    """The pairs kept: without the concept, with it."""
    rows: Int[np.ndarray, "n 2"]
    """Their rows in the unembedding."""
    dropped: tuple[tuple[str, str], ...]
    """The pairs left out: not single tokens, equal words, or given before."""


@dataclass(frozen=True, eq=False)
class CounterfactualPairs(Result):
    """The concepts that a vocabulary has pairs for."""

    concepts: tuple[ConceptPairs, ...]
    """Those with enough pairs, in the order given."""
    too_few: tuple[ConceptPairs, ...]
    """Those without."""
    min_pairs: int
    """What was enough."""

    def __len__(self) -> int:
        return len(self.concepts)

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts' names."""
        return tuple(pairs.concept for pairs in self.concepts)

    def differences(self, rows: Float[np.ndarray, "n d"]) -> list[Float[np.ndarray, "m d"]]:
        """delta of every pair, one matrix per concept; `rows` are those of the unembedding, or what stands for them (whitened, say)."""
        return [rows[pairs.rows[:, 1]] - rows[pairs.rows[:, 0]] for pairs in self.concepts]

    def table(self) -> Table:
        """Pairs given, kept and left out of every concept."""
        return Table(
            "counterfactual pairs",
            ("concept", "given", "kept", "used", "first left out"),
            tuple(
                (
                    pairs.concept,
                    len(pairs.words) + len(pairs.dropped),
                    len(pairs.words),
                    len(pairs.words) >= self.min_pairs,
                    ", ".join("/".join(pair) for pair in pairs.dropped[:3]),
                )
                for pairs in (*self.concepts, *self.too_few)
            ),
            f"A pair is kept when both words, with a space before, are one token each. A concept is used from {self.min_pairs} pairs on.",
        )

    def figure(self) -> "Figure":
        """Bars: pairs kept, and pairs left out in grey."""
        every = (*self.concepts, *self.too_few)
        figure = new_figure("Pairs that are single tokens", "pairs", "", height=120 + 20 * len(every))
        names = [pairs.concept for pairs in every]
        for name, counts, shade in (
            ("kept", [len(pairs.words) for pairs in every], colour(0)),
            ("left out", [len(pairs.dropped) for pairs in every], CONTROL),
        ):
            figure.add_bar(x=counts, y=names, name=name, orientation="h", marker_color=shade)
        figure.update_layout(barmode="stack", yaxis={"autorange": "reversed"}, margin={"l": 190})
        return figure


def token_pairs(
    unembedding: Unembedding,
    words: Mapping[str, Sequence[tuple[str, str]]] = WORD_PAIRS,
    *,
    min_pairs: int = MIN_PAIRS,
) -> CounterfactualPairs:
    """The pairs of `words` that are single tokens. Raises ConfigError when no concept has `min_pairs` of them, or `min_pairs` < 2."""
    if min_pairs < 2:
        raise ConfigError(f"min_pairs must be at least 2, got {min_pairs} (token_pairs)")
    found = [_concept(unembedding, concept, pairs) for concept, pairs in words.items()]
    kept = tuple(pairs for pairs in found if len(pairs.words) >= min_pairs)
    if not kept:
        counts = ", ".join(f"{pairs.concept}: {len(pairs.words)} of {len(pairs.words) + len(pairs.dropped)}" for pairs in found)
        raise ConfigError(
            f"words must hold a concept with {min_pairs} pairs of single tokens, got {counts or 'no concept'}; "
            "give more pairs of common words in the vocabulary's language, without a space before them (token_pairs)"
        )
    return CounterfactualPairs(kept, tuple(pairs for pairs in found if len(pairs.words) < min_pairs), min_pairs)


def _concept(unembedding: Unembedding, concept: str, pairs: Sequence[tuple[str, str]]) -> ConceptPairs:
    kept: dict[tuple[int, int], tuple[str, str]] = {}
    dropped: list[tuple[str, str]] = []
    for before, after in pairs:
        rows = unembedding.row_of_word(before), unembedding.row_of_word(after)
        if rows[0] is None or rows[1] is None or rows[0] == rows[1] or rows in kept:
            dropped.append((before, after))
        else:
            kept[rows[0], rows[1]] = (before, after)
    return ConceptPairs(concept, tuple(kept.values()), np.array(list(kept), dtype=np.int64).reshape(-1, 2), tuple(dropped))
