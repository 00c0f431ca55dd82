"""SCR and TPP: what taking latents away does to probes, over seeds, with random latents beside it.

`probes.ablation` has the definitions. Each seed draws its own split by documents, balanced rows and random latents. SCR is asked in both directions of
a pair of concepts, and the direction whose biased probe is the worse is reported, as SAEBench does.

What is known against these numbers (arXiv 2605.18229): at the canonical settings both fail. TPP changes by 39 % (coefficient of variation) with the seed at
10 latents and by 23 % at 50, and its correlation with the truth at 10 is -.03; SCR ranks a perfect dictionary below 11 of 35 others at 10 latents, and
is negatively correlated with the truth at large numbers. They are here to be compared with published values: judge a dictionary by sparse probing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from probes.ablation import AblationCurve, spurious_correlation_removal, targeted_perturbation
from probes.evaluation.codes import directions, site_of
from probes.evaluation.texts import Texts, TextsConfig, read_texts
from probes.problem import Features, Problem
from probes.validation import group_holdout
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs, Measure, Number, Outcome, Quantity
from sae.evaluation.figures import Axis, Figure, Series


class Concept(NamedTuple):
    """A question of two answers made of a task."""

    task: str
    """The task."""
    positive: tuple[str, ...] = ()
    """Its classes that are answered 1; empty for the second of two."""

    @property
    def name(self) -> str:
        """What to call it."""
        return " or ".join(self.positive) or self.task

    def of(self, problem: Problem) -> Problem:
        """The question about the rows of the task's problem."""
        if not self.positive:
            return problem
        y = np.isin(problem.y, [problem.classes.index(name) for name in self.positive]).astype(np.int64)
        return Problem(self.name, problem.rows, y, problem.groups, ("other", self.name))


PAIRS = (
    (Concept("noun_class", ("animal", "plant")), Concept("noun_frame")),
    (Concept("ends_s"), Concept("leading_capital")),
)
"""Concepts with labels on the same rows, of which each can be made to go with the other."""
CLASSES = ("docstring_package", "noun_class")
"""Tasks of several classes."""
COUNTS = (2, 5, 10, 20, 50, 100)
LEAST_ROWS = 20
"""Rows that every combination of two concepts must have on either side."""
CAVEATS = (
    "This number is unreliable: it changes much with the seed, and correlates little or negatively with the truth (arXiv 2605.18229): TPP varies by 39 % "
    "over seeds at 10 latents and by 23 % at 50, and is uncorrelated with the truth at 10; SCR ranks a perfect dictionary below 11 of 35 others at 10 "
    "latents, and falls with quality where many are taken away. Do not choose a dictionary by it.",
)


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Settings of `scr` and `tpp`."""

    texts: TextsConfig = field(default_factory=TextsConfig)
    """Which texts are read; the pairs and tasks of several classes among them are used."""
    counts: tuple[int, ...] = COUNTS
    """Numbers of latents taken away."""
    n_seeds: int = 3
    """Seeds: splits, balanced rows, random latents."""
    test_share: float = 0.4
    """Share of documents that probes are tested on."""

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1 or len(set(self.counts)) < len(self.counts):
            raise ConfigError(f"counts must be one or more different numbers of at least 1, got {list(self.counts)} (AblationConfig)")
        if self.n_seeds < 2 or not 0 < self.test_share < 1:
            raise ConfigError(
                f"n_seeds must be at least 2, test_share inside (0, 1), got {self.n_seeds}, {self.test_share} (AblationConfig)"
            )


class Curves(NamedTuple):
    """The curves of a pair, or of a task, one for each seed in which there is one."""

    name: str
    """What was asked."""
    curves: list[AblationCurve]
    """One for each seed."""
    left_out: int
    """Seeds in which it is not defined."""

    def values(self) -> Float[np.ndarray, "seeds counts"]:
        """The measure."""
        return np.array([curve.values for curve in self.curves])

    def nulls(self) -> tuple[Float[np.ndarray, "seeds counts"], Float[np.ndarray, "seeds counts"]]:
        """Mean and standard deviation over draws of random latents."""
        return np.array([curve.null_means for curve in self.curves]), np.array([curve.null_sds for curve in self.curves])


def shared_rows(
    one: Problem, other: Problem
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(rows, labels of one, labels of the other, documents) of the rows that both problems ask about."""
    rows, first, second = np.intersect1d(one.rows, other.rows, return_indices=True)
    return rows, one.y[first], other.y[second], one.groups[first]


