"""The map: every feature as a point in the plane; a canvas where there is script, points as links and a table without."""

import json
from functools import lru_cache
from typing import Any

import numpy as np
from fastapi.responses import Response
from jaxtyping import Float, Int, Shaped
from markupsafe import Markup

from sae.inspection.format import number, percent, visible
from sae.inspection.index import FeatureIndex
from sae.inspection.server.context import Source
from sae.inspection.server.pages.shell import Page
from sae.inspection.server.pages.table import source_table

COLOURS = {"density": "density", "max": "largest value", "bits": "bits a firing tells", "steps": "mean selection step"}
"""What the colour of a point can be."""
POINTS = 1200
"""Points of the drawing without script: a uniform sample of the features that fire."""
SIDE = 1000


def map_page(page: Page, source: Source) -> Response:
    """`/s/{source}/map`."""
    keys = [key for key in COLOURS if key != "steps" or source.index.manifest.n_steps]
    by = page.parameters.choice("by", tuple(keys), "density")
    chosen = page.parameters.latents("f", source, 1)
    plane = source.index.map
    values = colours(source.index)[by]
    ids, places = np.asarray(plane.ids), unit_square(plane.x, plane.y)
    order = np.argsort(-values[ids], kind="stable")[:12]
    ends = values[ids][np.isfinite(values[ids])]
    return page.render(
        "map.html",
        source=source,
        by=by,
        colours={key: COLOURS[key] for key in keys},
        method=plane.method,
        n=len(ids),
        points=_drawing(page, source, ids, places),
        rows=[(source.index.record(int(i), passages={}), values[int(i)]) for i in ids[order]],
        ends=(float(ends.min()), float(ends.max())) if len(ends) else (0.0, 0.0),
        chosen=chosen[0] if chosen else None,
        data=f"/s/{source.name}/map.json",
        feature=page.links(f"/s/{source.name}/f/"),
    )


def map_points(page: Page, source: Source) -> Response:
    """`/s/{source}/map.json`: columns for the canvas."""
    labels = page.labels(source)
    body = json.dumps(_columns(source.index) | {"labels": labels}, separators=(",", ":"), allow_nan=False)
    return Response(body, media_type="application/json")


@lru_cache(maxsize=16)
def _columns(index: FeatureIndex) -> dict[str, Any]:
    plane, texts = index.map, index.texts
    ids = np.asarray(plane.ids)
    leading = index.statistics.leading_token[ids]
    tokens, token = np.unique(leading, return_inverse=True)
    places = unit_square(plane.x, plane.y)
    columns = {key: _short(values[ids]) for key, values in colours(index).items() if key != "steps" or index.manifest.n_steps}
    names = [visible(texts[t], spaces=True) if t >= 0 else "" for t in tokens.tolist()]
    at = {"x": _short(places[:, 0]), "y": _short(places[:, 1])}
    return {"ids": ids.tolist(), **at, "token": token.tolist(), "tokens": names, "by": columns}


@lru_cache(maxsize=16)
def colours(index: FeatureIndex) -> dict[str, Float[np.ndarray, "d_sae"]]:
    """For every latent the numbers that points are coloured by."""
    table = source_table(index)
    found = {key: table.columns[key].astype(np.float64) for key in ("density", "max", "bits")}
    steps = index.reader.arrays.get("steps")
    if index.manifest.n_steps and steps is not None:
        total = np.maximum(steps.sum(axis=1), 1)
        found["steps"] = (steps @ np.arange(1, steps.shape[1] + 1)) / total
    return found


def unit_square(x: Shaped[np.ndarray, "n"], y: Shaped[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """The places in [0, 1] x [0, 1]. Those much further out than nearly all are moved to the edge, so that they do not squeeze the rest."""
    found = np.zeros((len(x), 2))
    for i, values in enumerate((np.asarray(x, np.float64), np.asarray(y, np.float64))):
        if len(values):
            inner = np.quantile(values, [0.01, 0.99])
            room = 0.5 * float(inner[1] - inner[0])
            low, high = max(float(values.min()), inner[0] - room), min(float(values.max()), inner[1] + room)
            found[:, i] = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    return found


def _short(values: Shaped[np.ndarray, "n"]) -> list[float]:
    return [float(f"{v:.4g}") for v in np.nan_to_num(values).tolist()]


def _drawing(page: Page, source: Source, ids: Int[np.ndarray, "n"], places: Float[np.ndarray, "n 2"]) -> Markup:
    """A sample of the points as links."""
    alive = np.flatnonzero(source_table(source.index).alive[ids])
    some = alive if len(alive) <= POINTS else np.sort(np.random.default_rng(0).choice(alive, POINTS, replace=False))
    texts, statistics = source.index.texts, source.index.statistics
    parts = []
    for i in some.tolist():
        latent, (x, y) = int(ids[i]), places[i]
        token = int(statistics.leading_token[latent])
        driven = f" {visible(texts[token], spaces=True)}, density {percent(float(statistics.density[latent]))}" if token >= 0 else ""
        name = Markup.escape(f"#{latent}{driven}")
        href = Markup.escape(page.feature_link(source, latent))
        at = f'cx="{20 + 1160 * x:.0f}" cy="{20 + 760 * (1 - y):.0f}"'
        parts.append(f'<a href="{href}" tabindex="-1"><circle {at} r="4"><title>{name}</title></circle></a>')
    label = f"Map of {number(len(some))} of {number(len(ids))} features"
    return Markup(f'<svg viewBox="0 0 1200 800" role="img" aria-label="{label}">{"".join(parts)}</svg>')
