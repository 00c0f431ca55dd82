"""How every figure of the package looks: one template, colours that colour-blind readers can tell apart, controls in grey and dashed."""

from typing import TYPE_CHECKING, Any

from sae.inspection.svg import PALETTE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CONTROL = "#7f7f7f"
"""Colour of nulls, baselines and chance."""
WIDTH, HEIGHT = 720, 420


def new_figure(title: str, x: str, y: str, *, width: int = WIDTH, height: int = HEIGHT) -> "Figure":
    """An empty figure with a title and named axes (units in parentheses)."""
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0, "xanchor": "left", "font": {"size": 16}},
        xaxis={"title": x, "showline": True, "linecolor": "#444"},
        yaxis={"title": y, "showline": True, "linecolor": "#444"},
        colorway=list(PALETTE),
        width=width,
        height=height,
        margin={"l": 64, "r": 24, "t": 56, "b": 56},
        legend={"bgcolor": "rgba(255,255,255,0.6)"},
    )
    return figure


def colour(i: int) -> str:
    """The i-th line colour, in turn."""
    return PALETTE[i % len(PALETTE)]


def control_line(**more: Any) -> dict[str, Any]:
    """Line style of what a result is compared with."""
    return {"color": CONTROL, "dash": "dash", "width": 1.5} | more


def band(colour_: str, opacity: float = 0.15) -> str:
    """The fill of an interval around a line of that colour (`#rrggbb`)."""
    red, green, blue = (int(colour_[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
