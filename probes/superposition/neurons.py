"""What one neuron does: which tokens move it, how its weights compare with other neurons', and what its loss is worth.

    tokens:     quantiles .05, .25, .5, .75, .95 of its activation over each class of (token) or (previous token, token)
    weights:    |w_in|, b_in, |w_out|, cos(w_in, w_out), |w_in| b_in              w_in, w_out: its rows [d_model]
    ablation:   mean of (loss without the neuron - loss) inside a context, less that outside

A neuron in superposition moves for many unrelated classes. In early layers such neurons have a large |w_in| and a strongly negative b_in: a
threshold that one piece of evidence does not pass. Gurnee et al. 2023, arXiv 2305.01610, sections 5 and 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.figures import CONTROL, colour, control_line, new_figure
from probes.results import Result, Table
from probes.validation import Groups, shuffle_labels
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STATISTICS = ("|w_in|", "b_in", "|w_out|", "cos(w_in, w_out)", "|w_in| b_in")


@dataclass(frozen=True, eq=False)
class TokenClasses(Result):
    """How a neuron's activation is spread within classes of tokens, those with the highest median first."""

    names: tuple[str, ...]
    """The token, or the previous token and the token."""
    counts: Int[np.ndarray, " classes"]
    """Positions of each class."""
    quantiles: Float[np.ndarray, "classes 5"]
    """5, 25, 50, 75 and 95 % of the activation within each."""
    overall: Float[np.ndarray, "5"]
    """The same over all positions: what a class is compared with."""
    n_classes: int
    """Classes with at least `min_count` positions."""
    n_moved: int
    """How many of them have a lower quartile above 95 % of all positions; by the definition of a quantile few can, by chance almost none."""

    def table(self) -> Table:
        """A line per class, all positions last."""
        rows = [(name, int(n), *map(float, q)) for name, n, q in zip(self.names, self.counts, self.quantiles, strict=True)]
        return Table(
            "Activation by token class",
            ("class", "positions", "5 %", "25 %", "median", "75 %", "95 %"),
            (*rows, ("all positions", None, *map(float, self.overall))),
            f"{self.n_moved} of {self.n_classes:,} classes have a lower quartile above the 95 % quantile of all positions.",
        )

    def figure(self) -> "Figure":
        """A box per class (quartiles, whiskers at 5 and 95 %), all positions in grey."""
        figure = new_figure("Activation by token class", "activation", "", height=160 + 22 * len(self.names))
        for names, q, ink in (([*self.names], self.quantiles, colour(0)), (["all positions"], self.overall[None], CONTROL)):
            figure.add_box(
                y=names, lowerfence=q[:, 0], q1=q[:, 1], median=q[:, 2], q3=q[:, 3], upperfence=q[:, 4], orientation="h",
                marker={"color": ink}, showlegend=False,
            )  # fmt: skip
        figure.update_yaxes(autorange="reversed")
        return figure


def token_classes(
    acts: Float[np.ndarray, " n"],
    tokens: Int[np.ndarray, " n"],
    previous: Int[np.ndarray, " n"] | None = None,
    *,
    names: Mapping[int, str] | None = None,
    n_shown: int = 25,
    min_count: int = 5,
) -> TokenClasses:
    """The activations of one neuron by token, or by (previous, token), over every class with `min_count` positions; `n_shown` are kept.

    names: text of each token id; ids without one are shown as numbers. Raises ConfigError for acts that are not finite, and if no class
    has enough positions.
    """
    if not np.isfinite(acts).all():
        raise ConfigError(f"acts must be finite, got {int((~np.isfinite(acts)).sum())} entries that are not (token_classes)")
    keys = tokens[:, None] if previous is None else np.stack([previous, tokens], axis=1)
    classes, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    often = np.flatnonzero(counts >= min_count)
    if not len(often):
        raise ConfigError(f"min_count must leave a class, got {min_count} with at most {counts.max(initial=0)} positions (token_classes)")
    order = np.argsort(inverse.ravel(), kind="stable")
    ends = np.cumsum(counts)
    by_class = acts.astype(np.float64)[order]
    quantiles = np.stack([np.quantile(by_class[ends[c] - counts[c] : ends[c]], QUANTILES) for c in often])
    overall = np.quantile(acts.astype(np.float64), QUANTILES)
    shown = np.lexsort((np.arange(len(often)), -quantiles[:, 2]))[:n_shown]
    text = names or {}
    return TokenClasses(
        names=tuple(" + ".join(text.get(int(t), str(int(t))) for t in classes[often[c]]) for c in shown),
        counts=counts[often[shown]].astype(np.int64),
        quantiles=quantiles[shown],
        overall=overall,
        n_classes=len(often),
        n_moved=int((quantiles[:, 1] > overall[4]).sum()),
    )


