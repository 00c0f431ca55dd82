"""Arrays on disk without torch: safetensors written and memory-mapped by numpy alone.

The format is that of `sae.storage.tensors`, and each reads what the other has written: 8 bytes N (little-endian), N bytes of JSON
`{name: {dtype, shape, data_offsets: [begin, end]}}`, then the raw bytes. Nothing in a file is trusted: the header is checked against the
file's size, and every array against its bytes, before anything is mapped.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from sae.errors import FormatError
from sae.storage.atomic import atomic_path

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element, by the format's name of its dtype."""
NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
"""numpy's name for each dtype that it has."""
NAMES = {np.dtype(code): name for name, code in NUMPY.items()}
MAX_HEADER = 100_000_000


def read_header(path: str | Path) -> tuple[dict[str, dict], dict[str, str], int]:
    """(entries by tensor name, metadata, offset of the data) of a safetensors file. Raises FormatError naming the file."""
    path = Path(path)
    try:
        size, text = path.stat().st_size, _header_text(path)
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    try:
        header, length = json.loads(text), len(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a damaged safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise FormatError(f"{path} has a damaged safetensors header: it is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path} has a damaged safetensors header: its metadata is not text by name")
    for name, entry in header.items():
        _check_entry(path, name, entry)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise FormatError(f"{path} is truncated or has trailing bytes: its header describes {8 + length + end} bytes, the file has {size}")
    return header, metadata, 8 + length


def _header_text(path: Path) -> bytes:
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise FormatError(f"{path} is truncated: {size} bytes, a safetensors file has at least 8")
        (length,) = struct.unpack("<Q", first)
        if length > min(MAX_HEADER, size - 8):
            raise FormatError(f"{path} is not a whole safetensors file: its header claims {length} bytes, the file has {size}")
        return file.read(length)


def _check_entry(path: Path, name: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise FormatError(f"{path}: tensor {name!r} has no dtype, shape and data_offsets in the header")
    item_size = ITEM_SIZES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if item_size is None:
        raise FormatError(f"{path}: tensor {name!r} has an unknown dtype {entry['dtype']!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise FormatError(f"{path}: tensor {name!r} has a damaged shape {shape!r} or place {offsets!r} in the header")
    begin, end = offsets
    if begin > end or end - begin != math.prod(shape) * item_size:
        raise FormatError(f"{path}: tensor {name!r} of shape {shape} and dtype {entry['dtype']} does not fit its {end - begin} bytes")


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def map_arrays(path: str | Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The file's arrays, memory-mapped and read-only: nothing is read until it is used, no descriptor stays open.

    Raises FormatError naming the file when it is missing, truncated, damaged in its header, or holds bfloat16, which numpy does not have.
    """
    path = Path(path)
    header, _, offset = read_header(path)
    if not header:
        return {}
    data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in NUMPY:
            raise FormatError(f"{path}: tensor {name!r} has dtype {entry['dtype']}, which can only be read as a tensor (map_tensors)")
        begin, end = (offset + position for position in entry["data_offsets"])
        arrays[name] = data[begin:end].view(NUMPY[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays as a new safetensors file, not flushed and not atomic; the same arrays give the same bytes."""
    described = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    with open(path, "xb") as file:
        header, _ = _header(described, metadata)
        file.write(header)
        for name in _ordered(described):
            if arrays[name].size:
                file.write(
                    np.ascontiguousarray(arrays[name]).view(np.uint8).reshape(-1).data if arrays[name].ndim else arrays[name].tobytes()
                )


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """`write_arrays`, atomically: the file at `path` is the whole new one or what it was before. `metadata` is text to text."""
    with atomic_path(path) as temporary:
        write_arrays(temporary, arrays, metadata)


def create_arrays(
    path: str | Path, described: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """A new safetensors file of zeros with arrays of these dtypes and shapes, memory-mapped for writing; call `flush` of each when done."""
    header, end = _header(described, metadata)
    with open(path, "xb") as file:
        file.write(header)
        file.truncate(len(header) + end)
    arrays, begin = {}, len(header)
    for name in _ordered(described):
        dtype, shape = described[name]
        count = math.prod(shape)
        arrays[name] = np.memmap(path, dtype=dtype, mode="r+", offset=begin, shape=shape) if count else np.zeros(shape, dtype)
        begin += count * np.dtype(dtype).itemsize
    return arrays


def _ordered(described: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> list[str]:
    """Names with the wider elements first, so that all are aligned."""
    return sorted(described, key=lambda name: (-np.dtype(described[name][0]).itemsize, name))


def _header(described: Mapping[str, tuple[np.dtype, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> tuple[bytes, int]:
    """(the first bytes of the file, number of bytes of the data)."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in _ordered(described):
        dtype, shape = np.dtype(described[name][0]), described[name][1]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype.newbyteorder("=")], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, end
