"""Concept directions: readers that find a unit vector for a concept, what else the papers add up, and what their numbers are worth.

labelled    mean difference, shrunk discriminant, logistic, random            X [n, d] and labels
paired      principal axis (RepE), k-means                                     contrast pairs
incontext   in-context vectors over layers, and their norm-keeping update      contrast pairs
filters     the best single unit, and combinations of units (Net2Vec)          units and a mask
shift       concepts before and after fine-tuning                              the same samples twice
idealwords  one vector per value of a factor                                   a table of embeddings
truth       where a wrong answer can be read: layer x token position           activations per cell
compare, transfer                                                              readers against each other, across data sets, with controls
"""

from probes.directions.answers import AnswerWindow, answer_positions, locate_answer, position_activations
from probes.directions.base import DirectionReader, LabelledRows, contrast_pairs, labelled_rows
from probes.directions.compare import ComparisonConfig, ReaderComparison, Stability, compare_readers, direction_stability
from probes.directions.filters import FilterCombination, FilterCurve, SingleFilter, filter_curve
from probes.directions.idealwords import IdealWords, IdealWordsReport, ideal_words_report
from probes.directions.incontext import InContextVector, combine_vectors, norm_keeping_update
from probes.directions.labelled import LDADirection, LogisticDirection, MeanDifferenceDirection, RandomDirection
from probes.directions.paired import KMeansDirection, PCADirection, principal_axis
from probes.directions.scoring import expected_cosine
from probes.directions.shift import ConceptShift, ConceptShiftReport, concept_shift_report
from probes.directions.transfer import Transfer, transfer
from probes.directions.truth import TruthfulnessConfig, TruthfulnessMap, truthfulness_map

__all__ = [
    "AnswerWindow",
    "ComparisonConfig",
    "ConceptShift",
    "ConceptShiftReport",
    "DirectionReader",
    "FilterCombination",
    "FilterCurve",
    "IdealWords",
    "IdealWordsReport",
    "InContextVector",
    "KMeansDirection",
    "LDADirection",
    "LabelledRows",
    "LogisticDirection",
    "MeanDifferenceDirection",
    "PCADirection",
    "RandomDirection",
    "ReaderComparison",
    "SingleFilter",
    "Stability",
    "Transfer",
    "TruthfulnessConfig",
    "TruthfulnessMap",
    "answer_positions",
    "combine_vectors",
    "compare_readers",
    "concept_shift_report",
    "contrast_pairs",
    "direction_stability",
    "expected_cosine",
    "filter_curve",
    "ideal_words_report",
    "labelled_rows",
    "locate_answer",
    "norm_keeping_update",
    "position_activations",
    "principal_axis",
    "transfer",
    "truthfulness_map",
]
