"""Figures as frozen plain records: what is drawn, not how.

Measurements make them, `sae.inspection.charts` writes them as static SVG and `sae.inspection.interactive` as Plotly figures, and
`sae.fingerprint.to_json` and `from_json` keep them on disk. They lie below the renderers so that a measurement can say what is to be seen
of it without knowing a page.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from sae.errors import ConfigError


@dataclass(frozen=True)
class Axis:
    """An axis of a figure."""

    label: str
    """What it measures."""
    unit: str = ""
    """Its unit; empty for a pure number."""
    scale: Literal["linear", "log"] = "linear"
    """Spacing."""
    names: tuple[str, ...] = ()
    """Names of the places 0, 1, 2, ... of an axis of things (layers, estimators); empty where it is a number."""

    def __post_init__(self) -> None:
        if self.names and self.scale == "log":
            raise ConfigError(f"scale must be linear for an axis of names, got log (Axis {self.label!r})")


@dataclass(frozen=True)
class Series:
    """Named numbers of a figure."""

    name: str
    """Shown beside the line."""
    x: tuple[float | int, ...]
    """Abscissae; for bars the edges, one more than `y`."""
    y: tuple[float | int, ...]
    """Ordinates."""
    low: tuple[float | int, ...] = ()
    """Lower ends of a band around a line, of a whisker at a point; or empty."""
    high: tuple[float | int, ...] = ()
    """Upper ends of it."""
    mark: Literal["line", "points", "bars"] = "line"
    """How it is drawn."""
    role: Literal["result", "null"] = "result"
    """A result, or what chance gives (grey, dashed)."""
    labels: tuple[str, ...] = ()
    """What each point is, shown when it is pointed at; or empty."""
    named: bool = False
    """Whether the labels stand beside the points."""

    def __post_init__(self) -> None:
        n = len(self.x) - (self.mark == "bars")
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            if len(values) != n and (name == "y" or values or len(self.low) != len(self.high)):
                raise ConfigError(f"{name} must have {n} numbers to match x, got {len(values)} (Series {self.name!r})")
            if not all(math.isfinite(v) for v in (*values, *self.x)):
                raise ConfigError(f"x and {name} must be finite (Series {self.name!r})")
        if self.labels and len(self.labels) != n:
            raise ConfigError(f"labels must be {n} to match x, got {len(self.labels)} (Series {self.name!r})")
        if self.named and not (self.labels and self.mark == "points"):
            raise ConfigError(f"named must be False without labels of points (Series {self.name!r})")
        if self.mark == "bars" and any(b <= a for a, b in pairwise(self.x)):
            raise ConfigError(f"x must ascend: they are the edges of bars (Series {self.name!r})")


@dataclass(frozen=True)
class Rule:
    """A straight line across a figure: a bound, a mean."""

    axis: Literal["x", "y"]
    """The axis it stands on: "x" is a vertical line."""
    value: float | int
    """Where."""
    label: str
    """What it is."""


@dataclass(frozen=True)
class Figure:
    """A chart."""

    title: str
    """Heading."""
    x: Axis
    """Horizontal axis."""
    y: Axis
    """Vertical axis."""
    series: tuple[Series, ...]
    """What is drawn, results last on top."""
    rules: tuple[Rule, ...] = ()
    """Bounds and means."""
    caption: str = ""
    """What is to be seen in it."""
    equal: bool = False
    """Whether a unit is as long on both axes, as in a view of a plane."""

    def __post_init__(self) -> None:
        if not self.series or not all(s.x and s.y for s in self.series):
            raise ConfigError(f"series must be one or more, none of them empty (Figure {self.title!r})")
        if self.equal and "log" in (self.x.scale, self.y.scale):
            raise ConfigError(f"equal must be False on a log axis (Figure {self.title!r})")
        for name, axis in (("x", self.x), ("y", self.y)):
            values = [v for s in self.series for v in getattr(s, name)] + [r.value for r in self.rules if r.axis == name]
            if axis.scale == "log" and not any(s.mark == "bars" and name == "y" for s in self.series) and min(values) <= 0:
                raise ConfigError(f"{name} must be positive on a log axis, got {min(values)} (Figure {self.title!r})")


@dataclass(frozen=True)
class HeatMap:
    """A matrix of numbers as coloured cells."""

    title: str
    """Heading."""
    x: Axis
    """What the columns are, with their `names`."""
    y: Axis
    """What the rows are, with their `names`; the first row is drawn at the top."""
    values: tuple[tuple[float | int | None, ...], ...]
    """The numbers, row by row; None is an empty cell."""
    label: str
    """What the numbers are."""
    low: float | int
    """Number at one end of the colour scale."""
    high: float | int
    """Number at the other end. With `low` < 0 the scale has two colours that meet at 0."""
    caption: str = ""
    """What is to be seen in it."""

    def __post_init__(self) -> None:
        shape = (len(self.values), {len(row) for row in self.values})
        if not self.values or shape != (len(self.y.names), {len(self.x.names)}):
            wanted = f"{len(self.y.names)} rows of {len(self.x.names)} numbers like the names of the axes"
            raise ConfigError(f"values must be {wanted}, got {shape[0]} rows of {sorted(shape[1])} (HeatMap {self.title!r})")
        if not all(math.isfinite(v) for row in self.values for v in row if v is not None):
            raise ConfigError(f"values must be finite (HeatMap {self.title!r})")
        if not self.low < self.high:
            raise ConfigError(f"low must be below high, got {self.low} and {self.high} (HeatMap {self.title!r})")


AnyFigure = Figure | HeatMap
"""What a section of a page can show."""
