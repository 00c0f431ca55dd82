"""All cells of one matrix: it is read once, and every problem that shares its rows shares the sums and the dense fits.

columns are ranked on the training rows of each fit, the best are z-scored and fitted there, and the fit is asked about its other rows
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from probes.base import Logistic
from probes.newton import fit_nested
from probes.problem import Features
from probes.selection import random_scores, top_k
from probes.sweep.config import DENSE, RANDOM, SweepCell, SweepConfig
from probes.sweep.dense import fit_dense
from probes.sweep.plan import Fit, Plan
from probes.sweep.ranks import scores
from probes.sweep.scoring import Answers, Scorer
from sae.errors import ConfigError

N_DENSE_NULLS = 1


class _Columns:
    """Columns of a matrix at some rows, as float64 rows of an array."""

    def __init__(self, X: Features):
        self._sparse = sparse.issparse(X)
        self._by_column = X.tocsc() if self._sparse else np.ascontiguousarray(X.T)

    def take(self, support: np.ndarray) -> np.ndarray:
        """[k, n]"""
        return self._by_column[:, support].toarray().T if self._sparse else self._by_column[support]


def matrix_cells(name: str, X: Features, plans: Sequence[Plan], config: SweepConfig) -> list[list[SweepCell]]:
    """The cells of every plan on the matrix `name`, in the order of the plans.

    Raises ConfigError naming the matrix for a k above its width, rows it does not have, or values that are not finite.
    """
    _check(name, X, plans, config)
    found: dict[int, list[SweepCell]] = {}
    groups: dict[bytes, list[int]] = {}
    for i, plan in enumerate(plans):
        groups.setdefault(plan.problem.rows.tobytes(), []).append(i)
    for members in groups.values():
        rows = plans[members[0]].problem.rows
        whole = len(rows) == X.shape[0] and bool((rows == np.arange(len(rows))).all())
        shared = _shared_cells(name, X if whole else X[rows], [plans[i] for i in members], config)
        found.update(zip(members, shared, strict=True))
    return [found[i] for i in range(len(plans))]


def _shared_cells(name: str, X: Features, plans: Sequence[Plan], config: SweepConfig) -> list[list[SweepCell]]:
    """The cells of plans whose problems have these rows, all of them."""
    fits = [fit for plan in plans for fit in plan.fits]
    by_ranking = scores(X, fits, config.rankings, seed=config.seed)
    columns, k_max, d = _Columns(X), max(config.ks), X.shape[1]
    cells: list[list[SweepCell]] = [[] for _ in plans]
    scorers = [Scorer(plan, config) for plan in plans]
    for ranking in config.rankings:
        position = 0
        for plan, scorer, found in zip(plans, scorers, cells, strict=True):
            supports = [top_k(score, k_max) for score in by_ranking[ranking][position : position + len(plan.fits)]]
            position += len(plan.fits)
            found += _sparse_cells((name, ranking, d), columns, plan, scorer, supports, config)
    draws = [top_k(random_scores(d, seed=config.seed + i), k_max) for i in range(config.n_random)]
    drawn = [(support, columns.take(support)) for support in draws]
    for plan, scorer, found in zip(plans, scorers, cells, strict=True):
        if drawn:
            answers = [_nested_answers(values, plan.test, config) for _, values in drawn]
            for i, k in enumerate(config.ks):
                score = scorer.test([draw[i] for draw in answers], [])
                found.append(SweepCell(plan.problem.name, name, RANDOM, k, d, {}, score, ()))
    if config.dense:
        for found, cell in zip(cells, _dense_cells(name, X, plans, scorers, config), strict=True):
            found.append(cell)
    return cells


def _sparse_cells(
    labels: tuple[str, str, int], columns: _Columns, plan: Plan, scorer: Scorer, supports: list[np.ndarray], config: SweepConfig
) -> list[SweepCell]:
    name, ranking, d = labels
    answers = [_nested_answers(columns.take(support), fit, config) for support, fit in zip(supports, plan.fits, strict=True)]
    n_validation = len(plan.validation)
    cells = []
    for i, k in enumerate(config.ks):
        test, validation, nulls = answers[0][i], answers[1 : 1 + n_validation], answers[1 + n_validation :]
        score = scorer.test([test], [each[i] for each in nulls])
        chosen = tuple(supports[0][:k].tolist())
        valid = scorer.validation([each[i] for each in validation])
        cells.append(SweepCell(plan.problem.name, name, ranking, k, d, valid, score, chosen))
    return cells


def _nested_answers(values: np.ndarray, fit: Fit, config: SweepConfig) -> list[Answers]:
    """What the probes with the first k columns, for every k, say of the rows they have not seen. values [k_max, n]."""
    order = np.argsort(config.ks)
    fitted: list[Logistic] = fit_nested(values[:, fit.train], fit.y[fit.train], ks=config.ks, C=config.C)
    unseen = values[:, fit.test].astype(np.float64)
    answers: dict[int, Answers] = {}
    for i in order:
        k, rule = config.ks[i], fitted[i]
        answers[int(i)] = Answers(fit.test, rule.coef @ unseen[:k] + rule.intercept)
    return [answers[i] for i in range(len(config.ks))]


def _dense_cells(name: str, X: Features, plans: Sequence[Plan], scorers: Sequence[Scorer], config: SweepConfig) -> list[SweepCell]:
    fits = [[plan.test, *plan.validation, *plan.nulls[:N_DENSE_NULLS]] for plan in plans]
    flat = [fit for each in fits for fit in each]
    decisions = fit_dense(X, flat, C=config.C)
    cells, position = [], 0
    for plan, scorer, own in zip(plans, scorers, fits, strict=True):
        answers = [Answers(fit.test, decisions[fit.test, position + i]) for i, fit in enumerate(own)]
        position += len(own)
        n = 1 + len(plan.validation)
        score, valid = scorer.test(answers[:1], answers[n:]), scorer.validation(answers[1:n])
        cells.append(SweepCell(plan.problem.name, name, DENSE, X.shape[1], X.shape[1], valid, score, ()))
    return cells


def _check(name: str, X: Features, plans: Sequence[Plan], config: SweepConfig) -> None:
    if max(config.ks) > X.shape[1]:
        raise ConfigError(
            f"ks must be in 1..d={X.shape[1]}, the columns of matrix {name!r}, got {max(config.ks)}: leave that k out (sweep)"
        )
    for plan in plans:
        last = int(plan.problem.rows.max())
        if last >= X.shape[0]:
            raise ConfigError(
                f"rows must be in 0..{X.shape[0] - 1}, the rows of matrix {name!r}, got {last} (problem {plan.problem.name!r}): "
                "the problem was made for another source"
            )
    values = X.data if sparse.issparse(X) else X
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ConfigError(f"matrix {name!r} must be finite, got {bad} entries that are not: leave those rows out, or capture again (sweep)")
