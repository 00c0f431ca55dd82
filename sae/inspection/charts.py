"""Charts: the histogram and step bars of a card, and the figures of a report, as inline SVG without script."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from markupsafe import Markup

from sae.evaluation.figures import AnyFigure, Axis, Figure, HeatMap, Series
from sae.inspection.format import number
from sae.inspection.heatmaps import heat_map
from sae.inspection.records import Histogram
from sae.inspection.svg import PALETTE, Scale, drawing, element, line, spread, text, tick_label

HOT, COLD = "#d9661f", "#2f7fc1"
"""Positive and negative values."""
MARKERS = ("circle", "square", "triangle", "diamond")


def histogram_chart(histogram: Histogram, *, unit: str, width: int = 360, height: int = 168, marked: bool = False) -> Markup:
    """Bars of a value histogram: counts of tokens, on a square-root axis so that rare large values stay visible.

    With `marked` the drawing carries its scale and counts as data, so that a page can mark a value in it."""
    counts, edges = histogram.counts, histogram.edges
    most = max(counts, default=0)
    x, y = Scale(edges[0], edges[-1], 44, width - 10), Scale(0, max(most, 1) ** 0.5, height - 36, 12)
    parts = []
    ticks = sorted({0, most, *(_round_down(most * share) for share in (0.06, 0.35))})
    places = spread([y(t**0.5) for t in ticks], 0, 0, height)
    for tick, place in zip(ticks, places, strict=True):
        if tick in (0, most) or min(abs(place - y(0)), abs(place - y(most**0.5))) > 14:
            parts += [
                line(44, place, width - 10, place, class_="grid", opacity=0.15),
                text(40, place + 4, tick_label(tick), anchor="end", opacity=0.75),
            ]
    floor, names, places = y(0), [number(edge) for edge in edges], [x(edge) for edge in edges]
    for i, count in enumerate(counts):
        if count:
            top, title = min(y(count**0.5), floor - 1), f"{names[i]} to {names[i + 1]}: {number(count)} tokens"
            box = (places[i] + 0.5, top, max(places[i + 1] - places[i] - 1, 0.5), floor - top)
            parts.append(_bar(*box, title, hot=edges[i + 1] > 0))
    parts.append(line(44, y(0), width - 10, y(0)))
    parts += [text(x(t), height - 20, tick_label(t), anchor="middle", opacity=0.75) for t in x.ticks(5)]
    parts += [text((44 + width - 10) / 2, height - 4, unit, anchor="middle", class_="title", opacity=0.75)]
    span = f"from {number(edges[0])} to {number(edges[-1])}"
    label = f"Histogram of {unit} over {number(sum(counts))} tokens, {span}; heights on a square-root scale"
    ends = {"data_low": f"{edges[0]:.6g}", "data_high": f"{edges[-1]:.6g}", "data_left": 44, "data_right": width - 10, "data_floor": y(0)}
    data = ends | {"data_counts": " ".join(map(str, counts))} if marked else {}
    return drawing(width, height, label, parts, class_="chart values", **data)


def _bar(x: float, y: float, width: float, height: float, title: str, *, hot: bool) -> Markup:
    """One bar, of numbers alone: nothing in it needs escaping."""
    name, colour = ("hot", HOT) if hot else ("cold", COLD)
    box = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return Markup(f'<rect class="bar {name}" fill="{colour}" {box}>' + (f"<title>{title}</title></rect>" if title else "</rect>"))


def _round_down(value: float | int) -> int:
    text_ = str(int(value))
    return int(text_[0]) * 10 ** (len(text_) - 1) if value >= 1 else 0


def step_chart(steps: tuple[int, ...], *, width: int = 360, height: int = 132) -> Markup:
    """Bars of how often a pursuit first selected the latent at each step (1, 2, ...)."""
    most = max(steps, default=0)
    x, y = Scale(0.5, len(steps) + 0.5, 44, width - 10), Scale(0, max(most, 1), height - 36, 12)
    parts = [text(40, y(most) + 4, tick_label(most), anchor="end", opacity=0.75), text(40, y(0) + 4, "0", anchor="end", opacity=0.75)]
    for i, count in enumerate(steps):
        if count:
            top = min(y(count), y(0) - 1)
            title = element("title", f"step {i + 1}: {number(count)} firings")
            box = {"x": x(i + 0.55), "y": top, "width": max(x(i + 1.45) - x(i + 0.55), 0.5), "height": y(0) - top}
            parts.append(element("rect", title, class_="bar step", fill=PALETTE[2], **box))
    parts.append(line(44, y(0), width - 10, y(0)))
    parts += [
        text(x(t), height - 20, tick_label(t), anchor="middle", opacity=0.75) for t in sorted({1.0, *x.ticks(5)}) if t == int(t) and t != 0
    ]
    parts += [text((44 + width - 10) / 2, height - 4, "selection step", anchor="middle", class_="title", opacity=0.75)]
    return drawing(width, height, f"Histogram of the pursuit step at which the latent is first selected, steps 1 to {len(steps)}", parts)


def sparkline(histogram: Histogram, *, width: int = 84, height: int = 22) -> Markup:
    """The value histogram without axes, for lists."""
    most = max(histogram.counts, default=0) or 1
    step = width / max(len(histogram.counts), 1)
    bars = []
    for i, count in enumerate(histogram.counts):
        if count:
            tall = max(1.0, height * (count / most) ** 0.5)
            bars.append(_bar(i * step, height - tall, step * 0.85, tall, "", hot=histogram.edges[i + 1] > 0))
    return drawing(width, height, f"values from {number(histogram.edges[0])} to {number(histogram.edges[-1])}", bars, class_="spark")


WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 330, 68, 48, 14
NARROW = 1.25
"""Ratio of the ends of a log axis below which it is widened by as much on either side: what differs so little is drawn near together."""
FEW = 24
"""Points up to which a line shows them, and a cloud of them is named beside its last one."""


def figure_chart(figure: AnyFigure, places: Mapping[str, int] | None = None) -> Markup:
    """The figure with axes, units, bounds and names beside the lines. `places` fixes the colour (a place in the palette) of a series by
    its name."""
    if isinstance(figure, HeatMap):
        return heat_map(figure)
    listed = [s for s in figure.series if _in_legend(s)]
    drawn = [s for s in figure.series if s.mark == "line"]
    longest = max((len(s.name) for s in drawn), default=0)
    right = WIDTH - (min(18 + 6.6 * longest, 190) if drawn else 16)
    legend = listed if len(figure.series) > 1 else []
    top = TOP + 20 * _legend_rows(legend, right) + 16 * any(r.axis == "x" for r in figure.rules)
    x, y = _scales(figure, right, top)
    colours = _colours(figure.series, places or {})
    parts = [*_axes(figure, x, y, right, top)]
    for s in figure.series:
        if s.mark == "bars":
            parts += _bars(s, x, y, colours[s.name])
    lines = [s for s in figure.series if s.mark != "bars"]
    parts += [shape for s in lines for shape in _band(s, x, y, colours[s.name])]
    parts += [shape for s in lines for shape in _curve(s, x, y, colours[s.name])]
    parts += [*_rules(figure, x, y, right, top), *_names(drawn, x, y, colours, right), *_legend(legend, colours, right)]
    parts += _labels([s for s in figure.series if s.named], x, y, colours, right)
    label = f"{figure.title}: {figure.y.label} against {figure.x.label} for {', '.join(s.name for s in figure.series)}"
    return drawing(WIDTH, HEIGHT, label, parts, class_="chart figure")


def _in_legend(series: Series) -> bool:
    """Whether its name stands above the chart and not beside its points: bars, and points that no line joins and that have no labels."""
    return series.mark != "line" and not series.named


def colour_places(figures: Iterable[AnyFigure]) -> dict[str, int]:
    """A place in the palette for every result of the figures, by name in order of appearance: one thing has one colour in all of them."""
    drawn = (figure for figure in figures if isinstance(figure, Figure))
    names = dict.fromkeys(s.name for figure in drawn for s in figure.series if s.role == "result")
    return {name: i for i, name in enumerate(names)}


def _colours(series: tuple[Series, ...], places: Mapping[str, int]) -> dict[str, tuple[str, str, int]]:
    """Name -> (class, colour, place)."""
    own = {s.name: i for i, s in enumerate(s for s in series if s.role == "result")}
    found = {}
    for s in series:
        place = places.get(s.name, own.get(s.name, 0))
        found[s.name] = ("null", "#808080", 0) if s.role == "null" else (f"s{place % len(PALETTE)}", PALETTE[place % len(PALETTE)], place)
    return found


def _scales(figure: Figure, right: float | int, top: float | int) -> tuple[Scale, Scale]:
    xs = [v for s in figure.series for v in s.x] + [r.value for r in figure.rules if r.axis == "x"]
    ys = [v for s in figure.series for v in (*s.y, *s.low, *s.high)] + [r.value for r in figure.rules if r.axis == "y"]
    log = figure.y.scale == "log"
    if log:
        low, high = min(v for v in ys if v > 0) / 1.15, max(ys) * 1.15
        if any(s.mark == "bars" for s in figure.series):
            low = min(low, min(v for v in ys if v > 0) / 2)
    else:
        low, high = min(ys), max(ys)
        low = 0.0 if low >= 0 and low < 0.5 * high else low - 0.06 * (high - low or 1.0)
        high += 0.06 * (high - low or 1.0)
    x_log = figure.x.scale == "log"
    left, far = min(xs), max(xs)
    if left == far:
        left, far = (left / 2, far * 2) if x_log else (left - 0.5, far + 0.5)
    elif x_log and far < NARROW * left:
        left, far = left / NARROW, far * NARROW
    if figure.x.names:
        left, far = min(left, -0.5), max(far, len(figure.x.names) - 0.5)
    x, y = Scale(left, far, LEFT + 6, right - 8, x_log), Scale(low, high, HEIGHT - BOTTOM, top, log)
    return _equal(x, y) if figure.equal else (x, y)


def _equal(x: Scale, y: Scale) -> tuple[Scale, Scale]:
    """The scales with the denser one's range widened about its middle, so that a unit takes as many pixels on both."""
    units = max((scale.high - scale.low) / abs(scale.last - scale.first) for scale in (x, y))
    half = [units * abs(scale.last - scale.first) / 2 for scale in (x, y)]
    middle = [(scale.low + scale.high) / 2 for scale in (x, y)]
    return tuple(Scale(m - h, m + h, s.first, s.last) for s, m, h in zip((x, y), middle, half, strict=True))  # type: ignore[return-value]


