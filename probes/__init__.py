"""Probes: what can be read from activations or latents, how sparsely, and what chance alone would give.

Names are imported when they are first used, so `import probes` loads neither torch nor scikit-learn.
"""

import importlib
from typing import Any

_HOMES = {
    "selection": ("rank", "top_k"),
    "sparse": ("KSparseProbe",),
    "linear": ("DenseProbe",),
    "validation": ("Estimate", "Fold", "ProbeScore", "evaluate_probe", "group_folds", "group_holdout", "shuffle_labels"),
    "table": ("ProbeRow", "ProbeTableConfig", "probe_table", "render_table"),
    "tasks": ("Task", "era", "party", "sentiment"),
    "features": ("PooledFeatures", "pooled_activations", "pooled_features", "read_features", "write_features"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"probes.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
