"""Arrows: probes of one data set under one condition, each with the AUC it was chosen by and the AUC it is judged by.

    baselines      on activations
    latents        logistic regression on the k latents with the largest difference of class means, one per dictionary and k
    noise          the same on the latents of other rows: the training rows' latents shuffled, and the test rows'
    duplicates     as many logistic regressions on a random half of the activations: what a baseline reads, once more

Validation rows come out of the training rows; the test rows are looked at by nobody who chooses.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from joblib import Parallel, delayed
from scipy import sparse

from probes.baselines import baselines, latent_probe, partial_probe
from probes.baselines.choice import ranking_auc
from probes.problem import Features
from probes.regimes import RegimeSplit
from sae.errors import ConfigError
from sae.fingerprint import from_json, to_json
from sae.storage.atomic import read_json, write_json
from sae.storage.cache import Key, ResultCache

Role = Literal["baseline", "latents", "noise", "duplicate"]
METHODS = tuple(baselines())
SEED_OF_NOISE = 1000


@dataclass(frozen=True, kw_only=True)
class QuiverConfig:
    """Which arrows there are."""

    ks: tuple[int, ...] = (16, 128)
    """Numbers of latents of the probes on latents."""
    methods: tuple[str, ...] = METHODS
    """Baselines, names of `probes.baselines.baselines()`; the boosted trees cost most of the time."""
    penalty: str = "l1"
    """Penalty of the probes on latents, "l1" or "l2"."""
    divide: bool = False
    """Whether latents are first divided by their mean where they are active."""
    null_arrows: bool = True
    """Whether to fit as many arrows of noise, and of duplicates, as there are of latents."""
    seed: int = 42
    """Seed of validation folds, of random settings and of the noise."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
            raise ConfigError(f"ks must hold different positive integers, got {list(self.ks)} (QuiverConfig)")
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"methods must be different names out of {', '.join(METHODS)}, got {list(self.methods)} (QuiverConfig)")
        if self.penalty not in ("l1", "l2"):
            raise ConfigError(f"penalty must be 'l1' or 'l2', got {self.penalty!r} (QuiverConfig)")


@dataclass(frozen=True)
class ArrowScore:
    """One arrow of one data set under one condition."""

    data: str
    """Name of the data set."""
    regime: str
    """Name of the regime."""
    value: float
    """Value that varies within the regime."""
    arrow: str
    """Name of the probe."""
    role: Role
    """What it is there for."""
    val_auc: float | None
    """AUC on validation rows, which it may be chosen by; None where it has none."""
    test_auc: float
    """AUC on the test rows, which it is judged by."""
    setting: str
    """The setting it chose."""
    n_train: int
    """Rows it was given, validation rows included."""
    n_test: int
    """Rows it was tested on."""


class _Arrow(NamedTuple):
    name: str
    role: Role
    features: str | None
    probe: Any
    noise: int | None


def choose(scores: Sequence[ArrowScore]) -> ArrowScore:
    """The arrow with the highest validation AUC, the first of equal ones; arrows without one are passed over. ConfigError if none has one."""
    judged = [score for score in scores if score.val_auc is not None and np.isfinite(score.val_auc)]
    if not judged:
        raise ConfigError(f"scores must hold an arrow with a validation AUC, got {len(scores)} without (choose)")
    return max(judged, key=lambda score: score.val_auc or 0.0)


