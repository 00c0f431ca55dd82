"""What a report says, as frozen plain records: they go through `sae.fingerprint.to_json` and `from_json`, so pages, programs and files
share them.

A report is a summary of facts, sections of text, tables and figures, and lists of features. Nothing here knows what a dictionary or a
probe is. Figures are those of `sae.evaluation.figures`.
"""

from dataclasses import dataclass
from typing import Literal

from sae.errors import ConfigError
from sae.evaluation.figures import AnyFigure, Axis, Figure, HeatMap, Rule, Series
from sae.inspection.records import FeatureRecord

__all__ = [
    "AnyFigure",
    "Axis",
    "Column",
    "Fact",
    "FeatureList",
    "Figure",
    "HeatMap",
    "ReportData",
    "Role",
    "Row",
    "Rule",
    "Section",
    "Series",
    "Table",
]
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
    """One per column; None is shown as a dash, what follows a line break smaller and below."""
    role: Role = "result"
    """A result, a control (what chance gives), or a baseline (what to beat): the latter two are marked."""
    note: str = ""
    """A definition or remark about the row, shown in a last column when any row has one."""
    better: Literal["", "higher", "lower"] = ""
    """Which direction is good along the row; its best number is marked."""
    strong: tuple[int, ...] = ()
    """Places of the cells to look at first; marked like the best ones."""
    formula: str = ""
    """How the row's numbers are defined, shown in front of the note; or empty."""


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
    folded: bool = False
    """Whether it stands folded up behind its title, after the figures."""
    sideways: bool = False
    """Whether a narrow screen moves it sideways, where otherwise each row breaks into lines: for columns that are to be compared."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                found = f"got {len(row.cells)} in {row.cells!r}"
                raise ConfigError(f"rows must have {len(self.columns)} cells like the columns, {found} (Table {self.title!r})")


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    """Heading, also in the menu."""
    text: str = ""
    """Paragraphs, parted by empty lines."""
    tables: tuple[Table, ...] = ()
    """Tables."""
    figures: tuple[AnyFigure, ...] = ()
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