def scr_curves(
    acts: Float[np.ndarray, "n d_in"],
    codes: Features,
    atoms: Float[np.ndarray, "d_sae d_in"],
    pair: tuple[Problem, Problem],
    *,
    config: AblationConfig,
    seed: int,
) -> Curves:
    """SCR of a pair of concepts for every seed, in the direction whose biased probe is the worse; `atoms` in the units of `acts`.

    A seed whose split lacks a combination of labels, or in which no direction has a biased probe worse than the oracle, has no curve.
    """
    rows, one, other, groups = shared_rows(*pair)
    x, z = acts[rows], codes[rows]
    found = []
    for each in range(config.n_seeds):
        fold = group_holdout(2 * one + other, groups, test_share=config.test_share, seed=seed + each)
        options = {"train": fold.train, "test": fold.test, "counts": config.counts, "seed": seed + each}
        if _fewest(one, other, fold.train) < LEAST_ROWS or _fewest(one, other, fold.test) < LEAST_ROWS:
            continue
        ways = [_removal(x, z, atoms, w, v, options) for w, v in ((one, other), (other, one))]
        defined = [curve for curve in ways if curve is not None]
        if defined:
            found.append(min(defined, key=lambda curve: curve.before))
    return Curves(f"{pair[0].name} and {pair[1].name}", found, config.n_seeds - len(found))


def _fewest(one: np.ndarray, other: np.ndarray, rows: np.ndarray) -> int:
    return int(np.bincount(2 * one[rows] + other[rows], minlength=4).min())


def _removal(
    acts: np.ndarray, codes: Features, atoms: np.ndarray, wanted: np.ndarray, spurious: np.ndarray, options: Mapping[str, Any]
) -> AblationCurve | None:
    """SCR in one direction; None where the oracle is no better than the biased probe, so that there is nothing to regain."""
    try:
        return spurious_correlation_removal(acts, codes, atoms, wanted, spurious, **options)
    except ConfigError as error:
        if "worse than the oracle" not in str(error):
            raise
        return None


def tpp_curves(
    acts: Float[np.ndarray, "n d_in"],
    codes: Features,
    atoms: Float[np.ndarray, "d_sae d_in"],
    problem: Problem,
    *,
    config: AblationConfig,
    seed: int,
) -> Curves:
    """TPP of a problem of several classes for every seed; `atoms` in the units of `acts`."""
    x, z, found = acts[problem.rows], codes[problem.rows], []
    for each in range(config.n_seeds):
        fold = group_holdout(problem.y, problem.groups, test_share=config.test_share, seed=seed + each)
        options = {"train": fold.train, "test": fold.test, "counts": config.counts, "seed": seed + each}
        found.append(targeted_perturbation(x, z, atoms, problem.y, **options))
    return Curves(problem.name, found, 0)


def _measured(inputs: Inputs, config: AblationConfig) -> tuple[Texts, np.ndarray, Features, np.ndarray]:
    site = site_of(inputs)
    atoms = directions(inputs.chosen("dictionary")).numpy()
    texts, key = read_texts(inputs, site, config.texts)
    return texts, texts.pooled(), texts.codes(inputs, key), atoms


def scr(inputs: Inputs, config: AblationConfig) -> Outcome:
    """SCR of every pair whose tasks were read."""
    pairs = [pair for pair in PAIRS if {concept.task for concept in pair} <= set(config.texts.tasks)]
    if not pairs:
        allowed = " or ".join(" and ".join(concept.task for concept in pair) for pair in PAIRS)
        raise ConfigError(f"tasks must hold {allowed}, got {', '.join(config.texts.tasks)} (scr)")
    texts, acts, codes, atoms = _measured(inputs, config)
    found = []
    for one, other in pairs:
        pair = (one.of(texts.problem(one.task)), other.of(texts.problem(other.task)))
        found.append(scr_curves(acts, codes, atoms, pair, config=config, seed=inputs.seed))
    return _outcome("SCR", found, config)


def tpp(inputs: Inputs, config: AblationConfig) -> Outcome:
    """TPP of every task of several classes that was read."""
    tasks = [task for task in CLASSES if task in config.texts.tasks]
    if not tasks:
        raise ConfigError(f"tasks must hold one of {', '.join(CLASSES)}, got {', '.join(config.texts.tasks)} (tpp)")
    texts, acts, codes, atoms = _measured(inputs, config)
    found = [tpp_curves(acts, codes, atoms, texts.problem(task), config=config, seed=inputs.seed) for task in tasks]
    return _outcome("TPP", found, config)


def _outcome(measure: str, found: Sequence[Curves], config: AblationConfig) -> Outcome:
    kept = [each for each in found if each.curves]
    notes = [*CAVEATS, *(_accuracies(each) for each in kept)]
    notes += [
        f"{each.name}: {each.left_out} of {config.n_seeds} seeds are left out, where nothing can be regained or a combination is rare."
        for each in found
        if each.left_out
    ]
    if not kept:
        return Outcome((Number(measure, None, note="not defined for any pair and seed"),), notes=tuple(notes))
    counts = kept[0].curves[0].counts
    numbers = [number for i, n in enumerate(counts) for number in _numbers(measure, kept, i, n)]
    return Outcome(tuple(numbers), (_figure(measure, kept, counts),), tuple(notes))


def _accuracies(each: Curves) -> str:
    before = np.mean([curve.before for curve in each.curves])
    oracle = [curve.oracle for curve in each.curves if curve.oracle is not None]
    return f"{each.name}: accuracy before {before:.3f}" + (f", of the unbiased probe {np.mean(oracle):.3f}." if oracle else ".")


