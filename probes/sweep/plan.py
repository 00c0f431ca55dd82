"""Which rows a problem is fitted to and scored on: test documents, validation folds of the rest, and shuffled labels.

all documents = train + test,      train = fold 1 + ... + fold F
validation  fit on train minus a fold, score that fold         what to choose a layer, a k or a method by
test        fit on train, score test                           what is reported; nothing is chosen by it
null        the same on shuffled labels                        what chance gives
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from probes.problem import Problem
from probes.sweep.config import SweepConfig
from probes.validation import Fold, group_folds, group_holdout, null_splits
from sae.errors import ConfigError
from sae.fingerprint import canonical, digest_tensors


class Fit(NamedTuple):
    """One fit: labels of the problem's rows, and the rows to fit and to score."""

    y: np.ndarray
    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """A binary problem with all its fits."""

    problem: Problem
    """Labels 0 and 1."""
    test: Fit
    """Fitted to all training documents."""
    validation: tuple[Fit, ...]
    """One for every fold."""
    nulls: tuple[Fit, ...]
    """As `test`, with shuffled labels."""

    @property
    def fits(self) -> list[Fit]:
        """Test first, then validation, then nulls."""
        return [self.test, *self.validation, *self.nulls]


def binary_problems(problem: Problem) -> list[Problem]:
    """The problem itself if it has two classes; of several classes, each against the others, named "problem: class".

    Raises ConfigError for a number to predict.
    """
    if problem.target == "number":
        raise ConfigError(
            f"a sweep takes problems with classes, problem {problem.name!r} asks for a number: compare it with a threshold to make two classes"
        )
    if problem.target == "binary":
        return [problem]
    return [
        Problem(f"{problem.name}: {name}", problem.rows, (problem.y == i).astype(np.int64), problem.groups, (f"not {name}", name))
        for i, name in enumerate(problem.classes)
    ]


def problem_digest(problem: Problem) -> str:
    """SHA-256 of the problem's name, classes, rows, labels and groups."""
    arrays = {"rows": problem.rows, "y": problem.y, "groups": problem.groups}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for name, array in arrays.items()}
    return digest_tensors({**tensors, canonical([problem.name, list(problem.classes)]): torch.zeros(0)})


def plan(problem: Problem, config: SweepConfig) -> Plan:
    """All fits of a binary problem. Raises ConfigError, naming the problem, when a split would leave a side without a class."""
    y, groups = problem.y.astype(np.int64), problem.groups
    try:
        holdout = group_holdout(y, groups, test_share=config.test_share, seed=config.seed)
        inner_y, inner_groups = y[holdout.train], groups[holdout.train]
        if config.n_folds == 1:
            folds = [group_holdout(inner_y, inner_groups, test_share=config.test_share, seed=config.seed)]
        else:
            folds = group_folds(inner_y, inner_groups, n_folds=config.n_folds, seed=config.seed)
        nulls = null_splits(y, groups, [holdout], n_shuffles=config.n_shuffles, seed=config.seed)
        for null in nulls:
            _check_classes(null.y, holdout)
    except ConfigError as error:
        counts = f"{int((y == 0).sum())} rows of {problem.classes[0]!r}, {int((y == 1).sum())} of {problem.classes[1]!r}"
        raise ConfigError(f"problem {problem.name!r} ({counts}) cannot be split: {error}") from error
    return Plan(
        problem,
        Fit(y, holdout.train, holdout.test),
        tuple(Fit(y, holdout.train[fold.train], holdout.train[fold.test]) for fold in folds),
        tuple(Fit(null.y.astype(np.int64), holdout.train, holdout.test) for null in nulls),
    )


def _check_classes(y: np.ndarray, fold: Fold) -> None:
    for side, rows in zip(fold._fields, fold, strict=True):
        if len(np.unique(y[rows])) < 2:
            raise ConfigError(f"shuffled labels leave one class only in {side}: give more documents of the rarer class, or n_shuffles=0")