@dataclass(frozen=True, eq=False)
class WeightStatistics(Result):
    """Weights of some neurons among those of their layer."""

    neurons: Int[np.ndarray, " m"]
    """The neurons asked for."""
    values: Float[np.ndarray, "d_mlp 5"]
    """|w_in|, b_in, |w_out|, cos(w_in, w_out), |w_in| b_in of every neuron of the layer."""
    d_model: int
    """Width: the cosine of two random directions has mean 0 and standard deviation 1 / sqrt(d_model)."""

    def percentiles(self) -> Float[np.ndarray, "m 5"]:
        """Share of the layer's neurons with a smaller value, ties counting one half: 1/2 for a neuron like any other."""
        chosen = self.values[self.neurons][:, None]
        return ((self.values < chosen).mean(1) + (self.values == chosen).mean(1) / 2).astype(np.float64)

    def table(self) -> Table:
        """A line per neuron: each statistic, and its place in the layer."""
        columns = tuple(name for statistic in STATISTICS for name in (statistic, "place"))
        found = zip(self.neurons.tolist(), self.values[self.neurons], self.percentiles(), strict=True)
        rows = tuple((j, *(float(x) for pair in zip(v, p, strict=True) for x in pair)) for j, v, p in found)
        return Table(
            "Weights of neurons among their layer's",
            ("neuron", *columns),
            rows,
            f"place: share of the layer's {len(self.values):,} neurons with a smaller value, 0.5 for any neuron on average. Null of the cosine: "
            f"0 +- {1 / np.sqrt(self.d_model):.3f}. The output bias belongs to the layer, not to a neuron.",
        )

    def figure(self) -> "Figure":
        """Norm of the input weights against the bias, the layer in grey."""
        figure = new_figure("Input weights and bias", "|w_in|", "b_in")
        others = np.setdiff1d(np.arange(len(self.values)), self.neurons)
        for rows, name, ink, size in ((others, "other neurons", CONTROL, 4), (self.neurons, "chosen", colour(1), 9)):
            figure.add_scattergl(
                x=self.values[rows, 0], y=self.values[rows, 1], mode="markers", name=name, text=[str(j) for j in rows],
                marker={"color": ink, "size": size, "opacity": 0.5 if size == 4 else 1.0},
            )  # fmt: skip
        return figure


def weight_statistics(
    w_in: Float[np.ndarray, "d_mlp d_model"],
    b_in: Float[np.ndarray, " d_mlp"],
    w_out: Float[np.ndarray, "d_mlp d_model"],
    *,
    neurons: Int[np.ndarray, " m"],
) -> WeightStatistics:
    """The statistics of all neurons of a layer, for showing `neurons` among them; row j of `w_in` is read by neuron j, of `w_out` written.

    The cosine with a weight of norm 0 is 0. Raises ConfigError for neurons outside 0..d_mlp-1.
    """
    if not len(neurons) or neurons.min() < 0 or neurons.max() >= len(w_in):
        raise ConfigError(f"neurons must be numbers in 0..{len(w_in) - 1}, at least one, got {neurons[:5].tolist()} (weight_statistics)")
    into, out, bias = (a.astype(np.float64) for a in (w_in, w_out, b_in))
    norms = np.linalg.norm(into, axis=1), np.linalg.norm(out, axis=1)
    product = norms[0] * norms[1]
    cosine = np.divide((into * out).sum(1), product, out=np.zeros_like(product), where=product > 0)
    return WeightStatistics(neurons, np.stack([norms[0], bias, norms[1], cosine, norms[0] * bias], axis=1), w_in.shape[1])


@dataclass(frozen=True)
class AblationRow:
    """One way of ablating."""

    name: str
    """Such as "zero" or "mean"."""
    inside: float
    """Mean increase of the loss inside the context (nats per token)."""
    outside: float
    """Mean increase outside."""
    difference: float
    """inside - outside."""
    low: float
    """Lower end of the 95 % interval of the difference, over documents."""
    high: float
    """Upper end."""
    null_mean: float
    """Mean difference with the context's labels shuffled."""
    null_sd: float
    """Standard deviation over the shuffles."""


