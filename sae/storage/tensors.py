"""Tensors on disk: safetensors, written atomically, read by memory mapping.

A safetensors file is 8 bytes N (little-endian), N bytes of JSON `{name: {dtype, shape, data_offsets: [begin, end]}}`, then the raw bytes.
Reading checks the header against the file's size before anything is mapped, so a truncated file is named at once.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from sae.fingerprint import tensor_bytes
from sae.storage.arrays import read_header
from sae.storage.atomic import atomic_path

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write named tensors as a new safetensors file, not flushed and not atomic; returns the XXH3-128 of its bytes.

    Contiguous CPU tensors are written from where they are. For files in a folder that itself appears atomically; else `save_tensors`.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # wider elements first: all are aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * tensors[name].dtype.itemsize
        header[name] = {"dtype": CODES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    state = xxhash.xxh3_128()
    with open(path, "xb") as file:
        for piece in (struct.pack("<Q", len(text)), text, *(tensor_bytes(tensors[name]) for name in names)):
            file.write(piece)
            state.update(piece)
    return state.hexdigest()


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """`write_tensors`, atomically: the file at `path` is the whole new one or what it was before. `metadata` is text to text."""
    with atomic_path(path) as temporary:
        return write_tensors(temporary, tensors, metadata)


def map_tensors(path: str | Path) -> dict[str, Tensor]:
    """The file's tensors, memory-mapped: nothing is read until it is used. Writing into one changes this process's copy only, never the file.

    Raises FormatError naming the file when it is missing, truncated or damaged in its header.
    """
    path = Path(path)
    header, _, offset = read_header(path)
    if not header:
        return {}
    # No descriptor stays open: a process may have some thousand of them, and a store has more files than that.
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    tensors = {}
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        begin, end = (offset + position for position in entry["data_offsets"])
        count = (end - begin) // dtype.itemsize
        if count == 0:
            tensors[name] = torch.empty(shape, dtype=dtype)
        elif begin % dtype.itemsize == 0:
            strides = torch.empty(shape, device="meta").stride()
            tensors[name] = torch.empty(0, dtype=dtype).set_(storage, begin // dtype.itemsize, shape, strides)
        else:
            tensors[name] = torch.empty(0, dtype=torch.uint8).set_(storage, begin, (end - begin,), (1,)).clone().view(dtype).reshape(shape)
    return tensors


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """The file's tensors, copied into memory."""
    return {name: tensor.clone() for name, tensor in map_tensors(path).items()}
