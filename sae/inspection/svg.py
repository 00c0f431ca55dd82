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
    x: float | int,
    y: float | int,
    content: str,
    *,
    anchor: str = "start",
    class_: str = "label",
    opacity: float | int | None = None,
    **more: object,
) -> Markup:
    """A label."""
    return element("text", content, x=float(x), y=float(y), text_anchor=anchor, class_=class_, fill_opacity=opacity, **TEXT | more)


def line(
    x1: float | int, y1: float | int, x2: float | int, y2: float | int, *, class_: str = "axis", opacity: float | int = 0.5, **more: object
) -> Markup:
    """A thin straight line."""
    ends = {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)}
    return element("line", class_=class_, stroke="currentColor", stroke_opacity=opacity, **ends, **more)


def drawing(width: int, height: int, title: str, parts: Sequence[Markup], *, class_: str = "chart", **more: object) -> Markup:
    """The whole picture, with its description for readers who do not see it."""
    body = Markup("{}{}").format(element("title", title), join(parts))
    return element(
        "svg", body, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", aria_label=title, class_=class_, **more
    )


@dataclass(frozen=True)
class Scale:
    """Maps numbers to pixels, linearly or by logarithm."""

    low: float | int
    """Number at the first pixel."""
    high: float | int
    """Number at the last pixel."""
    first: float | int
    """Pixel of `low`."""
    last: float | int
    """Pixel of `high`."""
    log: bool = False
    """Whether logarithmic."""

    def __call__(self, value: float | int) -> float:
        """The pixel of a number."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.first + (value - low) / ((high - low) or 1.0) * (self.last - self.first)

    def ticks(self, n: int = 5) -> list[float]:
        """About `n` round numbers within the range."""
        if self.log:
            return log_ticks(self.low, self.high)
        return round_ticks(self.low, self.high, n)


def round_ticks(low: float | int, high: float | int, n: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about `n` of them, within [low, high]."""
    if high <= low:
        return [float(low)]
    raw = (high - low) / n
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(i * step) for i in range(first, last + 1)]


def log_ticks(low: float | int, high: float | int) -> list[float]:
    """Powers of ten within [low, high]; with 2 and 5 times them where that leaves fewer than three, and evenly where those do too."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 2, 5)):
        found = [m * 10.0**e for e in exponents for m in multiples if low * 0.999 <= m * 10.0**e <= high * 1.001]
        if len(found) >= 3:
            return found
    return found if len(found) > 2 else round_ticks(low, high, 4)


def tick_label(value: float | int) -> str:
    """A tick's number, as short as it can be."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return number(float(value), 2).replace("1×10", "10") if math.log10(abs(value)).is_integer() else number(float(value), 2)
    rounded = f"{value:.6g}"
    return (f"{int(value):,}".replace(",", "\u202f") if float(value).is_integer() else rounded).replace("-", "−")


def spread(positions: Sequence[float | int], gap: float | int, low: float | int, high: float | int) -> list[float]:
    """The positions, moved as little as needed (in order) so that neighbours are at least `gap` apart within [low, high]."""
    order = sorted(range(len(positions)), key=lambda i: (positions[i], i))
    placed = [0.0] * len(positions)
    bottom = float(low)
    for i in order:
        placed[i] = max(float(positions[i]), bottom)
        bottom = placed[i] + gap
    top = float(high)
    for i in reversed(order):
        placed[i] = min(placed[i], top)
        top = placed[i] - gap
    return placed
