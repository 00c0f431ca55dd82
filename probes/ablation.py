"""What taking latents away does to probes: whether a dictionary has one concept apart from another.

    e_j = (mean of f_j in class 1 - mean of f_j elsewhere) (W_dec_j . w)      effect of latent j on what the probe w reads of the concept
    x'  = x - sum_{j in S} f_j W_dec_j                                        S: the n largest effects; what the dictionary missed stays in x'
    SCR = (A(x') - A) / (A_oracle - A)                                        A: accuracy, on unbiased rows, of a probe fitted to biased ones
    TPP = mean_c D_cc - mean_{c != c'} D_cc'                                  D_cc': drop of the probe for c' once the latents of c are gone

Spurious correlation removal and targeted probe perturbation of SAEBench (Karvonen et al., 2025, arXiv 2503.09532). SCR is 1 when the wanted concept
is read as if the data had never been biased, 0 when nothing was gained; TPP is 0 when latents are not apart. SCR ranks by |e_j|, TPP by e_j
with negative effects left out. Both come with the same numbers for as many latents drawn at random among those that are active. Probes are linear, so x'
is never made: what a probe says of it is w . x' + b = (w . x + b) - sum_{j in S} f_j (W_dec_j . w).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import sparse
from sklearn.base import clone

from probes.figures import colour, control_line, new_figure
from probes.linear import DenseProbe
from probes.problem import Features
from probes.results import Result, Table
from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COUNTS = (2, 5, 10, 20, 50, 100, 500)
N_RANDOM = 10


@dataclass(frozen=True)
class AblationCurve(Result):
    """SCR or TPP against the number of latents taken away, with the same for random latents."""

    measure: str
    """"SCR" or "TPP"."""
    counts: tuple[int, ...]
    """Numbers of latents taken away."""
    values: tuple[float, ...]
    """The measure for each number."""
    null_means: tuple[float, ...]
    """Its mean for as many random active latents."""
    null_sds: tuple[float, ...]
    """Its standard deviation over the draws."""
    before: float
    """Accuracy with nothing taken away: of the biased probe (SCR), of the classes' probes on average (TPP)."""
    oracle: float | None
    """Accuracy of the probe fitted to unbiased rows (SCR)."""
    n_random: int
    """Draws of random latents."""

    def table(self) -> Table:
        """One row per number of latents."""
        note = f"Accuracy before {self.before:.3f}" + ("" if self.oracle is None else f", of the unbiased probe {self.oracle:.3f}")
        columns = ("latents taken away", self.measure, "random latents", "sd")
        rows = tuple(zip(self.counts, self.values, self.null_means, self.null_sds, strict=True))
        return Table(f"{self.measure} by latents taken away", columns, rows, f"{note}. Null: {self.n_random} draws of active latents.")

    def figure(self) -> "Figure":
        """The measure against the number of latents, random ones in grey."""
        figure = new_figure(f"{self.measure} by latents taken away", "latents taken away", self.measure)
        figure.update_xaxes(type="log", tickvals=list(self.counts))
        figure.add_scatter(
            x=self.counts, y=self.null_means, mode="lines", name="random latents", line=control_line(), error_y={"array": self.null_sds}
        )
        figure.add_scatter(x=self.counts, y=self.values, mode="lines+markers", name="largest effects", line={"color": colour(0)})
        return figure


def latent_effects(
    codes: Features, y: Int[np.ndarray, "_"], W_dec: Float[np.ndarray, "d_sae d_in"], direction: Float[np.ndarray, " d_in"]
) -> Float[np.ndarray, " d_sae"]:
    """e_j of every latent, for labels 0 and 1 and the coefficients of a probe in the units of the activations; sparse codes stay sparse."""
    sides = [np.asarray(codes[y == label].mean(axis=0), dtype=np.float64).ravel() for label in (1, 0)]
    return (sides[0] - sides[1]) * (W_dec.astype(np.float64) @ direction)


def without_latents(
    acts: Float[np.ndarray, "n d_in"], codes: Features, W_dec: Float[np.ndarray, "d_sae d_in"], latents: Int[np.ndarray, "_"]
) -> Float[np.ndarray, "n d_in"]:
    """x less what these latents wrote into its reconstruction. `W_dec` is in the units of `acts`."""
    return acts - np.asarray(codes[:, latents] @ W_dec[latents])


