"""What a report says, as frozen plain records: they go through `sae.fingerprint.to_json` and `from_json`, so pages, programs and files
share them.

A report is a summary of facts, sections of text, tables and figures, and lists of features. Nothing here knows what a dictionary or a
probe is.
"""

import math
from dataclasses import dataclass
from typing import Literal

from sae.errors import ConfigError
from sae.inspection.records import FeatureRecord

Role = Literal["result", "control", "baseline"]


@dataclass(frozen=True)
class Fact:
    """One thing that was so: a name and its value, as text."""

    name: str
    """For example `Model`."""
    value: str
    """For example `SmolLM2-135M`."""
    note: str = ""
    """A remark, shown smaller; or empty."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    """Heading."""
    unit: str = ""
    """Unit of its numbers, shown with the heading."""
    definition: str = ""
    """What the numbers are; shown below the table."""
    better: Literal["", "higher", "lower"] = ""
    """Which direction is good; the best result of the column is marked."""


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    cells: tuple[str | float | int | None, ...]
    """One per column; None is shown as a dash."""
    role: Role = "result"
    """A result, a control (what chance gives), or a baseline (what to beat): the latter two are marked."""
    note: str = ""
    """A definition or remark about the row, shown in a last column when any row has one."""
    better: Literal["", "higher", "lower"] = ""
    """Which direction is good along the row; its best number is marked."""


@dataclass(frozen=True)
class Table:
    """A table."""

    title: str
    """Heading."""
    columns: tuple[Column, ...]
    """Columns, the first one naming the rows."""
    rows: tuple[Row, ...]
    """Rows."""
    caption: str = ""
    """What is to be seen in it."""
    notes: tuple[str, ...] = ()
    """Remarks below."""
    note_heading: str = "What it means"
    """Heading of the column of row notes."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                found = f"got {len(row.cells)} in {row.cells!r}"
                raise ConfigError(f"rows must have {len(self.columns)} cells like the columns, {found} (Table {self.title!r})")


@dataclass(frozen=True)
class Axis:
    """An axis of a figure."""

    label: str
    """What it measures."""
    unit: str = ""
    """Its unit; empty for a pure number."""
    scale: Literal["linear", "log"] = "linear"
    """Spacing."""


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
    """Lower ends of a band, or empty."""
    high: tuple[float | int, ...] = ()
    """Upper ends of it."""
    mark: Literal["line", "points", "bars"] = "line"
    """How it is drawn."""
    role: Literal["result", "null"] = "result"
    """A result, or what chance gives (grey, dashed)."""

    def __post_init__(self) -> None:
        n = len(self.x) - (self.mark == "bars")
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            if len(values) != n and (name == "y" or values or len(self.low) != len(self.high)):
                raise ConfigError(f"{name} must have {n} numbers to match x, got {len(values)} (Series {self.name!r})")
            if not all(math.isfinite(v) for v in (*values, *self.x)):
                raise ConfigError(f"x and {name} must be finite (Series {self.name!r})")


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

    def __post_init__(self) -> None:
        if not self.series or not all(s.x and s.y for s in self.series):
            raise ConfigError(f"series must be one or more, none of them empty (Figure {self.title!r})")
        for name, axis in (("x", self.x), ("y", self.y)):
            values = [v for s in self.series for v in getattr(s, name)] + [r.value for r in self.rules if r.axis == name]
            if axis.scale == "log" and not any(s.mark == "bars" and name == "y" for s in self.series) and min(values) <= 0:
                raise ConfigError(f"{name} must be positive on a log axis, got {min(values)} (Figure {self.title!r})")


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    """Heading, also in the menu."""
    text: str = ""
    """Paragraphs, parted by empty lines."""
    tables: tuple[Table, ...] = ()
    """Tables."""
    figures: tuple[Figure, ...] = ()
    """Figures, below the tables."""


@dataclass(frozen=True)
class FeatureList:
    """Features of one dictionary, in the order shown; each gets a page."""

    name: str
    """Short name of the dictionary; unique in the report."""
    ranking: str
    """What the order is, in words."""
    records: tuple[FeatureRecord, ...]
    """The features."""


@dataclass(frozen=True)
class ReportData:
    """All that a report shows."""

    title: str
    """Heading."""
    subtitle: str = ""
    """One sentence below it."""
    facts: tuple[Fact, ...] = ()
    """What was run: model, site, corpus, tokens, digests."""
    sections: tuple[Section, ...] = ()
    """Parts, in order."""
    features: tuple[FeatureList, ...] = ()
    """Lists of features."""
    footer: tuple[str, ...] = ()
    """Closing lines: licences, versions."""
