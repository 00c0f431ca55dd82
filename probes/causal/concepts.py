"""The direction of a concept from counterfactual pairs, and whether the pairs agree on it.

    mean = mean_i delta_i,     direction = mean / |mean|,     dispersion = mean_i |delta_i - mean|^2
    leave-one-out:  s_i = u_{-i} . delta_i,   u_{-i} = the direction of the pairs that share no word with it;
                     null: u . (g(y) - g(y')) of random tokens
    z = mean_i s_i / sd(null),     share = P(s_i > |null|)

Park, Choe, Veitch, ICML 2024 (arXiv 2311.03658), section 4.1; delta in whitened coordinates. Pairs that agree on nothing still get a z a
little off 0, so each z is returned with that of as many random pairs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from probes.causal.inner_product import CausalInnerProduct
from probes.causal.pairs import CounterfactualPairs
from probes.figures import CONTROL, colour
from probes.results import Result, Table
from probes.unembedding import Unembedding
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

N_RANDOM = 20_000
"""Random pairs that the null is told by."""
N_NULL = 100
"""Random concepts per concept."""
POOL = 4000
"""Random pairs that the random concepts are made of."""


class ConceptDirection(TransformerMixin, BaseEstimator):
    """The common direction of differences, one row per pair. `transform` gives each row's coordinate along it.

    Attributes after `fit`: `mean_` [d], not normalised; `direction_` [d], of unit length; `dispersion_`, the mean squared distance from
    the mean; `leave_one_out_` [n], each difference's coordinate along the direction of the others; `n_features_in_`.
    """

    def fit(self, X: Any, y: Any = None) -> "ConceptDirection":
        """X: differences [n_pairs, d], at least 2. Raises ConfigError when they cancel out, ValueError for an X that cannot be used."""
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self.mean_ = X.mean(axis=0)
        length = np.linalg.norm(self.mean_)
        if length == 0:
            raise ConfigError(f"X must have a mean difference that is not 0, got {len(X)} rows that cancel out (ConceptDirection)")
        self.direction_ = self.mean_ / length
        self.dispersion_ = float(np.square(X - self.mean_).sum(axis=1).mean())
        self.leave_one_out_ = leave_one_out(X)
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n 1"]:
        """Coordinates along the direction."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return (X @ self.direction_)[:, None]

    @property
    def _n_features_out(self) -> int:
        return 1


def leave_one_out(differences: Float[np.ndarray, "... n d"], shared: Bool[np.ndarray, "n n"] | None = None) -> Float[np.ndarray, "... n"]:
    """u_{-i} . delta_i: each difference's coordinate along the unit direction of the others; 0 where there are none, or they cancel out.

    `shared` [n, n] says which differences to leave out together with which, such as pairs that have a word in common.
    """
    left_out = np.eye(differences.shape[-2]) if shared is None else shared.astype(np.float64)
    others = differences.sum(axis=-2, keepdims=True) - left_out @ differences
    lengths = np.linalg.norm(others, axis=-1)
    along = np.einsum("...nd,...nd->...n", others, differences)
    return np.where(left_out.all(axis=1), 0.0, along / np.where(lengths > 0, lengths, 1.0))


