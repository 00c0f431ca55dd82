"""Probes: what can be read from activations or latents, how sparsely, in which direction, and what chance alone would give.

    data = probes.from_model(model, [probes.CATALOGUE["era"].make()], ["blocks.*.hook_resid_post"])
    sweep(data.problems, data.source)                    # from probes.sweep import sweep

The names below are what notebooks and scripts use, each imported when it is first asked for, so `import probes` loads neither torch nor
scikit-learn. Everything else lives in the module its name suggests:

    tasks          questions with known answers          features       tasks to matrices, from a store or a model
    selection      which columns, by which score         optimal        the best columns, proven
    sparse, linear estimators                            superposition  one neuron or many
    validation     folds, scores, intervals, nulls       sweep          tasks x layers x k
    baselines      what to compare latents with          regimes        scarce, unbalanced, noisy, shifted data
    quiver         what latents add                      directions     concept directions, transfer
    causal         the causal inner product              hierarchy      categories of the unembedding
    observables    directions of the next token          results        tables and figures
"""

import importlib
from typing import Any

_HOMES = {
    "selection": ("rank",),
    "sparse": ("KSparseProbe", "KSparseRegressor"),
    "optimal": ("OptimalSparseProbe",),
    "linear": ("DenseProbe",),
    "validation": ("ProbeScore", "evaluate_probe", "group_folds"),
    "table": ("ProbeRow", "ProbeTableConfig", "probe_table", "render_table"),
    "tasks": ("CATALOGUE", "Task", "era", "party", "sentiment", "task_from_file"),
    "features": (
        "from_model",
        "from_store",
        "pooled_activations",
        "pooled_features",
        "read_features",
        "task_corpus",
        "write_features",
    ),
    "problem": ("Problem",),
    "superposition": ("k_curve",),
    "quiver": ("fit_quiver",),
    "directions": ("LDADirection", "LogisticDirection", "MeanDifferenceDirection", "compare_readers", "labelled_rows"),
    "unembedding": ("read_unembedding",),
    "causal": ("CausalInnerProduct", "concept_cosines", "token_pairs"),
    "hierarchy": ("hierarchy_statistics", "vocabulary_hierarchy"),
    "observables": ("logit_lens",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"probes.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