def spurious_correlation_removal(
    acts: Float[np.ndarray, "_ d_in"],
    codes: Features,
    W_dec: Float[np.ndarray, "d_sae d_in"],
    wanted: Int[np.ndarray, "_"],
    spurious: Int[np.ndarray, "_"],
    *,
    train: Int[np.ndarray, "_"],
    test: Int[np.ndarray, "_"],
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
    probe: Any = None,
) -> AblationCurve:
    """SCR: the biased probe is fitted to the training rows where the two concepts agree, the oracle to as many of all training rows, and both
    are tested on as many test rows of each of the four combinations. Latents are ranked on a probe for the spurious concept.

    wanted, spurious: 0 and 1. probe: an estimator with `coef_` (DenseProbe unless given). Numbers above d_sae are left out. Raises ConfigError for inputs that
    do not fit, rows that both train and test, a missing combination, or an oracle that is no better than the biased probe.
    """
    probe = probe if probe is not None else DenseProbe()
    _check(acts, codes, W_dec, {"wanted": wanted, "spurious": spurious}, train, test)
    generator = np.random.default_rng(seed)
    balanced = [_balanced(2 * wanted + spurious, 4, rows, generator, name) for rows, name in ((train, "train"), (test, "test"))]
    biased_rows = train[wanted[train] == spurious[train]]
    biased_rows = generator.permutation(biased_rows)[: max(len(balanced[0]), 2)]
    biased, oracle, reader = (
        _clone_fit(probe, acts[rows], labels[rows])
        for rows, labels in ((biased_rows, wanted), (balanced[0], wanted), (balanced[0], spurious))
    )
    rows = balanced[1]
    before, best = (float(np.mean(fitted.predict(acts[rows]) == wanted[rows])) for fitted in (biased, oracle))
    if best <= before:
        raise ConfigError(
            f"the biased probe must be worse than the oracle for SCR to be defined, got accuracy {before:.3f} and {best:.3f}: bias the data more, "
            "or label more rows (spurious_correlation_removal)"
        )
    effects = latent_effects(codes[balanced[0]], spurious[balanced[0]], W_dec, reader.coef_[0])
    asked = _asked(biased, acts[rows], codes[rows], W_dec, wanted[rows])

    def value(latents: np.ndarray) -> float:
        return (asked.accuracy_without(latents) - before) / (best - before)

    return _curve("SCR", value, np.abs(effects), _active(codes[balanced[0]]), counts, generator, before, best)


def targeted_perturbation(
    acts: Float[np.ndarray, "_ d_in"],
    codes: Features,
    W_dec: Float[np.ndarray, "d_sae d_in"],
    y: Shaped[np.ndarray, "_"],
    *,
    train: Int[np.ndarray, "_"],
    test: Int[np.ndarray, "_"],
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
    probe: Any = None,
) -> AblationCurve:
    """TPP: a probe for every class against all others; the latents of each class are taken away in turn, and all probes asked again on as many test
    rows of the class as of others.

    y: three classes or more, or two. Other arguments and errors as in `spurious_correlation_removal`.
    """
    probe = probe if probe is not None else DenseProbe()
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ConfigError(f"y must hold two classes or more, got {len(classes)} (targeted_perturbation)")
    _check(acts, codes, W_dec, {}, train, test)
    generator = np.random.default_rng(seed)
    is_class = [(labels == c).astype(np.int64) for c in range(len(classes))]
    fits = [_clone_fit(probe, acts[train], own[train]) for own in is_class]
    effects = [
        np.maximum(latent_effects(codes[train], own[train], W_dec, fit.coef_[0]), 0) for own, fit in zip(is_class, fits, strict=True)
    ]
    rows_of = [_balanced(own, 2, test, generator, "test") for own in is_class]
    asked = [_asked(fit, acts[rows], codes[rows], W_dec, own[rows]) for fit, rows, own in zip(fits, rows_of, is_class, strict=True)]
    right = np.array([each.accuracy_without(np.arange(0)) for each in asked])

    def drops(latents: np.ndarray) -> np.ndarray:
        return right - np.array([each.accuracy_without(latents) for each in asked])

    def value(latents_of: Sequence[np.ndarray]) -> float:
        D = np.stack([drops(latents) for latents in latents_of])
        own = np.eye(len(D), dtype=bool)
        return float(D[own].mean() - D[~own].mean())

    active = _active(codes[train])
    counts = _usable(counts, W_dec.shape[0])
    values = [value([_largest(e, n) for e in effects]) for n in counts]
    nulls = [[value([_drawn(active, n, generator) for _ in classes]) for _ in range(N_RANDOM)] for n in counts]
    means, sds = tuple(float(np.mean(v)) for v in nulls), tuple(float(np.std(v, ddof=1)) for v in nulls)
    return AblationCurve("TPP", tuple(counts), tuple(values), means, sds, float(right.mean()), None, N_RANDOM)


