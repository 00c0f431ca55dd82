"""A report as a folder of pages that needs nothing else: no server, no network, no script.

    <folder>/index.html                       overview: facts, tables, figures, lists of features
             features/<list>/<latent>.html    one card a page, with the previous and the next
             assets/report.css  report.js     the script only sorts tables and turns pages with the arrow keys
             report.json                      the same data, for programs: `from_json(ReportData, ...)`

The same data gives the same bytes.
"""

import re
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from sae.errors import ConfigError, FormatError
from sae.fingerprint import canonical
from sae.inspection.charts import colour_places, figure_chart
from sae.inspection.display import FeatureCard, Look, environment
from sae.inspection.records import FeatureRecord
from sae.inspection.report_data import FeatureList, ReportData, Row, Table
from sae.storage import atomic_folder

MARKER = "report.json"
ASSETS = ("report.css", "report.js")


def write_report(data: ReportData, folder: str | Path) -> Path:
    """Write the report, atomically; returns the path of its `index.html`.

    A report that is there already is replaced. Raises FormatError when the folder holds something else, ConfigError when two lists of
    features share a name or a list holds a latent twice.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / MARKER).is_file() or not any(folder.iterdir()))):
        raise FormatError(f"{folder} holds something that is not a report ({MARKER} is missing); choose another folder")
    slugs = _slugs(data.features)
    with atomic_folder(folder) as temporary:
        _write(temporary / MARKER, canonical(data) + "\n")
        for name in ASSETS:
            _write(temporary / "assets" / name, asset(name))
        _write(temporary / "index.html", overview_page(data))
        for features in data.features:
            for i, record in enumerate(features.records):
                page = feature_page(data, features, i)
                _write(temporary / "features" / slugs[features.name] / f"{record.index}.html", page)
    return folder / "index.html"


def overview_page(data: ReportData) -> str:
    """The HTML of `index.html`."""
    slugs = _slugs(data.features)
    places = colour_places(figure for section in data.sections for figure in section.figures)
    template = environment().get_template("overview.html")
    return template.render(
        data=data,
        root="",
        slugs=slugs,
        anchors=_anchors(data),
        look=Look("page"),
        chart=partial(figure_chart, places=places),
        best=best_cells,
        is_number=_is_number,
    )


def feature_page(data: ReportData, features: FeatureList, place: int) -> str:
    """The HTML of the page of the feature at `place` in its list."""
    record = features.records[place]
    links = {other.index: f"{other.index}.html" for other in features.records}
    near: Mapping[str, FeatureRecord | None] = {
        "previous": features.records[place - 1] if place else None,
        "next": features.records[place + 1] if place + 1 < len(features.records) else None,
    }
    card = FeatureCard(record).html(skin="page", links=links)
    template = environment().get_template("feature.html")
    return template.render(
        data=data,
        features=features,
        record=record,
        place=place,
        near=near,
        card=card,
        root="../../",
        slug=_slugs(data.features)[features.name],
    )


def asset(name: str) -> str:
    """The text of a file of `assets/`."""
    return (resources.files("sae.inspection") / "assets" / name).read_text(encoding="utf-8")


def best_cells(table: Table, row: Row) -> set[int]:
    """Places of the cells of a row that are best: along the row when it says which direction is good, else in their columns; results only.

    Nothing is marked where fewer than two results can be compared, or all are equal.
    """
    if row.role != "result":
        return set()
    marked = set()
    if row.better:
        numbers = {j: float(cell) for j, cell in enumerate(row.cells) if _is_number(cell)}
        marked |= _best(numbers, row.better)
    results = [r for r in table.rows if r.role == "result"]
    for j, column in enumerate(table.columns):
        if column.better and _is_number(row.cells[j]):
            numbers = {i: float(r.cells[j]) for i, r in enumerate(results) if _is_number(r.cells[j])}  # type: ignore[arg-type]
            marked |= {j} if results.index(row) in _best(numbers, column.better) else set()
    return marked


def _best(numbers: Mapping[int, float], better: str) -> set[int]:
    if len(set(numbers.values())) < 2:
        return set()
    best = max(numbers.values()) if better == "higher" else min(numbers.values())
    return {place for place, value in numbers.items() if value == best}


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "list"


def _slugs(lists: tuple[FeatureList, ...]) -> dict[str, str]:
    slugs: dict[str, str] = {}
    for features in lists:
        slug = _slug(features.name)
        if slug in slugs.values():
            raise ConfigError(f"features must have names that differ in letters or digits, got {features.name!r} twice (ReportData)")
        indices = [record.index for record in features.records]
        if len(set(indices)) < len(indices):
            raise ConfigError(f"records of the list {features.name!r} must be of different latents (ReportData)")
        slugs[features.name] = slug
    return slugs


def _anchors(data: ReportData) -> list[str]:
    """One anchor per section, unique: the title's slug and, where need be, a number."""
    taken: list[str] = []
    for section in data.sections:
        slug = _slug(section.title)
        taken.append(slug if slug not in taken else f"{slug}-{len(taken)}")
    return taken


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
