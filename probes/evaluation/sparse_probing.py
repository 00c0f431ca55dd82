"""SPARSE_PROBING: how well labels can be read from k latents, beside k dimensions of the activations and all of them.

    rows: as many of the class as of others, on either side of a split by documents; a task of several classes is one question for each, averaged
    S     = the k columns with the largest |mean over the class - mean over others| on the training rows          (SAEBench's rule)
    probe = logistic regression on S, L2, C = 1, columns z-scored;      accuracy and AUC on the test rows;      chance and majority: 1/2

Gurnee et al. 2023, arXiv 2305.01610; SAEBench (Karvonen et al. 2025, arXiv 2503.09532), of whose numbers this is the most reliable under reseeding
(arXiv 2605.18229). Departures: smaller tasks that need no download, columns z-scored, and the dense probe is not chosen on the test rows. A larger
dictionary has more latents to choose from: `k latents beat k dimensions` is not by itself a virtue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from probes.base import dense_columns
from probes.evaluation.codes import directions, site_of
from probes.evaluation.texts import TextsConfig, read_texts
from probes.linear import DenseProbe
from probes.newton import fit_nested
from probes.problem import Features, Problem
from probes.selection import mean_difference, top_k
from probes.sweep.resampling import resampled_metrics
from probes.validation import METRICS, Fold, group_holdout
from probes.validation.estimates import document_draws
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs, Measure, Number, Outcome, Quantity
from sae.evaluation.bootstrap import of_draws
from sae.evaluation.figures import Axis, Figure, Rule, Series

SHOWN = ("accuracy", "auc")
LEAST_ROWS = 20
"""Rows of each class that either side of a split must have."""


@dataclass(frozen=True, kw_only=True)
class SparseProbingConfig:
    """Settings of `sparse_probing`."""

    texts: TextsConfig = field(default_factory=TextsConfig)
    """Which tasks, of which texts."""
    ks: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of columns."""
    test_share: float = 0.3
    """Share of documents that probes are tested on."""
    n_rows: int = 2000
    """Training rows of a question at most."""
    n_bootstrap: int = 500
    """Draws of documents behind each interval."""
    C: float = 1.0
    """Inverse strength of the L2 penalty."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
            raise ConfigError(f"ks must be one or more different numbers of at least 1, got {list(self.ks)} (SparseProbingConfig)")
        if not 0 < self.test_share < 1 or self.n_rows < 2 * LEAST_ROWS or self.n_bootstrap < 100 or not self.C > 0:
            given = f"test_share={self.test_share}, n_rows={self.n_rows}, n_bootstrap={self.n_bootstrap}, C={self.C}"
            raise ConfigError(
                f"test_share must be inside (0, 1), n_rows at least {2 * LEAST_ROWS}, n_bootstrap at least 100, C positive, got {given} "
                "(SparseProbingConfig)"
            )


class Question(NamedTuple):
    """One class of a problem against the others: rows of a matrix, balanced on either side."""

    name: str
    """The task, and the class where there are several."""
    task: str
    """The task."""
    rows: Int[np.ndarray, " n"]
    """Rows of the matrices."""
    y: Int[np.ndarray, " n"]
    """1 for the class, 0 for others."""
    groups: Int[np.ndarray, " n"]
    """Document of each row."""
    fold: Fold
    """Places in `rows` to fit on and to test on."""


def questions(problem: Problem, *, test_share: float, n_rows: int, seed: int) -> list[Question]:
    """The class of a problem of two classes, or every class of several, each against the others.

    Documents are split once for the problem; a question for which either side has fewer than 20 rows of a class is left out.
    """
    found = []
    fold = group_holdout(problem.y, problem.groups, test_share=test_share, seed=seed)
    positive = [1] if len(problem.classes) == 2 else range(len(problem.classes))
    for label in positive:
        y = (problem.y == label).astype(np.int64)
        generator = np.random.default_rng([seed, label])
        sides = [_balanced(side, y, limit, generator) for side, limit in ((fold.train, n_rows), (fold.test, n_rows))]
        if min(len(side) for side in sides) < 2 * LEAST_ROWS:
            continue
        own = np.concatenate(sides)
        parts = Fold(np.arange(len(sides[0])), np.arange(len(sides[0]), len(own)))
        name = problem.name if len(problem.classes) == 2 else f"{problem.name}: {problem.classes[label]}"
        found.append(Question(name, problem.name, problem.rows[own], y[own], problem.groups[own], parts))
    return found


def _balanced(rows: np.ndarray, y: np.ndarray, limit: int, generator: np.random.Generator) -> np.ndarray:
    """As many rows of either class, at most `limit` together."""
    n = min(int((y[rows] == 1).sum()), int((y[rows] == 0).sum()), limit // 2)
    return np.sort(np.concatenate([generator.permutation(rows[y[rows] == label])[:n] for label in (0, 1)]))


class Draws(NamedTuple):
    """Accuracy and AUC of a probe on the test rows, then in draws of documents."""

    values: Float[np.ndarray, "draws 2"]
    """The first row is of all documents."""
    n_documents: int
    """Documents of the test rows."""


def sparse_scores(X: Features, question: Question, *, ks: Sequence[int], C: float, n_bootstrap: int, seed: int) -> list[Draws]:
    """Scores of the probe on the best k columns of X, dense or CSR, for every k; fewer where X has fewer."""
    own, (train, test), y = X[question.rows], question.fold, question.y
    most = min(max(ks), own.shape[1])
    columns = dense_columns(own, top_k(mean_difference(own[train], y[train]), most)).T.astype(np.float64)
    wanted = [min(k, most) for k in ks]
    fits = fit_nested(np.ascontiguousarray(columns[:, train]), y[train], ks=wanted, C=C, class_weight=None)
    tested = columns[:, test]
    return [_scored(fit.coef @ tested[: len(fit.coef)] + fit.intercept, question, n_bootstrap, seed) for fit in fits]


def dense_scores(X: Float[np.ndarray, "n d"], question: Question, *, C: float, n_bootstrap: int, seed: int) -> Draws:
    """Scores of the probe on all columns."""
    own, (train, test), y = X[question.rows], question.fold, question.y
    probe = DenseProbe(C=C, class_weight=None).fit(own[train], y[train])
    return _scored(probe.decision_function(own[test]), question, n_bootstrap, seed)


def _scored(decision: np.ndarray, question: Question, n_bootstrap: int, seed: int) -> Draws:
    test = question.fold.test
    documents, document = np.unique(question.groups[test], return_inverse=True)
    weights = np.ascontiguousarray(document_draws(len(documents), n_bootstrap, seed).T, dtype=np.float64)
    fold = np.zeros(len(test), dtype=np.int64)
    metrics = resampled_metrics(fold, np.asarray(decision, dtype=np.float64), question.y[test] == 1, document.reshape(-1), weights)
    return Draws(metrics[:, [METRICS.index(name) for name in SHOWN]], len(documents))


class Scores(NamedTuple):
    """Draws of every question: of k latents, of k dimensions for each k, and of all dimensions."""

    question: Question
    latents: list[Draws]
    dimensions: list[Draws]
    dense: Draws


def probing(inputs: Inputs, config: SparseProbingConfig) -> Outcome:
    """Scores of latents, dimensions and all dimensions, averaged over tasks, and task by task."""
    site = site_of(inputs)
    directions(inputs.chosen("dictionary"))
    texts, key = read_texts(inputs, site, config.texts)
    acts, codes = texts.pooled(), texts.codes(inputs, key)
    scores = []
    for i, problem in enumerate(texts.problems):
        for question in questions(problem, test_share=config.test_share, n_rows=config.n_rows, seed=inputs.seed):
            options = {"C": config.C, "n_bootstrap": config.n_bootstrap, "seed": inputs.seed + i}
            latents = sparse_scores(codes, question, ks=config.ks, **options)
            dimensions = sparse_scores(acts, question, ks=config.ks, **options)
            scores.append(Scores(question, latents, dimensions, dense_scores(acts, question, **options)))
    if not scores:
        raise ConfigError(
            f"tasks must leave a question with {LEAST_ROWS} rows of each class to test on, got none of {list(config.texts.tasks)}"
        )
    numbers = [*_means(scores, config.ks), *_by_task(scores, config.ks)]
    notes = [
        f"{len({each.question.task for each in scores})} tasks, {len(scores)} questions at {site.name}; always saying one class is right "
        "half of the time.",
        *_sizes(scores),
    ]
    return Outcome(tuple(numbers), (_figure(scores, config.ks),), tuple(notes))


def _average(scores: Sequence[Scores], draws: Sequence[Draws]) -> tuple[Float[np.ndarray, "draws 2"], int]:
    """Mean over tasks of the mean over their questions, draw by draw, and the smallest number of documents."""
    tasks = list(dict.fromkeys(each.question.task for each in scores))
    by_task = [np.mean([d.values for each, d in zip(scores, draws, strict=True) if each.question.task == task], axis=0) for task in tasks]
    return np.mean(by_task, axis=0), min(d.n_documents for d in draws)


def _number(name: str, values: np.ndarray, n_documents: int, subject: str, note: str = "") -> Number:
    ends = of_draws(torch.from_numpy(values[1:]), n_documents)
    low, high = (None, None) if ends is None else ends
    return Number(name, float(values[0]), subject, note=note, low=low, high=high)


def _means(scores: Sequence[Scores], ks: Sequence[int]) -> list[Number]:
    numbers = []
    for i, k in enumerate(ks):
        latents, n = _average(scores, [each.latents[i] for each in scores])
        dimensions, _ = _average(scores, [each.dimensions[i] for each in scores])
        for m, metric in enumerate(("accuracy", "AUC")):
            numbers.append(_number(f"{metric} of latents", latents[:, m], n, f"k = {k}"))
            numbers.append(_number(f"{metric} of dimensions", dimensions[:, m], n, f"k = {k}"))
        numbers.append(_number("gain over dimensions", (latents - dimensions)[:, 0], n, f"k = {k}"))
    dense, n = _average(scores, [each.dense for each in scores])
    return [*numbers, *(_number(f"{metric} of all dimensions", dense[:, m], n, "") for m, metric in enumerate(("accuracy", "AUC")))]


def _by_task(scores: Sequence[Scores], ks: Sequence[int]) -> list[Number]:
    numbers = []
    for task in dict.fromkeys(each.question.task for each in scores):
        own = [each for each in scores if each.question.task == task]
        for i, k in enumerate(ks):
            latents, n = _average(own, [each.latents[i] for each in own])
            dimensions, dense = (_average(own, draws)[0] for draws in ([each.dimensions[i] for each in own], [each.dense for each in own]))
            note = f"AUC {latents[0, 1]:.3f}; accuracy of {k} dimensions {dimensions[0, 0]:.3f}, of all {dense[0, 0]:.3f}"
            numbers.append(_number("accuracy by task", latents[:, 0], n, f"{task}, k = {k}", note))
    return numbers


def _sizes(scores: Sequence[Scores]) -> list[str]:
    parts = [f"{each.question.name} {len(each.question.fold.train)} and {len(each.question.fold.test)}" for each in scores]
    return ["Rows to fit on and to test on: " + "; ".join(parts) + "."]


def _figure(scores: Sequence[Scores], ks: Sequence[int]) -> Figure:
    def line(name: str, draws: Sequence[Sequence[Draws]], role: str) -> Series:
        means = [_average(scores, each) for each in draws]
        ends = [of_draws(torch.from_numpy(values[1:, 0]), n) for values, n in means]
        low, high = (tuple(float(end[side]) for end in ends if end is not None) for side in (0, 1))
        band = (low, high) if len(low) == len(ks) else ((), ())
        return Series(name, tuple(ks), tuple(float(values[0, 0]) for values, _ in means), *band, role=role)  # type: ignore[arg-type]

    series = (
        line("dimensions", [[each.dimensions[i] for each in scores] for i in range(len(ks))], "null"),
        line("latents", [[each.latents[i] for each in scores] for i in range(len(ks))], "result"),
    )
    dense = float(_average(scores, [each.dense for each in scores])[0][0, 0])
    rules = (Rule("y", dense, "all dimensions"), Rule("y", 0.5, "chance"))
    return Figure("Accuracy of sparse probes", Axis("columns k", scale="log"), Axis("accuracy"), series, rules, "Mean over tasks.")


SAEBENCH = "Karvonen et al. 2025, arXiv 2503.09532 (SAEBench); Gurnee et al. 2023, arXiv 2305.01610"
RULE = "logistic regression (L2, C = 1) on the k columns with the largest |mean of the class - mean of others| on training rows"
QUANTITIES = (
    Quantity(
        "accuracy of latents",
        "Share of test rows that a probe on k latents gets right, mean over tasks. 1/2: chance; near that of all dimensions: the concept has latents.",
        SAEBENCH,
        formula=f"right / rows; {RULE}",
    ),
    Quantity(
        "AUC of latents", "Probability that such a probe ranks a row of the class above another; 1/2: chance.", SAEBENCH, formula=RULE
    ),
    Quantity("accuracy of dimensions", "The same for k dimensions of the activations: what needs no dictionary.", SAEBENCH, formula=RULE),
    Quantity("AUC of dimensions", "The same for k dimensions of the activations.", SAEBENCH, formula=RULE),
    Quantity(
        "gain over dimensions",
        "Accuracy of k latents less that of k dimensions, on the same rows. Above 0: latents stand for concepts more than dimensions do; a wider "
        "dictionary has more to choose from.",
        SAEBENCH,
        formula="accuracy of k latents - accuracy of k dimensions",
    ),
    Quantity(
        "accuracy of all dimensions", "Accuracy of a probe on all dimensions: what there is to be found.", SAEBENCH, formula="L2, C = 1"
    ),
    Quantity("AUC of all dimensions", "AUC of a probe on all dimensions.", SAEBENCH, formula="L2, C = 1"),
    Quantity(
        "accuracy by task",
        "Accuracy of k latents on one task; of several classes the mean over one question for each.",
        SAEBENCH,
        formula=RULE,
    ),
)
SPARSE_PROBING = Measure(
    name="sparse_probing",
    title="Sparse probing",
    text=(
        "How well labels can be read from the k latents whose means differ most between the classes, on tasks that need no download: the era of "
        "speeches, prose or code, the package of a docstring, kinds of tokens and of nouns, what a sentence is about, letters of tokens. Beside it stand "
        "k dimensions of the activations, all of them, and chance, which is 1/2: classes are balanced. Documents are split, and drawn again for the intervals."
    ),
    needs=("dictionary", "model"),
    quantities=QUANTITIES,
    compute=probing,
    config=SparseProbingConfig(),
    quick=SparseProbingConfig(
        texts=TextsConfig(tasks=("era", "noun_class", "leading_capital"), n_per_speech=1, n_tokens=800, n_nouns=60),
        ks=(1, 5),
        n_bootstrap=200,
    ),
)
