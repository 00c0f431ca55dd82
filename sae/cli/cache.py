"""`sae cache`: the results on disk."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sae.cli.terminal import console
from sae.storage import Entry, ResultCache, user_cache_dir

cache_app = typer.Typer(no_args_is_help=True, help="The results on disk.")
CacheFolder = Annotated[Path | None, typer.Option("--cache", help="Folder of results; default: results/ in the user cache folder.")]


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
