"""Tasks to matrices: activations and codes, from an activation store or straight from a language model; and matrices in files.

data = from_store(store, tasks, model.tokenizer)      data = from_model(model, tasks, sites)      sweep(data.problems, data.source)
"""

from probes.features.arrays import ArraySource
from probes.features.captured import ProbedModel, from_model
from probes.features.files import LabelledFeatures, read_features, write_features
from probes.features.location import Lost, ProbeData, RowConfig, TokenRows
from probes.features.pooled import CapturingModel, PooledFeatures, Pooling, pooled_activations, pooled_features
from probes.features.stored import StoreSource, from_store, task_corpus

__all__ = [
    "ArraySource",
    "CapturingModel",
    "LabelledFeatures",
    "Lost",
    "PooledFeatures",
    "Pooling",
    "ProbeData",
    "ProbedModel",
    "RowConfig",
    "StoreSource",
    "TokenRows",
    "from_model",
    "from_store",
    "pooled_activations",
    "pooled_features",
    "read_features",
    "task_corpus",
    "write_features",
]
