"""Properties that every measure of a cloud of points has, whatever it measures: `check(measure)` runs them all.

A measure is a function of rows [n, d], or of two clouds with as many rows. What a rotation, a scale, a translation, an invertible map do to it is
part of its definition, so the table says it: True for "stays the same", False for "changes", None where neither is promised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.errors import ConfigError


def anisotropic_cloud(n: int = 60, d: int = 8) -> Callable[[torch.Generator], Tensor]:
    """Draws of n points whose coordinates have unequal scales and a mean that is not zero, in float64."""

    def draw(generator: torch.Generator) -> Tensor:
        scales = torch.linspace(0.5, 2.0, d, dtype=torch.float64)
        return torch.randn(n, d, generator=generator, dtype=torch.float64) * scales + torch.linspace(-1, 1, d, dtype=torch.float64)

    return draw


CLOUD, SECOND = anisotropic_cloud(), anisotropic_cloud(d=6)


@dataclass(frozen=True)
class Measure:
    """A measure, and what it is invariant to. Transforms act on the first cloud; a permutation of the rows acts on both."""

    name: str
    call: Callable[..., Any]
    rotation: bool | None
    scale: bool | None
    translation: bool | None
    linear: bool | None = None
    permutation: bool | None = True
    pair: bool = False
    cloud: Callable[[torch.Generator], Tensor] = CLOUD
    second: Callable[[torch.Generator], Tensor] = SECOND
    blocked: Callable[..., Any] | None = None
    """The same measure with a block or chunk size as its last argument."""
    tolerance: float = 1e-6
    single_tolerance: float = 1e-4
    """Largest difference between float32 and float64, relative to 1 + |value|."""
    constant_column: bool = True
    """Whether the measure is defined with a constant column among the others (True), or has to raise ConfigError (False)."""
    duplicates: bool = True
    """Whether the measure is defined where some rows are equal."""
    wide: bool = True
    """Whether the measure is defined for fewer points than dimensions."""

    def value(self, *clouds: Tensor) -> Tensor:
        found = self.call(*clouds)
        return torch.as_tensor(found).detach().double().flatten()

    def __str__(self) -> str:
        return self.name


def _clouds(measure: Measure, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = measure.cloud(generator)
    return [first, measure.second(generator)] if measure.pair else [first]


def _orthogonal(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def _transforms(d: int) -> dict[str, Callable[[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(91)
    shift = 3 * torch.randn(d, generator=generator, dtype=torch.float64)
    left, right = _orthogonal(d, 92), _orthogonal(d, 93)
    stretched = left @ torch.diag(torch.logspace(-0.7, 0.7, d, dtype=torch.float64)) @ right
    return {
        "rotation": lambda x: x @ left,
        "scale": lambda x: 2.7 * x,
        "translation": lambda x: x + shift,
        "linear": lambda x: x @ stretched,
    }


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + a.abs())).all())


def _defined_or_refused(measure: Measure, clouds: list[Tensor], defined: bool, what: str) -> None:
    if defined:
        found = measure.value(*clouds)
        assert found.isfinite().all(), f"{measure.name}: {what} gives {found}"
    else:
        with pytest.raises(ConfigError):
            measure.value(*clouds)


def check_invariances(measure: Measure) -> None:
    first, *others = _clouds(measure, 1)
    value = measure.value(first, *others)
    assert value.isfinite().all()
    for name, transform in _transforms(first.shape[1]).items():
        promised = getattr(measure, name)
        if promised is not None:
            same = _close(value, measure.value(transform(first), *others), measure.tolerance)
            assert same == promised, f"{measure.name} should {'stay' if promised else 'change'} under {name}"
    if measure.permutation is not None:
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(7))
        same = _close(value, measure.value(first[order], *(each[order] for each in others)), measure.tolerance)
        assert same == measure.permutation, f"{measure.name} under a permutation of the rows"


def check_types(measure: Measure) -> None:
    """float32 agrees with float64, halves give what their rounded values give, arguments stay as they were, a second call gives the same."""
    clouds = _clouds(measure, 2)
    before = [each.clone() for each in clouds]
    value = measure.value(*clouds)
    assert torch.equal(value, measure.value(*clouds)), f"{measure.name} differs from call to call"
    assert all(torch.equal(a, b) for a, b in zip(before, clouds, strict=True)), f"{measure.name} changed its argument"
    assert _close(value, measure.value(*(each.float() for each in clouds)), measure.single_tolerance), f"{measure.name} in float32"
    halves = [each.half() for each in clouds]
    rounded = measure.value(*(each.double() for each in halves))
    assert _close(rounded, measure.value(*halves), measure.single_tolerance), f"{measure.name} in float16"


def check_degenerate(measure: Measure) -> None:
    first, *others = _clouds(measure, 3)
    for bad in (float("nan"), float("inf")):
        broken = first.clone()
        broken[1, 0] = bad
        with pytest.raises(ConfigError):
            measure.value(broken, *others)
    constant = first.clone()
    constant[:, 0] = 1.5
    _defined_or_refused(measure, [constant, *others], measure.constant_column, "a constant column")
    repeated = first.clone()
    repeated[5:9] = repeated[4]
    _defined_or_refused(measure, [repeated, *others], measure.duplicates, "equal rows")
    generator = torch.Generator().manual_seed(4)
    wide = torch.randn(len(first), 2 * len(first), generator=generator, dtype=torch.float64)
    _defined_or_refused(measure, [wide, *others], measure.wide, "fewer points than dimensions")
    with pytest.raises(ConfigError):
        measure.value(first[:0], *(each[:0] for each in others))


def check_blocks(measure: Measure) -> None:
    if measure.blocked is None:
        return
    clouds = _clouds(measure, 5)
    whole = measure.value(*clouds)
    for size in (1, 7, 64, 10_000):
        part = torch.as_tensor(measure.blocked(*clouds, size)).double().flatten()
        assert _close(whole, part, measure.tolerance), f"{measure.name} in blocks of {size}"


def check(measure: Measure) -> None:
    """All of the above."""
    check_invariances(measure)
    check_types(measure)
    check_degenerate(measure)
    check_blocks(measure)


def check_calibrated(p_value: Callable[[int], float], *, n_draws: int = 200) -> None:
    """p-values of data without the effect, one per seed, are uniform: a Kolmogorov-Smirnov test does not reject at 1 %.

    p-values of a permutation test with n draws lie on a grid; spreading each uniformly over its own step makes them continuous.
    """
    from scipy.stats import kstest

    found = torch.tensor([p_value(seed) for seed in range(n_draws)], dtype=torch.float64)
    steps = torch.unique(found)
    width = (steps[1:] - steps[:-1]).min() if len(steps) > 1 else torch.tensor(0.0)
    spread = found - width * torch.rand(n_draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert kstest(spread.numpy(), "uniform").pvalue > 0.01
