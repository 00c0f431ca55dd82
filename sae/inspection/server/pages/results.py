"""Results of probes and geometry from the cache, read only: lists, and a page for each with its tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi.responses import Response

from sae.errors import ConfigError, FormatError
from sae.evaluation.figures import AnyFigure, Axis, Figure, HeatMap, Series
from sae.fingerprint import from_json
from sae.inspection.charts import figure_chart
from sae.inspection.server.api.runs import described, folders, listed
from sae.inspection.server.failures import NotFound
from sae.inspection.server.pages.overview import page_numbers
from sae.inspection.server.pages.shell import Page
from sae.storage.atomic import read_json

KINDS = {"probes": "Probes", "geometry": "Geometry"}
LISTED = 100
"""Results on one page."""
SHOWN_ROWS = 400
"""Rows of a table; the rest is counted."""
FIRST, LAST = ("quantity", "subject", "value", "null_mean", "null_sd", "p", "n_null"), ("note", "tries")
"""Columns of a table of numbers that stand first, and last."""
SCORES = ("auc", "balanced_accuracy", "average_precision", "mcc")


def results_page(page: Page, kind: str) -> Response:
    """`/probes` and `/geometry`: what lies in the cache."""
    rows, damaged = listed(page.context.results, (kind,))
    pages = max(1, -(-len(rows) // LISTED))
    at = page.parameters.integer("page", 1, 1, pages)
    places = {path.name: path for path in folders(page.context.results, (kind,))}
    names = {source.index.manifest.source.dictionary_digest: source.name for source in page.context.registry}
    about = [(row, subject(places[row.id], names)) for row in rows[(at - 1) * LISTED : at * LISTED] if row.id in places]
    return page.render(
        "results.html",
        kind=kind,
        title=KINDS[kind],
        rows=about,
        damaged=damaged,
        there=page.context.results is not None,
        page=at,
        pages=pages,
        page_numbers=page_numbers(at, pages),
    )


def result_page(page: Page, function: str, key: str) -> Response:
    """`/results/{function}/{id}`: one result. Both are compared with what the cache lists; neither is a path."""
    path = next((p for p in folders(page.context.results, tuple(KINDS)) if p.parent.name == function and p.name == key), None)
    if path is None:
        raise NotFound("there is no such result")
    run = described(path)
    values = {file.name: file.value for file in run.files if file.value is not None}
    found = [figure for value in values.values() for figure in figures(value)]
    tables = [(name, *table) for name, value in values.items() for table in tables_of(value)]
    rest = [file for file in run.files if file.value is None]
    kind = function.split(".")[0]
    drawn = [(figure, figure_chart(figure)) for figure in found]
    return page.render("result.html", run=run, kind=kind, title=KINDS[kind], figures=drawn, tables=tables, rest=rest, most=SHOWN_ROWS)


def figures(value: Any) -> list[AnyFigure]:
    """The figures that a stored result holds, and for a sweep of probes how the score grows with the number of features."""
    if isinstance(value, Mapping):
        return [figure for stored in value.get("figures", ()) if (figure := _figure(stored))]
    if isinstance(value, list) and value and all(_is_cell(each) for each in value):
        return _sweep_figures(value)
    return []


def tables_of(value: Any) -> list[tuple[str, list[str], list[list[Any]]]]:
    """(Title, columns, rows) of the tables in a stored result: lists of records become rows, what is nested in them is left to the JSON."""
    if isinstance(value, Mapping):
        notes = [(name, each) for name, each in value.items() if name != "figures"]
        return [(name, *table) for name, each in notes if isinstance(each, list) and (table := _table(each))]
    if isinstance(value, list) and value and all(_is_cell(each) for each in value):
        return [("cells", *_sweep_table(value))]
    table = _table(value) if isinstance(value, list) else None
    return [("", *table)] if table else []


def _figure(stored: Any) -> AnyFigure | None:
    for kind in (Figure, HeatMap):
        try:
            return from_json(kind, stored)
        except ConfigError:
            continue
    return None


def _table(rows: Sequence[Any]) -> tuple[list[str], list[list[Any]]] | None:
    records = [row for row in rows if isinstance(row, Mapping)]
    if not records or len(records) < len(rows):
        return None
    columns = [name for name in dict.fromkeys(key for row in records for key in row) if all(_plain(row.get(name)) for row in records)]
    columns = [name for name in columns if any(row.get(name) not in (None, "") for row in records)]
    columns = sorted(columns, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST) + (name in LAST))
    return columns, [[row.get(name) for name in columns] for row in records]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _is_cell(value: Any) -> bool:
    return isinstance(value, Mapping) and {"problem", "method", "k", "test"} <= set(value) and isinstance(value["test"], Mapping)


def _sweep_table(cells: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    columns = ["problem", "method", "k", *[name for name in SCORES if all(name in cell["test"] for cell in cells)]]
    rows = []
    for cell in cells:
        scores = [cell["test"][name]["value"] if isinstance(cell["test"][name], Mapping) else cell["test"][name] for name in columns[3:]]
        rows.append([cell["problem"], cell["method"], cell["k"], *scores])
    return columns, rows


def _sweep_figures(cells: Sequence[Mapping[str, Any]]) -> list[AnyFigure]:
    found: list[AnyFigure] = []
    for problem in dict.fromkeys(cell["problem"] for cell in cells):
        series = []
        for method in dict.fromkeys(cell["method"] for cell in cells):
            points = sorted(
                (c["k"], c["test"]["auc"])
                for c in cells
                if c["problem"] == problem and c["method"] == method and c["k"] and isinstance(c["test"].get("auc"), Mapping)
                for c in [c | {"test": {"auc": tuple(c["test"]["auc"].get(n) for n in ("value", "low", "high", "null_mean"))}}]
            )
            points = [(k, score) for k, score in points if None not in score[:1]]
            if len(points) >= 2 and len({k for k, _ in points}) == len(points):
                band = all(None not in score[1:3] for _, score in points)
                ends = tuple(tuple(score[i] for _, score in points) if band else () for i in (1, 2))
                series.append(Series(method, tuple(k for k, _ in points), tuple(score[0] for _, score in points), *ends))
                if all(score[3] is not None for _, score in points):
                    series.append(
                        Series(f"{method}: null", tuple(k for k, _ in points), tuple(score[3] for _, score in points), role="null")
                    )
        if series:
            caption = "Held-out AUROC; the band is its bootstrap interval, grey is the mean with shuffled labels."
            found.append(Figure(problem, Axis("features", scale="log"), Axis("AUROC"), tuple(series), caption=caption))
    return found


def subject(path: Path, names: Mapping[str, str]) -> str:
    """What a result is about, in a few words: the served dictionaries that went in, and what its settings name."""
    try:
        key = read_json(path / "key.json")
    except FormatError:
        return "damaged"
    inputs, config = key.get("inputs", {}), key.get("config", {})
    told = [names[digest] for digest in inputs.values() if digest in names]
    if path.parent.name == "probes.sweep":
        told += _problems(path)
    told += [str(config[name]) for name in ("matrix", "site") if config.get(name)] + [", ".join(config.get("sites", ()))]
    return ", ".join(each for each in told if each)


def _problems(path: Path) -> list[str]:
    """The problems of a sweep, by name."""
    try:
        cells = read_json(path / "cells.json")
    except FormatError:
        return []
    return list(dict.fromkeys(str(cell["problem"]) for cell in cells if _is_cell(cell))) if isinstance(cells, list) else []
