"""The probes that are compared, each with the settings it chooses from.

    logistic regression     z-scores, L2, C = 10^5 ... 10^-5 in ten steps, the least regularised first
    principal components    z-scores, the leading 1, 2, ... up to 100 components, logistic regression on them
    nearest neighbours      z-scores, k = 1, 2, ... up to 100
    boosted trees           ten settings drawn at random
    perceptron              z-scores, one setting drawn at random: width 16, 32 or 64, depth 1 to 3
    latents                 the k latents with the largest difference of class means, logistic regression (L1 or L2) on them with the same C

Kantamneni et al., 2025, arXiv 2502.16681, section 3.1. Departures: scaling and components are learnt inside the folds, where the paper's code
lets them see the validation rows; logistic regression is on z-scores, where the paper leaves activations as they are; the trees are
scikit-learn's histogram boosting, where the paper takes XGBoost.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from probes.baselines.choice import ValidatedProbe
from probes.baselines.columns import LeadingColumns, RandomColumns
from sae.errors import ConfigError

STRENGTHS = tuple(float(C) for C in np.logspace(5, -5, 10))
"""Inverse strengths of the penalty, the weakest penalty first."""
MOST = 100
"""Largest number of components, and of neighbours."""
N_TREE_SETTINGS = 10
MAX_STEPS = 2000
INTERCEPT_SCALE = 100.0
"""The L1 solver penalises the intercept too; at this scale by a hundredth of a coefficient."""


def log2_spaced(least: int, most: int, count: int = 20) -> list[int]:
    """Different whole numbers from `least` to `most`, evenly spaced in their logarithm as far as they are whole."""
    return np.unique(np.logspace(np.log2(least), np.log2(most), count, base=2).round().astype(int)).tolist()


def _strengths(step: str, n: int, d: int) -> Sequence[Mapping[str, Any]]:
    return [{f"{step}__C": C} for C in STRENGTHS]


def _components(n: int, d: int) -> Sequence[Mapping[str, Any]]:
    return [{"components__n_components": k} for k in log2_spaced(1, max(1, min(MOST, n - 1, d)), 8)]


def _neighbours(n: int, d: int) -> Sequence[Mapping[str, Any]]:
    return [{"neighbours__n_neighbors": k} for k in log2_spaced(1, max(1, min(MOST, n)), 10)]


def _trees(n_settings: int, seed: int, n: int, d: int) -> Sequence[Mapping[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {
            "learning_rate": float(10 ** generator.uniform(-1.5, -0.3)),
            "max_leaf_nodes": int(generator.choice([2, 4, 8])),
            "min_samples_leaf": int(min(generator.choice([1, 5, 20]), max(1, n // 4))),
            "l2_regularization": float(10 ** generator.uniform(-3, 1)),
            "max_iter": int(generator.choice([30, 60, 100])),
        }
        for _ in range(n_settings)
    ]


def _layers(seed: int, n: int, d: int) -> Sequence[Mapping[str, Any]]:
    generator = np.random.default_rng(seed)
    width, depth = int(generator.choice([16, 32, 64])), int(generator.integers(1, 4))
    return [{"perceptron__hidden_layer_sizes": (width,) * depth, "perceptron__alpha": float(10 ** generator.uniform(-5, -1))}]


def logistic_regression(*, seed: int = 42) -> ValidatedProbe:
    """L2-penalised logistic regression on z-scores."""
    steps = [("scale", StandardScaler()), ("logistic", LogisticRegression(max_iter=MAX_STEPS))]
    return ValidatedProbe(Pipeline(steps), partial(_strengths, "logistic"), seed)


def principal_components(*, seed: int = 42) -> ValidatedProbe:
    """Logistic regression on the leading principal components of z-scores."""
    steps = [("scale", StandardScaler()), ("components", PCA(svd_solver="full")), ("logistic", LogisticRegression(max_iter=MAX_STEPS))]
    return ValidatedProbe(Pipeline(steps), _components, seed)


def nearest_neighbours(*, seed: int = 42) -> ValidatedProbe:
    """The share of positive rows among the k nearest in z-scores."""
    return ValidatedProbe(Pipeline([("scale", StandardScaler()), ("neighbours", KNeighborsClassifier())]), _neighbours, seed)


def boosted_trees(*, seed: int = 42, n_settings: int = N_TREE_SETTINGS) -> ValidatedProbe:
    """Gradient-boosted trees of at most 8 leaves on 32 bins a column. The costliest of all: about 5 s on 1,024 rows of 576 columns."""
    if n_settings < 1:
        raise ConfigError(f"n_settings must be at least 1, got {n_settings} (boosted_trees)")
    trees = HistGradientBoostingClassifier(max_bins=32, early_stopping=False, random_state=seed)
    return ValidatedProbe(trees, partial(_trees, n_settings, seed), seed)


def perceptron(*, seed: int = 42) -> ValidatedProbe:
    """A multi-layer perceptron on z-scores."""
    steps = [("scale", StandardScaler()), ("perceptron", MLPClassifier(max_iter=MAX_STEPS, random_state=seed))]
    return ValidatedProbe(Pipeline(steps), partial(_layers, seed), seed)


def baselines(*, seed: int = 42) -> dict[str, ValidatedProbe]:
    """The five probes on dense activations, by name."""
    return {
        "logistic regression": logistic_regression(seed=seed),
        "principal components": principal_components(seed=seed),
        "nearest neighbours": nearest_neighbours(seed=seed),
        "boosted trees": boosted_trees(seed=seed),
        "perceptron": perceptron(seed=seed),
    }


def latent_probe(k: int, *, penalty: str = "l1", divide: bool = False, seed: int = 42) -> ValidatedProbe:
    """Logistic regression on k latents; X sparse or dense. `divide`: see LeadingColumns. Raises ConfigError for another penalty."""
    if penalty not in ("l1", "l2"):
        raise ConfigError(f"penalty must be 'l1' or 'l2', got {penalty!r} (latent_probe)")
    logistic = (
        LogisticRegression(l1_ratio=1, solver="liblinear", intercept_scaling=INTERCEPT_SCALE, max_iter=MAX_STEPS, random_state=seed)
        if penalty == "l1"
        else LogisticRegression(max_iter=MAX_STEPS)
    )
    return ValidatedProbe(Pipeline([("columns", LeadingColumns(k, divide)), ("logistic", logistic)]), partial(_strengths, "logistic"), seed)


def partial_probe(*, share: float = 0.5, seed: int = 42, random_state: int = 0) -> ValidatedProbe:
    """Logistic regression on a random share of the columns: reads what `logistic_regression` reads, and nothing of another kind."""
    steps = [
        ("columns", RandomColumns(share, random_state)),
        ("scale", StandardScaler()),
        ("logistic", LogisticRegression(max_iter=MAX_STEPS)),
    ]
    return ValidatedProbe(Pipeline(steps), partial(_strengths, "logistic"), seed)
