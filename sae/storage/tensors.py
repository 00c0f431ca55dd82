"""Tensors on disk: safetensors, written atomically, read by memory mapping.

A safetensors file is 8 bytes N (little-endian), N bytes of JSON `{name: {dtype, shape, data_offsets: [begin, end]}}`, then the raw bytes.
Reading checks the header against the file's size before anything is mapped, so a truncated file is named at once.
"""

import errno
import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import FormatError
from sae.storage.atomic import atomic_path

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MAX_HEADER = 100_000_000


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as one safetensors file, atomically. `metadata` is text to text. Strides are not kept: rows are written in order."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.touch()  # made here, so that the file has the mode the user's umask gives it
        mode = temporary.stat().st_mode
        try:
            save_file(plain, temporary, metadata=dict(metadata or {}))
        except SafetensorError as error:
            if f"os error {errno.ENOSPC}" in str(error):  # the library wraps the system's error in its text
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
        temporary.chmod(mode)


def read_header(path: str | Path) -> tuple[dict[str, dict], dict[str, str], int]:
    """(entries by tensor name, metadata, offset of the data) of a safetensors file. Raises FormatError naming the file."""
    path = Path(path)
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    with open(path, "rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise FormatError(f"{path} is truncated: {size} bytes, a safetensors file has at least 8")
        (length,) = struct.unpack("<Q", first)
        if length > min(MAX_HEADER, size - 8):
            raise FormatError(f"{path} is not a whole safetensors file: its header claims {length} bytes, the file has {size}")
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise FormatError(f"{path} has a damaged safetensors header: {error}") from error
    metadata = header.pop("__metadata__", {})
    for name, entry in header.items():
        _check_entry(path, name, entry)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise FormatError(f"{path} is truncated or has trailing bytes: its header describes {8 + length + end} bytes, the file has {size}")
    return header, metadata, 8 + length


def _check_entry(path: Path, name: str, entry: dict) -> None:
    dtype = DTYPES.get(entry.get("dtype", ""))
    if dtype is None:
        raise FormatError(f"{path}: tensor {name!r} has an unknown dtype {entry.get('dtype')!r}")
    count = 1
    for length in entry["shape"]:
        count *= length
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end or end - begin != count * dtype.itemsize:
        raise FormatError(
            f"{path}: tensor {name!r} of shape {entry['shape']} and dtype {entry['dtype']} does not fit its {end - begin} bytes"
        )


def map_tensors(path: str | Path) -> dict[str, Tensor]:
    """The file's tensors, memory-mapped: nothing is read until it is used. Writing into one changes this process's copy only, never the file.

    Raises FormatError naming the file when it is missing, truncated or damaged in its header.
    """
    header, _, offset = read_header(path)
    if not header:
        return {}
    with open(path, "rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = {}
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        begin, end = entry["data_offsets"]
        if begin == end:
            tensors[name] = torch.empty(shape, dtype=dtype)
        elif (offset + begin) % dtype.itemsize == 0:
            tensors[name] = torch.frombuffer(buffer, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=offset + begin).reshape(
                shape
            )
        else:
            tensors[name] = torch.frombuffer(bytearray(buffer[offset + begin : offset + end]), dtype=dtype).reshape(shape)
    return tensors


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """The file's tensors, copied into memory."""
    return {name: tensor.clone() for name, tensor in map_tensors(path).items()}
