"""The figures of `sae.evaluation.figures` as Plotly figures, for notebooks: the same labels, colours and marks as `charts.figure_chart`
draws."""

import math
import textwrap
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from sae.evaluation.figures import AnyFigure, Axis, Figure, HeatMap, Rule, Series
from sae.inspection.heatmaps import NEGATIVE, POSITIVE
from sae.inspection.svg import PALETTE

if TYPE_CHECKING:
    import plotly.graph_objects

NULL = "#808080"
"""Colour of what chance gives."""
SYMBOLS = ("circle", "square", "triangle-up", "diamond")
WIDTH, HEIGHT = 720, 420
LINE = 18
"""Height of a line of the caption."""
FEW = 24
"""Points up to which a line shows them."""


def to_plotly(figure: AnyFigure, places: Mapping[str, int] | None = None) -> "plotly.graph_objects.Figure":
    """The figure for a notebook. `places` fixes the colour (a place in the palette) of a series by its name, as `charts.colour_places` gives.

    Nulls are grey and dashed, bands are shaded, whiskers are error bars; the caption stands below.
    """
    from plotly.graph_objects import Figure as PlotlyFigure

    drawn = PlotlyFigure()
    drawn.update_layout(**_layout(figure))
    if isinstance(figure, HeatMap):
        drawn.add_heatmap(**_heat_map(figure))
        return drawn
    own = {s.name: i for i, s in enumerate(s for s in figure.series if s.role == "result")}
    for series in figure.series:
        place = (places or {}).get(series.name, own.get(series.name, 0))
        colour = NULL if series.role == "null" else PALETTE[place % len(PALETTE)]
        for trace in _traces(series, colour, place, figure.x):
            drawn.add_scatter(**trace)
    for rule in figure.rules:
        _add_rule(drawn, rule, figure)
    return drawn


def _layout(figure: AnyFigure) -> dict[str, Any]:
    heat = isinstance(figure, HeatMap)
    title: dict[str, Any] = {"text": figure.title, "x": 0, "xanchor": "left", "font": {"size": 16}}
    lines = _wrapped(figure.caption)
    if lines:
        title["subtitle"] = {"text": "<br>".join(lines), "font": {"size": 12}}
    return {
        "template": "plotly_white",
        "title": title,
        "xaxis": _axis(figure.x, heat=heat),
        "yaxis": _axis(figure.y, heat=heat) | _of_rows(figure),
        "width": WIDTH,
        "height": HEIGHT + LINE * len(lines) + (140 if heat else 0),
        "margin": {"l": 70, "r": 24, "t": 64 + LINE * len(lines), "b": 56},
        "legend": {"bgcolor": "rgba(255,255,255,0.6)"},
        "showlegend": not heat and len(figure.series) > 1,
    }


def _wrapped(text: str, width: int = 100) -> list[str]:
    """The lines of a caption, escaped."""
    return [escape(line, quote=False) for line in textwrap.wrap(text, width)]


def _axis(axis: Axis, *, heat: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "title": {"text": axis.label + (f" ({axis.unit})" if axis.unit else "")},
        "showline": not heat,
        "linecolor": "#444",
    }
    if axis.scale == "log":
        found["type"] = "log"
    if axis.names:
        found |= {"tickmode": "array", "tickvals": list(range(len(axis.names))), "ticktext": list(axis.names), "showgrid": not heat}
    return found


def _of_rows(figure: AnyFigure) -> dict[str, Any]:
    """What only the vertical axis needs: the first row of a matrix on top, the same unit as the horizontal axis."""
    if isinstance(figure, HeatMap):
        return {"autorange": "reversed"}
    return {"scaleanchor": "x", "scaleratio": 1} if figure.equal else {}


def _traces(series: Series, colour: str, place: int, axis: Axis) -> list[dict[str, Any]]:
    if series.mark == "bars":
        return [_bars(series, colour)]
    null = series.role == "null"
    few = series.mark == "points" or 3 <= len(series.x) <= FEW
    many = len(series.x) > FEW
    names = list(series.labels) or ([axis.names[int(v)] for v in series.x] if axis.names else None)
    main: dict[str, Any] = {
        "x": list(series.x),
        "y": list(series.y),
        "name": series.name,
        "mode": "markers+text" if series.named else "markers" if series.mark == "points" else "lines+markers" if few else "lines",
        "line": {"color": colour, "width": 2.2, "dash": "dash" if null else "solid"},
        "marker": {"color": colour, "size": 4 if many else 8, "opacity": 0.5 if many else 1.0, "symbol": SYMBOLS[place % len(SYMBOLS)]},
    }
    if names:
        main |= {"text": names, "hovertemplate": "%{text}: %{y}<extra></extra>", "textposition": "top center"}
    if not series.low:
        return [main]
    if series.mark == "points":
        up = [h - v for h, v in zip(series.high, series.y, strict=True)]
        down = [v - low for v, low in zip(series.y, series.low, strict=True)]
        return [main | {"error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": colour}}]
    edge = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip", "legendgroup": series.name}
    band = [
        edge | {"x": list(series.x), "y": list(series.high)},
        edge | {"x": list(series.x), "y": list(series.low), "fill": "tonexty", "fillcolor": _faint(colour, 0.18)},
    ]
    return [*band, main | {"legendgroup": series.name}]


def _bars(series: Series, colour: str) -> dict[str, Any]:
    """A histogram as a line of steps, filled for a result and dashed for a null: bars of any width, on any axis."""
    null = series.role == "null"
    return {
        "x": list(series.x),
        "y": [*series.y, series.y[-1]],
        "name": series.name,
        "mode": "lines",
        "line": {"color": colour, "width": 1.5, "shape": "hv", "dash": "dash" if null else "solid"},
        **({} if null else {"fill": "tozeroy", "fillcolor": _faint(colour, 0.45)}),
    }


def _add_rule(drawn: Any, rule: Rule, figure: Figure) -> None:
    axis = figure.x if rule.axis == "x" else figure.y
    place = math.log10(rule.value) if axis.scale == "log" else rule.value  # of a text; a shape takes the number itself
    look = {"line": {"color": "#444", "dash": "dot", "width": 1}}
    text = {"text": rule.label, "showarrow": False, "font": {"size": 11}}
    if rule.axis == "x":
        drawn.add_shape(type="line", x0=rule.value, x1=rule.value, y0=0, y1=1, yref="paper", **look)
        drawn.add_annotation(x=place, y=1, yref="paper", xanchor="left", yanchor="top", **text)
    else:
        drawn.add_shape(type="line", y0=rule.value, y1=rule.value, x0=0, x1=1, xref="paper", **look)
        drawn.add_annotation(y=place, x=0.01, xref="paper", xanchor="left", yanchor="bottom", **text)


def _heat_map(figure: HeatMap) -> dict[str, Any]:
    names = [[f"{y}, {x}" for x in figure.x.names] for y in figure.y.names]
    if figure.low >= 0:
        colours: list[list[Any]] = [[0, "#ffffff"], [1, POSITIVE]]
        ends: tuple[float | int, float | int] = (figure.low, figure.high)
    else:
        most = max(-figure.low, figure.high)
        colours, ends = [[0, NEGATIVE], [0.5, "#ffffff"], [1, POSITIVE]], (-most, most)
    return {
        "z": [list(row) for row in figure.values],
        "text": names,
        "hovertemplate": "%{text}: %{z:.4g}<extra></extra>",
        "colorscale": colours,
        "zmin": ends[0],
        "zmax": ends[1],
        "colorbar": {"title": {"text": figure.label}},
        "xgap": 1,
        "ygap": 1,
    }


def _faint(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
