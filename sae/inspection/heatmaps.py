"""Heat maps as inline SVG without script: cells of one colour whose opacity says how large a number is, so that they suit any background."""

from markupsafe import Markup

from sae.evaluation.figures import HeatMap
from sae.inspection.format import number
from sae.inspection.svg import drawing, element, text, tick_label

POSITIVE, NEGATIVE = "#0068a8", "#bd4b00"
"""Colours of numbers above and below zero."""
WIDTH, TOP, BAR, LARGEST = 560, 10, 74, 44.0
LEVELS = 12
"""Steps of the scale beside the cells."""
WRITTEN = 14
"""Columns up to which the numbers stand in their cells."""


def strength(value: float | int, figure: HeatMap) -> float:
    """How far along its side of the colour scale a number lies, in [-1, 1]; negative for numbers below zero on a two-sided scale."""
    if figure.low >= 0:
        return min(max((value - figure.low) / (figure.high - figure.low), 0.0), 1.0)
    return min(max(value / max(-figure.low, figure.high), -1.0), 1.0)


def heat_map(figure: HeatMap) -> Markup:
    """The matrix with its names, and beside it the scale."""
    rows, columns = len(figure.values), len(figure.values[0])
    left = 26 + min(6.4 * max(len(name) for name in figure.y.names), 170.0)
    cell = min((WIDTH - left - BAR) / columns, LARGEST)
    tall = min(cell, 34.0)
    turned = 6.6 * max(len(name) for name in figure.x.names) + 6 > cell
    foot = 6.0 + (min(5.6 * max(len(name) for name in figure.x.names), 120.0) if turned else 14.0) + 20
    parts = []
    for i, row in enumerate(figure.values):
        for j, value in enumerate(row):
            parts += _cell(figure, i, j, value, (left + j * cell, TOP + i * tall, cell, tall), written=columns <= WRITTEN and cell >= 26)
    every = next(k for k in (1, 2, 5, 10, 20, 50, 100, 1000) if k * tall >= 12)
    parts += [
        text(left - 5, TOP + (i + 0.5) * tall + 4, name, anchor="end", opacity=0.75)
        for i, name in enumerate(figure.y.names)
        if i % every == 0
    ]
    parts += _column_names(figure, left, TOP + rows * tall, cell, turned=turned)
    bottom = TOP + rows * tall + foot
    parts.append(text(left + columns * cell / 2, bottom, figure.x.label, anchor="middle", class_="title", opacity=0.85))
    middle = TOP + rows * tall / 2
    parts.append(text(12, middle, figure.y.label, anchor="middle", class_="title", opacity=0.85, transform=f"rotate(-90 12 {middle:.1f})"))
    height = round(max(bottom + 6, TOP + 150))
    parts += _scale(figure, left + columns * cell + 14)
    label = f"{figure.title}: {figure.label} of {rows} {figure.y.label} and {columns} {figure.x.label}"
    return drawing(WIDTH, height, label, parts, class_="chart figure heat")


def _cell(
    figure: HeatMap, i: int, j: int, value: float | int | None, box: tuple[float, float, float, float], *, written: bool
) -> list[Markup]:
    if value is None:
        return []
    x, y, width, height = box
    level = strength(value, figure)
    side, colour = ("high", POSITIVE) if level >= 0 else ("low", NEGATIVE)
    title = element("title", f"{figure.y.names[i]}, {figure.x.names[j]}: {number(float(value), 4)}")
    look = {"class_": f"cell {side}", "fill": colour, "fill_opacity": 0.04 + 0.88 * abs(level)}
    gap = 1.0 if width > 8 else 0.0
    parts = [element("rect", title, x=x, y=y, width=max(width - gap, 0.5), height=max(height - gap, 0.5), **look)]
    if written:
        strong = " strong" if abs(level) > 0.55 else ""
        fill = {"fill": "#ffffff"} if strong else {}
        where = (x + width / 2, y + height / 2 + 4)
        parts.append(text(*where, _short(value), anchor="middle", class_=f"cell-text{strong}", font_size=10, **fill))
    return parts


def _short(value: float | int) -> str:
    """Two decimals, none for whole numbers and what rounds to them; never minus zero."""
    rounded = round(float(value), 2) + 0.0
    return tick_label(rounded) if rounded.is_integer() else f"{rounded:.2f}".replace("-", "−").replace("0.", ".", 1)


def _column_names(figure: HeatMap, left: float, y: float, cell: float, *, turned: bool) -> list[Markup]:
    every = next(k for k in (1, 2, 5, 10, 20, 50, 100, 1000) if k * cell >= 12)
    parts = []
    for j, name in enumerate(figure.x.names):
        if j % every == 0:
            x = left + (j + 0.5) * cell
            turn = {"transform": f"rotate(-55 {x:.1f} {y + 10:.1f})"} if turned else {}
            parts.append(text(x + 4 * turned, y + (12 if turned else 15), name, anchor="end" if turned else "middle", opacity=0.75, **turn))
    return parts


def _scale(figure: HeatMap, x: float) -> list[Markup]:
    """The colours and the numbers they stand for."""
    parts, tall = [], 120 / LEVELS
    for i in range(LEVELS):
        value = figure.high - (figure.high - figure.low) * (i + 0.5) / LEVELS
        level = strength(value, figure)
        side, colour = ("high", POSITIVE) if level >= 0 else ("low", NEGATIVE)
        parts.append(
            element(
                "rect",
                class_=f"cell {side}",
                fill=colour,
                fill_opacity=0.04 + 0.88 * abs(level),
                x=x,
                y=float(TOP) + i * tall,
                width=12,
                height=tall,
            )
        )
    ends = ((figure.high, 0.0), (figure.low, 120.0)) if figure.low >= 0 or figure.high <= 0 else _ends(figure)
    parts += [text(x + 16, TOP + at + 4, tick_label(float(f"{value:.3g}")), opacity=0.75, font_size=11) for value, at in ends]
    parts.append(text(x, TOP + 138, figure.label, anchor="start", class_="title", opacity=0.85, font_size=11))
    return parts


def _ends(figure: HeatMap) -> tuple[tuple[float | int, float], ...]:
    """The ends, and zero where there is room for it between them."""
    zero = 120 * figure.high / (figure.high - figure.low)
    return ((figure.high, 0.0), *(((0, zero),) if 12 <= zero <= 108 else ()), (figure.low, 120.0))
