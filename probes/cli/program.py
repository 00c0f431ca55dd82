"""The `probes` program: its commands, and how it ends."""

import sys

import typer

from probes.cli.concepts import concepts, hierarchy
from probes.cli.directions import directions
from probes.cli.fit import fit
from probes.cli.sweep import sweep
from probes.cli.tasks import tasks
from sae.errors import SaeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What can be read from activations and latents: sparse probes, concept directions, hierarchies, each with its controls.",
)
for command in (tasks, fit, sweep, directions, concepts, hierarchy):
    app.command(command.__name__)(command)


def main() -> None:
    """Run the program; an error of the workbench is one line on standard error, without a traceback, and ends with status 2."""
    try:
        app()
    except SaeError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None
