"""Ideal words: embeddings of combinations, such as (adjective, noun), as one origin plus one vector per value of each factor.

    u_z ~ u_0 + sum_i u_{z_i},     sum over the values of factor i of u_{z_i} = 0
    least squares   min sum_rows w ||u - u_0 - sum_i u_{z_i}||^2;   on a full grid with equal weights  u_0 = mean, u_{z_i} = E[u | z_i] - u_0
    R^2             1 - sum w ||u - u_hat||^2 / sum w ||u - mean||^2;   with rows permuted its mean is (sum_i (|Z_i| - 1)) / (n - 1)

Trager et al., "Linear Spaces of Meanings: Compositional Structures in Vision-Language Models", 2023, arXiv 2302.14383, sections 3 and 4. The
last line is exact for every table and every grid with equal weights: the hat matrix of a permuted table has that share of the trace. On a
full grid it is (sum (|Z_i| - 1)) / (prod |Z_i| - 1), what a table of independent random rows gives.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_is_fitted

from probes.figures import colour, control_line, new_figure
from probes.results import Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class IdealWords(BaseEstimator):
    """The origin and the ideal words of a table of embeddings whose rows are named by factors.

    factors: names of the factors for messages and tables, None for "factor 0", ...
    Attributes after `fit`: `origin_` [d]; `levels_`, per factor its values in order of first appearance; `words_`, per factor the matrix
    [n_values, d] of their ideal words; `factors_`, `n_features_in_` (number of factors).
    """

    def __init__(self, factors=None):
        self.factors = factors

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "IdealWords":
        """X: values of the factors [n, m], of any hashable kind; y: embeddings [n, d]; rows may be missing from the grid, or repeated.

        Raises ConfigError for a factor with one value, weights below 0, or a grid so incomplete that the words are not determined; ValueError
        for embeddings with NaN.
        """
        table = _table(X)
        y = check_array(y, dtype=np.float64, input_name="y")
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if not len(table) == len(y) == len(weight):
            raise ConfigError(f"X, y and sample_weight must have one row each, got {len(table)}, {len(y)}, {len(weight)} (IdealWords)")
        if not (weight >= 0).all() or not 0 < weight.sum() < np.inf:
            raise ConfigError(
                "sample_weight must be at least 0, finite and not all 0 (IdealWords); leave rows out instead of negative ones"
            )
        n_factors = table.shape[1]
        names = tuple(f"factor {i}" for i in range(n_factors)) if self.factors is None else tuple(self.factors)
        if len(names) != n_factors:
            raise ConfigError(f"factors must name the {n_factors} columns of X, got {list(names)} (IdealWords)")
        seen = weight > 0
        self.levels_ = [tuple(dict.fromkeys(column[seen])) for column in table.T]
        for name, levels in zip(names, self.levels_, strict=True):
            if len(levels) < 2:
                raise ConfigError(f"every factor must have two values or more, {name} has {list(levels)}; leave it out (IdealWords)")
        self.factors_, self.n_features_in_ = names, n_factors
        design = effect_coding(self._numbers(table[seen]), [len(levels) for levels in self.levels_])
        root = np.sqrt(weight[seen])[:, None]
        solved, _, rank, _ = np.linalg.lstsq(root * design, root * y[seen], rcond=None)
        if rank < design.shape[1]:
            lacking = f"{design.shape[1] - rank} of {design.shape[1]} unknowns are free"
            raise ConfigError(
                f"the rows of X must link the values of all factors, {lacking}; add combinations that share values (IdealWords)"
            )
        self.origin_ = solved[0]
        ends = np.cumsum([1] + [len(levels) - 1 for levels in self.levels_])
        self.words_ = [np.concatenate([w, -w.sum(0, keepdims=True)]) for w in (solved[a:b] for a, b in itertools.pairwise(ends))]
        return self

    def predict(self, X: Any) -> Float[np.ndarray, "n d"]:
        """u_hat of each combination, seen or not. Raises ConfigError for a value that `fit` has not seen."""
        check_is_fitted(self)
        numbers = self._numbers(_table(X))
        return self.origin_ + sum(words[column] for words, column in zip(self.words_, numbers.T, strict=True))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2 of the embeddings y of the combinations X, over all their coordinates, against the mean of y; 1 where y has no spread."""
        y = check_array(y, dtype=np.float64, input_name="y")
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        return r_squared(y, self.predict(X), weight)

    def word(self, factor: str, value: Hashable) -> Float[np.ndarray, " d"]:
        """The ideal word of a value. Raises ConfigError for an unknown factor or value."""
        i = self._factor(factor)
        return self.words_[i][self._number(i, value)]

    def edit(self, embeddings: Float[np.ndarray, "n d"], factor: str, *, source: Hashable, target: Hashable) -> Float[np.ndarray, "n d"]:
        """u + u_target - u_source: the embeddings with one value of a factor exchanged for another."""
        return embeddings + (self.word(factor, target) - self.word(factor, source))

    def debias(self, embeddings: Float[np.ndarray, "n d"], factor: str, values: Sequence[Hashable]) -> Float[np.ndarray, "n d"]:
        """u - u_{z_i}: the embeddings without what their known value (one per row) of a factor adds; for additive data no trace is left."""
        i = self._factor(factor)
        if len(values) != len(embeddings):
            raise ConfigError(f"values must hold one value per embedding, got {len(values)} for {len(embeddings)} (debias)")
        return embeddings - self.words_[i][[self._number(i, value) for value in values]]

    def classify(self, embeddings: Float[np.ndarray, "n d"], factor: str, *, by: Literal["distance", "cosine"] = "distance") -> list[Any]:
        """Zero-shot classes: for each embedding the value of the factor whose u_0 + u_{z_i} is nearest, or by cosine as in the paper."""
        i = self._factor(factor)
        words = self.origin_ + self.words_[i]
        if by not in ("distance", "cosine"):
            raise ConfigError(f"by must be 'distance' or 'cosine', got {by!r} (classify)")
        size = np.linalg.norm(words, axis=1)
        scores = embeddings @ words.T / size if by == "cosine" else embeddings @ words.T - size**2 / 2
        return [self.levels_[i][number] for number in scores.argmax(axis=1)]

    def _factor(self, name: str) -> int:
        check_is_fitted(self)
        if name not in self.factors_:
            raise ConfigError(f"factor must be one of {', '.join(self.factors_)}, got {name!r} (IdealWords)")
        return self.factors_.index(name)

    def _number(self, factor: int, value: Hashable) -> int:
        if value not in self.levels_[factor]:
            known = ", ".join(repr(level) for level in self.levels_[factor][:8])
            raise ConfigError(f"{self.factors_[factor]} must be one of the values of fit ({known}), got {value!r} (IdealWords)")
        return self.levels_[factor].index(value)

    def _numbers(self, table: np.ndarray) -> Int[np.ndarray, "n m"]:
        if table.shape[1] != self.n_features_in_:
            raise ConfigError(f"X must have {self.n_features_in_} factors, as in fit, got {table.shape[1]} (IdealWords)")
        return np.array([[self._number(i, value) for i, value in enumerate(row)] for row in table], dtype=np.int64)


