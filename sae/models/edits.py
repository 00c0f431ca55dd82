"""Edits: what an intervention does to the activations at a site, as values.

    replace      a <- value                             (or value(a))
    add          a <- a + scale * d
    project_out  a <- a - Q Q^T a                       Q an orthonormal basis of the span of the directions
    clamp        a <- a + (clip(c, low, high) - c) u    c = <a, u>, u = d / |d|: the coordinate along d is held in [low, high]

The arithmetic is float32 (float64 for float64 activations) and the result is cast back to the model's dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.models.sites import Site

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Replace:
    """a <- value, broadcast to [batch, context, width]."""

    value: Tensor

    def __call__(self, acts: Tensor) -> Tensor:
        return self.value.to(acts).expand_as(acts)


@dataclass(frozen=True, eq=False)
class Add:
    """a <- a + scale * direction; a tensor scale is [batch, context]."""

    direction: Tensor
    scale: float | Tensor

    def __call__(self, acts: Tensor) -> Tensor:
        scale = self.scale[..., None].to(acts) if isinstance(self.scale, Tensor) else self.scale
        return acts + scale * self.direction.to(acts)


@dataclass(frozen=True, eq=False)
class ProjectOut:
    """a <- a - basis^T basis a, the rows of basis orthonormal."""

    basis: Tensor

    def __call__(self, acts: Tensor) -> Tensor:
        basis = self.basis.to(acts)
        return acts - (acts @ basis.T) @ basis


@dataclass(frozen=True, eq=False)
class Clamp:
    """a <- a + (clip(c, low, high) - c) u with c = <a, u>."""

    unit: Tensor
    low: float
    high: float

    def __call__(self, acts: Tensor) -> Tensor:
        unit = self.unit.to(acts)
        coordinate = acts @ unit
        return acts + (coordinate.clamp(self.low, self.high) - coordinate)[..., None] * unit


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention. `transform` maps activations [batch, context, width] to activations of the same shape and must not mutate them."""

    site: Site
    transform: Transform

    @classmethod
    def replace(cls, site: Site, value: Float[Tensor, "*broadcast"] | Transform) -> "Edit":
        """The activations become `value`: a tensor that broadcasts to [batch, context, width], or what a function makes of them."""
        return cls(site, Replace(value) if isinstance(value, Tensor) else value)

    @classmethod
    def add(cls, site: Site, direction: Float[Tensor, " width"], scale: float | Float[Tensor, "batch context"] = 1.0) -> "Edit":
        """`scale * direction` is added: everywhere, or at each token as much as `scale` [batch, context] says."""
        _check_directions(site, direction[None])
        return cls(site, Add(direction, scale))

    @classmethod
    def project_out(cls, site: Site, directions: Float[Tensor, "n width"]) -> "Edit":
        """The component in the span of `directions` is removed. They need be neither unit nor orthogonal; a repeated one counts once.

        Directions whose singular value is below eps * max(n, width) times the largest one are taken as dependent on the others.
        """
        _check_directions(site, directions)
        wide = directions.double()
        _, singular, rows = torch.linalg.svd(wide / wide.norm(dim=-1, keepdim=True), full_matrices=False)
        tolerance = torch.finfo(directions.dtype).eps * max(directions.shape) * singular[0]
        return cls(site, ProjectOut(rows[singular > tolerance]))

    @classmethod
    def clamp(cls, site: Site, direction: Float[Tensor, " width"], low: float, high: float) -> "Edit":
        """The coordinate along `direction` (made unit) is held in [low, high]; `low = high` sets it."""
        _check_directions(site, direction[None])
        if not low <= high:
            raise ConfigError(f"low must be at most high, got low={low}, high={high} (Edit.clamp)")
        wide = direction.double()
        return cls(site, Clamp(wide / wide.norm(), float(low), float(high)))

    def apply(self, acts: Float[Tensor, "batch context width"]) -> Float[Tensor, "batch context width"]:
        """The edited activations in the dtype of `acts`. Raises ConfigError when the transform changes the shape."""
        edited = self.transform(acts.to(torch.promote_types(acts.dtype, torch.float32)))
        if edited.shape != acts.shape:
            raise ConfigError(f"an edit at {self.site.name} must keep the shape {list(acts.shape)}, got {list(edited.shape)}")
        return edited.to(acts)


def _check_directions(site: Site, directions: Tensor) -> None:
    if directions.dim() != 2 or directions.shape[0] == 0 or directions.shape[1] != site.width:
        raise ConfigError(f"a direction at {site.name} must have width {site.width}, got shape {tuple(directions.shape[-2:])}")
    norms = directions.double().norm(dim=-1)
    if not bool(torch.isfinite(norms).all()) or bool((norms == 0).any()):
        raise ConfigError(f"directions at {site.name} must be finite and not zero, got norms {norms.tolist()[:8]}")
