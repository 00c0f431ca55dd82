"""Measure: a named computation on some inputs that gives numbers with their nulls, and figures. Battery: measures that belong together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sae.errors import ConfigError
from sae.evaluation.batteries.findings import Number, Quantity
from sae.evaluation.batteries.inputs import Inputs, Need
from sae.evaluation.figures import AnyFigure


@dataclass(frozen=True)
class Outcome:
    """What a measure gives; it goes through JSON, and so into the result cache."""

    numbers: tuple[Number, ...]
    """Values with their nulls, of the measure's quantities."""
    figures: tuple[AnyFigure, ...] = ()
    """What is to be seen."""
    notes: tuple[str, ...] = ()
    """Sizes of samples, and what was left out."""


@dataclass(frozen=True, eq=False)
class Measure:
    """A named computation; what it depends on is in `needs` and in its configuration, and nothing else."""

    name: str
    """Short name, unique among all measures; also names its results in the cache."""
    title: str
    """Heading on the page."""
    text: str
    """What is asked and how, in a paragraph."""
    needs: tuple[Need, ...]
    """Inputs that it takes."""
    quantities: tuple[Quantity, ...]
    """What its numbers are."""
    compute: Callable[[Inputs, Any], Outcome]
    """The computation; a ConfigError says that it cannot be done on these inputs, and why."""
    config: Any
    """Settings: a frozen dataclass."""
    quick: Any
    """Settings of a quick look."""
    version: int = 1
    """Raised whenever the computation changes its meaning or its output."""
    each_site: bool = False
    """Whether it is run for one site after the other."""
    curves: tuple[str, ...] = ()
    """Quantities that are drawn over the sites where there are several."""

    def __post_init__(self) -> None:
        names = [quantity.name for quantity in self.quantities]
        if len(set(names)) < len(names) or not set(self.curves) <= set(names):
            raise ConfigError(f"quantities must have names of their own, curves be among them, got {names} (Measure {self.name!r})")

    def quantity(self, name: str) -> Quantity:
        """The quantity of that name. Raises ConfigError for another."""
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        raise ConfigError(f"quantity must be one of {', '.join(q.name for q in self.quantities)}, got {name!r} (Measure {self.name!r})")


@dataclass(frozen=True, eq=False)
class Battery:
    """Measures that belong together."""

    name: str
    """Short name."""
    title: str
    """Heading on the page."""
    about: str
    """What it looks at, in a line."""
    measures: tuple[Measure, ...]
    """In the order of the page."""
    family: str = "geometry"
    """What the battery belongs to: `geometry` or `evaluation`; results are kept under it."""
