"""Activations of a language model on disk: corpora, capture, the store, and batches from it."""

from sae.activations.collect import CaptureProgress, collect
from sae.activations.corpus import (
    Corpus,
    Document,
    Synset,
    from_dataset,
    from_texts,
    installed_docstrings,
    mixture,
    state_of_the_union,
    wordnet_nouns,
)
from sae.activations.manifest import CaptureConfig, Manifest, SiteStatistics
from sae.activations.scaling import fit_scaling
from sae.activations.store import ActivationStore

__all__ = [
    "ActivationStore",
    "CaptureConfig",
    "CaptureProgress",
    "Corpus",
    "Document",
    "Manifest",
    "SiteStatistics",
    "Synset",
    "collect",
    "fit_scaling",
    "from_dataset",
    "from_texts",
    "installed_docstrings",
    "mixture",
    "state_of_the_union",
    "wordnet_nouns",
]
