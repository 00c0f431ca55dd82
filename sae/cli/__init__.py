"""The `sae` program: `program` assembles its commands, each of which has a module of its own."""

from sae.cli.program import app, main

__all__ = ["app", "main"]
