"""The manifest of an index: what it was made from, how precise it is, and every file with its size and checksum."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import ConfigError, FormatError
from sae.fingerprint import digest, from_json, to_json
from sae.inspection.records import FeatureSource
from sae.inspection.settings import IndexConfig
from sae.storage import checksum, read_json, write_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SUMMARY_FILES = ("tokens.safetensors", "vocabulary.json", "documents.json", "summary.safetensors")


def work_folder(folder: Path) -> Path:
    """Where an index is built, beside its place."""
    return folder.parent / f".building-{folder.name}"


@dataclass(frozen=True, kw_only=True)
class SegmentRecord:
    """One immutable piece of the token-major view: `by_token/<number>.safetensors`."""

    first_token: int
    """Flat index of its first token."""
    n_tokens: int
    """Tokens, masked ones included."""
    n_entries: int
    """Non-zero values."""
    scale: float
    """What its stored values are multiplied by, a power of two."""


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
    segments: tuple[SegmentRecord, ...]
    """The pieces of the token-major view, in order."""
    n_entries: int
    """Non-zero values."""
    n_steps: int
    """Steps of the matching pursuit; 0 for an autoencoder."""
    value_scale: float
    """What the stored values of the latent-major view are multiplied by, a power of two."""
    precision: str
    """How precise the values are, in words."""
    map_method: str
    """How the map of the atoms was made, in words; empty where there is none."""
    files: Mapping[str, int]
    """Bytes of every other file, by relative name."""
    checksums: Mapping[str, str]
    """XXH3-128 of every other file."""

    @property
    def digest(self) -> str:
        """SHA-256 of the key: equal for two indexes with the same contents."""
        return digest(dict(self.key))


def write_manifest(folder: Path, **fields: Any) -> None:
    """Write `manifest.json` over the files that lie in `folder`; the last file of a build."""
    found = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
    files, checksums = {name: f.stat().st_size for name, f in found.items()}, {name: checksum(f) for name, f in found.items()}
    manifest = IndexManifest(format_version=FORMAT_VERSION, files=files, checksums=checksums, **fields)
    write_json(folder / MANIFEST, to_json(manifest))


def read_manifest(folder: Path) -> IndexManifest:
    """The manifest of the index in `folder`, its files checked against it.

    Files of the summary bundle must be there; those of the entries may be missing as a whole (a bundle that was shipped without them),
    not in part. Raises FormatError naming the folder or file.
    """
    if not (folder / MANIFEST).is_file():
        unfinished = work_folder(folder).is_dir()
        hint = "; a build of it was not finished, run it again" if unfinished else ""
        raise FormatError(f"{folder} holds no feature index ({MANIFEST} is missing){hint}")
    data = read_json(folder / MANIFEST)
    if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
        found = data.get("format_version") if isinstance(data, dict) else None
        raise FormatError(
            f"{folder / MANIFEST} has format version {found!r}; this version reads {FORMAT_VERSION}: "
            f"{'use a newer workbench' if isinstance(found, int) and found > FORMAT_VERSION else 'remove it, and build the index again'}"
        )
    try:
        manifest = from_json(IndexManifest, data)
    except ConfigError as error:
        raise FormatError(f"{folder / MANIFEST} is damaged: {error}") from error
    for name in SUMMARY_FILES:
        if name not in manifest.files:
            raise FormatError(f"{folder / MANIFEST} is damaged: it does not name {name}")
    _check_files(folder, manifest)
    return manifest


def _check_files(folder: Path, manifest: IndexManifest) -> None:
    for name, n_bytes in manifest.files.items():
        if name.startswith("/") or ".." in Path(name).parts:
            raise FormatError(f"{folder / MANIFEST} is damaged: it names the file {name!r} outside the index")
        file = folder / name
        if name not in SUMMARY_FILES and not file.parent.exists():
            continue
        if not file.is_file():
            raise FormatError(f"{file} is missing; the index {folder} is damaged, build it again")
        if file.stat().st_size != n_bytes:
            raise FormatError(f"{file} has {file.stat().st_size} bytes instead of {n_bytes}; the index {folder} is damaged, build it again")
