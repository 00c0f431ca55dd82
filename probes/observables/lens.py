"""The tokens that a direction of the residual stream promotes: the logit lens of a direction, with what no direction in particular gives.

    effect(y) = gamma(y) . (gain * C direction),   less its mean over the vocabulary;      z(y) = effect(y) / sd over the vocabulary

C subtracts the mean over coordinates where the norm does. Every direction has top tokens; that they have a theme is for a reader to judge,
that they stand out is not. Excess kurtosis of z and its largest absolute value are compared with the same direction's coordinates in random
order (which keeps a few large coordinates large), or with random directions. The direct path only: what later layers do is not in it.
nostalgebraist, "interpreting GPT: the logit lens", 2020; kurtosis as a sign of a readable direction: W. Gurnee et al., "Universal Neurons in
GPT2 Language Models", 2024 (arXiv 2401.12181).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from probes.figures import CONTROL, colour, new_figure
from probes.observables.norms import through_gain
from probes.results import Result, Table
from probes.unembedding import Unembedding
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Null = Literal["permuted", "random"]
BLOCK = 64


@dataclass(frozen=True, eq=False)
class LogitLens(Result):
    """The ends of each direction's effects on the logits, and how far they stand out."""

    names: tuple[str, ...]
    """The directions."""
    top: tuple[tuple[str, ...], ...]
    """Most promoted tokens of each, the first the most."""
    top_ids: Int[np.ndarray, "n k"]
    """Their numbers in the vocabulary."""
    top_z: Float[np.ndarray, "n k"]
    """Their effects in standard deviations over the vocabulary."""
    bottom: tuple[tuple[str, ...], ...]
    """Most suppressed tokens, the first the most."""
    bottom_ids: Int[np.ndarray, "n k"]
    """Their numbers."""
    bottom_z: Float[np.ndarray, "n k"]
    """Their effects."""
    sd: Float[np.ndarray, " n"]
    """Standard deviation of the effect over the vocabulary, per unit of the direction's length, up to the norm's scale (logits)."""
    kurtosis: Float[np.ndarray, " n"]
    """Excess kurtosis of the effect over the vocabulary; 0 for normal numbers."""
    extreme: Float[np.ndarray, " n"]
    """Largest |z|."""
    null_kurtosis: Float[np.ndarray, "n n_null"]
    """Excess kurtosis of the null's directions."""
    null_extreme: Float[np.ndarray, "n n_null"]
    """Largest |z| of the null's directions."""
    null: Null
    """What the null's directions are."""

    @property
    def p_values(self) -> Float[np.ndarray, " n"]:
        """(1 + #{null kurtosis >= kurtosis}) / (1 + n_null)."""
        return (1 + (self.null_kurtosis >= self.kurtosis[:, None]).sum(axis=1)) / (1 + self.null_kurtosis.shape[1])

    def table(self) -> Table:
        """One row per direction."""
        rows = tuple(
            (
                name,
                " ".join(map(repr, self.top[i][:6])),
                " ".join(map(repr, self.bottom[i][:6])),
                float(self.kurtosis[i]),
                float(self.null_kurtosis[i].mean()),
                float(self.null_kurtosis[i].std(ddof=1)),
                float(self.p_values[i]),
                float(self.extreme[i]),
                float(self.null_extreme[i].mean()),
            )
            for i, name in enumerate(self.names)
        )
        columns = ("direction", "promotes", "suppresses", "kurtosis", "null", "sd", "p", "max |z|", "null max |z|")
        kind = "its coordinates in random order" if self.null == "permuted" else "random directions"
        note = f"Null: {kind}, {self.null_kurtosis.shape[1]} each. p is of the kurtosis. Direct path to the logits only."
        return Table("logit lens", columns, rows, note)

    def figure(self) -> "Figure":
        """One direction: its top and bottom tokens; several: kurtosis of each beside its null's."""
        if len(self.names) > 1:
            figure = new_figure("Do the directions' tokens stand out?", "direction", "excess kurtosis of the effects")
            null, sd = self.null_kurtosis.mean(axis=1), self.null_kurtosis.std(axis=1, ddof=1)
            error = {"type": "data", "array": 2 * sd, "color": CONTROL}
            figure.add_scatter(x=list(self.names), y=null, mode="markers", name="null ± 2 sd", marker_color=CONTROL, error_y=error)
            hover = [" ".join(tokens[:8]) for tokens in self.top]
            figure.add_scatter(x=list(self.names), y=self.kurtosis, mode="markers", name="direction", marker_color=colour(0), text=hover)
            return figure
        tokens = [*map(repr, self.top[0]), *map(repr, self.bottom[0][::-1])]
        values = np.concatenate([self.top_z[0], self.bottom_z[0][::-1]])
        places = list(range(len(tokens)))  # not the tokens themselves: two may have the same text
        figure = new_figure(f"Logit lens of {self.names[0]}", "effect (standard deviations)", "", height=120 + 18 * len(tokens))
        shades = [colour(0)] * len(self.top[0]) + [colour(1)] * len(self.bottom[0])
        figure.add_bar(x=values, y=places, orientation="h", marker_color=shades)
        for sign in (-1, 1):
            figure.add_vline(x=sign * float(self.null_extreme[0].mean()), line={"color": CONTROL, "dash": "dash"})
        figure.update_yaxes(autorange="reversed", tickvals=places, ticktext=[f"{token} " for token in tokens])
        return figure.update_layout(margin={"l": 130})


