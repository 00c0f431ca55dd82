"""Which latents tell two sets of texts apart, with what chance gives.

    score(text, i) = v_i of largest magnitude over the text's tokens, 0 where i fires on none      (or the mean of v_i over them)
    AUC(i)         = P(score_a > score_b) + P(score_a = score_b) / 2                               (Mann and Whitney, 1947)

Latents are ranked by |AUC - 1/2|, then by |mean_a - mean_b|, then by id. With many latents and few texts some separate any division of the
texts: the null divides them anew at random and keeps the largest |AUC - 1/2| of all latents, so its p-value holds for the best of the
list (P. Westfall and S. Young, "Resampling-Based Multiple Testing", 1993).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer

from sae.errors import ConfigError
from sae.inspection.encoded import Contrast, EncodedText
from sae.inspection.format import number, percent
from sae.inspection.listing import Column, listing_html, listing_text
from sae.inspection.reading import ReadableIndex

MIN_TEXTS = 4
"""Fewest texts of each set for the null: of 4 and 4 there are 70 divisions."""
N_DIVISIONS = 400
"""Random divisions of the texts drawn for the null."""

CONTRAST_DEFINITION = (
    "Ranked by how far the AUC is from 1/2: the probability that a text of the first set scores above one of the second, ties counted half. "
    "A text's score is the latent's value of largest magnitude over its tokens (0 where it does not fire). The p-value is the share of "
    f"{N_DIVISIONS} random divisions of the same texts into sets of these sizes in which the best of all latents does as well; it is given "
    f"for sets of at least {MIN_TEXTS} texts."
)


@dataclass(frozen=True)
class ContrastTable:
    """The features that tell two sets of texts apart, best first. A notebook shows them as a table."""

    contrasts: tuple[Contrast, ...]
    """The features, best first."""
    n_texts: tuple[int, int]
    """Texts of each set."""
    index: ReadableIndex = field(repr=False, compare=False)
    """Where the features are described."""
    definition: str = CONTRAST_DEFINITION
    """What they are ranked by."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Latent ids, best first."""
        return tuple(contrast.index for contrast in self.contrasts)

    def __len__(self) -> int:
        return len(self.contrasts)

    def _title(self) -> str:
        return f"{len(self)} features that tell {self.n_texts[0]} texts (a) from {self.n_texts[1]} (b)"

    def _repr_html_(self) -> str:
        of = {contrast.index: contrast for contrast in self.contrasts}
        columns = [
            Column("AUC", lambda i: f"{of[i].auc:.2f}"),
            Column("p", lambda i: _p_text(of[i].p_value)),
            Column("mean a", lambda i: number(of[i].mean_a)),
            Column("mean b", lambda i: number(of[i].mean_b)),
            Column("fires in a", lambda i: percent(of[i].share_a)),
            Column("in b", lambda i: percent(of[i].share_b)),
        ]
        return listing_html(self.index, self.ids, title=self._title(), footer=self.definition, columns=columns, spark=False)

    def __repr__(self) -> str:
        notes = {c.index: f"AUC {c.auc:.2f}, p {_p_text(c.p_value)}" for c in self.contrasts}
        return listing_text(self.index, self.ids, title=self._title(), notes=notes)


def _p_text(p_value: float | None) -> str:
    return "–" if p_value is None else f"{p_value:.3f}"


def contrast_texts(
    texts_a: Sequence[EncodedText], texts_b: Sequence[EncodedText], *, n: int, score: Literal["max", "mean"] = "max", seed: int = 0
) -> list[Contrast]:
    """The `n` latents that tell the two sets apart best; see the module's text. Raises ConfigError for n < 1 or an unknown score."""
    from scipy.stats import rankdata  # slow to import, and reading an index needs it nowhere else

    if isinstance(n, bool) or n < 1:
        raise ConfigError(f"n must be at least 1, got {n!r} (contrast)")
    if score not in ("max", "mean"):
        raise ConfigError(f"score must be 'max' or 'mean', got {score!r} (contrast)")
    ids, scores = text_scores([*texts_a, *texts_b], score=score)
    n_a, n_b = len(texts_a), len(texts_b)
    ranks = rankdata(scores, axis=0)
    wins = ranks[:n_a].sum(0) - n_a * (n_a + 1) / 2  # pairs in which a's text is above, ties counted half: exact
    auc, distance = wins / (n_a * n_b), np.abs(2 * wins - n_a * n_b)
    means, shares = [[f(part, axis=0) for part in (scores[:n_a], scores[n_a:])] for f in (np.mean, _share)]
    order = np.lexsort((ids, -np.abs(means[0] - means[1]), -distance))[:n]
    p_values = _p_values(ranks, n_a, np.abs(auc - 0.5)[order], seed) if min(n_a, n_b) >= MIN_TEXTS else [None] * len(order)
    return [
        Contrast(int(ids[i]), float(auc[i]), *(float(each[i]) for each in (*means, *shares)), p_value)
        for i, p_value in zip(order.tolist(), p_values, strict=True)
    ]


def text_scores(
    texts: Sequence[EncodedText], *, score: Literal["max", "mean"] = "max"
) -> tuple[Integer[np.ndarray, "m"], Float[np.ndarray, "n m"]]:
    """The latents that fire in any of the texts, ascending, and the score of each text for each of them."""
    ids = np.unique([latent for text in texts for token in text.latents for latent in token]).astype(np.int64)
    scores = np.zeros((len(texts), len(ids)))
    for row, text in zip(scores, texts, strict=True):
        places = np.searchsorted(ids, np.array([latent for token in text.latents for latent in token], np.int64))
        values = np.array([value for token in text.values for value in token], float)
        if score == "mean":
            np.add.at(row, places, values / max(len(text.tokens) - sum(text.is_special), 1))
        else:
            order = np.argsort(np.abs(values), kind="stable")
            row[places[order]] = values[order]  # the largest magnitude is written last
    return ids, scores


def _share(scores: np.ndarray, axis: int) -> np.ndarray:
    return (scores != 0).mean(axis=axis)


def _p_values(ranks: np.ndarray, n_a: int, distances: np.ndarray, seed: int) -> list[float]:
    """Share of random divisions, the actual one included, whose farthest AUC is at least as far from 1/2."""
    generator, n = np.random.default_rng(seed), len(ranks)
    first = np.zeros((N_DIVISIONS, n))
    for row in first:
        row[generator.permutation(n)[:n_a]] = 1.0
    auc = (first @ ranks - n_a * (n_a + 1) / 2) / (n_a * (n - n_a))
    farthest = np.abs(auc - 0.5).max(axis=1, initial=0.0)
    return [float((1 + (farthest >= distance - 1e-9).sum()) / (1 + N_DIVISIONS)) for distance in distances]