def effect_coding(numbers: Int[np.ndarray, "n m"], sizes: Sequence[int]) -> Float[np.ndarray, "n n_unknown"]:
    """The design matrix [1, ...] with the sum-to-zero constraint built in: the last value of a factor is minus the sum of the others."""
    blocks = [np.ones((len(numbers), 1))]
    for column, size in zip(numbers.T, sizes, strict=True):
        blocks.append(np.concatenate([np.eye(size - 1), -np.ones((1, size - 1))])[column])
    return np.concatenate(blocks, axis=1)


def r_squared(y: Float[np.ndarray, "n d"], y_hat: Float[np.ndarray, "n d"], weight: Float[np.ndarray, " n"]) -> float:
    """1 - sum w ||y - y_hat||^2 / sum w ||y - mean||^2 over rows and coordinates; 1 where y has no spread at all."""
    spread = float(weight @ ((y - np.average(y, axis=0, weights=weight)) ** 2).sum(1))
    return 1.0 if spread == 0 else 1 - float(weight @ ((y - y_hat) ** 2).sum(1)) / spread


def _table(X: Any) -> np.ndarray:
    """X as an array of objects [n, m]."""
    rows = [tuple(row) if not isinstance(row, str) else (row,) for row in X]
    if not rows or len({len(row) for row in rows}) > 1:
        raise ConfigError(f"X must hold one value per factor in every row, and at least one row, got {len(rows)} rows (IdealWords)")
    table = np.empty((len(rows), len(rows[0])), dtype=object)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is None or value != value:
                raise ConfigError(f"X must not have missing values, got {value!r} in row {i}, column {j} (IdealWords); leave the row out")
            table[i, j] = value
    return table


