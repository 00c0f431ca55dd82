"""Which concepts share a direction: |cos| of every pair of concepts under three inner products.

    causal     gamma Cov^{-1} gamma'        Euclidean    gamma gamma'        random      gamma A A^T gamma',   A_ij ~ N(0, 1)

Concepts that vary freely of one another should be orthogonal under the causal one; linked ones (two forms of the same verb) need not be.
Two things must be beside it: concepts made of random pairs, which tell how much of a small cosine any whitening gives, and the cosine of
random directions, E|cos| ~ sqrt(2 / (pi d)), median ~ 0.674 / sqrt(d), the floor. The random inner product is of plain normal numbers: the
absolute values that the paper's code takes make A nearly of rank one and its cosines large for no reason.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from probes.causal.concepts import random_pairs
from probes.causal.inner_product import CausalInnerProduct, cosines
from probes.causal.pairs import CounterfactualPairs
from probes.results import Result, Table
from probes.unembedding import Unembedding

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEDIAN_OF_NORMAL = 0.6744897501960817
"""Median of |x| for a standard normal x."""
INNER_PRODUCTS = ("causal", "Euclidean", "random")


@dataclass(frozen=True, eq=False)
class ConceptCosines(Result):
    """|cos| between concepts."""

    names: tuple[str, ...]
    """The concepts."""
    cosines: dict[str, Float[np.ndarray, "n n"]]
    """|cos| of mean differences, under each inner product: causal, Euclidean, random."""
    null: dict[str, Float[np.ndarray, "n n"]]
    """The same of concepts made of random pairs, each as many as the concept has."""
    d: int
    """Width of the directions."""

    @property
    def floor_mean(self) -> float:
        """sqrt(2 / (pi d)): mean |cos| of random directions."""
        return float(np.sqrt(2 / (np.pi * self.d)))

    @property
    def floor_median(self) -> float:
        """0.674 / sqrt(d): median |cos| of random directions."""
        return float(MEDIAN_OF_NORMAL / np.sqrt(self.d))

    def off_diagonal(self, inner_product: str, *, null: bool = False) -> Float[np.ndarray, "_"]:
        """|cos| of each two different concepts, once."""
        matrix = (self.null if null else self.cosines)[inner_product]
        return matrix[np.triu_indices(len(matrix), k=1)]

    def table(self) -> Table:
        """One row per inner product: concepts, concepts of random pairs, random directions."""
        rows = []
        for name in self.cosines:
            real, null = self.off_diagonal(name), self.off_diagonal(name, null=True)
            real_, null_ = (float(np.median(real)), float(real.mean())), (float(np.median(null)), float(null.mean()))
            rows.append((name, *real_, *null_, self.floor_median, self.floor_mean, self._closest(name)))
        columns = (
            "inner product",
            "median |cos|",
            "mean |cos|",
            "random pairs: median",
            "mean",
            "floor: median",
            "floor: mean",
            "most alike",
        )
        note = (
            "Between different concepts. A causal median near the floor says the concepts are orthogonal under it; how much of that any whitening "
            "gives is the difference between the random pairs' two medians. Euclidean far above its random pairs is structure that concepts share."
        )
        return Table("cosines between concepts", columns, tuple(rows), note)

    def _closest(self, inner_product: str) -> str:
        matrix = np.triu(self.cosines[inner_product], k=1)
        i, j = np.unravel_index(int(matrix.argmax()), matrix.shape)
        return f"{self.names[i]} | {self.names[j]}"

    def figure(self) -> "Figure":
        """A heat map for each inner product, on one scale from 0 to 1."""
        from plotly.subplots import make_subplots

        titles = [f"{name}: median {np.median(self.off_diagonal(name)):.3f}" for name in self.cosines]
        figure = make_subplots(rows=1, cols=len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.02)
        for i, matrix in enumerate(self.cosines.values()):
            style = {"colorscale": "Viridis", "zmin": 0, "zmax": 1, "showscale": i == 0, "colorbar": {"title": "|cos|"}}
            figure.add_heatmap(z=matrix, x=list(self.names), y=list(self.names), row=1, col=i + 1, **style)
        size = 14 * len(self.names)
        figure.update_layout(
            template="plotly_white",
            title={"text": "Cosines between concepts", "x": 0, "font": {"size": 16}},
            width=260 + len(titles) * max(size, 220),
            height=270 + max(size, 160),
            margin={"l": 180, "t": 80, "b": 160},
        )
        figure.update_xaxes(tickangle=-60, tickfont_size=9, dtick=1)
        figure.update_yaxes(autorange="reversed", tickfont_size=9, dtick=1)
        return figure


def concept_cosines(pairs: CounterfactualPairs, unembedding: Unembedding, causal: CausalInnerProduct, *, seed: int = 0) -> ConceptCosines:
    """|cos| between the mean differences of the concepts, and between those of as many random pairs."""
    rng = np.random.default_rng(seed)
    means = np.stack([differences.mean(axis=0) for differences in pairs.differences(unembedding.rows)])
    drawn = [random_pairs(rng, len(unembedding), len(concept.words)) for concept in pairs.concepts]
    null_means = np.stack([(unembedding.rows[rows[:, 1]] - unembedding.rows[rows[:, 0]]).mean(axis=0) for rows in drawn])
    mixing = rng.normal(size=(means.shape[1], means.shape[1]))

    def every(directions: np.ndarray) -> dict[str, np.ndarray]:
        seen = (causal.whiten(directions), directions, directions @ mixing)
        return {name: np.abs(cosines(rows, rows)) for name, rows in zip(INNER_PRODUCTS, seen, strict=True)}

    return ConceptCosines(names=pairs.names, cosines=every(means), null=every(null_means), d=means.shape[1])
