"""`sae serve`: indexes as pages and as an API, on this machine.

sae serve index                                              one index, by the name of its folder
sae serve topk=runs/a/index pursuit=runs/b/index             several, by names of their own
sae serve index --model default --dictionary run/dictionary  and texts can be encoded
sae serve index --notes notes.sqlite                         and labels, notes and lists can be written

The address that is printed holds a token: other users of this machine need it too. Without a model the server starts at once, and
reads the index by memory mapping; it never imports torch.
"""

import re
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sae.cli.terminal import console
from sae.errors import ConfigError, SaeError
from sae.inspection.encoded import LiveEncoder
from sae.inspection.index import FeatureIndex
from sae.inspection.server.context import HOSTS, NAME, Registry, ServerContext, ServerSettings, Source
from sae.inspection.server.notes import Notes
from sae.storage.atomic import user_cache_dir
from sae.storage.cache import ResultCache

MAX_HEAD = 64 * 1024
"""Longest request line and headers (bytes)."""
BACKLOG = 128
"""Connections that may wait to be accepted."""


def serve_command(
    indexes: Annotated[list[str], typer.Argument(metavar="INDEX...", help="Folders of indexes, each as FOLDER or NAME=FOLDER.")],
    *,
    model: Annotated[str | None, typer.Option(help="`default`, a folder, a .gguf file or a hub name: to encode texts.")] = None,
    dictionary: Annotated[list[Path] | None, typer.Option(help="The dictionary of an index, for --model; repeat for several.")] = None,
    store: Annotated[
        list[Path] | None, typer.Option(help="The store of an index, for --model: texts are framed and rounded as in it; repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; another than a loopback address needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8400,
    token: Annotated[str | None, typer.Option(help="The token (default: a new one); also read from SAE_TOKEN.", envvar="SAE_TOKEN")] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Ask for no token.")] = False,
    notes: Annotated[Path | None, typer.Option(help="File for labels, notes and lists, made when it is not there.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of results to show (default: results/ in the user cache folder).")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A site whose pages may use the API; repeatable.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Another name of this machine; repeatable.")] = None,
) -> None:
    """Serve indexes: pages for a browser, an API for programs, and the routes that Neuronpedia's clients use."""
    settings = server_settings(
        host, port, token=None if no_token else token or secrets.token_urlsafe(24), origins=allow_origin or (), hosts=allow_host or ()
    )
    opened, failures = open_indexes(indexes)
    for name, reason in failures.items():
        console.print(f"{name} is not served: {reason}", highlight=False, soft_wrap=True, markup=False)
    if not opened:
        raise ConfigError("no index could be opened")
    sources = {name: Source(name, index) for name, index in opened.items()}
    if model is not None:
        sources |= live_sources(opened, model, dictionary or [], store or [])
    elif dictionary or store:
        raise ConfigError("--dictionary and --store are for a language model: give --model too")
    context = ServerContext(
        Registry(sources, failures),
        results=ResultCache(cache or user_cache_dir() / "results"),
        notes=Notes.open(notes) if notes else None,
        settings=settings,
    )
    run(context)


def server_settings(host: str, port: int, *, token: str | None, origins: Sequence[str], hosts: Sequence[str]) -> ServerSettings:
    """The settings. Raises ConfigError for an origin that is none, and for an open host without a token."""
    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ConfigError(f"--allow-origin must be like https://example.org, without a path, got {origin!r}")
    named = () if host in ("0.0.0.0", "::") else (f"[{host}]" if ":" in host else host,)
    return ServerSettings(
        host=host, port=port, token=token, origins=tuple(origins), hosts=tuple(dict.fromkeys([*HOSTS, *named, *(h.lower() for h in hosts)]))
    )


def open_indexes(given: Sequence[str]) -> tuple[dict[str, FeatureIndex], dict[str, str]]:
    """(indexes by name, a line for each that cannot be opened by its name). Raises ConfigError for a bad name and for one given twice."""
    opened: dict[str, FeatureIndex] = {}
    failures: dict[str, str] = {}
    for word in given:
        name, folder = named_folder(word)
        if name in opened or name in failures:
            raise ConfigError(f"INDEX must have different names, got {name!r} twice; write NAME={folder}")
        try:
            opened[name] = FeatureIndex.open(folder)
            opened[name].record(0)
        except SaeError as error:
            opened.pop(name, None)
            failures[name] = " ".join(str(error).split())
    return opened, failures


def named_folder(word: str) -> tuple[str, Path]:
    """(name, folder) of `FOLDER` or `NAME=FOLDER`; the name of a folder is its own, or its parent's when it is called `index`."""
    name, equals, path = word.partition("=")
    if equals and NAME.fullmatch(name):
        return name, Path(path).expanduser()
    folder = Path(word).expanduser()
    last = folder.resolve()
    called = last.parent.name if last.name == "index" else last.name
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", called).strip("-._")[:128]
    return found or "index", folder


def live_sources(indexes: dict[str, FeatureIndex], model: str, dictionaries: Sequence[Path], stores: Sequence[Path]) -> dict[str, Source]:
    """Sources that encode texts: each index whose dictionary is given, by its digest. Raises ConfigError for a dictionary of no index."""
    from sae.cli.live import load_live  # imports torch

    found: dict[str, Source] = {}
    for name, live in load_live(indexes, model, dictionaries, stores).items():
        found[name] = with_live(name, indexes[name], live)
    return found


def with_live(name: str, index: FeatureIndex, live: LiveEncoder) -> Source:
    """The source that encodes with `live`. Raises FormatError when it belongs to another index."""
    return Source(name, index.attach(live), live)


def run(context: ServerContext) -> None:
    """Listen until Ctrl-C. The address is printed when connections are accepted."""
    import uvicorn

    from sae.inspection.server.app import create_app

    settings = context.settings
    listening = _listen(settings.host, settings.port)
    port = listening.getsockname()[1]
    shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else f"[{settings.host}]" if ":" in settings.host else settings.host
    entry = f"?token={settings.token}" if settings.token else ""
    config = uvicorn.Config(
        create_app(context), http="h11", ws="none", log_level="warning", access_log=False, server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD, timeout_graceful_shutdown=3,
    )  # fmt: skip
    for source in context.registry:
        about = source.index.manifest.source
        encodes = "encodes texts" if source.live else "no language model"
        line = f"{source.name:<16} {about.d_sae:,} features over {about.n_tokens:,} tokens of {about.site}; {encodes}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"http://{shown}:{port}/{entry}", highlight=False, soft_wrap=True, markup=False)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises ConfigError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle's algorithm on: 40 ms
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)  # who comes before the server accepts waits
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"--port {port} of {host} cannot be listened on ({error.strerror or error}); --port 0 takes a free one"
        ) from error
    return listening
