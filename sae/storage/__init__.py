"""Bytes on disk: atomic writes, memory-mapped tensors and arrays, and the cache of results.

What needs torch is imported when it is first asked for: programs that only read arrays and JSON start without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sae.storage.arrays import create_arrays, map_arrays, read_header, save_arrays, write_arrays
from sae.storage.atomic import atomic_folder, atomic_path, checksum, lock, read_json, sync, user_cache_dir, write_bytes, write_json
from sae.storage.cache import Entry, Key, ResultCache

if TYPE_CHECKING:
    from sae.storage.tensors import load_tensors, map_tensors, save_tensors, write_tensors

_TENSORS = ("load_tensors", "map_tensors", "save_tensors", "write_tensors")

__all__ = [
    "Entry",
    "Key",
    "ResultCache",
    "atomic_folder",
    "atomic_path",
    "checksum",
    "create_arrays",
    "load_tensors",
    "lock",
    "map_arrays",
    "map_tensors",
    "read_header",
    "read_json",
    "save_arrays",
    "save_tensors",
    "sync",
    "user_cache_dir",
    "write_arrays",
    "write_bytes",
    "write_json",
    "write_tensors",
]


def __getattr__(name: str) -> Any:
    if name not in _TENSORS:
        raise AttributeError(f"module 'sae.storage' has no attribute {name!r}")
    return getattr(importlib.import_module("sae.storage.tensors"), name)
