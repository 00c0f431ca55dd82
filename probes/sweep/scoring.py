"""From decisions on unseen rows to scores with intervals and nulls, by the definitions of `probes.validation`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from probes.sweep.config import SweepConfig
from probes.sweep.plan import Plan
from probes.sweep.resampling import resampled_metrics
from probes.validation import METRICS, ProbeScore
from probes.validation.estimates import document_draws, estimates


class Answers(NamedTuple):
    """What a probe said of rows it has not seen."""

    rows: np.ndarray
    """Row numbers, in the problem."""
    decision: np.ndarray
    """Log-odds of class 1."""


class Scorer:
    """Scores of one plan's probes; what they share is worked out once."""

    def __init__(self, plan: Plan, config: SweepConfig):
        rows = plan.test.test
        documents, self._document = np.unique(plan.problem.groups[rows], return_inverse=True)
        draws = document_draws(len(documents), config.n_bootstrap, config.seed)
        self._weights = np.ascontiguousarray(draws.T, dtype=np.float64)
        self._plan, self._config, self._n_documents = plan, config, len(documents)

    def validation(self, answers: Sequence[Answers]) -> dict[str, float]:
        """The metrics over all validation folds, one entry of `answers` per fold."""
        return dict(zip(METRICS, _once(answers, self._plan.test.y).tolist(), strict=True))

    def test(self, draws: Sequence[Answers], nulls: Sequence[Answers]) -> ProbeScore:
        """The scores on the test documents, averaged over `draws` (one but for random coordinates), and those of the first shuffles."""
        plan = self._plan
        y, rows = plan.test.y, plan.test.test
        truth, fold = y[rows] == 1, np.zeros(len(rows), np.int64)
        found = np.mean([resampled_metrics(fold, answer.decision, truth, self._document, self._weights) for answer in draws], axis=0)
        null = np.array([_once([answers], fit.y) for answers, fit in zip(nulls, plan.nulls, strict=False)])
        return ProbeScore(
            **estimates(METRICS, found, null.reshape(-1, len(METRICS))),
            n_train=len(plan.test.train),
            n_test=len(rows),
            n_groups=self._n_documents,
            positive_share=float(np.mean(truth)),
            n_bootstrap=self._config.n_bootstrap,
            n_shuffles=len(null),
        )


def _once(parts: Sequence[Answers], y: np.ndarray) -> np.ndarray:
    """Every metric, every row counting once."""
    rows, decision = (np.concatenate(each) for each in zip(*parts, strict=True))
    fold = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    return resampled_metrics(fold, decision, y[rows] == 1, np.zeros(len(rows), np.int64), np.ones((1, 1)))[0]
