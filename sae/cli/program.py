"""The `sae` program: its commands by name. A command's module is imported when the command is asked for, so that one which needs no torch
starts at once."""

import importlib
from dataclasses import dataclass
from typing import Any

import typer
import typer.main
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from sae.cli.terminal import console
from sae.errors import SaeError


@dataclass(frozen=True)
class Lazy:
    """Where a command is."""

    module: str
    """Its module."""
    name: str
    """The function, or the group of commands, in it."""
    help: str
    """What the list of commands says of it."""


COMMANDS = {
    "capture": Lazy("sae.cli.capture", "capture_command", "Run a language model over a corpus and keep its activations."),
    "store": Lazy("sae.cli.store", "store_app", "Activation stores: look, check, mend, join, bring in and out."),
    "train": Lazy("sae.cli.train", "train_command", "Train dictionaries on a store."),
    "index": Lazy("sae.cli.index", "index_command", "Build the index of a dictionary over a store."),
    "serve": Lazy("sae.cli.serve", "serve_command", "Serve indexes: pages, and an API for programs."),
    "export": Lazy("sae.cli.export", "export_command", "Write features of an index as files for others."),
    "convert": Lazy("sae.cli.convert", "convert_command", "Bring dictionaries in from other libraries, and out to them."),
    "doctor": Lazy("sae.cli.doctor", "doctor_command", "Say what is wrong with a dictionary, in plain words."),
    "evaluate": Lazy("sae.cli.evaluate", "evaluate_command", "Score a dictionary by all its metrics."),
    "compare": Lazy("sae.cli.evaluate", "compare_command", "Score dictionaries side by side."),
    "geometry": Lazy("sae.cli.geometry", "geometry", "Measure the geometry of a dictionary, a store or a model."),
    "cache": Lazy("sae.cli.cache", "cache_app", "The results on disk."),
}
"""In the order of the help."""


class LazyGroup(TyperGroup):
    """A group of commands that are imported one by one."""

    listing = False
    """Whether only names and help are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, imported now; while help is written, only its line."""
        if cmd_name not in COMMANDS:
            return None
        lazy = COMMANDS[cmd_name]
        return TyperCommand(cmd_name, help=lazy.help) if self.listing else load(cmd_name, lazy)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, which imports no command."""
        self.listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.listing = False


def load(name: str, lazy: Lazy) -> Any:
    """The command, imported."""
    target = getattr(importlib.import_module(lazy.module), lazy.name)
    if not isinstance(target, typer.Typer):
        group = typer.Typer(add_completion=False)
        group.command(name)(target)
        target = group
    made = typer.main.get_command(target)
    made.name = name
    return made


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False)


@app.callback()
def sae() -> None:
    """Interpret language models with sparse dictionaries."""


def main() -> None:
    """Run the program; an error of the workbench is printed as one line, without a traceback, and ends with status 2."""
    try:
        app()
    except SaeError as error:
        text = escape(" ".join(str(error).split()))  # paths may hold brackets, and other libraries' messages line breaks
        console.print(f"[red]error:[/red] {text}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
