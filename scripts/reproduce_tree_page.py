"""The page of `reproduce_tree.py`: matrices of cosines as heat maps, without scripts or outside files."""

from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --positive: #b2182b; --negative: #2166ac }
@media (prefers-color-scheme: dark) { :root { --positive: #f4816b; --negative: #6db4ee } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
.row { display: flex; gap: .75rem } figure { margin: 0; flex: 1 1 0; max-width: 11rem } figcaption { font-size: .8rem }
svg { width: 100%; outline: 1px solid color-mix(in srgb, currentColor 25%, transparent) } .p { fill: var(--positive) } .n { fill: var(--negative) }
"""


def heat_map(matrix: list[list[float]], title: str) -> str:
    """A square of cosines: red positive, blue negative, as strong as they are large."""
    cells = "".join(
        f'<rect class="{"p" if v > 0 else "n"}" x="{j}" y="{i}" width="1" height="1" fill-opacity="{min(abs(v), 1):.2f}"/>'
        for i, row in enumerate(matrix) for j, v in enumerate(row) if abs(v) > 0.01
    )  # fmt: skip
    return f'<svg viewBox="0 0 {len(matrix)} {len(matrix)}" role="img" aria-label="{title}">{cells}</svg>'


class Panel(NamedTuple):
    """One architecture on one kind of data."""

    name: str
    """The architecture."""
    tree_error: str
    """Its error across levels, as text."""
    absorption: str
    """Its absorption score, as text."""
    gram: list[list[float]]
    """Cosines of the learned latents with each other, in the order of the features they are matched to."""
    against_truth: list[list[float]]
    """Their cosines (rows) with the true features."""


def page(sections: dict[str, list[Panel]]) -> str:
    """The page, with a section for every kind of data."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>The tree of concepts</title><style>{STYLE}</style><h1>The tree of concepts</h1>",
        "<p>Upper rows: cosines of the learned latents with each other, in the order of the true features they are matched to (0 parent, 1-3 its "
        "children, 4 parent, ..., 12-19 parents without children). Lower rows: their cosines with the true features; a child that has absorbed its "
        "parent has a mark in the parent's column. Red is positive, blue negative. Of every architecture the seed with the median error across "
        "levels is shown.</p>",
    ]
    for label, panels in sections.items():
        upper = (_figure(p.gram, f"{p.name}, learned cosines", f"{p.name}<br>across levels {p.tree_error}") for p in panels)
        lower = (_figure(p.against_truth, f"{p.name}, cosines with the truth", f"{p.name}<br>absorption {p.absorption}") for p in panels)
        parts.append(f"<h2>{escape(label)}</h2>")
        parts += [f'<div class="row">{"".join(figures)}</div><br>' for figures in (upper, lower)]
    return "\n".join(parts) + "\n"


def _figure(matrix: list[list[float]], title: str, caption: str) -> str:
    return f"<figure>{heat_map(matrix, title)}<figcaption>{caption}</figcaption></figure>"
