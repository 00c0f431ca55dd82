"""How a number is spread over all latents: bars that lead to the latents they count, and pairs of numbers as a cloud without script."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped
from markupsafe import Markup, escape

from sae.inspection.format import number
from sae.inspection.svg import Scale, drawing, line, log_ticks, text, tick_label

LEFT, FOOT = 38, 34


def log_edges(values: Shaped[np.ndarray, "n"], n_bins: int) -> Shaped[np.ndarray, "edges"]:
    """Edges of bins that are equally wide on a logarithmic scale and hold every value; values must be positive."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.1, 1.0)
    if low == high:
        low, high = low / 1.5, high * 1.5
    edges = np.geomspace(low, high, n_bins + 1)
    edges[0], edges[-1] = low, high
    return edges


def distribution_chart(
    values: Shaped[np.ndarray, "n"],
    *,
    name: str,
    link: Callable[[float, float], str] | None = None,
    chosen: tuple[float, float] | None = None,
    n_bins: int = 44,
    width: int = 560,
    height: int = 150,
) -> Markup:
    """Bars of how many latents have which value, on a logarithmic scale. `link(low, high)` is where a bar leads; bars outside `chosen`
    are faint. Values that are not positive do not belong on the scale and must be left out before."""
    edges = log_edges(values, n_bins)
    counts = np.histogram(values, edges)[0]
    most = int(counts.max(initial=0)) or 1
    x, y = Scale(edges[0], edges[-1], LEFT, width - 6, log=True), Scale(0, most, height - FOOT, 8)
    parts = [line(LEFT, y(0), width - 6, y(0)), text(LEFT - 5, y(most) + 8, tick_label(most), anchor="end", opacity=0.75)]
    for i, count in enumerate(counts.tolist()):
        if count:
            low, high = float(edges[i]), float(edges[i + 1])
            inside = chosen is None or (chosen[0] <= high * (1 + 1e-6) and chosen[1] >= low * (1 - 1e-6))
            bar = _bar(
                x(low) + 0.4, y(count), x(high) - x(low) - 0.8, y(0), f"{name} {number(low)} to {number(high)}: {number(count)}", inside
            )
            parts.append(Markup(f'<a href="{escape(link(low, high))}">{bar}</a>') if link else bar)
    parts += _ticks(x, height, name, width)
    label = f"Histogram of the {name} of {number(len(values))} latents, from {number(float(edges[0]))} to {number(float(edges[-1]))}"
    return drawing(width, height, label, parts)


def _bar(x: float, y: float, width: float, floor: float, title: str, inside: bool) -> Markup:
    top = min(y, floor - 1.5)
    look = "bar all" if inside else "bar all out"
    hit = f'<rect class="hit" x="{x:.2f}" y="0" width="{width + 0.8:.2f}" height="{floor:.2f}"></rect>'
    box = f'x="{x:.2f}" y="{top:.2f}" width="{max(width, 0.8):.2f}" height="{floor - top:.2f}"'
    return Markup(f'<g>{hit}<rect class="{look}" {box}></rect><title>{title}</title></g>')


def _ticks(x: Scale, height: int, name: str, width: int) -> list[Markup]:
    ticks = log_ticks(x.low, x.high)
    every = max(1, math.ceil(len(ticks) / 7))
    parts = [text(x(t), height - FOOT + 15, tick_label(t), anchor="middle", opacity=0.75) for t in ticks[::every]]
    return [*parts, text((LEFT + width - 6) / 2, height - 3, f"{name}, logarithmic", anchor="middle", class_="title", opacity=0.75)]
