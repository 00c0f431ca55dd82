"""What a concept's direction reads and what it changes.

    measurement     log-odds of Y(1) against Y(0) in context lambda:  lambda . (gamma(Y(1)) - gamma(Y(0))) = a lambda . gamma_W
    intervention    lambda <- lambda + alpha lambda_W,   lambda_W = u S^{-1},   u the concept's unit direction in whitened coordinates
                    change of log-odds of (y1, y0) = alpha (g(y1) - g(y0)) . u,   whatever the context

Park, Choe, Veitch, ICML 2024 (arXiv 2311.03658), sections 4.2 and 4.3. Since the change does not depend on the context, which concepts an
intervention changes is read off the unembedding. A pair's effect along its own concept is along the direction of the other pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from probes.causal.concepts import leave_one_out, random_pairs, share_a_word
from probes.causal.inner_product import CausalInnerProduct
from probes.causal.pairs import CounterfactualPairs
from probes.figures import CONTROL, colour, new_figure
from probes.results import Result, Table
from probes.unembedding import Unembedding
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

N_NULL = 200


@dataclass(frozen=True, eq=False)
class Measurement(Result):
    """Contexts of two kinds along the directions of concepts."""

    names: tuple[str, ...]
    """The concepts."""
    labels: Int[np.ndarray, " n"]
    """Kind of each context, 0 or 1."""
    kinds: tuple[str, str]
    """What the labels mean."""
    projections: Float[np.ndarray, "n concepts"]
    """lambda . gamma_W, with gamma_W of unit length in whitened coordinates."""
    auc: Float[np.ndarray, " concepts"]
    """Chance that a context of kind 1 lies further along than one of kind 0."""
    null_auc: Float[np.ndarray, " n_null"]
    """The same along differences of random tokens."""

    def table(self) -> Table:
        """Concepts with the means of both kinds, the AUC and its null."""
        one = self.labels == 1
        mean, sd = float(self.null_auc.mean()), float(self.null_auc.std(ddof=1))
        rows = tuple(
            (name, float(values[~one].mean()), float(values[one].mean()), float(auc), mean, sd)
            for name, values, auc in zip(self.names, self.projections.T, self.auc, strict=True)
        )
        columns = ("concept", f"mean: {self.kinds[0]}", f"mean: {self.kinds[1]}", "AUC", "AUC of random pairs", "sd")
        counts = f"{int((~one).sum())} contexts {self.kinds[0]}, {int(one.sum())} {self.kinds[1]}"
        note = f"{counts}. Another concept's direction should read them like a random one."
        return Table("contexts along concept directions", columns, rows, note)

    def figure(self) -> "Figure":
        """Histograms of both kinds of contexts, one panel per concept."""
        from plotly.subplots import make_subplots

        titles = [f"{name}  AUC {auc:.2f}" for name, auc in zip(self.names, self.auc, strict=True)]
        figure = make_subplots(rows=1, cols=len(self.names), subplot_titles=titles)
        for i, values in enumerate(self.projections.T):
            bins = {"start": float(values.min()), "end": float(values.max()) + 1e-9, "size": float(np.ptp(values) / 40 + 1e-9)}
            for kind in (0, 1):
                style: dict[str, Any] = {"marker_color": colour(kind), "opacity": 0.6, "xbins": bins, "showlegend": i == 0}
                figure.add_histogram(x=values[self.labels == kind], name=self.kinds[kind], row=1, col=i + 1, **style)
        figure.update_layout(template="plotly_white", barmode="overlay", width=max(360 * len(self.names), 480), height=360)
        figure.update_xaxes(title="coordinate along the direction")
        figure.update_yaxes(title="contexts", col=1)
        return figure


def measure(
    contexts: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "_"],
    pairs: CounterfactualPairs,
    unembedding: Unembedding,
    causal: CausalInnerProduct,
    *,
    kinds: tuple[str, str] = ("0", "1"),
    seed: int = 0,
) -> Measurement:
    """Contexts (after the final norm) labelled 0 or 1 along the direction of each concept.

    Raises ConfigError for labels other than 0 and 1 or only one of them, and for lengths or widths that do not fit.
    """
    if len(labels) != len(contexts) or set(np.unique(labels).tolist()) != {0, 1}:
        found = np.unique(labels)[:5].tolist()
        raise ConfigError(f"labels must be {len(contexts)} of 0 and 1, both present, got {len(labels)} of {found} (measure)")
    directions = _unit_directions(pairs, unembedding, causal)
    coordinates = causal.whiten_contexts(contexts)
    projections = coordinates @ directions.T
    drawn = random_pairs(np.random.default_rng(seed), len(unembedding), N_NULL)
    null = coordinates @ causal.whiten(unembedding.rows[drawn[:, 1]] - unembedding.rows[drawn[:, 0]]).T
    aucs = [np.array([roc_auc_score(labels, column) for column in values.T]) for values in (projections, null)]
    return Measurement(pairs.names, labels, kinds, projections, *aucs)


@dataclass(frozen=True, eq=False)
class InterventionEffects(Result):
    """Change of the log-odds of every concept's pairs by an intervention along every concept."""

    names: tuple[str, ...]
    """The concepts."""
    causal: Float[np.ndarray, "n n"]
    """[W, Z]: mean change of the log-odds of Z's pairs by a step along W, in units of that of W's own pairs; 1 on the diagonal."""
    euclidean: Float[np.ndarray, "n n"]
    """The same with the step along the unembedding's own direction, without whitening."""
    own: Float[np.ndarray, " n"]
    """Mean change of W's own log-odds (natural logarithm) by a step of length 1 in whitened coordinates."""
    null: Float[np.ndarray, " n"]
    """Root mean square change of random pairs' log-odds by the causal step, averaged over as many pairs as a concept has, same units."""

    def off_target(self, *, euclidean: bool = False) -> Float[np.ndarray, " n"]:
        """Root mean square effect of each intervention on the other concepts."""
        matrix = self.euclidean if euclidean else self.causal
        n = len(matrix)
        return np.sqrt(np.square(matrix[~np.eye(n, dtype=bool)].reshape(n, n - 1)).mean(axis=1)) if n > 1 else np.zeros(n)

    def table(self) -> Table:
        """Concepts with the effect on themselves and, in units of it, on others."""
        rows = tuple(
            zip(
                self.names, *(map(float, v) for v in (self.own, self.off_target(), self.null, self.off_target(euclidean=True))), strict=True
            )
        )
        columns = ("intervention along", "own log-odds per step", "others: causal", "random pairs", "others: Euclidean")
        note = (
            "Others: root mean square change of the other concepts' log-odds in units of the own. Random pairs: what averages of random pairs "
            "change by the causal step. Euclidean: the step is the mean difference itself, not its dual."
        )
        return Table("what an intervention changes", columns, rows, note)

    def figure(self) -> "Figure":
        """Two heat maps: the causal step, the Euclidean one."""
        from plotly.subplots import make_subplots

        figure = make_subplots(rows=1, cols=2, subplot_titles=["causal step", "Euclidean step"], shared_yaxes=True, horizontal_spacing=0.02)
        for i, matrix in enumerate((self.causal, self.euclidean)):
            style: dict[str, Any] = {
                "colorscale": "RdBu",
                "zmid": 0,
                "zmin": -1,
                "zmax": 1,
                "showscale": i == 0,
                "colorbar": {"title": "effect / own"},
            }
            figure.add_heatmap(z=matrix, x=list(self.names), y=list(self.names), row=1, col=i + 1, **style)
        size = max(16 * len(self.names), 180)
        figure.update_layout(
            template="plotly_white",
            title={"text": "Change of a concept's log-odds (columns) by a step along another (rows)", "x": 0, "font": {"size": 16}},
            width=300 + 2 * size,
            height=270 + size,
            margin={"l": 180, "t": 80, "b": 160},
        )
        figure.update_xaxes(tickangle=-60, tickfont_size=9, dtick=1)
        figure.update_yaxes(autorange="reversed", tickfont_size=9, dtick=1)
        return figure