@dataclass(frozen=True, eq=False)
class ConceptStudy(Result):
    """Every concept's direction and its leave-one-out test. Lengths and directions are in whitened coordinates."""

    pairs: CounterfactualPairs
    """The pairs."""
    directions: Float[np.ndarray, "n d"]
    """Unit directions of the concepts."""
    means: Float[np.ndarray, "n d"]
    """Mean differences, not normalised."""
    dispersion: Float[np.ndarray, " n"]
    """Mean squared distance of a difference from the mean one."""
    scores: tuple[Float[np.ndarray, "_"], ...]
    """Leave-one-out coordinate of each pair, per concept; pairs that share a word with it are left out too."""
    random: tuple[Float[np.ndarray, "_"], ...]
    """Coordinates of random pairs along each concept's direction."""
    z: Float[np.ndarray, " n"]
    """Mean leave-one-out coordinate over the standard deviation of the random ones."""
    share: Float[np.ndarray, " n"]
    """Chance that a pair's coordinate is larger than the absolute one of a random pair; pairs without a concept give 1/4."""
    null_z: Float[np.ndarray, "n n_null"]
    """z of concepts made of random pairs, as many as the concept has."""

    @property
    def p_values(self) -> Float[np.ndarray, " n"]:
        """(1 + #{null z >= z}) / (1 + n_null)."""
        return (1 + (self.null_z >= self.z[:, None]).sum(axis=1)) / (1 + self.null_z.shape[1])

    def table(self) -> Table:
        """Concepts by z, the largest first."""
        order = np.argsort(-self.z, kind="stable")
        return Table(
            "leave-one-out test of concept directions",
            ("concept", "pairs", "z", "P(LOO > |random|)", "LOO cosine", "|mean|", "dispersion", "null z", "sd of null z", "p"),
            tuple(
                (
                    self.pairs.names[i],
                    len(self.scores[i]),
                    float(self.z[i]),
                    float(self.share[i]),
                    float(self._cosine(int(i))),
                    float(np.linalg.norm(self.means[i])),
                    float(self.dispersion[i]),
                    float(self.null_z[i].mean()),
                    float(self.null_z[i].std(ddof=1)),
                    float(self.p_values[i]),
                )
                for i in order
            ),
            "z: mean coordinate of a pair along the direction of the others, over the spread of random pairs along it. Null z: the same of as "
            "many random pairs. The LOO cosine says nothing about the inner product: without whitening it is as large.",
        )

    def _cosine(self, i: int) -> float:
        n = len(self.scores[i])
        mean_square = self.dispersion[i] + np.square(self.means[i]).sum()
        return float(self.scores[i].sum() / n / np.sqrt(mean_square))

    def figure(self) -> "Figure":
        """One small histogram per concept: leave-one-out coordinates in colour, random pairs in grey."""
        from plotly.subplots import make_subplots

        order = np.argsort(-self.z, kind="stable")
        n_columns = min(4, len(order))
        n_rows = -(-len(order) // n_columns)
        titles = [f"{self.pairs.names[i]}  z={self.z[i]:.1f}" for i in order]
        figure = make_subplots(rows=n_rows, cols=n_columns, subplot_titles=titles, shared_xaxes="all", vertical_spacing=0.35 / n_rows)
        low = min(min(map(np.min, self.random)), min(map(np.min, self.scores)))
        high = max(max(map(np.max, self.random)), max(map(np.max, self.scores)))
        bins = {"start": float(low), "end": float(high), "size": float((high - low) / 60)}
        for place, i in enumerate(order):
            at = {"row": place // n_columns + 1, "col": place % n_columns + 1}
            common: dict[str, Any] = {"histnorm": "probability density", "showlegend": place == 0, "opacity": 0.65}
            figure.add_histogram(x=self.random[i], marker_color=CONTROL, name="random pairs", xbins=bins, **common, **at)
            wide = bins | {"size": bins["size"] * 3}
            figure.add_histogram(x=self.scores[i], marker_color=colour(0), name="pairs left out", xbins=wide, **common, **at)
        figure.update_layout(
            template="plotly_white",
            barmode="overlay",
            title={"text": "Pairs along the direction of the other pairs (whitened units)", "x": 0, "font": {"size": 16}},
            width=900,
            height=110 + 110 * n_rows,
            legend={"orientation": "h", "y": -0.08},
            margin={"l": 40, "r": 20, "t": 80, "b": 40},
        )
        figure.update_annotations(font_size=11)
        figure.update_yaxes(showticklabels=False)
        return figure


def study_concepts(
    pairs: CounterfactualPairs,
    unembedding: Unembedding,
    causal: CausalInnerProduct,
    *,
    seed: int = 0,
    n_random: int = N_RANDOM,
    n_null: int = N_NULL,
) -> ConceptStudy:
    """The direction and the leave-one-out test of every concept, in the whitened coordinates of `causal`, fitted to the same rows.

    Raises ConfigError for fewer than 2 draws of either null.
    """
    if min(n_random, n_null) < 2:
        raise ConfigError(f"n_random and n_null must be at least 2, got {n_random} and {n_null} (study_concepts)")
    rng = np.random.default_rng(seed)
    rows = unembedding.rows
    differences = [causal.whiten(each) for each in pairs.differences(rows)]
    fitted = [ConceptDirection().fit(each) for each in differences]
    scores = tuple(leave_one_out(each, share_a_word(p.rows)) for each, p in zip(differences, pairs.concepts, strict=True))
    directions = np.stack([concept.direction_ for concept in fitted])
    drawn = random_pairs(rng, len(rows), n_random)
    along = rows @ causal.unwhiten_contexts(directions).T  # g . u = gamma . (u S^{-1}): one product for all tokens and concepts
    random = (along[drawn[:, 1]] - along[drawn[:, 0]]).T
    some = drawn[:POOL]
    pool = causal.whiten(rows[some[:, 1]] - rows[some[:, 0]])
    return ConceptStudy(
        pairs=pairs,
        directions=directions,
        means=np.stack([concept.mean_ for concept in fitted]),
        dispersion=np.array([concept.dispersion_ for concept in fitted]),
        scores=scores,
        random=tuple(random),
        z=np.array([each.mean() for each in scores]) / random.std(axis=1),
        share=np.array([(each[:, None] > np.abs(row)[None, :]).mean() for each, row in zip(scores, random, strict=True)]),
        null_z=np.stack([_null_z(rng, pool, len(each), n_null) for each in scores]),
    )


def share_a_word(rows: Int[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n n"]:
    """Which pairs have a word in common; each has with itself."""
    return (rows[:, None, :, None] == rows[None, :, None, :]).any(axis=(2, 3))


def _null_z(rng: np.random.Generator, pool: Float[np.ndarray, "m d"], n: int, n_null: int) -> Float[np.ndarray, " n_null"]:
    """z of concepts made of `n` random pairs each, drawn from the whitened differences `pool`, which also give their spread."""
    differences = pool[rng.integers(0, len(pool), (n_null, n))]
    means = differences.mean(axis=1)
    directions = means / np.linalg.norm(means, axis=1, keepdims=True)
    return leave_one_out(differences).mean(axis=1) / (pool @ directions.T).std(axis=0)


def random_pairs(rng: np.random.Generator, n_rows: int, n: int) -> Int[np.ndarray, "n 2"]:
    """`n` pairs of different rows, uniform. Raises ConfigError for fewer than 2 rows."""
    if n_rows < 2:
        raise ConfigError(f"n_rows must be at least 2 to draw pairs from, got {n_rows} (random_pairs)")
    first = rng.integers(0, n_rows, n)
    return np.stack([first, (first + rng.integers(1, n_rows, n)) % n_rows], axis=1)
