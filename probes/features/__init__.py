"""Tasks to matrices: activations and codes, from an activation store or straight from a language model; and matrices in files."""

from probes.features.files import LabelledFeatures, read_features, write_features
from probes.features.pooled import CapturingModel, PooledFeatures, Pooling, pooled_activations, pooled_features

__all__ = [
    "CapturingModel",
    "LabelledFeatures",
    "PooledFeatures",
    "Pooling",
    "pooled_activations",
    "pooled_features",
    "read_features",
    "write_features",
]
