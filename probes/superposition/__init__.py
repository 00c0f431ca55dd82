"""Whether a feature has a neuron of its own or is spread over many: curves over k, pruning, rotations, and what single neurons do."""

from probes.superposition.basis import BasisControl, basis_control, haar_rotation
from probes.superposition.curves import KCurve, SingleColumns, k_curve, single_columns
from probes.superposition.neurons import (
    AblationEffect,
    AblationRow,
    TokenClasses,
    WeightStatistics,
    ablation_effect,
    token_classes,
    weight_statistics,
)
from probes.superposition.pruning import PruningCurve, PruningRound, prune

__all__ = [
    "AblationEffect",
    "AblationRow",
    "BasisControl",
    "KCurve",
    "PruningCurve",
    "PruningRound",
    "SingleColumns",
    "TokenClasses",
    "WeightStatistics",
    "ablation_effect",
    "basis_control",
    "haar_rotation",
    "k_curve",
    "prune",
    "single_columns",
    "token_classes",
    "weight_statistics",
]
