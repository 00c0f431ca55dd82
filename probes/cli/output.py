"""How the commands give their results: tables on the screen, the same as JSON, figures as pages."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from probes.results import Result, Table
from sae.errors import ConfigError
from sae.storage import write_json

Json = Annotated[Path | None, typer.Option("--json", help="Also write the tables to this file.")]
Figures = Annotated[
    Path | None, typer.Option("--figures", help="Also draw the figures, one page each, into this folder; no network is needed.")
]


def say(text: str) -> None:
    """A line or a table, as it is: no wrapping, no colours."""
    typer.echo(text)


def give(results: Mapping[str, Result | Table], *, json: Path | None, figures: Path | None) -> None:
    """Print the results, a blank line between them; `json` and `figures` as the options say. Names are those of the figures' files."""
    tables = {name: result.table() if isinstance(result, Result) else result for name, result in results.items()}
    say("\n\n".join(table.text() for table in tables.values()))
    if json is not None:
        write_json(json, {name: {"title": t.title, "rows": t.records(), "note": t.note} for name, t in tables.items()})
    if figures is not None:
        draw({name: result.figure() for name, result in results.items() if isinstance(result, Result)}, figures)


def draw(figures: Mapping[str, Any], folder: Path) -> None:
    """Each plotly figure as a page of its own, with the script that draws it beside them. Raises ConfigError where `folder` is a file."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--figures must be a folder, {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.write_html(folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.html", include_plotlyjs="directory")
    say(f"\n{len(figures)} figures in {folder}")
