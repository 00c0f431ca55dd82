"""Scores of a probe on documents it has not seen, each with an interval over documents and what shuffled labels give.

    folds:      documents are split, never rows; a document is on one side of every fold
    scores:     every row is predicted once, by the probe whose fold held it out; the threshold is the probe's own
    interval:   percentile bootstrap, documents drawn with replacement
    null:       the same protocol on shuffled labels, which stay together as they do within documents

`evaluate_probe` scores two classes, `evaluate_classifier` several, `evaluate_regressor` a number. The interval covers the choice of test
documents, not the refitting (Davison & Hinkley, Bootstrap Methods and their Application, 1997, chapter 5). Folds of a few dozen documents
leave the null wide, which is why its spread is given. Splitting rows instead of documents lets a probe recognise the document: with random
labels per document it scores near 1. Choosing columns before the split does the same.
"""

from probes.problem import Features
from probes.validation.binary import METRICS, ProbeScore, evaluate_probe, evaluate_probes
from probes.validation.classes import ClassScore, evaluate_classifier
from probes.validation.estimates import Estimate, Score
from probes.validation.numbers import NumberScore, evaluate_regressor
from probes.validation.splits import Fold, Groups, Labels, Split, group_folds, group_holdout, null_splits, shuffle_labels

__all__ = [
    "METRICS",
    "ClassScore",
    "Estimate",
    "Features",
    "Fold",
    "Groups",
    "Labels",
    "NumberScore",
    "ProbeScore",
    "Score",
    "Split",
    "evaluate_classifier",
    "evaluate_probe",
    "evaluate_probes",
    "evaluate_regressor",
    "group_folds",
    "group_holdout",
    "null_splits",
    "shuffle_labels",
]
