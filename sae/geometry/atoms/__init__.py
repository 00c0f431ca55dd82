"""Comparing the atoms and the codes of dictionaries, across seeds, sizes, layers and models.

Sharkey et al. 2022 and Huben et al. 2023 (2309.08600) for MMCS; Paulo & Belrose 2025 (2501.16615) for shared latents and stability; Lan et al. 2024
(2410.06981) for correlation of codes and universality; Li et al. 2015 (1511.07543) for convergent learning; Bricken et al. 2023 and O'Neill
et al. 2024 (2408.00657) for splitting and families; Leask et al. 2025 (2502.04878) for stitching. What runs dictionaries is in
sae.evaluation (`stitching`, `meta_dictionary`).
"""

from sae.geometry.atoms.assignment import Pairs, best_pairs, best_pairs_of_candidates, best_pairs_of_nearest, mutual_pairs
from sae.geometry.atoms.convergent import (
    Convergence,
    ConvergenceComparison,
    JointBlocks,
    SparsePrediction,
    compare_convergence,
    convergence,
    joint_blocks,
    sparse_prediction,
    unit_correlations,
)
from sae.geometry.atoms.correlation import (
    BestCorrelations,
    CodeMoments,
    MatchingGap,
    best_correlations,
    code_moments,
    latent_pairs,
    matching_gap,
)
from sae.geometry.atoms.families import CoFirings, Families, Family, FamilyConfig, block_ratio, co_firings, families, phi_and_lift
from sae.geometry.atoms.matching import (
    BestCosines,
    MatchComparison,
    SharedLatents,
    atom_pairs,
    best_cosines,
    compare_matching,
    joined_rows,
    mmcs,
    shared_latents,
)
from sae.geometry.atoms.null_dictionaries import NullKind, null_dictionary, random_rotation
from sae.geometry.atoms.shifted_codes import CodeComparison, compare_codes, shifted_tokens
from sae.geometry.atoms.splitting import PathConsistency, Splitting, composed, path_consistency, splitting
from sae.geometry.atoms.stability import StabilityByFrequency, similarity_of_rows, stability_by_frequency, stability_curve, wilson_interval
from sae.geometry.atoms.stitching import (
    LatentClasses,
    Latents,
    StitchingCurve,
    Swap,
    insertion_effects,
    latent_classes,
    latents,
    stitching_curve,
    stitching_plan,
    swap_groups,
)
from sae.geometry.atoms.universality import Universality, concept_pairs, top_tokens, universality

__all__ = [
    "BestCorrelations",
    "BestCosines",
    "CoFirings",
    "CodeComparison",
    "CodeMoments",
    "Convergence",
    "ConvergenceComparison",
    "Families",
    "Family",
    "FamilyConfig",
    "JointBlocks",
    "LatentClasses",
    "Latents",
    "MatchComparison",
    "MatchingGap",
    "NullKind",
    "Pairs",
    "PathConsistency",
    "SharedLatents",
    "SparsePrediction",
    "Splitting",
    "StabilityByFrequency",
    "StitchingCurve",
    "Swap",
    "Universality",
    "atom_pairs",
    "best_correlations",
    "best_cosines",
    "best_pairs",
    "best_pairs_of_candidates",
    "best_pairs_of_nearest",
    "block_ratio",
    "co_firings",
    "code_moments",
    "compare_codes",
    "compare_convergence",
    "compare_matching",
    "composed",
    "concept_pairs",
    "convergence",
    "families",
    "insertion_effects",
    "joined_rows",
    "joint_blocks",
    "latent_classes",
    "latent_pairs",
    "latents",
    "matching_gap",
    "mmcs",
    "mutual_pairs",
    "null_dictionary",
    "path_consistency",
    "phi_and_lift",
    "random_rotation",
    "shared_latents",
    "shifted_tokens",
    "similarity_of_rows",
    "sparse_prediction",
    "splitting",
    "stability_by_frequency",
    "stability_curve",
    "stitching_curve",
    "stitching_plan",
    "swap_groups",
    "top_tokens",
    "unit_correlations",
    "universality",
    "wilson_interval",
]