def _ticks(axis: Axis, scale: Scale, values: Iterable[float | int], n: int, room: float | int) -> list[tuple[float, str]]:
    """Places and texts of an axis's ticks; of names as many as `room` pixels each allow."""
    if axis.names:
        pixels = abs(scale(1) - scale(0))
        every = next((k for k in (1, 2, 5, 10, 20, 50) if k * pixels >= room), 100)
        return [(float(i), name) for i, name in enumerate(axis.names) if i % every == 0]
    own = sorted({float(v) for v in values})
    few = scale.log and 1 <= len(own) <= 9 and all(b / a >= 1.4 for a, b in pairwise(own))
    return [(tick, tick_label(tick)) for tick in (own if few else scale.ticks(n))]


def _axes(figure: Figure, x: Scale, y: Scale, right: float | int, top: float | int) -> list[Markup]:
    parts = []
    for tick, label in _ticks(figure.y, y, (), 5, 14):
        parts += [
            line(LEFT, y(tick), right, y(tick), class_="grid", opacity=0.15),
            text(LEFT - 6, y(tick) + 4, label, anchor="end", opacity=0.75),
        ]
    room = 8 + 6.6 * max((len(name) for name in figure.x.names), default=0)
    for tick, label in _ticks(figure.x, x, (v for s in figure.series for v in s.x), 6, room):
        parts += [line(x(tick), y.first, x(tick), y.first + 4), text(x(tick), y.first + 18, label, anchor="middle", opacity=0.75)]
    parts.append(line(LEFT, y.first, right, y.first))
    parts.append(text((LEFT + right) / 2, HEIGHT - 8, _axis_label(figure.x), anchor="middle", class_="title", opacity=0.85))
    middle = (y.first + top) / 2
    turn = f"rotate(-90 14 {middle:.1f})"
    parts.append(text(14, middle, _axis_label(figure.y), anchor="middle", class_="title", opacity=0.85, transform=turn))
    return parts


