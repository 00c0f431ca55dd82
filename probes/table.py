"""Several matrices, one task: k-sparse probes on neurons and on latents side by side, with the controls that say what the numbers mean.

Controls, by the same protocol and on the same folds:
    shuffled labels      the null of every row
    random coordinates   k columns drawn without looking, averaged over draws: what any k columns would read
    dense                all columns: what a linear probe can read at all
    majority class       the more frequent class always
    always positive      F1 = 2p / (1 + p) with nothing learnt

A wider dictionary offers a ranking more columns to be lucky with; the null and the random coordinates are those of the same matrix, so they
pay that price too (Gurnee et al., 2023, arXiv 2305.01610; Kantamneni et al., "Are Sparse Autoencoders Useful?", 2025, arXiv 2502.16681).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier

from probes.linear import DenseProbe
from probes.selection import RANKINGS, Labels
from probes.sparse import KSparseProbe
from probes.validation import Estimate, Features, Groups, ProbeScore, evaluate_probes, group_folds, null_splits
from sae.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ProbeTableConfig:
    """What to fit and how to score it."""

    ks: tuple[int, ...] = (1, 4, 16)
    """Numbers of columns of the sparse probes."""
    rankings: tuple[str, ...] = ("mean_difference",)
    """Names of `probes.selection.RANKINGS`."""
    C: float = 1.0
    """Inverse strength of the L2 penalty on z-scored columns, for all probes."""
    n_folds: int = 5
    """Folds, split by document."""
    n_bootstrap: int = 1000
    """Draws of documents behind each interval."""
    n_shuffles: int = 10
    """Label shuffles behind each null; 0 for none."""
    n_random: int = 10
    """Draws of random coordinates that each such row averages; 0 for none."""
    seed: int = 0
    """Seed of folds, bootstrap, shuffles and random coordinates."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
            raise ConfigError(f"ks must hold different positive integers, got {list(self.ks)} (ProbeTableConfig)")
        unknown = [name for name in self.rankings if name not in RANKINGS]
        if unknown or not self.rankings:
            raise ConfigError(f"rankings must be names out of {', '.join(RANKINGS)}, got {list(self.rankings)} (ProbeTableConfig)")
        for name, least in (("n_folds", 2), ("n_bootstrap", 1), ("n_shuffles", 0), ("n_random", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)} (ProbeTableConfig)")
        if not self.C > 0:
            raise ConfigError(f"C must be positive, got {self.C} (ProbeTableConfig)")


@dataclass(frozen=True)
class ProbeRow:
    """One line of a probe table."""

    features: str
    """Name of the matrix; "none" for the two controls that read no column."""
    method: str
    """Ranking of a sparse probe, or "random coordinates", "dense", "majority class", "always positive"."""
    k: int
    """Number of columns the probe may read."""
    d: int
    """Number of columns there are to choose from."""
    scores: ProbeScore
    """The scores with their intervals and nulls."""
    control: bool
    """Whether the row is there to compare with, and not a sparse probe itself."""

    @property
    def n_train(self) -> int:
        """Rows of the smallest training set."""
        return self.scores.n_train

    @property
    def n_test(self) -> int:
        """Rows scored, over all folds."""
        return self.scores.n_test


def probe_table(features: Mapping[str, Features], y: Labels, groups: Groups, config: ProbeTableConfig | None = None) -> list[ProbeRow]:
    """One row per matrix, ranking and k, then each matrix's controls, then those without columns; all on the same folds of documents.

    features: name -> X, dense or sparse [n, d]. y: labels 0 and 1. groups: document of each row. To disk and back: `to_json(rows)`
    and `[from_json(ProbeRow, row) for row in data]` of `sae.fingerprint`.

    Raises ConfigError for matrices that do not fit y, a k above a matrix's width, or too few documents of a class.

        rows = probe_table({"neurons": acts, "TopK latents": codes}, task.y, task.groups)
        print(render_table(rows))
    """
    config = config or ProbeTableConfig()
    if not features:
        raise ConfigError("features must hold at least one matrix, got none (probe_table)")
    for name, X in features.items():
        if X.shape[0] != len(y):
            raise ConfigError(f"features[{name!r}] must have one row per label, got {X.shape[0]} rows for {len(y)} labels (probe_table)")
        if max(config.ks) > X.shape[1]:
            raise ConfigError(f"ks must be in 1..d={X.shape[1]} for features[{name!r}], got {max(config.ks)} (probe_table)")
    folds = group_folds(y, groups, n_folds=config.n_folds, seed=config.seed)
    nulls = null_splits(y, groups, folds, n_shuffles=config.n_shuffles, seed=config.seed)

    def row(name: str, method: str, k: int, X: Features, probes: Sequence[Any], *, control: bool, null: bool = True) -> ProbeRow:
        options: dict[str, Any] = {"folds": folds, "nulls": nulls if null else [], "n_bootstrap": config.n_bootstrap, "seed": config.seed}
        scores = evaluate_probes(probes, X, y, groups, **options)
        return ProbeRow(name, method, k, X.shape[1] if k else 0, scores, control)

    rows = []
    for name, X in features.items():
        for ranking in config.rankings:
            rows += [row(name, ranking, k, X, [KSparseProbe(k, ranking, config.C)], control=False) for k in config.ks]
        for k in config.ks if config.n_random else ():
            draws = [KSparseProbe(k, "random", config.C, random_state=config.seed + i) for i in range(config.n_random)]
            rows.append(row(name, "random coordinates", k, X, draws, control=True, null=False))
        rows.append(row(name, "dense", X.shape[1], X, [DenseProbe(config.C)], control=True))
    nothing = np.zeros((len(y), 1))
    for method, dummy in (
        ("majority class", DummyClassifier(strategy="most_frequent")),
        ("always positive", DummyClassifier(strategy="constant", constant=1)),
    ):
        rows.append(row("none", method, 0, nothing, [dummy], control=True, null=False))
    return rows


def render_table(rows: Sequence[ProbeRow], *, metrics: Sequence[str] = ("auc", "accuracy", "f1")) -> str:
    """The rows as aligned text: score, [95 % interval], and in parentheses what shuffled labels give."""
    header = ["features", "method", "k of d", *metrics]
    cells = [[row.features, row.method, f"{row.k} of {row.d}", *(_cell(getattr(row.scores, name)) for name in metrics)] for row in rows]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [header, *cells]]
    return "\n".join(lines)


def _cell(estimate: Estimate) -> str:
    text = f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
    if estimate.null_mean is None:
        return text
    spread = "" if estimate.null_sd is None else f" ± {estimate.null_sd:.3f}"
    return f"{text} (null {estimate.null_mean:.3f}{spread})"
