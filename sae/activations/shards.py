"""Shards on disk: the folder of one, written whole or not at all, checked by size at once and by SHA-256 on demand."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from sae.activations.manifest import DTYPES, FileRecord, Manifest, ShardRecord
from sae.errors import CacheError, ConfigError, FormatError
from sae.fingerprint import digest_file, from_json, to_json
from sae.storage import atomic_folder, lock, map_tensors, read_json, save_tensors, write_json

TOKENS_FILE = "tokens.safetensors"
RECORD_FILE = "shard.json"
UINT16_VOCABULARY = 2**16


class SiteBuffers(NamedTuple):
    """The activations of one site in one shard."""

    acts: Float[Tensor, "n_tokens width"]
    """Activations in the storage dtype, row after row."""
    norms: Float[Tensor, "n_tokens"]
    """|a| of the stored activations, float32."""


class ShardBuffers(NamedTuple):
    """One shard in memory."""

    tokens: Int[Tensor, "rows context"]
    """Token ids."""
    document_ids: Int[Tensor, "rows context"]
    """The document that each token belongs to."""
    sites: dict[str, SiteBuffers]
    """What was captured, by site name."""


def shard_folder(path: Path, index: int) -> Path:
    """Where shard `index` of the store at `path` is."""
    return path / "shards" / f"{index:05d}"


def site_file(site: str) -> str:
    """Name of a site's file within a shard."""
    return f"{site}.safetensors"


def store_lock(path: Path) -> Path:
    """The lock that whoever changes the store at `path` holds for as long as the change takes; it lies beside the store, not in it."""
    return path.parent / f".{path.name}.lock"


def token_dtype(d_vocab: int) -> torch.dtype:
    """uint16 where it holds every token id, else int32."""
    return torch.uint16 if d_vocab <= UINT16_VOCABULARY else torch.int32


def write_shard(path: Path, index: int, buffers: ShardBuffers, *, d_vocab: int) -> None:
    """Write one shard, atomically; a shard that another process finished in the meantime is left as it is, being the same.

    Raises CacheError when the disk is full.
    """
    folder = shard_folder(path, index)
    with lock(store_lock(path)):
        if folder.exists():
            return
        try:
            with atomic_folder(folder) as temporary:
                ids = {"tokens": buffers.tokens.to(token_dtype(d_vocab)), "document_ids": buffers.document_ids.to(torch.int32)}
                save_tensors(temporary / TOKENS_FILE, ids)
                for site, (acts, norms) in buffers.sites.items():
                    save_tensors(temporary / site_file(site), {"acts": acts, "norms": norms})
                files = {
                    file.name: FileRecord(n_bytes=file.stat().st_size, sha256=digest_file(file)) for file in sorted(temporary.iterdir())
                }
                write_json(temporary / RECORD_FILE, to_json(ShardRecord(n_rows=len(buffers.tokens), files=files)))
        except SafetensorError as error:
            raise CacheError(f"cannot write {folder}: {error}; nothing was left half-written, run again when that is mended") from error


def read_record(folder: Path) -> ShardRecord:
    """What a shard says about its own files. Raises FormatError naming the file, also when one of them has another size than recorded."""
    try:
        record = from_json(ShardRecord, read_json(folder / RECORD_FILE))
    except ConfigError as error:
        raise FormatError(f"{folder / RECORD_FILE} is damaged: {error}") from error
    check_sizes(folder, record)
    return record


def check_sizes(folder: Path, record: ShardRecord) -> None:
    """Raises FormatError naming the first file that is missing or has another size than recorded."""
    for name, file in record.files.items():
        try:
            n_bytes = (folder / name).stat().st_size
        except FileNotFoundError as error:
            raise FormatError(f"{folder / name} does not exist") from error
        if n_bytes != file.n_bytes:
            raise FormatError(f"{folder / name} is truncated or damaged: it has {n_bytes} bytes, {file.n_bytes} were written")


def verify_shard(path: Path, index: int, manifest: Manifest) -> dict[str, dict[str, Tensor]]:
    """The mapped tensors of a shard by file name, after every size, checksum, header, shape and dtype was found right.

    Raises FormatError naming the file that is not as it was written.
    """
    folder, record = shard_folder(path, index), manifest.shards[index]
    if read_record(folder) != record:
        raise FormatError(f"{folder / RECORD_FILE} does not say what the manifest says about this shard")
    rows, context = record.n_rows, manifest.capture.context
    ids = (rows, context)
    expected: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {
        TOKENS_FILE: {"tokens": (ids, token_dtype(manifest.model.d_vocab)), "document_ids": (ids, torch.int32)}
    }
    for site in manifest.sites:
        acts = ((rows * context, site.width), DTYPES[manifest.capture.dtype])
        expected[site_file(site.name)] = {"acts": acts, "norms": ((rows * context,), torch.float32)}
    if set(record.files) != set(expected):
        raise FormatError(f"{folder} must hold {', '.join(sorted(expected))}, its record names {', '.join(sorted(record.files))}")
    found = {}
    for name, tensors in expected.items():
        if digest_file(folder / name) != record.files[name].sha256:
            raise FormatError(f"{folder / name} is damaged: its SHA-256 is not the one of the bytes that were written")
        found[name] = map_tensors(folder / name)
        _check_layout(folder / name, found[name], tensors)
    return found


def _check_layout(file: Path, found: Mapping[str, Tensor], expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}
    if layout != expected:
        raise FormatError(f"{file} must hold {dict(expected)}, it holds {layout}")
