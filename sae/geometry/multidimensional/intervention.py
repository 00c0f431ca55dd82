"""Does the model use the circle? A circular probe, patches that move an activation along it, and what explains the states.

    T = (X - mean) V          scores on the top k principal components
    T P ~ Y,  y = (cos, sin) 2 pi a / m      least squares without intercept;   P = Q R
    patch     x* = mean + V Q (R^-T y')      the point of the plane whose probe output is y'; all else at the mean
    keep      x* = x + V Q (R^-T y' - Q^T t)           the same, all else as it was

Engels et al. 2024 (arXiv 2405.14860), section 5 and equations 5-6. The scores are centred, so the mean's own place in the plane is 0, and the
equations above are consistent. The released code subtracts the projection of the mean itself besides, which shifts every patch by the same
vector of the plane; `subtract_raw_mean=True` does as it does. Everything here is arrays: run the model on the patches elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.multidimensional.reconstruction import components
from sae.geometry.rows import require_points


@dataclass(frozen=True, eq=False)
class CircleProbe:
    """A plane in activation space, and the linear map from it to the circle."""

    mean: Float[Tensor, " d"]
    """Mean of the activations, float64."""
    basis: Float[Tensor, "k d"]
    """The principal components V, orthonormal rows."""
    plane: Float[Tensor, "2 d"]
    """V Q: orthonormal rows that span the plane of the circle."""
    triangle: Float[Tensor, "2 2"]
    """R: a point with coordinates a in the plane has probe output a R."""
    r_squared: float
    """Share of the variance of (cos, sin) about 0 that the probe explains on the points it was fitted to; at most 1."""

    def coordinates(self, acts: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """The probe's output, (cos, sin) for a point on the circle."""
        return (acts.double() - self.mean) @ self.plane.T @ self.triangle

    def angles(self, acts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The angle of the output, radians in (-pi, pi]."""
        y = self.coordinates(acts)
        return torch.atan2(y[:, 1], y[:, 0])


@dataclass(frozen=True, eq=False)
class Explanation:
    """How much of the states a growing list of explanations accounts for."""

    r_squared: Float[Tensor, " n_steps"]
    """Share of the centred variance explained by the first explanation, the first two, ...; 0..1 and never falling."""
    residual: Float[Tensor, "n d"]
    """What all of them leave, float64."""
    residual_shares: Float[Tensor, " n_components"]
    """Share of the residual's variance along each of its principal components, descending."""


def fit_circle_probe(acts: Float[Tensor, "n d"], angles: Float[Tensor, " n"], *, n_components: int = 5) -> CircleProbe:
    """The probe of `angles` (radians) in the plane of `acts`, from the top `n_components` principal components.

    Raises ConfigError for fewer than 3 rows, NaN or Inf, n_components outside 2..min(n - 1, d), activations that vary in fewer than two of
    the components, and angles that the components explain in one direction only.
    """
    where = "fit_circle_probe"
    require_points(acts, minimum=3, argument="acts", where=where)
    require_points(angles[:, None], minimum=len(acts), argument="angles", where=where)
    most = min(len(acts) - 1, acts.shape[1])
    if not 2 <= n_components <= most:
        raise ConfigError(f"n_components must be in 2..{most}, the smaller of n - 1 and d, got {n_components} ({where})")
    found = components(acts, n_components=n_components)
    varies = found.variance_shares > 1e-12
    if int(varies.sum()) < 2:
        raise ConfigError(f"acts must vary in at least 2 directions, got {int(varies.sum())} ({where})")
    targets = circle_points(angles)
    scores, basis = found.scores[:, varies], found.directions[varies]
    solution = torch.linalg.lstsq(scores, targets).solution
    q, r = torch.linalg.qr(solution)
    if not r.diagonal().abs().min() > 1e-9 * r.abs().max():
        raise ConfigError(f"the components must explain both cos and sin of angles, got a probe of rank 1: take more components ({where})")
    error = (scores @ solution - targets).square().sum() / targets.square().sum()
    return CircleProbe(found.mean, basis, q.T @ basis, r, 1 - error.item())


def circle_points(angles: Float[Tensor, " n"], *, radius: float = 1.0) -> Float[Tensor, "n 2"]:
    """(cos, sin) times `radius`, float64: the probe outputs y' to patch to."""
    return radius * torch.stack([angles.double().cos(), angles.double().sin()], 1)


def patch_on_circle(
    probe: CircleProbe, targets: Float[Tensor, "n 2"], *, acts: Float[Tensor, "n_acts d"] | None = None, subtract_raw_mean: bool = False
) -> Float[Tensor, "n d"]:
    """Activations whose probe output is `targets`, float64: all else at the mean, or, with `acts`, as it is there.

    `subtract_raw_mean` subtracts the projection of the mean on the plane as well, as the released code does: the probe output is then not
    `targets`. Raises ConfigError for another number of rows than `acts` has, NaN or Inf, and for `acts` with `subtract_raw_mean`.
    """
    require_points(targets, minimum=1, argument="targets", where="patch_on_circle")
    coordinates = torch.linalg.solve_triangular(probe.triangle.T, targets.double().T, upper=False).T
    if acts is None:
        base = probe.mean - (probe.mean @ probe.plane.T @ probe.plane if subtract_raw_mean else 0)
        return base + coordinates @ probe.plane
    require_points(acts, minimum=1, argument="acts", where="patch_on_circle")
    if len(acts) != len(targets) or subtract_raw_mean:
        raise ConfigError(
            f"acts must have a row for each of the {len(targets)} targets and go without subtract_raw_mean, got {len(acts)} rows and "
            f"{subtract_raw_mean} (patch_on_circle)"
        )
    return acts.double() + (coordinates - (acts.double() - probe.mean) @ probe.plane.T) @ probe.plane


def patch_in_subspace(
    acts: Float[Tensor, "n d"], source: Float[Tensor, "n d"], basis: Float[Tensor, "k d"], *, mean: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "n d"]:
    """`acts` with their part in the span of `basis` (orthonormal rows) taken from `source`, float64; with `mean`, all else at the mean.

    The baselines of the test: the probe's `basis` is the patch of the top principal components, the identity that of the whole layer.
    """
    rows = acts.double() if mean is None else mean.double().expand(len(acts), -1)
    return rows + (source.double() - rows) @ basis.T @ basis


def off_circle_sweep(
    probe: CircleProbe, *, radii: Float[Tensor, " n_radii"], angles: Float[Tensor, " n_angles"]
) -> Float[Tensor, "n_radii n_angles d"]:
    """The patches at every radius and angle of the probe's output, all else at the mean: does the answer follow the angle alone?"""
    rows = [patch_on_circle(probe, circle_points(angles, radius=radius)) for radius in radii.tolist()]
    return torch.stack(rows)


def logit_difference(logits: Float[Tensor, "n d_vocab"], correct: Int[Tensor, " n"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """logit(correct answer) - logit(answer of the patch's target): falls below 0 where the patch moved the answer."""
    return (logits.gather(1, correct[:, None]) - logits.gather(1, target[:, None]))[:, 0]


def one_hot(labels: Int[Tensor, " n"], *, n_classes: int) -> Float[Tensor, "n n_classes"]:
    """An explanation by class: one column per class, float64. Raises ConfigError for labels outside 0..n_classes-1."""
    if len(labels) and (labels.min() < 0 or labels.max() >= n_classes):
        raise ConfigError(f"labels must be in 0..{n_classes - 1}, got {labels.min()}..{labels.max()} (one_hot)")
    return torch.nn.functional.one_hot(labels, n_classes).double()


def circle_of_labels(labels: Int[Tensor, " n"], *, n_classes: int) -> Float[Tensor, "n 2"]:
    """An explanation by place on a circle: (cos, sin) of 2 pi label / n_classes, float64; labels count modulo n_classes."""
    return circle_points(labels.double() * (2 * math.pi / n_classes))


def explain_by_regression(
    acts: Float[Tensor, "n d"], explanations: Sequence[Float[Tensor, "_ _"]], *, tolerance: float = 1e-2, n_components: int = 5
) -> Explanation:
    """R^2 of least squares of the centred `acts` on the centred columns of the first explanation, the first two, ..., and what is left.

    For the state behind an answer gamma = alpha + beta: one_hot(alpha), one_hot(beta), circle_of_labels(alpha - beta),
    circle_of_labels(gamma). Singular values of the columns below `tolerance` (absolute, as in the paper) count as 0.

    Raises ConfigError for fewer than 2 rows, NaN or Inf, activations that do not vary, no explanations or one with other rows.
    """
    require_points(acts, minimum=2, argument="acts", where="explain_by_regression")
    if not explanations or any(len(each) != len(acts) for each in explanations):
        raise ConfigError(f"explanations must hold at least one, each with {len(acts)} rows (explain_by_regression)")
    rows = acts.detach().double()
    rows = rows - rows.mean(0)
    total = rows.square().sum()
    if not total > (16 * torch.finfo(torch.float64).eps) ** 2 * acts.double().square().sum():
        raise ConfigError("acts must vary, got rows that are all equal (explain_by_regression)")
    shares, residual = [], rows
    for step in range(1, len(explanations) + 1):
        columns = torch.cat([each.double() for each in explanations[:step]], 1)
        left, lengths, _ = torch.linalg.svd(columns - columns.mean(0), full_matrices=False)
        span = left[:, lengths > tolerance]
        residual = rows - span @ (span.T @ rows)
        shares.append(1 - residual.square().sum() / total)
    r_squared = torch.stack(shares)
    return Explanation(r_squared, residual, components(residual, n_components=n_components).variance_shares)