class _Asked(NamedTuple):
    """A probe and the rows that it is asked about."""

    decision: np.ndarray
    """w . x + b of every row."""
    codes: Any
    """f of every row."""
    readout: np.ndarray
    """W_dec_j . w of every latent."""
    truth: np.ndarray
    """What is right: whether the row is of class 1."""

    def accuracy_without(self, latents: np.ndarray) -> float:
        """Share of rows that the probe gets right once these latents are gone."""
        taken = np.zeros(len(self.readout))
        taken[latents] = self.readout[latents]
        return float(np.mean((self.decision - self.codes @ taken > 0) == self.truth))


def _asked(fit: Any, acts: np.ndarray, codes: Any, W_dec: np.ndarray, y: np.ndarray) -> _Asked:
    return _Asked(fit.decision_function(acts), codes, W_dec.astype(np.float64) @ fit.coef_[0], y == 1)


def _curve(
    measure: str,
    value: Callable[[np.ndarray], float],
    scores: np.ndarray,
    active: np.ndarray,
    counts: Sequence[int],
    generator: np.random.Generator,
    before: float,
    oracle: float,
) -> AblationCurve:
    counts = _usable(counts, len(scores))
    nulls = [[value(_drawn(active, n, generator)) for _ in range(N_RANDOM)] for n in counts]
    means, sds = tuple(float(np.mean(v)) for v in nulls), tuple(float(np.std(v, ddof=1)) for v in nulls)
    return AblationCurve(measure, tuple(counts), tuple(value(_largest(scores, n)) for n in counts), means, sds, before, oracle, N_RANDOM)


def _usable(counts: Sequence[int], d_sae: int) -> list[int]:
    kept = sorted({int(n) for n in counts if 1 <= n <= d_sae})
    if not kept:
        raise ConfigError(f"counts must hold a number in 1..d_sae={d_sae}, got {list(counts)}")
    return kept


def _largest(scores: np.ndarray, n: int) -> np.ndarray:
    """The n latents with the largest positive scores; of equal scores the lowest index."""
    order = np.lexsort((np.arange(len(scores)), -scores))[:n]
    return order[scores[order] > 0]


def _drawn(active: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(active)[:n]


def _active(codes: Any) -> np.ndarray:
    return np.flatnonzero(np.asarray((codes != 0).sum(axis=0)).ravel() > 0)


def _clone_fit(probe: Any, X: np.ndarray, y: np.ndarray) -> Any:
    return clone(probe).fit(X, y)


def _balanced(cell: np.ndarray, n_cells: int, rows: np.ndarray, generator: np.random.Generator, side: str) -> np.ndarray:
    """As many of the rows of every cell."""
    cells, counts = np.unique(cell[rows], return_counts=True)
    if len(cells) < n_cells:
        raise ConfigError(
            f"{side} must hold every combination of labels, got {dict(zip(cells.tolist(), counts.tolist(), strict=True))} (row counts)"
        )
    return np.sort(np.concatenate([generator.permutation(rows[cell[rows] == c])[: counts.min()] for c in cells]))


def _check(acts: np.ndarray, codes: Any, W_dec: np.ndarray, labels: dict[str, np.ndarray], train: np.ndarray, test: np.ndarray) -> None:
    if codes.shape != (acts.shape[0], W_dec.shape[0]):
        raise ConfigError(f"codes must be [{acts.shape[0]}, {W_dec.shape[0]}] as acts and W_dec have it, got {list(codes.shape)}")
    for name, y in labels.items():
        if len(y) != len(acts) or not np.isin(y, (0, 1)).all():
            raise ConfigError(f"{name} must hold 0 or 1 for each of {len(acts)} rows, got {len(y)} with {np.unique(y)[:5].tolist()}")
    values = codes.data if sparse.issparse(codes) else codes
    if not (np.isfinite(acts).all() and np.isfinite(values).all()):
        raise ConfigError("acts and codes must be finite: leave rows that are not out")
    if len(np.intersect1d(train, test)):
        raise ConfigError(f"train and test must not share rows, got {len(np.intersect1d(train, test))} shared")
