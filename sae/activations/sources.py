"""Arrays to import activations from: in memory, in `.npy`, `.safetensors` and Arrow files, read a piece at a time.

    Stack = parts one after the other along the first axis,        read(first, stop) = those rows, in memory

Files are memory-mapped and never written to; a piece is copied when it is read.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import ConfigError, FormatError
from sae.fingerprint import canonical, digest_file, tensor_bytes
from sae.storage import map_tensors

Source = Any
"""A numpy array, a tensor, a `.npy` or `.safetensors` path, `(path.safetensors, key)`, or a list of those, joined along the first axis."""
ACTS_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ID_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)
PIECE_BYTES = 64_000_000
MAX_ID = 2**31 - 1


class Part(ABC):
    """Rows from one place."""

    label: str
    """What it is called in messages."""
    shape: tuple[int, ...]
    """Its axes, rows first."""
    dtype: torch.dtype
    """What `read` gives."""

    @abstractmethod
    def read(self, first: int, stop: int) -> Tensor:
        """Rows `first` to `stop - 1`, on the CPU."""

    @abstractmethod
    def origin(self) -> dict[str, Any]:
        """What the digest is taken over."""


class Stack:
    """Parts one after the other, each row folded to [context, ...] where asked for. Made by `Stack.open`; nothing is read until `read`."""

    def __init__(self, label: str, parts: Sequence[Part], *, context: int | None = None) -> None:
        self.label = label
        self.parts = parts
        self.context = context
        self._joined = sum(part.shape[0] for part in parts)
        """Length of the first axis of the parts together."""

    @staticmethod
    def open(source: Source, label: str, allowed: Sequence[torch.dtype]) -> "Stack":
        """The arrays at `source`, called `label` in messages. Raises ConfigError and FormatError naming what cannot be read and why."""
        sources = source if isinstance(source, list) else [source]
        if not sources:
            raise ConfigError(f"{label} must be an array or a list of at least one, got an empty list (import)")
        return Stack.of([_open(each, label) for each in sources], label, allowed)

    @staticmethod
    def of(parts: Sequence[Part], label: str, allowed: Sequence[torch.dtype]) -> "Stack":
        """The parts one after the other. Raises ConfigError when they are not of one shape but for their length, or not of an allowed dtype."""
        for part in parts:
            if part.dtype not in allowed:
                names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
                raise ConfigError(f"{part.label} must hold one of {names}, got {str(part.dtype).removeprefix('torch.')} (import)")
            if not part.shape or part.shape[1:] != parts[0].shape[1:]:
                shapes = f"{list(parts[0].shape)} and {list(part.shape)}"
                raise ConfigError(f"the parts of {label} must have the same axes but for the length of the first, got {shapes} (import)")
        return Stack(label, parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...], or [rows, context, ...] where folded."""
        tail = self.parts[0].shape[1:]
        return (self._joined, *tail) if self.context is None else (self._joined // self.context, self.context, *tail)

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds what all parts do; int64 for whole numbers of several dtypes."""
        found = {part.dtype for part in self.parts}
        if len(found) > 1 and not all(dtype.is_floating_point for dtype in found):
            return torch.int64
        return reduce(torch.promote_types, found)

    def folded(self, context: int, tail: tuple[int, ...]) -> "Stack":
        """[n, *tail] as [rows, context, *tail]; what has that shape already stays. Raises ConfigError when the last row would not be whole."""
        if self.shape[1:] == (context, *tail):
            return self
        if self.shape[1:] != tail or self._joined % context:
            axes = "".join(f", {size}" for size in tail)
            wanted = f"[rows, {context}{axes}] or [n{axes}] with n a multiple of context={context}"
            raise ConfigError(f"{self.label} must be {wanted}, got {list(self.shape)} (import)")
        return Stack(self.label, self.parts, context=context)

    def read(self, first: int, stop: int) -> Tensor:
        """Rows `first` to `stop - 1`, in the dtype of the whole."""
        scale = self.context or 1
        found, offset = [], 0
        for part in self.parts:
            low, high = max(first * scale - offset, 0), min(stop * scale - offset, part.shape[0])
            if low < high:
                found.append(part.read(low, high).to(self.dtype))
            offset += part.shape[0]
        joined = found[0] if len(found) == 1 else torch.cat(found)
        return joined.reshape(stop - first, *self.shape[1:])

    def largest(self) -> int:
        """The largest of the ids."""
        return max(int(block.max()) for block in self._blocks())

    def check_ids(self) -> None:
        """Raises ConfigError when an id is negative or above 2^31 - 1."""
        for block in self._blocks():
            low, high = int(block.min()), int(block.max())
            if low < 0 or high > MAX_ID:
                raise ConfigError(f"{self.label} must be in 0..{MAX_ID}, got {low if low < 0 else high} (import)")

    def origin(self) -> list[Any]:
        """What the digest is taken over: that of the parts."""
        return [part.origin() for part in self.parts]

    def _blocks(self) -> Iterator[Tensor]:
        for first, stop in _steps(self.shape, 8):
            yield self.read(first, stop).long()


class MemoryPart(Part):
    """An array in memory, or mapped from a file."""

    def __init__(self, label: str, data: np.ndarray | Tensor, file: Path | None = None, key: str | None = None) -> None:
        self.label = label
        self.shape: tuple[int, ...] = tuple(data.shape)
        self.dtype: torch.dtype = data.dtype if isinstance(data, Tensor) else _torch_dtype(data.dtype, label)
        self._data, self._file, self._key = data, file, key

    def read(self, first: int, stop: int) -> Tensor:
        """Rows `first` to `stop - 1`, on the CPU."""
        piece = self._data[first:stop]
        if isinstance(piece, Tensor):
            return piece.detach().cpu()
        usable = piece.dtype.isnative and piece.flags.writeable and all(stride >= 0 for stride in piece.strides)
        return torch.from_numpy(piece if usable else np.array(piece, dtype=piece.dtype.newbyteorder("="), order="C"))

    def origin(self) -> dict[str, Any]:
        """SHA-256 of the file, or of dtype, shape and bytes."""
        if self._file is not None:
            return {"sha256": digest_file(self._file), "key": self._key}
        state = hashlib.sha256(canonical([str(self.dtype), list(self.shape)]).encode("ascii"))
        for first, stop in _steps(self.shape, self.dtype.itemsize):
            state.update(tensor_bytes(self.read(first, stop)))
        return {"sha256": state.hexdigest(), "key": None}


class ArrowFolder:
    """A folder that `datasets` saved."""

    def __init__(self, folder: Path) -> None:
        """Raises FormatError when it cannot be read."""
        import datasets

        try:
            rows = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError) as error:
            raise FormatError(f"{folder} cannot be read as a folder that `datasets` saved: {error}") from error
        if not isinstance(rows, datasets.Dataset):
            raise FormatError(f"{folder} holds several splits, {', '.join(rows)}: give the folder of one of them")
        self.folder = folder
        self.features = rows.features
        self.rows = rows.with_format("arrow")

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of its files with rows, in their order."""
        return [digest_file(file["filename"]) for file in self.rows.cache_files]


class ArrowPart(Part):
    """A column of numbers, each cell of one shape, of a folder that `datasets` saved."""

    def __init__(self, folder: ArrowFolder, column: str, shape: tuple[int, ...], dtype: str) -> None:
        self.label = f"column {column!r} of {folder.folder}"
        self.shape = (len(folder.rows), *shape)
        self.dtype = _torch_dtype(np.dtype(dtype), self.label)
        self._folder, self._column = folder, column

    def read(self, first: int, stop: int) -> Tensor:
        """Rows `first` to `stop - 1`. Raises FormatError for cells that are missing or of another shape."""
        pieces = []
        for chunk in self._folder.rows[first:stop].column(self._column).chunks:
            values = getattr(chunk, "storage", chunk)
            while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
                values = values.flatten()
            pieces.append(values.to_numpy(zero_copy_only=False))
        shape = (stop - first, *self.shape[1:])
        found = np.concatenate(pieces)
        if found.size != np.prod(shape):
            raise FormatError(
                f"{self.label} must hold cells of shape {list(shape[1:])}, rows {first} to {stop - 1} hold {found.size} numbers"
            )
        return torch.from_numpy(found.reshape(shape)).to(self.dtype)

    def origin(self) -> dict[str, Any]:
        """SHA-256 of the files."""
        return {"sha256": self._folder.digests, "key": self._column}


def _open(source: Source, label: str) -> MemoryPart:
    if isinstance(source, (np.ndarray, Tensor)):
        return MemoryPart(label, source)
    file, key = source if isinstance(source, tuple) else (source, None)
    if not isinstance(file, (str, Path)):
        kinds = "a numpy array, a tensor, a .npy or .safetensors file, (file, key) or a list of those"
        raise ConfigError(f"{label} must be {kinds}, got a {type(file).__name__} (import)")
    file = Path(file).expanduser()
    label = f"{label} ({file})"
    if not file.is_file():
        raise ConfigError(f"{label} does not exist; give the path of a file (import)")
    if file.suffix == ".npy":
        return MemoryPart(label, _map_npy(file), file)
    if file.suffix != ".safetensors":
        raise ConfigError(f"{label} must be a .npy or a .safetensors file; convert it, or read it and give the array (import)")
    tensors = map_tensors(file)
    if key is None and len(tensors) == 1:
        key = next(iter(tensors))
    if key not in tensors:
        raise ConfigError(f"{label} holds {', '.join(sorted(tensors)) or 'nothing'}: give (file, one of these), got {key!r} (import)")
    return MemoryPart(label, tensors[key], file, key)


def _map_npy(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="c", allow_pickle=False)  # a private map: what is written to it never reaches the file
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{file} cannot be read as a .npy array: {error}") from error


def _torch_dtype(dtype: np.dtype, label: str) -> torch.dtype:
    try:
        return torch.from_numpy(np.empty(0, dtype=dtype.newbyteorder("="))).dtype
    except TypeError as error:
        advice = "; numpy files cannot hold bfloat16, save it as .safetensors" if dtype.kind == "V" else ""
        raise ConfigError(f"{label} must hold numbers that torch has, got {dtype}{advice} (import)") from error


def _steps(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows of at most PIECE_BYTES."""
    step = max(1, PIECE_BYTES // max(1, int(np.prod(shape[1:])) * itemsize))
    for first in range(0, shape[0], step):
        yield first, min(first + step, shape[0])
