"""Categorical and hierarchical concepts on an unembedding: categories of words, their vectors, and what tells a hierarchy from noise."""

from probes.hierarchy.category import CategoryDirection, category_vector
from probes.hierarchy.cosines import HierarchyCosines, hierarchy_cosines
from probes.hierarchy.held_out import HeldOutWords, held_out_words
from probes.hierarchy.inflection import plural, word_forms
from probes.hierarchy.simplices import Simplex, affine_rank, simplex
from probes.hierarchy.statistics import HierarchyStatistics, hierarchy_statistics
from probes.hierarchy.wordnet import ConceptHierarchy, Taxonomy, vocabulary_hierarchy

__all__ = [
    "CategoryDirection",
    "ConceptHierarchy",
    "HeldOutWords",
    "HierarchyCosines",
    "HierarchyStatistics",
    "Simplex",
    "Taxonomy",
    "affine_rank",
    "category_vector",
    "held_out_words",
    "hierarchy_cosines",
    "hierarchy_statistics",
    "plural",
    "simplex",
    "vocabulary_hierarchy",
    "word_forms",
]
