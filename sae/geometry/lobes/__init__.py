"""Lobes: latents that fire together, and whether they also lie together.

Li et al. 2024 (arXiv 2410.19750), "The Geometry of Concepts: Sparse Autoencoder Feature Structure". Affinities of co-activation counts ->
spectral clusters (`spectral`) -> agreement with clusters of the atoms by cosine (`agreement`), a classifier from atoms to lobes (`control`),
neighbours in the same lobe and what text a lobe answers to (`locality`).
"""

from sae.geometry.lobes.agreement import (
    LobeSweep,
    compare_agreement,
    compare_agreement_with_geometry,
    frequency_strata,
    sweep_agreement,
)
from sae.geometry.lobes.control import compare_predictability
from sae.geometry.lobes.locality import compare_locality, lobe_activity, lobes_of_kinds, winning_lobes
from sae.geometry.lobes.spectral import (
    NO_LOBE,
    Lobes,
    coactivation_graph,
    cosine_affinity,
    cosine_graph,
    dense_affinity,
    neighbour_graph,
    spectral_lobes,
    spectral_lobes_of_graph,
)

__all__ = [
    "NO_LOBE", "LobeSweep", "Lobes", "coactivation_graph", "compare_agreement", "compare_agreement_with_geometry", "compare_locality",
    "compare_predictability", "cosine_affinity", "cosine_graph", "dense_affinity", "frequency_strata", "lobe_activity", "lobes_of_kinds",
    "neighbour_graph", "spectral_lobes", "spectral_lobes_of_graph", "sweep_agreement", "winning_lobes",
]  # fmt: skip
