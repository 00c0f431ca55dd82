"""Convergent learning: do two networks have the same units, the same subspaces, or neither?

    r_ij        correlation of unit i of x and unit j of y over the same inputs
    matching    one partner each, largest sum of r (Hungarian)             semi-matching    argmax_j r_ij, partners used again
    gap         mean semi-matching r - mean matching r: units of one network for which the other has fewer
    sparse prediction     min_w |y_j - x w|^2 / (2 n) + lambda |w|_1       how many units of x does it take to predict a unit of y?
    blocks      spectral clusters of the graph [[C_xx, C_xy], [C_yx, C_yy]]       many units for many: subspaces that both networks span

Li, Yosinski, Clune, Lipson & Hopcroft 2015 (1511.07543). Negative correlations are no likeness and count 0 in the graph; with `absolute` the sign
is ignored throughout. Departures: R^2 of the prediction is that of rows which were not fitted on, and the fit's own lambdas are relative to
the smallest that leaves no unit, so that units of any scale share a sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.atoms.assignment import Pairs, best_pairs
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import require_points

LARGEST = 4096
"""Units of one network, since all correlations are held at once; for sparse codes of more latents see `correlation`."""


@dataclass(frozen=True, eq=False)
class Convergence:
    """Matching and semi-matching of the units of x with those of y."""

    pairs: Pairs
    """One-to-one pairs of units that vary."""
    best: Float[Tensor, " p"]
    """Largest correlation of every unit of x, float64; nan where it is constant."""
    partners: Int[Tensor, " p"]
    """The unit of y that has it; -1 for a constant unit."""

    @property
    def gap(self) -> float:
        """Mean of `best` over the paired units of x minus the pairs' mean; at least 0 up to rounding."""
        return float(self.best[self.pairs.rows].mean()) - self.pairs.mean


@dataclass(frozen=True)
class ConvergenceComparison:
    """Matching and semi-matching beside the same with the rows of y in random order."""

    matching: NullStatistic
    """Mean correlation of the one-to-one pairs."""
    semi_matching: NullStatistic
    """Mean best correlation of the units of x."""
    gap: NullStatistic
    """Semi-matching minus matching over the paired units."""


@dataclass(frozen=True, eq=False)
class SparsePrediction:
    """How well units of y are predicted from few units of x, one row per unit of y and one column per lambda."""

    penalties: Float[Tensor, " n_lambda"]
    """lambda as a share of the smallest that leaves no unit, falling."""
    r_squared: Float[Tensor, "q n_lambda"]
    """R^2 on rows that were not fitted on, at most 1; below 0 where the mean predicts better."""
    n_used: Int[Tensor, "q n_lambda"]
    """Units of x with a weight other than 0."""

    def n_needed(self, share: float = 0.9) -> Int[Tensor, " q"]:
        """Fewest units with at least `share` of each unit's largest R^2; 0 where no R^2 of the sweep is positive."""
        largest = self.r_squared.max(dim=1, keepdim=True).values
        enough = (self.r_squared >= share * largest) & (largest > 0)
        most = int(self.n_used.max()) + 1
        needed = torch.where(enough, self.n_used, most).min(dim=1).values
        return torch.where(largest[:, 0] > 0, needed, 0)


@dataclass(frozen=True, eq=False)
class JointBlocks:
    """Clusters of the units of both networks together."""

    labels_x: Int[Tensor, " p"]
    """Cluster of each unit of x."""
    labels_y: Int[Tensor, " q"]
    """Cluster of each unit of y."""
    sizes: Int[Tensor, "n_clusters 2"]
    """Units of x and of y in each cluster; a cluster with few of one is one network's own."""


