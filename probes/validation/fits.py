"""Fitting on the training rows of every fold and asking about the rows held out."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from probes.problem import Features
from probes.validation.splits import Fold, check_fold
from sae.errors import ConfigError, SaeError


class HeldOut(NamedTuple):
    """What the folds' probes said of the rows they had not seen, fold after fold."""

    rows: np.ndarray
    """Row numbers."""
    fold: np.ndarray
    """Number of the fold of each."""
    answers: np.ndarray
    """What the probe said of each: the result of `ask`."""


def held_out(estimator: Any, X: Features, y: np.ndarray, folds: Sequence[Fold], ask: Callable[[Any, Any], np.ndarray]) -> HeldOut:
    """Clones of `estimator` fitted to each fold's training rows, and `ask(probe, X[test])` of each. SaeError for a fit that does not
    converge, or an answer that is not finite."""
    answers = []
    for number, fold in enumerate(folds):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                probe: Any = clone(estimator)
                probe.fit(X[fold.train], y[fold.train])
            except ConvergenceWarning as warning:
                raise SaeError(
                    f"{type(estimator).__name__} did not converge on fold {number} ({len(fold.train)} rows): {warning}"
                ) from warning
        answer = np.asarray(ask(probe, X[fold.test]), dtype=np.float64)
        if not np.isfinite(answer).all():
            raise SaeError(
                f"{type(estimator).__name__} answered with {int((~np.isfinite(answer)).sum())} numbers that are not finite on fold {number}"
            )
        answers.append(answer)
    return HeldOut(
        np.concatenate([fold.test for fold in folds]),
        np.repeat(np.arange(len(folds)), [len(fold.test) for fold in folds]),
        np.concatenate(answers),
    )


def decisions(probe: Any, X: Any) -> np.ndarray:
    """What orders the rows: `decision_function`, else the probabilities: [n] for two classes or [n, classes].

    Raises ConfigError for a probe that has neither: ranking scores cannot be had from its predictions.
    """
    if hasattr(probe, "decision_function"):
        return np.asarray(probe.decision_function(X))
    if not hasattr(probe, "predict_proba"):
        raise ConfigError(
            f"estimator must have decision_function or predict_proba, {type(probe).__name__} has neither: predicted classes cannot be ranked"
        )
    probability = np.asarray(probe.predict_proba(X))
    return probability[:, 1] if probability.shape[1] == 2 else probability


def check_matrix(X: Features, y: np.ndarray) -> None:
    """ConfigError unless X has a row per label and is finite."""
    if X.shape[0] != len(y):
        raise ConfigError(f"X must have one row per label, got {X.shape[0]} rows for {len(y)} labels")
    values = X.data if sparse.issparse(X) else X
    if not np.isfinite(values).all():
        raise ConfigError(f"X must be finite, got {int((~np.isfinite(values)).sum())} entries that are not: leave those rows out")


def check_folds(folds: Sequence[Fold], y: np.ndarray, groups: np.ndarray) -> None:
    """ConfigError unless there is a fold, every fold is sound, and no row is tested twice."""
    if not folds:
        raise ConfigError("folds must hold at least one fold, got none")
    for fold in folds:
        check_fold(fold, y, groups)
    tested = np.concatenate([fold.test for fold in folds])
    if len(np.unique(tested)) < len(tested):
        raise ConfigError(f"folds must test every row at most once, got {len(tested) - len(np.unique(tested))} rows more than once")


def tie_ends(fold: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether each of the sorted rows is the last of its fold with its value."""
    return np.r_[(np.diff(fold) != 0) | (np.diff(value) != 0), True]