def _axis_label(axis: Axis) -> str:
    return axis.label + (f" ({axis.unit})" if axis.unit else "")


def _bars(series: Series, x: Scale, y: Scale, colour: tuple[str, str, int]) -> list[Markup]:
    name, fill, _ = colour
    if series.role == "null":  # an outline, so that results show through
        points = [f"{x(series.x[0]):.2f},{y.first:.2f}"]
        for left, right, value in zip(series.x[:-1], series.x[1:], series.y, strict=True):
            height = _height(value, y)
            points += [f"{x(left):.2f},{height:.2f}", f"{x(right):.2f},{height:.2f}"]
        points.append(f"{x(series.x[-1]):.2f},{y.first:.2f}")
        return [
            element(
                "polyline",
                points=" ".join(points),
                class_="outline null",
                fill="none",
                stroke=fill,
                stroke_width=1.6,
                stroke_dasharray="4 3",
            )
        ]
    boxes = []
    for left, right, value in zip(series.x[:-1], series.x[1:], series.y, strict=True):
        if value > 0:
            height = _height(value, y)
            title = element("title", f"{series.name}, {number(left)} to {number(right)}: {number(value)}")
            box = {"x": x(left), "y": height, "width": max(x(right) - x(left) - 0.6, 0.5), "height": max(y.first - height, 0.0)}
            boxes.append(element("rect", title, class_=f"bar {name}", fill=fill, fill_opacity=0.6, **box))
    return boxes


