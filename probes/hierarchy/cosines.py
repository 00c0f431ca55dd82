"""The shape of a hierarchy in its vectors: closeness in the graph beside cosines of vectors and of steps from parent to child.

    graph   1 / (1 + edges between i and j)          vectors   cos(l_i, l_j)          steps   cos(l_i - l_parent(i), l_j - l_parent(j))

Theory (arXiv 2406.01506, theorem 8): vectors follow the graph, steps are orthogonal. Steps of random nested sets are orthogonal too; what
sets without meaning do not give is vectors that follow the graph where no word is shared: the rank correlation, which is told over pairs of
categories without a common word, beside that of the same sets on shuffled rows.
"""

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from probes.causal.inner_product import cosines
from probes.hierarchy.category import Estimator, category_vector
from probes.hierarchy.wordnet import ConceptHierarchy
from probes.results import Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class HierarchyCosines(Result):
    """Three matrices over the same categories, parents before children, branch after branch."""

    names: tuple[str, ...]
    """The categories."""
    graph: Float[np.ndarray, "n n"]
    """1 / (1 + distance in the hierarchy), 0 where there is no way."""
    vectors: Float[np.ndarray, "n n"]
    """Cosines of vectors."""
    steps: Float[np.ndarray, "n n"]
    """Cosines of vectors less those of their first parents; a root's is its vector."""
    disjoint: Float[np.ndarray, " pairs"]
    """cos(l_i, l_j) of each two categories without a word in common."""
    disjoint_graph: Float[np.ndarray, " pairs"]
    """Their closeness in the graph."""
    shuffled_disjoint: Float[np.ndarray, " pairs"]
    """cos(l_i, l_j) of the same on shuffled rows."""
    shuffled_steps: Float[np.ndarray, "n n"]
    """The steps' cosines on shuffled rows."""

    def table(self) -> Table:
        """Rank correlation with the graph and size of the steps' cosines, beside shuffled rows."""
        upper = np.triu_indices(len(self.names), k=1)
        follow = (_spearman(self.disjoint, self.disjoint_graph), _spearman(self.shuffled_disjoint, self.disjoint_graph))
        sizes = (float(np.abs(matrix[upper]).mean()) for matrix in (self.steps, self.shuffled_steps))
        rows = (("correlation of cosine and graph, disjoint pairs", *follow), ("mean |cos| between steps", *sizes))
        note = f"Spearman's correlation over {len(self.disjoint)} pairs of categories without a common word. Small cosines of steps are no evidence alone."
        return Table(f"cosines of {len(self.names)} categories", ("", "hierarchy", "shuffled rows"), rows, note)

    def figure(self) -> "Figure":
        """Three heat maps: the graph, the vectors, the steps."""
        from plotly.subplots import make_subplots

        titles = ("closeness in the graph", "cosine of vectors", "cosine of steps")
        figure = make_subplots(rows=1, cols=3, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.02)
        names = [f"{i} {name}" for i, name in enumerate(self.names)]
        for i, matrix in enumerate((self.graph, self.vectors, self.steps)):
            style = {"colorscale": "RdBu", "zmid": 0, "zmin": -1, "zmax": 1, "showscale": i == 2}
            figure.add_heatmap(z=matrix, x=names, y=names, row=1, col=i + 1, **style)
        figure.update_layout(
            template="plotly_white",
            title={"text": "A hierarchy and its vectors", "x": 0, "font": {"size": 16}},
            width=1180,
            height=480,
            margin={"l": 40, "r": 20, "t": 80, "b": 30},
        )
        figure.update_xaxes(showticklabels=False)
        figure.update_yaxes(showticklabels=False, autorange="reversed")
        return figure


def hierarchy_cosines(
    g: Float[np.ndarray, "n_tokens d"], hierarchy: ConceptHierarchy, *, estimator: Estimator = "lda", seed: int = 0
) -> HierarchyCosines:
    """The three matrices of all categories on whitened rows `g`. Raises ConfigError for fewer than 3 categories."""
    if len(hierarchy) < 3:
        raise ConfigError(f"hierarchy must have at least 3 categories, got {len(hierarchy)} (hierarchy_cosines)")
    order = _branches(hierarchy)
    place = {number: i for i, number in enumerate(order)}
    parents = [next((place[p] for p in hierarchy.parents[number]), None) for number in order]
    sets = [hierarchy.rows[number] for number in order]
    graph = _closeness(hierarchy, order)
    member = np.zeros((len(sets), len(g)), dtype=np.float32)
    for i, rows in enumerate(sets):
        member[i, rows] = 1
    apart = np.triu(member @ member.T == 0, k=1)
    (vectors, steps), (shuffled_vectors, shuffled_steps) = (
        _cosines_of(rows, sets, parents, estimator) for rows in (g, g[np.random.default_rng(seed).permutation(len(g))])
    )
    names = tuple(hierarchy.names[number] for number in order)
    return HierarchyCosines(names, graph, vectors, steps, vectors[apart], graph[apart], shuffled_vectors[apart], shuffled_steps)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; NaN where it is not defined: fewer than 3 pairs, or all alike."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def _cosines_of(g: np.ndarray, sets: list[np.ndarray], parents: list[int | None], estimator: Estimator) -> tuple[np.ndarray, np.ndarray]:
    vectors = np.stack([category_vector(g[rows], estimator=estimator) for rows in sets])
    steps = np.stack([vector if parent is None else vector - vectors[parent] for vector, parent in zip(vectors, parents, strict=True)])
    steps[~steps.any(axis=1)] = np.nan  # a child with exactly its parent's words
    with np.errstate(invalid="ignore"):
        return cosines(vectors, vectors), np.nan_to_num(cosines(steps, steps))


def _branches(hierarchy: ConceptHierarchy) -> list[int]:
    """Categories, each before its children and a branch before the next."""
    below: list[list[int]] = [[] for _ in range(len(hierarchy))]
    for child, parents in enumerate(hierarchy.parents):
        if parents:
            below[parents[0]].append(child)
    order: list[int] = []
    stack = [i for i in reversed(range(len(hierarchy))) if not hierarchy.parents[i]]
    while stack:
        node = stack.pop()
        order.append(node)
        stack += reversed(below[node])
    return order


def _closeness(hierarchy: ConceptHierarchy, order: list[int]) -> np.ndarray:
    """1 / (1 + distance) by breadth-first search, edges taken both ways."""
    n = len(hierarchy)
    near: list[set[int]] = [set() for _ in range(n)]
    for child, parents in enumerate(hierarchy.parents):
        for parent in parents:
            near[child].add(parent)
            near[parent].add(child)
    closeness = np.zeros((n, n))
    for start in range(n):
        distance, queue = {start: 0}, deque([start])
        while queue:
            node = queue.popleft()
            for other in near[node] - distance.keys():
                distance[other] = distance[node] + 1
                queue.append(other)
        closeness[start, list(distance)] = [1 / (1 + steps) for steps in distance.values()]
    return closeness[np.ix_(order, order)]