def intervention_effects(
    pairs: CounterfactualPairs, unembedding: Unembedding, causal: CausalInnerProduct, *, seed: int = 0
) -> InterventionEffects:
    """What a step along each concept does to the log-odds of each concept's pairs, without a forward pass: it is linear and the same in
    every context."""
    raw = pairs.differences(unembedding.rows)
    white = [causal.whiten(differences) for differences in raw]
    shared = [share_a_word(concept.rows) for concept in pairs.concepts]
    drawn = random_pairs(np.random.default_rng(seed), len(unembedding), 4000)
    chance = causal.whiten(unembedding.rows[drawn[:, 1]] - unembedding.rows[drawn[:, 0]])
    matrices = []
    for deltas in (white, raw):
        directions = np.stack([each.mean(axis=0) for each in deltas])
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        effects = directions @ np.stack([each.mean(axis=0) for each in deltas]).T
        own = np.array([leave_one_out(each, overlap).mean() for each, overlap in zip(deltas, shared, strict=True)])
        np.fill_diagonal(effects, own)
        matrices.append((effects / own[:, None], own, directions))
    (causal_effects, own, directions), (euclidean, _, _) = matrices
    n_pairs = float(np.mean([len(each) for each in white]))
    null = np.sqrt(np.square(chance @ directions.T).mean(axis=0) / n_pairs) / np.abs(own)
    return InterventionEffects(pairs.names, causal_effects, euclidean, own, null)