def fit_quiver(
    data: str,
    acts: Features,
    codes: Mapping[str, Features],
    y: Shaped[np.ndarray, "_"],
    splits: Sequence[RegimeSplit],
    config: QuiverConfig | None = None,
    *,
    groups: Shaped[np.ndarray, "_"] | None = None,
    cache: ResultCache | None = None,
    n_jobs: int = 1,
) -> list[ArrowScore]:
    """Every arrow of `config` on every split of one data set, in the order of the splits; within a split baselines come first.

    data: what to call the data set. acts: activations, dense. codes: name of a dictionary -> its codes of the same rows, scipy sparse (read as they are)
    or dense, negative values allowed. y: labels 0 and 1. groups: document of each row, on one side of validation folds. With a `cache` what
    was fitted before is read, split by split; n_jobs: processes (joblib).

    Raises ConfigError for matrices that do not fit y or are not finite, sparse `acts`, or no dictionary.
    """
    config = config or QuiverConfig()
    matrices: dict[str | None, Any] = {None: acts, **codes}
    if not splits or not codes:
        raise ConfigError(f"splits and codes must hold at least one, got {len(splits)} and {len(codes)} (fit_quiver)")
    if y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
        raise ConfigError(f"y must hold 0 and 1 only, got {np.unique(y)[:5].tolist()} (fit_quiver)")
    if sparse.issparse(acts):
        raise ConfigError("acts must be dense, got a sparse matrix: give sparse codes in `codes` (fit_quiver)")
    for name, X in matrices.items():
        _check(f"codes[{name!r}]" if name is not None else "acts", X, y)
    inputs = {"acts": _digest(acts), "codes": _digest(*(part for name in codes for part in (name, matrices[name])))} if cache else {}
    found: list[ArrowScore] = []
    for split in splits:
        document = None if groups is None else groups[split.train]

        def fit(split: RegimeSplit = split, document: Any = document) -> list[ArrowScore]:
            truth = y[split.test].astype(np.int64)
            jobs = (
                delayed(_fit)(arrow, *_rows(matrices[arrow.features], split, arrow.noise), split.y_train, truth, document)
                for arrow in _arrows(config, tuple(codes))
            )
            aucs = Parallel(n_jobs=n_jobs)(jobs)
            return [
                ArrowScore(data, split.regime, split.value, arrow.name, arrow.role, *auc, len(split.train), len(split.test))
                for arrow, auc in zip(_arrows(config, tuple(codes)), aucs, strict=True)
            ]

        if cache is None:
            found += fit()
            continue
        rows = _digest(split.train, split.y_train, split.test, y[split.test], *(() if document is None else (document,)))
        key = Key(
            "probes.quiver",
            1,
            {"config": to_json(config), "data": data, "regime": split.regime, "value": split.value},
            inputs | {"rows": rows},
        )

        def fill(folder: Path, fit: Any = fit) -> None:
            write_json(folder / "arrows.json", to_json(fit()))

        found += [from_json(ArrowScore, row) for row in read_json(cache.build(key, fill) / "arrows.json")]
    return found


def _arrows(config: QuiverConfig, dictionaries: Sequence[str]) -> list[_Arrow]:
    known = baselines(seed=config.seed)
    arrows = [_Arrow(name, "baseline", None, known[name], None) for name in config.methods]
    latents = [(f"{name}, k = {k}", name, k) for name in dictionaries for k in config.ks]
    for i, (label, name, k) in enumerate(latents):
        arrows.append(_Arrow(label, "latents", name, _latents(config, k), None))
        if config.null_arrows:
            arrows.append(_Arrow(f"{label}, other rows", "noise", name, _latents(config, k), config.seed + SEED_OF_NOISE + i))
            half = partial_probe(seed=config.seed, random_state=config.seed + i)
            arrows.append(_Arrow(f"half of the activations {i + 1}", "duplicate", None, half, None))
    return arrows


def _latents(config: QuiverConfig, k: int) -> Any:
    return latent_probe(k, penalty=config.penalty, divide=config.divide, seed=config.seed)


def _rows(X: Any, split: RegimeSplit, noise: int | None) -> tuple[Any, Any]:
    """The training and test rows; those of others where there is to be noise."""
    if noise is None:
        return X[split.train], X[split.test]
    generator = np.random.default_rng(noise)
    return X[generator.permutation(split.train)], X[generator.permutation(split.test)]


def _fit(
    arrow: _Arrow, train: Any, test: Any, y_train: Int[np.ndarray, "_"], y_test: Int[np.ndarray, "_"], groups: Any
) -> tuple[float | None, float, str]:
    """Validation AUC, test AUC and setting."""
    probe = arrow.probe.fit(train, y_train, groups=groups)
    validation = float(probe.val_auc_) if np.isfinite(probe.val_auc_) else None
    return (
        validation,
        ranking_auc(y_test, probe.decision_function(test)),
        ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in probe.setting_.items()),
    )


def _check(name: str, X: Any, y: np.ndarray) -> None:
    if X.shape[0] != len(y):
        raise ConfigError(f"{name} must have one row per label, got {X.shape[0]} rows for {len(y)} labels (fit_quiver)")
    values = X.data if sparse.issparse(X) else X
    if not np.isfinite(values).all():
        raise ConfigError(
            f"{name} must be finite, got {int((~np.isfinite(values)).sum())} entries that are not: leave those rows out (fit_quiver)"
        )


def _digest(*parts: Any) -> str:
    """SHA-256 of arrays, sparse matrices and names, with their types and shapes."""
    found = hashlib.sha256()
    for part in parts:
        arrays = (part.indptr, part.indices, part.data) if sparse.issparse(part) else (np.asarray(part),)
        for array in arrays:
            raw = array if array.dtype.kind != "O" else array.astype(str)
            found.update(f"{raw.dtype.str}{raw.shape}{getattr(part, 'shape', '')}".encode())
            found.update(np.ascontiguousarray(raw).tobytes())
    return found.hexdigest()
