"""The vertices that the categories of a concept make, and the words around them.

    affine rank of v_1 ... v_k = rank of (v_i - mean),      a simplex when it is k - 1

Park, Choe, Jiang, Veitch, ICLR 2025 (arXiv 2406.01506), theorem 8: a concept of k values is a simplex of k vertices. k random sets of words
make one as well, in more than k dimensions, so the rank says nothing alone. What random sets do not do is put words that were not used
near the right vertex; both are returned for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from probes.figures import CONTROL, colour
from probes.hierarchy.category import Estimator, category_vector
from probes.hierarchy.wordnet import ConceptHierarchy
from probes.results import Result, Table
from probes.unembedding import Unembedding
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FLAT = 1e-6
"""Singular values below this share of the largest length are none."""
N_NULL = 20


def affine_rank(vertices: Float[np.ndarray, "k d"], *, flat: float = FLAT) -> int:
    """Dimension of the smallest flat that holds the vertices: singular values of vertices - mean above `flat` times the largest distance
    from it. Raises ConfigError for no vertex."""
    if len(vertices) == 0:
        raise ConfigError("vertices must hold at least 1, got 0 (affine_rank)")
    centred = vertices - vertices.mean(axis=0)
    scale = np.linalg.norm(centred, axis=1).max()
    return int((np.linalg.svd(centred, compute_uv=False) > flat * scale).sum()) if scale > 0 else 0


@dataclass(frozen=True, eq=False)
class Simplex(Result):
    """Vertices of some categories, fitted to a part of their words, and all their words in the vertices' own coordinates."""

    names: tuple[str, ...]
    """The categories."""
    vertices: Float[np.ndarray, "k d"]
    """Their vectors, from the words not held out."""
    coordinates: Float[np.ndarray, "n axes"]
    """Words along orthonormal axes of the flat through the vertices, from the first vertex; at most three axes."""
    corners: Float[np.ndarray, "k axes"]
    """The vertices there."""
    words: tuple[str, ...]
    """The words."""
    labels: Int[np.ndarray, " n"]
    """Category of each word."""
    held_out: Int[np.ndarray, " n"]
    """1 where the word was not used for the vertices."""
    affine_rank: int
    """Dimension of the flat; k - 1 for a simplex."""
    accuracy: float
    """Share of the held-out words whose nearest vertex is their own, averaged over the categories."""
    null_accuracy: Float[np.ndarray, " n_null"]
    """The same for random sets of words of the same sizes."""
    null_affine_rank: Int[np.ndarray, " n_null"]
    """Affine rank of their vertices."""

    @property
    def is_simplex(self) -> bool:
        """Whether no vertex lies in the flat of the others."""
        return self.affine_rank == len(self.names) - 1

    def table(self) -> Table:
        """The rank and the held-out accuracy beside those of random sets."""
        k = len(self.names)
        rows = (
            ("affine rank", float(self.affine_rank), float(self.null_affine_rank.mean()), float(self.null_affine_rank.std(ddof=1))),
            ("held-out nearest vertex", self.accuracy, float(self.null_accuracy.mean()), float(self.null_accuracy.std(ddof=1))),
        )
        note = f"{k} vertices are a simplex at rank {k - 1}; chance puts 1/{k} of the held-out words at the right one. Random sets reach the rank as well."
        return Table(f"simplex of {', '.join(self.names)}", ("", "categories", "random sets", "sd"), rows, note)

    def figure(self) -> "Figure":
        """The words and the polytope of the vertices: a line or plane for two or three categories, else three dimensions."""
        from plotly.graph_objects import Figure

        n_axes = self.corners.shape[1]
        figure = Figure()
        add = figure.add_scatter3d if n_axes == 3 else figure.add_scatter
        edges = [(i, j) for i in range(len(self.names)) for j in range(i)]
        path = np.concatenate([np.stack([self.corners[i], self.corners[j], np.full(n_axes, np.nan)]) for i, j in edges])
        for i, name in enumerate(self.names):
            mine = self.labels == i
            for held, symbol in ((0, "circle"), (1, "diamond")):
                at = mine & (self.held_out == held)
                style = {
                    "mode": "markers",
                    "marker": {
                        "size": (4 + 2 * held) if n_axes < 3 else 3,
                        "color": colour(i),
                        "symbol": symbol,
                        "opacity": 0.45 + 0.4 * held,
                    },
                }
                texts = [word for word, shown in zip(self.words, at, strict=True) if shown]
                add(**_axes(self.coordinates[at]), text=texts, name=name + (", held out" if held else ""), **style)
        add(**_axes(path), mode="lines", line={"color": CONTROL, "width": 3}, name="vertices")
        figure.update_layout(
            template="plotly_white",
            title={"text": f"Words along the flat of {', '.join(self.names)}", "x": 0, "font": {"size": 16}},
            width=760,
            height=620,
            margin={"l": 50, "r": 20, "t": 60, "b": 50},
        )
        if n_axes == 2:
            figure.update_yaxes(scaleanchor="x", title="axis 2 (whitened units)")
            figure.update_xaxes(title="axis 1 (whitened units)")
        return figure