@dataclass(frozen=True, eq=False)
class Intervention(Result):
    """The most probable next tokens as one context is moved along a concept."""

    concept: str
    """What was changed."""
    strengths: tuple[float, ...]
    """Step lengths in whitened coordinates."""
    tokens: tuple[tuple[str, ...], ...]
    """The most probable tokens at each step, the first the most."""
    probabilities: Float[np.ndarray, "steps k"]
    """Their probabilities."""
    watched: dict[str, Float[np.ndarray, " steps"]]
    """Change of the log-odds (natural logarithm) of watched pairs of tokens."""

    def table(self) -> Table:
        """One row per step."""
        k = self.probabilities.shape[1]
        rows = tuple(
            (
                strength,
                *(f"{token!r} {p:.3f}" for token, p in zip(tokens, values, strict=True)),
                *(float(w[i]) for w in self.watched.values()),
            )
            for i, (strength, tokens, values) in enumerate(zip(self.strengths, self.tokens, self.probabilities, strict=True))
        )
        columns = ("step", *(f"token {i + 1}" for i in range(k)), *(f"log-odds {name}" for name in self.watched))
        return Table(f"next token as the context moves along {self.concept}", columns, rows, "Log-odds: change against step 0.")

    def figure(self) -> "Figure":
        """Log-odds of the watched pairs against the step."""
        figure = new_figure(f"Moving a context along {self.concept}", "step (whitened units)", "change of log-odds (nats)")
        figure.add_hline(y=0, line={"color": CONTROL, "dash": "dash"})
        for i, (name, values) in enumerate(self.watched.items()):
            figure.add_scatter(x=list(self.strengths), y=values, name=name, mode="lines+markers", line_color=colour(i))
        return figure


def intervene(
    context: Float[np.ndarray, " d"],
    direction: Float[np.ndarray, " d"],
    unembedding: Unembedding,
    causal: CausalInnerProduct,
    *,
    strengths: Sequence[float],
    concept: str = "the concept",
    watch: Sequence[tuple[str, str]] = (),
    k: int = 3,
) -> Intervention:
    """Next tokens of `context` (after the final norm) + alpha u S^{-1}, for u the unit vector along `direction`, whitened.

    `watch`: pairs of tokens (y0, y1), by their exact text, whose log-odds are followed. Raises ConfigError for a token that the
    unembedding does not have, and for a direction of zeros.
    """
    length = np.linalg.norm(direction)
    if not length > 0:
        raise ConfigError("direction must not be zeros (intervene)")
    missing = [token for pair in watch for token in pair if unembedding.row_of(token) is None]
    if missing:
        raise ConfigError(f"watch must name tokens by their exact text, spaces included; there is no {missing[0]!r} (intervene)")
    step = causal.unwhiten_contexts((direction / length)[None])[0]
    logits = (context + np.asarray(strengths, dtype=np.float64)[:, None] * step) @ unembedding.rows.T
    odds = {}
    for before, after in watch:
        y0, y1 = unembedding.row_of(before), unembedding.row_of(after)
        odds[f"{before.strip()} → {after.strip()}"] = np.asarray(strengths) * float(step @ (unembedding.rows[y1] - unembedding.rows[y0]))
    top = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    tokens = tuple(tuple(unembedding.tokens[i] for i in row) for row in top)
    return Intervention(concept, tuple(map(float, strengths)), tokens, np.take_along_axis(softmax(logits, axis=1), top, axis=1), odds)


def _unit_directions(pairs: CounterfactualPairs, unembedding: Unembedding, causal: CausalInnerProduct) -> np.ndarray:
    means = np.stack([causal.whiten(differences).mean(axis=0) for differences in pairs.differences(unembedding.rows)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)
