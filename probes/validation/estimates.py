"""A score with its interval over documents and its null, and how scores show themselves.

interval:   quantiles .025 and .975 of the score over draws of as many documents as there are, with replacement
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float, Int

from probes.figures import CONTROL, colour, new_figure
from probes.results import Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A score with its interval over documents, and its null."""

    value: float
    """The score on all held-out rows."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    null_mean: float | None
    """Mean of the same score on shuffled labels; None where no shuffle was asked for."""
    null_sd: float | None
    """Standard deviation over the shuffles; None for fewer than two."""


@lru_cache(maxsize=4)
def document_draws(n_documents: int, n_bootstrap: int, seed: int) -> Int[np.ndarray, "draws documents"]:
    """How often each document counts: once in the first row, in the others as often as it was drawn. Read-only."""
    if n_bootstrap < 1:
        raise ConfigError(f"n_bootstrap must be at least 1, got {n_bootstrap}")
    picks = np.random.default_rng(seed).integers(0, n_documents, (n_bootstrap, n_documents))
    picks += n_documents * np.arange(n_bootstrap)[:, None]
    counts = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape)
    weights = np.concatenate([np.ones((1, n_documents), np.int32), counts.astype(np.int32)])
    weights.flags.writeable = False
    return weights


def estimates(
    names: tuple[str, ...], found: Float[np.ndarray, "draws metrics"], null: Float[np.ndarray, "shuffles metrics"]
) -> dict[str, Estimate]:
    """For every name, the first row of `found` with the interval of the others, where draws that left a score undefined are left out."""
    return {name: _estimate(found[:, i], null[:, i]) for i, name in enumerate(names)}


def _estimate(values: np.ndarray, null: np.ndarray) -> Estimate:
    low, high = np.nanquantile(values[1:], INTERVAL) if not np.isnan(values[1:]).all() else (values[0], values[0])
    return Estimate(
        value=float(values[0]),
        low=float(low),
        high=float(high),
        null_mean=float(null.mean()) if len(null) else None,
        null_sd=float(null.std(ddof=1)) if len(null) > 1 else None,
    )


def by_document(weights: Int[np.ndarray, "draws documents"], document: np.ndarray, values: np.ndarray) -> Float[np.ndarray, "draws m"]:
    """Weighted sums over rows of the columns of `values` [rows, m], summed within documents first."""
    per_document = np.stack([np.bincount(document, column, weights.shape[1]) for column in values.T], axis=1)
    return weights.astype(np.float64) @ per_document


class Score(Result):
    """Scores of one probe on one matrix: a table of estimates, a figure with their intervals and nulls. Subclasses are dataclasses."""

    n_test: int
    n_groups: int
    n_bootstrap: int
    n_shuffles: int
    in_units: ClassVar[tuple[str, ...]] = ()
    """Names of scores that have the unit of the label, which the figure leaves out."""

    @abstractmethod
    def note(self) -> str:
        """What the scores mean and what chance gives."""

    def estimates(self) -> dict[str, Estimate]:
        """The scores by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name.replace("_", " "): value for name, value in values.items() if isinstance(value, Estimate)}

    def table(self) -> Table:
        """One row per score, with the interval over documents and the null of shuffled labels."""
        rows = tuple((name, e.value, e.low, e.high, e.null_mean, e.null_sd) for name, e in self.estimates().items())
        return Table(
            f"Scores on {self.n_test:,} held-out rows of {self.n_groups:,} documents",
            ("score", "value", "low (95 %)", "high (95 %)", "null mean", "null sd"),
            rows,
            f"{self.note()} Interval: {self.n_bootstrap:,} draws of documents. Null: {self.n_shuffles} shuffles of the labels.",
        )

    def figure(self) -> "Figure":
        """Every score with its interval, and in grey the mean of the null with two of its standard deviations."""
        found = {name: estimate for name, estimate in self.estimates().items() if name not in self.in_units}
        figure = new_figure(f"Scores on {self.n_test:,} held-out rows", "score", "", height=120 + 36 * len(found))
        figure.update_yaxes(autorange="reversed", showgrid=False)
        names = list(found)

        def marks(label: str, shown: list[str], value: Callable[[Estimate], tuple[float, float, float]], ink: str, symbol: str) -> None:
            middle, low, high = zip(*(value(found[name]) for name in shown), strict=True)
            error = {"type": "data", "symmetric": False, "array": np.subtract(high, middle), "arrayminus": np.subtract(middle, low)}
            figure.add_scatter(
                x=middle,
                y=shown,
                mode="markers",
                name=label,
                error_x=error | {"thickness": 1.5},
                marker={"color": ink, "symbol": symbol, "size": 8},
            )

        def null(estimate: Estimate) -> tuple[float, float, float]:
            mean, sd = estimate.null_mean or 0.0, estimate.null_sd or 0.0
            return mean, mean - 2 * sd, mean + 2 * sd

        if self.n_shuffles:
            marks("shuffled labels, ± 2 sd", names, null, CONTROL, "line-ns-open")
        marks("score, 95 % interval", names, lambda e: (e.value, e.low, e.high), colour(0), "circle")
        return figure
