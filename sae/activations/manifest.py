"""What an activation store says about itself: `manifest.json`, and the record that every shard keeps of its own files.

    <store>/manifest.json                               what was captured from what, how, every file, and the statistics
    <store>/unfinished.json                             the manifest that is being worked towards, while a capture has not ended
    <store>/statistics/<site name>.safetensors          mean [width], covariance [width (width + 1) / 2] (float64; upper triangle, row by row)
    <store>/shards/00000/tokens.safetensors             tokens [rows, context] (uint16 or int32); document_starts, document_ids [runs] (int32)
    <store>/shards/00000/<site name>.safetensors        acts [rows * context, width] (dtype of the store), norms [rows * context] (float32)
    <store>/shards/00000/shard.json                     number of rows; size and XXH3-128 of the files beside it

Documents are runs: document_ids[i] is that of the tokens document_starts[i] .. document_starts[i + 1] - 1 of the shard. A shard shorter than
the others carries its number of rows in its folder's name, so that a longer one can be made beside it. The manifest holds nothing that
depends on when, in how many runs, or by how many processes it was written.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.models.sites import Site
from sae.storage import read_json, write_json

SCHEMA = 2
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8}
TOKEN_DTYPES = {"uint16": torch.uint16, "int32": torch.int32}
OWN_CAPTURE_FIELDS = ("n_tokens", "if_short")  # may change between two runs that fill one store


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """What to capture. Two captures with the same model, corpus and config are the same store, byte for byte."""

    sites: tuple[str, ...]
    """TransformerLens names of the sites, or patterns of names such as `blocks.*.hook_resid_post`; all are captured in one pass."""
    n_tokens: int
    """How many tokens to capture, rounded up to whole rows (tokens)."""
    context: int = 128
    """Length of a row, the window that the model sees (tokens)."""
    dtype: Literal["bfloat16", "float16", "float32", "int8"] = "bfloat16"
    """Storage dtype of the activations; int8 keeps a float32 norm with every row, see `sae.activations.formats`."""
    rows_per_shard: int = 128
    """Rows in one shard, the unit that is written and resumed (rows)."""
    rows_per_batch: int = 8
    """Rows in one forward pass (rows)."""
    separator: bool = True
    """Whether the model's separator token opens every document."""
    bos_id: int | None = None
    """Token that opens every row, or None."""
    if_short: Literal["error", "accept"] = "error"
    """What to do when the corpus has fewer tokens than asked for: raise, or keep what there is."""
    isolated: bool = False
    """Whether no token attends to a token of another document of its row; positions then restart at each document."""

    def __post_init__(self) -> None:
        for name in ("n_tokens", "context", "rows_per_shard", "rows_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)} (CaptureConfig)")
        if isinstance(self.sites, str) or not self.sites:
            raise ConfigError(f"sites must be a tuple of at least one site name, got {self.sites!r} (CaptureConfig)")
        if len(set(self.sites)) != len(self.sites):
            raise ConfigError(f"sites must be distinct, got {self.sites} (CaptureConfig)")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r} (CaptureConfig)")
        if self.if_short not in ("error", "accept"):
            raise ConfigError(f"if_short must be 'error' or 'accept', got {self.if_short!r} (CaptureConfig)")

    @property
    def n_rows(self) -> int:
        """Rows that hold at least `n_tokens` tokens."""
        return -(-self.n_tokens // self.context)


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The language model that a store was captured from."""

    name: str
    """The model's name, for people."""
    digest: str
    """SHA-256 of its weights."""
    dtype: str
    """Dtype that it computed in."""
    d_vocab: int
    """Size of its vocabulary (tokens)."""
    vocabulary: str
    """SHA-256 of the tokenizer's tokens with their ids."""
    separator_id: int | None
    """Token that opens every document, or None when none was used."""


@dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """The corpus that a store was captured from."""

    name: str
    """The corpus's name, for people."""
    digest: str
    """SHA-256 of what it yields."""
    licence: str
    """Licence of its texts, in words."""


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """Which tokens consumers skip: attention sinks and the outliers that behave like them."""

    skipped_positions: tuple[int, ...] = (0,)
    """Positions of a row that are never used."""
    norm_ratio: float = 6.0
    """A token is not used when its norm is above this many times the median norm of the other positions."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Identity of one file."""

    n_bytes: int
    """Its size (bytes)."""
    checksum: str
    """XXH3-128 of its bytes, 32 hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class StorageError:
    """What was lost by storing one site of one shard in fewer bits than the model computed in."""

    n: int
    """Tokens counted: not at a skipped position, and of norm at most `norm_ratio` medians of the shard."""
    squared: float
    """Sum over them of |a - stored a|^2."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Identity of one shard."""

    n_rows: int
    """Its rows."""
    files: dict[str, FileRecord]
    """Its files, by name within the shard's folder."""
    errors: dict[str, StorageError]
    """What storing lost, by site name."""


@dataclass(frozen=True, kw_only=True)
class SiteSummary:
    """What the manifest keeps of a site's statistics; mean and covariance are in a file of their own."""

    n: int
    """Tokens that the mask keeps."""
    n_outliers: int
    """Tokens that it leaves out for their norm."""
    mean_norm: float
    """Mean of |a|."""
    mean_centred_norm: float
    """Mean of |a - mu|."""
    median_norm: float
    """Median of |a| over all positions but the skipped ones, outliers included."""
    threshold: float
    """Largest norm that the mask keeps: norm_ratio times the median."""
    total_variance: float
    """Mean of |a - mu|^2: the variance about the mean, summed over dimensions, divided by n."""
    storage_fvu: float
    """Mean of |a - stored a|^2 divided by the total variance: what storing in fewer bits lost; 0 where nothing was rounded."""
    arrays: FileRecord
    """The file of mean and covariance."""


@dataclass(frozen=True)
class SiteStatistics:
    """Moments of the activations at one site, over the tokens that its mask keeps, in float64."""

    n: int
    """Tokens that the mask keeps."""
    n_outliers: int
    """Tokens that it leaves out for their norm."""
    mean: Float[Tensor, "width"]
    """Mean activation mu, float64."""
    mean_norm: float
    """Mean of |a|."""
    mean_centred_norm: float
    """Mean of |a - mu|."""
    median_norm: float
    """Median of |a| over all positions but the skipped ones, outliers included."""
    threshold: float
    """Largest norm that the mask keeps: norm_ratio times the median."""
    total_variance: float
    """Mean of |a - mu|^2: the variance about the mean, summed over dimensions, divided by n."""
    storage_fvu: float
    """Mean of |a - stored a|^2 divided by the total variance: what storing in fewer bits lost; 0 where nothing was rounded."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`, and, without shards and statistics, `unfinished.json`."""

    schema: int = SCHEMA
    """Version of the layout."""
    model: ModelRecord | None
    """The model captured from; None for imported activations of which it is not known."""
    corpus: CorpusRecord
    """The corpus captured from."""
    capture: CaptureConfig
    """What was asked for."""
    sites: tuple[Site, ...]
    """The captured sites, in the order asked for."""
    token_dtype: Literal["uint16", "int32"] | None
    """Dtype of the token ids; None where the rows are not tokens."""
    mask: MaskRule = MaskRule()
    """Which tokens consumers skip."""
    n_rows: int = 0
    """Rows in the store; 0 as long as not all tokens are written."""
    shards: tuple[ShardRecord, ...] = ()
    """Every shard in order."""
    statistics: dict[str, SiteSummary] = field(default_factory=dict)
    """What was measured, by site name."""

    @property
    def shard_rows(self) -> list[int]:
        """Rows of every shard; before there are any records, those of a capture of `n_rows`."""
        if self.shards:
            return [shard.n_rows for shard in self.shards]
        whole, rest = divmod(self.n_rows, self.capture.rows_per_shard)
        return [self.capture.rows_per_shard] * whole + ([rest] if rest else [])

    def folder_name(self, index: int) -> str:
        """Name of the folder of shard `index`."""
        rows_per_shard = self.capture.rows_per_shard
        n_rows = self.shards[index].n_rows if self.shards else min(rows_per_shard, self.n_rows - index * rows_per_shard)
        return folder_name(index, n_rows, rows_per_shard)


def folder_name(index: int, n_rows: int, rows_per_shard: int) -> str:
    """Name of the folder of a shard."""
    return f"{index:05d}" if n_rows == rows_per_shard else f"{index:05d}-{n_rows}"


def read_manifest(path: Path, name: str = MANIFEST) -> Manifest:
    """The manifest of the store at `path`. Raises FormatError naming the file when it is missing, damaged, or of another schema."""
    file = path / name
    try:
        data = read_json(file)
    except FormatError as error:
        raise FormatError(f"{error}; {_advice(path, name)}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise FormatError(
            f"{file} has schema {schema}, written by a newer version; this one reads activation stores of schema {SCHEMA}: upgrade sae-workbench"
        )
    if schema != SCHEMA:
        raise FormatError(
            f"{file} has schema {schema!r}, this version reads activation stores of schema {SCHEMA}: read it with the version that wrote it, "
            "or capture again"
        )
    try:
        manifest = from_json(Manifest, data)
        if name == MANIFEST:
            _check_complete(manifest)
    except ConfigError as error:
        raise FormatError(f"{file} is damaged: {error}; {_advice(path, name)}") from error
    return manifest


def _advice(path: Path, name: str) -> str:
    """What to do about a manifest that cannot be read."""
    if not (path / name).exists():
        return (
            "run the capture again to finish it"
            if (path / UNFINISHED).exists()
            else f"{path} is no activation store: name the folder of one"
        )
    if name == MANIFEST:
        return "put it back from a copy, or capture again into another folder"
    return "remove this file, the store is complete without it" if (path / MANIFEST).exists() else "remove the folder and capture again"


def pending_manifest(path: Path) -> Manifest | None:
    """What the store at `path` is being made into, or None; another process may finish it at any moment. Raises FormatError if damaged."""
    try:
        return read_manifest(path, UNFINISHED)
    except FormatError:
        if (path / UNFINISHED).exists():
            raise
        return None


def _check_complete(manifest: Manifest) -> None:
    """Raises ConfigError when the manifest of a complete store contradicts itself."""
    n_rows = sum(shard.n_rows for shard in manifest.shards)
    if n_rows != manifest.n_rows:
        raise ConfigError(f"its shards have {n_rows} rows, it says {manifest.n_rows}")
    for site in manifest.sites:
        if site.name not in manifest.statistics:
            raise ConfigError(f"it has no statistics of {site.name}")
        for index, shard in enumerate(manifest.shards):
            if f"{site.name}.safetensors" not in shard.files:
                raise ConfigError(f"shard {index} has no {site.name}")


def write_manifest(path: Path, manifest: Manifest, name: str = MANIFEST) -> None:
    """Write the manifest of the store at `path`, atomically."""
    write_json(path / name, to_json(manifest))


def differences(stored: Manifest, wanted: Manifest, *, but: tuple[str, ...] = OWN_CAPTURE_FIELDS) -> list[str]:
    """What makes two manifests describe different captures: `model.digest is ab.. in the store, cd.. now`, one line each.

    The fields `but` of the capture are left out: a longer capture begins like a shorter one. Names are: digests decide.
    """
    return [
        f"{key} is {_short(old)} in the store, {_short(new)} now"
        for name in ("schema", "model", "corpus", "mask", "capture", "sites", "token_dtype")
        for key, old, new in _leaves(name, to_json(getattr(stored, name)), to_json(getattr(wanted, name)))
        if old != new and key not in {"model.name", "corpus.name", *(f"capture.{each}" for each in but)}
    ]


def _leaves(key: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [leaf for name in sorted({*old, *new}) for leaf in _leaves(f"{key}.{name}", old.get(name), new.get(name))]
    return [(key, old, new)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
