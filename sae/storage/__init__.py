"""Bytes on disk: atomic writes, memory-mapped tensors, and the cache of results."""

from sae.storage.atomic import atomic_folder, atomic_path, checksum, lock, read_json, sync, user_cache_dir, write_bytes, write_json
from sae.storage.cache import Entry, Key, ResultCache
from sae.storage.tensors import load_tensors, map_tensors, read_header, save_tensors, write_tensors

__all__ = [
    "Entry",
    "Key",
    "ResultCache",
    "atomic_folder",
    "atomic_path",
    "checksum",
    "load_tensors",
    "lock",
    "map_tensors",
    "read_header",
    "read_json",
    "save_tensors",
    "sync",
    "user_cache_dir",
    "write_bytes",
    "write_json",
    "write_tensors",
]
