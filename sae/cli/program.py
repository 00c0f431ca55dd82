"""The `sae` program: arguments, printing and progress bars around the library."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sae.cli.capture import capture_command
from sae.cli.geometry import geometry
from sae.cli.screen import console
from sae.cli.store import store_app
from sae.cli.train import train_command
from sae.errors import SaeError
from sae.storage import Entry, ResultCache, user_cache_dir

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Interpret language models with sparse dictionaries.")
cache_app = typer.Typer(no_args_is_help=True, help="The results on disk.")
app.command("capture")(capture_command)
app.add_typer(store_app, name="store")
app.command("train")(train_command)
app.command("geometry")(geometry)
app.add_typer(cache_app, name="cache")

CacheFolder = Annotated[Path | None, typer.Option("--cache", help="Folder of results; default: results/ in the user cache folder.")]


def main() -> None:
    """Run the program; an error of the workbench is printed as one line, without a traceback, and ends with status 2."""
    try:
        app()
    except SaeError as error:
        text = escape(" ".join(str(error).split()))  # paths may hold brackets, and other libraries' messages line breaks
        console.print(f"[red]error:[/red] {text}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


def _results(folder: Path | None) -> ResultCache:
    return ResultCache(folder or user_cache_dir() / "results")


@cache_app.command("ls")
def cache_ls(cache: CacheFolder = None) -> None:
    """List every cached result: what, when, how long it took, how big it is."""
    results = _results(cache)
    table = Table("result", "entry", "made (UTC)", "seconds", "MB", title=str(results.root), title_justify="left")
    n_bytes = 0
    for entry in results.entries():
        n_bytes += entry.n_bytes
        table.add_row(entry.function, entry.path.name, entry.created, f"{entry.seconds:.1f}", f"{entry.n_bytes / 1e6:.2f}")
    console.print(table)
    console.print(f"{table.row_count} results, {n_bytes / 1e6:.1f} MB")


@cache_app.command("verify")
def cache_verify(cache: CacheFolder = None) -> None:
    """Check every file of every cached result against its recorded size and SHA-256; status 1 when something is damaged."""
    results, problems = _results(cache), []
    folders = results.folders()
    for folder in folders:
        problems += results.verify(folder)
    for problem in problems:
        console.print(problem, highlight=False, soft_wrap=True)
    console.print(f"{len(folders)} results checked, {len(problems)} problems")
    raise typer.Exit(1 if problems else 0)


@cache_app.command("prune")
def cache_prune(
    cache: CacheFolder = None,
    function: Annotated[str | None, typer.Option(help="Also remove every result of this function.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every result.")] = False,
) -> None:
    """Remove damaged results and what dead runs left half-written; with options, also sound results."""

    def drop(entry: Entry) -> bool:
        return everything or entry.function == function

    for path in _results(cache).prune(drop):
        console.print(f"removed {path}", highlight=False, soft_wrap=True)
