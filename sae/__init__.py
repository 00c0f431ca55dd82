"""A workbench for interpreting language models with sparse dictionaries.

    import sae
    model = sae.LanguageModel.load(sae.default_model())

The names below are what notebooks and scripts use; each is imported when it is first asked for, so `import sae` is light. Everything else
lives in the module its name suggests: `sae.geometry.coherence`, `sae.evaluation.downstream`, `sae.storage`.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "ActivationStore": "sae.activations.store",
    "Autoencoder": "sae.dictionaries.autoencoder",
    "AutoencoderConfig": "sae.dictionaries.autoencoder",
    "BatchTopK": "sae.dictionaries.activations",
    "CaptureConfig": "sae.activations.collect",
    "Codebook": "sae.dictionaries.codebook",
    "Corpus": "sae.activations.corpus",
    "Dictionary": "sae.dictionaries.base",
    "Edit": "sae.models.edits",
    "ReconstructionObjective": "sae.training.objectives",
    "FeatureIndex": "sae.inspection.index",
    "JumpReLU": "sae.dictionaries.activations",
    "LanguageModel": "sae.models.language_model",
    "MatchingPursuit": "sae.dictionaries.pursuit",
    "MatryoshkaObjective": "sae.training.objectives",
    "PursuitConfig": "sae.dictionaries.pursuit",
    "ResultCache": "sae.storage",
    "SaeError": "sae.errors",
    "Scaling": "sae.dictionaries.scaling",
    "Site": "sae.models.sites",
    "SparseCodes": "sae.dictionaries.codes",
    "TopK": "sae.dictionaries.activations",
    "TrainConfig": "sae.training.loop",
    "build_index": "sae.inspection.build",
    "collect": "sae.activations.collect",
    "compare": "sae.evaluation.frontiers",
    "default_model": "sae.models.assets",
    "description_length": "sae.evaluation.description_length",
    "downstream": "sae.evaluation.downstream",
    "error_versus_k": "sae.evaluation.reconstruction",
    "evaluate": "sae.evaluation.report",
    "fit_scaling": "sae.activations.scaling",
    "from_dataset": "sae.activations.corpus",
    "from_texts": "sae.activations.corpus",
    "initialise_": "sae.dictionaries.init",
    "load_dictionary": "sae.dictionaries.checkpoint",
    "reconstruction": "sae.evaluation.reconstruction",
    "save_dictionary": "sae.dictionaries.checkpoint",
    "state_of_the_union": "sae.activations.corpus",
    "sweep": "sae.training.sweep",
    "telling_features": "sae.inspection.query",
    "train": "sae.training.loop",
}

if TYPE_CHECKING:
    from sae.activations.collect import CaptureConfig, collect
    from sae.activations.corpus import Corpus, from_dataset, from_texts, state_of_the_union
    from sae.activations.scaling import fit_scaling
    from sae.activations.store import ActivationStore
    from sae.dictionaries.activations import BatchTopK, JumpReLU, TopK
    from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
    from sae.dictionaries.base import Dictionary
    from sae.dictionaries.checkpoint import load_dictionary, save_dictionary
    from sae.dictionaries.codebook import Codebook
    from sae.dictionaries.codes import SparseCodes
    from sae.dictionaries.init import initialise_
    from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
    from sae.dictionaries.scaling import Scaling
    from sae.errors import SaeError
    from sae.evaluation.description_length import description_length
    from sae.evaluation.downstream import downstream
    from sae.evaluation.frontiers import compare
    from sae.evaluation.reconstruction import error_versus_k, reconstruction
    from sae.evaluation.report import evaluate
    from sae.inspection.build import build_index
    from sae.inspection.index import FeatureIndex
    from sae.inspection.query import telling_features
    from sae.models.assets import default_model
    from sae.models.edits import Edit
    from sae.models.language_model import LanguageModel
    from sae.models.sites import Site
    from sae.storage import ResultCache
    from sae.training.loop import TrainConfig, train
    from sae.training.objectives import MatryoshkaObjective, ReconstructionObjective
    from sae.training.sweep import sweep

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae' has no attribute {name!r}; its names: {', '.join(sorted(_HOME))}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
