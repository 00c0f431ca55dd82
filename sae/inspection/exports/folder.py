"""The folder of an export: whole or not at all, never over something else, with a manifest that is written last.

    manifest.json   what was exported (digest of the index, dictionary, site, latents), from whose texts (`Provenance`), what the format
                    could not hold (`notes`), size and SHA-256 of every other file

A reader that finds the manifest has a complete export.
"""

import hashlib
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.inspection.exports.provenance import Provenance, provenance_of
from sae.inspection.index import FeatureIndex
from sae.inspection.records import FeatureSource
from sae.storage import atomic_folder, read_json, write_json

MANIFEST = "manifest.json"
KIND = "sae-export"
VERSION = 1
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Identity of a file."""

    n_bytes: int
    """Its size."""
    sha256: str
    """SHA-256 of its bytes."""


@dataclass(frozen=True, kw_only=True)
class ExportManifest:
    """What an export says about itself."""

    kind: str
    """`sae-export`."""
    format: str
    """Name of the format."""
    version: int
    """Version of the layout."""
    index: str
    """Digest of the index."""
    source: FeatureSource
    """Dictionary, site and corpus."""
    provenance: Provenance
    """Model, data set, revision and licence of the texts."""
    n_features: int
    """Latents exported."""
    latents: tuple[int, ...] | None
    """Which, in their order; None for all of them."""
    notes: tuple[str, ...]
    """What the format does not hold, and what was left out or cut."""
    facts: Mapping[str, Any]
    """What else a reader of this format wants to know."""
    files: Mapping[str, FileFacts]
    """Every other file, by relative name."""


@dataclass
class Export:
    """An export that is being written."""

    folder: Path
    """Where its files go for now."""
    notes: list[str] = field(default_factory=list)
    """What the manifest will note."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the manifest will hold."""

    def file(self, name: str) -> Path:
        """The path of a file, its folder made if need be."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def chosen(index: FeatureIndex, latents: Iterable[int] | None) -> Sequence[int]:
    """The latents to export in their order; None is all of them. Raises ConfigError for none, for one given twice, and for what is no
    latent of the index."""
    if latents is None:
        return range(index.d_sae)
    found: dict[int, None] = {}
    for latent in latents:
        allowed = f"0..d_sae-1={index.d_sae - 1}"
        if isinstance(latent, (bool, np.bool_)) or not hasattr(latent, "__index__") or not 0 <= operator.index(latent) < index.d_sae:
            raise ConfigError(f"latents must be integers in {allowed}, got {latent!r} (export of {index.folder})")
        if operator.index(latent) in found:
            raise ConfigError(f"latents must be different, got {latent} twice (export of {index.folder})")
        found[operator.index(latent)] = None
    if not found:
        raise ConfigError(f"latents must hold at least one latent (export of {index.folder}); leave it out to export all")
    return tuple(found)


@contextmanager
def export_folder(
    index: FeatureIndex, folder: str | Path, *, format: str, latents: Sequence[int], provenance: Provenance | None = None
) -> Iterator[Export]:
    """Yields the export to fill; at the end its manifest is written and it is moved to `folder`, in place of an older export of the same
    format. Raises FormatError when `folder` holds anything else; after an error nothing is left."""
    folder = Path(folder)
    refuse_foreign(folder, format)
    with atomic_folder(folder) as temporary:
        export = Export(temporary)
        yield export
        manifest = ExportManifest(
            kind=KIND,
            format=format,
            version=VERSION,
            index=index.digest,
            source=index.manifest.source,
            provenance=provenance or provenance_of(index),
            n_features=len(latents),
            latents=None if isinstance(latents, range) else tuple(latents),
            notes=tuple(export.notes),
            facts=export.facts,
            files={str(f.relative_to(temporary)): _facts(f) for f in sorted(temporary.rglob("*")) if f.is_file()},
        )
        write_json(temporary / MANIFEST, cleaned(to_json(manifest)))


def refuse_foreign(folder: str | Path, format: str) -> None:
    """Raises FormatError when `folder` is there and holds anything but an export of this format. An empty folder may be used."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    data = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if not isinstance(data, dict) or data.get("kind") != KIND or data.get("format") != format:
        raise FormatError(f"{folder} holds something that is not an export as {format}; choose another folder, or remove it")


def read_export(folder: str | Path, format: str) -> ExportManifest:
    """The manifest of an export of this format, its files' sizes checked against it. Raises FormatError naming the folder or file."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise FormatError(f"{folder} holds no complete export ({MANIFEST} is missing)")
    manifest = parse_manifest(read_json(folder / MANIFEST), format, str(folder / MANIFEST))
    for name, facts in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise FormatError(f"{file} is missing; export again")
        if file.stat().st_size != facts.n_bytes:
            raise FormatError(f"{file} has {file.stat().st_size} bytes instead of {facts.n_bytes}; export again")
    return manifest


def parse_manifest(data: Any, format: str, where: str) -> ExportManifest:
    """The manifest that the JSON value describes. Raises FormatError saying `where`."""
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise FormatError(f"{where} is not the manifest of an export")
    if (data.get("format"), data.get("version")) != (format, VERSION):
        found = f"{data.get('format')!r}, version {data.get('version')!r}"
        raise FormatError(f"{where} must be that of an export as {format!r}, version {VERSION}; it is {found}")
    try:
        return from_json(ExportManifest, data)
    except ConfigError as error:
        raise FormatError(f"{where} is damaged: {error}") from error


def _facts(file: Path) -> FileFacts:
    with open(file, "rb") as opened:
        return FileFacts(n_bytes=file.stat().st_size, sha256=hashlib.file_digest(opened, "sha256").hexdigest())


def json_line(value: Any) -> str:
    """A value, or a record, as one line of strict JSON: finite numbers, valid UTF-8 (half a surrogate pair is written out, as `\\ud800`)."""
    text = json.dumps(value, default=_fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return SURROGATE.sub(lambda match: f"\\\\u{ord(match[0]):04x}", text)


def _fields(value: Any) -> Any:
    if is_dataclass(value):
        return vars(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"a {type(value).__name__} has no JSON form: {value!r}")


def clean(text: str) -> str:
    """The text with half surrogate pairs written out (`\\ud800`), so that it is valid UTF-8; index texts are made alike."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def cleaned(value: Any) -> Any:
    """A JSON value with all of its texts clean."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): cleaned(item) for key, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


def short(value: float | int) -> float:
    """The decimal number with fewest digits that is the same float32: values are stored in float32."""
    return float(str(np.float32(value)))
