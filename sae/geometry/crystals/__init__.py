"""Crystals: parallelograms and trapezoids among task vectors and among the atoms of a dictionary.

After Li, Michaud, Baek, Engels, Sun & Tegmark 2024, "The Geometry of Concepts" (arXiv 2410.19750, section 3).

    compare_relations   do differences of word pairs group by relation, on pairs held out, against shuffled relations?
    project_out, nuisance_directions   named distractors out of the way
    find_crystals       quadruples of atoms with parallel differences, verified, with Benjamini-Hochberg
    compare_crystals    their number beside that of shuffled dictionaries
"""

from sae.geometry.crystals.chance import cosine_p_value, effective_dimension
from sae.geometry.crystals.clusters import axial_clusters
from sae.geometry.crystals.relations import RelationCrystals, compare_relations, ledoit_wolf_shrinkage, nuisance_directions, project_out
from sae.geometry.crystals.search import CrystalConfig, Crystals, compare_crystals, find_crystals, shuffled_atoms
from sae.geometry.crystals.silhouettes import silhouettes

__all__ = [
    "CrystalConfig", "Crystals", "RelationCrystals", "axial_clusters", "compare_crystals", "compare_relations",
    "cosine_p_value", "effective_dimension", "find_crystals", "ledoit_wolf_shrinkage", "nuisance_directions", "project_out", "shuffled_atoms",
    "silhouettes",
]  # fmt: skip