@dataclass(frozen=True, eq=False)
class IdealWordsReport(Result):
    """How additive a table of embeddings is, against the same table with its rows permuted."""

    factors: tuple[str, ...]
    """Names of the factors."""
    n_values: tuple[int, ...]
    """Values of each."""
    n_rows: int
    """Rows of the table."""
    r_squared: float
    """Share of the spread that the ideal words explain."""
    null: Float[np.ndarray, " n_null"]
    """The same with the rows permuted."""
    shares: tuple[float, ...]
    """What R^2 loses when a factor is left out."""
    null_shares: Float[np.ndarray, "n_null n_factors"]
    """The same with the rows permuted."""
    distance: float
    """Mean of ||u - u_hat||^2, weighted."""

    @property
    def expected(self) -> float:
        """(sum_i (|Z_i| - 1)) / (n - 1): R^2 of permuted rows on average, exact for equal weights."""
        return sum(n - 1 for n in self.n_values) / (self.n_rows - 1)

    @property
    def p_value(self) -> float:
        """(1 + permutations with an R^2 as large) / (1 + permutations)."""
        return float((1 + (self.null >= self.r_squared).sum()) / (1 + len(self.null)))

    def table(self) -> Table:
        rows = [("all factors", sum(self.n_values), self.r_squared, float(self.null.mean()), float(self.null.std(ddof=1)), self.expected)]
        for i, (name, size, share) in enumerate(zip(self.factors, self.n_values, self.shares, strict=True)):
            null = self.null_shares[:, i]
            rows.append((name, size, share, float(null.mean()), float(null.std(ddof=1)), (size - 1) / (self.n_rows - 1)))
        note = (
            f"Row 1: R² of all factors, p = {self.p_value:.3g}; other rows: what R² loses without the factor. Null: {len(self.null)} permutations "
            f"of the rows; its mean is as expected. Mean squared distance to the ideal words: {self.distance:.4g}."
        )
        return Table(
            f"Ideal words of {self.n_rows} embeddings", ("factor", "values", "R²", "null", "null sd", "expected"), tuple(rows), note
        )

    def figure(self) -> "Figure":
        import plotly.graph_objects as go

        names = ["all factors", *self.factors]
        values = [self.r_squared, *self.shares]
        null = np.column_stack([self.null, self.null_shares])
        figure = new_figure("Share of the spread that ideal words explain", "", "R², or its loss without the factor")
        figure.add_trace(go.Bar(x=names, y=values, name="table", marker={"color": colour(0)}, width=0.5))
        middle, spread = null.mean(0), 2 * null.std(0, ddof=1)
        error = {"type": "data", "array": spread, "color": control_line()["color"]}
        marker = {"color": control_line()["color"], "symbol": "line-ew-open", "size": 16, "line": {"width": 2}}
        figure.add_trace(go.Scatter(x=names, y=middle, error_y=error, mode="markers", name="rows permuted, ± 2 sd", marker=marker))
        figure.update_yaxes(range=[0, max(1.0, *values)])
        return figure


def ideal_words_report(
    X: Any,
    y: Float[np.ndarray, "n d"],
    *,
    factors: Sequence[str] | None = None,
    sample_weight: Any = None,
    n_null: int = 200,
    seed: int = 0,
) -> IdealWordsReport:
    """R^2 of the ideal words of (X, y), in total and by factor, each beside `n_null` permutations of the rows. Errors as `IdealWords.fit`."""
    if n_null < 2:
        raise ConfigError(f"n_null must be at least 2, got {n_null} (ideal_words_report)")
    table = _table(X)
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    fitted = IdealWords(factors).fit(table, y, sample_weight)
    kept = weight > 0
    sizes = [len(levels) for levels in fitted.levels_]
    design = effect_coding(fitted._numbers(table[kept]), sizes)
    owner = np.concatenate([[-1], *([i] * (size - 1) for i, size in enumerate(sizes))])
    root = np.sqrt(weight[kept])[:, None]
    bases = [np.linalg.qr(root * design[:, owner != i])[0] for i in (-2, *range(len(sizes)))]
    values = np.asarray(y, dtype=np.float64)[kept]
    rng = np.random.default_rng(seed)
    draws = np.array([_shares(values[rng.permutation(len(values))], root, bases) for _ in range(n_null)])
    found = _shares(values, root, bases)
    distance = float(np.average(((values - fitted.predict(table[kept])) ** 2).sum(1), weights=weight[kept]))
    return IdealWordsReport(
        fitted.factors_, tuple(sizes), len(values), found[0], draws[:, 0], tuple(found[1:].tolist()), draws[:, 1:], distance
    )


def _shares(values: np.ndarray, root: np.ndarray, bases: Sequence[np.ndarray]) -> np.ndarray:
    """R^2 with all factors, then its loss without each; `bases` are orthonormal bases of the weighted designs."""
    centred = root * (values - np.average(values, axis=0, weights=root[:, 0] ** 2))
    total = float((centred**2).sum())
    if total == 0:
        return np.concatenate([[1.0], np.zeros(len(bases) - 1)])
    explained = np.array([((basis.T @ centred) ** 2).sum() for basis in bases]) / total
    return np.concatenate([explained[:1], explained[0] - explained[1:]])
