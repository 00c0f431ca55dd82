"""Which heads carry an observable: its direction pulled back through every head's output-value map.

    y_lh = W_V W_O y,       gain_lh = |y_lh| / |y|,      compared with the gain of observables made of two random tokens

y is the observable's direction in the last residual stream. It is the path residual stream -> head -> residual stream -> logits at an attention
weight of 1; norms enter by their gain, and what later layers make of the head's output is left out. J. Dunefsky, A. Cohan, "Observable
Propagation", 2023 (arXiv 2312.16291).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from probes.causal.concepts import random_pairs
from probes.observables.attention import AttentionMaps
from probes.observables.norms import through_gain
from probes.observables.observable import Observable
from probes.results import Cell, Result, Table
from probes.unembedding import Unembedding

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

N_NULL = 200


@dataclass(frozen=True, eq=False)
class ObservablePaths(Result):
    """How much of an observable each head can move, and what it reads for that."""

    name: str
    """The observable."""
    layers: tuple[int, ...]
    """The layers."""
    direct: Float[np.ndarray, " d_model"]
    """The observable's direction in the last residual stream."""
    directions: Float[np.ndarray, "layers heads d_model"]
    """Pulled back through each head, at attention weight 1."""
    gain: Float[np.ndarray, "layers heads"]
    """Length of the pulled-back direction over that of the direct one."""
    null_mean: Float[np.ndarray, "layers heads"]
    """Mean gain of differences of two random tokens."""
    null_sd: Float[np.ndarray, "layers heads"]
    """Its standard deviation."""
    sources: tuple[tuple[str, str], ...]
    """Per head, layer after layer: tokens whose embedding reads most, and least; empty where no embedding was given."""

    @property
    def z(self) -> Float[np.ndarray, "layers heads"]:
        """(gain - null mean) / null sd."""
        return (self.gain - self.null_mean) / self.null_sd

    def table(self) -> Table:
        """The heads by z, the largest first; at most 20."""
        n_heads = self.gain.shape[1]
        order = np.argsort(-self.z, axis=None, kind="stable")[:20]
        rows: list[tuple[Cell, ...]] = []
        for flat in order.tolist():
            i, head = divmod(flat, n_heads)
            numbers = (float(values[i, head]) for values in (self.gain, self.null_mean, self.null_sd, self.z))
            rows.append((f"L{self.layers[i]}H{head}", *numbers, *(self.sources[flat] if self.sources else (None, None))))
        columns = ("head", "gain", "random pairs", "sd", "z", "raised by", "lowered by")
        note = (
            "Gain: length of the observable pulled back through the head over its own. Raised by: source tokens whose embedding reads most."
        )
        return Table(f"heads that carry {self.name}", columns, tuple(rows), note)

    def figure(self) -> "Figure":
        """z of every head as a heat map."""
        from plotly.graph_objects import Figure

        top = float(np.abs(self.z).max())
        figure = Figure()
        x, y = [f"H{i}" for i in range(self.gain.shape[1])], [f"L{layer}" for layer in self.layers]
        figure.add_heatmap(z=self.z, x=x, y=y, colorscale="RdBu", zmid=0, zmin=-top, zmax=top, colorbar={"title": "z"})
        height = 140 + 18 * len(self.layers)
        title = {"text": f"Heads that carry {self.name}", "x": 0, "font": {"size": 16}}
        figure.update_layout(template="plotly_white", width=560, height=height, title=title)
        return figure


def observable_paths(
    observable: Observable,
    maps: AttentionMaps,
    unembedding: Unembedding,
    *,
    embedding: Unembedding | None = None,
    n_tokens: int = 5,
    seed: int = 0,
) -> ObservablePaths:
    """The observable pulled back through every head of `maps`, beside differences of random tokens. `embedding` are the rows that tokens
    enter the residual stream with (the unembedding itself where the two are tied)."""
    y = observable.at_residual(unembedding)
    drawn = random_pairs(np.random.default_rng(seed), len(unembedding), N_NULL)
    random = through_gain(unembedding.norm, unembedding.rows[drawn[:, 1]] - unembedding.rows[drawn[:, 0]])
    lengths = np.linalg.norm(random, axis=1)
    directions = maps.pull_back(y)
    gain = np.linalg.norm(directions, axis=2) / np.linalg.norm(y)
    null = np.empty((*gain.shape, N_NULL))
    for i, head in np.ndindex(*gain.shape):
        value_gram = maps.W_V[i, head].T @ maps.W_V[i, head]  # |W_V r|^2 = r . (W_V^T W_V) r, in the head's own width
        read = random @ maps.W_O[i, head].T
        null[i, head] = np.sqrt(np.einsum("nk,kl,nl->n", read, value_gram, read, optimize=True)) / lengths
    sources = () if embedding is None else _sources(directions.reshape(-1, len(y)), embedding, n_tokens)
    return ObservablePaths(observable.name, maps.layers, y, directions, gain, null.mean(axis=2), null.std(axis=2, ddof=1), sources)


def _sources(directions: np.ndarray, embedding: Unembedding, n_tokens: int) -> tuple[tuple[str, str], ...]:
    """Tokens at both ends of each direction."""
    found = []
    for direction in directions:
        order = np.argsort(embedding.rows @ direction)
        ends = (order[::-1][:n_tokens], order[:n_tokens])
        found.append(tuple(" ".join(repr(embedding.tokens[i]) for i in end) for end in ends))
    return tuple(found)
