"""How alike two representations of the same stimuli are, each measure with what chance gives.

CKA (Kornblith et al. 2019; Song et al. 2012), CKNNA and mutual nearest neighbours (Huh et al. 2024), SVCCA (Raghu et al. 2017) and PWCCA
(Morcos et al. 2018), RSA (Kriegeskorte et al. 2008), Procrustes and shape distances (Williams et al. 2021) and their estimation from few
stimuli (Pospisil et al. 2023), relative representations (Moschella et al. 2022). Every measure `M` goes with
`compare_representations(M, x, y, ...)`, its permutation null, and `compare_layers(M, ...)`, all pairs of layers and the null of their largest.
"""

from sae.geometry.representations.cca import (
    Svcca,
    canonical_correlations,
    components,
    independent_svcca_mean,
    kept_components,
    pwcca,
    svcca,
)
from sae.geometry.representations.cka import Cka, RbfCka, cka, independent_cka_mean, minibatch_cka, rbf_cka
from sae.geometry.representations.cknna import Cknna, cknna
from sae.geometry.representations.layers import LayerComparison, compare_layers, layer_matrix
from sae.geometry.representations.moments import (
    NuclearNormEstimate,
    cross_covariance_moments,
    nuclear_norm_estimate,
    shape_similarity_estimate,
)
from sae.geometry.representations.neighbours import (
    CycleNeighbours,
    MutualNeighbours,
    clamp_outliers,
    compare_label_overlap,
    cycle_neighbours,
    cycle_neighbours_mean,
    label_overlap,
    mutual_neighbours,
    mutual_neighbours_mean,
    nearest_neighbours,
    neighbour_overlaps,
)
from sae.geometry.representations.procrustes import (
    Alignment,
    HeldOutProcrustes,
    PermutationSimilarity,
    ProcrustesSimilarity,
    independent_procrustes_mean,
    permutation_alignment,
    permutation_distance,
    procrustes_alignment,
    procrustes_similarity,
    shape_distance,
)
from sae.geometry.representations.relative import (
    RelativeLikeness,
    Stitching,
    choose_anchors,
    compare_stitching,
    relative_likeness,
    relative_product,
    relative_representation,
    zero_shot_stitching,
)
from sae.geometry.representations.rsa import (
    Rsa,
    average_ranks,
    crossvalidated_rdm,
    rdm,
    rdm_similarity,
    residual_covariance,
    sample_stimuli,
    square_form,
    upper_triangle,
)
from sae.geometry.representations.stimuli import RepresentationMeasure, compare_representations, stimulus_orders

__all__ = [
    "Alignment",
    "Cka",
    "Cknna",
    "CycleNeighbours",
    "HeldOutProcrustes",
    "LayerComparison",
    "MutualNeighbours",
    "NuclearNormEstimate",
    "PermutationSimilarity",
    "ProcrustesSimilarity",
    "RbfCka",
    "RelativeLikeness",
    "RepresentationMeasure",
    "Rsa",
    "Stitching",
    "Svcca",
    "average_ranks",
    "canonical_correlations",
    "choose_anchors",
    "cka",
    "cknna",
    "clamp_outliers",
    "compare_label_overlap",
    "compare_layers",
    "compare_representations",
    "compare_stitching",
    "components",
    "cross_covariance_moments",
    "crossvalidated_rdm",
    "cycle_neighbours",
    "cycle_neighbours_mean",
    "independent_cka_mean",
    "independent_procrustes_mean",
    "independent_svcca_mean",
    "kept_components",
    "label_overlap",
    "layer_matrix",
    "minibatch_cka",
    "mutual_neighbours",
    "mutual_neighbours_mean",
    "nearest_neighbours",
    "neighbour_overlaps",
    "nuclear_norm_estimate",
    "permutation_alignment",
    "permutation_distance",
    "procrustes_alignment",
    "procrustes_similarity",
    "pwcca",
    "rbf_cka",
    "rdm",
    "rdm_similarity",
    "relative_likeness",
    "relative_product",
    "relative_representation",
    "residual_covariance",
    "sample_stimuli",
    "shape_distance",
    "shape_similarity_estimate",
    "square_form",
    "stimulus_orders",
    "svcca",
    "upper_triangle",
    "zero_shot_stitching",
]
