"""Answers about the server, its sources, and how their features lie together."""

from typing import Any

from sae.inspection.server.answers.base import Record


class Health(Record):
    """Liveness."""

    status: str = "ok"
    """`ok`."""


class Capabilities(Record):
    """What this server can do."""

    version: str
    """Version of the package."""
    model_loaded: bool
    """Whether a language model is loaded for any source."""
    encode: list[str]
    """Sources that encode texts."""
    steer: bool
    """Whether steering is available."""
    notes: bool
    """Whether labels, notes and lists can be written."""
    results: bool
    """Whether a cache of results is served."""
    start_model: str
    """The command that starts a server with the language model."""
    limits: dict[str, int]
    """How much a request may ask for."""
    failures: dict[str, str]
    """Indexes that could not be opened at the start, and why."""


class SourceInfo(Record):
    """A source."""

    name: str
    """How requests call it."""
    dictionary: str
    """Name of the dictionary."""
    kind: str
    """`activation` of an autoencoder, or `coefficient` of a matching pursuit."""
    site: str
    """TransformerLens name of the activations."""
    d_sae: int
    """Latents."""
    n_alive: int
    """Latents that fire on some token."""
    n_tokens: int
    """Tokens looked at."""
    n_documents: int
    """Documents they come from."""
    n_entries: int
    """Non-zero values."""
    mean_active: float
    """Non-zero values per token."""
    n_steps: int
    """Steps of the matching pursuit; 0 for an autoencoder."""
    effects_convention: str
    """What logit effects are, in words."""
    model_id: str
    """Name of the language model, as Neuronpedia's routes call it."""
    source_id: str
    """Name of the source, as Neuronpedia's routes call it."""
    digests: dict[str, str]
    """SHA-256 of index, dictionary and store."""
    provenance: dict[str, str]
    """Model, data set, revision and licence of the texts."""
    settings: dict[str, Any]
    """Settings of the index."""
    can_encode: bool
    """Whether it encodes texts."""


class Sources(Record):
    """All sources."""

    items: list[SourceInfo]
    """In the order given at the start."""


class MapAnswer(Record):
    """Features in the plane, as columns."""

    method: str
    """How the coordinates were found."""
    ids: list[int]
    """Latent ids."""
    x: list[float]
    """First coordinate."""
    y: list[float]
    """Second coordinate."""
    density: list[float]
    """Share of the tokens on which each fires."""


class DocumentAnswer(Record):
    """A part of a document with what fires in it."""

    document: int
    """Its id."""
    labels: dict[str, str | int]
    """Its labels."""
    n_tokens: int
    """Tokens of the whole document."""
    start: int
    """First token of the part."""
    tokens: list[str]
    """Their texts."""
    active: dict[str, list[tuple[int, float]]]
    """By feature: [token of the part, value] of each firing."""
    steps: dict[str, list[int]] | None
    """Matching pursuit, by feature: step of selection (from 0) of each firing."""


class CoactivationAnswer(Record):
    """How often features fire on the same token."""

    features: list[int]
    """Rows."""
    columns: list[int]
    """Columns."""
    n_tokens: int
    """Tokens looked at."""
    n_active: dict[str, int]
    """Firings of each feature."""
    n_together: list[list[int]]
    """Tokens on which both fire, exact."""
    phi: list[list[float | None]]
    """Phi coefficient of the two 0/1 variables; null where one is constant."""


class SearchMatch(Record):
    """Why a feature was found."""

    kind: str
    """`label`, `note`, `driving`, `promoted` or `number`."""
    text: str
    """The words, or the token."""
    value: float
    """Share of the mass of a driving token, logit effect of a promoted one, else 1."""


class SearchRow(Record):
    """A feature that was found."""

    index: int
    """Latent id."""
    score: float
    """What it is ranked by."""
    label: str | None
    """What people or programs call it."""
    matches: list[SearchMatch]
    """Why it was found."""


class SearchAnswer(Record):
    """Features that a query finds."""

    query: str
    """What was asked."""
    definition: str
    """How they are ranked, in words."""
    n_found: int
    """Features that match."""
    items: list[SearchRow]
    """Best first."""


class RunRow(Record):
    """A cached result."""

    id: str
    """Its id: the beginning of its key's digest."""
    function: str
    """Name of the computation."""
    created: str
    """When it was finished, UTC, ISO 8601."""
    seconds: float
    """How long it took."""
    n_bytes: int
    """Size of its files."""


class RunPage(Record):
    """Cached results."""

    items: list[RunRow]
    """Newest first."""
    total: int
    """Results on all pages."""
    damaged: int
    """Entries that cannot be read."""
    next_cursor: str | None
    """Where the next page begins; null on the last."""


class RunFile(Record):
    """A file of a result."""

    name: str
    """Its name."""
    n_bytes: int
    """Its size."""
    sha256: str
    """SHA-256 of its bytes."""
    value: Any = None
    """A JSON file's contents, up to 1 MiB; null otherwise."""
    tensors: dict[str, dict[str, Any]] | None = None
    """A safetensors file's arrays with dtype and shape; null otherwise."""


class RunAnswer(Record):
    """A cached result, as it lies on disk."""

    id: str
    """Its id."""
    function: str
    """Name of the computation."""
    version: int
    """Version of the computation."""
    config: Any
    """Its options."""
    inputs: dict[str, str]
    """Digests of its inputs."""
    created: str
    """When it was finished, UTC, ISO 8601."""
    seconds: float
    """How long it took."""
    versions: dict[str, str]
    """Versions of the libraries."""
    files: list[RunFile]
    """Its files."""