@dataclass(frozen=True, eq=False)
class AblationEffect(Result):
    """What the loss owes to a neuron, inside a context and outside."""

    rows: tuple[AblationRow, ...]
    """One per way of ablating."""
    n_inside: int
    """Tokens inside the context."""
    n_outside: int
    """Tokens outside."""
    n_groups: int
    """Documents."""

    def table(self) -> Table:
        """A line per way of ablating."""
        return Table(
            "Increase of the loss without the neuron (nats per token)",
            ("ablation", "inside", "outside", "difference", "low", "high", "null mean", "null sd"),
            tuple((r.name, r.inside, r.outside, r.difference, r.low, r.high, r.null_mean, r.null_sd) for r in self.rows),
            f"{self.n_inside:,} tokens inside, {self.n_outside:,} outside, {self.n_groups:,} documents; 95 % interval over documents. Null: "
            "which tokens are inside is shuffled, by document where whole documents are.",
        )

    def figure(self) -> "Figure":
        """The difference with its interval, the null in grey."""
        figure = new_figure(
            "Loss inside less outside, without the neuron", "difference (nats per token)", "", height=180 + 50 * len(self.rows)
        )
        names = [r.name for r in self.rows]
        for label, values, low, high, ink in (
            ("shuffled context, ± 2 sd", [r.null_mean for r in self.rows], [2 * r.null_sd for r in self.rows], [2 * r.null_sd for r in self.rows],
             CONTROL),
            ("difference, 95 % interval", [r.difference for r in self.rows], [r.difference - r.low for r in self.rows],
             [r.high - r.difference for r in self.rows], colour(0)),
        ):  # fmt: skip
            error = {"type": "data", "symmetric": False, "array": high, "arrayminus": low}
            figure.add_scatter(x=values, y=names, mode="markers", name=label, error_x=error, marker={"color": ink, "size": 8})
        figure.add_vline(x=0, line=control_line())
        return figure


def ablation_effect(
    loss: Float[np.ndarray, " n"],
    ablated: Mapping[str, Float[np.ndarray, " n"]],
    inside: Bool[np.ndarray, " n"],
    groups: Groups,
    *,
    n_bootstrap: int = 1000,
    n_shuffles: int = 100,
    seed: int = 0,
) -> AblationEffect:
    """Increase of the per-token loss when a neuron is ablated, inside a context less outside.

    loss: per token (nats); ablated: the same tokens' losses by way of ablating, such as {"zero": ..., "mean": ...}; groups: document of
    each token. Raises ConfigError for losses that do not fit or are not finite, no token inside or none outside, fewer than two shuffles.
    """
    if not len(loss) == len(inside) == len(groups):
        raise ConfigError(
            f"loss, inside and groups must have equal lengths, got {len(loss)}, {len(inside)}, {len(groups)} (ablation_effect)"
        )
    if not ablated or any(len(other) != len(loss) or not np.isfinite(other - loss).all() for other in ablated.values()):
        raise ConfigError("ablated must hold finite losses, one per token, under at least one name (ablation_effect)")
    if inside.all() or not inside.any():
        raise ConfigError(f"inside must hold tokens inside and outside, got {int(inside.sum())} of {len(inside)} inside (ablation_effect)")
    if n_bootstrap < 1 or n_shuffles < 2:
        raise ConfigError(f"n_bootstrap must be at least 1 and n_shuffles 2, got {n_bootstrap} and {n_shuffles} (ablation_effect)")
    documents, document = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(documents), np.full(len(documents), 1 / len(documents)), size=n_bootstrap).astype(np.float64)
    shuffles = [shuffle_labels(inside, groups, seed=seed + 1 + i) for i in range(n_shuffles)]
    rows = []
    for name, other in ablated.items():
        increase = other.astype(np.float64) - loss
        sums = [
            np.bincount(document, part, len(documents)) for part in (increase * inside, inside * 1.0, increase * ~inside, ~inside * 1.0)
        ]
        with np.errstate(invalid="ignore"):
            drawn = (draws @ sums[0]) / (draws @ sums[1]) - (draws @ sums[2]) / (draws @ sums[3])
        means = float(increase[inside].mean()), float(increase[~inside].mean())
        low, high = np.nanquantile(drawn, (0.025, 0.975)) if np.isfinite(drawn).any() else (means[0] - means[1],) * 2
        null = [float(increase[mask].mean() - increase[~mask].mean()) for mask in shuffles]
        difference = means[0] - means[1]
        rows.append(AblationRow(name, *means, difference, float(low), float(high), float(np.mean(null)), float(np.std(null, ddof=1))))
    return AblationEffect(tuple(rows), int(inside.sum()), int((~inside).sum()), len(documents))