def unit_correlations(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> Float[Tensor, "p q"]:
    """Pearson correlations of the columns of x with those of y, float64; nan for a constant column.

    Raises ConfigError for different numbers of rows, fewer than 3, more than 4096 columns in either, and NaN or Inf.
    """
    left, right = _both(x, y)
    return (left.T @ right).clamp_(-1, 1)


def convergence(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, absolute: bool = False) -> Convergence:
    """Matching and semi-matching of units by the correlation of their activations; constant units are left out. O(n p q + p q min(p, q)).

    Raises ConfigError as `unit_correlations`, and where all units of one network are constant.
    """
    return _matched(unit_correlations(x, y), absolute)


def compare_convergence(
    x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, absolute: bool = False, n_null: int = 99, generator: torch.Generator
) -> ConvergenceComparison:
    """`convergence` beside the same with the rows of y permuted; the rows have to be exchangeable. Raises ConfigError as `convergence`."""
    left, right = _both(x, y)
    scores = []
    for draw in range(n_null + 1):
        order = torch.randperm(len(right), generator=generator).to(right.device) if draw else slice(None)
        found = _matched((left.T @ right[order]).clamp_(-1, 1), absolute)
        scores.append((found.pairs.mean, float(found.best.nanmean()), found.gap))
    matching, semi, gap = (compare(scores[0][i], [each[i] for each in scores[1:]]) for i in range(3))
    return ConvergenceComparison(matching, semi, gap)


def sparse_prediction(
    x: Float[Tensor, "n p"],
    y: Float[Tensor, "m q"],
    *,
    penalties: Sequence[float] = (0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01),
    held_out: float | Bool[Tensor, " rows"] = 0.25,
    seed: int = 0,
) -> SparsePrediction:
    """The lasso of each unit of y on all units of x, over a sweep of lambda, scored on rows held out: a share of them at random, or the rows given,
    as they have to be where rows of one document are alike.

    Units are standardised on the rows that are fitted on. q lasso paths (scikit-learn's, with the Gram matrix of x computed once). Raises
    ConfigError for penalties that do not fall within (0, 1], `held_out` outside (0, 1) or not of n rows, too few rows, and constant units of y.
    """
    from sklearn.linear_model import lasso_path

    shares = np.asarray(penalties, dtype=np.float64)
    if not len(shares) or shares.min() <= 0 or shares.max() > 1 or (np.diff(shares) >= 0).any():
        raise ConfigError(f"penalties must fall within (0, 1], got {list(penalties)} (sparse_prediction)")
    if len(x) != len(y):
        raise ConfigError(f"x and y must have the same rows, got {len(x)} and {len(y)} (sparse_prediction)")
    test, fit = _split(held_out, len(x), seed)
    if len(test) < 2 or len(fit) < 3:
        raise ConfigError(f"x must have rows for both fitting and scoring, got {len(fit)} and {len(test)} (sparse_prediction)")
    features, targets = (_scaled(each, fit, name) for each, name in ((x, "x"), (y, "y")))
    if bool((targets[fit] == 0).all(dim=0).any()):
        raise ConfigError("y must have no unit that is constant on the fitted rows; drop it (sparse_prediction)")
    inputs, n = np.asfortranarray(features[fit].numpy()), len(fit)  # the order that the solver takes without a copy
    gram = inputs.T @ inputs
    r_squared, n_used = [], []
    for j in range(targets.shape[1]):
        product = inputs.T @ targets[fit, j].numpy()
        largest = np.abs(product).max() / n
        _, weights, _ = lasso_path(
            inputs, targets[fit, j].numpy(), alphas=shares * max(largest, 1e-300), precompute=gram, Xy=product, max_iter=10_000
        )
        left = targets[test, j, None] - features[test] @ torch.from_numpy(weights)
        spread = (targets[test, j] - targets[test, j].mean()).square().sum()
        r_squared.append(
            1 - left.square().sum(dim=0) / spread if spread > 0 else torch.full((len(shares),), float("nan"), dtype=torch.float64)
        )
        n_used.append(torch.from_numpy((weights != 0).sum(axis=0)))
    return SparsePrediction(torch.from_numpy(shares), torch.stack(r_squared), torch.stack(n_used))


def joint_blocks(
    x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, n_clusters: int, absolute: bool = False, seed: int = 0
) -> JointBlocks:
    """Spectral clusters of all p + q units by the correlations within and between the networks; constant units stand alone in the graph.

    O((p + q)^2) memory. Raises ConfigError for `n_clusters` outside 2..p+q-1, and as `unit_correlations`.
    """
    from sklearn.cluster import SpectralClustering

    p, q = x.shape[1], y.shape[1]
    if not 2 <= n_clusters < p + q:
        raise ConfigError(f"n_clusters must be in 2..{p + q - 1}, got {n_clusters} (joint_blocks)")
    joint = torch.cat(_both(x, y), dim=1)
    graph = (joint.T @ joint).nan_to_num(nan=0.0)
    graph = (graph.abs() if absolute else graph.clamp(min=0)) + 1e-12  # connected, as the eigenvectors need it
    model = SpectralClustering(n_clusters, affinity="precomputed", random_state=seed, assign_labels="cluster_qr")
    labels = torch.from_numpy(model.fit_predict(graph.numpy()).astype(np.int64))
    sizes = torch.stack([torch.bincount(part, minlength=n_clusters) for part in (labels[:p], labels[p:])], dim=1)
    return JointBlocks(labels[:p], labels[p:], sizes)


def _split(held_out: float | Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to score on, and rows to fit on."""
    if isinstance(held_out, Tensor):
        if len(held_out) != n:
            raise ConfigError(f"held_out must say of each of the {n} rows whether it is held out, got {len(held_out)} (sparse_prediction)")
        return held_out.cpu().nonzero()[:, 0], (~held_out).cpu().nonzero()[:, 0]
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out must be in (0, 1), got {held_out} (sparse_prediction)")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: round(held_out * n)], order[round(held_out * n) :]


def _matched(correlations: Tensor, absolute: bool) -> Convergence:
    values = correlations.abs() if absolute else correlations
    rows, columns = (~values.isnan().all(dim=1)).nonzero()[:, 0], (~values.isnan().all(dim=0)).nonzero()[:, 0]
    if not len(rows) or not len(columns):
        raise ConfigError(f"x and y must have a unit that varies, got {len(rows)} and {len(columns)} (convergence)")
    alive = values[rows][:, columns]
    found = best_pairs(alive)
    best = torch.full((len(values),), float("nan"), dtype=torch.float64)
    partners = torch.full((len(values),), -1)
    highest = alive.max(dim=1)
    best[rows], partners[rows] = highest.values, columns[highest.indices]
    return Convergence(Pairs(rows[found.rows], columns[found.columns], found.similarities, *values.shape, found.bound), best, partners)


def _both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) != len(y):
        raise ConfigError(f"x and y must have one row per input each, got {len(x)} and {len(y)} rows (unit_correlations)")
    return _standardised(x, "x"), _standardised(y, "y")


def _standardised(x: Tensor, name: str) -> Tensor:
    """Columns of mean 0 and norm 1, float64, on the CPU; nan for a constant one."""
    require_points(x, minimum=3, argument=name, where="unit_correlations")
    if x.shape[1] > LARGEST:
        raise ConfigError(
            f"{name} must have at most {LARGEST} units, got {x.shape[1]}; use sae.geometry.atoms.correlation (unit_correlations)"
        )
    columns = x.detach().cpu().double()
    centred = columns - columns.mean(dim=0)
    flat = centred.abs().amax(dim=0) <= 8 * torch.finfo(torch.float64).eps * columns.abs().amax(dim=0)
    return torch.where(flat, float("nan"), centred / centred.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny))


def _scaled(x: Tensor, fit: Tensor, name: str) -> Tensor:
    """Columns with mean 0 and mean square 1 on the fitted rows, float64; 0 where they do not vary there."""
    require_points(x, minimum=3, argument=name, where="sparse_prediction")
    columns = x.detach().cpu().double()
    mean, deviation = columns[fit].mean(dim=0), columns[fit].std(dim=0, correction=0)
    flat = deviation <= 8 * torch.finfo(torch.float64).eps * columns.abs().amax(dim=0)
    return torch.where(flat, 0.0, (columns - mean) / torch.where(flat, 1.0, deviation))
