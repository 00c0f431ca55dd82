"""The `probes` program: `program` assembles its commands, each of which has a module of its own."""

from probes.cli.program import app, main

__all__ = ["app", "main"]