def _height(value: float | int, y: Scale) -> float:
    return min(y(value), float(y.first)) if not y.log or value > 0 else float(y.first)


def _band(series: Series, x: Scale, y: Scale, colour: tuple[str, str, int]) -> list[Markup]:
    if not series.low:
        return []
    if series.mark == "points":  # a whisker at each
        ends = zip(series.x, series.low, series.high, strict=True)
        look = {"class_": f"line {colour[0]}", "stroke": colour[1], "stroke_width": 1.6}
        return [element("line", x1=x(a), y1=_height(b, y), x2=x(a), y2=_height(c, y), **look) for a, b, c in ends]
    there = [f"{x(a):.2f},{_height(b, y):.2f}" for a, b in zip(series.x, series.high, strict=True)]
    back = [f"{x(a):.2f},{_height(b, y):.2f}" for a, b in zip(series.x, series.low, strict=True)]
    return [element("polygon", points=" ".join(there + back[::-1]), class_=f"band {colour[0]}", fill=colour[1], fill_opacity=0.18)]


def _curve(series: Series, x: Scale, y: Scale, colour: tuple[str, str, int]) -> list[Markup]:
    name, stroke, place = colour
    points = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True)]
    parts = []
    if series.mark == "line":
        path = " ".join(f"{a:.2f},{b:.2f}" for a, b in points)
        dash = "5 4" if series.role == "null" else None
        parts.append(
            element("polyline", points=path, class_=f"line {name}", fill="none", stroke=stroke, stroke_width=2.2, stroke_dasharray=dash)
        )
    if series.mark == "points" and len(points) > FEW and not series.labels:
        return parts + [element("circle", class_=f"dot {name}", fill=stroke, fill_opacity=0.45, cx=a, cy=b, r=1.8) for a, b in points]
    if series.mark == "points" or 3 <= len(points) <= FEW:
        names = series.labels or (series.name,) * len(points)
        for (a, b), u, v, label in zip(points, series.x, series.y, names, strict=True):
            title = element("title", f"{label}: {number(float(u))}, {number(float(v), 4)}")
            parts.append(_marker(a, b, MARKERS[place % len(MARKERS)], title, name, stroke))
    return parts


def _marker(x: float | int, y: float | int, shape: str, title: Markup, name: str, fill: str) -> Markup:
    look = {"class_": f"dot {name}", "fill": fill}
    if shape == "circle":
        return element("circle", title, cx=x, cy=y, r=3.6, **look)
    outline = {
        "square": [(-3.3, -3.3), (3.3, -3.3), (3.3, 3.3), (-3.3, 3.3)],
        "triangle": [(0, -4.4), (4.2, 3.2), (-4.2, 3.2)],
        "diamond": [(0, -4.8), (4.2, 0), (0, 4.8), (-4.2, 0)],
    }[shape]
    return element("polygon", title, points=" ".join(f"{x + a:.2f},{y + b:.2f}" for a, b in outline), **look)


