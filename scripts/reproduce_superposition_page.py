"""The page of `reproduce_superposition.py`: one HTML file, figures as inline SVG, no script, nothing loaded; light and dark by the reader's
setting."""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from reproduce_superposition_figures import gallery, importance_bars, pair_losses, phase_diagram, scatter, stickiness
from torch import Tensor

from sae.inspection.report import asset
from sae.storage.atomic import write_bytes
from sae.synthetic.superposition import ToyModels

STYLE = """
svg.plain { max-width: 100%; height: auto; } .wide-figure { overflow-x: auto; } .wide-figure svg { min-width: 900px; width: 100%; }
.points { fill: none; stroke: var(--s0); stroke-linecap: round; } .curve { fill: none; stroke-width: 2.2; }
.k0 { stroke: var(--s0); } .k1 { stroke: var(--s1); } .k2 { stroke: var(--s2); } .kn { stroke: var(--fg); }
.f0 { fill: var(--s0); } .f1 { fill: var(--s1); } .f2 { fill: var(--s2); } .fn { fill: var(--fg); }
.hull { fill: var(--s0); fill-opacity: 0.1; stroke: var(--s0); stroke-opacity: 0.55; stroke-width: 1.2; stroke-linejoin: round; }
.spoke { stroke: var(--fg); stroke-width: 1.5; stroke-opacity: 0.5; } .edge { stroke: var(--s0); stroke-width: 1.2; }
.tip { fill: var(--s0); } .ignored { fill: var(--bg); stroke: var(--muted); stroke-width: 1.2; }
.halo { paint-order: stroke; stroke: var(--bg); stroke-width: 4px; stroke-linejoin: round; }
.data td { white-space: nowrap; } td.miss { color: var(--s1); font-weight: 650; }
"""


@dataclass(frozen=True)
class Table:
    """Numbers, as text, beside what was expected."""

    name: str
    """Key of the table."""
    title: str
    """Heading."""
    caption: str
    """What it says."""
    header: tuple[str, ...]
    """Names of the columns; the last one is "met" where values were expected."""
    rows: tuple[tuple[str, ...], ...]
    """Cells."""


@dataclass(frozen=True)
class Page:
    """What the page shows."""

    facts: str
    """Seed, starts, time."""
    tables: tuple[Table, ...]
    """Tables, in order."""
    large: ToyModels
    """The sweep of many equal features, by falling density."""
    pairs: ToyModels
    """Two equal features in one dimension, by rising density."""
    phase: tuple[list[float], list[float], Tensor]
    """Densities, importances and weights [density, importance, 2]."""
    gallery: tuple[tuple[int, int, list[Tensor]], ...]
    """Features, dimensions, and the best weights at each of `sparsities`."""
    sparsities: tuple[float, ...]
    """Of the gallery."""
    importance: ToyModels
    """Features of falling importance, by falling density."""


def write_page(page: Page, path: Path) -> None:
    """Write the page, atomically."""
    n, m = page.large.W.shape[2], page.large.W.shape[1]
    tables = {table.name: table for table in page.tables}
    parts = [
        _section(
            "Features stick at one per dimension, then at two",
            f"{n} equally important features in {m} dimensions, each active with probability 1 − S. Left: hidden dimensions per represented feature. Right: "
            "how large a share of a dimension every represented feature has, one dot each.",
            _pair(
                (
                    stickiness(page.large),
                    "Dimensions per feature m / |W|²: |W|² stays at m while features are dense, then at 2m, two a dimension, then grows.",
                ),
                (
                    scatter(page.large),
                    "Dimensionality D of every feature longer than 0.2. On the line at 1/2 all are antipodal pairs. Dense features that matter equally are "
                    "mixed at will, as in principal components: none has a dimension of its own.",
                ),
            ),
            tables["sweep"],
            folded=True,
        ),
        _section(
            "Two features, one dimension: dedicate it, or share it",
            "The second feature is r times as important as the first. When both are rare they share the dimension as an antipodal pair; when they are "
            "common, or one matters much more, it goes to that one alone.",
            _pair(
                (
                    phase_diagram(*page.phase),
                    "What trained models do. Dashed: where W = [1, −1] without bias and the best dedicated solution have equal loss, p = 4s / (2(1 + r) + 3s), "
                    "s = min(1, r). Below it the pair is bound to win; trained pairs tune lengths and biases and hold out "
                    "beyond it.",
                ),
                (
                    pair_losses(page.pairs),
                    "Loss of the best trained model at r = 1, and of the two solutions in closed form; they cross at p = 4/7.",
                ),
            ),
            tables["phase"],
        ),
        _section(
            "Polytopes: what small models learn",
            "The best of several starts. Filled dots: features, at their weights W_i; open dots: features that are ignored. Three dimensions are seen from "
            "aside, far edges fainter.",
            Markup('<figure class="wide-figure">{}</figure>').format(gallery(page.gallery, page.sparsities)),
            tables["geometry"],
            tables["pentagon"],
            tables["polytopes"],
        ),
        _section(
            "Falling importance: more features fit in as they get sparser",
            "20 features in 5 dimensions, feature i weighing 0.7^i. Bars: length |W_i|; colour: superposition, the weight of the other features on "
            "its direction. Dense features: the five most important ones, by themselves. The rarer they are, the more are represented, at the price "
            "of interference.",
            Markup('<figure class="wide-figure">{}</figure>').format(importance_bars(page.importance)),
            tables["linear"],
        ),
    ]
    head = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>Toy models of superposition</title><link rel="icon" href="data:,"><style>{}</style></head>'
    ).format(Markup(asset("report.css") + STYLE))
    title = Markup(
        '<div class="title"><h1>Toy models of superposition</h1><p class="lead">h = Wx, x′ = relu(Wᵀh + b): what W learns when sparse features outnumber '
        'the hidden dimensions. After Elhage et al. 2022 (arXiv 2209.10652).</p><p class="small">{}</p></div>'
    ).format(page.facts)
    html = Markup('{}\n<body><main id="content">{}{}</main></body></html>\n').format(head, title, Markup("\n").join(parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, html.encode())


def _section(title: str, prose: str, figures: Markup, *tables: Table, folded: bool = False) -> Markup:
    shown = [_table(table) for table in tables]
    body = Markup("").join(shown)
    if folded:
        body = Markup('<details class="numbers"><summary>Numbers</summary>{}</details>').format(body)
    return Markup('<section class="part"><h2>{}</h2><p class="prose">{}</p>{}{}</section>').format(title, prose, figures, body)


def _pair(*figures: tuple[Markup, str]) -> Markup:
    drawn = [Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(*figure) for figure in figures]
    return Markup('<div class="figures">{}</div>').format(Markup("").join(drawn))


def _table(table: Table) -> Markup:
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in table.header)
    rows = []
    for row in table.rows:
        first = Markup('<th scope="row">{}</th>').format(row[0])
        cells = [Markup("<td{}>{}</td>").format(Markup(' class="miss"') if cell == "NO" else "", cell) for cell in row[1:]]
        rows.append(Markup("<tr>{}{}</tr>").format(first, Markup("").join(cells)))
    return Markup(
        '<section class="block"><h3>{}</h3><p class="caption">{}</p><div class="scroll" tabindex="0" role="region" aria-label="{}">'
        '<table class="data"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div></section>'
    ).format(table.title, table.caption, table.title, head, Markup("").join(rows))
