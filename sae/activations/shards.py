"""Shards on disk: tokens first, then file after file of activations, each whole or not there, found damaged by size at once and by checksum.

A shard's folder appears with its tokens, by one rename. A site's file appears by another, and counts once the shard's record names it.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae.activations.manifest import DTYPES, TOKEN_DTYPES, FileRecord, Manifest, ShardRecord, StorageError
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.storage import atomic_folder, atomic_path, checksum, lock, map_tensors, read_json, write_json, write_tensors

TOKENS_FILE = "tokens.safetensors"
RECORD_FILE = "shard.json"


class SiteBuffers(NamedTuple):
    """The activations of one site in one shard."""

    acts: Shaped[Tensor, "n_tokens width"]
    """Activations in the storage dtype, row after row."""
    norms: Float[Tensor, "n_tokens"]
    """|a|, float32."""
    error: StorageError
    """What storing them lost."""


class Runs(NamedTuple):
    """Which document each of consecutive tokens belongs to."""

    starts: Int[Tensor, "runs"]
    """Where each run of tokens of one document begins; the first is 0."""
    ids: Int[Tensor, "runs"]
    """Its document."""


def runs_of(document_ids: Int[Tensor, "..."]) -> Runs:
    """Consecutive equal numbers as runs."""
    flat = document_ids.reshape(-1).to(torch.int32)
    changes = (flat[1:] != flat[:-1]).nonzero().squeeze(1) + 1
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), changes])
    return Runs(starts.to(torch.int32), flat[starts])


def expanded(runs: Runs, n_tokens: int) -> Int[Tensor, "n_tokens"]:
    """The document of every token, int32."""
    ends = torch.cat([runs.starts[1:], torch.tensor([n_tokens], dtype=torch.int32)])
    return torch.repeat_interleave(runs.ids, (ends - runs.starts).long())


def shard_folder(path: Path, manifest: Manifest, index: int) -> Path:
    """Where shard `index` of the store at `path` is."""
    return path / "shards" / manifest.folder_name(index)


def site_file(site: str) -> str:
    """Name of a site's file within a shard."""
    return f"{site}.safetensors"


def store_lock(path: Path) -> Path:
    """The lock that whoever changes the store at `path` holds for as long as the change takes; it lies beside the store, not in it."""
    return path.parent / f".{path.name}.lock"


def token_dtype(d_vocab: int) -> str:
    """uint16 where it holds every token id, else int32."""
    return "uint16" if d_vocab <= 2**16 else "int32"


def write_tokens(
    path: Path, folder: Path, tokens: Int[Tensor, "rows context"] | None, document_ids: Int[Tensor, "rows context"], dtype: str | None
) -> None:
    """Begin the shard at `folder` with its tokens, or put them back into one that has lost them, atomically.

    Raises CacheError when the disk is full or the place cannot be written.
    """
    runs = runs_of(document_ids)
    tensors: dict[str, Tensor] = {"document_starts": runs.starts, "document_ids": runs.ids}
    if tokens is not None and dtype is not None:
        tensors["tokens"] = tokens.to(TOKEN_DTYPES[dtype])
    if _has_record(folder):
        _add_files(path, folder, {TOKENS_FILE: tensors}, {})
        return
    with atomic_folder(folder) as temporary:
        digest = write_tensors(temporary / TOKENS_FILE, tensors)
        record = FileRecord(n_bytes=(temporary / TOKENS_FILE).stat().st_size, checksum=digest)
        rewrite_record(temporary, ShardRecord(n_rows=len(document_ids), files={TOKENS_FILE: record}, errors={}))


def _has_record(folder: Path) -> bool:
    """Whether a shard says which of its files are whole; without that nothing in it can be relied on."""
    try:
        read_record(folder)
    except FormatError:
        return False
    return True


def write_sites(path: Path, folder: Path, sites: Mapping[str, SiteBuffers]) -> None:
    """Add sites to the shard at `folder` of the store at `path`; its record names them once all their bytes are on disk.

    Raises CacheError when the disk is full or the place cannot be written; nothing is half-written.
    """
    tensors = {site_file(site): {"acts": buffers.acts, "norms": buffers.norms} for site, buffers in sites.items()}
    _add_files(path, folder, tensors, {site: buffers.error for site, buffers in sites.items()})


