"""The linear representation hypothesis on an unembedding: causal inner product, concept directions, what they read and change."""

from probes.causal.concepts import ConceptDirection, ConceptStudy, leave_one_out, study_concepts
from probes.causal.cosines import ConceptCosines, concept_cosines
from probes.causal.effects import (
    Intervention,
    InterventionEffects,
    Measurement,
    intervene,
    intervention_effects,
    measure,
)
from probes.causal.inner_product import CausalInnerProduct, cosines
from probes.causal.pairs import ConceptPairs, CounterfactualPairs, token_pairs
from probes.causal.words import WORD_PAIRS

__all__ = [
    "WORD_PAIRS",
    "CausalInnerProduct",
    "ConceptCosines",
    "ConceptDirection",
    "ConceptPairs",
    "ConceptStudy",
    "CounterfactualPairs",
    "Intervention",
    "InterventionEffects",
    "Measurement",
    "concept_cosines",
    "cosines",
    "intervene",
    "intervention_effects",
    "leave_one_out",
    "measure",
    "study_concepts",
    "token_pairs",
]