def logit_lens(
    directions: Float[np.ndarray, "n d"] | Float[np.ndarray, " d"],
    unembedding: Unembedding,
    *,
    names: Sequence[str] | None = None,
    k: int = 10,
    null: Null = "permuted",
    n_null: int = 40,
    seed: int = 0,
) -> LogitLens:
    """What each direction of the residual stream (rows of a dictionary's decoder, say) does to the logits on the direct path, up to the
    norm's scale. Works with `n_null` x n products with the whole unembedding for "permuted", `n_null` in all for "random".

    Raises ConfigError for another width than the unembedding's, directions of zeros or not finite, `k` out of 1..n_tokens, `n_null` < 2.
    """
    rows = np.atleast_2d(np.asarray(directions, dtype=np.float64))
    _require(rows, unembedding, k, null, n_null, names)
    rng = np.random.default_rng(seed)
    readers = _readers(unembedding)
    labels = tuple(names) if names is not None else tuple(f"direction {i}" for i in range(len(rows)))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ends, sd, shape = [], [], []
    for start in range(0, len(unit), BLOCK):
        effects = unit[start : start + BLOCK] @ readers
        scale = effects.std(axis=1, keepdims=True)
        _require_effect(scale[:, 0], readers, start)
        z = effects / scale
        ends.append(_ends(z, k))
        sd.append(scale[:, 0])
        shape.append(_shape(z))
    top, top_z, bottom, bottom_z = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    kurtosis, extreme = (np.concatenate(parts) for parts in zip(*shape, strict=True))
    null_kurtosis, null_extreme = _null(unit, readers, null, n_null, rng)
    tokens = unembedding.tokens
    return LogitLens(
        names=labels,
        top=tuple(tuple(tokens[i] for i in row) for row in top),
        top_ids=unembedding.token_ids[top],
        top_z=top_z,
        bottom=tuple(tuple(tokens[i] for i in row) for row in bottom),
        bottom_ids=unembedding.token_ids[bottom],
        bottom_z=bottom_z,
        sd=np.concatenate(sd),
        kurtosis=kurtosis,
        extreme=extreme,
        null_kurtosis=null_kurtosis,
        null_extreme=null_extreme,
        null=null,
    )


def _readers(unembedding: Unembedding) -> Float[np.ndarray, "d n_tokens"]:
    """W_U with the norm's gain and centring folded in, less its mean over the vocabulary."""
    folded = through_gain(unembedding.norm, unembedding.rows)
    return (folded - folded.mean(axis=0)).T


def _ends(z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(z, axis=1, kind="stable")
    top, bottom = order[:, ::-1][:, :k], order[:, :k]
    return top, np.take_along_axis(z, top, axis=1), bottom, np.take_along_axis(z, bottom, axis=1)


def _shape(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Excess kurtosis and largest |z| of rows with mean 0 and standard deviation 1."""
    return np.square(np.square(z)).mean(axis=1) - 3, np.abs(z).max(axis=1)


def _null(unit: np.ndarray, readers: np.ndarray, null: Null, n_null: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if null == "random":
        kurtosis, extreme = _shape_of(rng.normal(size=(n_null, unit.shape[1])), readers)
        return np.tile(kurtosis, (len(unit), 1)), np.tile(extreme, (len(unit), 1))
    both = [_shape_of(rng.permuted(np.tile(row, (n_null, 1)), axis=1), readers) for row in unit]
    return np.stack([kurtosis for kurtosis, _ in both]), np.stack([extreme for _, extreme in both])


def _shape_of(directions: np.ndarray, readers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    effects = directions @ readers
    return _shape(effects / effects.std(axis=1, keepdims=True))


def _require_effect(sd: np.ndarray, readers: np.ndarray, start: int) -> None:
    none = np.flatnonzero(sd <= 1e-12 * np.abs(readers).max())
    if len(none):
        raise ConfigError(
            f"directions must change some logit, row {start + none[0]} changes none, as one that a norm removes does (logit_lens)"
        )


def _require(rows: np.ndarray, unembedding: Unembedding, k: int, null: str, n_null: int, names: Sequence[str] | None) -> None:
    d = unembedding.rows.shape[1]
    if rows.shape[1] != d:
        raise ConfigError(f"directions must have the unembedding's width {d}, got {rows.shape[1]} (logit_lens)")
    if not np.isfinite(rows).all() or not rows.any(axis=1).all():
        raise ConfigError("directions must be finite and not zeros; leave out dead latents (logit_lens)")
    if not 1 <= k <= len(unembedding) or n_null < 2:
        raise ConfigError(f"k must be in 1..{len(unembedding)} and n_null at least 2, got {k} and {n_null} (logit_lens)")
    if null not in get_args(Null):
        raise ConfigError(f"null must be one of {', '.join(get_args(Null))}, got {null!r} (logit_lens)")
    if names is not None and len(names) != len(rows):
        raise ConfigError(f"names must be one per direction ({len(rows)}), got {len(names)} (logit_lens)")