def simplex(
    g: Float[np.ndarray, "n_tokens d"],
    hierarchy: ConceptHierarchy,
    names: Sequence[str],
    unembedding: Unembedding,
    *,
    estimator: Estimator = "lda",
    test_share: float = 0.3,
    seed: int = 0,
) -> Simplex:
    """The vertices of some categories of a hierarchy on whitened rows `g`. A word in two of them is left out.

    Raises ConfigError for fewer than 3 categories, an unknown one, and one without 4 words of its own.
    """
    if len(set(names)) < 3:
        raise ConfigError(f"names must be 3 different categories or more, got {list(names)} (simplex)")
    numbers = [hierarchy.index(name) for name in names]
    every = np.concatenate([hierarchy.rows[i] for i in numbers])
    seen, counts = np.unique(every, return_counts=True)
    sets = [np.intersect1d(hierarchy.rows[i], seen[counts == 1]) for i in numbers]
    for name, rows in zip(names, sets, strict=True):
        if len(rows) < 4:
            raise ConfigError(f"each category must have 4 words that the others do not have, {name!r} has {len(rows)} (simplex)")
    rng = np.random.default_rng(seed)
    held = [_held_out(rng, hierarchy.families[rows], test_share) for rows in sets]
    vertices = _vertices(g, sets, held, estimator)
    axes = np.linalg.qr((vertices[1:] - vertices[0]).T)[0][:, : min(3, len(names) - 1)]
    rows, labels, out = np.concatenate(sets), np.repeat(np.arange(len(sets)), [len(s) for s in sets]), np.concatenate(held)
    null_accuracy, null_rank = [], []
    for _ in range(N_NULL):
        drawn = np.split(rng.choice(len(g), len(rows), replace=False), np.cumsum([len(s) for s in sets])[:-1])
        random = _vertices(g, drawn, held, estimator)
        null_accuracy.append(_accuracy(g, drawn, held, random))
        null_rank.append(affine_rank(random))
    return Simplex(
        names=tuple(names),
        vertices=vertices,
        coordinates=(g[rows] - vertices[0]) @ axes,
        corners=(vertices - vertices[0]) @ axes,
        words=tuple(unembedding.tokens[row] for row in rows),
        labels=labels,
        held_out=out.astype(np.int64),
        affine_rank=affine_rank(vertices),
        accuracy=_accuracy(g, sets, held, vertices),
        null_accuracy=np.array(null_accuracy),
        null_affine_rank=np.array(null_rank),
    )


def _held_out(rng: np.random.Generator, families: np.ndarray, test_share: float) -> np.ndarray:
    """Which words to hold out, whole families of them, at least one and never all but one."""
    distinct = np.unique(families)
    n_out = min(max(1, round(test_share * len(distinct))), len(distinct) - 2)
    if n_out < 1:
        return np.arange(len(families)) == 0
    return np.isin(families, rng.choice(distinct, n_out, replace=False))


def _vertices(g: np.ndarray, sets: Sequence[np.ndarray], held: Sequence[np.ndarray], estimator: Estimator) -> np.ndarray:
    return np.stack([category_vector(g[rows[~out]], estimator=estimator) for rows, out in zip(sets, held, strict=True)])


def _accuracy(g: np.ndarray, sets: Sequence[np.ndarray], held: Sequence[np.ndarray], vertices: np.ndarray) -> float:
    """Share of held-out words nearest to their own vertex, |x - v|^2 up to |x|^2, averaged over the sets."""
    half = np.square(vertices).sum(axis=1) / 2
    return float(
        np.mean(
            [((g[rows[out]] @ vertices.T - half).argmax(axis=1) == i).mean() for i, (rows, out) in enumerate(zip(sets, held, strict=True))]
        )
    )


def _axes(points: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip("xyz", points.T, strict=False))