def _numbers(measure: str, kept: Sequence[Curves], i: int, n: int) -> list[Number]:
    """The mean over pairs or tasks and seeds, its change with the seed, and each pair or task by itself."""
    subject = f"n = {n}"
    by_seed = _by_seed(kept, i)
    value, spread = float(by_seed.mean()), float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
    means, sds = zip(*(each.nulls() for each in kept), strict=True)
    null_mean = float(np.mean([m[:, i].mean() for m in means]))
    parts = np.concatenate([s[:, i] / (len(s) * len(kept)) for s in sds])  # of a mean over tasks and seeds, drawn independently
    n_null = kept[0].curves[0].n_random
    note = "" if spread is None else f"sd over {len(by_seed)} seeds {spread:.3f}"
    numbers = [Number(measure, value, subject, null_mean, float(np.sqrt((parts**2).sum())), n_null, note=note)]
    if spread is not None and value != 0:
        numbers.append(Number(f"change of {measure} with the seed", spread / abs(value), subject, note=f"{len(by_seed)} seeds"))
    for each in kept:
        own = each.values()[:, i]
        listed = ", ".join(f"{v:.3f}" for v in own)
        numbers.append(Number(f"{measure} of one", float(own.mean()), f"{each.name}, {subject}", note=f"by seed {listed}"))
    return numbers


def _by_seed(kept: Sequence[Curves], i: int) -> Float[np.ndarray, " seeds"]:
    """Mean over pairs or tasks for as many seeds as all of them have."""
    n = min(len(each.curves) for each in kept)
    return np.mean([each.values()[:n, i] for each in kept], axis=0)


def _figure(measure: str, kept: Sequence[Curves], counts: Sequence[int]) -> Figure:
    null = np.mean([each.nulls()[0].mean(axis=0) for each in kept], axis=0)
    lines = [Series(each.name, tuple(counts), tuple(each.values().mean(axis=0).tolist())) for each in kept]
    series = (Series("random latents", tuple(counts), tuple(null.tolist()), role="null"), *lines)
    return Figure(
        f"{measure} by latents taken away", Axis("latents taken away", scale="log"), Axis(measure), series, caption="Mean over seeds."
    )


SAEBENCH = "Karvonen et al. 2025, arXiv 2503.09532 (SAEBench)"
KEPT = "x' = x - sum over S of c_j u_j: what the dictionary missed stays in x'"


def _quantities(measure: str, meaning: str, formula: str) -> tuple[Quantity, ...]:
    return (
        Quantity(
            measure, f"{meaning} {CAVEATS[0]}", SAEBENCH, alternative="greater", null="as many random active latents", formula=formula
        ),
        Quantity(
            f"change of {measure} with the seed",
            "Standard deviation over seeds by the mean. Above 0.2 differences between dictionaries of that size mean nothing.",
            "arXiv 2605.18229",
            formula="sd over seeds / |mean|",
        ),
        Quantity(f"{measure} of one", f"{measure} of one pair of concepts, or of one task, mean over seeds.", SAEBENCH, formula=formula),
    )


QUICK = TextsConfig(tasks=("noun_class", "noun_frame"), n_nouns=100)
SCR = Measure(
    name="scr",
    title="Spurious correlation removal",
    text=(
        "Whether latents of a concept can be taken out of a probe that has confused it with another. A probe is fitted to rows on which two "
        "concepts agree; the latents with the largest effect on the unwanted one are taken away, and the probe is asked again on rows on which "
        f"the two do not depend on each other. {CAVEATS[0]}"
    ),
    needs=("dictionary", "model"),
    quantities=_quantities(
        "SCR",
        "1: as good as a probe fitted to unbiased rows; 0: nothing gained; below 0: harmed.",
        f"(A_ablated - A_biased) / (A_oracle - A_biased); S = the n largest |(mean_pos c_j - mean_neg c_j) (w . u_j)|; {KEPT}",
    ),
    compute=scr,
    config=AblationConfig(),
    quick=AblationConfig(texts=QUICK, counts=(5, 20), n_seeds=3),
)
TPP = Measure(
    name="tpp",
    title="Targeted probe perturbation",
    text=(
        "Whether the latents of a class harm the probe of that class and no other: the n latents with the largest effect on a class's probe are taken away, "
        f"and all probes asked again. {CAVEATS[0]}"
    ),
    needs=("dictionary", "model"),
    quantities=_quantities(
        "TPP",
        "High: the latents of classes are apart; 0: taking a class's latents away harms all probes alike, or none.",
        f"mean_i [(A_ii clean - A_ii ablated) - mean_(j != i) (A_j clean - A_j ablated)]; S = the n largest max(0, mean_pos - mean_neg) (w . u_j); {KEPT}",
    ),
    compute=tpp,
    config=AblationConfig(),
    quick=AblationConfig(texts=QUICK, counts=(5, 20), n_seeds=3),
)
