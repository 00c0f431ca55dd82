"""The figures of `reproduce_superposition.py`, as inline SVG: curves over sparsity, the phase diagram, polytopes, importances."""

import math
from collections.abc import Callable, Sequence

import torch
from markupsafe import Markup
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from sae.inspection.svg import Scale, drawing, element, line, spread, text
from sae.synthetic.polytopes import arrangement, describe
from sae.synthetic.superposition import (
    ToyModels,
    antipodal_boundary,
    antipodal_loss,
    dedicated_loss,
    dimensions_per_feature,
    feature_dimensionality,
    feature_norms,
    represented,
    superposition,
)

FRACTIONS = {
    1.0: "1  dedicated",
    3 / 4: "3/4  tetrahedron",
    2 / 3: "2/3  triangle",
    1 / 2: "1/2  digon",
    2 / 5: "2/5  pentagon",
    3 / 8: "3/8  square antiprism",
}

# --- curves -----------------------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 600, 380, 56, 584, 26, 330


def _frame(x: Scale, y: Scale, x_label: str, y_label: str, ticks: Sequence[float]) -> list[Markup]:
    parts = [line(x.first, y.first, x.last, y.first)]
    for tick in y.ticks(5):
        parts += [
            line(x.first, y(tick), x.last, y(tick), class_="grid", opacity=0.13),
            text(x.first - 7, y(tick) + 4, f"{tick:g}", anchor="end", opacity=0.75),
        ]
    for tick in ticks:
        parts += [line(x(tick), y.first, x(tick), y.first + 4), text(x(tick), y.first + 18, f"{tick:g}", anchor="middle", opacity=0.75)]
    parts += [text((x.first + x.last) / 2, y.first + 40, x_label, anchor="middle"), text(4, 14, y_label)]
    return parts


def _curve(points: Sequence[tuple[float, float]], class_: str, *, dash: str | None = None) -> Markup:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return element("polyline", points=path, class_=f"curve {class_}", fill="none", stroke_dasharray=dash)


def _dots(points: Sequence[tuple[float, float]], class_: str, *, width: float, opacity: float = 1.0) -> Markup:
    """Many round dots as one path."""
    path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in points)
    return element(
        "path", d=path, class_=f"points {class_}", fill="none", stroke_width=width, stroke_opacity=opacity, stroke_linecap="round"
    )


def _sparsity_axis(models: ToyModels, right: float) -> tuple[Scale, list[float], list[float]]:
    rates = [1 / config.density for config in models.configs]
    return Scale(1, rates[-1], LEFT, right, log=True), [tick for tick in (1, 2, 3, 5, 10, 20, 30) if tick <= rates[-1] * 1.001], rates


def stickiness(models: ToyModels) -> Markup:
    """Dimensions per feature against 1 / (1 - S)."""
    x, ticks, rates = _sparsity_axis(models, RIGHT - 16)
    y = Scale(0, 1.1, BOTTOM, TOP)
    values = dimensions_per_feature(models.W).tolist()
    parts = _frame(x, y, "1 / (1 − S), one over the probability of being active", "hidden dimensions per feature, m / |W|²", ticks)
    for value, name in ((1.0, "one feature per dimension"), (0.5, "two: antipodal pairs")):
        parts.append(line(x.first, y(value), x.last, y(value), class_="rule", opacity=0.65, stroke_dasharray="2 3"))
        parts.append(text(x.last, y(value) - 6, name, anchor="end", opacity=0.9))
    points = [(x(a), y(b)) for a, b in zip(rates, values, strict=True)]
    return drawing(
        WIDTH,
        HEIGHT,
        "Dimensions per feature against sparsity",
        [*parts, _curve(points, "k0"), _dots(points, "k0", width=7)],
        class_="chart figure",
    )


def scatter(models: ToyModels) -> Markup:
    """Dimensionality of every represented feature against 1 / (1 - S), beside the values of the polytopes."""
    x, ticks, rates = _sparsity_axis(models, RIGHT - 138)
    y = Scale(0, 1.1, BOTTOM, TOP)
    parts = _frame(x, y, "1 / (1 − S), one over the probability of being active", "dimensionality D of a feature", ticks)
    for (value, name), place in zip(FRACTIONS.items(), spread([y(v) for v in FRACTIONS], 15, TOP, BOTTOM), strict=True):
        parts += [line(x.first, y(value), x.last, y(value), class_="rule", opacity=0.5, stroke_dasharray="2 3")]
        parts += [line(x.last + 2, y(value), x.last + 12, place, opacity=0.3), text(x.last + 15, place + 4, name, opacity=0.9)]
    step = (x(rates[1]) - x(rates[0])) if len(rates) > 1 else 10.0
    points = []
    for rate, D, keep in zip(rates, feature_dimensionality(models.W), represented(models.W), strict=True):
        values = sorted(D[keep].tolist())
        places = [
            ((i * 0.618034) % 1 - 0.5) * 0.7 * step for i in range(len(values))
        ]  # side by side, so that many equal ones show as a bar
        points += [(min(max(x(rate) + place, x.first), x.last), y(value)) for place, value in zip(places, values, strict=True)]
    return drawing(
        WIDTH,
        HEIGHT,
        "Dimensionality of every feature against sparsity",
        [*parts, _dots(points, "k0", width=3.2, opacity=0.6)],
        class_="chart figure",
    )


