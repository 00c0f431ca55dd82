"""Is a hierarchy of concepts in the geometry? Statistics of each child C of a parent P, beside what sets without meaning give.

    nested cosine         cos(l_P, l_C - l_P)                       the paper's own: near 0 says "orthogonal"
    disjoint projection   l_C . l_R / |l_R|^2,   R = P without C    1 if the child has what the rest of its parent has, 0 if nothing

The nested cosine cannot tell: for any C inside any P of independent whitened rows E[m_P . (m_C - m_P)] = d/n_P - d/n_P = 0, so that random
sets pass, while a random parent Q has cos = -sqrt(n_C / (n_C + n_Q)) for the same reason and looks like a contrast. (arXiv 2406.01506,
section 5, and the discussion of it in "Intricacies of Feature Geometry in Large Language Models", ICLR 2025 blog posts.) The disjoint
projection can: the two vectors share no word. Every statistic is given for the hierarchy, for random nested sets of the same sizes, for the
hierarchy on rows that were shuffled, and without whitening.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from probes.figures import CONTROL, colour
from probes.hierarchy.category import Estimator, category_vector
from probes.hierarchy.wordnet import ConceptHierarchy
from probes.results import Cell, Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CONDITIONS = ("hierarchy", "random nested sets", "shuffled rows", "Euclidean")
STATISTICS = ("nested cosine", "disjoint cosine", "disjoint projection", "random parent's cosine")


class Family(NamedTuple):
    """Rows of a parent's words, and of each child's with those of some unrelated category."""

    parent: np.ndarray
    """Rows of the parent."""
    children: list[tuple[np.ndarray, np.ndarray]]
    """Rows of a child, and of the category that it is compared with as a random parent's."""


@dataclass(frozen=True, eq=False)
class HierarchyStatistics(Result):
    """Statistics of the edges of a hierarchy under four conditions."""

    names: tuple[tuple[str, str], ...]
    """Parent and child of each edge."""
    estimator: Estimator
    """How the vectors were estimated."""
    values: dict[str, Float[np.ndarray, "n 4"]]
    """Condition -> statistics of each edge: nested cosine, disjoint cosine cos(l_R, l_C - l_R), disjoint projection, random parent's cosine."""

    def of(self, condition: str, statistic: str) -> Float[np.ndarray, " n"]:
        """One statistic of every edge. Raises ConfigError for an unknown condition or statistic."""
        if condition not in self.values or statistic not in STATISTICS:
            known = f"{', '.join(self.values)} and {', '.join(STATISTICS)}"
            raise ConfigError(f"condition and statistic must be among {known}, got {condition!r} and {statistic!r} (HierarchyStatistics)")
        return self.values[condition][:, STATISTICS.index(statistic)]

    def table(self) -> Table:
        """Conditions with the mean and the standard deviation of each statistic over the edges."""
        rows: list[tuple[Cell, ...]] = []
        for condition in self.values:
            cells: list[Cell] = [condition]
            for statistic in STATISTICS:
                edges = self.of(condition, statistic)
                cells += [float(edges.mean()), float(edges.std(ddof=1))]
            rows.append(tuple(cells))
        columns = ("condition", *(name for statistic in STATISTICS for name in (statistic, "sd " + statistic)))
        note = (
            "The nested cosine is near 0 for random sets too, and the random parent's far from 0 for any: neither tells a hierarchy from noise. "
            "The disjoint projection does: the child along its parent estimated without the child's words."
        )
        return Table(f"{len(self.names)} edges of the hierarchy ({self.estimator} vectors)", columns, tuple(rows), note)

    def figure(self) -> "Figure":
        """Box plots, a panel per statistic; controls in grey."""
        from plotly.subplots import make_subplots

        figure = make_subplots(rows=1, cols=len(STATISTICS), subplot_titles=list(STATISTICS), horizontal_spacing=0.05)
        for j, statistic in enumerate(STATISTICS):
            for i, condition in enumerate(self.values):
                shade = colour(0) if i == 0 else colour(1) if condition == "Euclidean" else CONTROL
                style: dict[str, Any] = {"marker_color": shade, "marker_size": 3, "boxpoints": "outliers", "showlegend": False}
                figure.add_box(y=self.of(condition, statistic), name=condition, row=1, col=j + 1, **style)
            figure.add_hline(y=0, line={"color": CONTROL, "width": 1}, row=1, col=j + 1)
        figure.update_layout(
            template="plotly_white",
            title={"text": f"Child and parent, {len(self.names)} edges ({self.estimator} vectors)", "x": 0, "font": {"size": 16}},
            width=1080,
            height=460,
            margin={"l": 50, "r": 20, "t": 90, "b": 110},
        )
        figure.update_xaxes(tickangle=-35)
        return figure


