"""Do words that a category's vector has not seen lie along it?

    projection   x . l / |l|^2           1 on average on the words l was fitted to, by construction
    AUC          chance that a held-out word lies further along than a word from elsewhere

Held out is a share of the category's word families: "bird", "Birds" and "birds" are one word for this purpose, or the held-out form is known
from the other. Elsewhere is twofold: any token, and any noun of the hierarchy, which is harder, since nouns differ from pieces of words.
The control is the same on shuffled rows. After Park, Choe, Jiang, Veitch (arXiv 2406.01506), section 5, figure 4, where tokens are split.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from probes.figures import CONTROL, colour, new_figure
from probes.hierarchy.category import Estimator, category_vector
from probes.hierarchy.wordnet import ConceptHierarchy
from probes.results import Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS = ("train projection", "held-out projection", "random token's projection", "AUC against tokens", "AUC against nouns")
CONDITIONS = ("hierarchy", "shuffled rows")
N_ELSEWHERE = 3000
"""Tokens, and nouns, that held-out words are compared with, of each at most so many."""


@dataclass(frozen=True, eq=False)
class HeldOutWords(Result):
    """How words outside the fit lie along their categories."""

    names: tuple[str, ...]
    """The categories."""
    sizes: tuple[int, ...]
    """Words of each."""
    estimator: Estimator
    """How the vectors were estimated."""
    test_share: float
    """Share of the word families held out."""
    values: dict[str, Float[np.ndarray, "n 5"]]
    """Condition -> per category: train, held-out and random projection, AUC against tokens and against nouns of other categories."""

    def of(self, condition: str, column: str) -> Float[np.ndarray, " n"]:
        """One number of every category. Raises ConfigError for an unknown condition or column."""
        if condition not in self.values or column not in COLUMNS:
            known = f"{', '.join(self.values)} and {', '.join(COLUMNS)}"
            raise ConfigError(f"condition and column must be among {known}, got {condition!r} and {column!r} (HeldOutWords)")
        return self.values[condition][:, COLUMNS.index(column)]

    def table(self) -> Table:
        """Each number's mean and standard deviation over the categories, for the hierarchy and for shuffled rows."""
        rows = []
        for column in COLUMNS:
            both = [self.of(condition, column) for condition in CONDITIONS]
            rows.append((column, *(float(number) for each in both for number in (np.nanmean(each), np.nanstd(each, ddof=1)))))
        columns = ("", "hierarchy", "sd", "shuffled rows", "sd of shuffled")
        note = f"{self.test_share:.0%} of each category's word families held out; by chance a projection is 0 and an AUC 0.5."
        return Table(f"held-out words of {len(self.names)} categories ({self.estimator} vectors)", columns, tuple(rows), note)

    def categories(self) -> Table:
        """One row per category, the best read first."""
        order = np.argsort(-self.of("hierarchy", "AUC against nouns"), kind="stable")
        rows = tuple((self.names[i], self.sizes[i], *map(float, self.values["hierarchy"][i])) for i in order)
        return Table("held-out words by category", ("category", "words", *COLUMNS), rows)

    def figure(self) -> "Figure":
        """Categories by size: held-out AUC and its control, and the projections."""
        figure = new_figure(f"Words outside the fit ({self.estimator} vectors)", "words of the category", "held-out projection")
        for condition, shade in (("shuffled rows", CONTROL), ("hierarchy", colour(0))):
            y = self.of(condition, "held-out projection")
            figure.add_scatter(
                x=list(self.sizes),
                y=y,
                mode="markers",
                name=condition,
                text=list(self.names),
                marker={"color": shade, "size": 5, "opacity": 0.6},
            )
        figure.add_hline(y=0, line={"color": CONTROL, "dash": "dash"})
        figure.add_hline(y=1, line={"color": CONTROL, "dash": "dot"})
        figure.update_xaxes(type="log")
        return figure


def held_out_words(
    g: Float[np.ndarray, "n_tokens d"],
    hierarchy: ConceptHierarchy,
    *,
    test_share: float = 0.3,
    estimator: Estimator = "lda",
    n_categories: int | None = 250,
    seed: int = 0,
) -> HeldOutWords:
    """Vectors from a part of each category's words, and how the others lie along them, on whitened rows `g`; `n_categories` random ones.

    Raises ConfigError for a share outside 0..1 and for a category with fewer than 2 words on either side of the split.
    """
    if not 0 < test_share < 1:
        raise ConfigError(f"test_share must be above 0 and below 1, got {test_share} (held_out_words)")
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(hierarchy))
    if n_categories is not None and n_categories < len(chosen):
        chosen = np.sort(rng.choice(chosen, n_categories, replace=False))
    splits = [_split(hierarchy, int(i), test_share, rng) for i in chosen]
    nouns = np.unique(np.concatenate(hierarchy.rows))
    elsewhere = [rng.choice(pool, min(N_ELSEWHERE, len(pool)), replace=False) for pool in (np.arange(len(g)), nouns)]
    shuffled = g[rng.permutation(len(g))]
    values = {name: _measure(rows, splits, elsewhere, estimator) for name, rows in zip(CONDITIONS, (g, shuffled), strict=True)}
    names = tuple(hierarchy.names[i] for i in chosen)
    return HeldOutWords(names, tuple(len(hierarchy.rows[i]) for i in chosen), estimator, test_share, values)


def _split(hierarchy: ConceptHierarchy, i: int, test_share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit to and rows held out, with the forms of a word on one side."""
    rows = hierarchy.rows[i]
    families = np.unique(hierarchy.families[rows])
    out = rng.choice(families, max(1, round(test_share * len(families))), replace=False)
    held = np.isin(hierarchy.families[rows], out)
    if min(held.sum(), (~held).sum()) < 2:
        raise ConfigError(
            f"each category must have 2 words or more on either side of the split, {hierarchy.names[i]!r} has {int((~held).sum())} to fit to and "
            f"{int(held.sum())} held out of {len(rows)}; take larger categories or another test_share={test_share} (held_out_words)"
        )
    return rows[~held], rows[held]


def _measure(
    g: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]], elsewhere: list[np.ndarray], estimator: Estimator
) -> Float[np.ndarray, "n 5"]:
    vectors = np.stack([category_vector(g[train], estimator=estimator) for train, _ in splits])
    vectors /= np.square(vectors).sum(axis=1, keepdims=True)
    others = [g[rows] @ vectors.T for rows in elsewhere]
    found = []
    for i, (train, held) in enumerate(splits):
        on_held = g[held] @ vectors[i]
        members = np.concatenate([train, held])
        outside = [values[~np.isin(rows, members), i] for rows, values in zip(elsewhere, others, strict=True)]
        aucs = [_auc(on_held, values) for values in outside]
        found.append((float((g[train] @ vectors[i]).mean()), float(on_held.mean()), float(outside[0].mean()), *aucs))
    return np.array(found)


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive is larger, ties half; NaN where there is nothing to compare with (a category that holds every noun)."""
    if len(negative) == 0:
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))