def phase_diagram(densities: list[float], importances: list[float], W: Tensor) -> Markup:
    """Tiles by how equally the two features share the dimension, with the boundary of the closed forms."""
    width = densities[1] - densities[0]
    x = Scale(width / 2, 1 + width / 2, LEFT + 6, RIGHT - 16)  # a tile is centred on its density
    ratio = (importances[1] / importances[0]) ** 0.5
    y = Scale(importances[0] / ratio, importances[-1] * ratio, BOTTOM, TOP + 22, log=True)
    shares = (W.abs().amin(-1) / W.abs().amax(-1).clamp_min(1e-12)).tolist()
    parts = []
    for p, row in zip(densities, shares, strict=True):
        for r, share in zip(importances, row, strict=True):
            box = {"x": x(p - width / 2), "y": y(r * ratio), "width": x(width) - x(0) + 0.3, "height": y(r / ratio) - y(r * ratio) + 0.3}
            title = element("title", f"p = {p:.2f}, r = {r:.3g}: shorter over longer {share:.2f}")
            parts.append(element("rect", title, class_="f0", fill_opacity=f"{share:.2f}", **box))
    frame = {"x": x.first, "y": y.last, "width": x.last - x.first, "height": y.first - y.last}
    parts.append(element("rect", fill="none", stroke="currentColor", stroke_opacity=0.3, **frame))
    for tick in (0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(text(x(tick), y.first + 18, f"{tick:g}", anchor="middle", opacity=0.75))
    for tick in (0.1, 0.3, 1, 3, 10):
        parts.append(text(x.first - 7, y(tick) + 4, f"{tick:g}", anchor="end", opacity=0.75))
    ratios = [importances[0] * (importances[-1] / importances[0]) ** (i / 200) for i in range(201)]
    parts.append(_curve([(x(antipodal_boundary(r)), y(r)) for r in ratios], "kn", dash="6 4"))
    corners = ((0.7, importances[-1] / 1.4, "feature 2 alone"), (0.7, importances[0] * 1.2, "feature 1 alone"))
    for place, r, words in ((0.16, 1.0, "equal antipodal pair"), *corners):
        parts.append(text(x(place), y(r) + 4, words, class_="label halo", font_weight=620))
    parts += [text((x.first + x.last) / 2, y.first + 40, "density p = 1 − S of both features", anchor="middle")]
    parts += [text(4, 14, "importance r of feature 2 (feature 1: 1)"), *_ramp(x.last - 190, 22)]
    return drawing(WIDTH, HEIGHT, "Phase diagram of two features in one dimension", parts, class_="chart figure")


def _ramp(at: float, top: float) -> list[Markup]:
    """The colour scale of the phase diagram."""
    parts = [text(at - 6, top + 10, "shorter over longer |W|:  0", anchor="end", opacity=0.75), text(at + 146, top + 10, "1", opacity=0.75)]
    for i in range(14):
        box = {"x": at + 10.0 * i, "y": float(top), "width": 10.3, "height": 11}
        parts.append(element("rect", class_="f0", fill_opacity=f"{(i + 0.5) / 14:.2f}", **box))
    return parts


def pair_losses(models: ToyModels) -> Markup:
    """Loss over the density at equal importance: trained, and the closed forms."""
    x, y = Scale(0, 1, LEFT, RIGHT - 90), Scale(0, 0.16, BOTTOM, TOP)
    parts = _frame(x, y, "density p = 1 − S of both features", "loss at equal importance", [0, 0.2, 0.4, 0.6, 0.8, 1])
    densities = [i / 100 for i in range(101)]
    curves: list[tuple[str, str, Callable[[float], float]]] = [
        ("k1", "W = [1, −1]", lambda p: antipodal_loss(p, 1.0)),
        ("k2", "W = [1, 0]", lambda p: dedicated_loss(p, 1.0)),
    ]
    for class_, name, loss in curves:
        points = [(x(p), y(loss(p))) for p in densities if loss(p) <= y.high]
        parts.append(_curve(points, class_, dash="6 4"))
        last = points[-1]
        below = 4 if last[0] >= x.last - 1 else -8
        parts.append(
            text(
                last[0] + (6 if below == 4 else -4),
                last[1] + below,
                name,
                anchor="start",
                class_=f"label {class_.replace('k', 'f')}",
                font_weight=600,
            )
        )
    crossing = 4 / 7
    parts += [line(x(crossing), y(0), x(crossing), y(antipodal_loss(crossing, 1.0)), class_="rule", opacity=0.5, stroke_dasharray="2 3")]
    parts += [text(x(crossing) + 5, y(0) - 7, "p = 4/7", opacity=0.9)]
    points = [(x(config.density), y(loss)) for config, loss in zip(models.configs, models.loss.tolist(), strict=True)]
    parts += [_dots(points, "k0", width=8), text(points[-1][0] + 8, points[-1][1] + 20, "trained", class_="label f0", font_weight=600)]
    return drawing(WIDTH, HEIGHT, "Loss of two features in one dimension against density", parts, class_="chart figure")


# --- polytopes --------------------------------------------------------------------------------------------------------------------------

CELL, ROW, MARGIN, REACH = 150, 190, 118, 1.55


def gallery(models: tuple[tuple[int, int, list[Tensor]], ...], sparsities: tuple[float, ...]) -> Markup:
    """One drawing per model and sparsity."""
    parts = [text(MARGIN + CELL * (j + 0.5), 16, f"S = {s:g}", anchor="middle", font_weight=600) for j, s in enumerate(sparsities)]
    for i, (n, m, weights) in enumerate(models):
        top = 28 + ROW * i
        parts += [
            text(0, top + CELL / 2 - 6, f"{n} features", font_weight=600),
            text(0, top + CELL / 2 + 12, f"in {m} dimensions", opacity=0.75),
        ]
        for j, W in enumerate(weights):
            at = MARGIN + CELL * (j + 0.5)
            parts += _panel(W, at, top + CELL / 2 - 4)
            name = describe(arrangement(W))
            parts += [
                text(at, top + CELL + 2, name, anchor="middle", font_size=11.5),
                text(at, top + CELL + 17, _spread_of(W), anchor="middle", font_size=11.5, opacity=0.7),
            ]
    return drawing(
        MARGIN + CELL * len(sparsities), 28 + ROW * len(models), "Arrangements of small models over sparsity", parts, class_="chart"
    )


def _spread_of(W: Tensor) -> str:
    """Dimensionalities of the represented features, in few words."""
    D = feature_dimensionality(W)[represented(W)]
    groups = sorted({round(float(d), 2) for d in D}, reverse=True)
    if not groups:
        return ""
    if groups[0] - groups[-1] <= 0.02:
        return f"D = {float(D.mean()):.3f}"
    return "D = " + " and ".join(f"{g:.2f}" for g in groups) if len(groups) == 2 else f"D from {groups[-1]:.2f} to {groups[0]:.2f}"


def _panel(W: Tensor, at: float, middle: float) -> list[Markup]:
    """The columns of W as points around (at, middle)."""
    keep = represented(W)
    points = _upright(W.double())
    scale = CELL / 2 / REACH
    flat = [(at + scale * float(a), middle - scale * float(b)) for a, b in points[:2].T]
    depth = (points[2] if len(points) > 2 else torch.zeros(points.shape[1])).tolist()
    parts = _hull(points[:, keep], [place for place, kept in zip(flat, keep.tolist(), strict=True) if kept])
    for (a, b), kept, near in zip(flat, keep.tolist(), depth, strict=True):
        faint = 1.0 if len(W) == 2 else 0.4 + 0.6 * min(max((near + 1.1) / 2.2, 0), 1)
        if kept:
            parts.append(element("line", class_="spoke", x1=float(at), y1=float(middle), x2=a, y2=b))
            parts.append(element("circle", class_="tip", cx=a, cy=b, r=4.0, fill_opacity=f"{faint:.2f}"))
        else:
            parts.append(element("circle", class_="ignored", cx=a, cy=b, r=3.2))
    return parts


def _upright(W: Tensor) -> Tensor:
    """W turned so that equal arrangements look alike: the longest feature up in the plane; in space the axis that stands out up, the longest feature
    across it to the front, and all seen from a little above."""
    if len(W) == 2:
        first = W[:, int(feature_norms(W).argmax())]
        turned = _turn(math.pi / 2 - math.atan2(float(first[1]), float(first[0]))) @ W
        return turned * torch.tensor([[1.0 if float(turned[0].sum()) >= 0 else -1.0], [1.0]], dtype=torch.float64)
    axes, values, _ = torch.linalg.svd(W)
    up = 0 if values[0] - values[1] > values[1] - values[2] else 2
    flat = [axis for axis in range(3) if axis != up]
    points = axes.T @ W
    longest = points[flat][:, int(feature_norms(points[flat]).argmax())]
    across = _turn(math.radians(-65) - math.atan2(float(longest[1]), float(longest[0]))) @ points[flat]
    above = _turn(math.radians(-18)) @ torch.stack([points[up], -across[1]])
    return torch.stack([across[0], above[0], above[1]])


def _turn(angle: float) -> Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)


