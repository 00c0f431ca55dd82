"""Scalable graphics as text: escaped elements, scales and axes. Every shape has a class (pages style it) and plain attributes (notebooks
need no style)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from sae.inspection.format import number

TEXT = {"fill": "currentColor", "font-size": 12, "font-family": "inherit"}
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b0539b", "#8a6d00", "#4a7fb5")
"""Line colours, told apart by colour-blind readers; after M. Okabe and K. Ito, Color Universal Design, 2008. Pages lighten them in dark
mode."""


def element(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """One element; names of attributes may use `_` for `-` and a trailing `_` (`class_`). Everything is escaped; floats are rounded to
    0.01."""
    parts = [f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for key, value in attributes.items() if value is not None]
    return Markup(f"<{name}{''.join(parts)}>{escape(content)}</{name}>")


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def join(parts: Sequence[Markup]) -> Markup:
    """The elements one after the other."""
    return Markup("").join(parts)


def text(
    x: float, y: float, content: str, *, anchor: str = "start", class_: str = "label", opacity: float | None = None, **more: object
) -> Markup:
    """A label."""
    return element("text", content, x=float(x), y=float(y), text_anchor=anchor, class_=class_, fill_opacity=opacity, **TEXT | more)


def line(x1: float, y1: float, x2: float, y2: float, *, class_: str = "axis", opacity: float = 0.5, **more: object) -> Markup:
    """A thin straight line."""
    ends = {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)}
    return element("line", class_=class_, stroke="currentColor", stroke_opacity=opacity, **ends, **more)


def drawing(width: int, height: int, title: str, parts: Sequence[Markup], *, class_: str = "chart") -> Markup:
    """The whole picture, with its description for readers who do not see it."""
    body = Markup("{}{}").format(element("title", title), join(parts))
    return element("svg", body, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", aria_label=title, class_=class_)


@dataclass(frozen=True)
class Scale:
    """Maps numbers to pixels, linearly or by logarithm."""

    low: float
    """Number at the first pixel."""
    high: float
    """Number at the last pixel."""
    first: float
    """Pixel of `low`."""
    last: float
    """Pixel of `high`."""
    log: bool = False
    """Whether logarithmic."""

    def __call__(self, value: float) -> float:
        """The pixel of a number."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.first + (value - low) / ((high - low) or 1.0) * (self.last - self.first)

    def ticks(self, n: int = 5) -> list[float]:
        """About `n` round numbers within the range."""
        if self.log:
            return log_ticks(self.low, self.high)
        return round_ticks(self.low, self.high, n)


def round_ticks(low: float, high: float, n: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about `n` of them, within [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / n
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high]; with 2 and 5 times them where that leaves fewer than three."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 2, 5)):
        found = [m * 10.0**e for e in exponents for m in multiples if low * 0.999 <= m * 10.0**e <= high * 1.001]
        if len(found) >= 3:
            return found
    return found or [low]


def tick_label(value: float) -> str:
    """A tick's number, as short as it can be."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return number(float(value), 2)
    rounded = f"{value:.6g}"
    return (f"{int(value):,}".replace(",", "\u202f") if float(value).is_integer() else rounded).replace("-", "−")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions, moved as little as needed (in order) so that neighbours are at least `gap` apart within [low, high]."""
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    placed = [0.0] * len(positions)
    bottom = low
    for i in order:
        placed[i] = max(positions[i], bottom)
        bottom = placed[i] + gap
    top = high
    for i in reversed(order):
        placed[i] = min(placed[i], top)
        top = placed[i] - gap
    return placed
