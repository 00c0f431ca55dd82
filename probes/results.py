"""How a result shows itself: a table of numbers with the words that say what they mean, in a terminal, a notebook and a figure.

Every result of the package is a `Result`: `table()` is what it found, `str()` and the notebook show that table, `figure()` draws it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from markupsafe import Markup

from sae.errors import ConfigError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Cell: TypeAlias = str | int | float | bool | None
TABLE_STYLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
CELL_STYLE = "padding:2px 10px;white-space:nowrap;border-bottom:1px solid rgba(128,128,128,.3)"


@dataclass(frozen=True)
class Table:
    """Rows under named columns, with a title and a note on how to read them."""

    title: str
    """What the table shows, in a line."""
    columns: tuple[str, ...]
    """Headings; a unit in parentheses where there is one."""
    rows: tuple[tuple[Cell, ...], ...]
    """One cell per column; None is shown as a dash."""
    note: str = ""
    """What the numbers mean and what chance gives."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigError(f"a row must have one cell per column ({len(self.columns)}), got {len(row)} (table {self.title!r})")

    def records(self) -> list[dict[str, Cell]]:
        """One dictionary per row: `pandas.DataFrame(table.records())` is the table as a data frame."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def column(self, name: str) -> list[Cell]:
        """The cells under a heading. Raises ConfigError for an unknown one."""
        if name not in self.columns:
            raise ConfigError(f"name must be one of {', '.join(self.columns)}, got {name!r} (table {self.title!r})")
        return [row[self.columns.index(name)] for row in self.rows]

    def text(self) -> str:
        """The table for a terminal: numbers to the right, words to the left."""
        shown = [list(self.columns), *([show(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in shown) for i in range(len(self.columns))]
        right = [self._is_number(i) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right, strict=True)
            )
            for row in shown
        ]
        return "\n".join(line.rstrip() for line in [self.title, *lines, *([self.note] if self.note else [])])

    def html(self) -> str:
        """The table for a notebook, in the notebook's own colours; every cell is escaped."""
        head = Markup("").join(self._cell("th", i, name) for i, name in enumerate(self.columns))
        body = Markup("").join(
            Markup("<tr>{}</tr>").format(Markup("").join(self._cell("td", i, show(cell)) for i, cell in enumerate(row)))
            for row in self.rows
        )
        caption = Markup('<caption style="text-align:left;font-weight:600;padding:4px 10px">{}</caption>').format(self.title)
        table = Markup('<table style="{}">{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(TABLE_STYLE, caption, head, body)
        note = Markup('<p style="max-width:60em;opacity:.8;font-size:90%">{}</p>').format(self.note) if self.note else Markup("")
        return str(Markup('<div style="overflow-x:auto">{}{}</div>').format(table, note))

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.text())

    def _cell(self, tag: str, column: int, content: str) -> Markup:
        align = "right" if self._is_number(column) else "left"
        return Markup('<{0} style="text-align:{1};{2}">{3}</{0}>').format(Markup(tag), align, CELL_STYLE, content)

    def _is_number(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in cells)


def show(cell: Cell) -> str:
    """A cell as text: three decimals for a share-sized number, three figures for others, thousands with commas, a dash for None or NaN."""
    if cell is None or cell != cell:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        if cell == 0 or 0.0005 <= abs(cell) < 10:
            return f"{cell:.3f}"
        return f"{cell:,.0f}" if 1000 <= abs(cell) < 1e7 else f"{cell:.3g}"
    return cell


class Result(ABC):
    """What an analysis found: fields with the numbers, a table, a figure."""

    @abstractmethod
    def table(self) -> Table:
        """The numbers, each beside its control."""

    @abstractmethod
    def figure(self) -> "Figure":
        """The numbers as a plotly figure."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.__repr__ = Result.__repr__  # a dataclass leaves one that is there

    def __repr__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()
