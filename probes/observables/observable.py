"""Observables of the next token, and how one predicts another.

    n . logits,   n = {" he": 1, " she": -1}            y = W_U^T n at the unembedding,   J^T y at the residual stream before the norm
    C(y1, y2) = y1 . y2 / |y1|^2,                       E[y2 . x | y1 . x = k] = k C         for x of equal variance in every direction

J. Dunefsky, A. Cohan, "Observable Propagation: Uncovering Feature Vectors in Transformers", 2023 (arXiv 2312.16291). With a covariance
Sigma of x, C = y1 Sigma y2 / y1 Sigma y1: the regression slope, for any x with that covariance and mean 0; the paper has Sigma = I.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from probes.causal.concepts import random_pairs
from probes.observables.norms import through_gain, through_norm
from probes.results import Result, Table
from probes.unembedding import Unembedding
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

N_NULL = 500


@dataclass(frozen=True, eq=False)
class Observable:
    """A linear function of the logits."""

    name: str
    """What to call it."""
    weights: Mapping[str, float]
    """Token, by its exact text, spaces included -> its weight."""

    def at_unembedding(self, unembedding: Unembedding) -> Float[np.ndarray, " d"]:
        """W_U^T n: its inner product with what the unembedding reads is the observable.

        Raises ConfigError for a token that the unembedding does not have, no token, and weights that are not finite.
        """
        missing = [token for token in self.weights if unembedding.row_of(token) is None]
        if missing or not self.weights:
            raise ConfigError(
                f"weights must name tokens by their exact text, spaces included, got {missing[0] if missing else 'none'!r} (observable {self.name!r})"
            )
        if not np.isfinite(list(self.weights.values())).all():
            raise ConfigError(f"weights must be finite, got {dict(self.weights)} (observable {self.name!r})")
        rows = [unembedding.row_of(token) for token in self.weights]
        return np.array(list(self.weights.values())) @ unembedding.rows[rows]

    def at_residual(
        self, unembedding: Unembedding, *, at: Float[np.ndarray, " d"] | Float[np.ndarray, "n d"] | None = None
    ) -> Float[np.ndarray, " d"]:
        """Its direction in the last residual stream: J^T W_U^T n, averaged over the reference points `at`; with none, the gain alone, up to
        the norm's scale."""
        y = self.at_unembedding(unembedding)
        if at is None or unembedding.norm is None:
            return through_gain(unembedding.norm, y)
        return through_norm(unembedding.norm, np.atleast_2d(at).astype(np.float64), y).mean(axis=0)


def coupling(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], *, covariance: Float[np.ndarray, "d d"] | None = None
) -> Float[np.ndarray, "n m"]:
    """C(y1, y2) of every row of `first` with every row of `second`. Raises ConfigError for a y1 that no x varies along."""
    seen = first if covariance is None else first @ covariance
    own = (seen * first).sum(axis=1)
    if not (own > 0).all():
        raise ConfigError(
            f"first must have no row without variance along it, row {int((own <= 0).argmax())} has {own.min():.3g} (coupling)"
        )
    return seen @ second.T / own[:, None]


@dataclass(frozen=True, eq=False)
class Couplings(Result):
    """How each observable predicts each."""

    names: tuple[str, ...]
    """The observables."""
    values: Float[np.ndarray, "n n"]
    """C(row, column): expected value of the column's observable where the row's is 1."""
    cosines: Float[np.ndarray, "n n"]
    """Cosines of their directions."""
    null_sd: Float[np.ndarray, " n"]
    """Root mean square C(row, a difference of two random tokens), scaled to the mean length of the observables."""

    def table(self) -> Table:
        """Coupling coefficients, a row per predictor."""
        rows = tuple((name, *map(float, values), float(sd)) for name, values, sd in zip(self.names, self.values, self.null_sd, strict=True))
        note = (
            "Row: the observable that is known to be 1; column: what is then expected. The last column is what random pairs of tokens give."
        )
        return Table("coupling of observables", ("known", *self.names, "random pairs"), rows, note)

    def figure(self) -> "Figure":
        """The coefficients as a heat map."""
        from plotly.graph_objects import Figure

        top = float(np.abs(self.values).max())
        text = [[f"{value:.2f}" for value in row] for row in self.values]
        figure = Figure()
        figure.add_heatmap(
            z=self.values,
            x=list(self.names),
            y=list(self.names),
            text=text,
            texttemplate="%{text}",
            colorscale="RdBu",
            zmid=0,
            zmin=-top,
            zmax=top,
        )
        figure.update_layout(
            template="plotly_white", width=520, height=420, title={"text": "Coupling (row known, column expected)", "x": 0}
        )
        figure.update_yaxes(autorange="reversed")
        return figure


def couplings(
    observables: Sequence[Observable],
    unembedding: Unembedding,
    *,
    covariance: Float[np.ndarray, "d d"] | None = None,
    seed: int = 0,
) -> Couplings:
    """The coupling of observables at the last residual stream (norm's gain only), beside that with random pairs of tokens.

    `covariance` is that of the residual stream; None takes it to be the same in every direction. Raises ConfigError for fewer than 2
    observables, and for one whose direction is 0.
    """
    if len(observables) < 2:
        raise ConfigError(f"observables must be at least 2, got {len(observables)} (couplings)")
    directions = np.stack([observable.at_residual(unembedding) for observable in observables])
    drawn = random_pairs(np.random.default_rng(seed), len(unembedding), N_NULL)
    random = through_gain(unembedding.norm, unembedding.rows[drawn[:, 1]] - unembedding.rows[drawn[:, 0]])
    lengths = np.linalg.norm(directions, axis=1)
    random *= lengths.mean() / np.linalg.norm(random, axis=1, keepdims=True)
    return Couplings(
        names=tuple(observable.name for observable in observables),
        values=coupling(directions, directions, covariance=covariance),
        cosines=directions @ directions.T / np.outer(lengths, lengths),
        null_sd=np.sqrt(np.square(coupling(directions, random, covariance=covariance)).mean(axis=1)),
    )