def _hull(points: Tensor, flat: list[tuple[float, float]]) -> list[Markup]:
    """The outline in the plane, the edges in space; nothing where the points span too little."""
    dimension = len(points)
    try:
        hull = ConvexHull(points.T.numpy()) if points.shape[1] > dimension else None
    except QhullError:
        hull = None
    if hull is None:
        return []
    if dimension == 2:
        return [element("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in (flat[i] for i in hull.vertices)), class_="hull")]
    sides: dict[tuple[int, int], list[int]] = {}
    for facet, corners in enumerate(hull.simplices.tolist()):
        for one, other in ((corners[0], corners[1]), (corners[1], corners[2]), (corners[0], corners[2])):
            sides.setdefault((min(one, other), max(one, other)), []).append(facet)
    parts = []
    for (one, other), facets in sorted(sides.items()):
        normals = [hull.equations[facet][:3] for facet in facets]
        if len(normals) == 2 and float(normals[0] @ normals[1]) > math.cos(math.radians(12)):
            continue  # the diagonal of a flat face
        front = max(float(normal[2]) for normal in normals) > 0
        ends = {"x1": flat[one][0], "y1": flat[one][1], "x2": flat[other][0], "y2": flat[other][1]}
        parts.append(element("line", class_="edge", stroke_opacity=0.9 if front else 0.25, **ends))
    return parts


# --- importance -------------------------------------------------------------------------------------------------------------------------


def importance_bars(models: ToyModels) -> Markup:
    """Lengths of the features, most important on top, one column per density, coloured by superposition."""
    n, column, bar, top = models.W.shape[2], 190, 11, 34
    parts = [text(0, 16, "feature", opacity=0.75)]
    parts += [text(62, top + bar * (i + 0.5) + 4, str(i + 1), anchor="end", font_size=10.5, opacity=0.75) for i in range(n)]
    for j, (config, lengths, others) in enumerate(zip(models.configs, feature_norms(models.W), superposition(models.W), strict=True)):
        left = 76 + column * j
        parts.append(text(left, 16, f"S = {round(config.sparsity, 4):g}", font_weight=600))
        parts.append(line(left, top - 3, left, top + bar * n + 3, opacity=0.4))
        for i, (length, other, kept) in enumerate(zip(lengths.tolist(), others.tolist(), represented(models.W[j]).tolist(), strict=True)):
            share = min(other, 1.0) if kept else 0.0
            title = element(
                "title", f"feature {i + 1}, importance {config.importance_decay**i:.2g}: length {length:.2f}, superposition {other:.2f}"
            )
            box = {"x": float(left), "y": top + bar * i + 1.0, "width": max(length * 110, 0.5), "height": bar - 2.0}
            parts.append(element("rect", title, class_="f0", fill_opacity=f"{1 - share:.2f}", **box))
            parts.append(element("rect", class_="f1", fill_opacity=f"{share:.2f}", **box))
    parts += _lengths(76, column, len(models.configs), top + bar * n)
    return drawing(
        76 + column * len(models.configs),
        top + bar * n + 56,
        "Length and superposition of features of falling importance",
        parts,
        class_="chart",
    )


def _lengths(left: int, column: int, n: int, bottom: int) -> list[Markup]:
    parts = []
    for j in range(n):
        for length in (0, 1):
            parts.append(text(left + column * j + 110 * length, bottom + 18, f"{length}", anchor="middle", font_size=10.5, opacity=0.75))
    parts.append(text(left, bottom + 44, "|W_i|, with superposition", opacity=0.9))
    for i in range(10):
        share = (i + 0.5) / 10
        box = {"x": left + 172 + 14.0 * i, "y": bottom + 34.0, "width": 14.3, "height": 11}
        parts += [
            element("rect", class_="f0", fill_opacity=f"{1 - share:.2f}", **box),
            element("rect", class_="f1", fill_opacity=f"{share:.2f}", **box),
        ]
    parts += [text(left + 166, bottom + 44, "0", anchor="end", opacity=0.75), text(left + 318, bottom + 44, "1 or more", opacity=0.75)]
    return parts
