"""What a server serves: sources by name, results and notes, and its settings. Everything is opened at the start; a request only looks up.

    registry = Registry({"topk": Source("topk", FeatureIndex.open("index"))})
    app = create_app(ServerContext(registry))

A *source* is a feature index with, where the language model is loaded, the means to encode new texts. Its name comes from the command
line, never from a path in a request: a request names a source, and the name is looked up here.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sae.errors import ConfigError
from sae.inspection.encoded import LiveEncoder
from sae.inspection.exports.peers import PeerIds, peer_ids
from sae.inspection.exports.provenance import provenance_of
from sae.inspection.index import FeatureIndex
from sae.inspection.server.compute import Compute
from sae.inspection.server.failures import NotFound, NotLoaded
from sae.inspection.server.notes import Notes
from sae.storage.cache import ResultCache

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a source may be called."""
HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine that a request may be addressed to."""


@dataclass(frozen=True)
class Source:
    """A feature index under its name."""

    name: str
    """How requests call it."""
    index: FeatureIndex
    """What it holds."""
    live: LiveEncoder | None = None
    """Encodes new texts; None when the language model is not loaded."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            what = "letters, digits, '.', '_' and '-', at most 128, a letter or digit first"
            raise ConfigError(f"name must be {what}, got {self.name!r} (Source)")

    @property
    def dictionary(self) -> str:
        """Digest of its dictionary: what labels and notes belong to."""
        return self.index.manifest.source.dictionary_digest

    @cached_property
    def peer(self) -> PeerIds:
        """How the routes in Neuronpedia's manner call it: the model's name, the layer, the source's name."""
        return peer_ids(self.index.manifest.source, provenance_of(self.index), model_id=None, source_set=self.name, layer=None)

    @property
    def needs_model(self) -> NotLoaded:
        """The failure of a request that needs the language model."""
        return NotLoaded(
            f"this needs the language model, which is not loaded for source {self.name!r}; {START_MODEL}",
            extra={"command": MODEL_COMMAND},
        )


MODEL_COMMAND = "sae serve INDEX --model default --dictionary DICTIONARY"
"""What starts a server that encodes texts."""
START_MODEL = f"stop the server and start it with the model and the dictionary of the index: {MODEL_COMMAND}"


class Registry:
    """The sources of a server, in the order given at the start; `failures` holds a line for each index that could not be opened."""

    def __init__(self, sources: Mapping[str, Source], failures: Mapping[str, str] | None = None) -> None:
        for name, source in sources.items():
            if name != source.name:
                raise ConfigError(f"sources must be keyed by their names, got {name!r} for {source.name!r} (Registry)")
        self.sources, self.failures = dict(sources), dict(failures or {})

    def get(self, name: str) -> Source:
        """The source of this name. Raises NotFound, which says nothing but the name."""
        if name not in self.sources:
            raise NotFound(f"there is no source {name[:128]!r}", field="source")
        return self.sources[name]

    def compatible(self, model_id: str, source_id: str) -> Source:
        """The source that Neuronpedia's identifiers name: model, and `{layer}-{name}` or the name alone. Raises NotFound."""
        for source in self:
            if model_id.lower() == source.peer.model_id and source_id.lower() in (source.peer.source, source.peer.source_set):
                return source
        raise NotFound(f"there is no source {source_id[:128]!r} of a model {model_id[:128]!r}")

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources.values())

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a request may ask for."""

    body_bytes: int = 2**20
    """Longest body (bytes), counted while it arrives."""
    texts: int = 16
    """Texts in one request, for each set."""
    text_characters: int = 100_000
    """Longest text (characters); the language model's context is checked after tokenising."""
    top_k: int = 256
    """Features returned for a token or a text."""
    page: int = 200
    """Rows of a table."""
    examples: int = 100
    """Passages of a feature."""
    window: int = 512
    """Tokens on either side of a passage's peak."""
    neighbours: int = 256
    """Neighbours of a feature."""
    together: int = 64
    """Features on either side of a co-activation matrix."""
    export_features: int = 1000
    """Features in one export."""


LIMITS = Limits()
"""Those of every server; the schema of the API states them."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server listens and what it refuses."""

    host: str = "127.0.0.1"
    """Address it is bound to; another than a loopback address needs a token."""
    port: int = 8400
    """Port; 0 takes a free one."""
    token: str | None = field(default=None, repr=False)
    """Secret that every request must show; None asks for none."""
    hosts: tuple[str, ...] = HOSTS
    """Host names it answers to, without port."""
    origins: tuple[str, ...] = ()
    """Other sites that may read the API (`--allow-origin`)."""
    compute_seconds: float = 60.0
    """Longest time for an encoding."""
    queue: int = 8
    """Encodings that may wait."""

    def __post_init__(self) -> None:
        if self.host not in ("127.0.0.1", "localhost", "::1") and not self.token:
            raise ConfigError(f"host {self.host!r} can be reached from other machines and needs a token (ServerSettings)")
        if self.token is not None and (len(self.token) < 8 or not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError("token must be at least 8 printable ASCII characters (ServerSettings)")


@dataclass(frozen=True)
class ServerContext:
    """Everything that routes and pages look at. `context.limits` and `context.run` are shared by both."""

    registry: Registry
    """The sources."""
    results: ResultCache | None = None
    """Cached results of probes and geometry, read only."""
    notes: Notes | None = None
    """Labels, explanations, notes and lists; None when there is no file for them, and then nothing can be written."""
    settings: ServerSettings = field(default_factory=ServerSettings)
    """How it listens and what it refuses."""

    @property
    def limits(self) -> Limits:
        """How much a request may ask for."""
        return LIMITS

    @cached_property
    def compute(self) -> Compute:
        """The one place where the language model runs: a request at a time, a short queue, a time limit."""
        return Compute(seconds=self.settings.compute_seconds, queue=self.settings.queue)

    async def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`function(*args, **options)` in the worker of the language model. Raises Busy or TooSlow."""
        return await self.compute.run(function, *args, **options)