def hierarchy_statistics(
    g: Float[np.ndarray, "n_tokens d"],
    hierarchy: ConceptHierarchy,
    *,
    unwhitened: Float[np.ndarray, "n_tokens d_model"] | None = None,
    estimator: Estimator = "lda",
    n_edges: int | None = 100,
    seed: int = 0,
) -> HierarchyStatistics:
    """The statistics of `n_edges` random edges (None: all) on the whitened rows `g`, with their nulls; "Euclidean" where `unwhitened` rows
    are given, less their mean.

    Raises ConfigError for rows that the hierarchy goes beyond, and for a hierarchy with fewer than 2 edges.
    """
    top = max((int(rows.max()) for rows in hierarchy.rows), default=-1)
    if top >= len(g):
        raise ConfigError(f"g must have a row for every token of the hierarchy, up to {top}, got {len(g)} rows (hierarchy_statistics)")
    rng = np.random.default_rng(seed)
    edges = hierarchy.edges()
    if len(edges) < 2:
        raise ConfigError(
            f"hierarchy must have at least 2 edges to children of at most 0.8 of their parent, got {len(edges)} (hierarchy_statistics)"
        )
    if n_edges is not None and n_edges < len(edges):
        edges = edges[np.sort(rng.choice(len(edges), n_edges, replace=False))]
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    others = _unrelated(hierarchy, edges, rng)
    sets = [
        Family(hierarchy.rows[p], [(hierarchy.rows[edges[i, 1]], hierarchy.rows[others[i]]) for i in np.flatnonzero(edges[:, 0] == p)])
        for p in np.unique(edges[:, 0])
    ]
    random = [_random_nested(rng, len(g), family) for family in sets]
    shuffled = g[rng.permutation(len(g))]
    values = {
        name: _edge_statistics(rows, among, estimator)
        for name, rows, among in (("hierarchy", g, sets), ("random nested sets", g, random), ("shuffled rows", shuffled, sets))
    }
    if unwhitened is not None:
        values["Euclidean"] = _edge_statistics(unwhitened - unwhitened.mean(axis=0), sets, estimator)
    return HierarchyStatistics(tuple((hierarchy.names[p], hierarchy.names[c]) for p, c in edges), estimator, values)


def _edge_statistics(g: np.ndarray, families: list[Family], estimator: Estimator) -> np.ndarray:
    """[n_edges, 4], family after family."""
    found = []
    for family in families:
        words = g[family.parent]
        moment = _second_moment(words) if len(words) > g.shape[1] and estimator == "lda" else None
        l_parent = category_vector(words, estimator=estimator, second_moment=moment)
        for child, other in family.children:
            l_child, l_other = (category_vector(g[rows], estimator=estimator) for rows in (child, other))
            rest = np.setdiff1d(family.parent, child, assume_unique=True)
            inner = None if moment is None or len(rest) <= g.shape[1] else moment - _second_moment(g[child])
            l_rest = category_vector(g[rest], estimator=estimator, second_moment=inner)
            found.append(
                (
                    _cosine(l_parent, l_child - l_parent),
                    _cosine(l_rest, l_child - l_rest),
                    float(l_child @ l_rest / (l_rest @ l_rest)),
                    _cosine(l_other, l_child - l_other),
                )
            )
    return np.array(found)


def _second_moment(words: np.ndarray) -> np.ndarray:
    """words^T words, multiplied in single precision, which is twice as fast: 1e-6 of a covariance that is shrunk by a thousandth or more."""
    single = words.astype(np.float32)
    return (single.T @ single).astype(np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 0 else 0.0


def _random_nested(rng: np.random.Generator, n: int, family: Family) -> Family:
    """Random sets of those sizes, each child inside the parent."""
    parent = rng.choice(n, len(family.parent), replace=False)
    children = [
        (rng.choice(parent, len(child), replace=False), rng.choice(n, len(other), replace=False)) for child, other in family.children
    ]
    return Family(parent, children)


def _unrelated(hierarchy: ConceptHierarchy, edges: Int[np.ndarray, "n 2"], rng: np.random.Generator) -> list[int]:
    """For each edge a random category other than the child that is not above it, or, where all are, the parent itself."""
    found = []
    for parent, child in edges.tolist():
        above, waiting = {child}, [child]
        while waiting:
            new = [p for p in hierarchy.parents[waiting.pop()] if p not in above]
            above.update(new)
            waiting += new
        allowed = [i for i in range(len(hierarchy)) if i not in above]
        found.append(int(rng.choice(allowed)) if allowed else parent)
    return found