def _rules(figure: Figure, x: Scale, y: Scale, right: float | int, top: float | int) -> list[Markup]:
    parts = []
    for rule in figure.rules:
        if rule.axis == "y":
            at = y(rule.value)
            parts += [line(LEFT, at, right, at, class_="rule", opacity=0.7, stroke_dasharray="2 3")]
            parts.append(text(LEFT + 6, at - 5 if at > top + 16 else at + 14, rule.label, class_="rule-label", opacity=0.85))
        else:
            at = x(rule.value)
            parts += [line(at, top, at, y.first, class_="rule", opacity=0.7, stroke_dasharray="2 3")]
    vertical = sorted((r for r in figure.rules if r.axis == "x"), key=lambda r: r.value)
    for i, rule in enumerate(vertical):
        at, leftmost = x(rule.value), x(rule.value) > (LEFT + right) / 2
        parts.append(
            text(
                at + (-4 if leftmost else 4),
                top - 5 + 15 * i,
                rule.label,
                anchor="end" if leftmost else "start",
                class_="rule-label",
                opacity=0.85,
            )
        )
    return parts


def _names(drawn: list[Series], x: Scale, y: Scale, colours: dict[str, tuple[str, str, int]], right: float | int) -> list[Markup]:
    places = spread([y(s.y[-1]) for s in drawn], 16, y.last + 4, y.first - 4)
    parts = []
    for s, place in zip(drawn, places, strict=True):
        name, colour, _ = colours[s.name]
        parts.append(line(x(s.x[-1]) + 5, y(s.y[-1]), right, place, class_="leader", opacity=0.25))
        parts.append(text(right + 4, place + 4, s.name, class_=f"name {name}", fill=colour, font_weight=600))
    return parts


def _labels(named: list[Series], x: Scale, y: Scale, colours: dict[str, tuple[str, str, int]], right: float | int) -> list[Markup]:
    """The labels of points beside them, to the left on the right half; one under the other where they would overlap."""
    points = [(x(a), y(b), label, colours[s.name]) for s in named for a, b, label in zip(s.x, s.y, s.labels, strict=True)]
    parts = []
    for on_left in (False, True):
        side = [point for point in points if (point[0] > (LEFT + right) / 2) == on_left]
        heights = spread([point[1] for point in side], 15, y.last + 4, y.first - 4)
        for (at, down, label, (name, colour, _)), place in zip(side, heights, strict=True):
            reach = -16 if on_left else 16
            if abs(place - down) > 5:
                parts.append(line(at + reach / 4, down, at + reach, place, class_="leader", opacity=0.35))
            anchor = "end" if on_left else "start"
            near = at + (reach * 1.2 if abs(place - down) > 5 else reach / 2)
            parts.append(text(near, place + 4, label, anchor=anchor, class_=f"name halo {name}", fill=colour, font_weight=600))
    return parts


def _legend_rows(listed: list[Series], right: float | int) -> int:
    """Rows that the legend takes."""
    return _legend_places(listed, right)[-1][1] + 1 if listed else 0


def _legend_places(listed: list[Series], right: float | int) -> list[tuple[float, int]]:
    """Left end and row of every entry."""
    at, row, found = float(LEFT), 0, []
    for s in listed:
        wide = 34 + 7.0 * len(s.name)
        if at > LEFT and at + wide > max(right, WIDTH - 16) + 16:
            at, row = float(LEFT), row + 1
        found.append((at, row))
        at += wide
    return found


def _legend(listed: list[Series], colours: dict[str, tuple[str, str, int]], right: float | int) -> list[Markup]:
    parts = []
    for s, (at, row) in zip(listed, _legend_places(listed, right), strict=True):
        name, colour, place = colours[s.name]
        down = 20.0 * row
        if s.mark == "points":
            parts.append(_marker(at + 7, 11.5 + down, MARKERS[place % len(MARKERS)], element("title", s.name), name, colour))
        else:
            null = {"fill": "none", "stroke": colour, "stroke_dasharray": "3 2"}
            look = null if s.role == "null" else {"fill": colour, "fill_opacity": 0.6}
            kind = "outline" if s.role == "null" else "bar"
            parts.append(element("rect", class_=f"{kind} {name}", x=at, y=6.0 + down, width=14, height=11, **look))
        parts.append(text(at + 19, 16 + down, s.name, class_=f"name {name}", fill=colour, font_weight=600))
    return parts
