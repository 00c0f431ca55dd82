"""Which coordinates tell classes apart, or follow a number: one score per column, and the k best.

    scores = rank(X, y, ranking="l1_path", filter_size=512)
    support = top_k(scores, 8)

Gurnee, Nanda, Pauly, Harvey, Troitskii and Bertsimas, "Finding Neurons in a Haystack", 2023, arXiv 2305.01610, section 3. Closed-form scores
are in `differences`, nearest-neighbour ones in `information`, those of a joint fit in `fitted`. Row weights count rows; a sparse matrix
stays sparse; ties go to the lowest index.
"""

from probes.selection.columns import Labels, Matrix, Moments, Scores, ZScores, class_weights, moments, z_scores
from probes.selection.differences import (
    correlation,
    f_statistic,
    mean_difference,
    pooled_t,
    regression_f,
    standardized_difference,
    welch_t,
)
from probes.selection.fitted import adaptive_thresholding, l1_logistic, l1_path, linear_svm
from probes.selection.information import mutual_information, mutual_information_number
from probes.selection.ranking import (
    MANY_CLASSES,
    NUMBER_RANKINGS,
    RANKINGS,
    SEEDED,
    NumberRanking,
    Ranking,
    random_scores,
    rank,
    rank_number,
    top_k,
)

__all__ = [
    "MANY_CLASSES",
    "NUMBER_RANKINGS",
    "RANKINGS",
    "SEEDED",
    "Labels",
    "Matrix",
    "Moments",
    "NumberRanking",
    "Ranking",
    "Scores",
    "ZScores",
    "adaptive_thresholding",
    "class_weights",
    "correlation",
    "f_statistic",
    "l1_logistic",
    "l1_path",
    "linear_svm",
    "mean_difference",
    "moments",
    "mutual_information",
    "mutual_information_number",
    "pooled_t",
    "random_scores",
    "rank",
    "rank_number",
    "regression_f",
    "standardized_difference",
    "top_k",
    "welch_t",
    "z_scores",
]
