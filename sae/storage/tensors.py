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

from sae.errors import FormatError
from sae.fingerprint import tensor_bytes
from sae.storage.atomic import atomic_path

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000


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