def _add_files(path: Path, folder: Path, files: Mapping[str, Mapping[str, Tensor]], errors: Mapping[str, StorageError]) -> None:
    written = {}
    for name, tensors in files.items():
        with atomic_path(folder / name) as temporary:
            digest = write_tensors(temporary, tensors)
            written[name] = FileRecord(n_bytes=temporary.stat().st_size, checksum=digest)
    with lock(store_lock(path)):
        record = read_record(folder)
        rewrite_record(folder, replace(record, files={**record.files, **written}, errors={**record.errors, **errors}))


def rewrite_record(folder: Path, record: ShardRecord) -> None:
    """Replace what a shard says about its own files."""
    write_json(folder / RECORD_FILE, to_json(record))


def read_record(folder: Path) -> ShardRecord:
    """What a shard says about its own files. Raises FormatError naming the file when it is missing or damaged."""
    try:
        return from_json(ShardRecord, read_json(folder / RECORD_FILE))
    except ConfigError as error:
        raise FormatError(f"{folder / RECORD_FILE} is damaged: {error}; `sae store repair` writes it again") from error


def check_record(folder: Path, shard: ShardRecord) -> None:
    """Raises FormatError when what a shard says about itself is damaged or is not what the manifest says; it may have more files by now."""
    own = read_record(folder)
    files = all(own.files.get(name) == file for name, file in shard.files.items())
    errors = all(own.errors.get(site) == error for site, error in shard.errors.items())
    if own.n_rows != shard.n_rows or not files or not errors:
        raise FormatError(
            f"{folder / RECORD_FILE} does not say what the manifest says about this shard; `sae store repair` writes it again"
        )


def sound_files(folder: Path) -> set[str]:
    """Names of the shard's files that are there with their recorded sizes; none when there is no shard or its record is damaged."""
    try:
        record = read_record(folder)
    except FormatError:
        return set()
    return {name for name, file in record.files.items() if _size(f"{folder}/{name}") == file.n_bytes}


def check_sizes(folder: Path, record: ShardRecord) -> None:
    """Raises FormatError naming the first file that is missing or has another size than recorded, and saying how to mend it."""
    for name, file in record.files.items():
        n_bytes = _size(f"{folder}/{name}")
        if n_bytes is None:
            raise FormatError(f"{folder / name} does not exist; `sae store repair` captures it again")
        if n_bytes != file.n_bytes:
            raise FormatError(
                f"{folder / name} is truncated or damaged: it has {n_bytes} bytes, {file.n_bytes} were written; "
                "`sae store repair` captures it again"
            )


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_file(path: Path, manifest: Manifest, index: int, name: str) -> None:
    """Raises FormatError when a file of shard `index` is not as it was written: size, checksum, header, shapes, dtypes."""
    file, record = shard_folder(path, manifest, index) / name, manifest.shards[index].files[name]
    check_sizes(file.parent, replace(manifest.shards[index], files={name: record}))
    if checksum(file) != record.checksum:
        raise FormatError(
            f"{file} is damaged: its checksum is not that of the bytes that were written; `sae store repair` captures it again"
        )
    layout = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in map_tensors(file).items()}
    expected = _layout(manifest, manifest.shards[index].n_rows, name)
    runs = {key: layout.pop(key, None) for key in ("document_starts", "document_ids")} if name == TOKENS_FILE else {}
    if layout != expected or len(set(runs.values())) > 1 or None in runs.values():
        raise FormatError(f"{file} must hold {expected}, it holds {layout}")


def _layout(manifest: Manifest, n_rows: int, name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    context = manifest.capture.context
    if name == TOKENS_FILE:
        return {"tokens": ((n_rows, context), TOKEN_DTYPES[manifest.token_dtype])} if manifest.token_dtype else {}
    widths = {site_file(site.name): site.width for site in manifest.sites}
    acts = ((n_rows * context, widths[name]), DTYPES[manifest.capture.dtype])
    return {"acts": acts, "norms": ((n_rows * context,), torch.float32)}


def remove_shard(folder: Path) -> None:
    """Remove a shard's folder, so that it is gone at once."""
    retired = folder.with_name(f".partial-gone-{folder.name}")
    shutil.rmtree(retired, ignore_errors=True)
    os.replace(folder, retired)
    shutil.rmtree(retired)
