"""From decisions on unseen rows to scores with intervals and nulls, by the definitions of `probes.validation`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from probes.sweep.config import SweepConfig
from probes.sweep.plan import Plan
from probes.validation import METRICS, ProbeScore
from probes.validation.binary import _metrics
from probes.validation.estimates import document_draws, estimates
from probes.validation.fits import HeldOut


class Answers(NamedTuple):
    """What a probe said of rows it has not seen."""

    rows: np.ndarray
    """Row numbers, in the problem."""
    decision: np.ndarray
    """Log-odds of class 1."""


def _held_out(parts: Sequence[Answers]) -> HeldOut:
    decision = np.concatenate([part.decision for part in parts])
    return HeldOut(
        np.concatenate([part.rows for part in parts]),
        np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts]),
        np.stack([decision, decision > 0], axis=1),
    )


def _once(parts: Sequence[Answers], y: np.ndarray) -> np.ndarray:
    """Every metric, every document counting once."""
    found = _held_out(parts)
    return _metrics(found, y, np.zeros(len(found.rows), np.int64), np.ones((1, 1), np.int32))[0]


def validation_scores(plan: Plan, answers: Sequence[Answers]) -> dict[str, float]:
    """The metrics over all validation folds, one entry of `answers` per fold."""
    return dict(zip(METRICS, _once(answers, plan.test.y).tolist(), strict=True))


def probe_score(plan: Plan, draws: Sequence[Answers], nulls: Sequence[Answers], config: SweepConfig) -> ProbeScore:
    """The scores on the test documents, averaged over `draws` (one but for random coordinates), and those of the nulls, one per shuffle."""
    y, rows = plan.test.y, plan.test.test
    documents, document = np.unique(plan.problem.groups[rows], return_inverse=True)
    weights = document_draws(len(documents), config.n_bootstrap, config.seed)
    found = np.mean([_metrics(_held_out([answers]), y, document, weights) for answers in draws], axis=0)
    null = np.array([_once([answers], fit.y) for answers, fit in zip(nulls, plan.nulls, strict=False)]).reshape(-1, len(METRICS))
    return ProbeScore(
        **estimates(METRICS, found, null),
        n_train=len(plan.test.train),
        n_test=len(rows),
        n_groups=len(documents),
        positive_share=float(np.mean(y[rows])),
        n_bootstrap=config.n_bootstrap,
        n_shuffles=len(null),
    )
