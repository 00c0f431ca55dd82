"""The manifest of an index: what it was made from, and the size of every file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import ConfigError, FormatError
from sae.fingerprint import digest, from_json, to_json
from sae.inspection.records import FeatureSource
from sae.inspection.settings import IndexConfig
from sae.storage import read_json, write_json

FORMAT_VERSION = 1
SUMMARY_FILES = ("tokens.safetensors", "vocabulary.json", "documents.json", "summary.safetensors")


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What an index says about itself."""

    format_version: int
    """Version of the layout."""
    key: Mapping[str, Any]
    """What decided its contents: digests of store, dictionary, model, texts and labels; site, name and settings."""
    config: IndexConfig
    """The settings."""
    source: FeatureSource
    """What its features belong to."""
    n_entries: int
    """Non-zero values."""
    n_steps: int
    """Steps of the matching pursuit; 0 for an autoencoder."""
    files: Mapping[str, int]
    """Bytes of every other file, by relative name."""

    @property
    def digest(self) -> str:
        """SHA-256 of the key: equal for two indexes with the same contents."""
        return digest(dict(self.key))


def write_manifest(folder: Path, **fields: Any) -> None:
    """Write `manifest.json` over the files that lie in `folder`."""
    files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    write_json(folder / "manifest.json", to_json(IndexManifest(format_version=FORMAT_VERSION, files=files, **fields)))


def read_manifest(folder: Path) -> IndexManifest:
    """The manifest of the index in `folder`, its files checked against it.

    Files of the summary bundle must be there; those of the entries may be missing as a whole (a bundle that was shipped without them),
    not in part. Raises FormatError naming the folder or file.
    """
    if not (folder / "manifest.json").is_file():
        raise FormatError(f"{folder} holds no feature index (manifest.json is missing)")
    data = read_json(folder / "manifest.json")
    if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
        found = data.get("format_version") if isinstance(data, dict) else None
        raise FormatError(f"{folder / 'manifest.json'} has format version {found!r}; this version reads {FORMAT_VERSION}")
    try:
        manifest = from_json(IndexManifest, data)
    except ConfigError as error:
        raise FormatError(f"{folder / 'manifest.json'} is damaged: {error}") from error
    for name, n_bytes in manifest.files.items():
        file = folder / name
        if name not in SUMMARY_FILES and not file.parent.exists():
            continue
        if not file.is_file():
            raise FormatError(f"{file} is missing; the index {folder} is damaged, build it again")
        if file.stat().st_size != n_bytes:
            raise FormatError(f"{file} has {file.stat().st_size} bytes instead of {n_bytes}; the index {folder} is damaged, build it again")
    return manifest
