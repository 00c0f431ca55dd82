"""What an activation store says about itself: `manifest.json`, and the record that every shard keeps of its own files.

    <store>/manifest.json                               what was captured from what, how, and, once complete, every file and the statistics
    <store>/shards/00000/tokens.safetensors             tokens [rows, context] (uint16 or int32), document_ids [rows, context] (int32)
    <store>/shards/00000/<site name>.safetensors        acts [rows * context, width] (bfloat16 or float32), norms [rows * context] (float32)
    <store>/shards/00000/shard.json                     number of rows, size and SHA-256 of the files beside it

A shard's folder appears whole, by one rename, so the folders that are there are the progress of a capture. The manifest holds nothing that
depends on when or in how many runs it was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.models.sites import Site
from sae.storage import read_json, write_json

SCHEMA = 1
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
OWN_CAPTURE_FIELDS = ("n_tokens", "if_short")  # may change between two runs that fill one store


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """What to capture. Two captures with the same model, corpus and config are the same store, byte for byte."""

    sites: tuple[str, ...]
    """TransformerLens names of the sites, all captured in one pass."""
    n_tokens: int
    """How many tokens to capture, rounded up to whole rows (tokens)."""
    context: int = 128
    """Length of a row, the window that the model sees (tokens)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Storage dtype of the activations."""
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

    def __post_init__(self) -> None:
        for name in ("n_tokens", "context", "rows_per_shard", "rows_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)} (CaptureConfig)")
        if self.context < 2:
            raise ConfigError(f"context must be at least 2, since position 0 is never used, got {self.context} (CaptureConfig)")
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
    sha256: str
    """SHA-256 of its bytes."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Identity of one shard."""

    n_rows: int
    """Its rows."""
    files: dict[str, FileRecord]
    """Its files, by name within the shard's folder."""


@dataclass(frozen=True)
class SiteStatistics:
    """Moments of the activations at one site, over the tokens that its mask keeps, in float64."""

    n: int
    """Tokens that the mask keeps."""
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

    def record(self) -> dict[str, Any]:
        """Its JSON form."""
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "mean": self.mean.tolist()}

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "SiteStatistics":
        """The statistics that `record` describes."""
        return cls(**{**record, "mean": torch.tensor(record["mean"], dtype=torch.float64)})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`. Until the capture is complete it names only what is being captured."""

    schema: int = SCHEMA
    """Version of the layout."""
    complete: bool = False
    """Whether every shard and the statistics are there."""
    model: ModelRecord
    """The model captured from."""
    corpus: CorpusRecord
    """The corpus captured from."""
    capture: CaptureConfig
    """What was asked for."""
    sites: tuple[Site, ...]
    """The captured sites, in the order asked for."""
    mask: MaskRule = MaskRule()
    """Which tokens consumers skip."""
    n_rows: int = 0
    """Rows in the store; 0 until complete."""
    shards: tuple[ShardRecord, ...] = ()
    """Every shard in order; empty until complete."""
    statistics: dict[str, dict[str, int | float | list[float]]]
    """SiteStatistics by site name; empty until complete."""


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store at `path`. Raises FormatError naming the file when it is missing, damaged, or of another schema."""
    file = path / "manifest.json"
    data = read_json(file)
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise FormatError(f"{file} has schema {schema!r}, this version reads activation stores of schema {SCHEMA}")
    try:
        return from_json(Manifest, data)
    except ConfigError as error:
        raise FormatError(f"{file} is damaged: {error}") from error


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the store at `path`, atomically."""
    write_json(path / "manifest.json", to_json(manifest))


def differences(stored: Manifest, wanted: Manifest) -> list[str]:
    """What makes two manifests describe different captures: `model.digest is ab.. in the store, cd.. now`, one line each.

    The number of tokens asked for is left out, since a longer capture begins like a shorter one.
    """
    return [
        f"{key} is {_short(old)} in the store, {_short(new)} now"
        for key in ("schema", "model", "corpus", "mask", "capture", "sites")
        for key, old, new in _leaves(key, to_json(getattr(stored, key)), to_json(getattr(wanted, key)))
        if old != new and key not in {f"capture.{name}" for name in OWN_CAPTURE_FIELDS}
    ]


def _leaves(key: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [leaf for name in sorted({*old, *new}) for leaf in _leaves(f"{key}.{name}", old.get(name), new.get(name))]
    return [(key, old, new)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
